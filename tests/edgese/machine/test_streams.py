"""Standard output for Python alone: what libraries print reaches neither it nor, on request, standard error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import os, sys, threading
from edgese.machine.streams import libraries_silenced, own_streams, stdout_fd
own_streams()
own_streams()
os.write(1, b"printf|")
os.write(2, b"perror|")
with libraries_silenced(), libraries_silenced():
    os.write(1, b"lost|")
    os.write(2, b"lost|")
    print("warned|", end="", file=sys.stderr)
os.write(2, b"again|")
print("result|", end="", flush=True)
os.write(stdout_fd(), b"bytes|")
"""


def test_only_python_writes_to_its_streams() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == b"result|bytes|"
    assert done.stderr == b"printf|perror|warned|again|"


def test_nothing_is_moved_where_stdout_is_closed() -> None:
    script = (
        "import sys; from edgese.machine.streams import own_streams, stdout_fd; own_streams(); "
        "print(stdout_fd(), file=sys.stderr)"
    )
    done = subprocess.run(f"{sys.executable} -c '{script}' >&-", shell=True, cwd=ROOT, capture_output=True, check=True)
    assert done.stderr == b"1\n"
