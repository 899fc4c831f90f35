"""Bytes of a recording: read at any place, and put together anew from ranges of the file and from bytes of one's own.

A decoder that is given a `ByteView` sees one clean stream, whatever lies before, between and behind its parts in the
file: tags, a header whose sizes were never written, the recording that was joined to it.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections.abc import Sequence

import numpy as np

Segment = bytes | tuple[int, int]  # bytes of one's own, or start and end of a range of the file

_WINDOW = 1 << 18


class FileBytes:
    """Bytes of an open file, read at any place through a window: for headers that lie close together."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.size = fd, size
        self._start, self._window = 0, b""

    def at(self, place: int, n: int) -> bytes:
        """The `n` bytes from `place` on; fewer at the file's end, none beyond it or where the disk fails."""
        if place >= self.size or n <= 0:
            return b""
        if not self._start <= place <= place + n <= self._start + len(self._window):
            try:
                self._start, self._window = place, os.pread(self.fd, max(n, _WINDOW), place)
            except OSError:  # the decoder meets it as well, and says so
                return b""
        return self._window[place - self._start : place - self._start + n]

    def find(self, wanted: bytes | re.Pattern[bytes], start: int, end: int, most: int = 16) -> int:
        """Place of the first `wanted` that lies within start ... end; -1 if there is none.

        Args:
            wanted: bytes, or an expression that matches `most` of them at most.
        """
        pattern = wanted if isinstance(wanted, re.Pattern) else re.compile(re.escape(wanted))
        step = _WINDOW - most
        for place in range(start, end, step):
            found = pattern.search(self.at(place, min(step + most - 1, end - place)))
            if found:
                return place + found.start()
        return -1

    def first_other_than(self, byte: bytes, start: int, end: int) -> int:
        """Place of the first byte within start ... end that is another; `end` if there is none."""
        while start < end and (chunk := self.at(start, min(_WINDOW, end - start))):
            others = np.frombuffer(chunk, np.uint8) != ord(byte)
            if others.any():
                return start + int(others.argmax())
            start += len(chunk)
        return start


class ByteView:
    """Segments one after another, as the readable and seekable file that libsndfile wants."""

    def __init__(self, fd: int, segments: Sequence[Segment]) -> None:
        self._fd = fd
        self._segments = [segment for segment in segments if _length(segment)]
        self._starts = list(itertools.accumulate(map(_length, self._segments), initial=0))
        self.size = self._starts[-1]
        self.place = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence]
        self.place = max(0, origin + offset)
        return self.place

    def tell(self) -> int:
        return self.place

    def is_other_than(self, byte: bytes) -> bool:
        """True if another byte follows from here on; the place moves to the end or behind it."""
        buffer = bytearray(_WINDOW)
        while n := self.readinto(memoryview(buffer)):
            if buffer[:n].strip(byte):
                return True
        return False

    def readinto(self, buffer: memoryview) -> int:
        """Fill `buffer` as far as there are bytes; their number. A disk that fails ends the stream."""
        wanted, n_read = memoryview(buffer), 0
        while n_read < len(wanted) and self.place < self.size:
            index = bisect.bisect_right(self._starts, self.place) - 1
            segment, inside = self._segments[index], self.place - self._starts[index]
            room = wanted[n_read : n_read + _length(segment) - inside]
            if isinstance(segment, bytes):
                room[:] = segment[inside : inside + len(room)]
                n = len(room)
            else:
                try:
                    n = os.preadv(self._fd, [room], segment[0] + inside)
                except OSError:
                    n = 0
            if not n:
                break
            n_read += n
            self.place += n
        return n_read


def _length(segment: Segment) -> int:
    return len(segment) if isinstance(segment, bytes) else segment[1] - segment[0]
