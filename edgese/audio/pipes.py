"""Audio from standard input and to standard output, spooled through files, as headers need seeking."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

from edgese.atomic_file import shown
from edgese.errors import AudioError
from edgese.machine.streams import stdout_fd


def spool_stdin(path: Path, stop: threading.Event) -> None:
    """Copy standard input into a file until it ends or `stop` is set: a header must be read before what follows it.

    Raises:
        AudioError: standard input is a terminal or closed, or the disk is full.
    """
    try:
        if os.isatty(0):
            raise AudioError("stdin: found a terminal, wanted audio piped in, as in: edgese enhance - < noisy.wav")
        with path.open("wb") as spool:
            while not stop.is_set():
                if select.select([0], [], [], 0.2)[0]:
                    if not (chunk := os.read(0, 1 << 20)):
                        return
                    spool.write(chunk)
    except OSError as error:
        raise AudioError(f"stdin: cannot be copied to {shown(path.parent)} ({error.strerror or error})") from error


def send_to_stdout(path: Path) -> None:
    """Copy a finished file to standard output.

    Raises:
        AudioError: the reader has closed the pipe, or the disk is full.
    """
    try:
        with path.open("rb") as source:
            while chunk := source.read(1 << 20):
                while chunk:
                    chunk = chunk[os.write(stdout_fd(), chunk) :]
    except OSError as error:
        raise AudioError(f"stdout: cannot be written ({error.strerror or error}); it is not whole") from error
