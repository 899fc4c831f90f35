"""Accuracy and speed of a bundle on the GPU at hand: difference from PyTorch over minutes, duration of calls.

    python -m benchmarks.gpu [--model BUNDLE] [--runtime tensorrt] [--precision fp16] [--block 8] [--minutes 10]

For each runtime, precision and block: one stream with carried state over the shipped noisy sample at three levels
against PyTorch on the CPU (SNR, and of the first and the last tenth: a drift shows there), calls back to back with one
stream and with many (a call's time is from NumPy to NumPy: copies up and down are inside), and what opening took, an
engine's build included. Any runtime can be named, `onnxruntime` too.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import Row, parser, report
from edgese.audio import Samples
from edgese.audio.reader import read_wave
from edgese.bench.capacity import Point, most_streams
from edgese.bench.timing import Timing, back_to_back
from edgese.graphs.bundles import shipped_bundle
from edgese.graphs.form import bundle_enhancer
from edgese.graphs.opening import ENGINE_STREAMS, open_graph
from edgese.graphs.streaming import run, samples
from edgese.machine.host import describe
from edgese.metrics.difference import snr_db
from edgese.samples import NOISY
from edgese.verify.truth import Truth, long_sound, pytorch_truth
from export import ExportError
from export.bundle import Bundle, Graph
from runtimes.base import Runtime, RuntimeUnavailable
from runtimes.gpu import read_device

TENTHS = 10
WARM_UP_CALLS = 50
POINT_CALLS = 200  # at each point of the search for the most streams: enough for p99


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, default=shipped_bundle(), help="a bundle; default: the shipped one")
    arguments.add_argument("--runtime", nargs="+", default=["tensorrt", "onnxruntime-cuda"])
    arguments.add_argument("--precision", nargs="+", default=["fp32", "fp16", "int8"])
    arguments.add_argument("--block", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--minutes", type=float, default=10.0, help="sound of the stream that is compared")
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 64], help="in a call that is timed")
    arguments.add_argument("--calls", type=int, default=1000)
    arguments.add_argument(
        "--most-streams", type=int, default=0, metavar="N", help="search up to so many; 0: no search"
    )
    options = arguments.parse_args()
    machine, bundle = describe(), Bundle.open(options.model)
    rate_hz, hop = (int(bundle.manifest["audio"][key]) for key in ("sample_rate_hz", "hop"))
    multiple = math.lcm(*options.block) * TENTHS
    n_hops = math.ceil(options.minutes * 60 * rate_hz / hop / multiple) * multiple
    wave = long_sound([read_wave(NOISY, rate_hz)], n_hops * hop // TENTHS)
    truth = pytorch_truth(bundle_enhancer(bundle), np.tile(wave, TENTHS), multiple)
    rows: list[Row] = []
    notes = [f"{bundle.manifest['name']}; GPU: {read_device() or 'none'}; {n_hops:,} hops against PyTorch on the CPU"]
    for runtime in options.runtime:
        for precision in options.precision:
            for block in options.block:
                graph = bundle.graph(block=block, precision=precision)
                try:
                    rows.append(
                        measure(bundle, graph, runtime, truth, options.streams, options.calls, hop / rate_hz)
                        | most(bundle, graph, runtime, truth.wave, hop / rate_hz, options.most_streams)
                    )
                except (RuntimeUnavailable, ExportError) as error:
                    notes.append(f"{graph.file} in {runtime}: {error}")
    if not rows:
        raise SystemExit("\n".join(["error: nothing could be measured", *notes]))
    report("gpu", machine, rows, notes, as_json=options.json)


def measure(
    bundle: Bundle, graph: Graph, runtime: str, truth: Truth, streams: list[int], n_calls: int, hop_s: float
) -> Row:
    """Table row of one graph in one runtime."""
    began = time.perf_counter()
    with open_graph(bundle, graph, runtime) as opened:
        opening_s = time.perf_counter() - began
        enhanced = run(opened.stream(graph.states, streams=1), graph, truth.wave)
        size = len(enhanced) // TENTHS
        first, *_, last = (slice(at, at + size) for at in range(0, size * TENTHS, size))
        timings = {n: calls(opened, graph, n, n_calls, truth.wave, graph.block * hop_s) for n in streams}
    return {
        "runtime": runtime,
        "precision": graph.precision,
        "block": graph.block,
        "open_s": opening_s,
        "snr_db": snr_db(truth.enhanced, enhanced),
        "first_db": snr_db(truth.enhanced[first], enhanced[first]),
        "last_db": snr_db(truth.enhanced[last], enhanced[last]),
        "max_abs": float(np.abs(truth.enhanced - enhanced).max()),
        **{
            f"x{n}_{name}_ms": value
            for n, timing in timings.items()
            for name, value in timing.percentiles_ms().items()
            if name in ("p50", "p99", "p99_9", "max")
        },
        **{f"x{n}_times_real_time": n / timing.rtf for n, timing in timings.items()},
    }


def most(bundle: Bundle, graph: Graph, runtime: str, wave: Samples, hop_s: float, ceiling: int) -> Row:
    """Columns of the most streams in one call; none where nothing is to be searched."""
    if not ceiling:
        return {}
    with open_graph(bundle, graph, runtime) as opened:

        def point(streams: int) -> Point:
            return Point(
                streams, (calls(opened, graph, streams, POINT_CALLS, wave, graph.block * hop_s),), complete=True
            )

        most_here = ceiling if "tensorrt" not in runtime else min(ceiling, ENGINE_STREAMS)
        found = most_streams(point, start=min(64, most_here), ceiling=most_here)
    slow_ms = None if found.p99_s is None else found.p99_s * 1e3
    return {"most_streams": found.streams, "at_least": found.at_least, "its_p99_ms": slow_ms}


def calls(opened: Runtime, graph: Graph, streams: int, n_calls: int, wave: Samples, period_s: float) -> Timing:
    """Timing of calls back to back, each stream at another place in the sound, after some to warm up."""
    size = samples(graph, graph.block)
    blocks = wave[: len(wave) // size * size].reshape(-1, size)
    places = 7 * np.arange(streams)
    stream = opened.stream(graph.states, streams=streams)
    for index in range(WARM_UP_CALLS):
        stream({"wave": blocks[(index + places) % len(blocks)]})
    return back_to_back(stream, lambda index: {"wave": blocks[(index + places) % len(blocks)]}, n_calls, period_s)


if __name__ == "__main__":
    main()
