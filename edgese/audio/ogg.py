"""Pages of an Ogg file: its streams one after another, and FLAC taken out of them.

Pages: RFC 3533, section 6. FLAC in Ogg: RFC 9639, section 10.1, whose packets are a FLAC file cut into pieces, behind
nine bytes of the first one.
"""

from __future__ import annotations

import dataclasses
import struct

from edgese.audio.byte_view import FileBytes, Segment

_BEGINS, _ENDS = 2, 4  # flags of a page
_FLAC = b"\x7fFLAC"
_AUDIO = (_FLAC, b"\x01vorbis", b"OpusHead", b"Speex   ")  # what the first packet of a stream of sound begins with
_FLAC_HEAD = 9  # bytes of the first packet before the FLAC file itself: this name, version, number of headers


@dataclasses.dataclass
class OggLink:
    """What lies between one group of first pages and the next: one recording, of one stream or several."""

    start: int
    end: int
    segments: list[Segment]  # the pages of its first stream of sound; all where it has none
    flac: list[Segment] | None = None  # its FLAC, as a file of its own
    flac_frames: int | None = None  # samples of one channel in it, by its last page
    ended: bool = False  # its last page is marked as the last


@dataclasses.dataclass(frozen=True)
class OggScan:
    """Recordings of an Ogg file, and the bytes between its pages that are none."""

    links: list[OggLink]
    n_junk: int
    end: int
    cut: bool  # the last page is not whole


def scan_ogg(source: FileBytes, start: int, end: int) -> OggScan:
    """All pages from `start` on, where the first one stands, up to what is none and has none behind it."""
    links: list[OggLink] = []
    place, junk, begins_before = start, 0, False
    audio_serial: int | None = None
    while place < end:
        head = source.at(place, 27)
        if head[:5] != b"OggS\0":
            found = source.find(b"OggS\0", place + 1, end)
            if found < 0:
                break
            junk, place = junk + found - place, found
            continue
        lacing = source.at(place + 27, head[26]) if len(head) == 27 else b""
        body = place + 27 + len(lacing)
        behind = body + sum(lacing)
        if len(head) < 27 or len(lacing) < head[26] or behind > end:
            return OggScan(links, junk, place, cut=True)
        flags, (granule, serial) = head[5], struct.unpack_from("<qI", head, 6)
        begins = bool(flags & _BEGINS)
        if begins and not begins_before:
            links.append(OggLink(place, behind, []))
            audio_serial = None
        begins_before = begins
        if links:
            link = links[-1]
            link.end = behind
            if begins and audio_serial is None and source.at(body, 8).startswith(_AUDIO):
                audio_serial, link.segments = serial, []
                link.flac = [] if source.at(body, 5) == _FLAC else None
                body += _FLAC_HEAD
            if audio_serial is None or serial == audio_serial:
                link.ended = bool(flags & _ENDS)
                _append(link.segments, place, behind)
            if serial == audio_serial and link.flac is not None:
                link.flac.append((body, behind))
                link.flac_frames = granule if granule > 0 else link.flac_frames
        place = behind
    return OggScan(links, junk, place, cut=False)


def _append(segments: list[Segment], start: int, end: int) -> None:
    """Add a range, in one with the last where they touch."""
    last = segments[-1] if segments else b""
    if isinstance(last, tuple) and last[1] == start:
        segments[-1] = (last[0], end)
    else:
        segments.append((start, end))
