"""Lower precisions as a user meets them: exported, enhanced with, verified and scored from the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from edgese.config import AudioConfig
from edgese.graphs.plan import plan_of
from edgese.model.checkpoint import save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import products
from edgese.model.registry import build
from export.bundle import Bundle

from ..helpers.command_line import Done, edgese, one_error, parsed
from ..helpers.precision_bundle import write_calibration
from ..helpers.tiny_bundle import TINY

RATE_HZ = 16_000
SpeechLike = Callable[..., NDArray[np.float32]]


@dataclasses.dataclass(frozen=True)
class Desk:
    """What one export in fp16 and in int8 left behind, and what it was made of."""

    folder: Path
    enhancer: WaveformEnhancer
    exported: Done

    @property
    def weights(self) -> Path:
        return self.folder / "small.safetensors"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs"

    @property
    def path(self) -> Path:
        return self.folder / "small.bundle"

    @property
    def bundle(self) -> Bundle:
        return Bundle.open(self.path)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, speech_like: SpeechLike) -> Desk:
    """A network of one block, half of the tiny one; two noisy recordings; a calibration; and the bundle of them."""
    folder = tmp_path_factory.mktemp("desk")
    torch.manual_seed(1)
    enhancer = build(dataclasses.replace(TINY, layers=1), AudioConfig()).eval()
    with torch.no_grad():
        enhancer.network.magnitude_decoder.weight.mul_(30)
    save_weights(folder / "small.safetensors", enhancer, enhancer.state_dict())
    write_calibration(folder / "c.npz", enhancer, speech_like, block=1)
    for at, name in enumerate("ab"):
        rng = np.random.default_rng(at)
        clean = speech_like(20_000 + 1000 * at, seed=at) + 1e-4 * rng.standard_normal(20_000 + 1000 * at)
        for kind, wave in (("clean", clean), ("noisy", clean + 0.02 * rng.standard_normal(len(clean)))):
            path = folder / "pairs" / kind / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave, RATE_HZ)
    done = edgese(
        *("export", "small.safetensors", "--block", "1", "--quiet"),
        *("--precision", "fp16", "--precision", "int8", "--calibration", "c.npz"),
        *("--data", "pairs", "--calibrator", "minmax", "--pesq-budget", "0.05"),
        cwd=folder,
    )
    return Desk(folder, enhancer, done)


# Export


def test_an_export_tells_what_each_precision_came_to(desk: Desk) -> None:
    lines = desk.exported.stdout.decode().splitlines()
    for precision in ("fp32", "fp16", "int8"):
        row = next(line for line in lines if f"block1.{precision}.onnx " in line)
        assert row.endswith("passed"), lines
    n_offered = len(products(desk.enhancer.network)) - 1  # a fusion's weight stands on the left
    (told,) = (line for line in lines if line.startswith("int8: "))
    assert f" of {n_offered} products, " in told
    assert "PESQ-WB lost (budget 0.05)" in told
    assert "in the worst of 2 recordings" in told
    verdicts = [line for line in lines if " in onnxruntime on this CPU: " in line]
    assert [line.split()[0] for line in verdicts] == ["fp16", "int8"]
    assert lines[-1].startswith("bundle: small.bundle (")
    assert desk.exported.stderr == b""


def test_the_bundle_says_how_each_precision_was_made(desk: Desk) -> None:
    every = tuple(products(desk.enhancer.network))
    bundle = desk.bundle
    assert bundle.verified
    assert [graph.file for graph in bundle.graphs] == [f"block1.{name}.onnx" for name in ("fp32", "fp16", "int8")]
    assert bundle.manifest["precisions"].keys() == {"fp32", "fp16", "int8"}
    assert plan_of(bundle, "fp16").half == every
    plan = plan_of(bundle, "int8")
    assert plan.ranges
    assert set(plan.half) == set(every) - plan.ranges.keys()
    assert plan.calibration == bundle.manifest["calibration"]["digest"]
    assert bundle.manifest["calibration"]["provenance"]["kind"] == "calibration of a waveform enhancer"
    facts = plan.facts
    assert (facts["budget"], facts["recordings"], set(facts["methods"].values())) == (0.05, ["a", "b"], {"minmax"})
    assert len(facts["alone"]) == len(every) - 1
    assert facts["together"][-1]["pesq_loss"] <= 0.05
    assert facts["together"][-1]["products"]
    assert set(facts["together"][-1]["products"]) == plan.ranges.keys()


def test_weights_of_lower_precision_are_smaller_files(desk: Desk) -> None:
    sizes = [(desk.path / f"weights.{precision}.bin").stat().st_size for precision in ("fp32", "fp16", "int8")]
    assert sizes[0] > sizes[1] > sizes[2]


def test_int8_without_what_it_needs_says_how_to_get_it(desk: Desk) -> None:
    done = edgese(
        *("export", desk.weights, "--precision", "int8", "--calibration", "c.npz", "-o", "none.bundle", "--quiet"),
        cwd=desk.folder,
        code=1,
    )
    line = one_error(done)
    assert line.startswith("error: int8: needs a calibration and recordings to compute PESQ on: make one with ")
    assert "`edgese calibrate --data DIR`, give it with --calibration" in line
    assert not (desk.folder / "none.bundle").exists()


def test_what_only_int8_uses_is_wrong_usage_without_it(tmp_path: Path) -> None:
    done = edgese("export", "--precision", "fp16", "--data", ".", "--plot", "a.png", cwd=tmp_path, code=2)
    assert b"--data, --plot: found no precision in INT8" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_calibration_of_other_weights_is_refused(desk: Desk, speech_like: SpeechLike, tmp_path: Path) -> None:
    torch.manual_seed(2)
    other = build(desk.enhancer.network.config, AudioConfig()).eval()
    write_calibration(tmp_path / "other.npz", other, speech_like, block=1)
    done = edgese(
        *("export", desk.weights, "--precision", "int8", "--calibration", "other.npz", "--data", desk.pairs, "--quiet"),
        cwd=tmp_path,
        code=1,
    )
    assert "other.npz: made with the weights " in one_error(done)


@pytest.mark.parametrize("command", ["export", "enhance", "evaluate"])
def test_an_unknown_precision_is_wrong_usage(command: str, tmp_path: Path) -> None:
    more = {"export": [], "enhance": ["a.wav"], "evaluate": ["--data", "."]}[command]
    done = edgese(command, *more, "--precision", "fp8", cwd=tmp_path, code=2)
    assert b"'fp8' is not one of 'fp32', 'fp16', 'int8', 'int8-cpu'" in b" ".join(
        done.stderr.replace(b"\xe2\x94\x82", b" ").split()
    )


# Use


def test_each_precision_enhances(desk: Desk, tmp_path: Path) -> None:
    """And gives another sound, a little."""
    noisy = desk.pairs / "noisy" / "a.wav"
    waves = {}
    for precision in ("fp32", "int8"):
        target = tmp_path / f"{precision}.wav"
        options = ("--model", desk.path, "--precision", precision, "-o", target, "--quiet", "--subtype", "FLOAT")
        edgese("enhance", noisy, *options, cwd=tmp_path)
        waves[precision], _ = soundfile.read(target)
    assert len(waves["int8"]) == 20_000
    apart = np.abs(waves["int8"] - waves["fp32"]).max() / np.abs(waves["fp32"]).max()
    assert 1e-6 < apart < 0.1


def test_a_bundle_without_the_precision_says_how_to_make_it(desk: Desk, tmp_path: Path) -> None:
    noisy = desk.pairs / "noisy" / "a.wav"
    done = edgese("enhance", noisy, "--model", desk.path, "--precision", "int8-cpu", "--quiet", cwd=tmp_path, code=1)
    assert "small.bundle: found no graphs in int8-cpu, wanted some" in one_error(done)
    assert "(edgese export --precision int8-cpu) and name it (--model)" in one_error(done)
    assert list(tmp_path.iterdir()) == []


def test_verify_tries_the_precisions_that_are_named(desk: Desk, tmp_path: Path) -> None:
    done = edgese(
        *("verify", desk.path, "--precision", "int8", "--minutes", "0", "--quiet", "--json"),
        cwd=tmp_path,
    )
    told = parsed(done.stdout)
    assert told["passed"] is True
    (graph,) = told["graphs"]
    assert graph["graph"] == "block1.int8.onnx"
    (check,) = (check for check in graph["checks"] if check["name"] == "precision of products")
    assert check["passed"] is True
    assert [check["name"] for check in told["checks"]] == [
        "random blocks of int8 in onnxruntime",
        "half precision of int8 in PyTorch",
    ]


def test_verify_refuses_a_precision_that_the_bundle_lacks(desk: Desk, tmp_path: Path) -> None:
    done = edgese("verify", desk.path, "--precision", "int8-cpu", "--quiet", cwd=tmp_path, code=1)
    assert "small.bundle: no graph in int8-cpu; this bundle has fp32, fp16, int8" in one_error(done)


def test_evaluate_names_the_precision_with_the_system(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    for kind in ("clean", "noisy"):
        (folder / kind).mkdir(parents=True)
        shutil.copy(desk.pairs / kind / "a.wav", folder / kind)
    done = edgese(
        *(
            "evaluate",
            "--data",
            folder,
            "--model",
            desk.path,
            "--precision",
            "int8",
            "--json",
            "--jobs",
            "1",
            "--quiet",
        ),
        cwd=tmp_path,
    )
    (system,) = parsed(done.stdout)["systems"]
    assert system["system"] == f"{desk.path} in int8"
    assert [pair["name"] for pair in system["pairs"]] == ["a"]
    assert json.loads((desk.path / "manifest.json").read_text(encoding="utf-8"))["name"] == "small.bundle"
