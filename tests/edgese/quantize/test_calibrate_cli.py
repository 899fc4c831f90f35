"""`edgese calibrate` as a user meets it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import edgese.quantize.calibration
from calib.ranges import METHODS, Histogram, Range
from edgese.cli.app import app
from edgese.model.checkpoint import load_enhancer, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.networks import MbsConfig
from edgese.quantize.calibration import Span, read_calibration

from ..helpers.command_line import edgese as run_edgese
from ..helpers.command_line import one_error, parsed
from ..helpers.data_folders import SpeechLike, write_mixing
from ..helpers.tiny_bundle import TINY

SMALL = ("--batches", "2", "--streams", "2", "--cache", "cache")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where the command is run."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


@pytest.fixture
def weights(tiny_enhancer: WaveformEnhancer, here: Path) -> Path:
    path = here / "tiny.safetensors"
    save_weights(path, tiny_enhancer, tiny_enhancer.state_dict())
    return path


@pytest.fixture
def tiny_config() -> MbsConfig:
    """One block: a graph of 16 hops is what PyTorch takes longest for."""
    return dataclasses.replace(TINY, layers=1)


@pytest.mark.slow
def test_batches_are_stored_and_ranges_shown(weights: Path, here: Path, speech_like: SpeechLike) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    write_mixing(here / "data", speech_like)
    done = run_edgese("calibrate", weights.name, "--data", "data", *SMALL, "--plot", "ranges.png", cwd=here, cold=True)
    assert done.stderr == b""
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "calibration.npz: drawn from the training split of data"
    assert lines[1].split()[:4] == ["batches", "streams", "hops", "heard"]
    assert lines[2].split()[:3] == ["2", "2", "64"]
    stored = read_calibration(here / "calibration.npz", load_enhancer(weights))
    assert lines[3] == f"  digest: {stored.digest}"
    assert len(stored) == 2
    assert stored.batches[0]["wave"].shape == (2, 16 * 128)
    (header,) = (line for line in lines if line.startswith("  product"))
    assert header.split() == ["product", "lowest", "highest", *METHODS]
    (row,) = (line.split() for line in lines if line.startswith("  blocks.0.out_proj "))
    lowest, highest, minmax, *clipped = map(float, row[1:])
    assert lowest < 0 < highest
    assert minmax == max(-lowest, highest) >= max(clipped)
    assert lines[-1] == "picture: ranges.png"
    assert (here / "ranges.png").read_bytes().startswith(b"\x89PNG\r\n")
    names = {"cache", "calibration.npz", "data", "ranges.png", "tiny.safetensors"}
    assert {file.name for file in here.iterdir()} == names


def test_machines_are_told_all_of_it(
    weights: Path, here: Path, speech_like: SpeechLike, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, and with ranges that are known: PyTorch takes seconds for the graph behind them."""
    counts = Histogram(np.array([1, 2]), np.array([-3.0, 0.5, 4.0]))
    span = Span("phase_head", "tensor_7", Range(-3.0, 4.0), {"minmax": Range(-4.0, 4.0)}, counts)
    monkeypatch.setattr(edgese.quantize.calibration, "compare_ranges", lambda enhancer, batches, tell: (span,))
    monkeypatch.chdir(here)
    write_mixing(here / "data", speech_like)
    command = ["calibrate", weights.name, "--data", "data", *SMALL, "--json"]
    first, second, other = (
        CliRunner().invoke(app, [*command, "--force", "--seed", seed], catch_exceptions=False) for seed in "001"
    )
    told = parsed(second.stdout_bytes)
    assert list(told) == ["path", "digest", "provenance", "ranges"]
    assert told["ranges"] == {"phase_head": {"tensor": "tensor_7", "extent": [-3.0, 4.0], "minmax": [-4.0, 4.0]}}
    assert told["provenance"]["seed"] == 0
    assert first.stdout_bytes == second.stdout_bytes  # the same digest, the same everything
    assert parsed(other.stdout_bytes)["digest"] != told["digest"]
    stored = read_calibration(here / told["path"], load_enhancer(weights))
    assert (stored.digest, stored.provenance) == tuple(
        parsed(other.stdout_bytes)[key] for key in ("digest", "provenance")
    )


def test_without_data_it_says_what_to_give(here: Path) -> None:
    done = run_edgese("calibrate", cwd=here, code=2)
    assert b"--data: found none, wanted a folder of training data: clean/ and noisy/, or" in done.stderr
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "wanted clean/ and noisy/"),
        (["-o", "there.npz"], "there.npz: exists already; replace it with --force, or choose another -o"),
    ],
    ids=["no data", "existing"],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], message: str, here: Path) -> None:
    (here / "there.npz").write_bytes(b"mine")
    assert message in one_error(run_edgese("calibrate", "--data", ".", *arguments, *SMALL, cwd=here, code=1))
    assert [(file.name, file.read_bytes()) for file in here.iterdir()] == [("there.npz", b"mine")]


@pytest.mark.parametrize("arguments", [["--batches", "0"], ["--streams", "none"], ["--seed", "-1"], ["--nonsense"]])
def test_wrong_usage_exits_with_2(arguments: list[str], here: Path) -> None:
    run_edgese("calibrate", "--data", ".", *arguments, cwd=here, code=2)
