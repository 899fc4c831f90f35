"""Reader of audio files, block by block: any rate, channel count and format, in memory that does not grow with length.

`AudioReader` refuses whatever is not whole and finite; what is odd and can be read whole is read, and noted.
`resampled_by_soxr` changes the rate of a stream of blocks without shifting it. Blocks are (n_frames, n_channels)
float32 in [-1, 1]. Every refusal is one `AudioError` line: what, found, wanted, mend.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgese.atomic_file import shown
from edgese.audio import Samples
from edgese.audio.byte_view import FileBytes
from edgese.audio.containers import find_parts
from edgese.audio.decoder import Decoder, open_part
from edgese.audio.formats import AudioInfo
from edgese.audio.libsndfile import SoundFileError, reason, soxr
from edgese.audio.metadata import Metadata, read_metadata
from edgese.audio.parts import Part, Parts, Truncated
from edgese.errors import AudioError

if TYPE_CHECKING:
    from typing_extensions import Self


MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 384_000
MAX_CHANNELS = 64
MIN_LENGTH_MS = 32  # one STFT window at 16 kHz
_BLOCK_SAMPLES = 1 << 20  # of all channels together

# Largest usual magnitude, and the bits by which samples are divided: of 8, 16, 24 and 32-bit integers that were written
# as floats, each with room for a sum of some; up to 4, floats are meant to exceed 1.
_RANGES = ((4.0, 0), (2.0**9, 7), (2.0**17, 15), (2.0**25, 23), (2.0**33, 31))
_EXPONENTS = 130  # of float32, above 0

logger = logging.getLogger(__name__)


class AudioReader:
    """Reader of an open audio file, checked as far as its header and its end show. A context manager.

    Args:
        path: a regular file; its content decides the format, not its suffix.
        name: how messages call it, the path by default.

    Raises:
        AudioError: missing, unreadable, no regular file, empty, not audio, truncated, without samples, of an absurd
            rate or channel count.
    """

    info: AudioInfo
    n_read: int  # frames read so far
    silent: bool  # nothing but zeros was read so far

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or shown(path)
        self.n_read, self.silent = 0, True
        self._handle = _open_regular(path, self.name)
        self._decoder: Decoder | None = None
        self._scale_notes: list[str] = []
        self._damage: list[str] = []
        try:
            self._source = FileBytes(self._handle.fileno(), self._handle.seek(0, os.SEEK_END))
            self._parts = self._find_parts()
            self._infos = [self._facts(part) for part in self._parts.parts]
            lengths = [info.n_frames for info in self._infos]
            n_frames = None if None in lengths else sum(n for n in lengths if n is not None)
            self.info = dataclasses.replace(self._infos[0], n_frames=n_frames)
            self._check_info()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._close_decoder()
        self._handle.close()

    @property
    def notes(self) -> list[str]:
        """What was odd in the file and how it was read, a line each; all is known when all was read."""
        return [*self._parts.notes, *self._damage, *self._scale_notes]

    @functools.cached_property
    def metadata(self) -> Metadata:
        """What the file says of itself; of joined recordings none: it would be of the first alone. Before reading."""
        if len(self._parts.parts) > 1:
            return Metadata()
        return read_metadata(self._source, self._open_decoder(self._parts.parts[0]).sound_file)

    @functools.cached_property
    def scale(self) -> float:
        """Power of two by which blocks are smaller than the file's samples; 1 for all but some files of floats.

        Programs that read integers and write floats forget to divide: a peak of 32767 means 1.
        """
        if self.info.subtype not in ("FLOAT", "DOUBLE"):
            return 1.0  # others cannot exceed full scale
        peak, usual = self._peaks()
        bits = next((bits for most, bits in _RANGES if usual <= most), 0)
        if bits:
            self._scale_notes.append(
                f"found a peak of {peak:.6g} in floats, whose full scale is 1: they were divided by {1 << bits}, the "
                f"full scale of integers of {1 + bits} bits"
            )
        elif peak > _RANGES[0][0]:
            self._scale_notes.append(
                f"found a peak of {peak:.6g} in floats, whose full scale is 1: no scale of integers, so they were left "
                "as they are: look for clicks, and for a level that is too high"
            )
        return 2.0**bits

    def blocks(self) -> Iterator[Samples]:
        """All samples, about a second at a time, as fresh (n, n_channels) float32 arrays, divided by `scale`.

        Raises:
            AudioError: NaN or Inf, a file that ends before its header says.
        """
        rate_hz, factor = self.info.sample_rate_hz, np.float32(1 / self.scale)
        for block in self._decoded():
            if not np.isfinite(block).all():
                frame = self.n_read + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise AudioError(
                    f"{self.name}: found NaN or Inf at {frame / rate_hz:.3f} s, wanted finite samples: export it again"
                )
            self.silent = self.silent and not block.any()
            self.n_read += len(block)
            yield block if factor == 1 else block * factor
        self._check_length(self.n_read)

    def excerpt(self, seconds: float) -> Samples:
        """The first samples with all channels mixed, (n,) float32, n at most this many seconds, checked for nothing.

        In place of `blocks`, not after it.
        """
        missing, factor = round(seconds * self.info.sample_rate_hz), np.float32(1 / self.scale)
        mixed = [np.zeros(0, np.float32)]
        for block in self._decoded():
            mixed.append(block[:missing].mean(axis=1) * factor)
            missing -= len(mixed[-1])
            if not missing:
                break
        return np.concatenate(mixed)

    def count(self) -> int:
        """Number of frames, found by reading them: for formats whose headers only estimate. In place of `blocks`."""
        return sum(map(len, self._decoded()))

    def _peaks(self) -> tuple[float, float]:
        """Largest magnitude, and a power of two that one sample of a thousand exceeds at most: clicks do not count."""
        peak, counts = 0.0, np.zeros(_EXPONENTS, np.int64)
        for block in self._decoded():
            found = np.abs(block[np.isfinite(block) & (block != 0)])
            peak = max(peak, float(found.max(initial=0.0)))
            counts += np.bincount(np.clip(np.frexp(found)[1], 0, _EXPONENTS - 1), minlength=_EXPONENTS)
        louder = counts[::-1].cumsum()[::-1] > counts.sum() / 1000  # of exponent e: more reach 2^(e - 1)
        return peak, 2.0 ** int(np.flatnonzero(louder)[-1]) if louder.any() else 0.0

    def _decoded(self) -> Iterator[Samples]:
        """Samples of all parts as the decoder gives them, from the beginning."""
        n_before, self._damage = 0, list[str]()
        for part, info in zip(self._parts.parts, self._infos, strict=True):
            n_part, rate_hz = 0, info.sample_rate_hz
            decoder = self._open_decoder(part)
            while len(block := self._read(decoder, n_before + n_part)):
                n_part += len(block)
                yield block
            if info.exact and n_part != info.n_frames:
                raise self._truncated(f"it ends at {n_part / rate_hz:.2f} s of {info.duration_s:.2f} s")
            if n_left := decoder.n_left():
                raise self._truncated(f"its header ends it at {n_part / rate_hz:.2f} s, {n_left} bytes before its end")
            self._damage += decoder.notes
            n_before += n_part

    def _read(self, decoder: Decoder, n_before: int) -> Samples:
        try:
            return decoder.read(max(1, min(decoder.info.sample_rate_hz, _BLOCK_SAMPLES // decoder.info.n_channels)))
        except SoundFileError as error:
            at_s = n_before / max(1, decoder.info.sample_rate_hz)
            raise self._truncated(f"it cannot be decoded beyond {at_s:.0f} s ({reason(error)})") from error

    def _find_parts(self) -> Parts:
        if self._source.size == 0:
            raise AudioError(f"{self.name}: found an empty file (0 bytes), wanted audio: record or copy it again")
        try:
            return find_parts(self._source, self.name)
        except Truncated as found:
            raise self._truncated(str(found)) from found

    def _open_decoder(self, part: Part) -> Decoder:
        """Decoder of a part, in place of the one before."""
        self._close_decoder()
        try:
            self._decoder = open_part(self._source, part)
        except SoundFileError as error:
            raise AudioError(
                f"{self.name}: found no audio that can be read ({reason(error)}), wanted WAV, FLAC, OGG, MP3 or the "
                "like, whole: convert it, as in: ffmpeg -i INPUT OUTPUT.wav"
            ) from error
        return self._decoder

    def _close_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _facts(self, part: Part) -> AudioInfo:
        """Facts of a part; a FLAC's end is looked at before hours of it are processed."""
        info = self._open_decoder(part).info
        if self._decoder is not None and not self._decoder.reaches_last_frame():
            decoder = self._open_decoder(part)  # seeking fails in files that are whole: read through before you judge
            n_frames = 0
            while n := len(self._read(decoder, n_frames)):
                n_frames += n
            if n_frames != info.n_frames:
                raise self._truncated(f"its header announces {info.duration_s:.2f} s, the end cannot be read")
        return info

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
        if info.n_frames is not None:
            self._check_length(info.n_frames)
        for at, other in enumerate(self._infos):
            if (other.sample_rate_hz, other.n_channels) != (info.sample_rate_hz, info.n_channels):
                place = self._parts.parts[at - 1].end
                raise AudioError(
                    f"{self.name}: found recordings joined, of {info.sample_rate_hz} Hz with {info.n_channels} "
                    f"channel(s) and of {other.sample_rate_hz} Hz with {other.n_channels}, wanted them alike: cut the "
                    f"file, as in: head -c {place} INPUT > FIRST; tail -c +{place + 1} INPUT > SECOND"
                )

    def _check_length(self, n_frames: int) -> None:
        if n_frames == 0:
            raise AudioError(f"{self.name}: found no samples, wanted some: record it again")

    def _truncated(self, found: str) -> AudioError:
        return AudioError(
            f"{self.name}: truncated or damaged: {found}; wanted the whole file: copy it again, or keep what is "
            "there, as in: ffmpeg -i INPUT OUTPUT.wav"
        )


def resampled_by_soxr(blocks: Iterable[Samples], from_hz: int, to_hz: int, n_channels: int) -> Iterator[Samples]:
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
    """A whole recording as (n_samples,) float32 at `rate_hz`, channels mixed; for short files, to learn or judge by.

    Raises:
        AudioError: whatever `AudioReader` refuses; silence, or less than one window of sound.
    """
    with AudioReader(path) as reader:
        mono = (block.mean(axis=1, keepdims=True) for block in reader.blocks())
        wave = np.concatenate(list(resampled_by_soxr(mono, reader.info.sample_rate_hz, rate_hz, 1)))[:, 0]
        n_frames, from_hz = reader.n_read, reader.info.sample_rate_hz
        if reader.silent:
            raise AudioError(
                f"{reader.name}: found silence, {n_frames / from_hz:.2f} s of nothing but zeros; wanted sound: "
                "check the recording"
            )
        if n_frames * 1000 < MIN_LENGTH_MS * from_hz:
            raise AudioError(
                f"{reader.name}: found {n_frames} sample{'s' * (n_frames > 1)} ({1000 * n_frames / from_hz:.2g} ms), "
                f"wanted at least {MIN_LENGTH_MS} ms: join it with its neighbours or pad it with silence"
            )
        for note in reader.notes:
            logger.warning("%s: %s", reader.name, note)
        return wave


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
