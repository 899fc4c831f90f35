"""The command line run in a process of its own, as a user would."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .warm_python import WarmPython

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 300.0

Done = subprocess.CompletedProcess[bytes]


@functools.cache
def _warm_python() -> WarmPython:
    return WarmPython(str(ROOT))


def run_python(
    arguments: Iterable[object], cwd: Path, stdin: bytes = b"", path: Iterable[Path] = (), *, cold: bool = False
) -> Done:
    """An interpreter in `cwd` that finds this tree's packages, and before them what lies in `path`.

    A fork of one that has its libraries imported already where that makes no difference; with `cold`, a fresh one.
    """
    command = [str(argument) for argument in arguments]
    places = os.pathsep.join(map(str, (*path, ROOT)))
    environment = os.environ | {"PYTHONPATH": places, "COLUMNS": "200", "NO_COLOR": "1", "EDGESE_PROGRESS": "0"}
    if not cold and _warm_python().takes(command, environment):
        return _warm_python().run(command, cwd, environment, stdin, TIMEOUT_S)
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def edgese(
    *arguments: object,
    cwd: Path,
    code: int = 0,
    stdin: bytes = b"",
    path: Iterable[Path] = (),
    cold: bool = False,
) -> Done:
    """`python -m edgese` with an exit code that is checked; whatever it is, nobody is shown a traceback."""
    done = run_python(["-m", "edgese", *arguments], cwd, stdin, path, cold=cold)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert done.returncode == code, done.stderr.decode()
    return done


def one_error(done: Done) -> str:
    """The one line that a failed command leaves on stderr; stdout is empty."""
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: ")
    return line


def parsed(text: bytes) -> Any:
    """JSON as its standard has it: neither NaN nor Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)
