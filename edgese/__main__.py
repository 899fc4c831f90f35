"""Entry of `python -m edgese` and of the `edgese` command; a user's error is one line and exit code 1."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from types import FrameType

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # of the machine, never a bug


def main() -> None:
    """Run the command line. Exit code 0: done; 1: failed, or a check was not met; 2: wrong usage; 130: Ctrl-C.

    Bugs keep their traceback.
    """
    from edgese.cli.app import app
    from edgese.machine.streams import own_streams

    own_streams()
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = _interrupt_again
    try:
        app(prog_name="edgese")
    except SystemExit as end:
        if interrupted and end.code:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # else one more would end the interpreter at its end
            sys.stderr.write("error: interrupted; nothing was left of what was not done\n")
        raise
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}: free space there or in the folder for temporary files (TMPDIR)")
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        from edgese.errors import printable

        sys.exit(f"error: {printable(str(error))}")


def _drop_output() -> None:
    """Lose what stdout's buffer still holds, as stdout may be what is full: else it fails once more at the end."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Let Ctrl-C come once more that came where Python ignores errors: in a destructor, in a C library's callback."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    import _thread
    import threading

    threading.Timer(0.1, _thread.interrupt_main).start()  # when that place is left


def _user_errors() -> tuple[type[Exception], ...]:
    from calib import CalibrationError
    from edgese.errors import EdgeseError
    from export import ExportError
    from runtimes.base import RuntimeUnavailable

    return EdgeseError, ExportError, CalibrationError, RuntimeUnavailable


if __name__ == "__main__":
    main()
