"""Stands in for a measuring process: calls cost what a formula says, and no time passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgese.bench.probe import Case, ColdStart
from edgese.bench.timing import Timing
from runtimes.base import RuntimeUnavailable

COLD = ColdStart(start_s=0.05, import_s=0.2, load_s=0.1, first_call_s=0.01, peak_mb=80.0)

Cost = Callable[[Case, int], float]  # case, streams in a call -> seconds that a call takes


def plain_cost(case: Case, streams: int) -> float:
    """Half a millisecond, and a fifth more for each hop of each stream."""
    return 0.0005 + 0.0001 * case.block * streams


@dataclasses.dataclass
class FakeLab:
    """`FakeLab().start` begins fake processes; `started` lists them in order, `open` tells how many run."""

    cost: Cost = plain_cost
    missing: tuple[str, ...] = ()
    paced_factor: Callable[[int], float] = lambda turn: 2.0  # paced calls are slower, by the number of the process
    core_share: float = 1.0
    started: list[tuple[str, int]] = dataclasses.field(default_factory=list)  # case, core
    open: int = 0

    def start(self, case: Case, core: int, sound: Path, streams: int) -> Any:
        assert sound.is_file()
        self.started.append((str(case), core))
        if case.runtime in self.missing:
            raise RuntimeUnavailable(f"{case.runtime} cannot be loaded")
        return FakeProbe(self, case, streams)


class FakeProbe:
    def __init__(self, lab: FakeLab, case: Case, streams: int) -> None:
        self.lab, self.case, self.streams, self.cold = lab, case, streams, COLD
        self.number = sum(str(case) == name for name, _ in lab.started) - 1
        self.request: dict[str, Any] = {}

    def __enter__(self) -> FakeProbe:
        self.lab.open += 1
        return self

    def __exit__(self, *exc: object) -> None:
        self.lab.open -= 1

    def back(self, n_calls: int) -> Timing:
        self.begin(do="back", calls=n_calls)
        return self.timing()

    def paced(self, n_calls: int) -> Timing:
        took = np.full(n_calls, self.lab.cost(self.case, self.streams) * self.lab.paced_factor(self.number))
        return Timing(self.case.period_s, took, took + 1e-4)

    def begin(self, **request: Any) -> None:
        self.request = request
        if request["do"] == "open":
            self.streams = request["streams"]

    def answer(self) -> dict[str, Any]:
        return {}

    def timing(self) -> Timing:
        cost, n_calls = self.lab.cost(self.case, self.streams), self.request["calls"]
        if cost > self.case.period_s:
            n_calls = min(n_calls, self.request.get("allowed_misses", n_calls) + 1)
        took = np.full(n_calls, cost)
        return Timing(self.case.period_s, took, took, self.lab.core_share)
