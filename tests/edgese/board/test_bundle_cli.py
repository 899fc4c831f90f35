"""`edgese bundle` as a user meets it: an archive that is whole and runs, or one line that says why not."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ..helpers.command_line import edgese, one_error, parsed, run_python
from ..helpers.golden_bundle import write_golden_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a bundle lies, called `model`, not to be changed."""
    folder = tmp_path_factory.mktemp("here")
    write_golden_bundle(folder / "model")
    return folder


@pytest.mark.slow
def test_an_archive_is_written_unpacked_by_tar_and_runs(folder: Path, tmp_path: Path) -> None:
    done = edgese("bundle", folder / "model", cwd=tmp_path, cold=True)
    assert done.stderr == b""
    told, next_step = done.stdout.decode().splitlines()
    archive = tmp_path / "identity.device.tar.gz"
    assert told.startswith("identity.device.tar.gz: 2 graphs, 0.")
    assert told.endswith(f"SHA-256 {hashlib.sha256(archive.read_bytes()).hexdigest()}")
    assert next_step == "on the board: tar xf identity.device.tar.gz && cd identity.device && ./run self-test"
    subprocess.run(["tar", "xf", archive], cwd=tmp_path, check=True)
    root = tmp_path / "identity.device"
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=root, check=True)
    assert (root / "run").stat().st_mode & 0o111
    for command in (["-I", root / "run"], ["-m", "edgese_device"]):
        done = run_python([*command, "self-test", "--runtime", "onnxruntime"], root)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(b"self-test: all 2 graphs in onnxruntime: passed\n")
        assert run_python(command, root).returncode == 2
    readme = (root / "README.txt").read_text(encoding="utf-8")
    assert "Hops a call: fp32 of 1, 16." in readme
    assert all(f"./run {command}" in readme for command in ("self-test", "build", "bench", "enhance"))


def test_the_shipped_bundle_is_packed_by_default(tmp_path: Path) -> None:
    done = edgese("bundle", "--precision", "fp16", "--block", "1", "--json", cwd=tmp_path)
    packed = parsed(done.stdout)
    archive = tmp_path / "mbs-net-base.device.tar.gz"
    assert packed["path"] == archive.name
    assert packed["graphs"] == ["block1.fp16.onnx", "block1.fp16.pcs.onnx"]
    assert packed["n_bytes"] == archive.stat().st_size < 14e6
    assert packed["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("cc", "make"))), reason="needs apt-get install gcc make")
def test_a_board_without_python_tests_itself_and_enhances(tmp_path: Path) -> None:
    edgese("bundle", "small", "--precision", "int8", "--block", "1", cwd=tmp_path)
    subprocess.run(["tar", "xf", "mbs-net-small.device.tar.gz"], cwd=tmp_path, check=True)
    project = tmp_path / "mbs-net-small.device" / "c"
    assert "./selftest" in (project.parent / "README.txt").read_text(encoding="utf-8")
    assert "  c/model.edgese" in (project.parent / "SHA256SUMS").read_text(encoding="utf-8")
    subprocess.run(["make", "CFLAGS=-O1"], cwd=project, check=True, capture_output=True)
    tested = subprocess.run(["./selftest"], cwd=project, capture_output=True, text=True, check=True).stdout
    assert "(wanted 20)" in tested
    assert tested.count("passed") >= 2
    noisy = np.random.default_rng(0).normal(0, 0.05, 20_000)
    soundfile.write(project / "noisy.wav", noisy, 44_100)
    subprocess.run(["./enhance", "noisy.wav", "clean.wav"], cwd=project, check=True, capture_output=True)
    clean, rate_hz = soundfile.read(project / "clean.wav")
    assert (rate_hz, clean.shape) == (44_100, noisy.shape)
    assert np.std(clean[5000:]) < np.std(noisy) / 3


def test_an_archive_is_replaced_only_if_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.tar.gz"
    target.write_bytes(b"mine")
    line = one_error(edgese("bundle", folder / "model", "-o", target, cwd=tmp_path, code=1))
    assert line.endswith("a.tar.gz: exists already; choose another name or let it be replaced (--force)")
    assert target.read_bytes() == b"mine"
    edgese("bundle", folder / "model", "-o", target, "--force", cwd=tmp_path)
    assert target.stat().st_size > 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["nowhere"], "error: nowhere: not a bundle"),
        (["model", "-o", "a.zip"], "error: a.zip: the file name must end in .tar.gz"),
        (["model", "--block", "3"], "no graph of block 3; here are block 1 (fp32), block 16 (fp32)"),
        (["model", "--precision", "int8"], "no graph of int8; here are block 1 (fp32)"),
        (["model", "-o", "model/manifest.json/a.tar.gz"], "a.tar.gz: cannot be written (Not a directory)"),
    ],
)
def test_what_cannot_be_packed_is_one_line(arguments: list[str], wanted: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert wanted in one_error(edgese("bundle", *arguments, cwd=folder, code=1))
    assert sorted(folder.rglob("*")) == before


def test_a_changed_bundle_is_not_packed(tmp_path: Path) -> None:
    bundle = write_golden_bundle(tmp_path / "model")
    (bundle.path / "fp32-block1.onnx").write_bytes(b"")
    line = one_error(edgese("bundle", "model", cwd=tmp_path, code=1))
    assert "fp32-block1.onnx: changed since it was exported" in line


@pytest.mark.parametrize("arguments", [["--block", "0"], ["--block", "x"], ["--precision", "fp8"], ["a", "b"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    assert edgese("bundle", *arguments, cwd=tmp_path, code=2).stdout == b""


def test_packing_needs_no_torch_and_no_onnx(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from edgese.cli.app import app\n"
        f"try: app(['bundle', {str(folder / 'model')!r}])\n"
        "except SystemExit as done: assert not done.code\n"
        "print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    )
    done = run_python(["-c", program], tmp_path, cold=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == b"set()"
