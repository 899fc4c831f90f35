"""Latency of calls on this board: back to back and paced in real time, per graph and runtime, in this very process.

Less than `edgese bench` measures: no fresh process for each case, no turns, no search for the most streams. A network
that looks ahead is not live: its segments are called back to back, a few times. On a Jetson the board's state before
and after comes with it, and energy: that of a second paced pass, so that reading power, which takes milliseconds, makes
no call late that is counted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.bench.timing import Timing, back_to_back, calls_for, paced
from edgese.device.candidates import find_runtimes
from edgese.device.content import Content
from edgese.graphs.engines import TENSORRT, EngineFolder, OnMessage, is_for, open_exported
from edgese.graphs.streaming import samples
from edgese.machine import host as machine
from edgese.machine.jetson import JetsonError
from edgese.machine.power import Energy
from edgese.machine.watch import NOTHING, Watched, watch
from export import ExportError
from export.bundle import Graph
from runtimes.base import FeedError, RuntimeUnavailable
from runtimes.gpu import read_device
from runtimes.tensorrt_package import library_name, tensorrt_library

_ROOT = Path("/")
_WARM_UP_CALLS = 20
_SEGMENT_CALLS = 10  # at least, and a tenth of it to warm up: each lasts for seconds of sound


@dataclasses.dataclass(frozen=True)
class Latency:
    """Timing and energy of calls of one graph in one runtime."""

    graph: Graph
    runtime: str
    streams: int
    pinned_core: int | None
    back: Timing
    paced: Timing | None  # None: a segment, not live
    energy: Energy | None = None  # of calls in real time
    energyless: str = ""  # on a Jetson, why there is none

    def __str__(self) -> str:
        def shown(value: float | None) -> str:
            return "?" if value is None else f"{value:.2f}"

        back = self.back.percentiles_ms()
        if self.paced is None:
            return (
                f"{self.graph.file} in {self.runtime}: back to back p50 {shown(back['p50'])}, slowest "
                f"{shown(back['max'])} ms of {self.back.period_s * 1e3:.0f} that a segment advances; "
                f"real-time factor {self.back.rtf:.3f}; not live: the network looks ahead"
            )
        live = self.paced.percentiles_ms()
        return (
            f"{self.graph.file} in {self.runtime}: back to back p50 {shown(back['p50'])}, p99 {shown(back['p99'])} ms; "
            f"in real time p50 {shown(live['p50'])}, p99 {shown(live['p99'])}, p99.9 {shown(live['p99_9'])}, slowest "
            f"{shown(live['max'])} ms of {self.back.period_s * 1e3:.0f}; "
            f"real-time factor {self.paced.rtf:.3f}; {self.paced.missed} of {len(self.paced.took_s)} late"
            + ("" if self.energy is None else f"; {self.energy.joules_per_audio_s:.3f} J a second of sound above idle")
        )

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "graph": self.graph.file,
            "runtime": self.runtime,
            "precision": self.graph.precision,
            "block": self.graph.block,
            "block_ms": self.back.period_s * 1e3,
            "streams": self.streams,
            "pinned_core": self.pinned_core,
            "back": _timing_entry(self.back),
            "paced": None if self.paced is None else _timing_entry(self.paced),
            "energy": None if self.energy is None else self.energy.entry(),
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of a measurement and the machine it was made on; `failures`: graph in runtime -> the reason."""

    content: Content
    here: machine.Machine
    results: tuple[Latency, ...]
    left_out: Mapping[str, str]
    failures: Mapping[str, str]
    readings: Mapping[str, Any]  # of a Jetson; see edgese/machine/watch.py

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        gpu = read_device()
        try:
            tensorrt = library_name(tensorrt_library())
        except RuntimeUnavailable as error:
            tensorrt = f"none: {error}"
        manifest = self.content.bundle.manifest
        return {
            "bundle": {"name": manifest["name"], "manifest": manifest["device"]["manifest"]},
            "machine": self.here.entry() | {"gpu": None if gpu is None else str(gpu), "tensorrt": tensorrt},
            "method": "one process, calls of one thread; CPU runtimes pinned to a core",
            "results": [result.entry() for result in self.results],
            "left_out": dict(self.left_out),
            "failures": dict(self.failures),
            **self.readings,
        }


def measure(
    content: Content,
    engines: EngineFolder,
    *,
    runtimes: Collection[str] = (),
    precisions: Collection[str] = (),
    blocks: Collection[int] = (),
    streams: int = 1,
    seconds: float = 5.0,
    on_result: Callable[[Latency], None] = lambda result: None,
    on_message: OnMessage = lambda line: None,
    root: Path = _ROOT,
) -> Report:
    """Measure the graphs without a variant; nothing named: all precisions, blocks and runtimes that there are.

    Args:
        streams: in each call.
        seconds: of sound, in real time, that paced calls take for each graph; back to back are 1000 calls or more. On
            a Jetson idle power is sampled for as long before, and that of paced calls in a second pass.
        root: what stands for `/` where the board is read.

    Raises:
        ExportError: no graph of a precision or block that is named.
        RuntimeUnavailable: no runtime, or one that is named, opens here.
    """
    graphs = [graph for graph in content.choose(precisions, blocks) if not graph.variant]
    here = machine.describe(root=root)
    found, left_out = find_runtimes(runtimes)
    for name, reason in left_out.items():
        on_message(f"{name} is left out: {reason}")
    if not found:
        raise RuntimeUnavailable("no runtime opens here, nothing was measured: install TensorRT or onnxruntime")
    try:
        watched, reason = watch(root, seconds), ""
    except JetsonError as error:
        watched, reason = None, str(error)
    results, failures = [], {}
    for graph in sorted(graphs, key=lambda graph: graph.block):
        for runtime in (runtime for runtime in found if is_for(graph, runtime)):
            try:
                results.append(_measure(content, graph, runtime, engines, streams, seconds, watched, on_message))
            except (ExportError, RuntimeUnavailable) as error:
                failures[f"{graph.file} in {runtime}"] = str(error)
                on_message(f"{graph.file} in {runtime}: FAILED: {error}")
            else:
                on_result(results[-1])
    readings = {**NOTHING, "missing": {"board": reason}} if watched is None else watched.entry()
    powerless = {f"energy of {one.graph.file} in {one.runtime}": one.energyless for one in results if one.energyless}
    readings["missing"] = {**readings["missing"], **powerless}
    return Report(content, here, tuple(results), left_out, failures, readings)


def _measure(
    content: Content,
    graph: Graph,
    runtime: str,
    engines: EngineFolder,
    streams: int,
    seconds: float,
    watched: Watched | None,
    on_message: OnMessage,
) -> Latency:
    size = samples(graph, graph.block)
    wave = content.golden_vectors()[0]
    if streams > engines.streams and runtime == TENSORRT:
        raise FeedError(f"streams: found {streams}, engines are built for {engines.streams}: see --most")
    blocks = [
        {"wave": np.ascontiguousarray(np.broadcast_to(wave[at : at + size], (streams, size)))}
        for at in range(0, len(wave) - size + 1, size)
    ]

    def feed(index: int) -> Mapping[str, NDArray[Any]]:
        return blocks[index % len(blocks)]

    segments = content.segments
    period_s = (size if segments is None else segments.advance) / content.audio.sample_rate_hz
    n_paced = math.ceil(seconds / period_s)
    core = None if runtime == TENSORRT else machine.allowed_cores()[-1]  # the GPU's driver has threads of its own
    pinned = contextlib.nullcontext() if core is None else machine.pinned([core])
    with (
        pinned,
        open_exported(
            content.bundle, graph, runtime, engines, metadata=content.metadata(graph), on_message=on_message
        ) as opened,
    ):
        stream = opened.stream(graph.states, streams=streams)
        for index in range(_WARM_UP_CALLS if segments is None else _SEGMENT_CALLS // 10):
            stream(feed(index))
        least = calls_for(99.9) if segments is None else _SEGMENT_CALLS
        back = back_to_back(stream, feed, max(n_paced, least), period_s)
        live = paced(stream, feed, n_paced, period_s) if segments is None else None
        energy, reason = None, ""
        if watched is not None and segments is None:
            try:
                energy = watched.energy(
                    lambda: paced(stream, feed, n_paced, period_s), audio_s=n_paced * period_s * streams
                )
            except JetsonError as error:
                reason = str(error)
        elif watched is not None:
            reason = "a segment is not live: energy is that of calls in real time"
    return Latency(graph, runtime, streams, core, back, live, energy, reason)


def _timing_entry(timing: Timing) -> dict[str, Any]:
    return {
        "calls": len(timing.took_s),
        **{f"{name}_ms": value for name, value in timing.percentiles_ms().items()},
        "rtf": timing.rtf,
        "missed": timing.missed,
        "core_share": timing.core_share,
    }
