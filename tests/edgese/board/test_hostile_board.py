"""A board that is broken, or somebody else's: whatever it sends, the desk says in one line what it found.

A program that EDGESE_SSH names stands for ssh and for the board behind it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgese.board import answers, session
from edgese.board.answers import parse_result
from edgese.board.denoiser import RemoteDenoiser
from edgese.board.link import Link, RemoteError
from edgese.board.session import Session, _Lines
from export.schema import SchemaError

# What such a board does once it has said that an agent is there: it reads nothing, and answers the same to everything.
BOARD = """\
import json, os, struct, sys

def send(kind, content):
    os.write(1, struct.pack(">cI", kind, len(content)) + content)

def answer(**values):
    send(b"A", json.dumps({"id": 1, **values}).encode())

print("edgese-agent 3 10", flush=True)
sys.stdin.buffer.readline()
"""
LOOK = {"python": "3.10.0", "modules": {"numpy": True}, "home": "/x", "there": False, "free": 9, "part": 0}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def does(program: str) -> None:
        (tmp_path / "ssh.py").write_text(
            f"{BOARD}{program}\nwhile os.read(0, 65536):\n    pass\n"
        )  # not gone before it was asked
        monkeypatch.setenv("EDGESE_SSH", shlex.join([sys.executable, str(tmp_path / "ssh.py")]))

    return does


@pytest.mark.parametrize(
    ("program", "found"),
    [
        ("os.write(1, b'O\\xff\\xff\\xff\\xff' + bytes(100))", "found a frame of kind b'O' with 4294967295 bytes"),
        ("os.write(1, b'Welcome to the board!')", "found a frame of kind b'W'"),
        ("send(b'A', b'[' * 100_000)", r"not JSON that can be read \(nested too deeply\)"),
        ("send(b'A', b'\\xff')", "not JSON"),
        ("send(b'A', b'[]')", "found a list of 0, wanted an object"),
        ("answer()", "lacks python, modules, home, there, free, part"),
        ("answer(id='1')", "id: found '1', wanted a whole number"),
        (f"answer(**{LOOK | {'free': 1e30}})", r"free: found 1e\+30, wanted a whole number"),
        (f"answer(**{LOOK | {'modules': ['numpy']}})", "modules: found a list of 1, wanted an object"),
        (f"answer(**{LOOK | {'more': 1}})", "more: unknown"),
        ("answer(error={})", "error: found an object of 0, wanted a text"),
    ],
)
def test_what_is_no_answer_is_one_line(board: Callable[[str], None], program: str, found: str) -> None:
    board(program)
    with (
        Link("board") as link,
        pytest.raises(RemoteError, match=f"^board: does not answer as .* agent does: .*{found}"),
    ):
        link.request("look")


def test_a_refusal_is_told_as_the_board_gives_it(board: Callable[[str], None]) -> None:
    board("answer(error='no')")
    with Link("board") as link, pytest.raises(RemoteError, match=r"^board: no$"):
        link.request("look")


FLOOD = "try:\n    while True: send({kind!r}, bytes(1 << 16))\nexcept OSError: pass"


@pytest.mark.parametrize(
    ("kind", "limit", "found"), [(b"O", "MOST_OUT", "printed by self-test"), (b"T", "MOST_ERR", "on stderr")]
)
def test_output_without_end_is_ended(
    board: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, kind: bytes, limit: str, found: str
) -> None:
    monkeypatch.setattr(session, limit, 1_000_000)
    board(f"answer(**{LOOK})\n" + FLOOD.format(kind=kind))
    with Session("board") as opened, pytest.raises(RemoteError, match=f"found more than 1.0 MB {found} there"):
        opened.run("self-test")


def test_a_file_without_end_is_ended(board: Callable[[str], None], tmp_path: Path) -> None:
    board(f"answer(**{LOOK})\n" + FLOOD.format(kind=b"D"))
    with Session("board") as opened, pytest.raises(RemoteError, match=r"found more than 0\.5 MB of clean\.wav there"):
        opened.fetch("clean.wav", tmp_path / "clean.wav", 500_000)
    assert (tmp_path / "clean.wav").stat().st_size <= 500_000


def test_more_confirmed_than_was_sent_is_refused(board: Callable[[str], None], tmp_path: Path) -> None:
    board(f"answer(**{LOOK})\nsend(b'O', b'{{\"have\": 4000}}')")
    (tmp_path / "noisy.wav").write_bytes(bytes(300))
    with (
        Session("board") as opened,
        pytest.raises(RemoteError, match=r"have: found 4000, wanted .* of 0 to 300"),
    ):
        opened.send(tmp_path / "noisy.wav", "noisy.wav")


def test_a_line_without_end_is_passed_on_in_pieces() -> None:
    told: list[str] = []
    lines = _Lines(told.append, len)
    for _ in range(100):
        lines.add(b"x" * 4096)
    assert max(map(len, told)) <= answers.MOST_LINE + 4096
    for _ in range(1000):
        lines.add(b"\n")
    assert len(lines.said) == answers.KEPT_LINES


def test_a_login_without_a_line_is_given_up(board: Callable[[str], None], tmp_path: Path) -> None:
    board("")
    (tmp_path / "ssh.py").write_text("import os, sys\nwhile True: os.write(1, b'x' * 4096)")
    with pytest.raises(RemoteError, match="nothing answers there"):
        Link("board")


@pytest.mark.parametrize(
    ("command", "printed", "found"),
    [
        ("runtimes", {"found": "all", "left_out": {}, "machine": {}}, "found: found 'all', wanted a list"),
        ("self-test", {"passed": True, "trials": [{}], "left_out": {}}, r"trials\[0\]: lacks graph"),
        ("build", {"engines": [], "failed": None}, "failed: found None, wanted a whole number"),
        ("bench", {}, "lacks machine, results"),
    ],
)
def test_a_result_of_another_form_is_refused(command: str, printed: dict[str, Any], found: str) -> None:
    with pytest.raises(SchemaError, match=found):
        parse_result(json.dumps(printed), command)


@pytest.mark.parametrize(
    ("frames", "channels", "rate_hz"), [(15_999, 1, 16_000), (16_000, 3, 16_000), (16_000, 1, 8_000)]
)
def test_a_recording_that_comes_back_otherwise_is_refused(
    tmp_path: Path, frames: int, channels: int, rate_hz: int
) -> None:
    class Desk:
        host = "board"

    denoiser = RemoteDenoiser.__new__(RemoteDenoiser)
    denoiser._session, denoiser._folder = Desk(), tmp_path  # type: ignore[assignment]
    soundfile.write(tmp_path / "noisy.wav", np.ones(16_000, np.float32), 16_000, "FLOAT")
    soundfile.write(tmp_path / "clean.wav", np.ones((frames, channels), np.float32), rate_hz, "FLOAT")
    with pytest.raises(RemoteError, match=rf"came back as {frames} samples of {channels} channels, {rate_hz} Hz"):
        denoiser._require_same_form(tmp_path / "noisy.wav", "a.flac")
    (tmp_path / "clean.wav").write_bytes(b"RIFF")
    with pytest.raises(RemoteError, match=r"came back as no WAV"):
        denoiser._require_same_form(tmp_path / "noisy.wav", "a.flac")


def test_a_command_line_for_ssh_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESE_SSH", 'ssh -o "x')
    with pytest.raises(RemoteError, match=r"EDGESE_SSH: found 'ssh -o \"x', which is no command line"):
        Link("board")
