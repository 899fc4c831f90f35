"""Time of a hop in the C library and in ONNX Runtime, on one core, in one run.

    python -m benchmarks.native_speed [--model BUNDLE ...] [--rounds 2000]

The calls take turns, one of each runtime, so that what else runs on the machine meets them alike; each is fed the same
sound and carries its states. The least times are compared: on a machine that others use, a call is the likelier to be
interrupted the longer it takes, which medians show as a difference of the runtimes. The C library with smaller weights
comes beside. `gflops`: the network's arithmetic in the median time, by the manifest's multiply-accumulates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import Row, parser, report, verdict
from edgese.graphs.bundles import shipped_bundle
from edgese.graphs.opening import open_graph
from edgese.graphs.streaming import samples
from edgese.machine.host import allowed_cores, describe, pinned
from edgese.native.build import library
from export.bundle import Bundle
from runtimes.base import RuntimeUnavailable, Stream
from runtimes.native import NativeRuntime

BAR = 0.5  # of ONNX Runtime's time, hop by hop
SMALLER = ("fp16", "int8")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, nargs="+", default=[shipped_bundle()], help="default: the shipped one")
    arguments.add_argument("--block", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--rounds", type=int, default=2000, help="calls of each runtime")
    arguments.add_argument("--core", type=int, default=allowed_cores()[-1], help="the one core to run on")
    options = arguments.parse_args()
    rows: list[Row] = []
    notes = [f"the C library: {library().stat().st_size:,} bytes"]
    with pinned({options.core}):
        for path in options.model:
            bundle = Bundle.open(path)
            for block in options.block:
                rows += measure(bundle, block, options.rounds, notes)
    for row in rows:
        if row["runtime"] == "native fp32" and row["block"] == 1:
            ratio = float(row["least_of_ort"] or 0)
            found = f"{ratio:.2f} for {row['bundle']} (medians: {row['of_ort']:.2f})"
            notes.append(verdict(f"a hop in at most {BAR} of ONNX Runtime's time, least of each", found, ratio <= BAR))
    report("native_speed", describe(options.core), rows, notes, as_json=options.json)


def measure(bundle: Bundle, block: int, rounds: int, notes: list[str]) -> list[Row]:
    """A row for each runtime; `notes` gets what the C library takes in memory."""
    graph = bundle.graph(block=block)
    sound = np.random.default_rng(0).standard_normal((64, 1, samples(graph, block)), dtype=np.float32) * 0.05
    macs = block * sum(bundle.manifest["macs_per_frame"].values())
    with contextlib.ExitStack() as stack:
        streams: dict[str, Stream] = {}
        for runtime in ("onnxruntime", "openvino"):
            with contextlib.suppress(RuntimeUnavailable):
                opened = stack.enter_context(open_graph(bundle, graph, runtime))
                streams[runtime] = opened.stream(graph.states, streams=1)
        for stored in ("fp32", *SMALLER):
            opened = stack.enter_context(open_graph(bundle, dataclasses.replace(graph, precision=stored), "native"))
            assert isinstance(opened, NativeRuntime)
            streams[f"native {stored}"] = opened.stream(graph.states, streams=1)
            notes.append(
                f"{bundle.manifest['name']}, block {block}, {stored}: {opened.weights_bytes:,} bytes of weights, "
                f"{opened.stream_bytes:,} of a stream; {opened.instructions}"
            )
        took: dict[str, list[float]] = {runtime: [] for runtime in streams}
        for index in range(rounds):
            feeds = {"wave": sound[index % len(sound)]}
            for runtime, stream in streams.items():
                stream(feeds)  # what a turn of the others threw out of the caches comes back
                begin = time.perf_counter()
                stream(feeds)
                took[runtime].append((time.perf_counter() - begin) / block)
    rows: list[Row] = []
    median = {runtime: float(np.median(times)) for runtime, times in took.items()}
    for runtime, times in took.items():
        least, p90, p99 = np.quantile(times, (0, 0.9, 0.99)) * 1e3
        rows.append(
            {
                "bundle": bundle.manifest["name"],
                "runtime": runtime,
                "block": block,
                "least_ms": round(float(least), 4),
                "p50_ms": round(median[runtime] * 1e3, 4),
                "p90_ms": round(float(p90), 4),
                "p99_ms": round(float(p99), 4),
                "of_ort": round(median[runtime] / median["onnxruntime"], 3),
                "least_of_ort": round(float(least) / (min(took["onnxruntime"]) * 1e3), 3),
                "gflops": round(2 * macs / block / median[runtime] / 1e9, 1),
            }
        )
    return rows


if __name__ == "__main__":
    main()
