"""What is staged appears whole or not at all; what a killed process left is swept, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from export import staging
from export.staging import StagedFile, StagedFolder, check_place, keep_as, sweep, temporary_folder, write_whole

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def killed_while(program: str, folder: Path) -> None:
    """A process that runs `program` in `folder`, with staging's names, and is killed at its end."""
    code = (
        f"import os, signal\nfrom pathlib import Path\nfrom export.staging import *\n{program}\nos.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL


# Sweeping


@pytest.mark.parametrize(
    "program",
    [
        "a = StagedFile(Path('out'))",
        "a = StagedFolder(Path('.')); (a.path / 'x').write_text('x')",
        "Path('.edgese-00000000.partial').mkdir()",
        "Path('.edgese-00000000.partial').mkdir(); open('.edgese-00000000.partial/marker', 'w').close()",
    ],
    ids=["file", "folder", "folder before its marker", "folder before its mark"],
)
def test_what_a_killed_process_left_is_swept(program: str, tmp_path: Path) -> None:
    killed_while(program, tmp_path)
    (left,) = names(tmp_path)
    assert left.startswith(".edgese-")
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_the_next_one_that_stages_in_a_folder_sweeps_it(tmp_path: Path) -> None:
    killed_while("a = StagedFile(Path('out'))", tmp_path)
    write_whole(tmp_path / "other", b"x")
    assert names(tmp_path) == ["other"]


def test_what_a_live_process_works_on_is_not_swept(tmp_path: Path) -> None:
    with StagedFile(tmp_path / "out") as file, StagedFolder(tmp_path) as folder:
        sweep(tmp_path)
        assert file.path.exists()
        assert folder.path.is_dir()


def test_nothing_without_our_marker_is_ever_removed(tmp_path: Path) -> None:
    (tmp_path / "m.partial").mkdir()
    (tmp_path / "m.partial" / "thesis.txt").write_text("x")
    (tmp_path / ".edgese-notes.partial").write_text("x")
    (tmp_path / ".edgese-12345678.partial").mkdir()
    (tmp_path / ".edgese-12345678.partial" / "thesis.txt").write_text("x")
    (tmp_path / ".edgese-87654321.partial").mkdir()
    (tmp_path / ".edgese-87654321.partial" / "marker").write_text("mine")
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / ".edgese-aaaaaaaa.partial").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_temporary_folders_of_killed_processes_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}; a = temporary_folder(); a.__enter__()"
    killed_while(program, tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert [folder.parent.name] == names(tmp_path)
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert names(tmp_path) == []


# Files


def test_of_two_writers_one_is_refused(tmp_path: Path) -> None:
    """A check before a rename lets nearly all of them through."""
    published = []
    for number in range(50):
        target, barrier = tmp_path / f"out{number}", threading.Barrier(2)

        def write(text: bytes, target: Path = target, barrier: threading.Barrier = barrier) -> None:
            with StagedFile(target) as staged:
                os.write(staged.fd, text)
                barrier.wait()
                try:
                    staged.publish(replace=False)
                except FileExistsError:
                    return
                published.append((target, text))

        writers = [threading.Thread(target=write, args=(text,)) for text in (b"one", b"two")]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    assert len(published) == 50
    assert all(target.read_bytes() == text for target, text in published)


def test_a_link_that_leads_nowhere_is_not_written_through_unless_it_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with StagedFile(tmp_path / "link") as staged, pytest.raises(FileExistsError):
        staged.publish(replace=False)
    assert names(tmp_path / "real") == []
    with StagedFile(tmp_path / "link") as staged:
        staged.publish(replace=True)
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["out"]


def test_a_file_system_without_links_gives_names_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for wanted in (["out"], ["out"]):
        with StagedFile(tmp_path / "out") as staged:
            os.write(staged.fd, b"whole")
            if wanted == names(tmp_path):
                with pytest.raises(FileExistsError):
                    staged.publish(replace=False)
            elif not (tmp_path / "out").exists():
                staged.publish(replace=False)
        assert names(tmp_path) == wanted
        assert (tmp_path / "out").read_bytes() == b"whole"


@pytest.mark.parametrize(
    ("mode", "before", "wanted"),
    [(None, None, 0o644), (0o600, None, 0o600), (0o644, 0o600, 0o600), (0o600, 0o644, 0o600), (None, 0o664, 0o664)],
)
def test_a_file_is_no_more_open_than_what_it_is_made_of_or_replaces(
    mode: int | None, before: int | None, wanted: int, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    if before is not None:
        target.touch()
        target.chmod(before)
    umask = os.umask(0o022)
    try:
        with StagedFile(target, mode=mode) as staged:
            assert stat.S_IMODE(staged.path.stat().st_mode) & ~(0o666 if mode is None else mode) == 0
            staged.publish(replace=True)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == wanted


@pytest.mark.parametrize(
    "place", ["x" * 256, "file/out", "folder", "pipe"], ids=["a name too long", "below a file", "a folder", "a pipe"]
)
def test_a_place_that_no_file_can_have_is_refused_before_anything_is_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = names(tmp_path)
    with pytest.raises(OSError, match=r"too long|Not a directory|found a folder"):
        check_place(tmp_path / place)
    with pytest.raises(OSError, match=r"too long|Not a directory|found a folder"):
        StagedFile(tmp_path / place)
    assert names(tmp_path) == before


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append((tmp_path / "out").exists()))
    write_whole(tmp_path / "out", b"x")
    assert seen == [False, True]  # the file, then the folder that holds its name


def test_a_second_name_stays_with_what_was_there(tmp_path: Path) -> None:
    last, previous = tmp_path / "last", tmp_path / "previous"
    for content in (b"1", b"2", b"3"):
        write_whole(last, content)
        for _ in range(2):  # again, as by a run that was killed between the two
            keep_as(last, previous)
        assert previous.read_bytes() == content
    write_whole(last, b"4")
    assert (last.read_bytes(), previous.read_bytes(), names(tmp_path)) == (b"4", b"3", ["last", "previous"])


# Folders


def stage(parent: Path, content: str) -> StagedFolder:
    staged = StagedFolder(parent)
    (staged.path / "file").write_text(content)
    return staged


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "moved"])
def test_a_folder_takes_anothers_place(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(staging, "_exchange", lambda one, other: False)
    for content in ("old", "new"):
        with stage(tmp_path, content) as staged:
            staged.publish(tmp_path / "out", replace=True)
        assert names(tmp_path) == ["out"]
        assert (tmp_path / "out" / "file").read_text() == content


@pytest.mark.parametrize("taken", ["folder", "file", "link"])
def test_a_folder_takes_no_place_that_is_taken(taken: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    if taken == "folder":
        target.mkdir()
        (target / "letter").touch()
    elif taken == "file":
        target.touch()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with stage(tmp_path, "new") as staged, pytest.raises(OSError, match=r"exists|not empty|Not a directory"):
        staged.publish(target, replace=False)
    assert names(tmp_path) == ["out"]
    assert not (target / "file").exists()


def test_what_was_there_is_put_back_if_its_successor_did_not_come(tmp_path: Path) -> None:
    """Where folders cannot be exchanged, there is a moment without either."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("old")
    program = """
from export import staging
staging._exchange = lambda one, other: False
a = StagedFolder(Path('.'))
move = Path.rename
Path.rename = lambda one, other: move(one, other) if one.name == 'out' else os.kill(os.getpid(), 9)
a.publish(Path('out'), replace=True)
"""
    killed_while(program, tmp_path)
    assert "out" not in names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "file").read_text() == "old"
