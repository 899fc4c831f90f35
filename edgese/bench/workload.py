"""Cost of one call of a graph, counted from its ONNX file: launches, multiply-accumulates, operations and bytes.

    workload = read_workload(onnx_path)
    workload.macs                      # precision -> multiply-accumulates of matrix products, for one stream
    len(workload.fused), len(workload.separate)

What a runtime makes of the nodes is not known before it has built its engine, so two ways are counted, between which it
is assumed to lie:

- *fused*: every matrix product and every reduction (a norm is one) is a kernel. The pointwise and moving nodes between
  them make one kernel for each connected group; a group that waits for a single product or reduction runs inside it, as
  its epilogue. What passes between kernels is not counted as memory traffic, and neither are weights: both may stay in
  caches.
- *separate*: every node is a kernel, which reads what it is given and writes what it gives in memory.

In both, views of the same memory (Reshape and its like) cost nothing, and what follows from constants alone is computed
when the engine is built. Streams multiply everything but weights and launches.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from export import ExportError
from export.inspection import Anatomy, Node, read_anatomy, read_onnx

STREAMS = "streams"  # the dynamic axis of a bundle's graphs

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
PRODUCTS = frozenset({"MatMul"})

# Operations for each element that a node gives; moving one is no arithmetic.
_MOVING = dict.fromkeys(("Transpose", "Slice", "Split", "Concat", "Gather", "Pad", "Expand", "Cast"), 0)
_PLAIN = dict.fromkeys(("Add", "Sub", "Mul", "Div", "Abs", "Neg", "Clip", "Min", "Max", "Relu", "Where"), 1)
_ROUNDING = {"QuantizeLinear": 2, "DequantizeLinear": 2}  # a product and a sum
_SLOW = dict.fromkeys(("Exp", "Log", "Sqrt", "Pow", "Sigmoid", "Tanh", "Softplus", "Reciprocal", "Erf"), 1)
POINTWISE: Mapping[str, int] = _MOVING | _PLAIN | _ROUNDING | _SLOW

# For each element that a node is given; of a norm: mean, variance, scale and bias.
REDUCTIONS: Mapping[str, int] = {
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), 1),
    "LayerNormalization": 8,
}

_KNOWN = frozenset({*VIEWS, *PRODUCTS, *POINTWISE, *REDUCTIONS})
_PRECISIONS = {"float32": "fp32", "float16": "fp16"}

# Operators whose inputs after the first say where to cut, how to pad: read when the engine is built.
_SHAPED = frozenset({"Slice", "Split", "Pad", "Expand", "Clip", *REDUCTIONS}) - {"LayerNormalization"}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Nodes that run as one launch, and their cost; all but `weight_bytes` for one stream."""

    nodes: tuple[str, ...]
    macs: Mapping[str, int]  # precision of the factors -> multiply-accumulates of matrix products
    operations: int  # of the nodes that are no matrix product
    slow_operations: int  # those among them that are transcendental or a root
    weight_bytes: int
    outer_bytes: int  # inputs and outputs of the graph: sound and states
    inner_bytes: int  # of what other kernels give or take


@dataclasses.dataclass(frozen=True)
class Workload:
    """Cost of one call; all but `weight_bytes` for one stream."""

    fused: tuple[Kernel, ...]
    separate: tuple[Kernel, ...]
    weight_bytes: int  # each weight once

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-accumulates of matrix products by precision."""
        counts: Counter[str] = Counter()
        for kernel in self.separate:
            counts.update(kernel.macs)
        return dict(sorted(counts.items()))

    @property
    def operations(self) -> int:
        """Operations of all nodes that are no matrix product."""
        return sum(kernel.operations for kernel in self.separate)

    @property
    def outer_bytes(self) -> int:
        """Bytes of sound and states, in and out, as the fused kernels move them."""
        return sum(kernel.outer_bytes for kernel in self.fused)

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kernels": {"fused": len(self.fused), "separate": len(self.separate)},
            "macs": self.macs,
            "operations": self.operations,
            "weight_bytes": self.weight_bytes,
            "sound_and_state_bytes": self.outer_bytes,
            "bytes_between_separate_kernels": sum(kernel.inner_bytes for kernel in self.separate),
        }


def read_workload(onnx_path: Path) -> Workload:
    """Workload of a graph whose inputs have known shapes but for the axis `streams`.

    Raises:
        ExportError: not an ONNX file, an operator whose cost is not known, a shape that cannot be inferred, or a tensor
            that is not twice as large for two streams.
    """
    anatomy = read_anatomy(onnx_path)
    graph = _Graph(onnx_path, anatomy)
    return Workload(
        fused=tuple(graph.kernel(nodes) for nodes in graph.groups()),
        separate=tuple(graph.kernel([node]) for node in graph.nodes),
        weight_bytes=graph.weight_bytes(graph.nodes),
    )


@dataclasses.dataclass(frozen=True)
class _Tensor:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _Graph:
    """Nodes of a graph that run, and their tensors for one stream; a view has the name of the tensor behind it."""

    def __init__(self, path: Path, anatomy: Anatomy) -> None:
        self._path = path
        self._anatomy = anatomy
        self._one, self._two = (_infer(path, streams) for streams in (1, 2))
        self._viewed: dict[str, str] = {}
        self._sources: dict[str, frozenset[str]] = {name: frozenset({name}) for name in anatomy.weights}  # constants
        self.nodes: list[Node] = []
        for node in anatomy.nodes:
            self._take(node)
        self._makers = {name: node for node in self.nodes for name in node.outputs if name}
        self._takers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in self._read(node):
                self._takers.setdefault(name, []).append(node)
        self._given = set(anatomy.inputs)
        self._wanted = {self._viewed.get(name, name) for name in anatomy.outputs}

    def _take(self, node: Node) -> None:
        if node.operator not in _KNOWN:
            known = ", ".join(sorted(_KNOWN))
            raise ExportError(f"{self._path}: {node}: what it costs is not known; counted are {known}")
        given = [name for name in node.inputs if name]
        if all(name in self._sources for name in given):
            sources = frozenset(source for name in given for source in self._sources[name])
            self._sources.update(dict.fromkeys(node.outputs, sources))
        elif node.operator in VIEWS:
            self._viewed[node.outputs[0]] = self._viewed.get(node.inputs[0], node.inputs[0])
        else:
            self.nodes.append(node)

    def _read(self, node: Node) -> list[str]:
        """Names of the tensors that a node reads and that are no constants, each once."""
        names = (self._viewed.get(name, name) for name in node.inputs if name and name not in self._sources)
        return list(dict.fromkeys(names))

    def _anchors(self, node: Node) -> list[Node]:
        """Matrix products and reductions whose outputs a node reads."""
        before = [self._makers[name] for name in self._read(node) if name in self._makers]
        return [maker for maker in before if _is_anchor(maker)]

    def weight_bytes(self, nodes: Sequence[Node]) -> int:
        """Bytes of the weights behind the constants that nodes read, each once, without indices, pads and shapes."""
        names = {
            source
            for node in nodes
            for name in (node.inputs[:1] if node.operator in _SHAPED else node.inputs)
            for source in self._sources.get(name, ())
        }
        weights = [self._anatomy.weights[name] for name in names]
        return sum(weight.nbytes for weight in weights)

    def tensor(self, name: str) -> _Tensor:
        one, two = self._one.get(name), self._two.get(name)
        if one is None or two is None:
            raise ExportError(
                f"{self._path}: {name}: its shape cannot be inferred, wanted one for each number of streams"
            )
        if two.size != 2 * one.size:
            raise ExportError(
                f"{self._path}: {name}: found shape {one.shape} for one stream and {two.shape} for two, wanted twice "
                "the size: only graphs that keep their streams separate are counted"
            )
        return one

    def precision(self, product: Node) -> str:
        """Precision of a product's factors: int8 where both are dequantized, else by their type."""
        makers = [self._anatomy.makers.get(name) for name in product.inputs]
        if all(maker is not None and maker.operator == "DequantizeLinear" for maker in makers):
            return "int8"
        dtype = str(self.tensor(product.outputs[0]).dtype)
        if dtype not in _PRECISIONS:
            raise ExportError(f"{self._path}: {product}: found {dtype}, wanted {' or '.join(_PRECISIONS)}")
        return _PRECISIONS[dtype]

    def kernel(self, nodes: Sequence[Node]) -> Kernel:
        """Kernel of nodes in one launch: tensors that they pass to each other stay inside."""
        macs: Counter[str] = Counter()
        operations = slow = 0
        for node in nodes:
            size = sum(self.tensor(name).size for name in node.outputs if name)
            if node.operator in PRODUCTS:
                macs[self.precision(node)] += size * self._inner_axis(node)
            elif node.operator in REDUCTIONS:
                operations += REDUCTIONS[node.operator] * self.tensor(node.inputs[0]).size
            else:
                operations += POINTWISE[node.operator] * size
                slow += size if node.operator in _SLOW else 0
        own = {node.outputs[0] for node in nodes}
        made = {name for node in nodes for name in node.outputs if name}
        read = {name for node in nodes for name in self._read(node)} - made
        passed = {name for name in made if any(taker.outputs[0] not in own for taker in self._takers.get(name, ()))}
        outer = [*(read & self._given), *(made & self._wanted)]
        inner = [*(read - self._given), *(passed - self._wanted)]
        return Kernel(
            nodes=tuple(str(node) for node in nodes),
            macs=dict(macs),
            operations=operations,
            slow_operations=slow,
            weight_bytes=self.weight_bytes(nodes),
            outer_bytes=sum(self.tensor(name).nbytes for name in outer),
            inner_bytes=sum(self.tensor(name).nbytes for name in inner),
        )

    def _inner_axis(self, product: Node) -> int:
        first = product.inputs[0]
        weight = self._anatomy.weights.get(first)
        return int(weight.shape[-1] if weight is not None else self.tensor(first).shape[-1])

    def groups(self) -> Iterator[list[Node]]:
        """Nodes of each fused kernel.

        A node's depth is the number of products and reductions on the longest way to it. Other nodes that are connected
        and of one depth make a group: no way leads out of it and back, so it can run as one kernel. A group that reads
        from a single product or reduction of the depth before runs inside that; what else it reads was there before.
        """
        depth: dict[str, int] = {}  # of the node that makes a tensor
        home: dict[str, int] = {}  # the group of the node that makes a tensor
        groups: list[list[Node]] = []
        for node in self.nodes:
            before = [self._makers[name].outputs[0] for name in self._read(node) if name in self._makers]
            key = node.outputs[0]
            depth[key] = max((depth[name] + _is_anchor(self._makers[name]) for name in before), default=0)
            near = [name for name in before if depth[name] == depth[key] and not _is_anchor(self._makers[name])]
            joined = {home[name] for name in near} if not _is_anchor(node) else set()
            members = [*(member for index in sorted(joined) for member in groups[index]), node]
            for index in joined:
                groups[index] = []
            groups.append(members)
            home.update((member.outputs[0], len(groups) - 1) for member in members)
        hosted: dict[str, list[Node]] = {}
        for members in groups:
            hosts = {
                anchor.outputs[0]
                for node in members
                for anchor in self._anchors(node)
                if depth[anchor.outputs[0]] + 1 == depth[node.outputs[0]]
            }
            if members and not _is_anchor(members[0]) and len(hosts) == 1 and hosts.isdisjoint(hosted):
                hosted[hosts.pop()] = members
        guests = {node.outputs[0] for members in hosted.values() for node in members}
        for members in groups:
            if members and members[0].outputs[0] not in guests:
                yield [*members, *hosted.get(members[0].outputs[0], ())]


def _is_anchor(node: Node) -> bool:
    return node.operator in PRODUCTS or node.operator in REDUCTIONS


def _infer(onnx_path: Path, streams: int) -> dict[str, _Tensor]:
    """Type and shape of all tensors but weights for a number of streams, by name, where both can be inferred."""
    model = read_onnx(onnx_path)
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param == STREAMS:
                axis.dim_value = streams
    del model.graph.value_info[:]  # what a graph notes of its tensors may be wrong, and would be believed
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"{onnx_path}: its shapes cannot be inferred ({error}); export it again") from error
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {
        value.name: _Tensor(
            np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim),
        )
        for value in values
        if value.type.tensor_type.HasField("shape")
        and all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim)
    }
