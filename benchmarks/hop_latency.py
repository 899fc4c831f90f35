"""Share of the SGEMM peak that one call on one core reaches, beside its latency; `edgese bench` measures the rest.

    python -m benchmarks.hop_latency [--model BUNDLE]

Calls are timed by `edgese bench`'s own processes (edgese/bench/probe.py): back to back, and paced in real time. `share`
is the arithmetic of the network in the median time (the manifest's multiply-accumulates as the graph computes them,
padding of narrow bands included), against the SGEMM peak of the same core in the same run (sgemm.py).
"""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.machine import Row, parser, report, verdict
from benchmarks.sgemm import sgemm_gflops
from edgese.bench.measure import Settings, choose, sound_file
from edgese.bench.probe import Probe
from edgese.bench.timing import Timing
from edgese.graphs.bundles import shipped_bundle
from edgese.machine.host import allowed_cores, describe, pinned
from export.bundle import Bundle

SHARE_BARS = {1: 0.10, 8: 0.20}  # block -> least share of the SGEMM peak


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, default=shipped_bundle(), help="a bundle; default: the shipped one")
    arguments.add_argument(
        "--block", "--blocks", dest="blocks", type=int, nargs="+", default=[], help="default: all that the bundle has"
    )
    arguments.add_argument("--precision", default="fp32")
    arguments.add_argument("--runtime", default="onnxruntime")
    arguments.add_argument("--seconds", type=float, default=30.0, help="sound that each measurement takes")
    arguments.add_argument("--core", type=int, default=allowed_cores()[-1], help="the one core to run on")
    options = arguments.parse_args()
    machine = describe(options.core)
    bundle = Bundle.open(options.model)
    flop_per_hop = 2 * sum(bundle.manifest["macs_per_frame"].values())
    settings = Settings((options.runtime,), (options.precision,), tuple(options.blocks))
    timings: list[tuple[int, str, Timing]] = []
    with sound_file(bundle.manifest["audio"]["sample_rate_hz"]) as sound, pinned({options.core}):
        peaks = [sgemm_gflops()]
        for case in choose(bundle, settings):
            n_calls = max(1, math.ceil(options.seconds / case.period_s))
            with Probe(case, options.core, sound) as probe:
                timings += [(case.block, "back", probe.back(n_calls)), (case.block, "paced", probe.paced(n_calls))]
            peaks.append(sgemm_gflops())
    rows = [summary(*timing, flop_per_hop=flop_per_hop, peak_gflops=max(peaks)) for timing in timings]
    found = ", ".join(f"{peak:.1f}" for peak in peaks)
    notes = [f"{bundle.manifest['name']}, {options.runtime}, core {options.core}; SGEMM {found} GFLOP/s", *bars(rows)]
    report("hop_latency", machine, rows, notes, as_json=options.json)


def summary(block: int, way: str, timing: Timing, *, flop_per_hop: int, peak_gflops: float) -> Row:
    """Table row of one block and way of calling."""
    gflops = block * flop_per_hop / timing.median_s / 1e9 if flop_per_hop else None
    return {
        "block": block,
        "calls": way,
        "n": len(timing.took_s),
        **{f"{name}_ms": value for name, value in timing.percentiles_ms().items()},
        "block_ms": timing.period_s * 1e3,
        "rtf": timing.rtf,
        "missed": timing.missed,
        "gflops": gflops,
        "share": gflops / peak_gflops if gflops else None,
    }


def bars(rows: list[Row]) -> list[str]:
    """Verdicts on the bars for one hop, and for the share of the peak."""
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
