"""Audio files in and out, block by block: any rate, channel count and format, in memory that does not grow with length.

`AudioReader` refuses whatever is not whole, finite, audible sound; `AudioWriter` builds the output beside its final
name and renames it when it is whole; `resampled` changes the rate of a stream of blocks without shifting it. Blocks
are (n_frames, n_channels) float32 in [-1, 1]. Every refusal is one `AudioError` line: what, found, wanted, mend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import select
import stat
import struct
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgese.errors import AudioError
from edgese.partial import PartialFile, shown

try:
    import soundfile
    import soxr
except (ImportError, OSError) as error:  # OSError: the wheel found no libsndfile on this platform
    raise AudioError(
        f"soundfile or soxr cannot be loaded ({error}): pip install soundfile soxr; on Debian also libsndfile1"
    ) from error

if TYPE_CHECKING:
    from typing_extensions import Self

Samples = NDArray[np.float32]

MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_CHANNELS = 64
MIN_LENGTH_MS = 32  # one STFT window at 16 kHz

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
CONTAINERS = tuple(dict.fromkeys(container for container, _ in FORMATS.values()))

_INTEGER_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}  # a sample; the others have 1 at most
_LOSSY = ("VORBIS", "OPUS", "MPEG_LAYER_III")
# ADPCM and its like pad to whole blocks, ALAC crashes libsndfile 1.2.2 on a full disk: read, never written.
SUBTYPES = (*_INTEGER_BITS, "FLOAT", "DOUBLE", "ULAW", "ALAW", *_LOSSY)

# The subtype that loses least where a container cannot hold the input's own.
_NEAREST = {
    "DOUBLE": ("FLOAT", "PCM_24"),
    "FLOAT": ("PCM_24",),
    "PCM_32": ("PCM_24",),
    "PCM_U8": ("PCM_S8",),
    "PCM_S8": ("PCM_U8",),
}

_MAX_RIFF_BYTES = 0xFFFFFFFF - (1 << 20)  # sizes in a WAV are 32-bit; leave room for its header
_BLOCK_SAMPLES = 1 << 20  # of all channels together
_MAX_VORBIS_RATE_HZ = 192_000  # libvorbis crashes above 200 kHz
_VORBIS_FRAMES = 4096  # libvorbis keeps what it is given on the thread's stack
_MAX_CHUNKS = 1000


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What a file's header says."""

    sample_rate_hz: int
    n_channels: int
    n_frames: int | None  # samples of one channel; None where the header does not say
    container: str  # names as libsndfile has them: "WAV", "FLAC", "OGG", ...
    subtype: str  # "PCM_16", "VORBIS", ...

    @property
    def exact(self) -> bool:
        """Whether `n_frames` is a promise; in MP3 it is an estimate."""
        return self.n_frames is not None and not self.subtype.startswith("MPEG")

    @property
    def duration_s(self) -> float | None:
        return None if self.n_frames is None else self.n_frames / self.sample_rate_hz


class _SoundFile(soundfile.SoundFile):  # type: ignore[misc,unused-ignore]  # untyped in older releases
    """Reads and writes straight on: soundfile seeks after each call, which is slow and no codec needs."""

    def seekable(self) -> bool:
        return False


class AudioReader:
    """An open audio file, checked as far as its header and its end can tell. A context manager.

    Args:
        path: a regular file; its content decides the format, not its suffix.
        name: how messages call it, the path by default.

    Raises:
        AudioError: missing, unreadable, no regular file, empty, not audio, truncated, without samples, too short,
            of an absurd rate or channel count.
    """

    info: AudioInfo
    n_read: int  # frames read so far

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or shown(path)
        self.n_read = 0
        self._handle = _open_regular(path, self.name)
        self._file: Any = None
        try:
            self._check_container()
            self._file = self._open_sound()
            self.info = _info(self._file)
            self._check_info()
            self._check_last_frame()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(soundfile.SoundFileError):  # it was only read
                self._file.close()
        self._handle.close()

    def blocks(self) -> Iterator[Samples]:
        """All samples, about a second at a time, as fresh (n, n_channels) float32 arrays.

        Raises:
            AudioError: NaN or Inf, a file that ends before its header says, no sound in the whole file.
        """
        rate_hz = self.info.sample_rate_hz
        heard = False
        while len(block := self._read(self._block_frames)):
            if not np.isfinite(block).all():
                frame = self.n_read + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise AudioError(
                    f"{self.name}: found NaN or Inf at {frame / rate_hz:.3f} s, wanted finite samples: export it again"
                )
            heard = heard or bool(block.any())
            self.n_read += len(block)
            yield block
        if self.info.exact and self.n_read != self.info.n_frames:
            raise self._truncated(f"it ends at {self.n_read / rate_hz:.2f} s of {self.info.duration_s:.2f} s")
        self._check_length(self.n_read)
        if not heard:
            raise AudioError(
                f"{self.name}: found silence, {self.n_read / rate_hz:.2f} s of nothing but zeros; wanted sound: "
                "check the recording"
            )

    def excerpt(self, seconds: float) -> Samples:
        """The next samples with all channels mixed, (n,) float32, n at most this many seconds, checked for nothing."""
        missing = round(seconds * self.info.sample_rate_hz)
        mixed = [np.zeros(0, np.float32)]
        while missing and len(block := self._read(min(missing, self._block_frames))):
            mixed.append(block.mean(axis=1))
            missing -= len(block)
        return np.concatenate(mixed)

    def count(self) -> int:
        """Frames that are still to be read, by reading them: for formats whose headers only estimate."""
        n_frames = 0
        while n := len(self._read(self._block_frames)):
            n_frames += n
        return n_frames

    @property
    def _block_frames(self) -> int:
        return max(1, min(self.info.sample_rate_hz, _BLOCK_SAMPLES // self.info.n_channels))

    def _read(self, n_frames: int) -> Samples:
        try:
            block: Samples = self._file.read(n_frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            at_s = self.n_read / self.info.sample_rate_hz
            raise self._truncated(f"it cannot be decoded beyond {at_s:.0f} s ({_reason(error)})") from error
        return block

    def _open_sound(self) -> Any:
        try:  # by descriptor: libsndfile takes a path's suffix for headerless formats and would play any bytes
            return _SoundFile(self._handle.fileno(), closefd=False)
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{self.name}: found no audio that can be read ({_reason(error)}), wanted WAV, FLAC, OGG, MP3 or the "
                "like, whole: convert it, as in: ffmpeg -i INPUT OUTPUT.wav"
            ) from error

    def _check_container(self) -> None:
        size = self._handle.seek(0, os.SEEK_END)
        if size == 0:
            raise AudioError(f"{self.name}: found an empty file (0 bytes), wanted audio: record or copy it again")
        end = _announced_end(self._handle)
        if end is not None and end > size:
            raise self._truncated(f"its header announces {end} bytes, found {size}")
        if not _ogg_is_whole(self._handle, size):
            raise self._truncated("its last page is missing")
        self._handle.seek(0)

    def _check_info(self) -> None:
        info = self.info
        if not MIN_RATE_HZ <= info.sample_rate_hz <= MAX_RATE_HZ:
            raise AudioError(
                f"{self.name}: found a sample rate of {info.sample_rate_hz} Hz, wanted {MIN_RATE_HZ} to {MAX_RATE_HZ}: "
                "the header may be broken; convert the file, as in: ffmpeg -i INPUT -ar 48000 OUTPUT.wav"
            )
        if info.n_channels > MAX_CHANNELS:
            raise AudioError(
                f"{self.name}: found {info.n_channels} channels, wanted at most {MAX_CHANNELS}: split the file"
            )
        if info.exact:
            self._check_length(info.n_frames or 0)

    def _check_length(self, n_frames: int) -> None:
        if n_frames == 0:
            raise AudioError(f"{self.name}: found no samples, wanted at least {MIN_LENGTH_MS} ms: record it again")
        if n_frames * 1000 < MIN_LENGTH_MS * self.info.sample_rate_hz:
            raise AudioError(
                f"{self.name}: found {n_frames} sample{'s' * (n_frames > 1)} "
                f"({1000 * n_frames / self.info.sample_rate_hz:.2g} ms), wanted at least {MIN_LENGTH_MS} ms: "
                "join it with its neighbours or pad it with silence"
            )

    def _check_last_frame(self) -> None:
        """Find a FLAC file that was cut before an hour of work is done on what is left of it."""
        if self.info.container != "FLAC" or self.info.n_frames is None:
            return
        try:
            self._file.seek(self.info.n_frames - 1)
            whole = len(self._file.read(1)) == 1
            self._file.seek(0)
        except soundfile.SoundFileError:
            whole = False
        if not whole:
            raise self._truncated(f"its header announces {self.info.duration_s:.2f} s, the end cannot be read")

    def _truncated(self, found: str) -> AudioError:
        return AudioError(
            f"{self.name}: truncated or damaged: {found}; wanted the whole file: copy it again, or keep what is "
            "there, as in: ffmpeg -i INPUT OUTPUT.wav"
        )


class AudioWriter:
    """An audio file being written; it appears under its name when `publish` is called, or not at all.

    A context manager. Integer subtypes are rounded and clipped at full scale; `n_clipped` counts the samples.

    Args:
        target: where the file shall appear.
        info: its format; `n_frames` is not used.
        name: how messages call it, the path by default.

    Raises:
        AudioError: the place cannot be written to, or the format cannot hold such audio.
    """

    n_written: int  # frames
    n_clipped: int  # samples, of all channels

    def __init__(self, target: Path, info: AudioInfo, name: str | None = None) -> None:
        self.name = name or shown(target)
        self.info = info
        self.n_written = 0
        self.n_clipped = 0
        _check_writable(self.name, info)
        self._partial = PartialFile(target, self.name)
        self._file: Any = None
        try:
            self._file = self._open_sound()
        except BaseException:
            self._partial.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file unless it was published; closing twice is harmless."""
        if self._file is not None:
            with contextlib.suppress(soundfile.SoundFileError):  # it is thrown away
                self._file.close()
            self._file = None
        self._partial.close()

    @property
    def path(self) -> Path:
        """Where the file lies until it is published."""
        return self._partial.path

    def write(self, block: Samples) -> None:
        """Append (n, n_channels) float32.

        Raises:
            AudioError: the disk is full, or the format cannot hold such audio.
        """
        encoded = self._encoded(block)
        step = _VORBIS_FRAMES if self.info.container == "OGG" else max(1, len(encoded))
        try:
            for start in range(0, len(encoded), step):
                self._file.write(encoded[start : start + step])
        except (soundfile.SoundFileError, AssertionError) as error:  # soundfile asserts that all was written
            raise self._failure(error) from error
        self.n_written += len(block)

    def finish(self) -> None:
        """Complete the file and read back how long it is.

        Raises:
            AudioError: the disk is full, or the file does not hold what was written.
        """
        try:
            file, self._file = self._file, None
            file.close()
        except soundfile.SoundFileError as error:
            raise self._failure(error) from error
        with AudioReader(self.path, self.name) as written:
            n_frames = written.info.n_frames if self.info.container != "MP3" else written.count()
        if n_frames != self.n_written:
            raise AudioError(
                f"{self.name}: {self.n_written} frames were written, {n_frames or 0} can be read back; "
                "nothing was left there: free space or choose another format"
            )

    def publish(self, *, replace: bool) -> None:
        """Give the finished file its name; see `PartialFile.publish`."""
        self._partial.publish(replace=replace)

    def _encoded(self, block: Samples) -> NDArray[Any]:
        subtype = self.info.subtype
        if subtype in ("FLOAT", "DOUBLE", *_LOSSY):
            return block
        self.n_clipped += int(np.count_nonzero(np.abs(block) > 1.0))
        bits = _INTEGER_BITS.get(subtype)
        if bits is None:
            limited: Samples = block.clip(-1.0, 1.0)
            return limited
        full = 2.0 ** (bits - 1)  # libsndfile would scale by one step less and cut off instead of rounding
        steps = np.rint(block.astype(np.float64) * full)
        return (np.minimum(np.maximum(steps, -full), full - 1) * 2.0 ** (32 - bits)).astype(np.int32)

    def _open_sound(self) -> Any:
        info = self.info
        try:
            return _SoundFile(
                self._partial.fd,
                "w",
                info.sample_rate_hz,
                info.n_channels,
                info.subtype,
                format=info.container,
                closefd=False,
            )
        except (soundfile.SoundFileError, ValueError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> AudioError:
        """libsndfile says "System error" where the file system refuses: ask the file system itself."""
        try:
            os.lseek(self._partial.fd, 0, os.SEEK_END)
            os.write(self._partial.fd, bytes(1 << 16))
            os.write(self._partial.fd, bytes(1 << 16))  # the first may fill up what is left and only be cut short
        except OSError as refusal:
            return self._partial.error(refusal)
        info = self.info
        return AudioError(
            f"{self.name}: {info.container} {info.subtype} cannot hold {info.n_channels} channel(s) at "
            f"{info.sample_rate_hz} Hz ({_reason(error)}): choose another format, as in -o OUTPUT.wav"
        )


def resampled(blocks: Iterable[Samples], from_hz: int, to_hz: int, n_channels: int) -> Iterator[Samples]:
    """The same sound at another rate, sample 0 staying at time 0; about as many blocks as came in.

    Yields:
        (n, n_channels) float32, in all len * to_hz / from_hz frames to within one.
    """
    if from_hz == to_hz:
        yield from blocks
        return
    stream = soxr.ResampleStream(from_hz, to_hz, n_channels, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros((0, n_channels), np.float32), last=True)


def read_wave(path: Path, rate_hz: int) -> Samples:
    """A whole recording as (n_samples,) float32 at `rate_hz`, channels mixed; for short files.

    Raises:
        AudioError: whatever `AudioReader` refuses.
    """
    with AudioReader(path) as reader:
        mono = (block.mean(axis=1, keepdims=True) for block in reader.blocks())
        return np.concatenate(list(resampled(mono, reader.info.sample_rate_hz, rate_hz, 1)))[:, 0]


def choose_format(source: AudioInfo, suffix: str, container: str | None, subtype: str | None) -> AudioInfo:
    """The format to write: what was asked for, else what the suffix says, else what the input has.

    Args:
        suffix: of the output's name, lower case, one of FORMATS; "" where it has none (stdout), which means WAV.
        container, subtype: libsndfile's names, as in CONTAINERS and SUBTYPES, or None.

    Raises:
        AudioError: a container or subtype that is unknown, or that do not go together.
    """
    by_suffix, implied = FORMATS.get(suffix, ("WAV", None))
    chosen = _known("container", container, CONTAINERS) or by_suffix
    if chosen == "WAV" and container is None and source.container in ("WAVEX", "RF64"):
        chosen = source.container
    if subtype is not None:
        picked = _known("subtype", subtype, SUBTYPES)
        if not _fits(chosen, picked):
            fitting = [name for name in SUBTYPES if _fits(chosen, name)]
            raise AudioError(f"subtype {subtype}: {chosen} cannot hold it, wanted one of {', '.join(fitting)}")
    else:
        wishes = (implied, source.subtype, *_NEAREST.get(source.subtype, ()), soundfile.default_subtype(chosen))
        picked = next(name for name in wishes if name in SUBTYPES and _fits(chosen, name))
    n_bytes = (source.n_frames or 0) * source.n_channels * _BYTES.get(str(picked), 1)
    if chosen in ("WAV", "WAVEX") and n_bytes > _MAX_RIFF_BYTES:
        chosen = "RF64"
    return dataclasses.replace(source, container=chosen, subtype=str(picked))


def spool_stdin(path: Path, stop: threading.Event) -> None:
    """Copy standard input into a file until it ends or `stop` is set: a header must be read before what follows it.

    Raises:
        AudioError: standard input is a terminal or closed, or the disk is full.
    """
    try:
        if os.isatty(0):
            raise AudioError("stdin: found a terminal, wanted audio piped in, as in: edgese enhance - < noisy.wav")
        with path.open("wb") as spool:
            while not stop.is_set():
                if select.select([0], [], [], 0.2)[0]:
                    if not (chunk := os.read(0, 1 << 20)):
                        return
                    spool.write(chunk)
    except OSError as error:
        raise AudioError(f"stdin: cannot be copied to {shown(path.parent)} ({error.strerror or error})") from error


def send_to_stdout(path: Path) -> None:
    """Copy a finished file to standard output.

    Raises:
        AudioError: the reader has closed the pipe, or the disk is full.
    """
    try:
        with path.open("rb") as source:
            while chunk := source.read(1 << 20):
                while chunk:
                    chunk = chunk[os.write(1, chunk) :]
    except OSError as error:
        raise AudioError(f"stdout: cannot be written ({error.strerror or error}); it is not whole") from error


def _open_regular(path: Path, name: str) -> io.FileIO:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # waits for no writer of a named pipe
    except FileNotFoundError as error:
        raise AudioError(f"{name}: found no such file, wanted an audio file: check the name") from error
    except PermissionError as error:
        raise AudioError(f"{name}: may not be read (permission denied): change its permissions") from error
    except (OSError, ValueError) as error:
        raise AudioError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return io.FileIO(fd)  # unbuffered: libsndfile reads on from where it stands
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise AudioError(f"{name}: found a folder, wanted an audio file")
    raise AudioError(f"{name}: found a pipe or device, wanted a file: pipe it in, as in: ... | edgese enhance -")


def _info(file: Any) -> AudioInfo:
    n_frames = int(file.frames)
    known = 0 <= n_frames < 1 << 62  # a FLAC stream that does not say has the largest count there is
    return AudioInfo(int(file.samplerate), int(file.channels), n_frames if known else None, file.format, file.subtype)


def _announced_end(handle: io.FileIO) -> int | None:
    """Where the samples of a WAV, RF64, W64, AIFF or AU file end by its header, in bytes; None if it does not say.

    libsndfile shortens such a file silently to what is there. Sizes: RIFF and AIFF specifications, EBU Tech 3306,
    Sony's description of Wave64.
    """
    handle.seek(0)
    head = handle.read(24)
    if head[:4] == b".snd" and len(head) == 24:
        start, size = struct.unpack(">II", head[4:12])
        return None if size == 0xFFFFFFFF else start + size
    if head[:4] == b"riff" and len(head) == 24:
        (size,) = struct.unpack("<Q", head[16:])
        return None if size >= 1 << 62 else int(size)
    order = {b"RIFF": "<", b"RF64": "<", b"RIFX": ">", b"FORM": ">"}.get(head[:4])
    if order is None or head[8:12] not in (b"WAVE", b"AIFF", b"AIFC"):
        return None
    at, long_size = 12, None
    for _ in range(_MAX_CHUNKS):
        handle.seek(at)
        chunk = handle.read(24)
        if len(chunk) < 8:
            return None
        name, size = struct.unpack(f"{order}4sI", chunk[:8])
        if name == b"ds64" and len(chunk) == 24:
            (long_size,) = struct.unpack("<Q", chunk[16:])
        if name in (b"data", b"SSND"):
            if size == 0xFFFFFFFF and long_size is not None:
                return int(at + 8 + long_size)
            # What programs write that stream into a pipe and cannot know: ffmpeg -1, sox and GStreamer just
            # under 2 GiB, arecord 2 GiB.
            streamed = 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000
            return None if streamed else at + 8 + int(size)
        at += 8 + size + size % 2
    return None


def _ogg_is_whole(handle: io.FileIO, size: int) -> bool:
    """Whether an Ogg file's last page is complete and marked as the last (RFC 3533, section 6); true for others."""
    handle.seek(0)
    if handle.read(4) != b"OggS":
        return True
    handle.seek(max(0, size - (1 << 17)))  # a page has at most 65,307 bytes
    tail = handle.read(1 << 17)
    page = tail[tail.rfind(b"OggS\0") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    lacing = page[27 : 27 + page[26]]
    return bool(page[5] & 4) and len(page) >= 27 + len(lacing) + sum(lacing)


def _check_writable(name: str, info: AudioInfo) -> None:
    if info.subtype == "VORBIS" and info.sample_rate_hz > _MAX_VORBIS_RATE_HZ:
        raise AudioError(
            f"{name}: found {info.sample_rate_hz} Hz, wanted at most {_MAX_VORBIS_RATE_HZ} in OGG VORBIS: "
            "choose another format, as in -o OUTPUT.flac"
        )


def _fits(container: str, subtype: str | None) -> bool:
    """Whether libsndfile can write it: it takes MP3 in a WAV for known, but only reads that."""
    holds: bool = soundfile.check_format(container, subtype)
    return holds and (subtype != "MPEG_LAYER_III" or container == "MP3")


def _known(what: str, value: str | None, known: tuple[str, ...]) -> str | None:
    if value is None:
        return None
    if value.upper() not in known:
        raise AudioError(f"{what} {shown(value)}: unknown, wanted one of {', '.join(known)}")
    return value.upper()


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".").removeprefix("Error : ")
