"""Parts of files that are made of chunks with sizes: WAV and its like, Wave64, AIFF, CAF, AU.

A size may be missing, as in what was streamed, or too small, where a recorder lost power before it wrote the true one:
the part gets a new header in front of its own samples, as any WAV does, since some of their chunks lead libsndfile
astray. A size that is too large, as in a file that is cut, is refused.
Sizes: RIFF and AIFF specifications, EBU Tech 3306 (RF64), Sony's description of Wave64, Apple's of CAF.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial

from edgese.audio.byte_view import FileBytes
from edgese.audio.parts import Part, Search, Truncated
from edgese.audio.tags import skip_tags

W64 = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"  # what a Wave64 begins with
_W64_NAME = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # ends the other names in it

_MAX_CHUNKS = 1000
_MAX_HEADER_BYTES = 1 << 12  # of a chunk that says what the samples are
_ODD_BYTES = 4096  # unknown bytes behind the samples: up to so many are taken for junk, more for samples
_OFTEN_CUT = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"PEAK", b"cue ", b"afsp")

_Behind = Callable[[int, int], int]  # place behind the chunks, one after another, that begin at a place; and the end


def riff_parts(search: Search, start: int) -> list[Part]:
    """The part in a WAV, RF64 or BW64, big-endian RIFX as well: its format and its samples, without other chunks."""
    source, end, kind = search.source, search.end, search.source.at(start, 4)
    order = ">" if kind == b"RIFX" else "<"
    place, form, fact, long_size = start + 12, b"", b"", None
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(24, end - place))
        if len(chunk) < 8:
            break
        name, size = chunk[:4], struct.unpack(f"{order}I", chunk[4:8])[0]
        if name == b"ds64" and len(chunk) == 24:
            (long_size,) = struct.unpack("<Q", chunk[16:])
        elif name == b"fmt ":
            form = source.at(place, 8 + min(size + size % 2, _MAX_HEADER_BYTES))
        elif name == b"data":
            samples, behind = place + 8, partial(_behind_riff, source, order)
            said = long_size if size == 0xFFFFFFFF and long_size else size
            if said == size and _is_streamed(size) and samples + size > end:
                joined = source.find(b"WAVEfmt ", samples, end)
                last = end if joined < 0 else joined - 8
            else:
                last = _samples_end(search, samples, said, behind)
            if not form:
                break
            head = _riff_header(form + fact, last - samples, order)
            return [Part([head, (samples, last)], behind(last, end), "RF64" if kind in (b"RF64", b"BW64") else None)]
        elif name == b"fact":
            fact = source.at(place, 8 + min(size, 64))
        following = place + 8 + size
        padded = following + size % 2
        if size % 2 and not _is_chunk(source, order, padded, end) and _is_chunk(source, order, following, end):
            padded = following  # all but a few programs pad to even lengths
        place = padded
    return [Part([(start, end)], end)]  # without samples: the decoder says what is missing


def w64_parts(search: Search, start: int) -> list[Part]:
    """The part in a Wave64, whose chunks have 64-bit sizes that include their heads."""
    source, end, place, form = search.source, search.end, start + 40, b""
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(24, end - place))
        if len(chunk) < 24:
            break
        (size,) = struct.unpack("<Q", chunk[16:])
        if chunk[:16] == b"fmt " + _W64_NAME:
            form = source.at(place, min(size, _MAX_HEADER_BYTES))
        elif chunk[:16] == b"data" + _W64_NAME:
            samples, behind = place + 24, partial(_behind_w64, source)
            last = end if size >= 1 << 62 else _samples_end(search, samples, max(size - 24, 0), behind)
            if last == place + size or not form:
                return [Part([(start, last)], behind(last, end))]
            form += bytes(-len(form) % 8)
            whole = 40 + len(form) + 24 + last - samples
            head = W64 + struct.pack("<Q", whole) + b"wave" + _W64_NAME + form
            data = b"data" + _W64_NAME + struct.pack("<Q", 24 + last - samples)
            return [Part([head, data, (samples, last)], last)]
        if size < 24:
            break
        place += size + -size % 8
    return [Part([(start, end)], end)]


def aiff_parts(search: Search, start: int) -> list[Part]:
    """The part in an AIFF or AIFC."""
    source, end, place, common, version = search.source, search.end, start + 12, b"", b""
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(16, end - place))
        if len(chunk) < 8:
            break
        name, (size,) = chunk[:4], struct.unpack(">I", chunk[4:8])
        if name == b"COMM":
            common = source.at(place, 8 + min(size, _MAX_HEADER_BYTES))
        elif name == b"FVER":
            version = source.at(place, 8 + min(size, 64))
        elif name == b"SSND":
            samples, behind = place + 16, partial(_behind_riff, source, ">")
            streamed = _is_streamed(size) and place + 8 + size > end
            last = end if streamed else _samples_end(search, samples, max(size - 8, 0), behind)
            if last == place + 8 + size or len(common) < 26:
                return [Part([(start, behind(last, end))], behind(last, end))]
            head = _aiff_header(source.at(start + 8, 4), version, common, last - samples)
            return [Part([head, (samples, last)], behind(last, end))]
        place += 8 + size + size % 2
    return [Part([(start, end)], end)]


def caf_parts(search: Search, start: int) -> list[Part]:
    """The part in a CAF; a size of -1 means up to the end."""
    source, end, place = search.source, search.end, start + 8
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(12, end - place))
        if len(chunk) < 12:
            break
        (size,) = struct.unpack(">q", chunk[4:])
        if chunk[:4] == b"data":
            samples, behind = place + 12, partial(_behind_caf, source)
            last = end if size < 0 else _samples_end(search, samples, size, behind)
            if last == samples + size:
                return [Part([(start, behind(last, end))], behind(last, end))]
            return [Part([(start, place), b"data" + struct.pack(">q", last - samples), (samples, last)], last)]
        if size < 0:
            break
        place += 12 + size
    return [Part([(start, end)], end)]


def au_parts(search: Search, start: int) -> list[Part]:
    """The part in an AU, big-endian or little-endian; a size of -1 means up to the end."""
    head = search.source.at(start, 24)
    if len(head) < 24:
        raise Truncated(f"its header announces 24 bytes, found {len(head)}")
    order = ">" if head[:4] == b".snd" else "<"
    offset, size = struct.unpack(f"{order}II", head[4:12])
    samples = start + offset
    last = search.end if size == 0xFFFFFFFF else _samples_end(search, samples, size, lambda place, end: place)
    if last == samples + size:
        return [Part([(start, last)], last)]
    return [Part([head[:8] + b"\xff\xff\xff\xff", (start + 12, last)], last)]


def _samples_end(search: Search, samples: int, size: int, behind_chunks: _Behind) -> int:
    """End of the samples: where the header says, or the file's where they go on.

    Raises:
        Truncated: the header announces more than there is.
    """
    source, end, last = search.source, search.end, samples + size
    if last > source.size:
        raise Truncated(f"its header announces {last} bytes, found {source.size}")
    behind = behind_chunks(last, end)
    if last >= end or behind >= end or (size and behind > last + 1):
        return last
    if size:
        behind = skip_tags(source, source.first_other_than(b"\0", behind, end), end)
        if behind >= end or end - last <= _ODD_BYTES or search.begins(behind):
            return last
    search.notes.append(
        f"the header announces {size} bytes of samples, {end - samples} are there and were read: it was never "
        "completed, as when a recorder loses power"
    )
    return end


def _is_streamed(size: int) -> bool:
    """True for what programs write into a pipe, whose end they cannot know.

    ffmpeg -1, sox and GStreamer just under 2 GiB, arecord 2 GiB.
    """
    return 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000


def _is_chunk(source: FileBytes, order: str, place: int, end: int) -> bool:
    """True if a chunk begins here: a name of printable characters, and a size that fits; or the file ends."""
    chunk = source.at(place, min(8, end - place))
    if len(chunk) < 8:
        return place == end
    name, (size,) = chunk[:4], struct.unpack(f"{order}I", chunk[4:])
    fits = place + 8 + size <= end + 1 or name in _OFTEN_CUT
    return fits and all(0x20 <= byte < 0x7F for byte in name)


def _behind_riff(source: FileBytes, order: str, place: int, end: int) -> int:
    """Place behind the chunks of a WAV or AIFF, padded to even lengths or not; where a joined file begins, it ends."""
    for _ in range(_MAX_CHUNKS):
        if place < end and not _is_chunk(source, order, place, end) and _is_chunk(source, order, place + 1, end):
            place += 1
        whole = end - place < 8 or not _is_chunk(source, order, place, end)
        if whole or source.at(place, 4) in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM"):
            return end if end - place == 1 and source.at(place, 1) == b"\0" else place
        (size,) = struct.unpack(f"{order}I", source.at(place + 4, 4))
        place = min(end, place + 8 + size)
    return place


def _behind_w64(source: FileBytes, place: int, end: int) -> int:
    for _ in range(_MAX_CHUNKS):
        at = place + -place % 8 if source.at(place + -place % 8 + 4, 12) == _W64_NAME else place
        (size,) = struct.unpack("<Q", source.at(at + 16, 8).ljust(8, b"\0"))
        if source.at(at + 4, 12) != _W64_NAME or not 24 <= size <= end - at:
            break
        place = at + size
    return place


def _behind_caf(source: FileBytes, place: int, end: int) -> int:
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(12, end - place))
        if len(chunk) < 12 or not all(0x20 <= byte < 0x7F for byte in chunk[:4]):
            break
        (size,) = struct.unpack(">q", chunk[4:])
        if not 0 <= size <= end - place - 12:
            break
        place += 12 + size
    return place


def _riff_header(form: bytes, size: int, order: str) -> bytes:
    """A WAV's header, up to its samples; an RF64's where 32 bits cannot hold the size."""
    whole = 4 + len(form) + 8 + size + size % 2
    if whole < 1 << 32:
        head = b"RIFX" if order == ">" else b"RIFF"
        return head + struct.pack(f"{order}I", whole) + b"WAVE" + form + b"data" + struct.pack(f"{order}I", size)
    if order == ">":
        raise Truncated(f"its header cannot hold the {size} bytes of samples that are there")
    long = b"ds64" + struct.pack("<IQQQI", 28, whole + 36, size, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + long + form + b"data\xff\xff\xff\xff"


def _aiff_header(form: bytes, version: bytes, common: bytes, size: int) -> bytes:
    """An AIFF's header, up to its samples, with the number of frames that these give."""
    n_channels, _, bits = struct.unpack(">HIH", common[8:16])
    n_frames = size // max(1, n_channels * ((bits + 7) // 8))
    common = common[:10] + struct.pack(">I", min(n_frames, 0xFFFFFFFF)) + common[14:] + b"\0" * (len(common) % 2)
    whole = 4 + len(version) + len(common) + 16 + size
    if whole >= 1 << 32:
        raise Truncated(f"its header cannot hold the {size} bytes of samples that are there")
    head = b"FORM" + struct.pack(">I", whole) + form + version + common
    return head + b"SSND" + struct.pack(">III", 8 + size, 0, 0)
