"""A graph run over recorded sound, call by call, as it would be live."""

from __future__ import annotations

import time

import numpy as np

from edgese.audio import Wave
from edgese.graphs.segments import Segments
from export.bundle import Graph
from runtimes.base import Runtime, Stream


def samples(graph: Graph, n_hops: int) -> int:
    """So many hops, or one, in samples; more than one: the whole blocks that hold them."""
    size = next(spec for spec in graph.inputs if spec.name == "wave").shape[1]
    assert isinstance(size, int), "the wave's length is static"
    return size // graph.block if n_hops == 1 else -(-n_hops // graph.block) * size


def run(stream: Stream, graph: Graph, wave: Wave, took: list[float] | None = None) -> Wave:
    """The samples that a stream gives for whole blocks of sound; `took` gathers the seconds of each call."""
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
    """A whole recording through a graph that takes segments, as long as the input and in time with it."""
    stream = opened.stream(graph.states, streams=1)
    return segments.recording(wave, lambda segment: stream({"wave": segment})["enhanced"])


def aligned(opened: Runtime, graph: Graph, wave: Wave, overlap: int) -> Wave:
    """A whole recording, as long as the input and in time with it."""
    size = samples(graph, graph.block)
    padded = np.pad(wave, (0, -(len(wave) + overlap) % size + overlap))
    return run(opened.stream(graph.states, streams=1), graph, padded)[overlap:][: len(wave)]
