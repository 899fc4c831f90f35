"""One file of weights for many graphs: the graphs of a bundle differ in block size only, their weights are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper

from export import ExportError

SHARED_FROM_BYTES = 1024  # smaller ones stay in their graph
ALIGNMENT_BYTES = 64  # a cache line, and the widest vector register


def share_weights(onnx_paths: Sequence[Path], weights_path: Path) -> None:
    """Move the weights of all graphs into one file, each distinct content once; the graphs then refer to it.

    Takes every initializer of at least 1 KiB, those of subgraphs included. Equal graphs give equal bytes. The graphs
    are read whole before anything is written.

    Args:
        onnx_paths: rewritten in place.
        weights_path: beside the graphs, since ONNX knows only names relative to the graph.

    Raises:
        ExportError: no graph given, one in another directory, or one that is not valid afterwards.
    """
    if not onnx_paths:
        raise ExportError(f"{weights_path}: no graph to take weights from, wanted at least one")
    for onnx_path in onnx_paths:
        if onnx_path.parent.resolve() != weights_path.parent.resolve():
            raise ExportError(f"{onnx_path}: lies in another directory than {weights_path}, wanted the same")
    models = [onnx.load(onnx_path) for onnx_path in onnx_paths]
    weights = bytearray()
    offsets: dict[bytes, int] = {}
    for model in models:
        for tensor in _initializers(model.graph):
            content = numpy_helper.to_array(tensor).tobytes()
            if len(content) < SHARED_FROM_BYTES:
                continue
            digest = hashlib.sha256(content).digest()
            if digest not in offsets:
                weights.extend(bytes(-len(weights) % ALIGNMENT_BYTES))
                offsets[digest] = len(weights)
                weights.extend(content)
            _refer(tensor, weights_path.name, offsets[digest], len(content))
    weights_path.write_bytes(weights)
    for onnx_path, model in zip(onnx_paths, models, strict=True):
        onnx_path.write_bytes(model.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(onnx_path))  # by its path, so that it looks for the weights as well
        except onnx.checker.ValidationError as error:
            raise ExportError(f"{onnx_path}: not valid with {weights_path.name}: {error}") from error


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All initializers of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _initializers(inner)


def _refer(tensor: onnx.TensorProto, file: str, offset: int, length: int) -> None:
    """Leave a tensor's name, type and shape, and point to its content in `file`."""
    reference = onnx.TensorProto(
        name=tensor.name,
        data_type=tensor.data_type,
        dims=tensor.dims,
        data_location=onnx.TensorProto.EXTERNAL,
        external_data=[
            onnx.StringStringEntryProto(key=key, value=value)
            for key, value in (("location", file), ("offset", str(offset)), ("length", str(length)))
        ],
    )
    tensor.CopyFrom(reference)
