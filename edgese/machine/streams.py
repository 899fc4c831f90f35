"""Standard output and error for Python alone: what libraries in C print there by themselves reaches neither.

libsndfile and its decoders print to both streams of the process, whatever their caller wants: `-o -` and `--json` would
hold it. `own_streams` gives Python descriptors of its own, and libraries standard error for both; `libraries_silenced`
takes that away from them as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_owned = False
_stdout_fd = 1
_silenced = 0  # callers inside
_kept_error = -1


def own_streams() -> None:
    """Give Python's stdout and stderr descriptors of their own; whatever else writes to stdout ends on stderr.

    Once, before threads and other processes are started. Nothing is changed where one of them is closed or no file.
    """
    global _owned, _stdout_fd
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if _owned or (sys.stdout.fileno(), sys.stderr.fileno()) != (1, 2):
            return
        out, error = _moved(sys.stdout, 1), _moved(sys.stderr, 2)
        os.dup2(2, 1)
    except (AttributeError, OSError, ValueError):  # None, closed, or replaced by what has no descriptor
        return
    sys.stdout, sys.stderr, _owned, _stdout_fd = out, error, True, out.fileno()


def stdout_fd() -> int:
    """The descriptor of standard output, for bytes."""
    return _stdout_fd


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """Nothing that libraries print gets anywhere; from any thread, once `own_streams` was called."""
    global _silenced, _kept_error
    if not _owned:
        yield
        return
    with _lock:
        if _silenced == 0:
            _kept_error = os.dup(2)
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.close(null)
        _silenced += 1
    try:
        yield
    finally:
        with _lock:
            _silenced -= 1
            if _silenced == 0:
                os.dup2(_kept_error, 1)
                os.dup2(_kept_error, 2)
                os.close(_kept_error)


def _moved(stream: object, fd: int) -> io.TextIOWrapper:
    """The same stream on another descriptor."""
    assert isinstance(stream, io.TextIOWrapper)
    return io.TextIOWrapper(
        open(os.dup(fd), "wb", buffering=-1 if fd == 1 else 0),  # noqa: PTH123 - a descriptor; it stays open
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through or fd == 2,
    )
