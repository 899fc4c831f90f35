"""`edgese verify` as a user meets it: a bundle that passes, one that does not, and what cannot be asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from edgese.model.enhancer import WaveformEnhancer
from export.bundle import Bundle, seal_bundle

from ..helpers.command_line import edgese, one_error, parsed
from ..helpers.tiny_bundle import ONE_NETWORK, tiny_bundle

BLOCK = 3
WEIGHT = "magnitude_decoder.hidden_weight"
SHORT = ("--minutes", "0", "--quiet")


@pytest.fixture
def good(tiny_enhancer: WaveformEnhancer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one graph."""
    bundle = tiny_bundle(tiny_enhancer, tmp_path_factory)
    folder = tmp_path / "good"
    shutil.copytree(bundle.path, folder)
    seal_bundle(folder, {**bundle.manifest, "graphs": [bundle.graph(block=BLOCK)]})
    return folder


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """The same with one weight off by a tenth, sealed again as if it were right."""
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    bundle = Bundle.open(good)
    path = folder / bundle.graphs[0].file
    model = onnx.load(path)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith(WEIGHT))
    tensor.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)
    seal_bundle(folder, bundle.manifest)
    return folder


@ONE_NETWORK
def test_a_good_bundle_passes_and_a_report_says_so(good: Path, tmp_path: Path) -> None:
    done = edgese("verify", good, *SHORT, "--report", tmp_path / "report", cwd=tmp_path, cold=True)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"{good}: against PyTorch, 3,000 hops streamed with carried state"
    (row,) = (line for line in lines if "block3.fp32.onnx" in line)
    assert row.endswith("14/14  passed")
    assert lines[-2:] == ["passed: all 15 checks of 1 graph", f"report: {tmp_path / 'report' / 'report.html'}"]
    assert done.stderr == b""
    assert "PASSED" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


@ONE_NETWORK
def test_a_bad_bundle_fails_and_says_which_layer_parts_first(bad: Path, tmp_path: Path) -> None:
    done = edgese("verify", bad, *SHORT, "--bisect", "--json", cwd=tmp_path, code=1)
    told = parsed(done.stdout)
    assert told["passed"] is False
    assert any("agrees with PyTorch" in failure for failure in told["failures"])
    ((label, divergence),) = told["divergences"].items()
    assert label == "block3.fp32.onnx in onnxruntime"
    assert WEIGHT in divergence
    assert done.stderr == b""


@ONE_NETWORK
def test_failures_are_named_in_words(bad: Path, tmp_path: Path) -> None:
    done = edgese("verify", bad, *SHORT, cwd=tmp_path, code=1)
    lines = done.stdout.decode().splitlines()
    assert sum("FAILED: block3.fp32.onnx in onnxruntime: agrees with PyTorch: found" in line for line in lines) == 1
    assert lines[-1].startswith("FAILED: ")
    assert lines[-1].endswith(" of 15 checks")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "nope"], "runtime nope: unknown; known here: "),
        (["--data", "missing"], "missing/clean: no such folder"),
        (["nothing-here"], "nothing-here: not a bundle"),
    ],
)
def test_what_cannot_be_verified_is_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in one_error(edgese("verify", *arguments, "--quiet", cwd=tmp_path, code=1))


@pytest.mark.parametrize("arguments", [["--minutes", "-1"], ["--files", "0"], ["--nonsense"]])
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    edgese("verify", *arguments, cwd=tmp_path, code=2)
