"""Pages against the repository: what they name exists, commands have the options they show, the README stays short."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from edgese.cli.app import OLD_NAMES, app

from .test_layout import FOLDERS, ORDER

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOP = (*FOLDERS, "tests", "benchmarks", "docs", "examples", "scripts", "containers")
MOST_LINES = 120

PATH = re.compile(rf"(?<![\w/.-])(?:{'|'.join(TOP)})/[\w./-]+")
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")

page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


@page
def test_paths_in_a_page_exist(page: Path) -> None:
    found = {match.rstrip("./") for match in PATH.findall(page.read_text())} - {"edgese/samples/noisy.enhanced.flac"}
    assert [path for path in found if not (ROOT / path).exists()] == []


@page
def test_links_in_a_page_lead_somewhere(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith("http")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_architecture_names_every_package_and_its_order() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree, order = text.partition("## Who imports whom")[0], re.findall(r"__main__ > [\w >\n]+errors", text)
    places = [name for name in ORDER if name not in ("__main__",)]
    assert [name for name in places if f" {name}/" not in tree and f" {name}.py" not in tree] == []
    assert [re.findall(r"\w+", line) for line in order] == [list(ORDER)]


def shown_commands(page: Path) -> list[str]:
    """Indented lines that run edgese, those that go on in the next line joined, without their comments."""
    text = page.read_text().replace("\\\n", " ")
    lines = (line.strip().removeprefix(".venv/bin/") for line in text.splitlines() if line.startswith("    "))
    return [line.partition(" #")[0] for line in lines if re.match(r"edgese [a-z-]", line) and "..." not in line]


@page
def test_commands_in_a_page_have_their_options(page: Path) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in shown_commands(page):
        words = shlex.split(line)[1:]
        if words[0] == "--plugin":
            words = words[2:]
        parameters = commands[words[0]].params
        known = {name for parameter in parameters for name in (*parameter.opts, *parameter.secondary_opts)}
        options = [word for word in words[1:] if word.startswith("-") and word != "-"]
        assert [option for option in options if option not in known] == [], line
        assert not any(parameter.hidden and set(parameter.opts) & set(options) for parameter in parameters), line


def test_the_pages_show_commands_of_every_kind() -> None:
    """The control: there is something to check."""
    shown = {shlex.split(line)[1] for page in PAGES for line in shown_commands(page)}
    assert {"enhance", "train", "export", "verify", "bench", "calibrate", "evaluate", "--plugin"} <= shown
    assert set(OLD_NAMES) == {"out", "size"}
