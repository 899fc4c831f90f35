"""What a recording says of itself: title, artist, comment and the like; a broadcast recorder's time, cue points, loops.

Texts go from any format to any that has them. Chunks of a WAV (`bext` with its time reference, `iXML`, `cue ` and its
labels, `smpl`) go to a WAV as they are: the output has the same rate and length, so their places stay true. What cannot
be kept is named.
Sizes: RIFF specification (INFO list), EBU Tech 3285 (bext), id3.org (ID3v2.3 and 2.4, text frames), FLAC format.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from edgese.audio.byte_view import FileBytes
from edgese.audio.libsndfile import SoundFileError

TEXTS = ("title", "artist", "album", "comment", "date", "genre", "tracknumber", "copyright", "license")
WITH_CHUNKS = ("WAV", "WAVEX", "RF64")  # containers

_MOST_CHUNKS = 1000
_MOST_BYTES = 4 << 20  # of all chunks together, and of a tag
_MOST_TEXT = 1 << 14  # characters
_KEPT = {
    b"bext": "the broadcast chunk (bext)", b"iXML": "iXML", b"axml": "axml", b"cue ": "cue points", b"smpl": "loops",
    b"inst": "instrument data", b"LIST": "texts and labels", b"_PMX": "XMP", b"id3 ": "an ID3 tag",
    b"ID3 ": "an ID3 tag",
}  # fmt: skip
_INFO = {
    b"INAM": "title", b"IART": "artist", b"IPRD": "album", b"ICMT": "comment", b"ICRD": "date", b"IGNR": "genre",
    b"ITRK": "tracknumber", b"IPRT": "tracknumber", b"ICOP": "copyright",
}  # fmt: skip
_ID3 = {
    b"TIT2": "title", b"TPE1": "artist", b"TALB": "album", b"COMM": "comment", b"TDRC": "date", b"TYER": "date",
    b"TCON": "genre", b"TRCK": "tracknumber", b"TCOP": "copyright",
}  # fmt: skip
_ENCODINGS = ("latin-1", "utf-16", "utf-16-be", "utf-8")  # by the first byte of an ID3 frame
_PICTURE = "the cover picture"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of a recording.

    Attributes:
        texts: by `TEXTS`.
        chunks: of a WAV, whole and padded, by name, in their order.
        others: what there is besides, in words; no output has it.
    """

    texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    others: tuple[str, ...] = ()


def read_metadata(source: FileBytes, sound_file: Any) -> Metadata:
    """Metadata of a file, as far as it can be read; damaged metadata is none.

    Args:
        sound_file: a `soundfile.SoundFile` open on the file's sound.
    """
    head = source.at(0, 12)
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE":
        return _of_riff(source)
    try:
        texts = {name: _clean(text) for name, text in sound_file.copy_metadata().items() if name in TEXTS}
    except (SoundFileError, UnicodeDecodeError):
        texts = {}
    others = []
    if head[:3] == b"ID3":
        found, has_picture = _of_id3(source.at(0, _MOST_BYTES))
        texts |= found
        others += [_PICTURE] * has_picture
    elif head[:4] == b"fLaC":
        kinds = set(_flac_blocks(source))
        others += [what for kind, what in ((5, "the cue sheet"), (6, _PICTURE)) if kind in kinds]
    return Metadata({name: text for name, text in texts.items() if text}, (), tuple(others))


def write_texts(sound_file: Any, texts: Mapping[str, str]) -> None:
    """Set the texts of a file that is open for writing and has no samples yet, as far as its format has them."""
    for name, text in texts.items():
        with contextlib.suppress(SoundFileError):
            setattr(sound_file, name, text)


def append_chunks(fd: int, chunks: tuple[tuple[bytes, bytes], ...]) -> bool:
    """Add chunks behind the samples of a finished WAV; False, and nothing is changed, where its header has no room.

    Raises:
        OSError: the disk is full.
    """
    end = os.lseek(fd, 0, os.SEEK_END)
    added = b"\0" * (end % 2) + b"".join(chunk for _, chunk in chunks)
    whole = end + len(added) - 8
    if os.pread(fd, 4, 0) == b"RF64":
        place, size = 20, struct.pack("<Q", whole)
    elif whole < 1 << 32:
        place, size = 4, struct.pack("<I", whole)
    else:
        return False
    written = 0
    while written < len(added):
        written += os.pwrite(fd, added[written:], end + written)
    os.pwrite(fd, size, place)
    return True


def in_words(names: list[bytes]) -> list[str]:
    """Chunks as a message names them, each once."""
    return list(dict.fromkeys(_KEPT[name] for name in names))


def _of_riff(source: FileBytes) -> Metadata:
    texts: dict[str, str] = {}
    chunks: list[tuple[bytes, bytes]] = []
    n_bytes, too_large = 0, []
    for name, place, size in _riff_chunks(source):
        if name not in _KEPT:
            continue
        n_bytes += size
        if n_bytes > _MOST_BYTES:
            too_large.append(name)
            n_bytes -= size
            continue
        body = source.at(place, size)
        chunks.append((name, name + struct.pack("<I", size) + body + b"\0" * (size % 2)))
        if name == b"LIST" and body[:4] == b"INFO":
            texts |= _of_info(body[4:])
    return Metadata(texts, tuple(chunks), tuple(f"{what}, too large" for what in in_words(too_large)))


def _riff_chunks(source: FileBytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and size of the chunks that are whole."""
    place, long_size = 12, 0
    for _ in range(_MOST_CHUNKS):
        head = source.at(place, 8)
        if len(head) < 8:
            return
        name, size = head[:4], struct.unpack("<I", head[4:])[0]
        if name == b"ds64":
            long_size = int.from_bytes(source.at(place + 16, 8), "little")
        if name == b"data" and size == 0xFFFFFFFF and long_size:
            size = long_size
        if place + 8 + size > source.size:
            return
        yield name, place + 8, size
        place += 8 + size + size % 2


def _of_info(body: bytes) -> dict[str, str]:
    texts, place = {}, 0
    while place + 8 <= len(body):
        name, size = body[place : place + 4], struct.unpack("<I", body[place + 4 : place + 8])[0]
        raw = body[place + 8 : place + 8 + size]
        if name in _INFO:
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                text = raw.decode("latin-1")
            texts[_INFO[name]] = _clean(text)
        place += 8 + size + size % 2
    return {name: text for name, text in texts.items() if text}


def _of_id3(tag: bytes) -> tuple[dict[str, str], bool]:
    """Texts of an ID3v2.3 or 2.4 tag, and whether it holds a picture; of other versions, and unsynchronised, none."""
    if len(tag) < 10 or tag[3] not in (3, 4) or tag[5] & 0x80:
        return {}, False
    end, place = min(len(tag), 10 + _synchsafe(tag[6:10])), 10
    if tag[5] & 0x40:  # an extended header, whose size includes itself in 2.4 only
        place += _synchsafe(tag[10:14]) if tag[3] == 4 else 4 + int.from_bytes(tag[10:14], "big")
    texts: dict[str, str] = {}
    has_picture = False
    while place + 10 <= end and tag[place]:
        name, raw_size = tag[place : place + 4], tag[place + 4 : place + 8]
        size = _synchsafe(raw_size) if tag[3] == 4 else int.from_bytes(raw_size, "big")
        body = tag[place + 10 : min(end, place + 10 + size)]
        has_picture |= name == b"APIC"
        if name in _ID3 and body and body[0] < len(_ENCODINGS):
            text = (body[4:] if name == b"COMM" else body[1:]).decode(_ENCODINGS[body[0]], "replace")
            if name == b"COMM":
                text = text.partition("\0")[2]  # behind its description
            texts.setdefault(_ID3[name], _clean(text.lstrip("\ufeff")))
        place += 10 + size
    return {name: text for name, text in texts.items() if text}, has_picture


def _synchsafe(raw: bytes) -> int:
    """An ID3 size of seven bits a byte."""
    return sum((byte & 0x7F) << 7 * at for at, byte in enumerate(reversed(raw)))


def _flac_blocks(source: FileBytes) -> Iterator[int]:
    """Kinds of a FLAC's metadata blocks."""
    place = 4
    for _ in range(_MOST_CHUNKS):
        head = source.at(place, 4)
        if len(head) < 4:
            return
        yield head[0] & 0x7F
        if head[0] & 0x80:
            return
        place += 4 + int.from_bytes(head[1:], "big")


def _clean(text: str) -> str:
    """One line of text as a tag holds it, up to the first NUL."""
    return text.partition("\0")[0].strip()[:_MOST_TEXT]
