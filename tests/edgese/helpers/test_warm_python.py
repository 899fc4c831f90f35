"""Forks of the warm Python against fresh interpreters: whatever a caller can see is the same."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .command_line import ROOT, Done, run_python
from .warm_python import WarmPython

PROGRAMS = {
    "streams and arguments": "import sys; print(sys.argv, sys.stdin.read()); print('aside', file=sys.stderr)",
    "place": "import os, sys; print(os.getcwd(), sys.orig_argv, __name__, __spec__, sys.path)",
    "environment": "import os; print(sorted((name, value) for name, value in os.environ.items() if name != '_'))",
    "exit code": "raise SystemExit(7)",
    "last words": "raise SystemExit('told')",
    "last deeds": "import atexit, sys; atexit.register(print, 'at exit'); sys.exit(-1)",
    "threads end first": "import threading, time; threading.Timer(0.1, print, ['late']).start(); print('early')",
    "signal": "import os; os.kill(os.getpid(), 9)",
    "unread input": "import os; os.close(0)",
}


def same(warm: Done, cold: Done) -> None:
    assert (warm.args, warm.returncode, warm.stdout, warm.stderr) == (
        cold.args,
        cold.returncode,
        cold.stdout,
        cold.stderr,
    )


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_fork_is_like_a_fresh_process(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SETTING", "of this test")
    command = ["-c", program, "one", "two words", "drei \N{LATIN SMALL LETTER U WITH DIAERESIS}"]
    stdin = b"in" * 100_000
    same(run_python(command, tmp_path, stdin), run_python(command, tmp_path, stdin, cold=True))


def test_a_module_of_the_working_folder_runs_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "its_own.py").write_text("import sys; print(sys.argv, sys.path, __name__, __spec__.name); sys.exit(3)")
    command = ["-m", "its_own", "argument"]
    same(run_python(command, tmp_path), run_python(command, tmp_path, cold=True))


def test_processes_that_a_command_spawns_find_it(tmp_path: Path) -> None:
    (tmp_path / "spawns.py").write_text(
        "import multiprocessing\n"
        "def square(x): return x * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool: print(pool.map(square, [2, 3]))\n"
    )
    done = run_python(["-m", "spawns"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"[4, 9]\n", b"")


def test_output_that_cannot_be_written_fails_as_it_would(tmp_path: Path) -> None:
    program = "import os; os.close(1); os.open('/dev/full', os.O_WRONLY); print('lost')"
    warm, cold = (run_python(["-c", program], tmp_path, cold=cold) for cold in (False, True))
    assert warm.returncode == cold.returncode != 0
    assert warm.stderr.splitlines()[-1] == cold.stderr.splitlines()[-1]


def test_two_commands_draw_other_random_numbers(tmp_path: Path) -> None:
    drawn = {run_python(["-c", "import random; print(random.random())"], tmp_path).stdout for _ in range(2)}
    assert len(drawn) == 2


def test_an_interrupt_ends_it_as_a_signal_does(tmp_path: Path) -> None:
    for cold in (False, True):
        done = run_python(["-c", "import os, signal; os.kill(os.getpid(), signal.SIGINT)"], tmp_path, cold=cold)
        assert done.returncode == -2
        assert done.stderr.endswith(b"KeyboardInterrupt\n")


def test_nothing_of_ours_is_imported_and_nothing_of_one_command_is_left_to_the_next(tmp_path: Path) -> None:
    run_python(["-c", "import edgese, os, sys; os.environ['LEFT'] = sys.left = 'over'"], tmp_path)
    ours = "{'edgese', 'export', 'calib', 'runtimes', 'tests'} & set(sys.modules)"
    done = run_python(["-c", f"import os, sys; print({ours}, 'LEFT' in os.environ, hasattr(sys, 'left'))"], tmp_path)
    assert done.stdout == b"set() False False\n"


def test_a_process_that_hangs_is_killed(tmp_path: Path) -> None:
    server = WarmPython(str(ROOT), libraries=())
    try:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            server.run(["-c", "print(1, flush=True); input(); import time; time.sleep(600)"], tmp_path, {}, b"\n", 1.0)
        assert caught.value.stdout in (b"1\n", b"")
        assert server.run(["-c", "print(2)"], tmp_path, {}, b"", 60.0).stdout == b"2\n"
    finally:
        server.close()


@pytest.mark.parametrize("name", ["PYTHONPATH", "OMP_NUM_THREADS"])
def test_what_libraries_read_at_import_takes_a_fresh_process(name: str) -> None:
    server = WarmPython(str(ROOT), libraries=())
    try:
        here = os.environ | {"PYTHONPATH": str(ROOT)}
        assert server.takes(["-c", ""], here | {"NO_COLOR": "1"})
        assert not server.takes(["-c", ""], here | {name: "3"})
        assert not server.takes(["script.py"], here)
    finally:
        server.close()
