"""ONNX graphs inspected: their nodes and weights, the first difference of two, copies that show inner tensors.

anatomy = read_anatomy(onnx_path)           # nodes, weights, inputs and outputs
first_difference(wanted, found)             # one line, or "" where both are made alike
write_exposed(onnx_path, copy_path)         # the inner tensors are outputs as well
write_float64(onnx_path, copy_path)         # the same arithmetic, without its rounding
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export import ExportError
from runtimes.onnx_file import read_weight_files

MODULE = "module"  # entry in a node's metadata: path of the submodule that it came from, see graph.write_onnx

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation; `inputs` and `outputs` name tensors, an input that is left out is empty."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...] = ()  # "axis = 1", by name
    module: str = ""

    def __str__(self) -> str:
        return f"{self.operator} {self.name}".strip()


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The inputs, outputs, nodes, weights and metadata of a graph."""

    inputs: Mapping[str, str]  # name -> dtype, in the graph's order
    outputs: Mapping[str, str]
    nodes: tuple[Node, ...]  # each after those whose tensors it reads
    weights: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, str]

    @cached_property
    def makers(self) -> dict[str, Node]:
        """The node that gives each tensor; an input or a weight has none."""
        return {tensor: node for node in self.nodes for tensor in node.outputs if tensor}


def read_anatomy(onnx_path: Path) -> Anatomy:
    """The inputs, outputs, nodes, weights and metadata of the graph in a file, its weights loaded.

    Raises:
        ExportError: not an ONNX file, or its weights' file is missing.
    """
    model = read_onnx(onnx_path)
    return Anatomy(
        inputs=_dtypes(model.graph.input),
        outputs=_dtypes(model.graph.output),
        nodes=tuple(_node(node) for node in model.graph.node),
        weights={tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer},
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def half_nodes(onnx_path: Path) -> tuple[Node, ...]:
    """Nodes of a graph, those inside of others included, that read or give float16 or bfloat16, in its order.

    Raises:
        ExportError: not an ONNX file, its weights' file is missing, or a tensor is of another type than it says.
    """
    model = read_onnx(onnx_path)
    for graph in _graphs(model.graph):
        del graph.value_info[:]  # what a graph notes of its tensors may be wrong, and would be believed
    model = _inferred(model, onnx_path)
    half: set[str] = set()
    for graph in _graphs(model.graph):
        values = (*graph.input, *graph.output, *graph.value_info)
        half |= {value.name for value in values if value.type.tensor_type.elem_type in _HALVES}
        half |= {tensor.name for tensor in graph.initializer if tensor.data_type in _HALVES}
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    return tuple(_node(node) for node in nodes if not half.isdisjoint((*node.input, *node.output)))


def write_exposed(onnx_path: Path, copy_path: Path, tensors: Collection[str] | None = None) -> None:
    """Write a copy whose outputs are followed by inner tensors of floats: those of `tensors`, or all.

    A tensor whose type cannot be inferred, behind an operator that ONNX does not know, is left out, and so is one that
    weights alone make, such as a dequantized weight: ONNX Runtime fails to fold it where it is an output. What a
    runtime fuses depends on which tensors are outputs.

    Raises:
        ExportError: not an ONNX file, its weights' file is missing, or a tensor is of another type than it says.
    """
    model = read_onnx(onnx_path)
    known = {value.name: value for value in _inferred(model, onnx_path).graph.value_info}
    outputs = {value.name for value in model.graph.output}
    constant = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if constant.issuperset(filter(None, node.input)):
            constant.update(node.output)
    hidden = constant | outputs
    inner = [name for node in model.graph.node for name in node.output if name in known and name not in hidden]
    model.graph.output.extend(
        known[name]
        for name in inner
        if known[name].type.tensor_type.elem_type in _FLOATS and (tensors is None or name in tensors)
    )
    onnx.save(model, copy_path)


def write_float64(onnx_path: Path, copy_path: Path) -> None:
    """Write a copy that computes in float64 whatever the graph computes in float32, inputs and outputs included.

    Q and DQ, which ONNX has for float32 only, stay in float32 between two Casts: a value is brought to float32 before
    it is rounded to 8 bits, and what comes out of them is exact in either.

    Raises:
        ExportError: not an ONNX file, or its weights' file is missing.
    """
    model = read_onnx(onnx_path)
    for graph in _graphs(model.graph):
        scales = {node.input[1] for node in graph.node if node.op_type in _ROUNDING}
        for tensor in graph.initializer:
            if tensor.name not in scales:
                _to_float64(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            for attribute in node.attribute:
                _to_float64(attribute.t)
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = TensorProto.DOUBLE
        _cast_around_rounding(graph)
    onnx.save(model, copy_path)


def first_difference(wanted: Anatomy, found: Anatomy) -> str:
    """The first difference between two graphs in one line, "" where there is none; the values of weights do not count.

    Inputs and outputs come first, then nodes in the wanted graph's order, matched by the tensors that they give.
    """
    for kind, ours, theirs in (("input", wanted.inputs, found.inputs), ("output", wanted.outputs, found.outputs)):
        for name in (*ours, *theirs):
            if ours.get(name) != theirs.get(name):
                return f"{kind} {name}: found {theirs.get(name, 'none')}, wanted {ours.get(name, 'none')}"
    for node in wanted.nodes:
        for tensor in node.outputs:
            difference = node_difference(wanted, found, tensor)
            if difference:
                return difference
    for node in found.nodes:
        if not any(tensor in wanted.makers for tensor in node.outputs):
            return f"{node}: gives {', '.join(node.outputs)}, which is not wanted"
    return ""


def n_nodes_alike(wanted: Anatomy, found: Anatomy) -> int:
    """The number of the wanted graph's nodes that the other one has: the same operator, tensors of the same names."""
    return sum(not any(node_difference(wanted, found, tensor) for tensor in node.outputs) for node in wanted.nodes)


def node_difference(wanted: Anatomy, found: Anatomy, tensor: str) -> str:
    """The difference of the nodes that give a tensor, in one line; "" where they are alike or neither exists."""
    ours, theirs = wanted.makers.get(tensor), found.makers.get(tensor)
    if ours is None or theirs is None:
        return "" if ours is theirs else f"{tensor}: found {_made(theirs)}, wanted {_made(ours)}"
    if ours.operator != theirs.operator:
        return f"{tensor}: found {_made(theirs)}, wanted {_made(ours)}"
    if ours.inputs != theirs.inputs:
        new = {name: found.makers.get(name) for name in theirs.inputs if name not in ours.inputs}
        sources = [f"{name} is {_made(node)}" for name, node in new.items() if node is not None]
        return "; ".join([f"{tensor}: found {_made(theirs)}, wanted {_made(ours)}", *sources])
    if ours.attributes != theirs.attributes:
        return f"{theirs}: found {', '.join(theirs.attributes)}, wanted {', '.join(ours.attributes)}"
    return ""


def _made(node: Node | None) -> str:
    return "no node that gives it" if node is None else f"{node}({', '.join(node.inputs)})"


def read_onnx(onnx_path: Path) -> onnx.ModelProto:
    """The ONNX model in a file, with the weights that lie beside it.

    onnx itself refuses weights whose file has hard links, as uv and conda install files; which files may be read is
    decided here, by their place (runtimes/onnx_file.py).

    Raises:
        ExportError: not an ONNX file, or weights that are missing, cut short or elsewhere.
    """
    try:
        files = {file.name: file.read_bytes() for file in read_weight_files(onnx_path)}
        model = onnx.load(onnx_path, load_external_data=False)
        for tensor in _outside(model.graph):
            where = {entry.key: entry.value for entry in tensor.external_data}
            content, start = files[where["location"]], int(where.get("offset", 0))
            stop = start + int(where["length"]) if "length" in where else len(content)
            if not 0 <= start <= stop <= len(content):
                raise ValueError(f"{tensor.name} ends at {stop}, {where['location']} at {len(content)}")
            tensor.raw_data = content[start:stop]
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
        return model
    except Exception as error:  # protobuf's own errors and onnx's share no base but Exception
        raise ExportError(f"{onnx_path}: cannot be read as ONNX ({error}); export or fetch it again") from error


def _outside(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Tensors of a graph, and of those inside of it, whose content lies in another file."""
    for node in graph.node:
        for attribute in node.attribute:
            yield from (tensor for tensor in (attribute.t, *attribute.tensors) if tensor.external_data)
            for inner in (attribute.g, *attribute.graphs):
                yield from _outside(inner)
    yield from (tensor for tensor in graph.initializer if tensor.external_data)


def _inferred(model: onnx.ModelProto, onnx_path: Path) -> onnx.ModelProto:
    """The model with the types and shapes of all inner tensors that can be inferred."""
    try:
        return onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"{onnx_path}: its tensors contradict their types ({error}); export it again") from error


def _node(node: onnx.NodeProto) -> Node:
    modules = [entry.value for entry in node.metadata_props if entry.key == MODULE]
    return Node(
        name=node.name,
        operator=node.op_type,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=tuple(sorted(str(helper.printable_attribute(attribute)) for attribute in node.attribute)),
        module=modules[0] if modules else "",
    )


def _dtypes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, str]:
    return {v.name: str(helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)) for v in values}


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _cast_around_rounding(graph: onnx.GraphProto) -> None:
    """Put Casts around Q and DQ, which read and give float32; all tensors keep their names."""
    nodes = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            float32 = f"{node.output[0]}_float32"
            nodes.append(helper.make_node("Cast", [node.input[0]], [float32], to=TensorProto.FLOAT))
            node.input[0] = float32
        nodes.append(node)
        if node.op_type == "DequantizeLinear":
            float64, node.output[0] = node.output[0], f"{node.output[0]}_float32"
            nodes.append(helper.make_node("Cast", [node.output[0]], [float64], to=TensorProto.DOUBLE))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _to_float64(tensor: onnx.TensorProto) -> None:
    """Convert a tensor in place, if it holds float32."""
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
