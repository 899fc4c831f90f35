"""A few hundred inputs of `make fuzz`, and a reader at fault, which it must find."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .run import ROOT, work
from .targets import TARGETS, Target, input_of, outcome

N_INPUTS = {"agent": 60, "results": 60, "audio": 30, "device-wav": 30, "manifest": 6, "graph": 6, "weights": 6}


@pytest.mark.parametrize("name", TARGETS)
def test_what_comes_from_outside_is_read_or_refused(name: str, tmp_path: Path) -> None:
    target = TARGETS[name](tmp_path)
    found = [outcome(target, input_of(name, target, 0, index)) for index in range(N_INPUTS.get(name, 25))]
    assert "refused" in found


def test_an_input_is_made_again_by_its_number(tmp_path: Path) -> None:
    target = TARGETS["npz"](tmp_path)
    assert input_of("npz", target, 3, 5) == input_of("npz", target, 3, 5) != input_of("npz", target, 3, 6)


def faulty(folder: Path) -> Target:
    """A reader that raises what is no refusal for one input in two."""

    def read(content: bytes) -> None:
        if content == b"\1":
            raise KeyError("sample_rate_hz")

    return Target(lambda rng: bytes([rng.randrange(2)]), read, (ValueError,))


def test_what_is_no_refusal_is_told_with_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    work("faulty", 0, 0, 60, 20, faulty)
    lines = capfd.readouterr().out.splitlines()
    wrong = sum(random.Random(f"0 faulty {index}").randrange(2) for index in range(20))
    assert sum("KeyError: 'sample_rate_hz' in test_fuzz.py, line" in line for line in lines) == wrong > 0
    assert f'"read": {20 - wrong}' in lines[-1]


HANGS = """
import time
from tests.fuzz import run, targets
run.LIMIT_S = 1
run.work("hangs", 0, 0, 60, 1, lambda folder: targets.Target(lambda rng: b"", lambda content: time.sleep(1.5), ()))
"""


def test_what_takes_too_long_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, timeout=100, check=False)
    assert done.returncode == -signal.SIGALRM
    assert done.stdout.splitlines()[-1] == b'{"at": 0}'
