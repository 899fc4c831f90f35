"""Graphs that share one file of weights compute what they computed before."""

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from export import ExportError
from export.graph import write_onnx
from export.weights import share_weights
from runtimes.registry import open_runtime


class Wide(nn.Module):
    """One linear layer of 4 KiB, applied to any number of frames; a bias too small to share."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.frames):
            x = torch.tanh(self.linear(x))
        return x


def write(path: Path, module: nn.Module, channels: int) -> None:
    x = torch.zeros(2, 5, channels)
    write_onnx(module, {"x": x}, ["y"], path, dynamic_axes={"x": {0: "streams"}}, metadata={"toy.name": "wide"})


@functools.cache
def wide(frames: int) -> bytes:
    """The graph of so many frames, exported once."""
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        path = Path(folder) / "wide.onnx"
        write(path, Wide(frames).eval(), 32)
        return path.read_bytes()


def write_wide(folder: Path) -> list[Path]:
    """Graphs of one, two and three frames with the same weights."""
    paths = [folder / f"wide_{frames}.onnx" for frames in (1, 2, 3)]
    for frames, path in enumerate(paths, start=1):
        path.write_bytes(wide(frames))
    return paths


def run_wide(paths: Sequence[Path]) -> list[Any]:
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 5, 32), dtype=np.float32)}
    results = []
    for path in paths:
        with open_runtime("onnxruntime", path) as runtime:
            results.append(runtime.run(feeds)["y"])
    return results


def external(path: Path) -> dict[str, dict[str, str]]:
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {t.name: {e.key: e.value for e in t.external_data} for t in tensors if t.external_data}


def test_graphs_share_each_weight_once_and_compute_the_same(tmp_path: Path) -> None:
    paths = write_wide(tmp_path)
    before = run_wide(paths)
    share_weights(paths, tmp_path / "weights.bin")
    assert (tmp_path / "weights.bin").stat().st_size == 32 * 32 * 4
    for path in paths:
        assert [*external(path).values()] == [{"location": "weights.bin", "offset": "0", "length": "4096"}]
        assert path.stat().st_size < 4096
    for found, wanted in zip(run_wide(paths), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.slow
def test_metadata_and_names_survive_the_sharing(tmp_path: Path) -> None:
    paths = write_wide(tmp_path)
    before = [onnx.load(path) for path in paths]
    share_weights(paths, tmp_path / "weights.bin")
    for path, wanted in zip(paths, before, strict=True):
        found = onnx.load(path)
        assert found.metadata_props == wanted.metadata_props
        assert found.graph.node == wanted.graph.node
        assert found.graph.input == wanted.graph.input
        for tensor, other in zip(found.graph.initializer, wanted.graph.initializer, strict=True):
            assert tensor.name == other.name
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), onnx.numpy_helper.to_array(other))


@pytest.mark.slow
def test_different_weights_lie_apart_and_aligned(tmp_path: Path) -> None:
    first = tmp_path / "odd.onnx"
    write(first, nn.Linear(19, 29).eval(), 19)
    second = tmp_path / "even.onnx"
    write(second, nn.Linear(32, 32).eval(), 32)
    share_weights([first, second], tmp_path / "weights.bin")
    (odd,), (even,) = external(first).values(), external(second).values()
    assert (odd["offset"], odd["length"]) == ("0", str(19 * 29 * 4))
    assert int(even["offset"]) == -(-19 * 29 * 4 // 64) * 64
    assert (tmp_path / "weights.bin").stat().st_size == int(even["offset"]) + 4096


@pytest.mark.slow
def test_sharing_gives_equal_bytes_and_may_be_done_twice(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        paths = write_wide(folder)
        share_weights(paths, folder / "weights.bin")
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
        share_weights(paths, folder / "weights.bin")
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert all(content == contents[0] for content in contents)


def test_weights_of_a_subgraph_are_shared_too(tmp_path: Path) -> None:
    big = helper.make_tensor("big", TensorProto.FLOAT, (512,), np.full(512, 2, np.float32).tobytes(), raw=True)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [512])
    then = helper.make_graph([helper.make_node("Add", ["x", "big"], ["y"])], "then", [], [y], [big])
    otherwise = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "else", [], [y])
    outer = helper.make_graph(
        [helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=otherwise)],
        "outer",
        [
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [512]),
        ],
        [y],
    )
    path = tmp_path / "branch.onnx"
    onnx.save(helper.make_model(outer, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    share_weights([path], tmp_path / "weights.bin")
    assert (tmp_path / "weights.bin").read_bytes() == np.full(512, 2, np.float32).tobytes()
    with open_runtime("onnxruntime", path) as runtime:
        for flag, wanted in ((True, 3), (False, 1)):
            found = runtime.run({"flag": np.array(flag), "x": np.ones(512, np.float32)})["y"]
            np.testing.assert_array_equal(found, np.full(512, wanted))


def test_graphs_of_another_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(ExportError, match="lies in another directory"):
        share_weights([tmp_path / "inner" / "a.onnx"], tmp_path / "weights.bin")


def test_no_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no graph to take weights from"):
        share_weights([], tmp_path / "weights.bin")
