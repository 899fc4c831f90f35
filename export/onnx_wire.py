"""What building an engine must know of an ONNX file, read without the onnx package, which boards do not have.

An ONNX file is one protobuf message (fields: onnx.proto; encoding: protobuf.dev/programming-guides/encoding), of which
a few fields are read and the others skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from export import ExportError

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

_Value = int | memoryview


@dataclasses.dataclass(frozen=True)
class OnnxFile:
    """An ONNX file as what builds an engine sees it."""

    weight_files: tuple[Path, ...]  # beside it, those that it names and that are there, by name
    opset: int
    operators: tuple[str, ...]  # each once, by name; those inside of others included
    unsigned: tuple[str, ...]  # "operator name" of each QuantizeLinear and DequantizeLinear of uint8


def read_onnx_file(onnx_path: Path) -> OnnxFile:
    """What an ONNX file is made of.

    Raises:
        ExportError: it cannot be read, is no ONNX, or a file of weights is missing or lies outside its directory.
    """
    try:
        model = _Message(memoryview(onnx_path.read_bytes()))
        graphs = [inner for graph in model.messages(7) for inner in _graphs(graph)]
        nodes = [node for graph in graphs for node in graph.messages(1)]
        tensors = [tensor for graph in graphs for tensor in graph.messages(5)]
        opset = max((entry.number(2) for entry in model.messages(8) if entry.text(1) in ("", "ai.onnx")), default=0)
        operators = tuple(sorted({node.text(4) for node in nodes}))
        locations = {
            entry.text(2) for tensor in tensors for entry in tensor.messages(13) if entry.text(1) == "location"
        }
        unsigned = tuple(_unsigned(nodes, tensors))
    except OSError as error:
        raise ExportError(f"{onnx_path}: cannot be read ({error.strerror}); export or fetch it again") from error
    except ValueError as error:
        raise ExportError(f"{onnx_path}: not an ONNX file ({error}); export or fetch it again") from error
    if not nodes:
        raise ExportError(f"{onnx_path}: not an ONNX file: it holds no graph; export or fetch it again")
    weight_files = tuple(_weight_file(onnx_path, location) for location in sorted(locations))
    return OnnxFile(weight_files, opset, operators, unsigned)


def read_interface(onnx_path: Path) -> dict[str, Any]:
    """What an engine does not keep of its graph: "inputs" and "outputs" with the names of their axes, "metadata".

    Raises:
        ExportError: it cannot be read, or takes or gives something else than plain tensors.
    """
    try:
        model = _Message(memoryview(onnx_path.read_bytes()))
        graphs = model.messages(7)
        return {
            "inputs": [_interface(info) for graph in graphs for info in graph.messages(11)],
            "outputs": [_interface(info) for graph in graphs for info in graph.messages(12)],
            "metadata": {entry.text(1): entry.text(2) for entry in model.messages(14)},
        }
    except OSError as error:
        raise ExportError(f"{onnx_path}: cannot be read ({error.strerror}); export or fetch it again") from error
    except ValueError as error:
        raise ExportError(f"{onnx_path}: its inputs and outputs cannot be read ({error}); export it again") from error


def _interface(info: _Message) -> dict[str, Any]:
    name = info.text(1)
    tensors = [tensor for kind in info.messages(2) for tensor in kind.messages(1)]
    if not tensors or tensors[0].number(1) not in _DTYPES:
        raise ValueError(f"{name} is no tensor of {', '.join(_DTYPES.values())}")
    axes = enumerate(axis for shape in tensors[0].messages(2) for axis in shape.messages(1))
    shape = [axis.number(1) or axis.text(2) or f"{name}_{index}" for index, axis in axes]
    return {"name": name, "shape": shape, "dtype": _DTYPES[tensors[0].number(1)]}


def _weight_file(onnx_path: Path, location: str) -> Path:
    relative = PurePosixPath(location)
    if relative.is_absolute() or ".." in relative.parts:
        raise ExportError(f"{onnx_path}: its weights are said to be in {location}, wanted a file beside it")
    path = onnx_path.parent / relative
    if not path.is_file():
        raise ExportError(f"{onnx_path}: its weights' file {location} is missing; put it beside the graph")
    return path


def _graphs(graph: _Message) -> Iterator[_Message]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.messages(1):
        for attribute in node.messages(5):
            for inner in (*attribute.messages(6), *attribute.messages(11)):
                yield from _graphs(inner)


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
