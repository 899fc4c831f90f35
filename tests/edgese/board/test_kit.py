"""`edgese export --trt`: engines where there is a GPU, the kit that builds them where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from edgese.board import kit as engines
from edgese.board.kit import BuiltEngines, Kit, for_tensorrt
from edgese.errors import OutputError
from edgese.graphs.engines import EngineFolder
from export import ExportError
from export.bundle import Bundle, Graph
from runtimes.base import RuntimeUnavailable

from ..helpers.golden_bundle import write_golden_bundle


@pytest.fixture
def golden(tmp_path: Path) -> Bundle:
    return write_golden_bundle(tmp_path / "model")


def without_gpu(name: str) -> None:
    raise RuntimeUnavailable(f"{name}: no GPU is visible")


def test_without_a_gpu_the_kit_lies_beside_the_bundle_and_says_what_to_type(
    golden: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "load_runtime", without_gpu)
    kit = for_tensorrt(golden)
    assert isinstance(kit, Kit)
    assert kit.packed.path == golden.path.parent / "identity.device.tar.gz"
    assert kit.packed.path.stat().st_size == kit.packed.n_bytes > 0
    assert kit.packed.graphs == tuple(graph.file for graph in golden.graphs)
    assert kit.reason == "tensorrt: no GPU is visible"
    assert kit.next_step == "tar xf identity.device.tar.gz && cd identity.device && ./run build && ./run self-test"
    with pytest.raises(OutputError, match="exists already"):
        for_tensorrt(golden)
    assert for_tensorrt(golden, replace=True).entry()["next"] == kit.next_step


def test_with_a_gpu_every_graph_that_tensorrt_takes_gets_its_engine(
    golden: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def build(folder: EngineFolder, bundle: Bundle, graph: Graph, tell: Callable[[str], None]) -> Path:
        asked.append(graph.file)
        tell(f"{graph.file}: building")
        return tmp_path / f"{graph.file}.engine"

    told: list[str] = []
    monkeypatch.setattr(engines, "load_runtime", lambda name: None)
    monkeypatch.setattr(EngineFolder, "engine", build)
    for_cpus = dataclasses.replace(golden.graphs[0], file="cpu.onnx", precision="int8-cpu")
    made = for_tensorrt(dataclasses.replace(golden, graphs=(*golden.graphs, for_cpus)), on_message=told.append)
    assert isinstance(made, BuiltEngines)
    assert list(made.paths) == asked == [graph.file for graph in golden.graphs]
    assert told == [f"{name}: building" for name in asked]
    assert not (golden.path.parent / "identity.device.tar.gz").exists()


def test_a_bundle_for_cpus_alone_is_refused(golden: Bundle) -> None:
    for_cpus = tuple(dataclasses.replace(graph, precision="int8-cpu") for graph in golden.graphs)
    with pytest.raises(ExportError, match="found no graph that TensorRT takes, wanted fp32, fp16 or int8"):
        for_tensorrt(dataclasses.replace(golden, graphs=for_cpus))
