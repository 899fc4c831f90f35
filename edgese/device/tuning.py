"""Verdict on precisions, by this board's own times: each is taken only where its engine is faster, as it costs sound.

FP32, FP16 and INT8 (in the products that `edgese export` chose, the others in FP16) of the same block are timed in
turns, calls back to back. FP16 must be at least 1.02 times as fast as FP32, and INT8 as what was taken before it; else
it buys nothing. The verdict stands with its numbers in the sidecar of each engine, `<engine>.json`, under "tuned"; an
engine that is built anew has none until it is tuned again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgese.bench.timing import Timing, pooled
from export import ExportError
from export.bundle import Graph
from export.engine import write_engine_file

GAIN = 1.02  # over what is more exact, at least
TURNS = 3
ORDER = ("fp32", "fp16", "int8")  # from the most exact

TimeGraph = Callable[[Graph], Timing]  # of calls back to back


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Precision to use for one block here, and the times that say so."""

    block: int
    variant: str
    chosen: str
    times_ms: Mapping[str, Mapping[str, float | None]]  # precision -> p50, ..., p99_9, max of all turns
    calls: int  # of each precision

    def __str__(self) -> str:
        def told(precision: str) -> str:
            times = self.times_ms[precision]
            late = times["p99_9"] if times["p99_9"] is not None else times["max"]
            return f"{precision} {times['p50']:.3f} ms (p99.9 {late:.3f}, slowest {times['max']:.3f})"

        return (
            f"block {self.block}{f' {self.variant}' if self.variant else ''}: use {self.chosen}: "
            f"{', '.join(map(told, self.times_ms))}; each must be {GAIN} times as fast as the more exact one"
        )

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"gain": GAIN, "turns": TURNS}


def judge(median_ms: Mapping[str, float]) -> str:
    """Precision to use, by the median time of a call in each; the most exact one unless another pays."""
    chosen, *others = [precision for precision in ORDER if precision in median_ms]
    for precision in others:
        if median_ms[chosen] >= GAIN * median_ms[precision]:
            chosen = precision
    return chosen


def tune(
    graphs: Sequence[Graph],
    engine_of: Callable[[Graph], Path],
    time_graph: TimeGraph,
    on_verdict: Callable[[Verdict], None],
) -> list[Verdict]:
    """Time the engines of each block in turns, and note the verdict in their sidecars.

    Args:
        engine_of: the path of a graph's engine, built if it was not.
        on_verdict: called with each verdict, as it comes: it takes a while.

    Raises:
        ExportError: nothing to choose from, an engine that cannot be built, a sidecar that cannot be read or written.
    """
    kinds = {(graph.block, graph.variant): list[Graph]() for graph in graphs}
    for graph in graphs:
        if graph.precision in ORDER:
            kinds[graph.block, graph.variant].append(graph)
    verdicts = []
    for (block, variant), offered in kinds.items():
        if len(offered) < 2:
            continue
        engines = {graph.precision: engine_of(graph) for graph in offered}  # all built before anything is timed
        turns = [{graph.precision: time_graph(graph) for graph in offered} for _ in range(TURNS)]
        timings = {precision: pooled([turn[precision] for turn in turns]) for precision in engines}
        chosen = judge({precision: timing.median_s * 1e3 for precision, timing in timings.items()})
        times = {precision: timing.percentiles_ms() for precision, timing in timings.items()}
        verdict = Verdict(block, variant, chosen, times, min(len(timing.took_s) for timing in timings.values()))
        for engine in engines.values():
            _note(engine, verdict)
        on_verdict(verdict)
        verdicts.append(verdict)
    if not verdicts:
        raise ExportError("--tune: found no block in two precisions, wanted some: pack a bundle that has fp16 or int8")
    return verdicts


def _note(engine: Path, verdict: Verdict) -> None:
    sidecar = engine.with_name(f"{engine.name}.json")
    try:
        record = json.loads(sidecar.read_text(encoding="utf-8"))
        record["tuned"] = verdict.entry()
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"{sidecar}: cannot be read ({error}); build the engine anew (--force)") from error
    write_engine_file(sidecar, (json.dumps(record, indent=2) + "\n").encode())
