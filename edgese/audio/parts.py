"""Recordings within a file, and what is known while they are looked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from edgese.audio.byte_view import FileBytes, Segment
from edgese.audio.mpeg import MpegStream


class Truncated(Exception):  # noqa: N818 - the reader makes its error of it
    """The file ends before its header says; the message says where."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One recording within a file, as bytes that the decoder can read from end to end."""

    segments: Sequence[Segment]
    end: int  # in the file, behind it
    container: str | None = None  # libsndfile's name, where the decoder sees another one than the file has
    n_frames: int | None = None  # of one channel, where the file says so and the decoder's bytes do not
    mpeg: MpegStream | None = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """Recordings that a file holds, one after another, and what was found odd in it, a line each."""

    parts: list[Part]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Search:
    """A file that is searched for its parts."""

    source: FileBytes
    end: int  # before the tags at the file's end
    notes: list[str]
    begins: Callable[[int], bool]  # True if something known begins at this place
