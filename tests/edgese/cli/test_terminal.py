"""Progress where no bar can be drawn: a line now and then, and none where it is not wanted."""

from __future__ import annotations

import time

import pytest

from edgese.cli import terminal

PATIENCE_S = 60.0  # until a line that is due at once has come, on a busy machine


def lines(capsys: pytest.CaptureFixture[str], wanted: str) -> str:
    """What stderr holds once `wanted` has come."""
    said, until = "", time.monotonic() + PATIENCE_S
    while wanted not in said and time.monotonic() < until:
        said += capsys.readouterr().err
        time.sleep(0.01)
    return said


def test_progress_is_told_in_lines_where_no_bar_can_be_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(terminal, "NEXT_LINE_S", 0.0)
    monkeypatch.delenv("EDGESE_PROGRESS", raising=False)
    with terminal.progress_bar(hidden=False) as bar:
        count = terminal.counter(bar, "scoring", "files")
        count(1, 40)
        assert "scoring: 1/40 files\n" in lines(capsys, "1/40 files\n")
        time.sleep(0.01)
        count(2, 40)
        assert "left\n" in lines(capsys, "left\n")


@pytest.mark.parametrize(("hidden", "setting"), [(True, "1"), (False, "0")])
def test_no_line_is_written_where_none_is_wanted(
    hidden: bool, setting: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "_progress_lines", None)  # would fail if it were called
    monkeypatch.setenv("EDGESE_PROGRESS", setting)
    with terminal.progress_bar(hidden=hidden) as bar:
        bar.add_task("scoring", total=2)
    assert capsys.readouterr().err == ""
