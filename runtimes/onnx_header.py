"""What an ONNX file says of itself, its inputs, outputs and metadata, read without the onnx package.

For runtimes that do not tell: OpenVINO drops the names of dynamic axes. An ONNX file is one protobuf message (fields:
onnx.proto; encoding: protobuf.dev/programming-guides/encoding), of which a few fields are read and the others skipped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from runtimes.base import ArtefactError, TensorSpec

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
class OnnxHeader:
    """What a runtime shows of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: dict[str, str]


def read_onnx_header(path: Path) -> OnnxHeader:
    """Inputs, outputs and metadata of an ONNX file, in its order.

    Raises:
        ArtefactError: the file cannot be read, is no ONNX, is damaged, or takes something else than plain tensors.
    """
    try:
        model = _Message(memoryview(path.read_bytes()))
        graph = model.message(7)
        entries = [(entry.text(1), entry.text(2)) for entry in model.messages(14)]
        inputs, outputs = (tuple(map(_spec, graph.messages(number))) for number in (11, 12))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read as ONNX ({error}); export or fetch it again") from error
    return OnnxHeader(inputs, outputs, dict(entries))


def _spec(info: _Message) -> TensorSpec:
    name = info.text(1)
    tensor = info.message(2).message(1)  # of a sequence, a map or an optional, this field is missing
    if tensor.number(1) not in _DTYPES:
        raise ValueError(f"{name} has elements of type {tensor.number(1)}, wanted one of {', '.join(_DTYPES.values())}")
    axes = enumerate(tensor.message(2).messages(1))
    shape = tuple(axis.number(1) if axis.has(1) else axis.text(2) or f"{name}_{index}" for index, axis in axes)
    return TensorSpec(name, shape, _DTYPES[tensor.number(1)])


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

    def message(self, number: int) -> _Message:
        found = self.messages(number)
        if not found:
            raise ValueError(f"field {number} is missing")
        return found[-1]

    def text(self, number: int) -> str:
        """The text, or "" if it is not given."""
        return str(_as_bytes(self._fields.get(number, [memoryview(b"")])[-1]), "utf-8")

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
