"""TensorRT takes every graph that is shipped: RTX builds it, which needs no GPU for that; 10.3 lists its operators."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgese.graphs.bundles import SHIPPED, shipped_bundle
from export.bundle import Bundle
from export.engine import BuildOptions, build_engine
from export.operators import MAX_OPSET, refused_by_tensorrt_10_3
from runtimes.onnx_file import read_onnx_file

BUNDLES = [Bundle.open(shipped_bundle(name)) for name in SHIPPED]
FILES = [bundle.path / graph.file for bundle in BUNDLES for graph in bundle.graphs]
EVERY_GRAPH = pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}/{file.name}" for file in FILES])
BUILT = [file for file in FILES if file.parent.name == "mbs-net-small" or file.name.startswith("block1.")]


@pytest.mark.parametrize("file", BUILT, ids=[f"{file.parent.name}/{file.name}" for file in BUILT])
def test_an_engine_is_built_for_one_stream_and_several(file: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    options = BuildOptions({"streams": (1, 1, 4)}, compute_capability="SM86")
    built = build_engine(file, options)
    assert len(built.serialized) > 1_000_000
    assert built.n_layers > 500
    assert built.log == ()


@EVERY_GRAPH
def test_jetpack_6_knows_every_operator(file: Path) -> None:
    header = read_onnx_file(file)
    assert header.opset <= MAX_OPSET
    assert header.operators
    assert refused_by_tensorrt_10_3(dict.fromkeys(header.operators, ())) == ()
