"""Frames of MPEG audio (MP3, MP2) in a file: found one by one, with whatever is none left out.

Headers: ISO/IEC 11172-3, 2.4.2.3, and 13818-3 for the lower rates. The frame that tells a stream's length: Xing's
specification of its VBR header, with LAME's extension; VBRI by Fraunhofer.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import struct
from array import array

import numpy as np
from numpy.typing import NDArray

from edgese.audio.byte_view import FileBytes, Segment
from edgese.audio.tags import tag_end

_KBITS = {  # by version (1, or 2 and 2.5) and layer, from index 1 on
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)
_MAYBE_HEADER = re.compile(rb"\xff[\xe2-\xff][\x10-\xef]", re.DOTALL)  # runs of 255, as on erased flash, are none
_IN_A_ROW = 4  # frames that must follow one another before a stream is believed: junk has seldom two
_GAPLESS_DELAY = 529  # samples that a decoder adds to an encoder's delay


@dataclasses.dataclass(frozen=True)
class _Header:
    """Facts of one frame's header."""

    size: int  # bytes
    samples: int
    kind: int  # header bits that all frames of a stream share: version, layer, rate, one channel or two


@functools.lru_cache(maxsize=4096)
def _header(bits: int) -> _Header | None:
    """Facts in the 32 bits of a frame's header; None if they are none."""
    version, layer = {3: 1, 2: 2, 0: 3}.get(bits >> 19 & 3), 4 - (bits >> 17 & 3)
    bitrate, rate, padding = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1
    if bits >> 21 != 0x7FF or version is None or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    kbits = _KBITS[min(version, 2), layer][bitrate - 1]
    rate_hz = _RATES_HZ[rate] >> (version - 1)
    samples = 384 if layer == 1 else 576 if layer == 3 and version > 1 else 1152
    slot = 4 if layer == 1 else 1
    size = (samples // 8 * 1000 * kbits // rate_hz // slot + padding) * slot
    return _Header(size, samples, bits & 0xFFFE0C00 | int(bits >> 6 & 3 == 3))


@dataclasses.dataclass(frozen=True)
class MpegStream:
    """One encoder's frames: what stands between two frames that tell a length, or all there are."""

    start: int  # place of the first frame, be it one that tells the length
    xing: tuple[int, int] | None  # place and size of the frame with Xing's header, if there is one
    places: NDArray[np.int64]  # of the frames with sound
    sizes: NDArray[np.int64]
    samples: int  # of one channel in a frame
    announced: int | None  # frames, as the first one tells
    skipped: int  # samples that the decoder leaves out at the beginning: what encoder and decoder put there
    layer_3: bool

    def segments(self, source: FileBytes) -> list[Segment]:
        """The stream without gaps, behind a frame that tells its length: mpg123 would guess it."""
        if self.xing is not None:
            return [self._mended_xing(source), *self._from(0)]
        return [self._made_frame(source, 0, tells=True), *self._from(0)] if self.layer_3 else self._from(0)

    def segments_from(self, source: FileBytes, first: int) -> tuple[list[Segment], int]:
        """The stream from a frame on, and the sample of the whole that it begins with, counting what is skipped."""
        if not self.layer_3:
            return self._from(first), first * self.samples
        silence = self._made_frame(source, first, tells=False)  # the decoder leaves out the beginning of this one
        head = [self._made_frame(source, first, tells=True), silence]
        return [*head, *self._from(first)], (first - 1) * self.samples + _GAPLESS_DELAY

    def _from(self, first: int) -> list[Segment]:
        places, ends = self.places[first:], (self.places + self.sizes)[first:]
        gaps = np.flatnonzero(places[1:] != ends[:-1]) + 1
        starts, stops = np.append(places[:1], places[gaps]), np.append(ends[gaps - 1], ends[-1:])
        return list(zip(starts.tolist(), stops.tolist(), strict=True))

    def _made_frame(self, source: FileBytes, first: int, *, tells: bool) -> bytes:
        """A silent frame that fits a frame; with Xing's header if it tells the length of what follows."""
        bits = int.from_bytes(source.at(int(self.places[first]), 4), "big")
        bits = bits & ~0xF000 | 0x9000 | 1 << 16  # of middling bitrate, to have room; without a checksum
        header = _header(bits)
        assert header is not None
        frame = bytearray(bits.to_bytes(4, "big") + bytes(header.size - 4))
        if tells:
            n_frames, n_bytes = len(self.places) - first + (first > 0), int(self.sizes[first:].sum())
            values = struct.pack(">4sIII", b"Info", 3, n_frames, min(n_bytes + 2 * header.size, 0xFFFFFFFF))
            frame[_xing_place(frame) : _xing_place(frame) + 16] = values
        return bytes(frame)

    def _mended_xing(self, source: FileBytes) -> bytes:
        """The frame that tells the length, with the true one: mpg123 believes it, and complains where it is wrong."""
        assert self.xing is not None
        frame = bytearray(source.at(*self.xing))
        field = _xing_place(frame) + 8
        (flags,) = struct.unpack_from(">I", frame, field - 4)
        if flags & 1:
            if len(self.places) > (self.announced or 0):
                struct.pack_into(">I", frame, field, len(self.places))
            field += 4
        if flags & 2:
            struct.pack_into(">I", frame, field, min(len(frame) + int(self.sizes.sum()), 0xFFFFFFFF))
        return bytes(frame)


@dataclasses.dataclass(frozen=True)
class MpegScan:
    """Streams of a file's MPEG frames, one after another, and the bytes between them that are none."""

    streams: list[MpegStream]
    n_junk: int
    end: int  # behind the last frame


def mpeg_begins(source: FileBytes, place: int, end: int) -> bool:
    """True if frames follow one another from here on, too many for chance or to the end, where one may be cut."""
    kind = None
    for n_before in range(_IN_A_ROW):
        header = _header(int.from_bytes(source.at(place, 4), "big"))
        if header is None or (kind is not None and header.kind != kind):
            return False
        kind, place = header.kind, place + header.size
        if place >= end:
            return place == end or n_before > 0
    return True


def find_mpeg(source: FileBytes, start: int, end: int) -> int:
    """Place of the first frame within start ... end that others follow; -1 if there is none."""
    while (start := source.find(_MAYBE_HEADER, start, end)) >= 0:
        if mpeg_begins(source, start, end):
            return start
        start += 1
    return -1


def scan_mpeg(source: FileBytes, start: int, end: int) -> MpegScan:
    """All frames from `start` on, where the first one stands."""
    streams: list[MpegStream] = []
    frames, sizes, kind, junk, place, last = array("q"), array("i"), None, 0, start, start
    info: tuple[int, int] | None = None
    samples = 0

    def close() -> None:
        nonlocal info, frames, sizes
        if frames:
            announced, skipped = (None, None) if info is None else _announced(source.at(*info))
            start = frames[0] if info is None else info[0]
            layer_3 = source.at(frames[0] + 1, 1)[0] >> 1 & 3 == 1
            if skipped is None:
                info, skipped = None, _GAPLESS_DELAY if layer_3 else 0
            places, n_bytes = np.array(frames, np.int64), np.array(sizes, np.int64)
            streams.append(MpegStream(start, info, places, n_bytes, samples, announced, skipped, layer_3))
        info, frames, sizes = None, array("q"), array("i")

    while place + 4 <= end:
        header = _header(int.from_bytes(source.at(place, 4), "big"))
        if header is not None and place + header.size > end:
            break  # the last frame is cut
        if header is None or (header.kind != kind and not mpeg_begins(source, place, end)):
            found = tag_end(source, place, end)
            if found is None:
                found = find_mpeg(source, place + 1, end)
                tag = _next_tag(source, place, end if found < 0 else found)
                if tag is not None:
                    junk, place = junk + tag - place, tag
                    continue
                if found < 0:
                    break
                junk += found - place
            place = found
            continue
        tells = _tells_length(source.at(place, min(header.size, 64)))
        if header.kind != kind or tells:
            close()
            kind, samples = header.kind, header.samples
        if tells:
            info = place, header.size
        else:
            frames.append(place)
            sizes.append(header.size)
        place += header.size
        last = place
    close()
    return MpegScan(streams, junk, last)


def _next_tag(source: FileBytes, start: int, end: int) -> int | None:
    """Place of a tag behind `start`, such as the next file's, whose picture could hold what looks like frames."""
    place = source.find(b"ID3", start, end)
    return place if place > start and tag_end(source, place, source.size) is not None else None


def _xing_place(frame: bytes | bytearray) -> int:
    """Place of a Xing or Info header within a frame: behind its side information."""
    mono, version_1 = frame[3] >> 6 == 3, frame[1] >> 3 & 3 == 3
    return 4 + ((17 if mono else 32) if version_1 else (9 if mono else 17))


def _xing(frame: bytes | bytearray) -> int | None:
    """Place of the Xing or Info header within a frame; None if it has none."""
    place = _xing_place(frame) if len(frame) >= 4 else 0
    return place if frame[place : place + 4] in (b"Xing", b"Info") and len(frame) >= place + 16 else None


def _tells_length(frame: bytes) -> bool:
    return _xing(frame) is not None or frame[36:40] == b"VBRI"


def _announced(frame: bytes) -> tuple[int | None, int | None]:
    """Frames that the stream has by its first one, and samples that the decoder then skips; None but for Xing's."""
    xing = _xing(frame)
    if xing is None:
        return (struct.unpack_from(">I", frame, 50)[0] if len(frame) >= 54 else None), None
    (flags,) = struct.unpack_from(">I", frame, xing + 4)
    if not flags & 1:
        return None, 0
    lame = xing + 12 + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
    delay = int.from_bytes(frame[lame + 21 : lame + 23], "big") >> 4 if len(frame) >= lame + 24 else 0
    return struct.unpack_from(">I", frame, xing + 8)[0], delay + _GAPLESS_DELAY
