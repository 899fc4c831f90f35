"""Tags around the sound of a file: ID3v1, ID3v2, APE and Lyrics3, wherever programs put them.

Sizes: id3.org (ID3v2.4 structure, sections 3.1 and 3.4; Lyrics3 v2), wiki.hydrogenaud.io (APE tags header).
"""

from __future__ import annotations

from edgese.audio.byte_view import FileBytes


def tag_end(source: FileBytes, place: int, end: int) -> int | None:
    """End of the tag that begins here; None if none does."""
    head = source.at(place, 32)
    if head[:3] == b"ID3" and len(head) >= 10 and head[3] < 0xFF and max(head[6:10]) < 0x80:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return min(end, place + 10 + size + (10 if head[5] & 0x10 else 0))
    if head[:8] == b"APETAGEX" and len(head) == 32:
        is_footer = not head[23] & 0x20  # of flags, little endian: this is the header
        return min(end, place + 32 + (0 if is_footer else int.from_bytes(head[12:16], "little")))
    if head[:3] == b"TAG":
        return min(end, place + 128)
    if head[:11] == b"LYRICSBEGIN":
        found = source.find(b"LYRICS200", place, end)
        return None if found < 0 else found + 9
    return None


def skip_tags(source: FileBytes, place: int, end: int) -> int:
    """Place behind the tags, one after another, that begin here."""
    while (behind := tag_end(source, place, end)) is not None and behind > place:
        place = source.first_other_than(b"\0", behind, end)  # ID3v2 may be padded beyond its size
    return place


def tags_start(source: FileBytes, start: int, end: int) -> int:
    """Place where the tags begin that end a file; `end` if there are none."""
    while True:
        found = end
        if end - start >= 128 and source.at(end - 128, 3) == b"TAG":
            found = end - 128
        elif end - start >= 32 and (foot := source.at(end - 32, 32))[:8] == b"APETAGEX":
            found = end - int.from_bytes(foot[12:16], "little") - (32 if foot[23] & 0x80 else 0)
        elif end - start >= 15 and source.at(end - 9, 9) == b"LYRICS200" and source.at(end - 15, 6).isdigit():
            found = end - 15 - int(source.at(end - 15, 6))
        if found == end or found < start:
            return end
        end = found
