"""Q/DQ nodes: chosen products of a float32 graph written in 8 bits, and those of a file read back to be checked.

    offered = candidates(onnx_path)
    ranges = find_ranges(onnx_path, batches, {product.activation for product in offered})
    write_quantized(onnx_path, quantized_path, [product.node for product in offered], ranges, SYMMETRIC)
    read_quantized(quantized_path)

onnxruntime's quantizer sees the chosen products alone, never the graph: in a whole graph it hands the rounded tensor to
every node that reads it and to the graph's outputs, and adds metadata of its own. What it made of them is then put
into the graph, of which all else stays as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import add_infer_metadata

from calib import CalibrationError
from calib.ranges import Range, read_model

_ACTIVATIONS = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}

_FLOAT32_MIN, _FLOAT32_MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The 8-bit numbers that activations become; weights are int8, symmetric, in every scheme."""

    name: str
    activations: str  # "int8" or "uint8"
    symmetric: bool  # as wide below zero as above; int8 then has zero point 0

    def __post_init__(self) -> None:
        if self.activations not in _ACTIVATIONS:
            raise CalibrationError(f"activations: found {self.activations!r}, wanted one of {', '.join(_ACTIVATIONS)}")


SYMMETRIC = Scheme("symmetric", "int8", symmetric=True)  # the only one that TensorRT takes
ASYMMETRIC = Scheme("asymmetric", "uint8", symmetric=False)  # finer for CPUs, where a zero point costs nothing


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A product of a float32 tensor with a float32 weight."""

    node: str  # name of the MatMul
    activation: str  # name of the tensor on the left
    weight: str  # name of the initializer on the right
    shape: tuple[int, ...]  # of the weight


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedProduct:
    """A product in 8 bits as its graph holds it: a value is (number - zero point) * scale."""

    node: str  # name of the MatMul
    activation: str  # name of the float tensor that is quantized
    activation_scale: float
    zero_point: int  # of the activation
    activation_dtype: str  # "int8" or "uint8"
    weight: NDArray[np.int8]
    weight_scale: NDArray[np.float32]  # shape () or (C,)
    weight_axis: int | None  # the axis that is C long

    @property
    def dequantized(self) -> NDArray[np.float32]:
        """The weight that the product is made with, float32 in the weight's shape."""
        scale = self.weight_scale
        if self.weight_axis is not None:
            scale = scale.reshape([-1 if axis == self.weight_axis else 1 for axis in range(self.weight.ndim)])
        return self.weight.astype(np.float32) * scale


def candidates(onnx_path: Path) -> tuple[Candidate, ...]:
    """The products that can be quantized, in the graph's order: MatMul of a float32 tensor with an initializer.

    The graph's own nodes only, none inside a Scan, Loop or If. The weight has rank 2 or more.

    Raises:
        CalibrationError: not an ONNX file, or two of them bear one name.
    """
    return _candidates(read_model(onnx_path, weights=False), onnx_path)


def write_quantized(
    onnx_path: Path,
    quantized_path: Path,
    nodes: Collection[str],
    ranges: Mapping[str, Range],
    scheme: Scheme,
) -> None:
    """Write a self-contained copy in which the named products are made in 8 bits.

    Each of their activations passes one Q/DQ pair, which all named products that read it share; all other readers get
    it unrounded. Weights of rank 2 are int8 with one scale for each column, weights of higher rank with one scale (with
    more, onnxruntime's fused kernel fails). Biases stay float32. Nothing else changes: nodes, names, metadata, inputs,
    outputs, opset. Equal inputs give equal bytes.

    Args:
        nodes: names of `candidates`.
        ranges: activation -> range; others may be among them. Zero is always inside what is represented, and a
            symmetric scheme takes the larger side for both.

    Raises:
        CalibrationError: no node, or one that is no candidate; a range that is missing, empty or out of float32's
            bounds; a weight that is not finite; a file that would not be valid.
    """
    if quantized_path.suffix != ".onnx":
        raise CalibrationError(f"{quantized_path}: the file name must end in .onnx")
    model = read_model(onnx_path)
    chosen = _choose(_candidates(model, onnx_path), nodes, onnx_path)
    for product in chosen:
        _check_range(product, ranges, onnx_path)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for product in chosen:
        if not np.isfinite(numpy_helper.to_array(weights[product.weight])).all():
            raise CalibrationError(f"{onnx_path}: {product.weight} holds NaN or Inf, wanted finite numbers")
    quantized = _quantized_alone(model, chosen, weights, ranges, scheme)
    _insert(model, quantized, {product.weight for product in chosen}, onnx_path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CalibrationError(f"{quantized_path}: would not be valid ONNX: {error}") from error
    quantized_path.write_bytes(model.SerializeToString(deterministic=True))


def read_quantized(onnx_path: Path) -> tuple[QuantizedProduct, ...]:
    """The products in 8 bits that a file holds, in the graph's order, its scales and weights as they are stored.

    Raises:
        CalibrationError: not an ONNX file, or a Q or DQ that is not part of such a product: Q and DQ on the
            activation with one scale and zero point for both, DQ with zero point 0 on an int8 weight.
    """
    return _Reader(onnx_path).products()


def _candidates(model: onnx.ModelProto, onnx_path: Path) -> tuple[Candidate, ...]:
    inputs = {value.name for value in model.graph.input}
    weights = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.name not in inputs  # else a caller could feed another
    }
    found = [
        Candidate(node.name, node.input[0], node.input[1], tuple(weights[node.input[1]].dims))
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and node.input[0] not in weights
        and weights[node.input[1]].data_type == TensorProto.FLOAT
        and len(weights[node.input[1]].dims) >= 2
    ]
    names = [product.node for product in found]
    for name in names:
        if not name or names.count(name) > 1:
            raise CalibrationError(f"{onnx_path}: {names.count(name)} products bear the name {name!r}, wanted one each")
    return tuple(found)


def _choose(offered: Sequence[Candidate], nodes: Collection[str], onnx_path: Path) -> list[Candidate]:
    if not nodes:
        raise CalibrationError(f"{onnx_path}: no nodes to quantize, wanted at least one")
    unknown = sorted(set(nodes) - {product.node for product in offered})
    if unknown:
        raise CalibrationError(
            f"{onnx_path}: {', '.join(unknown)}: no product of a float32 tensor with a weight; "
            f"this graph has {', '.join(product.node for product in offered) or 'none'}"
        )
    return [product for product in offered if product.node in set(nodes)]


def _check_range(product: Candidate, ranges: Mapping[str, Range], onnx_path: Path) -> None:
    name = product.activation
    if name not in ranges:
        raise CalibrationError(f"{onnx_path}: no range for {name}, which {product.node} reads; find its range first")
    low, high = ranges[name].low, ranges[name].high
    if low == high:
        raise CalibrationError(f"{onnx_path}: the range of {name} is {low} to {high}, wanted one that is not empty")
    low, high = min(low, 0), max(high, 0)
    # onnxruntime would quietly take a scale of 1 where the step underflows.
    if (high - low) / 255 < _FLOAT32_MIN or max(-low, high) > _FLOAT32_MAX:
        raise CalibrationError(
            f"{onnx_path}: the range of {name} is {ranges[name].low} to {ranges[name].high}, "
            "wanted one that 255 steps of float32 can divide"
        )


def _quantized_alone(
    model: onnx.ModelProto,
    chosen: Sequence[Candidate],
    weights: Mapping[str, TensorProto],
    ranges: Mapping[str, Range],
    scheme: Scheme,
) -> onnx.GraphProto:
    """The chosen products with Q/DQ and 8-bit weights, as onnxruntime makes them: a graph of nothing else."""
    activations = dict.fromkeys(product.activation for product in chosen)
    ours = dict.fromkeys(product.weight for product in chosen)
    alone = helper.make_graph(
        # Without outputs: none of them can be another's input then.
        [helper.make_node("MatMul", [product.activation, product.weight], [], product.node) for product in chosen],
        "products",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in activations],
        [],
        [weights[name] for name in ours],
    )
    opsets = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    extract = helper.make_model(alone, opset_imports=opsets, ir_version=model.ir_version)
    add_infer_metadata(extract)  # all types are given: nothing to infer, and no files written for it
    quantizer = QDQQuantizer(
        extract,
        per_channel=False,  # see the overrides
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=_ACTIVATIONS[scheme.activations],
        tensors_range=TensorsData(
            CalibrationMethod.MinMax,
            {
                name: TensorData(lowest=np.float32(ranges[name].low), highest=np.float32(ranges[name].high))
                for name in activations
            },
        ),
        nodes_to_quantize=[product.node for product in chosen],
        nodes_to_exclude=[],
        op_types_to_quantize=["MatMul"],
        extra_options={
            "ActivationSymmetric": scheme.symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
            "TensorQuantOverrides": {name: [{"axis": 1}] for name in ours if len(weights[name].dims) == 2},
        },
    )
    quantized: onnx.GraphProto = quantizer.quantize_model().graph
    return quantized


def _insert(model: onnx.ModelProto, quantized: onnx.GraphProto, weights: set[str], onnx_path: Path) -> None:
    """Put the Q/DQ nodes of `quantized` into a graph, each before the first product that reads it.

    Of `weights`, those of the products, the graph keeps in float32 what other nodes read.
    """
    graph = model.graph
    makers = {name: node for node in quantized.node for name in node.output}
    products = {node.name: node for node in quantized.node if node.op_type == "MatMul"}
    taken = {name for inner in _graphs(graph) for name in _names(inner)}
    for name in (*makers, *(tensor.name for tensor in quantized.initializer)):
        if name in taken:
            raise CalibrationError(f"{onnx_path}: the graph has a tensor {name} already; give the float32 graph")
    nodes, placed = [], set()
    for node in graph.node:
        if node.op_type == "MatMul" and node.name in products:
            product = products[node.name]
            for new in (maker for name in product.input for maker in _makers(makers, name)):
                if new.name not in placed:
                    placed.add(new.name)
                    new.metadata_props.extend(node.metadata_props)  # whose product it serves
                    nodes.append(new)
            node.input[:] = product.input
        nodes.append(node)
    _replace(graph.node, nodes)
    read = {name for inner in _graphs(graph) for node in inner.node for name in node.input}
    read |= {value.name for inner in _graphs(graph) for value in inner.output}
    unread = weights - read  # what products alone have read, in float32
    still_read = [tensor for tensor in graph.initializer if tensor.name not in unread]
    _replace(graph.initializer, [*still_read, *quantized.initializer])


def _makers(makers: Mapping[str, onnx.NodeProto], name: str) -> list[onnx.NodeProto]:
    """The nodes behind a tensor, first those that others read; none where it comes from outside."""
    node = makers.get(name)
    return [] if node is None else [maker for inner in node.input for maker in _makers(makers, inner)] + [node]


def _replace(repeated: Any, items: Sequence[Any]) -> None:
    """Replace the messages of a repeated field of protobuf."""
    copies = [type(item).FromString(item.SerializeToString()) for item in items]
    del repeated[:]
    repeated.extend(copies)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """Names of all tensors that a graph itself makes or holds."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield from node.output


class _Reader:
    """Reads the products in 8 bits out of a file and refuses every Q and DQ that belongs to none."""

    def __init__(self, onnx_path: Path) -> None:
        self.onnx_path = onnx_path
        graph = read_model(onnx_path).graph
        self.nodes = list(graph.node)
        self.makers = {name: node for node in graph.node for name in node.output}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in graph.node:
            for place, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, place))
        inner = [each for each in _graphs(graph) if each is not graph]
        self.inner_nodes = [node for each in inner for node in each.node]
        self.leaving = {value.name for value in graph.output}  # by more ways than the graph's own nodes
        self.leaving |= {name for node in self.inner_nodes for name in node.input}
        self.leaving |= {value.name for each in inner for value in each.output}

    def products(self) -> tuple[QuantizedProduct, ...]:
        for node in self.inner_nodes:
            if node.op_type in (_QUANTIZE, _DEQUANTIZE):
                self._refuse(node, "stands inside another node, wanted it in the graph itself")
        for node in self.nodes:
            if node.op_type == _QUANTIZE:
                self._check_quantize(node)
            elif node.op_type == _DEQUANTIZE:
                self._check_dequantize(node)
        found = []
        for node in self.nodes:
            if node.op_type == "MatMul":
                left, right = (self._dequantize(name) for name in node.input)
                if left is not None and right is not None:
                    found.append(self._product(node, left, right))
                elif left is not None or right is not None:
                    name = node.input[0 if left is None else 1]
                    self._refuse(node, f"reads {name}, which is not quantized, beside one that is; wanted both or none")
        return tuple(found)

    def _check_quantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self.tensors:
            self._refuse(node, f"quantizes the weight {node.input[0]} in every run, wanted an int8 weight and DQ only")
        self._check_readers(node, _DEQUANTIZE, 0)

    def _check_dequantize(self, node: onnx.NodeProto) -> None:
        maker = self.makers.get(node.input[0])
        if maker is not None and maker.op_type == _QUANTIZE:
            self._check_readers(node, "MatMul", 0)
        elif node.input[0] in self.tensors:
            self._check_readers(node, "MatMul", 1)
        else:
            self._refuse(node, f"reads {node.input[0]}, wanted what a {_QUANTIZE} gives, or a weight")

    def _check_readers(self, node: onnx.NodeProto, operator: str, place: int) -> None:
        """Refuse a node whose outputs have no reader, or a reader of another operator than is allowed."""
        readers = self.readers.get(node.output[0], [])
        wanted = f"wanted input {place} of {operator} only"
        for reader, where in readers:
            if (reader.op_type, where) != (operator, place):
                self._refuse(node, f"feeds input {where} of {_called(reader)}, {wanted}")
        if node.output[0] in self.leaving:
            self._refuse(node, f"feeds an output or the inside of another node, {wanted}")
        if not readers:
            self._refuse(node, f"feeds nothing, {wanted}")

    def _dequantize(self, name: str) -> onnx.NodeProto | None:
        """The DQ that gives a tensor."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == _DEQUANTIZE else None

    def _product(self, node: onnx.NodeProto, left: onnx.NodeProto, right: onnx.NodeProto) -> QuantizedProduct:
        quantize = self.makers[left.input[0]]
        scale, zero_point = self._parameters(quantize)
        if zero_point is None:
            zero_point = np.zeros((), np.uint8)  # as ONNX has it
        again = self._parameters(left)
        for what, ours, theirs in (("scale", scale, again[0]), ("zero point", zero_point, again[1])):
            if theirs is None and not ours.any():
                continue  # left out, and zero then
            if theirs is None or ours.dtype != theirs.dtype or not np.array_equal(ours, theirs):
                self._refuse(
                    left,
                    f"has the {what} {_shown(theirs)}, but {_called(quantize)} has {_shown(ours)}; wanted one for both",
                )
        if scale.size != 1:
            self._refuse(left, f"has {scale.size} scales on an activation, wanted one")
        if zero_point.dtype.name not in _ACTIVATIONS:
            self._refuse(left, f"reads {zero_point.dtype.name}, wanted one of {', '.join(_ACTIVATIONS)}")
        weight, weight_scale, weight_axis = self._weight(right)
        return QuantizedProduct(
            node=node.name,
            activation=quantize.input[0],
            activation_scale=float(scale.item()),
            zero_point=int(zero_point.item()),
            activation_dtype=zero_point.dtype.name,
            weight=weight,
            weight_scale=weight_scale,
            weight_axis=weight_axis,
        )

    def _weight(self, node: onnx.NodeProto) -> tuple[NDArray[np.int8], NDArray[np.float32], int | None]:
        weight = numpy_helper.to_array(self.tensors[node.input[0]])
        scale, zero_point = self._parameters(node)
        if weight.dtype != np.int8:
            self._refuse(node, f"reads a weight of dtype {weight.dtype}, wanted int8")
        if zero_point is not None and zero_point.any():
            self._refuse(node, f"has the zero point {_shown(zero_point)} on a weight, wanted 0")
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        axis += weight.ndim if axis < 0 else 0
        if scale.ndim == 1 and 0 <= axis < weight.ndim and scale.size == weight.shape[axis]:
            return weight, scale, axis
        if scale.size != 1:
            self._refuse(node, f"has scales of shape {scale.shape} on axis {axis} of a weight of shape {weight.shape}")
        return weight, scale.reshape(()), None

    def _parameters(self, node: onnx.NodeProto) -> tuple[NDArray[np.float32], NDArray[Any] | None]:
        """Scale and zero point of a Q or DQ, by their values; None where the zero point is left out."""
        for attribute in node.attribute:
            if attribute.name == "block_size" and attribute.i:
                self._refuse(node, f"has scales for blocks of {attribute.i}, wanted one, or one for each channel")
        for name in node.input[1:]:
            if name and name not in self.tensors:
                self._refuse(node, f"computes {name}, wanted a scale and a zero point that are stored")
        scale = numpy_helper.to_array(self.tensors[node.input[1]])
        if scale.dtype != np.float32 or not np.isfinite(scale).all() or not (scale > 0).all():
            self._refuse(node, f"has the scale {_shown(scale)} of dtype {scale.dtype}, wanted positive float32")
        left_out = len(node.input) < 3 or not node.input[2]
        return scale, None if left_out else numpy_helper.to_array(self.tensors[node.input[2]])

    def _refuse(self, node: onnx.NodeProto, what: str) -> NoReturn:
        raise CalibrationError(f"{self.onnx_path}: {_called(node)}: {what}")


def _called(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"


def _shown(array: NDArray[Any] | None) -> str:
    if array is None:
        return "none"
    return str(array.item()) if array.size == 1 else f"{array.ravel()[0]} ... {array.ravel()[-1]}"
