"""Measurement of a bundle's speed on this machine, in every runtime, precision and block size that both offer.

    report = bench(Bundle.open(path), Settings(blocks=(1, 8)))
    for result in report.results: result.paced.percentiles_ms()

Each case is measured in a fresh process on one core (probe.py): its cold start, then calls back to back and paced in
real time. The whole is repeated in turns (A B C, A B C, ...), so that what the machine does meanwhile shows as a spread
instead of favouring one case. Then streams are added to each call until the deadline breaks (capacity.py), on one core
and on all at once. Nothing is judged here: see advice.py.

A network that looks ahead has no live form: its segments are called back to back only, and few times, as one lasts for
seconds; the deadline is what a segment advances, so that the real-time factor is that of a long recording.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgese.audio.reader import read_wave
from edgese.bench.capacity import MAX_STREAMS, Capacity, most_streams
from edgese.bench.probe import Case, ColdStart, MeasurementError, Probe, measure_point
from edgese.bench.timing import Timing, calls_for, pooled, spread
from edgese.graphs.audio_facts import audio_facts
from edgese.graphs.opening import ENGINE_STREAMS
from edgese.graphs.segments import Segments, require_streaming_form
from edgese.machine import host as machine
from edgese.samples import NOISY
from export import ExportError
from export.bundle import Bundle, Graph
from export.staging import temporary_folder
from runtimes.base import RuntimeUnavailable
from runtimes.gpu import read_device
from runtimes.registry import ON_GPU, RUNTIMES, require_known

LEAST_SEGMENTS = 5  # calls of a turn where a call takes one
DEVICES = ("cpu", "cuda", "jetson")

Start = Callable[[Case, int, Path, int], Probe]  # case, core, sound, streams
Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is done now


@dataclasses.dataclass(frozen=True)
class Settings:
    """Choice of what to measure, and how long; an empty tuple means all that there is."""

    runtimes: tuple[str, ...] = ()  # empty: those that are installed and compute on the device
    precisions: tuple[str, ...] = ()
    blocks: tuple[int, ...] = ()
    streams: int = 1  # in a call whose latency is measured
    seconds: float = 5.0  # of sound, in real time, that each turn of each case takes
    repeats: int = 3
    core: int | None = None  # None: the last one that this process may use
    device: str = "cpu"  # one of DEVICES


@dataclasses.dataclass(frozen=True)
class Turn:
    """Measurements of one case by one fresh process."""

    cold: ColdStart
    back: Timing
    paced: Timing | None  # None: not live


@dataclasses.dataclass(frozen=True)
class Result:
    """Measurements of one case: its turns, and the streams that it carries."""

    case: Case
    streams: int
    overlap_s: float  # by which the graph's output runs behind its input
    turns: tuple[Turn, ...]
    one_core: Capacity
    all_cores: Capacity | None  # None: there is only one

    @property
    def back(self) -> Timing:
        """Timing of the calls back to back of all turns together."""
        return pooled([turn.back for turn in self.turns])

    @property
    def paced(self) -> Timing:
        """Timing of the calls in real time of all turns together; of live cases only."""
        return pooled([turn.paced for turn in self.turns if turn.paced is not None])

    @property
    def ways(self) -> tuple[str, ...]:
        """Names of the ways in which calls were made: "back" to back and, for live cases, "paced"."""
        return ("back", "paced") if self.case.live else ("back",)

    @property
    def capacity(self) -> Capacity:
        """Capacity of the device: of all its cores, unless a single one carries more than they do together."""
        return max((self.all_cores or self.one_core, self.one_core), key=lambda capacity: capacity.streams)

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """Latency from a sample's input to its output, by part and in sum, ms; empty where the case is not live.

        The overlap behind which the output runs (algorithmic), the block that is gathered first (buffering), and from
        there to the end of the paced call (processing), late wake-ups included.
        """
        if not self.case.live:
            return {}
        ended = dataclasses.replace(self.paced, took_s=self.paced.ended_s)
        fixed_s = self.overlap_s + self.case.period_s
        parts = {
            "algorithmic": self.overlap_s,
            "buffering": self.case.period_s,
            "processing_p50": ended.median_s,
            "processing_p99": ended.p99_s,
            "sum_p50": fixed_s + ended.median_s,
            "sum_p99": None if ended.p99_s is None else fixed_s + ended.p99_s,
        }
        return {name: None if seconds is None else seconds * 1e3 for name, seconds in parts.items()}

    def spread(self, way: str) -> dict[str, float | None]:
        """Excess of the slowest turn's median and p99 over the fastest turn's, as a share; None where not known."""
        timings: list[Timing] = [getattr(turn, way) for turn in self.turns]
        p99s = [timing.p99_s for timing in timings]
        known = [value for value in p99s if value is not None]
        return {
            "p50": spread([timing.median_s for timing in timings]),
            "p99": spread(known) if len(known) == len(p99s) else None,
        }

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "runtime": self.case.runtime,
            "precision": self.case.precision,
            "block": self.case.block,
            "live": self.case.live,
            "block_ms": self.case.period_s * 1e3,
            "streams": self.streams,
            **{way: self._way(way) if way in self.ways else None for way in ("back", "paced")},
            "latency_ms": self.latency_ms or None,
            "cold_start": [dataclasses.asdict(turn.cold) | {"total_s": turn.cold.total_s} for turn in self.turns],
            "one_core": self.one_core.entry(),
            "all_cores": self.all_cores.entry() if self.all_cores else None,
        }

    def _way(self, way: str) -> dict[str, Any]:
        turns = [_timing_entry(getattr(turn, way)) for turn in self.turns]
        return _timing_entry(getattr(self, way)) | {"spread": self.spread(way), "repeats": turns}


@dataclasses.dataclass(frozen=True)
class Report:
    """Results of a bench, with the bundle, machine and settings that they belong to."""

    bundle: Bundle
    machine: machine.Machine
    core: int
    settings: Settings
    results: tuple[Result, ...]
    left_out: Mapping[str, str]  # runtimes that are not installed, and why

    @property
    def gpu(self) -> str | None:
        """Name of the GPU that was measured; None if it was the CPU."""
        return None if self.settings.device == "cpu" else str(read_device() or "") or None

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "bundle": {
                "name": self.bundle.manifest["name"],
                "path": str(self.bundle.path),
                "verified": self.bundle.verified,
            },
            "machine": self.machine.entry() | {"pinned_core": self.core, "gpu": self.gpu},
            "settings": dataclasses.asdict(self.settings),
            "left_out": dict(self.left_out),
            "results": [result.entry() for result in self.results],
        }


def require_device(device: str, here: machine.Machine) -> None:
    """Refuse to measure on a device that is not this one.

    Raises:
        MeasurementError: the machine is another, or nothing of this version runs there.
    """
    if device == "cuda" and read_device() is None:
        raise MeasurementError(
            "--device cuda: found no NVIDIA GPU that a driver reports, wanted one (nvidia-smi must work): "
            "measure with --device cpu"
        )
    if device == "jetson" and here.board is None:
        raise MeasurementError(
            f"--device jetson: this machine is no Jetson (found {here.cpu}, {here.system}): "
            "run edgese bench on the board, or name the board (--host user@board); numbers of another machine are not "
            "shown for one"
        )


def choose(bundle: Bundle, settings: Settings) -> list[Case]:
    """Cases that the settings choose, by block size, then in the order of graphs and runtimes.

    Raises:
        ExportError: a block or precision that the bundle lacks, or a streaming form.
        RuntimeUnavailable: a runtime that is unknown, or of another device.
    """
    require_streaming_form(bundle, settings.blocks)
    here = runtimes_of(settings.device)
    for runtime in settings.runtimes:
        require_known(runtime)
        if runtime not in here:
            other = "cuda" if settings.device == "cpu" else "cpu"
            raise RuntimeUnavailable(f"{runtime}: does not compute on --device {settings.device}: see --device {other}")
    plain = [graph for graph in bundle.graphs if not graph.variant]
    graphs = [
        graph
        for graph in plain
        if graph.block in (settings.blocks or (graph.block,))
        and graph.precision in (settings.precisions or (graph.precision,))
    ]
    wanted = {f"block {block}": any(graph.block == block for graph in graphs) for block in settings.blocks}
    wanted |= {name: any(graph.precision == name for graph in graphs) for name in settings.precisions}
    missing = [name for name, found in wanted.items() if not found]
    if missing or not graphs:
        offered = ", ".join(f"block {graph.block} ({graph.precision})" for graph in plain) or "none without a variant"
        raise ExportError(f"{bundle.path}: no graph of {', '.join(missing) or 'any block'}; this bundle has {offered}")
    facts = audio_facts(bundle)
    segments = Segments.of(bundle.manifest)

    def period_s(graph: Graph) -> float:
        """Duration of the new sound that a call takes, s."""
        return (graph.block * facts.hop if segments is None else segments.advance) / facts.sample_rate_hz

    return [
        Case(bundle.path, graph, runtime, period_s(graph), live=segments is None)
        for graph in sorted(graphs, key=lambda graph: graph.block)
        for runtime in dict.fromkeys(settings.runtimes or here)
    ]


def runtimes_of(device: str) -> list[str]:
    """The runtimes that compute on a device; a Jetson has both a CPU and a GPU."""
    return [name for name in RUNTIMES if device == "jetson" or (name in ON_GPU) == (device == "cuda")]


def bench(
    bundle: Bundle, settings: Settings, on_progress: Progress = lambda *step: None, start: Start = Probe
) -> Report:
    """Report of all chosen cases; takes minutes. This process keeps off the measured core meanwhile, if it has another.

    Args:
        start: starts a measuring process of a case, on a core, with a sound file and a number of streams.

    Raises:
        ExportError: a block or precision that the bundle lacks.
        RuntimeUnavailable: a runtime that was asked for is unknown or not installed, or none is.
        MeasurementError: a core that this process may not use, or a measuring process that failed.
    """
    cases, facts = choose(bundle, settings), audio_facts(bundle)
    cores = _cores(settings.core)
    core = cores[0]
    here = machine.describe(core)
    rate_hz, overlap_s = facts.sample_rate_hz, facts.overlap_samples / facts.sample_rate_hz
    n_steps, n_done = (settings.repeats + 1) * len(cases), 0
    measured: list[tuple[Case, list[Turn]]] = [(case, []) for case in cases]
    left_out: dict[str, str] = {}
    results: list[Result] = []
    with sound_file(rate_hz) as sound, _aside(cores):
        for number in range(settings.repeats):
            for case, turns in measured:
                on_progress(n_done, n_steps, f"turn {number + 1}, {case}")
                n_done += 1
                if case.runtime in left_out:
                    continue
                try:
                    with start(case, core, sound, settings.streams) as probe:
                        turns.append(_turn(probe, settings))
                except RuntimeUnavailable as error:
                    if case.runtime in settings.runtimes:
                        raise
                    left_out[case.runtime] = str(error)
        for case, turns in measured:
            on_progress(n_done, n_steps, f"streams, {case}")
            n_done += 1
            if turns:
                one_core, all_cores = _capacities(case, cores, sound, start)
                results.append(Result(case, settings.streams, overlap_s, tuple(turns), one_core, all_cores))
    if not results:
        raise RuntimeUnavailable("; ".join(left_out.values()))
    return Report(bundle, here, core, settings, tuple(results), left_out)


def _turn(probe: Probe, settings: Settings) -> Turn:
    """Timed calls back to back and paced; back to back enough for p99.9 over all turns, except for segments."""
    n_paced = math.ceil(settings.seconds / probe.case.period_s)
    if not probe.case.live:
        return Turn(probe.cold, probe.back(max(n_paced, LEAST_SEGMENTS)), None)
    n_back = max(n_paced, math.ceil(calls_for(99.9) / settings.repeats))
    return Turn(probe.cold, probe.back(n_back), probe.paced(n_paced))


def _capacities(case: Case, cores: Sequence[int], sound: Path, start: Start) -> tuple[Capacity, Capacity | None]:
    """Capacity of the first core, and of all cores at once; None for the second if there is one core or it is a GPU.

    With all cores busy, no core carries more streams than the first did by itself. A GPU takes all streams in one call,
    from one core.
    """
    ceiling = ENGINE_STREAMS if case.runtime == "tensorrt" else MAX_STREAMS
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(start(case, cores[0], sound, 1))]
        one_core = most_streams(lambda streams: measure_point(probes, streams), ceiling=ceiling)
        most = one_core.streams
        if len(cores) == 1 or not most or case.runtime in ON_GPU:
            return one_core, None
        probes += [stack.enter_context(start(case, core, sound, 1)) for core in cores[1:]]
        everywhere = most_streams(
            lambda streams: measure_point(probes, streams), cores=len(cores), start=most, ceiling=most
        )
        return one_core, dataclasses.replace(everywhere, at_least=everywhere.at_least and one_core.at_least)


def _cores(wanted: int | None) -> list[int]:
    """Core to measure on, then the others that this process may use."""
    if not hasattr(os, "sched_setaffinity"):
        raise MeasurementError(f"{platform.system()}: processes are not pinned to cores there, wanted Linux")
    allowed = machine.allowed_cores()
    core = allowed[-1] if wanted is None else wanted
    if core not in allowed:
        known = ", ".join(map(str, allowed))
        raise MeasurementError(f"--core: found {core}, wanted one that this process may use: {known}")
    return [core, *(other for other in allowed if other != core)]


@contextlib.contextmanager
def _aside(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process on all cores but the first meanwhile, if there are others."""
    with machine.pinned(cores[1:]) if cores[1:] else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def sound_file(rate_hz: int) -> Iterator[Path]:
    """Path of a temporary .npy file with the shipped noisy speech, for the measuring processes."""
    with temporary_folder() as folder:
        path = folder / "wave.npy"
        np.save(path, read_wave(NOISY, rate_hz))
        yield path


def _timing_entry(timing: Timing) -> dict[str, Any]:
    return {
        "calls": len(timing.took_s),
        **{f"{name}_ms": value for name, value in timing.percentiles_ms().items()},
        "rtf": timing.rtf,
        "missed": timing.missed,
        "core_share": timing.core_share,
    }
