"""Mends that install something: the command line that works with the Python that runs, wherever edgese came from."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

import edgese
from edgese import errors
from edgese.errors import install_command, pip_command, printable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plain_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """edgese as it lies in Python's packages: no pyproject.toml beside it."""
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "edgese" / "errors.py"))


def came_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, object] | None) -> None:
    """What pip wrote of the origin of the distribution."""
    written = None if origin is None else json.dumps(origin)
    found = SimpleNamespace(read_text={"direct_url.json": written}.__getitem__)
    monkeypatch.setattr("importlib.metadata.distribution", {"edgese": found}.__getitem__)


def words(command: str) -> list[str]:
    python, *rest = shlex.split(command)
    assert python == sys.executable
    assert rest[:2] == ["-m", "pip"]
    return rest[2:]


def test_a_clone_is_installed_from_its_folder() -> None:
    assert Path(edgese.__file__).parents[1] == ROOT
    assert words(install_command("plot")) == ["install", "-e", f"{ROOT}[plot]"]
    assert words(install_command()) == ["install", "-e", str(ROOT)]


@pytest.mark.parametrize("extra", ["train", "export"])
def test_torch_comes_with_its_constraints(extra: str) -> None:
    constraints = ROOT / "constraints.txt"
    assert "torch==" in constraints.read_text()
    assert words(install_command(extra)) == ["install", "-c", str(constraints), "-e", f"{ROOT}[{extra}]"]


@pytest.mark.usefixtures("plain_install")
@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        (None, "edgese[plot]"),  # from a package index
        ({"url": "file:///my%20src/edgese", "dir_info": {}}, "/my src/edgese[plot]"),
        ({"url": "file:///dist/edgese.whl", "archive_info": {}}, "edgese[plot] @ file:///dist/edgese.whl"),
        (
            {"url": "https://example.org/e.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "edgese[plot] @ git+https://example.org/e.git@abc",
        ),
    ],
)
def test_a_plain_install_is_taken_from_where_it_came(
    origin: dict[str, object] | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    came_from(monkeypatch, origin)
    assert words(install_command("plot")) == ["install", wanted]


@pytest.mark.usefixtures("plain_install")
def test_torch_comes_with_the_constraints_of_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    came_from(monkeypatch, {"url": "file:///src", "dir_info": {}})
    assert words(install_command("train")) == ["install", "-c", "/src/constraints.txt", "/src[train]"]


@pytest.mark.usefixtures("plain_install")
def test_what_pip_did_not_install_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a board, where the modules lie in an unpacked archive."""

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert words(install_command("metrics")) == ["install", "edgese[metrics]"]


def test_names_that_a_shell_would_read_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/my venv/bin/python")
    assert pip_command("install", "a[b]") == "'/my venv/bin/python' -m pip install 'a[b]'"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),  # sets a terminal's title
        ("\x1b]52;c;aGk=\x07", r"\x1b]52;c;aGk=\x07"),  # and its clipboard
        ("\x9b31m\r\x08", r"\x9b31m\r\x08"),
        ("exe\u202egnp", r"exe\u202egnp"),  # turns what follows round
        ("\udcff", r"\udcff"),  # a byte of a name that is no UTF-8
        ("two\nlines\tand Zoë [b]name[/b] 名前", "two\nlines\tand Zoë [b]name[/b] 名前"),
    ],
)
def test_text_from_outside_steers_no_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_everything_that_commands_print_goes_through_it() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "edgese" / "cli").glob("*.py")}
    assert sources.pop("terminal.py").count("typer.echo(") == 1
    other_ways = re.compile(r"typer\.s?echo|(?<!console\.)\bprint\(|sys\.std(out|err)")
    found = [name for name, text in sources.items() if other_ways.search(text)]
    assert found == []
