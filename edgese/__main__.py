"""Entry of `python -m edgese` and of the `edgese` command; a user's error is one line and exit code 1."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line. Exit code 0: done; 1: failed, or a check was not met; 2: wrong usage.

    Bugs keep their traceback.
    """
    from edgese.cli.app import app
    from edgese.machine.streams import own_streams

    own_streams()
    try:
        app(prog_name="edgese")
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        sys.exit(f"error: {error}")


def _user_errors() -> tuple[type[Exception], ...]:
    from calib import CalibrationError
    from edgese.errors import EdgeseError
    from export import ExportError
    from runtimes.base import RuntimeUnavailable

    return EdgeseError, ExportError, CalibrationError, RuntimeUnavailable


if __name__ == "__main__":
    main()
