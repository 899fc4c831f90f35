"""Bundles tested, measured and listened to on a board over ssh, against a real server on loopback, with failures made
to happen: names, keys, links, disks, Pythons, runtimes and graphs that are not as they should be.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgese.board import agent, link
from edgese.board.commands import Chosen, bench_there, self_test_there
from edgese.board.denoiser import RemoteDenoiser
from edgese.board.link import Link, LinkLost, RemoteError, checked_host, environment_host, explain
from edgese.board.session import Session
from edgese.errors import EdgeseError
from export.bundle import Bundle, seal_bundle

from ..helpers.board_trees import TREES, put, write_tree
from ..helpers.command_line import ROOT, edgese, one_error, parsed
from ..helpers.golden_bundle import write_golden_bundle
from ..helpers.ssh_board import LACKING, SshBoard, Wire, interrupt, small_disk, ssh_board, wait_until

pytestmark = [pytest.mark.required, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

AT_ONCE = (0.0, 0.0)  # pauses before new tries
ORT = Chosen(["onnxruntime"], (), [16])
NO_TENSORRT = "import sys\nif 'run' in sys.orig_argv: sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None"
SLOW = "import sys, time\nif 'self-test' in sys.orig_argv: sys.stderr.write('passed\\n'); time.sleep(0.5)"
STUCK = "import sys, time\nif 'self-test' in sys.orig_argv: time.sleep(100)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    with ssh_board(tmp_path_factory.mktemp("board")) as board:
        yield board


@pytest.fixture
def board(server: SshBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshBoard]:
    """With a home that is empty, and nothing running there; nothing runs there afterwards."""
    (tmp_path / "home").mkdir()
    server.log_in(tmp_path / "home")
    server.write_config()
    monkeypatch.setenv("EDGESE_SSH", server.ssh)
    monkeypatch.delenv("EDGESE_JETSON", raising=False)
    yield server
    wait_until(lambda: not server.processes())


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small bundle that passes; not to be changed."""
    return write_golden_bundle(tmp_path_factory.mktemp("golden") / "identity")


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One whose archive has more than three megabytes."""
    bundle = write_golden_bundle(tmp_path_factory.mktemp("heavy") / "identity")
    (bundle.path / "MODEL_CARD.md").write_text(np.random.default_rng(0).bytes(3_000_000).hex())
    seal_bundle(bundle.path, {key: value for key, value in bundle.manifest.items() if key != "files"})
    return Bundle.open(bundle.path)


def refusal(board: SshBoard, bundle: Bundle, tmp_path: Path, *options: object) -> str:
    """The one line that `edgese verify --host board` ends with."""
    return one_error(edgese("verify", bundle.path, "--host", "board", *options, cwd=tmp_path, code=1))


def names(folder: Path) -> set[str]:
    """What lies there, the lock and kept bundles aside."""
    return (
        {path.name for path in folder.iterdir()}
        - {"lock"}
        - {path.name for path in folder.glob("identity.device-*[!z]")}
    )


# What is asked of a board


@pytest.mark.slow
def test_a_board_tests_every_graph_and_keeps_the_bundle_for_the_next_time(
    board: SshBoard, golden: Bundle, tmp_path: Path
) -> None:
    arguments = ("verify", golden.path, "--host", "board", "--runtime", "onnxruntime")
    done = edgese(*arguments, cwd=tmp_path)
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith("identity on board: ")
    assert lines[-1] == "passed: all 2 trials on board"
    assert f"kept on board for the next time: {board.kept}, " in done.stderr.decode()
    assert names(board.kept) == set()
    (folder,) = board.kept.glob("identity.device-*")
    stamp = folder.stat().st_ino
    done = edgese(*arguments, "--json", cwd=tmp_path)
    found = parsed(done.stdout)
    assert (found["host"], found["passed"], found["left_out"]) == ("board", True, {})
    assert [trial["graph"] for trial in found["trials"]] == ["fp32-block1.onnx", "fp32-block16.onnx"]
    assert done.stderr.decode().splitlines()[0] == "identity: is on board already"
    assert folder.stat().st_ino == stamp
    edgese(*arguments, "--no-keep", cwd=tmp_path)
    assert [path.name for path in board.kept.iterdir()] == ["lock"]


@pytest.mark.slow
def test_what_was_changed_there_is_brought_anew(board: SshBoard, golden: Bundle) -> None:
    with Session("board") as session:
        session.place(golden)
    (folder,) = board.kept.glob("identity.device-*")
    (folder / "identity.device/bundle/reference.npz").write_text("x")
    with Session("board") as session:
        assert self_test_there(session, golden, ORT)["passed"]


@pytest.mark.slow
def test_another_release_of_a_bundle_takes_the_place_of_the_one_there(
    board: SshBoard, golden: Bundle, heavy: Bundle
) -> None:
    for bundle in (golden, heavy):
        with Session("board") as session:
            session.place(bundle)
    (folder,) = board.kept.glob("identity.device-*")
    assert (folder / "identity.device/bundle/MODEL_CARD.md").exists()


@pytest.mark.slow
def test_a_jetson_is_measured_over_the_link(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "tree", "thor")
    with Session("board", root=root) as session:
        found = bench_there(session, golden, ORT, streams=2, seconds=0.3)
    assert found["engines"] is None
    assert found["self_test"]["passed"] is True
    (result,) = found["bench"]["results"]
    assert (result["streams"], found["bench"]["board"]["model"]) == (2, TREES["thor"].model)
    assert result["energy"]["joules_per_audio_s"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_engines_are_built_once_and_kept_for_the_next_session(board: SshBoard, golden: Bundle, heavy: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    told: list[str] = []
    found = []
    for bundle in (golden, heavy):  # the same graphs in another archive
        with Session("board", on_message=told.append) as session:
            session.place(bundle)
            found.append(session.result("build", "--json", "--block", 1)["engines"])
    (first,), (second,) = found
    assert first["told"][0] in told  # while it was going on
    assert first["told"][0].endswith("there is none yet")
    assert second["told"] == []
    assert list(board.kept.glob("engines/identity.device/fp32-block1.*.engine"))


@pytest.fixture
def as_jetson(tmp_path: Path) -> str:
    """The shell line after which /sys is a Jetson's, in a name space of its own."""
    root = write_tree(tmp_path / "tree", "orin-nano")
    put(root, "sys/devices/soc0/machine", TREES["orin-nano"].model)
    mount = f"mount --bind {root / 'sys'} /sys"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode:
        pytest.skip("a name space with another /sys cannot be made here")
    return mount


@pytest.mark.slow
def test_edgese_bench_measures_the_board_that_the_environment_names(
    as_jetson: str, board: SshBoard, golden: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board.log_in(board.home, wrap=f"unshare -m /bin/sh -c '{as_jetson} && exec \"$@\"' sh")
    monkeypatch.setenv("EDGESE_JETSON", "board")
    arguments = ("-m", golden.path, "--block", 16, "--runtime", "onnxruntime", "--seconds", 0.3)
    done = edgese("bench", "--device", "jetson", *arguments, cwd=tmp_path)
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith(f"identity on board: {TREES['orin-nano'].model}, ")
    assert lines[1].endswith("; clocks locked (jetson_clocks)")
    assert lines[2] == "self-test there: all 1 graphs passed"
    assert "energy of calls in real time, VDD_IN, 6.07 W idle" in lines
    assert any(line.startswith("temperatures before and after, C: cpu-thermal 51.7 to 51.7, ") for line in lines)
    assert lines[-1] == "held back: nothing is known to have"
    assert "not known: board, l4t: /etc/nv_tegra_release: not there" in done.stderr.decode()


@pytest.mark.slow
def test_on_the_board_itself_no_link_is_needed(as_jetson: str, golden: Bundle, tmp_path: Path) -> None:
    options = f"-m {golden.path} --block 16 --runtime onnxruntime --seconds 0.2 --repeat 1 --json"
    command = f"{as_jetson} && exec {sys.executable} -m edgese bench --device jetson {options}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EDGESE_JETSON": "me@elsewhere.invalid"}
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found = parsed(done.stdout)
    assert (found["device"], found["board"]["model"]) == ("jetson", TREES["orin-nano"].model)
    assert found["idle"]["mean_w"] == pytest.approx(6.0672)
    assert found["before"]["temperatures_c"] == found["after"]["temperatures_c"]


@pytest.mark.slow
def test_no_other_machine_passes_for_a_jetson(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    done = edgese("bench", "-m", golden.path, "--device", "jetson", "--host", "board", cwd=tmp_path, code=1)
    assert done.stdout == b""
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("error: board: found no Jetson (")
    assert last.endswith("numbers of another machine are not shown for it; edgese verify --host tests any board")


@pytest.mark.slow
def test_a_board_enhances_as_this_machine_does(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, (30_001, 2))
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.wav", wave, 44_100, "PCM_24")
    soundfile.write(tmp_path / "in/b.flac", wave[:5000, 0], 16_000)
    (tmp_path / "in/c.wav").write_bytes(b"no sound")
    options = ("in", "-m", golden.path, "--atten-limit", 20, "--json")
    done = edgese("enhance", *options, "-o", "far", "--host", "board", "--runtime", "onnxruntime", cwd=tmp_path, code=1)
    assert "error" in parsed(done.stdout)["files"][2]
    edgese("enhance", *options, "-o", "near", cwd=tmp_path, code=1)
    for name in ("a.wav", "b.flac"):
        far, near = (soundfile.read(tmp_path / folder / name, always_2d=True)[0] for folder in ("far", "near"))
        np.testing.assert_array_equal(far, near)
    assert soundfile.info(tmp_path / "far/a.wav").subtype == "PCM_24"
    assert names(board.kept) == set()  # no recording stays there


# Names, keys, servers


def test_a_name_that_is_not_known(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    line = one_error(edgese("verify", golden.path, "--host", "me@nowhere.invalid", cwd=tmp_path, code=1))
    assert line.startswith("error: me@nowhere.invalid: the name cannot be found (")
    assert line.endswith("): check it, use its address, or give it a Host entry in ~/.ssh/config")


def test_a_host_key_that_is_not_known_or_another(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.write_config(known="empty")
    wanted = "error: board: its host key is not known here: ssh board once, compare the key, accept it"
    assert refusal(board, golden, tmp_path) == wanted
    board.write_config(known="changed")
    wanted = "error: board: its host key is not the one known for it: another machine, or a board flashed anew; "
    line = refusal(board, golden, tmp_path)
    forget = line.partition("right: ")[2].partition(", then")[0]
    assert forget in ("ssh-keygen -R board", f'ssh-keygen -f "{board.folder / "changed"}" -R "board"')
    assert line == (f"{wanted}if you know that it is right: {forget}, then ssh board once")


def test_a_key_that_is_not_let_in(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.write_config(key="stranger")
    assert refusal(board, golden, tmp_path) == (
        "error: board: lets none of your keys in (publickey): ssh-copy-id board; a key with a passphrase needs ssh-add "
        "first"
    )


def test_a_server_that_is_not_there(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.write_config(port=1)
    assert refusal(board, golden, tmp_path) == (
        "error: board: refuses connections on its ssh port: start its server (sudo systemctl start ssh), or check the "
        "port"
    )


def test_no_ssh_here(board: SshBoard, golden: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESE_SSH", "/nowhere/ssh")
    assert refusal(board, golden, tmp_path) == (
        "error: /nowhere/ssh: cannot be started (No such file or directory): install OpenSSH's client "
        "(apt install openssh-client), or name another with EDGESE_SSH"
    )


@pytest.mark.parametrize(
    ("said", "code", "wanted"),
    [
        (
            "ssh: connect to host b port 22: Connection timed out",
            255,
            "does not answer (Connection timed out): is it on",
        ),
        ("ssh: connect to host b port 22: No route to host", 255, "does not answer (No route to host)"),
        ("kex_exchange_identification: Connection closed by remote host", 255, "ssh cannot connect (kex_exchange"),
        ("", 255, "ssh cannot connect (exit code 255)"),
        ("bash: line 1: python3: command not found", 127, "found no python3 there (bash: line 1: python3: command not"),
        ("This account is not available.", 1, "python3 cannot be run there (This account is not available.): try ssh"),
    ],
)
def test_what_ssh_says_becomes_one_line(said: str, code: int, wanted: str) -> None:
    error = explain("me@b", code, said.splitlines())
    assert str(error).startswith(f"me@b: {wanted}")
    assert "\n" not in str(error)


def test_a_changed_key_of_another_port_is_named_as_ssh_keygen_wants_it() -> None:
    error = explain("ssh://me@b:2200", 255, ["@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @"])
    assert 'ssh-keygen -R "[b]:2200", then ssh ssh://me@b:2200 once' in str(error)
    assert "ssh-keygen -R b, then ssh me@b once" in str(
        explain("me@b", 255, ["REMOTE HOST IDENTIFICATION HAS CHANGED"])
    )


# Boards that are not fit for it


def test_a_python_that_is_too_old(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    old = "import sys; sys.version_info = (3, 8, 10, 'final', 0); exec(sys.argv[2])"
    board.log_in(board.home, python=(sys.executable, "-c", old))
    assert refusal(board, golden, tmp_path) == (
        "error: board: found Python 3.8 as python3 there, wanted 3.10 or later: JetPack 6 brings it; on an older "
        "system, install one and put it first in PATH"
    )


def test_no_python(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.log_in(board.home, python=())
    line = refusal(board, golden, tmp_path)
    assert line.startswith("error: board: found no python3 there (")
    assert line.endswith("python3: not found), wanted Python 3.10 or later: sudo apt install python3")


def test_no_numpy(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.log_in(board.home, python=(sys.executable, "-I", "-S"))
    assert refusal(board, golden, tmp_path) == (
        "error: board: found no NumPy for python3 there, wanted it: sudo apt install python3-numpy"
    )


@pytest.mark.slow
def test_no_tensorrt_and_no_onnxruntime(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.log_in(board.home, python=(sys.executable, "-S"))
    (board.folder / "site/numpy.py").touch()
    try:
        assert refusal(board, golden, tmp_path) == (
            "error: board: found neither TensorRT nor ONNX Runtime for python3 there, wanted one of them: JetPack "
            "brings TensorRT (sudo apt install python3-libnvinfer); or: python3 -m pip install onnxruntime"
        )
        (board.folder / "site/onnxruntime.py").touch()
        assert refusal(board, golden, tmp_path, "--runtime", "tensorrt") == (
            "error: board: found no TensorRT for python3 there, wanted it: JetPack brings it "
            "(sudo apt install python3-libnvinfer)"
        )
    finally:
        for name in ("numpy", "onnxruntime"):
            (board.folder / f"site/{name}.py").unlink(missing_ok=True)


@pytest.mark.slow
def test_a_tensorrt_that_does_not_load_is_left_out_and_told(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.log_in(board.home, site=NO_TENSORRT)
    done = edgese("verify", golden.path, "--host", "board", cwd=tmp_path)
    assert any(
        line.startswith("left out: tensorrt: tensorrt cannot be loaded") for line in done.stdout.decode().splitlines()
    )


@pytest.mark.slow
def test_a_self_test_that_fails(board: SshBoard, tmp_path: Path) -> None:
    bundle = write_golden_bundle(tmp_path / "wrong", golden_gain=1.001)
    done = edgese("verify", bundle.path, "--host", "board", "--runtime", "onnxruntime", cwd=tmp_path, code=1)
    lines = done.stdout.decode().splitlines()
    assert lines[-1] == "FAILED: 2 of 2 trials on board"
    assert "FAILED: differs by up to 0.0005, limit 1e-05; SNR 60.0 dB, limit 100 dB" in lines[-2]
    wanted = (
        "board: the self-test failed there, nothing more was done: 1 of 1 graphs: fp32-block16.onnx in onnxruntime "
        "(differs by up to 0.0005, limit 1e-05, SNR 60.0 dB, limit 100 dB)"
    )
    jetson = write_tree(tmp_path / "tree", "orin-nano")
    with Session("board", root=jetson) as session:
        with pytest.raises(RemoteError) as failed:
            bench_there(session, bundle, ORT, streams=1, seconds=0.1)
        assert str(failed.value) == wanted
        with pytest.raises(RemoteError) as failed:
            RemoteDenoiser(session, bundle, runtime="onnxruntime", block=16)
        assert str(failed.value) == wanted


@pytest.mark.slow
def test_a_login_that_talks_does_no_harm(board: SshBoard, golden: Bundle) -> None:
    board.log_in(board.home, before="echo welcome; echo >&2 'last login: today'; printf 'no line end '; echo")
    with Session("board") as session:
        assert self_test_there(session, golden, ORT)["passed"]


@pytest.mark.slow
def test_a_command_that_is_killed_there(board: SshBoard, golden: Bundle) -> None:
    site = "import os, sys\nif 'self-test' in sys.orig_argv: os.kill(os.getpid(), 9)"
    board.log_in(board.home, site=site)
    with (
        Session("board") as session,
        pytest.raises(RemoteError, match=r"self-test was ended by signal 9 \(.*out of mem"),
    ):
        self_test_there(session, golden, ORT)


# Disks


@pytest.fixture
def disk(tmp_path: Path, board: SshBoard, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home of so many bytes."""
    with small_disk(tmp_path / "disk", request.param) as reason:
        if reason:
            pytest.skip(reason)
        board.log_in(tmp_path / "disk")
        yield tmp_path / "disk"
        board.log_in(tmp_path / "home")


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["2m"], indirect=True)
def test_a_disk_that_is_too_small_is_told_before_anything_is_copied(
    disk: Path, board: SshBoard, heavy: Bundle, tmp_path: Path
) -> None:
    line = refusal(board, heavy, tmp_path)
    assert line.startswith("error: board: found 2.1 MB free at ")
    assert line.endswith(" MB for identity: free some space there")
    assert [path.name for path in (disk / ".cache/edgese").iterdir()] == ["lock"]


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["16m"], indirect=True)
def test_a_disk_that_becomes_full_in_mid_copy(disk: Path, board: SshBoard, heavy: Bundle) -> None:
    def fill(what: str, done: int, total: int) -> None:
        if not (disk / "other").exists():
            with (disk / "other").open("wb", buffering=0) as other, contextlib.suppress(OSError):
                while other.write(bytes(1 << 16)):
                    pass

    with pytest.raises(RemoteError) as failed, Session("board", on_bytes=fill) as session:
        session.place(heavy)
    wanted = f"board: {disk}/.cache/edgese: the disk is full (No space left on device; "
    assert str(failed.value).startswith(wanted)
    assert str(failed.value).endswith(" MB free): free some space there")
    assert [path.name for path in (disk / ".cache/edgese").iterdir()] == ["lock"]
    (disk / "other").unlink()
    with Session("board") as session:
        session.place(heavy)


# Links


@pytest.mark.slow
def test_a_link_that_is_cut_in_mid_copy_goes_on_from_there(board: SshBoard, heavy: Bundle) -> None:
    told: list[str] = []
    with Wire(board.port, limit=2_000_000) as wire:
        board.write_config(port=wire.port)
        with Session("board", on_message=told.append, pauses_s=AT_ONCE) as session:
            assert self_test_there(session, heavy, ORT)["passed"]
    _, second = wire.sent
    (resumed,) = (line for line in told if "are there already" in line)
    have, total = (float(word) for word in resumed.replace(" of ", " ").split()[1:3])
    assert 1 < have <= 2 < 3 < total  # as written, in whole tenths
    assert second < (total - have) * 1e6 * 1.01 + 200_000  # what had come was not sent again
    assert any("the link was lost (" in line and line.endswith("trying again in 0 s (1 of 2)") for line in told)
    assert names(board.kept) == set()


@pytest.mark.slow
def test_a_link_that_is_cut_for_good_is_one_error_and_the_next_command_goes_on(
    board: SshBoard, heavy: Bundle, tmp_path: Path
) -> None:
    with Wire(board.port, limit=700_000, again=False) as wire:
        board.write_config(port=wire.port)
        with pytest.raises(RemoteError) as failed, Session("board", pauses_s=AT_ONCE) as session:
            session.place(heavy)
    assert str(failed.value).startswith("board: ssh cannot connect (")
    assert str(failed.value).endswith(
        "while copying bundle, 3 times: run the same command again when it is stable, it goes on from what is there"
    )
    wait_until(lambda: not board.processes())
    (part,) = board.kept.glob("*.part")
    assert part.stat().st_size > 100_000
    board.write_config()
    told: list[str] = []
    with Session("board", on_message=told.append) as session:
        session.place(heavy)
    assert sum("are there already" in line for line in told) == 1
    assert names(board.kept) == set()


def test_a_link_that_is_cut_during_a_command_runs_it_again_and_leaves_nothing_behind(
    board: SshBoard, golden: Bundle
) -> None:
    before: list[int] = []

    def tell(line: str) -> None:
        if "passed" in line and not before:
            before.extend(board.processes())
            wire.cut()

    board.log_in(board.home, site=SLOW)
    with Wire(board.port) as wire:
        board.write_config(port=wire.port)
        with Session("board", on_message=tell, pauses_s=AT_ONCE) as session:
            assert self_test_there(session, golden, ORT)["passed"]
            assert before
            assert not set(before) & set(board.processes())
    assert len(wire.sent) == 2


def test_a_recording_that_is_cut_on_its_way_back(
    board: SshBoard, golden: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    with Wire(board.port) as wire, Session("board", pauses_s=AT_ONCE) as session:
        board.write_config(port=wire.port)
        session.place(golden)
        (tmp_path / "there").write_bytes(content)
        session.send(tmp_path / "there", "x")
        asked = Link.request

        def cut_once(self: Link, do: str, **details: Any) -> dict[str, Any]:
            if do == "get" and not details["offset"]:
                take = details["on_data"]

                def take_some(content: bytes) -> None:
                    take(content)
                    wire.cut()

                details["on_data"] = take_some
            return asked(self, do, **details)

        monkeypatch.setattr(Link, "request", cut_once)
        session.fetch("x", tmp_path / "here", len(content))
        monkeypatch.undo()
        assert (tmp_path / "here").read_bytes() == content
    assert len(wire.sent) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopping_here_leaves_no_process_there(number: int, board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.log_in(board.home, site=STUCK)
    command = [sys.executable, "-m", "edgese", "verify", golden.path, "--host", "board", "--runtime", "onnxruntime"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=stderr)
    wait_until(lambda: board.processes("self-test"))
    interrupt(process, number)
    assert process.wait(20) != 0
    wait_until(lambda: not board.processes())
    assert b"Traceback" not in (tmp_path / "stderr").read_bytes()


def test_the_time_that_is_given_ends_it_here_and_there(board: SshBoard, golden: Bundle, tmp_path: Path) -> None:
    board.log_in(board.home, site=STUCK)
    options = ("--host", "board", "--runtime", "onnxruntime", "--timeout", 0.07)
    done = edgese("verify", golden.path, *options, cwd=tmp_path, code=1)
    wanted = "error: board: not done in the time given, all was ended there: allow more (--timeout)"
    assert done.stderr.decode().splitlines()[-1] == wanted
    assert board.processes() == []


def test_a_stop_while_a_recording_is_there_leaves_nothing_of_it(
    board: SshBoard, golden: Bundle, tmp_path: Path
) -> None:
    board.log_in(board.home, site=STUCK.replace("'self-test'", "'enhance'"))
    soundfile.write(tmp_path / "a.wav", np.full(9000, 0.1), 16_000)
    command = [sys.executable, "-m", "edgese", "enhance", "a.wav", "-m", golden.path, "--host", "board"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen([*command, "--runtime", "onnxruntime"], env=environment, cwd=tmp_path, stderr=stderr)
    wait_until(lambda: board.processes("enhance"))
    assert list(board.kept.glob("work-*/noisy.wav"))
    interrupt(process)
    assert process.wait(20) == 1
    assert board.processes() == []
    assert names(board.kept) == set()
    assert not (tmp_path / "a.enhanced.wav").exists()
    assert b"stopped before it was done" in (tmp_path / "stderr").read_bytes()


def test_one_session_at_a_time_has_a_board(board: SshBoard, golden: Bundle) -> None:
    told: list[str] = []
    with Session("board") as first:
        first.place(golden)

        def tell(line: str) -> None:
            told.append(line)
            first.close()

        with Session("board", on_message=tell) as second:
            second.place(golden)
    assert told[0] == "another edgese is at work there: waiting"


def test_what_a_session_left_that_was_cut_off_is_removed_by_the_next(board: SshBoard, golden: Bundle) -> None:
    (board.kept / "work-00000000").mkdir(parents=True)
    left = "other.device-0123456789ab.tar.gz"
    theirs = {"photos.tar.gz", "film.part", "work-in-progress", "x.unpacking"}
    for name in ("work-00000000/noisy.wav", left, f"{left}.part", *theirs):
        (board.kept / name).touch()
    with Session("board") as session:
        session.place(golden)
    assert names(board.kept) == theirs


# The agent by itself


def test_an_agent_that_hears_nothing_ends_with_what_it_runs(tmp_path: Path) -> None:
    """As where a cable was pulled: nobody tells."""
    text = Path(agent.__file__).read_text().replace("QUIET_S = 60", "QUIET_S = 1")
    program = "import sys, time; open('pid', 'w').write(str(__import__('os').getpid())); time.sleep(100)"
    request = {"do": "run", "id": 1, "work": "work-0", "cwd": ".", "command": ["-c", program]}
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    (tmp_path / "edgese").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin is not None
        process.stdin.write(agent.packed(agent.REQUEST, json.dumps(request).encode()))
        process.stdin.flush()
        wait_until(lambda: (tmp_path / "edgese/pid").exists() and (tmp_path / "edgese/pid").read_text())
        pid = int((tmp_path / "edgese/pid").read_text())
        assert process.wait(20) == 1
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_command_does_not_outlive_an_agent_that_is_killed(board: SshBoard, golden: Bundle) -> None:
    board.log_in(board.home, site=STUCK)
    killed = threading.Event()

    def tell(line: str) -> None:
        killed.set()

    with Session("board", on_message=tell, pauses_s=()) as session:
        session.place(golden)
        owner = int((board.kept / "lock").read_text())

        def kill() -> None:
            wait_until(lambda: board.processes("self-test"))
            os.kill(owner, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(RemoteError, match="the link was lost"):
            session.result("self-test", "--json")
        killer.join()
    wait_until(lambda: not board.processes())


def test_frames_come_whole_however_they_are_cut() -> None:
    content = agent.packed(agent.DATA, b"abc") + agent.packed(agent.BEAT) + agent.packed(agent.ERR, bytes(300))
    frames, found = agent.Frames(), []
    for byte in content:
        frames.add(bytes([byte]))
        while (frame := frames.take()) is not None:
            found.append(frame)
    assert found == [(b"D", b"abc"), (b"B", b""), (b"T", bytes(300))]


@pytest.mark.parametrize("head", [b"O\xff\xff\xff\xff", b"O\x00\x10\x00\x01", b"Z\x00\x00\x00\x01"])
def test_a_frame_that_no_agent_sends_is_refused_before_its_content_comes(head: bytes) -> None:
    frames = agent.Frames()
    frames.add(head)
    with pytest.raises(agent.FrameError, match=r"found a frame of kind b'.' with \d+ bytes"):
        frames.take()


def test_what_starts_the_agent_passes_through_any_shell() -> None:
    assert not set(link._BOOT) & set('"$`\\!\n')
    assert len(zlib.compress(Path(agent.__file__).read_bytes(), 9)) < 10_000


# Usage


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a b", "a\n"])
def test_a_host_that_is_none_is_wrong_usage(host: str) -> None:
    with pytest.raises(ValueError, match=r"wanted user@board, a name of your ssh config"):
        checked_host(host)
    assert checked_host("me@board") == "me@board"


def test_the_environment_names_a_board_or_none() -> None:
    assert environment_host({"EDGESE_JETSON": "me@board"}) == "me@board"
    assert environment_host({"EDGESE_JETSON": ""}) is environment_host({}) is None


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["bench", "--host", "b"], "--host: found --device cpu"),
        (["bench", "--device", "jetson", "--host", "b", "--core", "1"], "--host: found --core beside it"),
        (["bench", "--device", "jetson", "--host", "b", "--plot", "p"], "--host: found --plot beside it"),
        (["bench", "--device", "jetson", "--host", "b", "--repeat", "2"], "--host: found --repeat beside it"),
        (["bench", "--device", "jetson", "--host", "b", "--estimate", "orin-nano"], "--host: found no --host"),
        (["bench", "--device", "jetson", "--host", "b", "--runtime", "abacus"], "--runtime: found 'abacus'"),
        (["bench", "--device", "jetson", "--host", "-x"], "--host: found '-x'"),
        (["bench", "--timeout", "3"], "--timeout: found no --host beside it"),
        (["verify", "--host", "b", "--bisect"], "--host: found --bisect beside it"),
        (["verify", "--host", "b", "--minutes", "1", "--files", "2"], "--host: found --files, --minutes beside it"),
        (["verify", "--no-keep"], "--no-keep: found no --host beside it"),
        (["enhance", "a.wav", "--host", "b", "--jobs", "2"], "--host: found --jobs beside it"),
        (["enhance", "a.wav", "--host", "b", "--runtime", "pytorch"], "--runtime: found 'pytorch'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], wanted: str, tmp_path: Path) -> None:
    done = edgese(*arguments, cwd=tmp_path, code=2)
    assert done.stdout == b""
    said = " ".join(done.stderr.decode().replace("│", " ").split())
    assert wanted in said


def test_errors_of_a_link_are_errors_of_edgese() -> None:
    assert issubclass(LinkLost, RemoteError)
    assert issubclass(RemoteError, EdgeseError)
