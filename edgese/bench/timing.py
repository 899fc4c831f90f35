"""Timing of calls back to back and paced in real time, as by a sound card; percentiles with enough calls behind them.

Both are needed: a core that sleeps between calls clocks down and loses its caches, so that paced calls take longer
than those which follow each other at once: one hop of `small` 5 to 6 times as long (benchmarks/RESULTS.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[Arrays], object]
Feed = Callable[[int], Arrays]  # the number of a call -> what it is fed
Clock = Callable[[], float]

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}


@dataclasses.dataclass(frozen=True)
class Timing:
    """Durations of calls of one kind in their order, s, one value a call."""

    period_s: float  # duration of the block that a call takes: its deadline
    took_s: Seconds  # by itself
    ended_s: Seconds  # after its block was there, late wake-ups and delays by earlier calls included
    core_share: float | None = None  # of the time that calls back to back took, the share in which this process ran

    @property
    def missed(self) -> int:
        """Number of calls that had not ended when the next block was there."""
        return int((self.ended_s > self.period_s).sum())

    @property
    def rtf(self) -> float:
        """Mean real-time factor: the share of its block's duration that a call takes."""
        return float(self.took_s.mean()) / self.period_s

    @property
    def median_s(self) -> float:
        return float(np.median(self.took_s))

    @property
    def p99_s(self) -> float | None:
        return percentile(self.took_s, 99.0)

    def percentiles_ms(self) -> dict[str, float | None]:
        """p50 to p99.9 and the slowest call, in milliseconds; None where there were too few calls."""
        values = {name: percentile(self.took_s, percent) for name, percent in PERCENTILES.items()}
        return {name: None if value is None else value * 1e3 for name, value in values.items()} | {
            "max": float(self.took_s.max()) * 1e3
        }


def percentile(values: Seconds, percent: float) -> float | None:
    """Percentile of values; None where they are too few: under 100 for p99, under 1000 for p99.9."""
    return float(np.percentile(values, percent)) if len(values) >= calls_for(percent) else None


def calls_for(percent: float) -> int:
    """Least number of calls for a percentile: 100 for p99, 1000 for p99.9."""
    return round(100 / (100 - percent))


def pooled(timings: Sequence[Timing]) -> Timing:
    """Timing of all calls of several runs together."""
    took, ended = ([getattr(timing, name) for timing in timings] for name in ("took_s", "ended_s"))
    shares = [timing.core_share for timing in timings if timing.core_share is not None]
    return Timing(timings[0].period_s, np.concatenate(took), np.concatenate(ended), min(shares, default=None))


def spread(values: Sequence[float]) -> float | None:
    """Excess of the largest value over the smallest, as a share of the smallest; None for a single value."""
    return max(values) / min(values) - 1 if len(values) > 1 else None


def back_to_back(
    call: Call,
    feed: Feed,
    n_calls: int,
    period_s: float,
    *,
    allowed_misses: int | None = None,
    clock: Clock = time.perf_counter,
    cpu_clock: Clock = time.process_time,
) -> Timing:
    """Timing of calls that follow each other at once; their inputs are made between them, outside the measured time.

    Args:
        allowed_misses: stop at the first call beyond so many misses; None: go on to the end.
    """
    took = np.empty(n_calls)
    n_done = n_missed = 0
    with _no_collection():
        began, cpu_began = clock(), cpu_clock()
        for index in range(n_calls):
            feeds = feed(index)
            started = clock()
            call(feeds)
            took[index] = clock() - started
            n_done += 1
            n_missed += took[index] > period_s
            if allowed_misses is not None and n_missed > allowed_misses:
                break
        core_share = (cpu_clock() - cpu_began) / (clock() - began)
    return Timing(period_s, took[:n_done], took[:n_done], core_share)


def paced(
    call: Call,
    feed: Feed,
    n_calls: int,
    period_s: float,
    *,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Timing:
    """Timing of calls that wait for their block, one each period; one that is late delays those after it."""
    took, ended = np.empty(n_calls), np.empty(n_calls)
    with _no_collection():
        first = clock() + period_s
        for index in range(n_calls):
            feeds, there = feed(index), first + index * period_s
            sleep(max(0.0, there - clock()))
            started = clock()
            call(feeds)
            done = clock()
            took[index], ended[index] = done - started, done - there
    return Timing(period_s, took, ended)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Switch Python's garbage collector off meanwhile: its pauses are this harness's, not the runtime's."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
