"""Self-test on a device: golden vectors through each graph in each runtime, compared with PyTorch's output."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from calib import CalibrationError
from edgese.audio import Wave
from edgese.device.candidates import find_runtimes
from edgese.device.content import Content
from edgese.errors import EdgeseError
from edgese.graphs.engines import EngineFolder, OnMessage, is_for, open_exported
from edgese.graphs.streaming import run, samples
from edgese.metrics.difference import agreement
from export import ExportError
from export.bundle import Graph
from runtimes.base import RuntimeUnavailable


@dataclasses.dataclass(frozen=True)
class Trial:
    """Comparison of one graph's output in one runtime with PyTorch's, and the verdict with its reasons."""

    graph: str
    runtime: str
    n_hops: int
    snr_db: float  # of PyTorch's output over the difference; infinite if they are equal, NaN if none could be taken
    limit_db: float
    max_abs: float  # largest difference of a sample
    seconds: float  # opening and building an engine included
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        numbers = f"{self.snr_db:.1f} dB (limit {self.limit_db:.0f}), samples within {self.max_abs:.1e}"
        verdict = f"FAILED: {'; '.join(self.failures)}" if self.failures else "passed"
        measured = "" if math.isnan(self.snr_db) else f"{numbers}: "
        return f"{self.graph} in {self.runtime}: {measured}{verdict}"

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON; what is not finite becomes a string."""
        numbers = {name: getattr(self, name) for name in ("snr_db", "limit_db", "max_abs")}
        plain = {name: value if math.isfinite(value) else str(value) for name, value in numbers.items()}
        return dataclasses.asdict(self) | plain | {"failures": list(self.failures), "passed": self.passed}


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """Result of a self-test: all its trials; none at all is a failure."""

    trials: tuple[Trial, ...]
    left_out: Mapping[str, str]  # runtime -> why it does not open here

    @property
    def passed(self) -> bool:
        return bool(self.trials) and all(trial.passed for trial in self.trials)

    def __str__(self) -> str:
        runtimes = ", ".join(dict.fromkeys(trial.runtime for trial in self.trials))
        failed = sum(not trial.passed for trial in self.trials)
        if not self.trials:
            return "self-test: FAILED: no graph was tried"
        found = f"{failed} of {len(self.trials)}" if failed else f"all {len(self.trials)}"
        return f"self-test: {found} graphs in {runtimes}: {'FAILED' if failed else 'passed'}"

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        trials = [trial.entry() for trial in self.trials]
        return {"passed": self.passed, "trials": trials, "left_out": dict(self.left_out)}


def self_test(
    content: Content,
    engines: EngineFolder,
    *,
    runtimes: Collection[str] = (),
    precisions: Collection[str] = (),
    blocks: Collection[int] = (),
    on_trial: Callable[[Trial], None] = lambda trial: None,
    on_message: OnMessage = lambda line: None,
) -> SelfTest:
    """Try the graphs of these precisions and blocks in these runtimes; nothing named: all that there is.

    Args:
        on_trial: called after each.
        on_message: gets a line before an engine is built, and one where a runtime does not open.

    Raises:
        ExportError: no graph of a precision or block that is named.
        RuntimeUnavailable: a runtime that is named does not open here.
    """
    graphs = content.choose(precisions, blocks)
    found, left_out = find_runtimes(runtimes)
    for name, reason in left_out.items():
        on_message(f"{name} is left out: {reason}")
    trials = []
    for runtime in found:
        for graph in graphs:
            if is_for(graph, runtime):
                trials.append(_try(content, graph, runtime, engines, on_message))
                on_trial(trials[-1])
    return SelfTest(tuple(trials), left_out)


def _try(content: Content, graph: Graph, runtime: str, engines: EngineFolder, on_message: OnMessage) -> Trial:
    began = time.perf_counter()
    ratio_db = limit_db = max_abs = math.nan
    failures: tuple[str, ...] = ()
    n_hops = 0
    try:
        limits = content.limits(graph.precision)
        limit_db = limits["snr_db"]
        wave, wanted = _whole_blocks(graph, *content.golden_vectors(graph.variant))
        n_hops = len(wave) // samples(graph, 1)
        with open_exported(
            content.bundle, graph, runtime, engines, metadata=content.metadata(graph), on_message=on_message
        ) as opened:
            stream = opened.stream(graph.states, streams=1)
            enhanced = run(stream, graph, wave)
            stream.reset()
            first = wave[: samples(graph, graph.block)]
            again = run(stream, graph, first)
        found = agreement(wanted, enhanced, least_snr_db=limits["snr_db"], most_abs=limits["max_abs"])
        failures, ratio_db, max_abs = found.failures, found.snr_db, found.max_abs
        if not failures and not np.allclose(again, enhanced[: len(first)], rtol=0, atol=1e-6):
            failures = ("a stream that is reset does not start anew",)
    except (EdgeseError, ExportError, CalibrationError, RuntimeUnavailable) as error:
        failures = (str(error),)
    seconds = round(time.perf_counter() - began, 3)
    return Trial(graph.file, runtime, n_hops, ratio_db, limit_db, max_abs, seconds, failures)


def _whole_blocks(graph: Graph, wave: Wave, wanted: Wave) -> tuple[Wave, Wave]:
    size = samples(graph, graph.block)
    n_samples = len(wave) // size * size
    return wave[:n_samples], wanted[:n_samples]
