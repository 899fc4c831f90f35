"""Comparison of one graph with the network in PyTorch: streamed with carried state over real sound, and judged.

The truth is the enhancer in PyTorch in its training form (FFT, chunked scan), run over thousands of frames at once:
another transform, another scan and another cut than the graph has, so agreement says more than a repetition would.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import VerificationError
from edgese.graphs.streaming import run, samples
from edgese.metrics.difference import agreement, relative_difference
from edgese.verify.limits import LIMITS
from edgese.verify.truth import Truth
from export.bundle import Graph
from runtimes.registry import open_runtime


@dataclasses.dataclass(frozen=True)
class Result:
    """Differences of one graph from PyTorch, and the verdict with its reasons."""

    graph: str
    runtime: str
    block: int
    precision: str
    n_hops: int
    max_abs: float
    snr_db: float  # infinite if the samples are equal
    state_relative: dict[str, float]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    def entry(self) -> dict[str, object]:
        """Plain values for a manifest; what is not finite (JSON has neither inf nor NaN) becomes a string."""

        def plain(value: float) -> float | str:
            return value if math.isfinite(value) else str(value)

        states = {name: plain(value) for name, value in self.state_relative.items()}
        numbers = {"max_abs": plain(self.max_abs), "snr_db": plain(self.snr_db), "state_relative": states}
        return dataclasses.asdict(self) | numbers | {"failures": list(self.failures), "passed": self.passed}


def verify_graph(
    folder: Path, graph: Graph, truth: Truth, *, runtime: str = "onnxruntime", artefact: Path | None = None
) -> Result:
    """Stream one graph of a bundle with carried state over the truth's sound and compare; returns the verdict.

    Args:
        artefact: what the runtime opens; the graph's own file where it is None.

    Raises:
        VerificationError: no limits for its precision, or outputs that are not those it should have.
        RuntimeUnavailable: the runtime is missing, or cannot open or run the graph.
    """
    if graph.precision not in LIMITS:
        raise VerificationError(f"{graph.file}: no limits are set for precision {graph.precision}")
    with open_runtime(runtime, artefact or folder / graph.file) as opened:
        missing = {spec.name for spec in graph.outputs} - {spec.name for spec in opened.outputs}
        if missing:
            raise VerificationError(f"{graph.file}: lacks the outputs {', '.join(sorted(missing))}; export it again")
        stream = opened.stream(graph.states, streams=1)
        enhanced = run(stream, graph, truth.wave)
        states = stream.states
    return judge(graph, runtime, truth, enhanced, states)


def judge(
    graph: Graph, runtime: str, truth: Truth, enhanced: Wave, states: Mapping[str, NDArray[np.float32]]
) -> Result:
    """Verdict on a graph's output and states; anything missing, unequal in length or not finite is a failure."""
    limits = LIMITS[graph.precision]
    output = agreement(truth.enhanced, enhanced, least_snr_db=limits.snr_db, most_abs=limits.max_abs)
    failures = [f"output: {failure}" for failure in output.failures]
    differences: dict[str, float] = {}
    for name, wanted in truth.states.items():
        if name not in states or states[name].shape != wanted.shape:
            failures.append(f"state {name}: missing or of another shape")
            continue
        differences[name] = relative_difference(wanted, states[name])
        limit = math.inf if limits.state_relative is None else limits.state_relative
        if not math.isfinite(differences[name]) or differences[name] > limit:
            failures.append(f"state {name}: differs by {differences[name]:.2g} of its range, limit {limit:.0e}")
    n_hops = len(truth.wave) // samples(graph, 1)
    return Result(
        *(graph.file, runtime, graph.block, graph.precision, n_hops, output.max_abs, output.snr_db),
        *(differences, tuple(failures)),
    )
