"""Latency of one call on one core, by block size: back to back, and paced as a sound card would.

    python -m benchmarks.hop_latency [--model BUNDLE]

A call is what a program does for each block: feed `block` hops into a stream, get as many back, state carried.
`back` calls follow each other at once. `paced` calls wait for their block to be there, one each block * 8 ms; the core
sleeps in between and may clock down. A deadline is missed when a paced call ends after the next block is there (late
wake-ups count), or when a call back to back takes longer than its block. A percentile is shown only where enough calls
were made to know it: 100 for p99, 1000 for p99.9.

`share` is the arithmetic of the network in the median time (the manifest's multiply-accumulates as the graph computes
them, padding of narrow bands included), against the SGEMM peak of the same core in the same run (sgemm.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import Row, describe, parser, report, verdict
from benchmarks.sgemm import sgemm_gflops
from benchmarks.sound import sample
from edgese.enhance import shipped_bundle
from export.bundle import Bundle, Graph
from runtimes.base import Stream
from runtimes.registry import open_runtime

Seconds = NDArray[np.float64]

WARM_UP_CALLS = 50
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}
SHARE_BARS = {1: 0.10, 8: 0.20}  # block -> least share of the SGEMM peak


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, default=shipped_bundle(), help="a bundle; default: the shipped one")
    arguments.add_argument("--blocks", type=int, nargs="+", help="default: all that the bundle has")
    arguments.add_argument("--precision", default="fp32")
    arguments.add_argument("--runtime", default="onnxruntime")
    arguments.add_argument("--seconds", type=float, default=30.0, help="sound that each measurement takes")
    arguments.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core to run on")
    options = arguments.parse_args()
    machine = describe()
    os.sched_setaffinity(0, {options.core})
    bundle = Bundle.open(options.model)
    offered = [graph.block for graph in bundle.graphs if graph.precision == options.precision]
    graphs = [bundle.graph(block=block, precision=options.precision) for block in options.blocks or sorted(offered)]
    peaks = [sgemm_gflops()]
    timings: list[tuple[Graph, str, Seconds, Seconds]] = []
    for graph in graphs:
        timings += [(graph, *timing) for timing in measure(bundle, graph, options.runtime, options.seconds)]
        peaks.append(sgemm_gflops())
    rows = [summary(bundle, *timing, peak_gflops=max(peaks)) for timing in timings]
    found = ", ".join(f"{peak:.1f}" for peak in peaks)
    notes = [f"{bundle.manifest['name']}, {options.runtime}, core {options.core}; SGEMM {found} GFLOP/s", *bars(rows)]
    report("hop_latency", machine, rows, notes, as_json=options.json)


def measure(bundle: Bundle, graph: Graph, runtime: str, seconds: float) -> list[tuple[str, Seconds, Seconds]]:
    """For each way of calling: its name, what each call took, and when it ended after its block was there."""
    audio = bundle.manifest["audio"]
    size = graph.block * audio["hop"]
    period_s = size / audio["sample_rate_hz"]
    wave = sample(audio["sample_rate_hz"])
    blocks = [{"wave": wave[None, start : start + size]} for start in range(0, len(wave) - size + 1, size)]
    n_calls = max(1, round(seconds / period_s))
    with open_runtime(runtime, bundle.path / graph.file, threads=1) as opened:
        stream = opened.stream(graph.states, streams=1)
        for index in range(WARM_UP_CALLS):
            stream(blocks[index % len(blocks)])
        took = back_to_back(stream, blocks, n_calls)
        return [("back", took, took), ("paced", *paced(stream, blocks, n_calls, period_s))]


def back_to_back(stream: Stream, blocks: list[dict[str, Any]], n_calls: int) -> Seconds:
    took = np.empty(n_calls)
    for index in range(n_calls):
        feeds = blocks[index % len(blocks)]
        started = time.perf_counter()
        stream(feeds)
        took[index] = time.perf_counter() - started
    return took


def paced(
    stream: Stream,
    blocks: list[dict[str, Any]],
    n_calls: int,
    period_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Seconds, Seconds]:
    took, ended = np.empty(n_calls), np.empty(n_calls)
    first = clock() + period_s
    for index in range(n_calls):
        feeds, there = blocks[index % len(blocks)], first + index * period_s
        time.sleep(max(0.0, there - clock()))
        started = clock()
        stream(feeds)
        done = clock()
        took[index], ended[index] = done - started, done - there
    return took, ended


def summary(bundle: Bundle, graph: Graph, way: str, took: Seconds, ended: Seconds, *, peak_gflops: float) -> Row:
    """One row of the table."""
    audio = bundle.manifest["audio"]
    period_s = graph.block * audio["hop"] / audio["sample_rate_hz"]
    flop = 2 * graph.block * sum(bundle.manifest["macs_per_frame"].values())
    milliseconds: dict[str, float | None] = {
        f"{name}_ms": float(np.percentile(took, percent)) * 1e3 if round(len(took) * (100 - percent)) >= 100 else None
        for name, percent in PERCENTILES.items()
    }
    median_s = float(np.median(took))
    return {
        "block": graph.block,
        "calls": way,
        "n": len(took),
        **milliseconds,
        "max_ms": float(took.max()) * 1e3,
        "block_ms": period_s * 1e3,
        "rtf": float(took.mean()) / period_s,
        "missed": int((ended > period_s).sum()),
        "gflops": flop / median_s / 1e9 if flop else None,
        "share": flop / median_s / 1e9 / peak_gflops if flop else None,
    }


def bars(rows: list[Row]) -> list[str]:
    """What DESIGN.md asks of one hop, and of the share of the peak."""
    notes = []
    for row in rows:
        block, share, p99_ms, hop_ms = row["block"], row["share"], row["p99_ms"], row["block_ms"]
        if (block, row["calls"]) == (1, "paced"):
            missed = row["missed"]
            notes.append(verdict("one hop, paced: no deadline missed", f"{missed} of {row['n']}", missed == 0))
            if isinstance(p99_ms, float) and isinstance(hop_ms, float):
                found = f"{p99_ms:.2f} of {hop_ms:.0f} ms"
                notes.append(verdict("one hop, paced: p99 below half the hop", found, p99_ms < hop_ms / 2))
        if block in SHARE_BARS and row["calls"] == "back" and isinstance(share, float):
            least = SHARE_BARS[int(block)]
            bar = f"block {block}, back to back: median at least {least:.0%} of the SGEMM peak"
            notes.append(verdict(bar, f"{share:.1%}", share >= least))
    return notes


if __name__ == "__main__":
    main()
