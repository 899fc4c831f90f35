"""Sound of videos, phone recordings, streams (MP4, M4A, WebM, Matroska, ...), through ffmpeg where it is installed.

The sound is decoded into a pipe and encoded from one, so memory does not grow with length and no copy lies on the disk.
The picture, subtitles, further tracks of sound, chapters and texts go over as they are (`-c copy`). ffmpeg is told
which container it has to read, by the first bytes, and may open nothing but files: no playlist leads it to a network.
Options: ffmpeg.org/ffmpeg.html, ffmpeg.org/ffprobe.html.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgese.atomic_file import PartialFile, shown
from edgese.audio import Samples
from edgese.audio.containers import demuxer_of
from edgese.audio.formats import AudioInfo
from edgese.audio.metadata import Metadata
from edgese.audio.reader import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ, AudioReader
from edgese.audio.writer import AudioWriter
from edgese.errors import AudioError, OutputError, printable

if TYPE_CHECKING:
    from typing_extensions import Self

# What can be written: suffix -> ffmpeg's muxer, and the codec of the sound where the input's own is not encoded.
MEDIA: dict[str, tuple[str, str]] = {
    ".mp4": ("mp4", "aac"),
    ".m4v": ("mp4", "aac"),
    ".m4a": ("ipod", "aac"),
    ".m4b": ("ipod", "aac"),
    ".mov": ("mov", "aac"),
    ".3gp": ("3gp", "aac"),
    ".aac": ("adts", "aac"),
    ".mkv": ("matroska", "aac"),
    ".mka": ("matroska", "aac"),
    ".webm": ("webm", "opus"),
    ".weba": ("webm", "opus"),
}
# Suffixes of what is read.
DECODED = (*MEDIA, ".wma", ".wmv", ".asf", ".avi", ".flv", ".mpg", ".mpeg", ".amr", ".ape", ".wv")
_ENCODERS = {
    "aac": "aac",
    "opus": "libopus",
    "vorbis": "libvorbis",
    "mp3": "libmp3lame",
    "flac": "flac",
    "alac": "alac",
}
_ANY_CODEC = ("matroska",)
_LEAST_BITS, _MOST_BITS = 96_000, 512_000  # a second, of lossy sound
_LOSSLESS = ("flac", "alac")
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_PROBE_S = 60.0
_OFF_S = 0.2  # by which the length of what was written may be off: a codec's frames
_QUIET = ("-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe")


@functools.cache
def have_ffmpeg() -> bool:
    """True if ffmpeg and ffprobe are installed."""
    return bool(shutil.which("ffmpeg") and shutil.which("ffprobe"))


def open_reader(path: Path, name: str | None = None) -> AudioReader | MediaReader:
    """Reader of a recording: through ffmpeg if it is of such a kind and ffmpeg is installed.

    Raises:
        AudioError: whatever the reader refuses.
    """
    if have_ffmpeg() and path.is_file():
        try:
            with path.open("rb") as file:
                demuxer = demuxer_of(file.read(64))
        except OSError:
            demuxer = None  # the reader meets it as well, and says so
        if demuxer is not None:
            return MediaReader(path, demuxer, name)
    return AudioReader(path, name)


class MediaReader:
    """Reader of the first track of sound of a file, as `AudioReader` reads others. A context manager.

    Args:
        demuxer: ffmpeg's name of the container.

    Raises:
        AudioError: no sound, or nothing that ffmpeg can read.
    """

    scale = 1.0
    metadata = Metadata()  # it goes from file to file without us

    def __init__(self, path: Path, demuxer: str, name: str | None = None) -> None:
        self.name = name or shown(path)
        self.demuxer, self.path = demuxer, path
        self.n_read, self.silent = 0, True
        self.notes: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        tracks = _tracks(path, self.name, demuxer)
        if not tracks:
            raise AudioError(f"{self.name}: found no sound in it, wanted a track of sound")
        if len(tracks) > 1:
            self.notes.append(f"of {len(tracks)} tracks of sound the first was enhanced, the others are as they were")
        self.n_tracks, track = len(tracks), tracks[0]
        self.codec = str(track.get("codec_name", ""))
        self.bits = _number(track.get("bit_rate"), 0)
        rate_hz, n_channels = int(_number(track.get("sample_rate"), 0)), int(_number(track.get("channels"), 0))
        if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and 1 <= n_channels <= MAX_CHANNELS):
            raise AudioError(
                f"{self.name}: found sound of {rate_hz} Hz with {n_channels} channels, wanted {MIN_RATE_HZ} to "
                f"{MAX_RATE_HZ} Hz, at most {MAX_CHANNELS} channels"
            )
        length_s = _number(track.get("duration"), 0) or _number(track.get("file_duration"), 0)
        n_frames = round(length_s * rate_hz) if length_s else None
        self.info = AudioInfo(rate_hz, n_channels, n_frames, demuxer, "PCM_16")  # as what goes into another format

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._process is not None:
            _stop(self._process)
            self._process = None

    def blocks(self) -> Generator[Samples, None, None]:
        """All samples, about a second at a time, from the time 0 of the file on: (n, n_channels) float32.

        Raises:
            AudioError: what ffmpeg cannot decode, NaN or Inf.
        """
        n_channels, rate_hz = self.info.n_channels, self.info.sample_rate_hz
        # gaps are filled and a late begin is padded, so that sound and picture stay together
        steady = ("-map", "0:a:0", "-af", "aresample=async=1:first_pts=0", "-ac", str(n_channels), "-ar", str(rate_hz))
        command = ["ffmpeg", *_QUIET, "-f", self.demuxer, "-i", f"file:{self.path}", *steady, "-f", "f32le", "pipe:1"]
        with tempfile.TemporaryFile() as said:
            process = self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said
            )
            assert process.stdout is not None
            while raw := process.stdout.read(4 * n_channels * rate_hz):
                block = np.frombuffer(raw[: len(raw) // (4 * n_channels) * 4 * n_channels], "<f4")
                block = block.reshape(-1, n_channels).astype(np.float32)
                if not np.isfinite(block).all():
                    raise AudioError(f"{self.name}: found NaN or Inf at {self.n_read / rate_hz:.1f} s, wanted sound")
                self.silent = self.silent and not block.any()
                self.n_read += len(block)
                yield block
            code, why = process.wait(), _last_words(said)
            if code or not self.n_read:
                raise AudioError(
                    f"{self.name}: truncated or damaged: ffmpeg cannot decode its sound beyond "
                    f"{self.n_read / rate_hz:.2f} s{why and f' ({why})'}; wanted the whole file: copy it again"
                )
            if why:
                self.notes.append(f"ffmpeg met damage and went on: {why}")

    def excerpt(self, seconds: float) -> Samples:
        """The first samples with all channels mixed, (n,) float32. In place of `blocks`."""
        missing, mixed = round(seconds * self.info.sample_rate_hz), [np.zeros(0, np.float32)]
        with contextlib.closing(self.blocks()) as blocks:
            for block in blocks:
                mixed.append(block[:missing].mean(axis=1))
                missing -= len(mixed[-1])
                if missing <= 0:
                    break
        self.close()
        return np.concatenate(mixed)


def open_writer(
    target: Path, info: AudioInfo, name: str, source: AudioReader | MediaReader, *, mode: int | None, alike: bool = True
) -> AudioWriter | MediaWriter:
    """Writer of an enhanced recording: of `source` with its sound replaced, where the target is of such a kind.

    Args:
        alike: what is written has the length of `source`; else nothing goes over but the sound.

    Raises:
        AudioError, OutputError: as the writer.
    """
    if f".{info.container.lower()}" in MEDIA:
        whole = source if isinstance(source, MediaReader) and alike else None
        return MediaWriter(target, info, name, whole, mode=mode)
    return AudioWriter(target, info, name, mode=mode, metadata=source.metadata if alike else None)


def media_info(source: AudioReader | MediaReader, suffix: str) -> AudioInfo:
    """Format of an output with this suffix, one of `MEDIA`: the input's codec where it is encoded and fits."""
    muxer, codec = MEDIA[suffix]
    own = source.codec if isinstance(source, MediaReader) else ""
    if own in _ENCODERS and (muxer in _ANY_CODEC or (own == "alac" and muxer in ("ipod", "mov"))):
        codec = own
    return AudioInfo(source.info.sample_rate_hz, source.info.n_channels, None, suffix[1:].upper(), codec.upper())


class MediaWriter:
    """Writer of a file whose sound is replaced, all else as it was; it appears when `publish` is called, or not at all.

    As `AudioWriter`. `source` gives the picture and all else; None: there is none.
    """

    n_clipped = 0

    def __init__(
        self, target: Path, info: AudioInfo, name: str, source: MediaReader | None, *, mode: int | None = None
    ) -> None:
        if not have_ffmpeg():
            raise AudioError(f"{name}: wanted ffmpeg to write it: install ffmpeg, or name a .wav or .flac")
        self.name, self.info, self.n_written = name, info, 0
        self.not_kept: list[str] = []
        self._partial = PartialFile(target, name, mode=mode)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the writer
        self._process = subprocess.Popen(
            self._command(source), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._said
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file unless it was published; closing twice is harmless."""
        _stop(self._process)
        self._said.close()
        self._partial.close()

    @property
    def path(self) -> Path:
        """Path of the unfinished file until it is published."""
        return self._partial.path

    def write(self, block: Samples) -> None:
        """Append (n, n_channels) float32.

        Raises:
            AudioError, OutputError: ffmpeg refuses it.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(block, "<f4").tobytes())
        except OSError as error:
            raise self._failure() from error
        self.n_written += len(block)

    def finish(self) -> None:
        """Complete the file, and look how long its sound is.

        Raises:
            AudioError, OutputError: ffmpeg refuses it, or the file does not hold what was written.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except OSError as error:
            raise self._failure() from error
        if self._process.wait():
            raise self._failure()
        wanted_s = self.n_written / self.info.sample_rate_hz
        tracks = _tracks(self.path, self.name, None)
        lengths = [_number(track.get(key), 0) for track in tracks[:1] for key in ("duration", "file_duration")]
        found_s = max(lengths, default=0.0)
        if found_s < wanted_s - _OFF_S:
            raise OutputError(
                f"{self.name}: {wanted_s:.2f} s were written, {found_s:.2f} s can be read back; nothing was left "
                "there: free space or choose another format"
            )

    def publish(self, *, replace: bool) -> None:
        """Give the finished file its name; see `PartialFile.publish`."""
        self._partial.publish(replace=replace)

    def _command(self, source: MediaReader | None) -> list[str]:
        info, codec = self.info, self.info.subtype.lower()
        muxer = MEDIA[f".{info.container.lower()}"][0]
        form = ["-f", "f32le", "-ar", str(info.sample_rate_hz), "-ac", str(info.n_channels), "-i", "pipe:0"]
        bits = min(max(source.bits if source else 0, _LEAST_BITS), _MOST_BITS)
        sound = ["-c", "copy", "-c:a:0", _ENCODERS[codec]]
        sound += [] if codec in _LOSSLESS else ["-b:a:0", str(int(bits))]
        if codec == "opus" and info.sample_rate_hz not in _OPUS_RATES:
            sound += ["-ar:a:0", "48000"]
        others = ["-map", "0:a:0"]
        if source is not None:
            form += ["-f", source.demuxer, "-i", f"file:{source.path}"]
            alike = MEDIA.get(source.path.suffix.lower(), ("", ""))[0] == muxer
            others = ["-map", "1:v?", *others, *(["-map", "1:s?"] if alike else [])]
            for track in range(1, source.n_tracks if alike else 1):
                others += ["-map", f"1:a:{track}"]
            others += ["-map_metadata", "1", "-map_metadata:s:a:0", "1:s:a:0", "-map_chapters", "1"]
        end = ["-f", muxer, f"file:{self._partial.path}"]
        return ["ffmpeg", "-y", *_QUIET, *form, *others, *sound, *end]

    def _failure(self) -> AudioError | OutputError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        why = _last_words(self._said)
        if "No space left" in why:
            return OutputError(f"{self.name}: no space left on the device: free space or choose another place")
        reason = f" ({why})" if why else ""
        return AudioError(
            f"{self.name}: ffmpeg cannot write it{reason}; nothing was left there: name a .wav or .flac, or a .mkv, "
            "which holds anything"
        )


def _tracks(path: Path, name: str, demuxer: str | None) -> list[dict[str, Any]]:
    """Tracks of sound as ffprobe describes them, each with the length of the whole file.

    Raises:
        AudioError: ffprobe cannot read it.
    """
    entries = "stream=codec_name,sample_rate,channels,bit_rate,duration:format=duration"
    kind = ["-f", demuxer] if demuxer else []
    command = ["ffprobe", "-v", "error", "-protocol_whitelist", "file,pipe", *kind, "-select_streams", "a"]
    command += ["-show_entries", entries, "-of", "json", f"file:{path}"]
    try:
        ran = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S)
        found = json.loads(ran.stdout)
        whole = found.get("format", {}).get("duration")
        tracks = [{**track, "file_duration": whole} for track in found.get("streams", [])]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError, subprocess.TimeoutExpired) as error:
        raise AudioError(f"{name}: ffprobe cannot read it ({type(error).__name__}): copy it again") from error
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines()
        why = printable(lines[-1][-200:]) if lines else "no reason given"
        raise AudioError(f"{name}: truncated or damaged: ffmpeg cannot read it ({why}): copy it again")
    return tracks


def _number(found: Any, otherwise: float) -> float:
    """A number that ffprobe gives as text; `otherwise` where it has none."""
    try:
        return float(found)
    except (TypeError, ValueError):
        return otherwise


def _last_words(said: Any) -> str:
    """The last line that a process printed."""
    said.seek(0)
    lines = said.read(1 << 16).decode(errors="replace").strip().splitlines()
    return printable(lines[-1][-200:]) if lines else ""


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and close its pipes."""
    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
