"""What `make kill` looks at after a kill, with doubles of commands that leave what they like."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from .kill_moments import Runs, Subject, Torn, files_below, kill_at_moments


class Double:
    """Stands in for the Python that commands run in: writes the file `out`, and is killed where it is asked to be."""

    def __init__(self, killed: Callable[[Path], object], ended: Callable[[Path], object] = lambda work: None) -> None:
        self.killed, self.ended = killed, ended

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: bytes, timeout_s: float
    ) -> subprocess.CompletedProcess[bytes]:
        found = re.search(r"graphs = '[^']*', (\d+), '([^']*)'", arguments[1])
        assert found is not None
        work = cwd / "work"
        if timeout_s < 100 or int(found[1]):
            self.killed(work)
            return subprocess.CompletedProcess(arguments, -9, b"", b"")
        for left in work.glob(".edgese-*"):
            left.unlink()
        (work / "out").write_text("whole")
        self.ended(work)
        if found[2]:
            Path(found[2]).write_text("7")
        return subprocess.CompletedProcess(arguments, 0, b"", b"")


def kills(double: Double, folder: Path) -> object:
    (folder / "work").mkdir()

    def check_whole(work: Path) -> None:
        assert (work / "out").read_text() == "whole"

    subject = Subject("double", ["write"], folder / "work", check_whole, files_below)
    return kill_at_moments(Runs(subject, folder, double), 6, random.Random(0))


def test_what_is_as_it_must_be_passes(tmp_path: Path) -> None:
    count = kills(Double(lambda work: (work / ".edgese-00000000.partial").touch()), tmp_path)
    assert vars(count) | {"left": 0} == {
        **{"in_time": 3, "at_a_change": 3, "other_end": 0, "ended_before": 0, "ends": 2, "left": 0}
    }
    assert vars(count)["left"] > 0


@pytest.mark.parametrize(
    ("double", "message"),
    [
        (Double(lambda work: (work / "out").write_text("who")), "AssertionError"),
        (Double(lambda work: (work / "out").unlink()), "FileNotFoundError"),
        (Double(lambda work: (work / "rest").touch()), "not those of an undisturbed run"),
        (Double(lambda work: None, lambda work: (work / ".edgese-0.partial").touch()), "still there after a whole run"),
        (Double(lambda work: None, lambda work: (work.parent / "tmp/x").touch()), "tmp/x is still there"),
        (Double(lambda work: None, lambda work: (work / str(random.random())).touch()), "two undisturbed runs differ"),
    ],
    ids=["torn", "gone", "an orphan", "not swept", "left in the temporary folder", "another result"],
)
def test_what_is_not_is_noticed(double: Double, message: str, tmp_path: Path) -> None:
    with pytest.raises(Torn, match=message):
        kills(double, tmp_path)
