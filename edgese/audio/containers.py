"""Where the sound lies in a file: its container by the first bytes, its parts, and what its headers leave out or get wrong.

Programs join files, put tags around them, stream headers whose sizes nobody knew yet, and lose power before these are
written. `find_parts` gives each part as a clean stream of its own for the decoder, and says in `notes` what was mended.
Sizes: RIFF and AIFF specifications, EBU Tech 3306 (RF64), Sony's description of Wave64, Apple's of CAF, RFC 9639 (FLAC).
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence

from edgese.audio.byte_view import FileBytes, Segment
from edgese.audio.mpeg import MpegStream, find_mpeg, mpeg_begins, scan_mpeg
from edgese.audio.ogg import scan_ogg
from edgese.audio.tags import skip_tags, tags_start
from edgese.errors import AudioError

_MAX_CHUNKS = 1000
_MAX_PARTS = 10_000
_FRONT = 1 << 16  # bytes of junk before the first frame of an MP3
_ODD_BYTES = 4096  # unknown bytes behind the samples: up to so many are taken for junk, more for samples
_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"  # of the other names in a W64

_CUT_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"_PMX", b"PEAK", b"cue ", b"afsp")  # even if they are cut


@dataclasses.dataclass(frozen=True)
class Part:
    """One recording within a file, as bytes that the decoder can read from end to end."""

    segments: Sequence[Segment]
    end: int  # in the file, behind it
    container: str | None = None  # libsndfile's name, where the decoder sees another one than the file has
    mpeg: MpegStream | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """Recordings that a file holds, one after another, and what was found odd in it, a line each."""

    parts: list[Part]
    notes: list[str]


class Truncated(Exception):  # noqa: N818 - the reader makes its error of it
    """The file ends before its header says; the message says where."""


def find_parts(source: FileBytes, name: str) -> Parts:
    """All recordings of a file, in their order.

    Raises:
        AudioError: the file is none of audio that can be read.
        Truncated: it ends before its header says.
    """
    notes: list[str] = []
    start = skip_tags(source, 0, source.size)
    end = tags_start(source, start, source.size)
    kind = _kind(source, start, end)
    if kind is None:
        found = find_mpeg(source, start, min(end, start + _FRONT)) if _may_be_mpeg(source, start) else -1
        if found < 0:
            raise _unknown(source, start, name)
        notes.append(f"{found - start} bytes before the first MPEG frame are no audio and were left out")
        start, kind = found, _mpeg
    parts: list[Part] = []
    while kind is not None and len(parts) < _MAX_PARTS:
        found_here = kind(source, start, end, notes)
        if not found_here:
            break
        parts += found_here
        start = skip_tags(source, source.first_other_than(b"\0", parts[-1].end, end), end)
        kind = _kind(source, start, end) if start < end else None
    if not parts:
        raise _unknown(source, start, name)
    if start < end:
        notes.append(f"the last {end - start} bytes are no audio that is known and were left out")
    if len(parts) > 1:
        notes.append(f"{len(parts)} recordings are joined in this file; they were read one after another")
    return Parts(parts, notes)


_Finder = Callable[[FileBytes, int, int, list[str]], list[Part]]


def _kind(source: FileBytes, place: int, end: int) -> _Finder | None:
    """The function that finds the parts of what begins here, by its first bytes; None where nothing known does."""
    head = source.at(place, min(40, end - place))
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return _riff
    if head[:16] == _W64_RIFF:
        return _w64
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return _aiff
    if head[:4] in (b".snd", b"dns."):
        return _au
    for magic, finder in {b"caff": _caf, b"fLaC": _flac, b"OggS": _ogg}.items():
        if head.startswith(magic):
            return finder
    if any(head.startswith(magic) for magic in _PLAIN) or (head[:4] == b"FORM" and head[8:12] in (b"8SVX", b"16SV")):
        return _plain
    return _mpeg if mpeg_begins(source, place, end) else None


# Read by libsndfile as they are: NIST Sphere, Creative Voice, IRCAM, Audio Visual Research, PAF, PVF, Psion, MATLAB 5.
_PLAIN = (
    *(b"NIST_1A", b"Creative Voice File", b"2BIT", b" paf", b"fap ", b"PVF1", b"ALawSoundFile**", b"MATLAB 5.0"),
    *(b"\x64\xa3" + bytes([version, 0]) for version in range(5)),
    *(bytes([0, version]) + b"\xa3\x64" for version in range(5)),
)

# Named in the refusal: what people have, and libsndfile does not read.
_FOREIGN = (
    (4, b"ftyp", "an MP4 file (m4a, mp4, mov, 3gp)"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM file"),
    (0, b"\x30\x26\xb2\x75", "a Windows Media file (wma, wmv, asf)"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"MAC ", "a Monkey's Audio file"),
    (0, b"wvpk", "a WavPack file"),
    (8, b"AVI ", "an AVI video"),
    (0, b"\xf0\x7e", "a MIDI sample dump"),
    (0, b"MThd", "a MIDI file, which holds notes and no sound"),
    (0, b"\xff\xf1", "AAC without a container"),
    (0, b"\xff\xf9", "AAC without a container"),
)


def _unknown(source: FileBytes, start: int, name: str) -> AudioError:
    head = source.at(start, 16)
    what = next((what for at, magic, what in _FOREIGN if head[at : at + len(magic)] == magic), None)
    found = f"no audio that can be read: {what}" if what else "no audio that can be read"
    return AudioError(
        f"{name}: found {found}, wanted WAV, FLAC, OGG, MP3 or the like, whole: convert it, as in: "
        "ffmpeg -i INPUT OUTPUT.wav"
    )


def _may_be_mpeg(source: FileBytes, start: int) -> bool:
    head = source.at(start, 16)
    return not any(head[at : at + len(magic)] == magic for at, magic, _ in _FOREIGN)


def _plain(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    return [Part([(start, end)], end)]


def _mpeg(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    scan = scan_mpeg(source, start, end)
    if scan.n_junk:
        notes.append(f"{scan.n_junk} bytes between MPEG frames are no audio and were left out")
    # the end of a file that is cut within its last frame belongs to it, as do zeros
    last = end if end - scan.end < _ODD_BYTES else scan.end
    streams = scan.streams
    for at, stream in enumerate(streams):
        n, said = len(stream.places), stream.announced
        if said is not None and n < 0.99 * said:
            which = f"part {at + 1}: " if len(streams) > 1 else ""
            notes.append(f"{which}{n} MPEG frames are there, {said} announced: the file may be truncated")
    return [Part(stream.segments(source), last, mpeg=stream) for stream in streams]


def _ogg(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    scan = scan_ogg(source, start, end)
    if scan.cut or not (scan.links and scan.links[-1].ended):
        raise Truncated("its last page is missing")
    if scan.n_junk:
        notes.append(f"{scan.n_junk} bytes between Ogg pages are no audio and were left out")
    return [
        Part(link.segments, scan.end if link is scan.links[-1] else link.end)
        if link.flac is None
        else Part(link.flac, scan.end if link is scan.links[-1] else link.end, container="OGG")
        for link in scan.links
    ]


def _flac(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    """Up to the next file's first block, which is always the same: its name, and 34 bytes of STREAMINFO."""
    heads = [source.find(b"fLaC" + first + b"\0\0\x22", start + 4, end) for first in (b"\0", b"\x80")]
    behind = min([place for place in heads if place >= 0], default=end)
    last = tags_start(source, start, behind) if behind < end else end
    front = source.find(b"ID3", max(start, last - (1 << 20)), last) if behind < end else -1
    if front >= 0 and skip_tags(source, front, behind) == behind:  # the next file's tag
        last = front
    return [Part([(start, last)], behind)]


def _au(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    head = source.at(start, 24)
    if len(head) < 24:
        raise Truncated(f"its header announces 24 bytes, found {len(head)}")
    order = ">" if head[:4] == b".snd" else "<"
    offset, size = struct.unpack(f"{order}II", head[4:12])
    samples = start + offset
    if size == 0xFFFFFFFF:
        return [Part([(start, end)], end)]
    last = _samples_end(source, samples, size, end, _no_chunks, notes)
    if last == samples + size:
        return [Part([(start, last)], last)]
    patched = head[:8] + struct.pack(f"{order}I", 0xFFFFFFFF)
    return [Part([patched, (start + 12, last)], last)]


def _riff(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    """WAV, RF64 and BW64; one whose header is wrong gets a new one, with its own format chunk and samples."""
    order = ">" if source.at(start, 4) == b"RIFX" else "<"
    place, form, long_size, odd = start + 12, None, None, source.at(start, 4) == b"BW64"
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(36, end - place))
        if len(chunk) < 8:
            break
        name, size = chunk[:4], struct.unpack(f"{order}I", chunk[4:8])[0]
        if name == b"ds64" and len(chunk) >= 24:
            (long_size,) = struct.unpack("<Q", chunk[16:24])
        elif name == b"fmt ":
            form = place, place + 8 + size
        elif name == b"data":
            samples, last, odd = _riff_samples(source, place + 8, size, long_size, end, order, odd, notes)
            if not odd or form is None:
                behind = _behind_chunks(source, last, end, order)
                return [Part([(start, behind)], behind)]
            head = _riff_header(source.at(form[0], form[1] - form[0]), last - samples, order)
            return [Part([head, (samples, last)], _behind_chunks(source, last, end, order))]
        behind = place + 8 + size
        if size % 2 and not _is_chunk(source, behind + 1, end, order) and _is_chunk(source, behind, end, order):
            odd, place = True, behind  # padded to even lengths by all but a few programs
        else:
            place = behind + size % 2
    return [Part([(start, end)], end)]  # without samples: the decoder says what is missing


def _riff_samples(
    source: FileBytes,
    samples: int,
    size: int,
    long_size: int | None,
    end: int,
    order: str,
    odd: bool,
    notes: list[str],
) -> tuple[int, int, bool]:
    """Start and end of the samples, and whether the header must be made anew."""
    if size == 0xFFFFFFFF and long_size:
        size = long_size
    elif _is_streamed(size) and samples + size > end:
        joined = source.find(b"WAVEfmt ", samples, end)
        return samples, joined - 8 if joined > samples else end, True
    last = _samples_end(source, samples, size, end, lambda *place: _behind_chunks(source, *place, order), notes)
    return samples, last, odd or last != samples + size


def _samples_end(
    source: FileBytes, samples: int, size: int, end: int, behind_chunks: Callable[[int, int], int], notes: list[str]
) -> int:
    """End of the samples: where the header says, or the file's where they go on.

    Raises:
        Truncated: the header announces more than there is.
    """
    last = samples + size
    if last > source.size:
        raise Truncated(f"its header announces {last} bytes, found {source.size}")
    behind = behind_chunks(last, end)
    if last >= end or behind >= end or (size and behind > last + 1):
        return last
    if size:
        behind = skip_tags(source, source.first_other_than(b"\0", behind, end), end)
        if behind >= end or end - last <= _ODD_BYTES or _kind(source, behind, end):
            return last
    notes.append(
        f"the header announces {size} bytes of samples, {end - samples} are there and were read: it was never "
        "completed, as when a recorder loses power"
    )
    return end


def _is_streamed(size: int) -> bool:
    """True for what programs write into a pipe, whose end they cannot know.

    ffmpeg -1, sox and GStreamer just under 2 GiB, arecord 2 GiB.
    """
    return 0x7FFF0000 <= size <= 0x80000000 or size >= 0xFFFF0000


def _no_chunks(place: int, end: int) -> int:
    return place


def _is_chunk(source: FileBytes, place: int, end: int, order: str) -> bool:
    """True if a chunk begins here: a name of printable characters, and a size that fits; or the file ends."""
    chunk = source.at(place, min(8, end - place))
    if len(chunk) < 8:
        return place == end
    name, (size,) = chunk[:4], struct.unpack(f"{order}I", chunk[4:])
    fits = place + 8 + size <= end + 1 or name in _CUT_CHUNKS
    return fits and all(0x20 <= byte < 0x7F for byte in name)


def _behind_chunks(source: FileBytes, place: int, end: int, order: str) -> int:
    """Place behind the chunks, one after another, that begin here; padded or not."""
    for _ in range(_MAX_CHUNKS):
        if place < end and not _is_chunk(source, place, end, order) and _is_chunk(source, place + 1, end, order):
            place += 1
        if end - place < 8 or not _is_chunk(source, place, end, order) or source.at(place, 4) in (b"RIFF", b"RF64"):
            return end if 0 <= end - place < 2 and not source.at(place, 1).strip(b"\0") else place
        (size,) = struct.unpack(f"{order}I", source.at(place + 4, 4))
        place = min(end, place + 8 + size)
    return place


def _riff_header(form: bytes, size: int, order: str) -> bytes:
    """A WAV's header, up to its samples; an RF64's where 32 bits cannot hold the size."""
    form += b"\0" * (len(form) % 2)
    whole = 4 + len(form) + 8 + size + size % 2
    if whole < 1 << 32:
        sizes = (struct.pack(f"{order}I", number) for number in (whole, size))
        return (b"RIFX" if order == ">" else b"RIFF") + next(sizes) + b"WAVE" + form + b"data" + next(sizes)
    long = b"ds64" + struct.pack("<IQQQI", 28, whole + 36, size, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + long + form + b"data\xff\xff\xff\xff"


def _w64(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    place = start + 40
    form = b""
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(24, end - place))
        if len(chunk) < 24:
            break
        (size,) = struct.unpack("<Q", chunk[16:])
        if chunk[:16] == b"fmt " + _W64_TAIL:
            form = source.at(place, min(size, 1 << 12))
        if chunk[:16] == b"data" + _W64_TAIL:
            samples = place + 24
            streamed = size >= 1 << 62
            last = end if streamed else _samples_end(source, samples, max(size - 24, 0), end, _behind_w64(source), notes)
            if last == place + size or not form:
                return [Part([(start, last)], _behind_w64(source)(last, end))]
            form += bytes(-len(form) % 8)
            n = last - samples
            head = _W64_RIFF + struct.pack("<Q", 40 + len(form) + 24 + n) + b"wave" + _W64_TAIL
            data = b"data" + _W64_TAIL + struct.pack("<Q", 24 + n)
            return [Part([head, form, data, (samples, last)], last)]
        if size < 24:
            break
        place += size + -size % 8
    return [Part([(start, end)], end)]


def _behind_w64(source: FileBytes) -> Callable[[int, int], int]:
    def behind(place: int, end: int) -> int:
        for _ in range(_MAX_CHUNKS):
            at = place + -place % 8 if source.at(place + -place % 8 + 4, 12) == _W64_TAIL else place
            if source.at(at + 4, 12) != _W64_TAIL:
                return place
            (size,) = struct.unpack("<Q", source.at(at + 16, 8).ljust(8, b"\0"))
            if not 24 <= size <= end - at:
                return place
            place = at + size
        return place

    return behind


def _aiff(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    place = start + 12
    common = version = b""
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(16, end - place))
        if len(chunk) < 8:
            break
        name, (size,) = chunk[:4], struct.unpack(">I", chunk[4:8])
        if name == b"COMM":
            common = source.at(place, 8 + min(size, 1 << 12))
        elif name == b"FVER":
            version = source.at(place, 8 + min(size, 64))
        elif name == b"SSND":
            samples = place + 16
            if _is_streamed(size) and place + 8 + size > end:
                size = end - place - 8
            chunks: Callable[[int, int], int] = lambda *at: _behind_chunks(source, *at, ">")  # noqa: E731
            last = _samples_end(source, samples, max(size - 8, 0), end, chunks, notes)
            if last == place + 8 + struct.unpack(">I", chunk[4:8])[0] or len(common) < 26:
                behind = chunks(last, end)
                return [Part([(start, behind)], behind)]
            return [Part([*_aiff_header(source.at(start + 8, 4), version, common, last - samples), (samples, last)], last)]
        place += 8 + size + size % 2
    return [Part([(start, end)], end)]


def _aiff_header(form: bytes, version: bytes, common: bytes, size: int) -> list[bytes]:
    n_channels, _, bits = struct.unpack(">HIH", common[8:16])
    frame = max(1, n_channels * ((bits + 7) // 8))
    common = common[:10] + struct.pack(">I", min(size // frame, 0xFFFFFFFF)) + common[14:]
    chunks = version + common + b"\0" * (len(common) % 2)
    whole = 4 + len(chunks) + 16 + size
    if whole >= 1 << 32:
        raise Truncated(f"its header cannot hold the {size} bytes of samples that are there")
    head = b"FORM" + struct.pack(">I", whole) + form + chunks
    return [head, b"SSND" + struct.pack(">III", 8 + size, 0, 0)]


def _caf(source: FileBytes, start: int, end: int, notes: list[str]) -> list[Part]:
    place = start + 8
    for _ in range(_MAX_CHUNKS):
        chunk = source.at(place, min(12, end - place))
        if len(chunk) < 12:
            break
        name, (size,) = chunk[:4], struct.unpack(">q", chunk[4:])
        if name == b"data":
            samples = place + 12
            if size < 0:
                return [Part([(start, end)], end)]
            last = _samples_end(source, samples, size, end, _behind_caf(source), notes)
            behind = _behind_caf(source)(last, end)
            if last == samples + size:
                return [Part([(start, behind)], behind)]
            head = b"data" + struct.pack(">q", last - samples)
            return [Part([(start, place), head, (samples, last)], last)]
        if size < 0:
            break
        place += 12 + size
    return [Part([(start, end)], end)]


def _behind_caf(source: FileBytes) -> Callable[[int, int], int]:
    def behind(place: int, end: int) -> int:
        for _ in range(_MAX_CHUNKS):
            chunk = source.at(place, min(12, end - place))
            if len(chunk) < 12 or not all(0x20 <= byte < 0x7F for byte in chunk[:4]):
                return place
            (size,) = struct.unpack(">q", chunk[4:])
            if not 0 <= size <= end - place - 12:
                return place
            place += 12 + size
        return place

    return behind
