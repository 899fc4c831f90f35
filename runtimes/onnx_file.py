"""An ONNX file's inputs, outputs, metadata, operators and files of weights, read without the onnx package.

For OpenVINO, which drops the names of dynamic axes, and for building engines, as boards have no onnx package. An ONNX
file is one protobuf message (fields: onnx.proto; encoding: protobuf.dev/programming-guides/encoding), of which a few
fields are read and the others skipped. The standard library is all that this needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

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
        locations = {
            entry.text(2) for tensor in tensors for entry in tensor.messages(13) if entry.text(1) == "location"
        }
        unsigned = tuple(_unsigned(nodes, tensors))
    weight_files = tuple(_weight_file(path, location) for location in sorted(locations))
    return OnnxFile(weight_files, opset, operators, unsigned)


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


def _weight_file(path: Path, location: str) -> Path:
    relative = PurePosixPath(location)
    if relative.is_absolute() or ".." in relative.parts:
        raise ArtefactError(f"{path}: its weights are said to be in {location}, wanted a file beside it")
    weight_file = path.parent / relative
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

    def messages(self, number: int) -> list[_Message]:
        return [_Message(_as_bytes(value)) for value in self._fields.get(number, [])]

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
