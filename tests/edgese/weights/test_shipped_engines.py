"""TensorRT takes every graph that is shipped: RTX builds it, which needs no GPU for that; 10.3 lists its operators."""

from __future__ import annotations

import pytest

from edgese.graphs.bundles import shipped_bundle
from export.bundle import Bundle, Graph
from export.engine import BuildOptions, build_engine
from export.operators import MAX_OPSET, refused_by_tensorrt_10_3
from runtimes.onnx_file import read_onnx_file

BUNDLE = Bundle.open(shipped_bundle())
EVERY_GRAPH = pytest.mark.parametrize("graph", BUNDLE.graphs, ids=[graph.file for graph in BUNDLE.graphs])


@EVERY_GRAPH
def test_an_engine_is_built_for_one_stream_and_several(graph: Graph) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    options = BuildOptions({"streams": (1, 1, 4)}, compute_capability="SM86")
    built = build_engine(BUNDLE.path / graph.file, options)
    assert len(built.serialized) > 1_000_000
    assert built.n_layers > 500
    assert built.log == ()


@EVERY_GRAPH
def test_jetpack_6_knows_every_operator(graph: Graph) -> None:
    file = read_onnx_file(BUNDLE.path / graph.file)
    assert file.opset <= MAX_OPSET
    assert file.operators
    assert refused_by_tensorrt_10_3(dict.fromkeys(file.operators, ())) == ()
