"""Streaming of recorded sound through a graph, call by call, as it would be live."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from edgese.audio import Samples, Wave
from edgese.graphs.segments import Segments
from export import ExportError
from export.bundle import Graph
from runtimes.base import Arrays, Runtime, Stream, TensorSpec


def samples(graph: Graph, n_hops: int) -> int:
    """Samples of one hop, or of the whole blocks that hold `n_hops` hops.

    Raises:
        ExportError: the graph takes or gives no sound of whole hops.
    """
    size = _wave_size(graph.inputs, "wave")
    if size is None or size % graph.block or size != _wave_size(graph.outputs, "enhanced"):
        raise ExportError(
            f"{graph.file}: found no `wave` and `enhanced` of {graph.block} whole hops among what it takes and gives; "
            "export the bundle again"
        )
    return size // graph.block if n_hops == 1 else -(-n_hops // graph.block) * size


def _wave_size(specs: Sequence[TensorSpec], name: str) -> int | None:
    """Samples of each stream in the sound of this name, (streams, n_samples); None where there is no such sound."""
    sizes = [spec.shape[1] for spec in specs if spec.name == name and len(spec.shape) == 2]
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def run(stream: Stream, graph: Graph, wave: Wave, took: list[float] | None = None) -> Wave:
    """Output of a stream for whole blocks of sound, (n_samples,); `took` gathers the seconds of each call."""
    size = samples(graph, graph.block)
    pieces = [wave[:0]]
    for start in range(0, len(wave), size):
        feeds = {"wave": np.ascontiguousarray(wave[None, start : start + size])}
        started = time.perf_counter()
        pieces.append(stream(feeds)["enhanced"][0])
        if took is not None:
            took.append(time.perf_counter() - started)
    return np.concatenate(pieces)


def in_overlapped(opened: Runtime, graph: Graph, wave: Wave, segments: Segments) -> Wave:
    """Output of a graph that takes segments for a whole recording, as long as the input and aligned with it."""
    stream = opened.stream(graph.states, streams=1)
    return segments.recording(wave, lambda segment: stream({"wave": segment})["enhanced"])


def aligned(opened: Runtime, graph: Graph, wave: Wave, overlap: int) -> Wave:
    """Output of a graph for a whole recording, as long as the input and aligned with it."""
    stream = opened.stream(graph.states, streams=1)
    return np.concatenate(list(aligned_blocks([wave[:, None]], stream, graph, 1, overlap)))[: len(wave), 0]


def aligned_blocks(
    blocks: Iterable[Samples],
    stream: Callable[[Arrays], Arrays],
    graph: Graph,
    n_channels: int,
    overlap: int,
    tail: int = 0,
) -> Iterator[Samples]:
    """Enhanced sound of a recording's blocks, aligned with them, and some silence after their end.

    Args:
        blocks: (n, n_channels) float32 of any n.
        stream: gives `enhanced` for each `wave`, both (n_channels, size), in sequence.
        overlap: samples by which the graph's output runs behind its input; as many are dropped at the start.
        tail: samples of silence that are wanted after the end, at least.

    Yields:
        (n, n_channels) float32; the first sample belongs to the first that came in.
    """
    size, skip = samples(graph, graph.block), overlap
    waiting = np.zeros((n_channels, 0), np.float32)
    end = np.zeros((overlap + tail + size - 1, n_channels), np.float32)  # drives out what is still inside
    for block in itertools.chain(blocks, [end]):
        waiting = np.concatenate([waiting, block.T], axis=1)
        calls = range(0, waiting.shape[1] - size + 1, size)
        done = [stream({"wave": np.ascontiguousarray(waiting[:, at : at + size])})["enhanced"] for at in calls]
        waiting = waiting[:, len(done) * size :]
        if done:
            wave = np.concatenate(done, axis=1)
            yield wave[:, skip:].T
            skip = max(0, skip - wave.shape[1])
