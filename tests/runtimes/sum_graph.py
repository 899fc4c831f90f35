"""A graph for what is a runtime's own: a running sum with two states, any of its axes static or open."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def write_sum(path: Path, frames: int | str = 4, dtype: int = TensorProto.FLOAT) -> Path:
    """A running sum: y = x + total over the frames so far; `total` and `offset` (a scalar) are states."""
    sizes: dict[str, list[int | str]] = {"x": ["streams", frames], "total": ["streams", 1], "offset": []}
    inputs = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in sizes.items()]
    after = {"y": sizes["x"], "total_next": sizes["total"], "offset_next": []}
    outputs = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in after.items()]
    nodes = [
        helper.make_node("CumSum", ["x", "axis"], ["sums"]),
        helper.make_node("Add", ["sums", "total"], ["y"]),
        helper.make_node("Slice", ["y", "last", "end", "axes"], ["total_next"]),
        helper.make_node("Identity", ["offset"], ["offset_next"]),
    ]
    integers = {"axis": (), "last": (1,), "end": (1,), "axes": (1,)}
    values = {"axis": 1, "last": -1, "end": 2**31, "axes": 1}
    constants = [helper.make_tensor(k, TensorProto.INT64, shape, [values[k]]) for k, shape in integers.items()]
    graph = helper.make_graph(nodes, "sum", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


STATES = {"total": "total_next", "offset": "offset_next"}
