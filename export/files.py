"""Regular files below a folder that comes from outside, and the SHA-256 of their bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from export import ExportError


def inner_file(folder: Path, name: str, mend: str) -> Path:
    """Path of a regular file that a list from outside names; it lies below `folder`, and no link leads to it.

    Raises:
        ExportError: the name leads outside, or is none; a link, a pipe, a device or a folder is there, or nothing.
    """
    relative = PurePosixPath(name)
    if not name.isprintable() or relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise ExportError(f"{folder}: names {name!r}, which lies outside, or is no file's name; do not use it")
    if relative.as_posix() != name:
        raise ExportError(f"{folder}: names {name!r}, wanted it in the plain form {relative.as_posix()!r}; {mend}")
    path = folder
    for part in relative.parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise ExportError(f"{path}: cannot be read ({error.strerror}); {mend}") from error
        if stat.S_ISLNK(mode):
            raise ExportError(f"{path}: found a link, wanted a file of its own: copy the whole with cp -rL; {mend}")
    if not stat.S_ISREG(mode):
        raise ExportError(f"{path}: found {_kind(mode)}, wanted a regular file; {mend}")
    return path


def sha256_of(path: Path, mend: str = "make it readable") -> str:
    """SHA-256 of a regular file's bytes; a link to one is followed.

    Raises:
        ExportError: it cannot be read, or is a pipe, a device or a folder; the message ends with the mend.
    """
    digest = hashlib.sha256()
    with _opened(path, mend) as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_bytes(path: Path, most_bytes: int, mend: str) -> bytes:
    """Bytes of a regular file that holds at most so many.

    Raises:
        ExportError: it cannot be read, is no regular file, or holds more.
    """
    with _opened(path, mend) as stream:
        content = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ExportError(f"{path}: found more than {most_bytes:,} bytes, wanted fewer; {mend}")
    return content


@contextlib.contextmanager
def _opened(path: Path, mend: str) -> Iterator[IO[bytes]]:
    """A regular file, open; without waiting for a pipe."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ExportError(f"{path}: found {_kind(mode)}, wanted a regular file; {mend}")
        with open(path, "rb", opener=_without_waiting) as stream:
            yield stream
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ExportError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); {mend}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Descriptor of a file; the pipe that has just taken the place of one does not keep its reader waiting."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")
