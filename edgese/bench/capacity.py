"""Search for the most streams that a device carries: as many in a call as it ends within its block's duration.

A point fits if the p99 of calls back to back is within the block's duration; of calls that take segments, which are
few, the slowest within what a segment advances. The number of streams is doubled until a
point does not fit, then bisected to within a sixteenth. A point that does not fit is measured once more before that is
believed: a neighbour's burst must not end the search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from edgese.bench.timing import Timing

RESOLUTION = 16  # the answer is within a sixteenth of itself, or exact below that
TRIES = 2
MAX_STREAMS = 1024  # in one call; what carries more is said to carry at least so many


@dataclasses.dataclass(frozen=True)
class Point:
    """Calls of so many streams each, on one core or on several at the same time."""

    streams: int  # in each call
    timings: tuple[Timing, ...]  # one a core
    complete: bool  # False: stopped when too many calls had missed for p99 to be within the deadline
    live: bool = True  # False: calls take segments

    @property
    def slow_s(self) -> float | None:
        """Time that is compared with the deadline: p99, or the slowest call where they are segments."""
        if self.live or not self.complete:
            return self.p99_s
        return max(float(timing.took_s.max()) for timing in self.timings)

    @property
    def p99_s(self) -> float | None:
        """p99 of the slowest core's calls; None where calls were stopped, or are too few."""
        values = [timing.p99_s for timing in self.timings]
        return max((value for value in values if value is not None), default=None) if self.complete else None

    @property
    def fits(self) -> bool:
        return self.slow_s is not None and self.slow_s <= self.timings[0].period_s

    @property
    def core_share(self) -> float | None:
        """Share of its core that the measuring process had, the least of all cores; None if it is not known."""
        shares = [timing.core_share for timing in self.timings if timing.core_share is not None]
        return min(shares, default=None)

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "streams": self.streams,
            "calls": [len(timing.took_s) for timing in self.timings],
            "median_ms": max(timing.median_s for timing in self.timings) * 1e3,
            "p99_ms": None if self.p99_s is None else self.p99_s * 1e3,
            "slowest_ms": max(float(timing.took_s.max()) for timing in self.timings) * 1e3,
            "fits": self.fits,
            "core_share": self.core_share,
        }


@dataclasses.dataclass(frozen=True)
class Capacity:
    """The most streams that fit, and all points on the way there in the order in which they were measured."""

    cores: int
    streams_per_core: int  # 0: not even one fits
    at_least: bool  # the search ended at its ceiling, not at the deadline
    points: tuple[Point, ...]

    @property
    def streams(self) -> int:
        """Streams on all cores together."""
        return self.cores * self.streams_per_core

    @property
    def slow_s(self) -> float | None:
        """`Point.slow_s` at this capacity; None where no stream fits."""
        fitting = [point.slow_s for point in self.points if point.fits and point.streams == self.streams_per_core]
        return fitting[-1] if fitting else None

    @property
    def p99_s(self) -> float | None:
        """p99 of a call at this capacity; None where no stream fits."""
        fitting = [point.p99_s for point in self.points if point.fits and point.streams == self.streams_per_core]
        return fitting[-1] if fitting else None

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "cores": self.cores,
            "streams": self.streams,
            "streams_per_core": self.streams_per_core,
            "at_least": self.at_least,
            "p99_ms": None if self.p99_s is None else self.p99_s * 1e3,
            "points": [point.entry() for point in self.points],
        }


def most_streams(
    measure: Callable[[int], Point], *, cores: int = 1, start: int = 1, ceiling: int = MAX_STREAMS
) -> Capacity:
    """Search for the most streams that fit; `measure` takes the number of streams in each call.

    Args:
        start: the number to begin with, doubled from there.
        ceiling: the largest number to try.
    """
    points: list[Point] = []

    def fits(streams: int) -> bool:
        for _ in range(TRIES):
            points.append(measure(streams))
            if points[-1].fits:
                return True
        return False

    good, bad = 0, start
    while fits(bad):
        good, bad = bad, min(2 * bad, ceiling)
        if good == ceiling:
            return Capacity(cores, good, True, tuple(points))
    while bad - good > max(1, good // RESOLUTION):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return Capacity(cores, good, False, tuple(points))
