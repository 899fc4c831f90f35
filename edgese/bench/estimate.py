"""Roofline estimate of how long a call of a graph takes on a device that is not at hand. Nothing here is measured.

    estimate = estimate_graph(workload, BOARDS["orin-nano"].peak, GPU, period_s=0.008)
    estimate.graph_ms                  # Range(low, high) of a call, launched as one CUDA graph

Two bounds, from the two countings of workload.py, between which a call is assumed to lie:

- *low*: fused kernels. Each takes the longest of: the shortest kernel, its sound and states at the whole published
  bandwidth, its arithmetic at the whole published peak.
- *high*: separate kernels. Each takes what an idle kernel takes at most, and besides the longer of: all its bytes,
  weights and what passes between kernels included, at a share of the bandwidth; its arithmetic at a share of the peak,
  where a transcendental function counts for many operations.

With a CUDA graph the host launches once; without, each kernel waits for its launch (low: where that takes longer than
the kernel; high: always). What the host needs for a call comes on top.

For one stream of a small network launches decide, not arithmetic: the bounds lie far apart, and no closer ones are
honest before an engine has run. The method is checked on a device that is at hand by benchmarks/estimate_check.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from edgese.bench.capacity import MAX_STREAMS
from edgese.bench.jetson_modules import JetsonModule, Peak
from edgese.bench.probe import Case, MeasurementError
from edgese.bench.workload import Kernel, Workload, read_workload

KIND = "estimate"  # in JSON, and the word that every table of these numbers carries


class Range(NamedTuple):
    """Pair of bounds: the optimistic one, then the pessimistic one."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Assumed costs and shares that are neither counted from the graph nor published for the device, low and high."""

    kernel_us: Range  # what a kernel takes from the start of the one before it, whatever its work
    launch_us: Range  # what the host takes to launch one kernel
    call_us: Range  # what the host takes for a call, and to learn of its end
    bandwidth_share: Range  # of the published one that is reached; low: the optimistic share
    peak_share: Range
    slow_operations: Range  # plain operations that a transcendental one takes
    read: tuple[str, ...] = ()  # where figures like these were read

    def lines(self) -> list[str]:
        """Assumptions in words, one line each, for the reader of an estimate."""
        bandwidth, peak = (
            f"{each.low:.0%} (low) to {each.high:.0%} (high)" for each in (self.bandwidth_share, self.peak_share)
        )
        return [
            "low: pointwise nodes run inside products and norms, or between them as one kernel; weights and what "
            "passes between kernels stay in caches; the longest of a kernel's parts hides the others",
            "high: every node is a kernel, which reads and writes all it takes in memory; nothing hides its launch",
            f"an idle kernel takes {self.kernel_us} us, its launch without a CUDA graph {self.launch_us} us, the host "
            f"{self.call_us} us for a call; assumed",
            f"of the bandwidth are reached {bandwidth}, of the peak {peak}; an exponential counts for "
            f"{self.slow_operations} operations; assumed",
            "float32 products run without TF32, on CUDA cores; float16 and INT8 ones on tensor cores, without sparsity",
            *self.read,
        ]

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"words": self.lines()}


GPU = Assumptions(
    kernel_us=Range(1.0, 5.0),
    launch_us=Range(2.0, 6.5),
    call_us=Range(5.0, 100.0),
    bandwidth_share=Range(1.0, 0.5),
    peak_share=Range(1.0, 0.05),
    slow_operations=Range(1.0, 16.0),
    read=(
        "launches read elsewhere: on an Orin 3.5 us for an empty kernel, 6.3 us for one of 512 blocks; on a Thor "
        "1.6 us a kernel of a CUDA graph; both measured by others, nothing is published for a Jetson by NVIDIA",
        "on desktop GPUs 3.4 to 3.8 us for kernels of 2.9 us (https://developer.nvidia.com/blog/cuda-graphs/), and "
        "2.5 us to launch a whole graph (https://developer.nvidia.com/blog/constant-time-launch-for-straight-line-"
        "cuda-graphs-and-other-performance-enhancements/)",
        "exponentials: 16 results a clock and SM beside 128 sums (CUDA C++ Programming Guide, throughput of arithmetic "
        "instructions, compute capability 8.x)",
    ),
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated latency and streams of one graph on one device."""

    kernels: Range  # fused and separate: launches of a call
    graph_ms: Range  # of a call as one CUDA graph
    launches_ms: Range  # of a call kernel by kernel
    period_ms: float
    streams: Range  # that one call may carry as a CUDA graph within its period: pessimistic, optimistic

    @property
    def rtf(self) -> Range:
        """Real-time factor as a CUDA graph."""
        return Range(*(value / self.period_ms for value in self.graph_ms))

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        ranges = {name: getattr(self, name) for name in ("kernels", "graph_ms", "launches_ms", "rtf", "streams")}
        return {
            "kind": KIND,
            "period_ms": self.period_ms,
            "max_streams_tried": MAX_STREAMS,
            **{name: {"low": value.low, "high": value.high} for name, value in ranges.items()},
        }


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Estimates of a bundle's graphs on one board."""

    board: JetsonModule
    streams: int  # in a call
    cases: tuple[Case, ...]
    workloads: tuple[Workload, ...]
    results: tuple[Estimate, ...]
    left_out: tuple[str, ...]

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        results = [
            {
                "file": case.graph.file,
                "precision": case.precision,
                "block": case.block,
                "streams_in_a_call": self.streams,
            }
            | result.entry()
            | {"workload": workload.entry()}
            for case, workload, result in zip(self.cases, self.workloads, self.results, strict=True)
        ]
        about = {"kind": KIND, "measured": False, "board": self.board.entry(), "assumptions": GPU.entry()}
        return about | {"left_out": list(self.left_out), "results": results}


def estimate_cases(cases: Sequence[Case], board: JetsonModule, *, streams: int = 1) -> Estimates:
    """Estimate each case's graph; whatever its runtime, it is TensorRT that is meant.

    Raises:
        MeasurementError: TensorRT takes none of the graphs' precisions.
        ExportError: a graph that cannot be counted.
    """
    taken = tuple(case for case in cases if case.precision in board.peak.tflops)
    left_out = tuple(
        f"{case.graph.file}: TensorRT does not take {case.precision}" for case in cases if case not in taken
    )
    if not taken:
        raise MeasurementError(f"nothing to estimate: {'; '.join(left_out) or 'no graph'}; choose another --precision")
    workloads = tuple(read_workload(case.bundle / case.graph.file) for case in taken)
    results = tuple(
        estimate_graph(workload, board.peak, period_s=case.period_s, streams=streams)
        for case, workload in zip(taken, workloads, strict=True)
    )
    return Estimates(board, streams, taken, workloads, results, left_out)


def estimate_graph(
    workload: Workload, peak: Peak, assumptions: Assumptions = GPU, *, period_s: float, streams: int = 1
) -> Estimate:
    """Estimate of one graph: bounds of a call of `streams` streams, and of the streams that fit within its period.

    Args:
        period_s: duration of the block that a call takes: its deadline.
    """

    def bounds(streams: int) -> Range:
        return call_ms(workload, peak, assumptions, streams=streams)

    return Estimate(
        kernels=Range(len(workload.fused), len(workload.separate)),
        graph_ms=bounds(streams),
        launches_ms=call_ms(workload, peak, assumptions, streams=streams, launches=True),
        period_ms=1e3 * period_s,
        streams=Range(
            low=_most_streams(lambda streams: bounds(streams).high <= 1e3 * period_s),
            high=_most_streams(lambda streams: bounds(streams).low <= 1e3 * period_s),
        ),
    )


def call_ms(
    workload: Workload, peak: Peak, assumptions: Assumptions, *, streams: int = 1, launches: bool = False
) -> Range:
    """Optimistic and pessimistic duration of one call, ms.

    Args:
        launches: every kernel is launched by itself, not all of them as a CUDA graph.
    """

    def longer_us(kernel: Kernel, bound: int) -> float:
        each = (_memory_us, _work_us)
        return max(part(kernel, peak, assumptions, streams, bound) for part in each)

    least_us = max(assumptions.kernel_us.low, assumptions.launch_us.low if launches else 0.0)
    idle_us = assumptions.kernel_us.high + (assumptions.launch_us.high if launches else 0.0)
    low_us = assumptions.call_us.low + sum(max(least_us, longer_us(kernel, 0)) for kernel in workload.fused)
    high_us = assumptions.call_us.high + sum(idle_us + longer_us(kernel, 1) for kernel in workload.separate)
    return Range(1e-3 * low_us, 1e-3 * high_us)


def predict_cpu_ms(workload: Workload, *, sgemm_gflops: float, copy_gbs: float, node_us: float) -> Range:
    """Bounds of `call_ms` for one CPU core from figures measured on it, to check the method against real calls.

    Args:
        sgemm_gflops: the best rate of a float32 matrix product.
        copy_gbs: bandwidth of a copy from memory to memory, what is read and what is written, 1e9 bytes a second.
        node_us: what a runtime takes for a node that has no work; its kernels and launches in one.
    """
    tflops = sgemm_gflops / 1e3
    # Half precision is computed in float32; INT8 at most at four times its rate, which is what VNNI offers.
    peak = Peak("CPU", copy_gbs, {"fp32": tflops, "fp16": tflops, "int8": 4 * tflops})
    assumptions = dataclasses.replace(GPU, kernel_us=Range(node_us, node_us), call_us=Range(0.0, 50.0), read=())
    return call_ms(workload, peak, assumptions)


def _memory_us(kernel: Kernel, peak: Peak, assumptions: Assumptions, streams: int, bound: int) -> float:
    moved = streams * kernel.outer_bytes
    if bound:
        moved += kernel.weight_bytes + streams * kernel.inner_bytes
    return moved / (peak.bandwidth_gbs * assumptions.bandwidth_share[bound]) / 1e3


def _work_us(kernel: Kernel, peak: Peak, assumptions: Assumptions, streams: int, bound: int) -> float:
    slow = kernel.slow_operations * (assumptions.slow_operations[bound] - 1)
    work = (kernel.operations + slow) / peak.tflops["fp32"]
    work += sum(2 * macs / peak.tflops[precision] for precision, macs in kernel.macs.items())
    return streams * work / assumptions.peak_share[bound] / 1e6


def _most_streams(fits: Callable[[int], bool]) -> int:
    """Largest number of streams that fits, 0 if not one does; at most `MAX_STREAMS` are tried."""
    low, high = 0, MAX_STREAMS + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
