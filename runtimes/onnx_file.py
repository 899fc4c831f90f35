"""An ONNX file's inputs, outputs, metadata, operators and files of weights, read without the onnx package.

For OpenVINO, which drops the names of dynamic axes, and for building engines, as boards have no onnx package. An ONNX
file is one protobuf message (fields: onnx.proto; encoding: protobuf.dev/programming-guides/encoding), of which a few
fields are read and the others skipped. The standard library is all that this needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtimes.errors import ArtefactError
from runtimes.tensor_spec import TensorSpec

_UINT8 = 2  # onnx.proto, TensorProto.DataType
_DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}
_FIXED_BYTES = {1: 8, 5: 4}  # by wire type
_MOST_NESTED = 32  # graphs inside of graphs: protobuf's own readers stop at 100 messages, three to a graph

_Value = int | memoryview

# Where tensors stand, by the numbers of the fields that lead to them: onnx.proto.
_TENSOR: dict[int, Any] = {}
_SPARSE = {1: _TENSOR, 2: _TENSOR}
_ATTRIBUTE: dict[int, Any] = {5: _TENSOR, 10: _TENSOR, 22: _SPARSE, 23: _SPARSE}
_NODE = {5: _ATTRIBUTE}
_GRAPH = {1: _NODE, 5: _TENSOR, 15: _SPARSE}
_ATTRIBUTE |= {6: _GRAPH, 11: _GRAPH}
_MODEL = {7: _GRAPH, 20: {1: _GRAPH, 2: _GRAPH}, 25: {7: _NODE, 11: _ATTRIBUTE}}


@dataclasses.dataclass(frozen=True)
class OnnxHeader:
    """The interface of a graph: what it takes, what it gives, and its metadata."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: dict[str, str]


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """The content of a graph, as far as building an engine depends on it."""

    weight_files: tuple[Path, ...]  # beside it, those that it names and that are there, by name
    opset: int
    operators: tuple[str, ...]  # each once, by name; those inside of others included
    unsigned: tuple[str, ...]  # "operator name" of each QuantizeLinear and DequantizeLinear of uint8


def read_onnx_header(path: Path) -> OnnxHeader:
    """The inputs, outputs and metadata of an ONNX file, in its order.

    Raises:
        ArtefactError: the file cannot be read, is no ONNX, is damaged, or takes something else than plain tensors.
    """
    with _refusing(path):
        model, graphs = _open(path)
        inputs, outputs = (
            tuple(_spec(info) for graph in graphs for info in graph.messages(number)) for number in (11, 12)
        )
        return OnnxHeader(inputs, outputs, {entry.text(1): entry.text(2) for entry in model.messages(14)})


def read_onnx_file(path: Path) -> OnnxFile:
    """The operators of an ONNX file and its files of weights.

    Raises:
        ArtefactError: it cannot be read, is no ONNX, or a file of weights is missing or lies outside its directory.
    """
    with _refusing(path):
        model, outermost = _open(path)
        graphs = [inner for graph in outermost for inner in _graphs(graph)]
        nodes = [node for graph in graphs for node in graph.messages(1)]
        tensors = [tensor for graph in graphs for tensor in graph.messages(5)]
        opset = max((entry.number(2) for entry in model.messages(8) if entry.text(1) in ("", "ai.onnx")), default=0)
        operators = tuple(sorted({node.text(4) for node in nodes}))
        unsigned = tuple(_unsigned(nodes, tensors))
    return OnnxFile(read_weight_files(path), opset, operators, unsigned)


def read_weight_files(path: Path) -> tuple[Path, ...]:
    """Files of weights that an ONNX file names, wherever in it a tensor may stand, in alphabetical order.

    Raises:
        ArtefactError: it cannot be read, is no ONNX; such a file is missing, no regular one, or a link leads to it, or
            it is said to lie outside the ONNX file's directory.
    """
    with _refusing(path):
        model = _Message(memoryview(path.read_bytes()))
        locations = sorted(set(_locations(model, _MODEL)))
    return tuple(_weight_file(path, location) for location in locations)


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}); export or fetch it again") from error
    except ValueError as error:
        raise ArtefactError(f"{path}: cannot be read as ONNX ({error}); export or fetch it again") from error


def _open(path: Path) -> tuple[_Message, list[_Message]]:
    """The model in a file, and its graph: more than one message where the field is given in parts, which add up."""
    model = _Message(memoryview(path.read_bytes()))
    graphs = model.messages(7)
    if not any(graph.messages(1) for graph in graphs):
        raise ValueError("it holds no graph")
    return model, graphs


def _spec(info: _Message) -> TensorSpec:
    name = info.text(1)
    tensors = [tensor for kind in info.messages(2) for tensor in kind.messages(1)]  # none of a sequence, map, optional
    wanted = ", ".join(_DTYPES.values())
    if not tensors:
        raise ValueError(f"{name} is no tensor of {wanted}")
    tensor = tensors[-1]
    if tensor.number(1) not in _DTYPES:
        raise ValueError(f"{name} has elements of type {tensor.number(1)}, wanted one of {wanted}")
    shapes = tensor.messages(2)
    if not shapes:
        raise ValueError(f"{name} has no shape")
    axes = enumerate(shapes[-1].messages(1))
    shape = tuple(axis.number(1) if axis.has(1) else axis.text(2) or f"{name}_{index}" for index, axis in axes)
    return TensorSpec(name, shape, _DTYPES[tensor.number(1)])


def _locations(message: _Message, kind: dict[int, Any], depth: int = 0) -> Iterator[str]:
    """Names of the files that hold the tensors of a message of this kind and of those inside of it."""
    if depth > 3 * _MOST_NESTED:
        raise ValueError(f"graphs lie inside of graphs, more than {_MOST_NESTED} deep")
    if kind is _TENSOR:
        yield from (entry.text(2) for entry in message.messages(13) if entry.text(1) == "location")
        return
    for number, inner_kind in kind.items():
        # The bytes tell faster than a reading does whether a message names any file.
        for inner in message.messages(number, holding=b"location"):
            yield from _locations(inner, inner_kind, depth + 1)


def _weight_file(path: Path, location: str) -> Path:
    """Path of a file of weights right beside the graph; not in a folder: runtimes give some such names a meaning."""
    if location in ("", ".", "..") or not location.isprintable() or "/" in location or "\\" in location:
        raise ArtefactError(f"{path}: its weights are said to be in {location!r}, wanted a file beside it")
    weight_file = path.parent / location
    if weight_file.is_symlink():
        raise ArtefactError(f"{path}: its weights' file {location} is reached by a link, wanted a file beside it")
    if not weight_file.is_file():
        raise ArtefactError(f"{path}: its weights' file {location} is missing; put it beside the graph")
    return weight_file


def _graphs(graph: _Message, depth: int = 0) -> Iterator[_Message]:
    """A graph and those inside its nodes."""
    if depth > _MOST_NESTED:
        raise ValueError(f"graphs lie inside of graphs, more than {_MOST_NESTED} deep")
    yield graph
    for node in graph.messages(1):
        for attribute in node.messages(5):
            for inner in (*attribute.messages(6), *attribute.messages(11)):
                yield from _graphs(inner, depth + 1)


def _unsigned(nodes: list[_Message], tensors: list[_Message]) -> Iterator[str]:
    """Nodes whose 8-bit numbers have no sign; QuantizeLinear without a zero point gives uint8, says ONNX."""
    dtypes = {tensor.text(8): tensor.number(2) for tensor in tensors}
    for node in nodes:
        operator, inputs = node.text(4), node.texts(1)
        if operator not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        zero_point = inputs[2] if len(inputs) > 2 else ""
        chosen = [attribute.number(3) for attribute in node.messages(5) if attribute.text(1) == "output_dtype"]
        without = operator == "QuantizeLinear" and not zero_point and chosen in ([], [0], [_UINT8])
        if without or _UINT8 in (dtypes.get(zero_point), dtypes.get(inputs[0])):
            yield f"{operator} {node.text(3) or node.texts(2)[0]}"


class _Message:
    """A protobuf message by the numbers of its fields; of a field that is given twice, the last counts."""

    def __init__(self, data: memoryview) -> None:
        self._fields: dict[int, list[_Value]] = {}
        for number, value in _read_fields(data):
            self._fields.setdefault(number, []).append(value)

    def has(self, number: int) -> bool:
        return number in self._fields

    def messages(self, number: int, holding: bytes = b"") -> list[_Message]:
        """Messages of a field; only those that hold these bytes somewhere."""
        found = map(_as_bytes, self._fields.get(number, []))
        return [_Message(value) for value in found if not holding or holding in bytes(value)]

    def texts(self, number: int) -> list[str]:
        return [str(_as_bytes(value), "utf-8") for value in self._fields.get(number, [])]

    def text(self, number: int) -> str:
        """The text, or "" if it is not given."""
        return (self.texts(number) or [""])[-1]

    def number(self, number: int) -> int:
        """The number, or 0 if it is not given."""
        value = self._fields.get(number, [0])[-1]
        if not isinstance(value, int):
            raise ValueError("found bytes, wanted a number")
        return value


def _as_bytes(value: _Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("found a number, wanted bytes")
    return value


def _read_fields(data: memoryview) -> Iterator[tuple[int, _Value]]:
    """The fields of a message, number and value, in their order."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _read_varint(data, at)
        elif wire_type in _FIXED_BYTES:
            size = _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"found wire type {wire_type}, wanted 0, 1, 2 or 5")
        if at + size > len(data):
            raise ValueError("ends within a field")
        yield number, data[at : at + size]
        at += size


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the least first, and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(data):
            raise ValueError("ends within a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError("found a number of more than 64 bits")
