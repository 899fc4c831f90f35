"""The command line run in a process of its own, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]

Done = subprocess.CompletedProcess[bytes]


def run_python(arguments: Iterable[object], cwd: Path, stdin: bytes = b"", path: Iterable[Path] = ()) -> Done:
    """A fresh interpreter in `cwd` that finds this tree's packages, and before them what lies in `path`."""
    places = os.pathsep.join(map(str, (*path, ROOT)))
    settings = {"PYTHONPATH": places, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | settings, input=stdin, capture_output=True, timeout=300, check=False
    )


def edgese(*arguments: object, cwd: Path, code: int = 0, stdin: bytes = b"", path: Iterable[Path] = ()) -> Done:
    """`python -m edgese` with an exit code that is checked; whatever it is, nobody is shown a traceback."""
    done = run_python(["-m", "edgese", *arguments], cwd, stdin, path)
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
