"""Formats of audio files: those that can be read and written, and the choice of an output's format."""

from __future__ import annotations

import dataclasses
import io

from edgese.atomic_file import shown
from edgese.audio.libsndfile import SoundFile, SoundFileError, default_subtype, holds, reason
from edgese.errors import AudioError

# What can be written: suffix -> container, and the subtype that the suffix itself implies.
FORMATS: dict[str, tuple[str, str | None]] = {
    ".wav": ("WAV", None),
    ".flac": ("FLAC", None),
    ".ogg": ("OGG", None),
    ".oga": ("OGG", None),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", None),
    ".aiff": ("AIFF", None),
    ".aif": ("AIFF", None),
    ".au": ("AU", None),
    ".caf": ("CAF", None),
    ".w64": ("W64", None),
    ".rf64": ("RF64", None),
}

# Suffixes of the files that are taken from a folder; a file that is named itself may have any.
READABLE = (*FORMATS, ".aifc", ".snd", ".wave")

# Suffixes of what holds sound and is not read: named where a folder is gone through.
UNREADABLE = (
    *(".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".3gp", ".aac", ".wma", ".wmv", ".asf", ".webm", ".mkv", ".mka", ".avi"),
    *(".amr", ".ac3", ".ape", ".wv", ".tta", ".dsf", ".dff", ".mpc", ".ra", ".flv", ".mpg", ".mpeg", ".ts", ".weba"),
)
CONTAINERS = tuple(dict.fromkeys(container for container, _ in FORMATS.values()))
INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}  # a sample; the others have 1 at most
LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_III")

# ADPCM and its like pad to whole blocks, ALAC crashes libsndfile 1.2.2 on a full disk: read, never written.
SUBTYPES = (*INTEGER_BITS, "FLOAT", "DOUBLE", "ULAW", "ALAW", *LOSSY)

# The subtype that loses least where a container cannot hold the input's own.
_NEAREST = {
    "DOUBLE": ("FLOAT", "PCM_24"),
    "FLOAT": ("PCM_24",),
    "PCM_32": ("PCM_24",),
    "PCM_U8": ("PCM_S8",),
    "PCM_S8": ("PCM_U8",),
}

_MAX_BYTES = 0xFFFFFFFF - (1 << 20)  # of samples where sizes have 32 bits; leaves room for the header
_SIZES_OF_32_BITS = ("WAV", "WAVEX", "AIFF", "AU")
_MAX_VORBIS_RATE_HZ = 192_000  # libvorbis crashes above 200 kHz


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """Facts of a sound file's header."""

    sample_rate_hz: int
    n_channels: int
    n_frames: int | None  # samples of one channel; None where the header does not say
    container: str  # names as libsndfile has them: "WAV", "FLAC", "OGG", ...
    subtype: str  # "PCM_16", "VORBIS", ...

    @property
    def exact(self) -> bool:
        """True if `n_frames` is exact; in MP3 it is an estimate."""
        return self.n_frames is not None and not self.subtype.startswith("MPEG")

    @property
    def duration_s(self) -> float | None:
        return None if self.n_frames is None else self.n_frames / self.sample_rate_hz


def choose_format(source: AudioInfo, suffix: str, container: str | None, subtype: str | None) -> AudioInfo:
    """The format to write: what was asked for, else what the suffix says, else what the input has.

    Args:
        suffix: of the output's name, lower case, one of FORMATS; "" where it has none (stdout), which means WAV.
        container, subtype: libsndfile's names, as in CONTAINERS and SUBTYPES, or None.

    Raises:
        AudioError: a container or subtype that is unknown, or that do not go together; or too much sound for it.
    """
    by_suffix, implied = FORMATS.get(suffix, ("WAV", None))
    chosen = _known("container", container, CONTAINERS) or by_suffix
    if chosen == "WAV" and container is None and source.container in ("WAVEX", "RF64"):
        chosen = source.container
    if subtype is not None:
        picked = _known("subtype", subtype, SUBTYPES)
        if not holds(chosen, picked):
            fitting = [name for name in SUBTYPES if holds(chosen, name)]
            raise AudioError(f"subtype {subtype}: {chosen} cannot hold it, wanted one of {', '.join(fitting)}")
    else:
        wishes = (implied, source.subtype, *_NEAREST.get(source.subtype, ()), default_subtype(chosen))
        picked = next(name for name in wishes if name in SUBTYPES and holds(chosen, name))
    chosen_info = dataclasses.replace(source, container=chosen, subtype=str(picked))
    n_bytes = size_bytes(chosen_info)
    if chosen in ("WAV", "WAVEX") and n_bytes > _MAX_BYTES:
        return dataclasses.replace(chosen_info, container="RF64")
    if chosen in _SIZES_OF_32_BITS and n_bytes > _MAX_BYTES:
        raise AudioError(
            f"{chosen} cannot hold {n_bytes / 1e9:.1f} GB, wanted at most {_MAX_BYTES / 1e9:.1f}: "
            "choose another format, as in -o OUTPUT.wav (RF64 from there on) or -o OUTPUT.flac"
        )
    return chosen_info


def size_bytes(info: AudioInfo) -> int:
    """Bytes of the samples in the file; 0 where compression or an unknown length leaves it open."""
    if info.container in ("FLAC", "OGG", "MP3"):
        return 0
    return (info.n_frames or 0) * info.n_channels * _BYTES.get(info.subtype, 1)


def require_writable(name: str, info: AudioInfo) -> None:
    """Refuse a format that cannot hold such sound, found by beginning a file of it in memory.

    Raises:
        AudioError: the rate or the number of channels is none of the format's.
    """
    if info.subtype == "VORBIS" and info.sample_rate_hz > _MAX_VORBIS_RATE_HZ:
        raise AudioError(
            f"{name}: found {info.sample_rate_hz} Hz, wanted at most {_MAX_VORBIS_RATE_HZ} in OGG VORBIS: "
            "choose another format, as in -o OUTPUT.flac"
        )
    try:
        SoundFile(
            *(io.BytesIO(), "w", info.sample_rate_hz, info.n_channels, info.subtype), format=info.container
        ).close()
    except (SoundFileError, ValueError) as error:
        raise cannot_hold(name, info, error) from error


def cannot_hold(name: str, info: AudioInfo, error: Exception) -> AudioError:
    """Error of a format that libsndfile cannot write such sound in."""
    return AudioError(
        f"{name}: {info.container} {info.subtype} cannot hold {info.n_channels} channel(s) at "
        f"{info.sample_rate_hz} Hz ({reason(error)}): choose another format, as in -o OUTPUT.wav"
    )


def _known(what: str, value: str | None, known: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    if value.upper() not in known:
        raise AudioError(f"{what} {shown(value)}: unknown, wanted one of {', '.join(known)}")
    return value.upper()
