"""Reader and writer of WAV files without a library: PCM of 16, 24, 32 bits and 32-bit floats, block by block.

The standard library's `wave` knows no floats, and before 3.12 no extensible headers, which most 24-bit files have.
Layout: RIFF; Microsoft, "Multiple Channel Audio Data and WAVE Files".
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np

from edgese.atomic_file import PartialFile, shown
from edgese.audio import Samples
from edgese.errors import AudioError

if TYPE_CHECKING:
    from typing_extensions import Self


MAX_CHANNELS = 64

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SUBTYPES = {(_PCM, 16): "PCM_16", (_PCM, 24): "PCM_24", (_PCM, 32): "PCM_32", (_FLOAT, 32): "FLOAT"}
_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_MAX_BYTES = 0xFFFFFFFF - _HEADER.size


@dataclasses.dataclass(frozen=True)
class WavInfo:
    """Facts of a WAV file's header."""

    sample_rate_hz: int
    n_channels: int
    n_frames: int
    subtype: str  # "PCM_16", "PCM_24", "PCM_32" or "FLOAT"

    @property
    def duration_s(self) -> float:
        return self.n_frames / self.sample_rate_hz

    @property
    def sample_bytes(self) -> int:
        return {"PCM_16": 2, "PCM_24": 3}.get(self.subtype, 4)


class WavReader:
    """Reader of an open WAV file. A context manager.

    Raises:
        AudioError: missing, unreadable, not a WAV of a known kind, truncated, without samples, of an absurd rate or
            channel count.
    """

    silent: bool  # nothing but zeros was read so far

    def __init__(self, path: Path) -> None:
        self.name, self.silent = shown(path), True
        try:
            self._stream: IO[bytes] = path.open("rb")
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be read ({error.strerror or error}): check the name") from error
        try:
            self.info = self._read_header(path)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def blocks(self) -> Iterator[Samples]:
        """All samples, a second at a time, (n, n_channels) float32.

        Raises:
            AudioError: NaN or Inf, a file that ends too early.
        """
        info, n_read = self.info, 0
        while n_read < info.n_frames:
            n_frames = min(info.sample_rate_hz, info.n_frames - n_read)
            content = self._stream.read(n_frames * info.n_channels * info.sample_bytes)
            if len(content) < n_frames * info.n_channels * info.sample_bytes:
                raise self._truncated(f"it ends at {n_read / info.sample_rate_hz:.2f} s of {info.duration_s:.2f} s")
            block = _decoded(content, info.subtype).reshape(-1, info.n_channels)
            if not np.isfinite(block).all():
                raise AudioError(f"{self.name}: found NaN or Inf, wanted finite samples: export it again")
            self.silent = self.silent and not block.any()
            n_read += n_frames
            yield block

    def _read_header(self, path: Path) -> WavInfo:
        head = self._stream.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            raise AudioError(
                f"{self.name}: not a WAV file; wanted RIFF WAVE: convert it, as in: ffmpeg -i INPUT OUTPUT.wav"
            )
        kind = None
        while True:
            chunk = self._stream.read(8)
            if len(chunk) < 8:
                raise self._truncated("found no samples (no data chunk)")
            name, size = struct.unpack("<4sI", chunk)
            if name == b"data":
                break
            content = self._stream.read(size + size % 2) if name == b"fmt " else b""
            if name == b"fmt ":
                if len(content) < 16:
                    raise self._truncated("its header is cut")
                kind = content
            else:
                self._stream.seek(size + size % 2, 1)
        if kind is None:
            raise self._truncated("its samples come before their format")
        left = path.stat().st_size - self._stream.tell()
        if size > left:
            raise self._truncated(f"its header announces {size} bytes of samples, found {left}")
        return self._checked(kind, size)

    def _checked(self, kind: bytes, n_bytes: int) -> WavInfo:
        tag, n_channels, rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", kind)
        if tag == _EXTENSIBLE and len(kind) >= 26:
            (tag,) = struct.unpack_from("<H", kind, 24)
        subtype = _SUBTYPES.get((tag, bits))
        if subtype is None:
            raise AudioError(
                f"{self.name}: found format {tag} of {bits} bits, wanted PCM of 16, 24 or 32 bits, or 32-bit floats: "
                "convert it, as in: ffmpeg -i INPUT -c:a pcm_s16le OUTPUT.wav"
            )
        if not 1 <= n_channels <= MAX_CHANNELS or frame_bytes != n_channels * bits // 8 or not rate_hz:
            raise self._truncated(f"its header says {n_channels} channels, {frame_bytes} bytes a frame, {rate_hz} Hz")
        info = WavInfo(rate_hz, n_channels, n_bytes // frame_bytes, subtype)
        if not info.n_frames:
            raise AudioError(f"{self.name}: found no samples, wanted some: record it again")
        return info

    def _truncated(self, found: str) -> AudioError:
        return AudioError(f"{self.name}: truncated or damaged: {found}; wanted the whole file: copy it again")


class WavWriter:
    """Writer of a WAV file that appears whole when `publish` is called, or not at all. A context manager.

    Integers are rounded and clipped at full scale; `n_clipped` counts the samples.

    Args:
        mode: permissions that the file has at most; None: the usual ones.

    Raises:
        OutputError: the place cannot be written to.
        AudioError: a WAV cannot hold so much.
    """

    def __init__(self, target: Path, info: WavInfo, *, mode: int | None = None) -> None:
        self.info = info
        self.n_clipped = 0
        n_bytes = info.n_frames * info.n_channels * info.sample_bytes
        if n_bytes > _MAX_BYTES:
            raise AudioError(
                f"{shown(target)}: {n_bytes} bytes of samples are more than a WAV can hold: split the input"
            )
        self._partial = PartialFile(target, mode=mode)
        self._stream = open(self._partial.fd, "wb", closefd=False)  # noqa: SIM115 - a descriptor has no path
        try:
            self._put(_header(info, n_bytes))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # what was not published is thrown away
            self._stream.close()
        self._partial.close()

    def write(self, block: Samples) -> None:
        """Append (n, n_channels) float32; in all as many frames as announced."""
        self._put(self._encoded(block))

    def publish(self, *, replace: bool) -> None:
        """Give the finished file its name; see `PartialFile.publish`."""
        try:
            self._stream.close()
        except OSError as error:
            raise self._partial.error(error) from error
        self._partial.publish(replace=replace)

    def _put(self, content: bytes) -> None:
        try:
            self._stream.write(content)
        except OSError as error:
            raise self._partial.error(error) from error

    def _encoded(self, block: Samples) -> bytes:
        if self.info.subtype == "FLOAT":
            return block.astype("<f4").tobytes()
        self.n_clipped += int(np.count_nonzero(np.abs(block) > 1.0))
        bits = 8 * self.info.sample_bytes
        full = 2.0 ** (bits - 1)
        steps = np.clip(np.rint(block.astype(np.float64) * full), -full, full - 1).astype("<i4")
        if bits == 24:
            return steps.ravel().view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        return steps.astype(f"<i{bits // 8}").tobytes()


def _decoded(content: bytes, subtype: str) -> Samples:
    """Samples in [-1, 1) from encoded bytes, interleaved, float32; floats keep their values."""
    if subtype == "FLOAT":
        return np.frombuffer(content, "<f4").astype(np.float32)
    if subtype == "PCM_24":  # the three upper bytes of 32
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        content = padded.tobytes()
    kind, full = ("<i2", 1 << 15) if subtype == "PCM_16" else ("<i4", 1 << 31)
    samples: Samples = np.frombuffer(content, kind).astype(np.float32) / np.float32(full)
    return samples


def _header(info: WavInfo, n_bytes: int) -> bytes:
    frame = info.n_channels * info.sample_bytes
    tag = _FLOAT if info.subtype == "FLOAT" else _PCM
    return _HEADER.pack(
        *(b"RIFF", _HEADER.size - 8 + n_bytes, b"WAVE", b"fmt ", 16, tag, info.n_channels, info.sample_rate_hz),
        *(info.sample_rate_hz * frame, frame, 8 * info.sample_bytes, b"data", n_bytes),
    )
