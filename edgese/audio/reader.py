"""Reader of audio files, block by block: any rate, channel count and format, in memory that does not grow with length.

`AudioReader` refuses whatever is not whole, finite, audible sound; `resampled` changes the rate of a stream of blocks
without shifting it. Blocks are (n_frames, n_channels) float32 in [-1, 1]. Every refusal is one `AudioError` line: what,
found, wanted, mend.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgese.atomic_file import shown
from edgese.audio import Samples
from edgese.audio.formats import AudioInfo
from edgese.audio.libsndfile import SoundFile, SoundFileError, reason, soxr
from edgese.errors import AudioError

if TYPE_CHECKING:
    from typing_extensions import Self


MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_CHANNELS = 64
MIN_LENGTH_MS = 32  # one STFT window at 16 kHz
_BLOCK_SAMPLES = 1 << 20  # of all channels together
_MAX_CHUNKS = 1000


class AudioReader:
    """Reader of an open audio file, checked as far as its header and its end show. A context manager.

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
            with contextlib.suppress(SoundFileError):  # it was only read
                self._file.close()
        self._handle.close()

    def blocks(self) -> Iterator[Samples]:
        """All samples, about a second at a time, as fresh (n, n_channels) float32 arrays.

        Raises:
            AudioError: NaN or Inf, a file that ends before its header says, no sound in the whole file.
        """
        rate_hz = self.info.sample_rate_hz
        audible = False
        while len(block := self._read(self._block_frames)):
            if not np.isfinite(block).all():
                frame = self.n_read + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise AudioError(
                    f"{self.name}: found NaN or Inf at {frame / rate_hz:.3f} s, wanted finite samples: export it again"
                )
            audible = audible or bool(block.any())
            self.n_read += len(block)
            yield block
        if self.info.exact and self.n_read != self.info.n_frames:
            raise self._truncated(f"it ends at {self.n_read / rate_hz:.2f} s of {self.info.duration_s:.2f} s")
        self._check_length(self.n_read)
        if not audible:
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
        """Number of frames still to be read, found by reading them: for formats whose headers only estimate."""
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
        except SoundFileError as error:
            at_s = self.n_read / self.info.sample_rate_hz
            raise self._truncated(f"it cannot be decoded beyond {at_s:.0f} s ({reason(error)})") from error
        return block

    def _open_sound(self) -> Any:
        try:  # by descriptor: libsndfile takes a path's suffix for headerless formats and would play any bytes
            return SoundFile(self._handle.fileno(), closefd=False)
        except SoundFileError as error:
            raise AudioError(
                f"{self.name}: found no audio that can be read ({reason(error)}), wanted WAV, FLAC, OGG, MP3 or the "
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
        """Refuse a FLAC file whose end is missing, before hours of it are processed."""
        if self.info.container != "FLAC" or self.info.n_frames is None:
            return
        try:
            self._file.seek(self.info.n_frames - 1)
            whole = len(self._file.read(1)) == 1
            self._file.seek(0)
        except SoundFileError:
            whole = False
        if not whole:
            raise self._truncated(f"its header announces {self.info.duration_s:.2f} s, the end cannot be read")

    def _truncated(self, found: str) -> AudioError:
        return AudioError(
            f"{self.name}: truncated or damaged: {found}; wanted the whole file: copy it again, or keep what is "
            "there, as in: ffmpeg -i INPUT OUTPUT.wav"
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
    """End of the samples of a WAV, RF64, W64, AIFF or AU file by its header, in bytes; None if it does not say.

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
    """True if an Ogg file's last page is complete and marked as the last (RFC 3533, section 6); true for others."""
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
