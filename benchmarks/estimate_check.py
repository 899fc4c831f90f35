"""Error of the method of `edgese bench --estimate` where it can be checked: on a core of this machine's CPU.

    python -m benchmarks.estimate_check [--model BUNDLE] [--seconds 5]

Measured on one core, in one run: the best SGEMM rate (sgemm.py), the bandwidth of a copy between two arrays larger than
any cache, what ONNX Runtime takes for a node without work, and the calls of every plain graph of the bundle, back to
back, by the processes of `edgese bench` (edgese/bench/probe.py). From the first three follow the bounds, by the same
functions as a board's (edgese/bench/estimate.py). The table is Markdown.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from benchmarks.machine import parser
from benchmarks.sgemm import sgemm_gflops
from edgese.bench.estimate import predict_cpu_ms
from edgese.bench.measure import Settings, choose, sound_file
from edgese.bench.probe import Probe
from edgese.bench.workload import read_workload
from edgese.graphs.bundles import shipped_bundle
from edgese.machine.host import allowed_cores, describe, pinned
from export.bundle import Bundle

COPY_BYTES = 256 * 2**20  # of each array
COPIES = 8
NODES = 400
RUNS = 200
COLUMNS = ("graph", "kernels", "low ms", "high ms", "measured p50 ms", "measured / low", "measured / high", "inside")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, default=shipped_bundle(), help="a bundle; default: the shipped one")
    arguments.add_argument("--precisions", nargs="+", default=[], help="default: all that the bundle has")
    arguments.add_argument("--seconds", type=float, default=5.0, help="sound that each measurement takes")
    arguments.add_argument("--core", type=int, default=allowed_cores()[-1], help="the one core to run on")
    options = arguments.parse_args()
    machine = describe(options.core)
    bundle = Bundle.open(options.model)
    cases = choose(bundle, Settings(("onnxruntime",), tuple(options.precisions)))
    medians_ms: list[float] = []
    with sound_file(bundle.manifest["audio"]["sample_rate_hz"]) as sound, pinned({options.core}):
        peak = {"sgemm_gflops": sgemm_gflops(), "copy_gbs": copy_gbs(), "node_us": node_us()}
        for case in cases:
            with Probe(case, options.core, sound) as probe:
                medians_ms.append(1e3 * probe.back(max(1, math.ceil(options.seconds / case.period_s))).median_s)
    rows = []
    for case, median_ms in zip(cases, medians_ms, strict=True):
        workload = read_workload(bundle.path / case.graph.file)
        low, high = predict_cpu_ms(workload, **peak)
        kernels = f"{len(workload.fused)} to {len(workload.separate)}"
        values = (case.graph.file, kernels, low, high, median_ms, median_ms / low, median_ms / high)
        rows.append(dict(zip(COLUMNS, (*values, low <= median_ms <= high), strict=True)))
    if options.json:
        print(
            json.dumps({"kind": "estimate-check", "machine": machine.entry(), "measured": peak, "rows": rows}, indent=2)
        )
        return
    print(machine, end="\n\n")
    print(f"measured on core {options.core}: " + ", ".join(f"{name} {value:.3g}" for name, value in peak.items()))
    print("low and high are estimates\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(map(_cell, row.values())) + " |")


def copy_gbs() -> float:
    """Bandwidth of the fastest of several copies, 1e9 bytes read and written a second; arrays are touched before."""
    source, target = np.ones(COPY_BYTES // 8), np.zeros(COPY_BYTES // 8)
    shortest_s = float("inf")
    for _ in range(COPIES):
        started = time.perf_counter()
        np.copyto(target, source)
        shortest_s = min(shortest_s, time.perf_counter() - started)
    return 2 * COPY_BYTES / shortest_s / 1e9


def node_us() -> float:
    """Time of a node without work in ONNX Runtime, us: the median over runs of a chain of sums of one number."""
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("t0", f"t{NODES}")]
    nodes = [helper.make_node("Add", [f"t{index}", "one"], [f"t{index + 1}"]) for index in range(NODES)]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], [one])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"t0": np.zeros(1, np.float32)}
    took = []
    for _ in range(RUNS):
        started = time.perf_counter()
        (found,) = session.run(None, feeds)
        took.append(time.perf_counter() - started)
        if found != NODES:
            raise SystemExit(f"the chain of {NODES} sums gave {found}")
    return 1e6 * float(np.median(took)) / NODES


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
