"""The entry of the command line: how a command ends that the user or the machine has broken off."""

from __future__ import annotations

from pathlib import Path

import pytest

from .helpers.command_line import run_python

PROGRAM = """
import errno, os, signal, sys, time
import typer
import edgese.cli.app
from edgese.__main__ import main

class Trap:
    def __del__(self):  # Python ignores errors here
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

app = typer.Typer()

@app.command()
def command():
    {body}
    print("done")

edgese.cli.app.app = app
sys.argv[1:] = []
main()
"""


@pytest.mark.parametrize(
    "body",
    ["os.kill(os.getpid(), signal.SIGINT); time.sleep(10)", "Trap(); time.sleep(10)"],
    ids=["anywhere", "where Python ignores errors"],
)
def test_ctrl_c_ends_a_command_with_a_word(body: str, tmp_path: Path) -> None:
    done = run_python(["-c", PROGRAM.format(body=body)], tmp_path)
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr.decode() == "error: interrupted; nothing was left of what was not done\n"


def test_a_full_disk_is_one_line_wherever_it_is_met(tmp_path: Path) -> None:
    body = "raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/place/file')"
    done = run_python(["-c", PROGRAM.format(body=body)], tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("error: /place/file: No space left on device: free space there")


def test_bugs_keep_their_traceback(tmp_path: Path) -> None:
    done = run_python(["-c", PROGRAM.format(body="raise OSError(errno.ENOENT, 'a bug', 'x')")], tmp_path)
    assert done.returncode == 1
    assert b"Traceback" in done.stderr
