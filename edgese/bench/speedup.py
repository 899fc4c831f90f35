"""Comparison of a lower precision's speed with float32's on this machine: the same calls in turns, on one thread."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from edgese.graphs.opening import open_graph
from edgese.graphs.segments import Segments
from edgese.graphs.streaming import samples
from export.bundle import Bundle, Graph

CALLS = 200  # and a tenth of them to warm up
SEGMENT_CALLS = 10  # of graphs that take a segment, which lasts for seconds
GAIN = 0.95  # of float32's time: a smaller gain is not worth a loss of quality


@dataclasses.dataclass(frozen=True)
class Speedup:
    """Duration of a call beside that of float32's call of as many hops, medians of calls in turns."""

    graph: str
    runtime: str
    call_ms: float
    float32_ms: float

    @property
    def ratio(self) -> float:
        return self.call_ms / self.float32_ms

    def __str__(self) -> str:
        return f"{self.graph}: {self.call_ms:.3f} ms a call, fp32 {self.float32_ms:.3f} ms ({self.ratio:.2f} times)"


def measure_speedup(bundle: Bundle, precision: str, runtime: str = "onnxruntime") -> list[Speedup]:
    """Speed of each of a bundle's plain graphs of a precision beside float32's graph of the same block."""
    quantized = [graph for graph in bundle.graphs if (graph.precision, graph.variant) == (precision, "")]
    found = []
    for graph in quantized:
        call_ms, float32_ms = _medians_ms(bundle, [graph, bundle.graph(block=graph.block)], runtime)
        found.append(Speedup(graph.file, runtime, call_ms, float32_ms))
    return found


def _medians_ms(bundle: Bundle, graphs: Sequence[Graph], runtime: str) -> list[float]:
    rng = np.random.default_rng(0)
    took: list[list[float]] = [[] for _ in graphs]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(open_graph(bundle, graph, runtime)) for graph in graphs]
        streams = [runtime.stream(graph.states, streams=1) for runtime, graph in zip(opened, graphs, strict=True)]
        size = samples(graphs[0], graphs[0].block)
        calls = CALLS if Segments.of(bundle.manifest) is None else SEGMENT_CALLS
        warm_up = calls // 10
        for call in range(warm_up + calls):
            wave = 0.1 * rng.standard_normal((1, size), np.float32)
            for stream, times in zip(streams, took, strict=True):
                started = time.perf_counter()
                stream({"wave": wave})
                if call >= warm_up:
                    times.append(time.perf_counter() - started)
    return [1e3 * float(np.median(times)) for times in took]
