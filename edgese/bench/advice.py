"""Advice from a bench report: which runtime, precision and block to use, and how far to trust the numbers.

The rules, all of them:

- *Lowest latency*: of the cases whose paced calls missed no deadline and whose p99 is within half the block, those of
  the smallest block; of these the fastest median. Where the medians of its turns overlap with another's, the two cannot
  be distinguished, and the first in the order of runtimes and precisions is taken.
- *Most streams*: of the cases that carry the most streams on the whole device, or as many within the search's
  resolution, the one of the smallest block; then the first in order.
- *Most sound*, of a network that looks ahead and so has no latency to speak of: the fastest median.
- *Noise*: a warning where medians or p99 differ between turns by more than `LARGE_SPREAD`, or where others had more
  than `LARGE_SHARE` of a measured core.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from edgese.bench.capacity import RESOLUTION, Point
from edgese.bench.measure import Report, Result
from edgese.bench.timing import Timing, calls_for
from edgese.graphs.segments import network_name, segments_in_words

MARGIN = 0.5  # of the block that the p99 of a paced call may take; the rest is for whatever else runs on the core
LARGE_SPREAD = {"p50": 0.10, "p99": 0.30}
LARGE_SHARE = 0.05

TITLES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime on CUDA",
    "onnxruntime-tensorrt": "ONNX Runtime over TensorRT",
    "native": "the C library",
    "openvino": "OpenVINO",
    "pytorch": "PyTorch",
    "tensorrt": "TensorRT",
}


@dataclasses.dataclass(frozen=True)
class Advice:
    """Recommendation for one purpose; `result` is None where nothing that was measured will do."""

    purpose: str
    result: Result | None
    words: str

    def __str__(self) -> str:
        return f"{self.purpose}: {self.words}"

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        case = self.result.case if self.result else None
        names = ("runtime", "precision", "block")
        return {"purpose": self.purpose, **{name: getattr(case, name, None) for name in names}, "words": self.words}


def recommend(report: Report) -> list[Advice]:
    """One recommendation for each purpose."""
    if not report.results[0].case.live:  # all of a bundle are alike
        return [_no_latency(report), _most_sound(report.results)]
    return [_lowest_latency(report.results), _most_streams(report.results)]


def warnings(report: Report) -> list[str]:
    """Reasons to trust the numbers less than they look like; empty where nothing was found."""
    found = []
    if not report.bundle.verified:
        found.append(f"{report.bundle.path}: did not pass its verification: it may be fast and wrong; export it again")
    if report.settings.repeats == 1:
        found.append("measured in one turn: how far the numbers repeat is not known; use --repeat 3")
    signs = [*_large_spreads(report.results), *_lost_core(report.results)]
    if signs:
        here = report.machine
        found.append(
            f"the machine is noisy: {'; '.join(signs)}. The load before was {here.load_before:.2f} on {here.cores} "
            f"core{'s' if here.cores != 1 else ''}. Trust ratios, not times: stop what else runs, or raise --repeat"
        )
    return found


def _lowest_latency(results: Sequence[Result]) -> Advice:
    purpose = "lowest latency"
    fit = [result for result in results if not _unfit(result)]
    blocks = sorted({result.case.block for result in results})
    if not fit:
        passed = "; ".join(_passed_over(results, block) for block in blocks)
        reason = f"nothing that was measured keeps real time with half the block to spare: {passed}"
        return Advice(purpose, None, reason)
    block = min(result.case.block for result in fit)
    level = _level_with_fastest([result for result in fit if result.case.block == block])
    best = level[0]
    latency = best.latency_ms
    words = (
        f"use {_name(best)}: {latency['sum_p99']:.1f} ms in all at p99 ({latency['algorithmic']:.1f} algorithmic, "
        f"{latency['buffering']:.1f} buffering, {latency['processing_p99']:.2f} processing), no deadline missed in "
        f"{len(best.paced.took_s):,} paced calls"
    )
    if level[1:]:
        words += f"; not distinguishable from {', '.join(map(_name, level[1:]))}"
    words += "".join(f"; not {_passed_over(results, smaller)}" for smaller in blocks if smaller < block)
    return Advice(purpose, best, words)


def _most_streams(results: Sequence[Result]) -> Advice:
    purpose = "most streams"
    most = max(result.capacity.streams for result in results)
    if not most:
        return Advice(purpose, None, "nothing that was measured carries a stream within its deadline")
    near = [result for result in results if result.capacity.streams >= most * (1 - 1 / RESOLUTION)]
    best = min(near, key=lambda result: result.case.block)  # the first of several
    capacity, latency = best.capacity, best.latency_ms
    p99_ms = (capacity.p99_s or 0.0) * 1e3
    cores = f"{capacity.cores} core{'s' if capacity.cores != 1 else ''}"
    alone = f" ({best.one_core.streams} on one alone)" if capacity.cores > 1 else ""
    behind_ms = (latency["algorithmic"] or 0.0) + (latency["buffering"] or 0.0)
    words = (
        f"use {_name(best)}: {'at least ' if capacity.at_least else ''}{capacity.streams} streams on {cores}{alone}, "
        f"{capacity.streams_per_core} in a call, p99 {p99_ms:.1f} of {best.case.period_s * 1e3:.0f} ms; "
        f"output runs {behind_ms:.0f} ms and the call behind input"
    )
    return Advice(purpose, best, words)


def _no_latency(report: Report) -> Advice:
    name, segments = network_name(report.bundle.manifest), segments_in_words(report.bundle)
    return Advice("lowest latency", None, f"{name} looks ahead: no live form, {segments} only; choose a causal network")


def _most_sound(results: Sequence[Result]) -> Advice:
    best = _fastest(results)
    capacity, peak_mb = best.capacity, max((turn.cold.peak_mb or 0.0) for turn in best.turns)
    cores = f"{capacity.cores} core{'s' if capacity.cores != 1 else ''}"
    keeps_up = f"{'at least ' if capacity.at_least else ''}{capacity.streams} recordings at a time keep up on {cores}"
    words = (
        f"use {_name(best)}: {1 / best.back.rtf:.1f} times real time on one core, overlap included; "
        f"{keeps_up if capacity.streams else 'not one recording keeps up'}; {peak_mb:.0f} MB"
    )
    return Advice("most sound", best, words)


def _fastest(results: Sequence[Result]) -> Result:
    """Result with the lowest median; the first of several whose turns overlap with it."""
    fastest = min(results, key=lambda result: result.back.median_s)
    slowest_turn_s = max(turn.back.median_s for turn in fastest.turns)
    return next(result for result in results if min(turn.back.median_s for turn in result.turns) <= slowest_turn_s)


def _unfit(result: Result) -> str:
    """Reason why a case does not keep real time with a margin; "" where it does."""
    paced, period_s = result.paced, result.case.period_s
    if paced.missed:
        return f"{paced.missed:,} of {len(paced.took_s):,} deadlines missed"
    if paced.p99_s is None:
        seconds = math.ceil(calls_for(99.0) * period_s / len(result.turns))
        return f"{len(paced.took_s)} paced calls are too few for p99; use --seconds {seconds}"
    if paced.p99_s > MARGIN * period_s:
        return f"p99 {paced.p99_s * 1e3:.2f} ms is more than half of {period_s * 1e3:.0f} ms"
    return ""


def _passed_over(results: Sequence[Result], block: int) -> str:
    """Name of the fastest case of a block, and the reason why it does not keep real time with a margin."""
    fastest = min((r for r in results if r.case.block == block), key=lambda result: result.paced.median_s)
    return f"{_name(fastest)}: {_unfit(fastest)}"


def _level_with_fastest(results: Sequence[Result]) -> list[Result]:
    """Results whose turns' medians overlap with the fastest one's, in the order given."""
    fastest = min(results, key=lambda result: result.paced.median_s)
    slowest_turn_s = max(_paced_medians_s(fastest))
    return [result for result in results if result is fastest or min(_paced_medians_s(result)) <= slowest_turn_s]


def _paced_medians_s(result: Result) -> list[float]:
    return [turn.paced.median_s for turn in result.turns if turn.paced is not None]


def _large_spreads(results: Sequence[Result]) -> list[str]:
    signs = []
    for name, title in (("p50", "medians"), ("p99", "p99s")):
        spreads = [
            (value, f"{result.case}, {way}")
            for result in results
            for way in result.ways
            if (value := result.spread(way)[name]) is not None
        ]
        worst, where = max(spreads, default=(0.0, ""))
        if worst > LARGE_SPREAD[name]:
            signs.append(f"{title} differ by up to {worst:.0%} between turns ({where})")
    return signs


def _lost_core(results: Sequence[Result]) -> list[str]:
    shares = []
    for result in results:
        measured: list[Timing | Point] = [result.back, *result.one_core.points, *result.capacity.points]
        shares += [(one.core_share, str(result.case)) for one in measured if one.core_share is not None]
    least, where = min(shares, default=(1.0, ""))
    return [f"others had up to {1 - least:.0%} of a measured core ({where})"] if 1 - least > LARGE_SHARE else []


def _name(result: Result) -> str:
    case = result.case
    kind = "block" if case.live else "segments of"
    return f"{TITLES.get(case.runtime, case.runtime)}, {case.precision}, {kind} {case.block}"
