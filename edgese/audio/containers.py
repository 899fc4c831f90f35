"""Where the sound lies in a file: its container by the first bytes, and its parts, whatever surrounds them.

Programs join files, put tags around them and leave junk in them. `find_parts` gives each recording as a clean stream of
its own for the decoder, and says in `notes` what was odd.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from edgese.audio import chunks
from edgese.audio.byte_view import FileBytes
from edgese.audio.mpeg import find_mpeg, mpeg_begins, scan_mpeg
from edgese.audio.ogg import scan_ogg
from edgese.audio.parts import Part, Parts, Search, Truncated
from edgese.audio.tags import skip_tags, tags_start
from edgese.errors import AudioError

_FRONT = 1 << 16  # bytes of junk before the first frame of an MP3
_REST = 4096  # bytes behind an MP3's last frame: up to so many are what is left of one, or padding
_TAG_ROOM = 1 << 20  # before a joined FLAC, in which its tag is looked for
_MAX_PARTS = 10_000

# Read by libsndfile as they are: NIST Sphere, Creative Voice, Audio Visual Research, PAF, PVF, Psion, MATLAB 5, IRCAM.
_PLAIN = (
    *(b"NIST_1A", b"Creative Voice File", b"2BIT", b" paf", b"fap ", b"PVF1", b"ALawSoundFile**", b"MATLAB 5.0"),
    *(b"\x64\xa3" + bytes([version, 0]) for version in range(5)),
    *(bytes([0, version]) + b"\xa3\x64" for version in range(5)),
)

# What people have, and libsndfile does not read, or prints about: named in the refusal, or read by ffmpeg as ...
_FOREIGN: tuple[tuple[int, bytes, str, str | None], ...] = (
    (4, b"ftyp", "an MP4 file (m4a, mp4, mov, 3gp)", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM file", "matroska"),
    (0, b"\x30\x26\xb2\x75", "a Windows Media file (wma, wmv, asf)", "asf"),
    (0, b"#!AMR", "an AMR file", "amr"),
    (0, b"MAC ", "a Monkey's Audio file", "ape"),
    (0, b"wvpk", "a WavPack file", "wv"),
    (8, b"AVI ", "an AVI video", "avi"),
    (0, b"FLV", "a Flash video", "flv"),
    (0, b"\x00\x00\x01\xba", "an MPEG video", "mpeg"),
    (0, b"MThd", "a MIDI file, which holds notes and no sound", None),
    (0, b"\xf0\x7e", "a MIDI sample dump", None),
    (0, b"\xff\xf1", "AAC without a container", "aac"),
    (0, b"\xff\xf9", "AAC without a container", "aac"),
)

_FLAC_BEGINS = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")

_Finder = Callable[[Search, int], list[Part]]


def demuxer_of(head: bytes) -> str | None:
    """Name of the demuxer by which ffmpeg reads a file that begins so; None for what is read here, or by nobody."""
    return next((demuxer for at, magic, _, demuxer in _FOREIGN if head[at : at + len(magic)] == magic), None)


def find_parts(source: FileBytes, name: str) -> Parts:
    """All recordings of a file, in their order.

    Raises:
        AudioError: the file is none of audio that can be read.
        Truncated: it ends before its header says.
    """
    front = 0 if _foreign(source, 0) else source.first_other_than(b"\0", 0, source.size)
    start = skip_tags(source, front, source.size)
    end = tags_start(source, start, source.size)
    search = Search(source, end, [], lambda place: _finder(source, place, end) is not None)
    finder = _finder(source, start, end)
    if finder is None and _foreign(source, start) is None:
        found = find_mpeg(source, start, min(end, start + _FRONT))
        if found >= 0:
            search.notes.append(f"{found - start} bytes before the first MPEG frame are no audio and were left out")
            start, finder = found, _mpeg
    parts: list[Part] = []
    while finder is not None and len(parts) < _MAX_PARTS:
        found_here = finder(search, start)
        parts += found_here
        if not found_here:
            break
        start = skip_tags(source, source.first_other_than(b"\0", parts[-1].end, end), end)
        finder = _finder(source, start, end) if start < end else None
    if not parts:
        what = _foreign(source, start)
        raise AudioError(
            f"{name}: found no audio that can be read{f': {what}' if what else ''}, wanted WAV, FLAC, OGG, MP3 or the "
            "like, whole: convert it, as in: ffmpeg -i INPUT OUTPUT.wav"
        )
    if start < end:
        search.notes.append(f"the last {end - start} bytes are no audio that is known and were left out")
    if len(parts) > 1:
        search.notes.append(f"{len(parts)} recordings are joined in this file; they were read one after another")
    return Parts(parts, search.notes)


def _finder(source: FileBytes, place: int, end: int) -> _Finder | None:
    """The function that finds the parts of what begins here, by its first bytes; None where nothing known does."""
    head = source.at(place, min(40, end - place))
    kind = head[8:12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and kind == b"WAVE":
        return chunks.riff_parts
    if head[:4] == b"FORM" and kind in (b"AIFF", b"AIFC"):
        return chunks.aiff_parts
    known: dict[bytes, _Finder] = {
        chunks.W64: chunks.w64_parts,
        b"caff": chunks.caf_parts,
        b".snd": chunks.au_parts,
        b"dns.": chunks.au_parts,
        b"fLaC": _flac,
        b"OggS": _ogg,
        **dict.fromkeys(_PLAIN, _plain),
    }
    for magic, finder in known.items():
        if head.startswith(magic):
            return finder
    if head[:4] == b"FORM" and kind in (b"8SVX", b"16SV"):
        return _plain
    return _mpeg if mpeg_begins(source, place, end) else None


def _foreign(source: FileBytes, start: int) -> str | None:
    """What a file is that is not read, as far as its first bytes show it."""
    head = source.at(start, 16)
    return next((what for at, magic, what, _ in _FOREIGN if head[at : at + len(magic)] == magic), None)


def _plain(search: Search, start: int) -> list[Part]:
    return [Part([(start, search.end)], search.end)]


def _mpeg(search: Search, start: int) -> list[Part]:
    """A part for each encoder's stream."""
    scan = scan_mpeg(search.source, start, search.end)
    if scan.n_junk:
        search.notes.append(f"{scan.n_junk} bytes between MPEG frames are no audio and were left out")
    for at, stream in enumerate(scan.streams):
        n, said = len(stream.places), stream.announced
        if said is not None and n < 0.99 * said:
            which = f"part {at + 1}: " if len(scan.streams) > 1 else ""
            search.notes.append(f"{which}{n} MPEG frames are there, {said} announced: the file may be truncated")
    last = search.end if search.end - scan.end < _REST else scan.end
    ends = [stream.start for stream in scan.streams[1:]] + [last] * bool(scan.streams)
    return [Part(one.segments(search.source), end, mpeg=one) for one, end in zip(scan.streams, ends, strict=True)]


def _ogg(search: Search, start: int) -> list[Part]:
    """A part for each link of the chain; FLAC as the file that lies in the pages."""
    scan = scan_ogg(search.source, start, search.end)
    if scan.cut or not (scan.links and scan.links[-1].ended):
        raise Truncated("its last page is missing")
    if scan.n_junk:
        search.notes.append(f"{scan.n_junk} bytes between Ogg pages are no audio and were left out")
    ends = [*(link.end for link in scan.links[:-1]), scan.end]
    return [
        Part(link.segments, end) if link.flac is None else Part(link.flac, end, "OGG", link.flac_frames)
        for link, end in zip(scan.links, ends, strict=True)
    ]


def _flac(search: Search, start: int) -> list[Part]:
    """The part up to the next file's first block: that name, and a STREAMINFO of 34 bytes, the last block or not."""
    source, end = search.source, search.end
    following = source.find(_FLAC_BEGINS, start + 4, end)
    behind = end if following < 0 else following
    front = -1 if behind == end else source.find(b"ID3", max(start, behind - _TAG_ROOM), behind)
    is_tag = front >= 0 and skip_tags(source, front, behind) == behind  # the next file's
    return [Part([(start, tags_start(source, start, front if is_tag else behind))], behind)]
