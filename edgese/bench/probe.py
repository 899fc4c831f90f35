"""Measuring processes, each with one graph open in one runtime on a core of its own (the other side: coldstart.py).

A fresh process for each measurement keeps runtimes from disturbing each other and this process's progress bar from
disturbing them, pins a core before any library makes a thread, and shows what a cold start takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import edgese
from edgese.bench.capacity import Point
from edgese.bench.timing import Timing, calls_for
from edgese.errors import EdgeseError
from export.bundle import Graph
from runtimes.base import RuntimeUnavailable

if TYPE_CHECKING:
    from typing_extensions import Self

POINT_S = 1.0  # of sound for each stream at each point of a search, or as many calls as p99 takes
SEGMENT_CALLS = 3  # at each point where calls take segments, which last for seconds
WARM_UP_CALLS = 10  # of each point: the process is warm already, the stream and its number of streams are new
_END_S = 10.0  # that a process has to end by itself


class MeasurementError(EdgeseError):
    """A measurement that cannot be made here, or that ended before it gave its numbers."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One graph of a bundle in one runtime, as the thing to measure."""

    bundle: Path
    graph: Graph
    runtime: str
    period_s: float  # duration of the block that a call takes; of a segment, of what it advances
    live: bool = True  # False: the graph takes a segment of a network that looks ahead

    @property
    def precision(self) -> str:
        return self.graph.precision

    @property
    def block(self) -> int:
        return self.graph.block

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision} {'block' if self.live else 'segment'} {self.block}"


@dataclasses.dataclass(frozen=True)
class ColdStart:
    """Durations from the start of a fresh process to its first block of sound, one after the other, s; peak memory."""

    start_s: float  # Python itself
    import_s: float  # libraries
    load_s: float  # the bundle checked, the graph opened
    first_call_s: float
    peak_mb: float | None  # resident memory of the whole process, the most after a few hundred hops

    @property
    def total_s(self) -> float:
        return self.start_s + self.import_s + self.load_s + self.first_call_s


class Probe:
    """Measuring process of one case. A context manager.

    Raises:
        RuntimeUnavailable: the runtime's library is not installed, or does not work here.
        MeasurementError: the graph cannot be opened or run, or the process died.
    """

    def __init__(self, case: Case, core: int, sound: Path, streams: int = 1) -> None:
        self.case = case
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
        command = (sys.executable, "-m", "edgese.bench.coldstart", case.bundle.resolve(), case.graph.file, case.runtime)
        options = {"--sound": sound.resolve(), "--streams": streams, "--core": core, "--since": time.monotonic()}
        self._process = subprocess.Popen(
            [*map(str, command), *(str(part) for option in options.items() for part in option)],
            cwd=Path(edgese.__file__).parents[1],  # which it finds this package in, wherever this process was started
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process, which passes it on once
        )
        try:
            self.cold = ColdStart(**self.answer()["cold"])
        except BaseException:
            self.close(give_up=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self.close(give_up=kind is not None)

    def close(self, *, give_up: bool = False) -> None:
        """End the process, with `give_up` in the middle of what it does; closing twice is harmless."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if give_up:
            self._process.send_signal(signal.SIGINT)  # it tidies up
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()

    def back(self, n_calls: int) -> Timing:
        """Timing of calls back to back on the stream that is open: the first one, or that of the last point."""
        self.begin(do="back", calls=n_calls)
        return self.timing()

    def paced(self, n_calls: int) -> Timing:
        """Timing of calls in real time on the stream that is open."""
        self.begin(do="paced", calls=n_calls)
        return self.timing()

    def begin(self, **request: Any) -> None:
        """Send a request of coldstart.py's protocol, and do not wait for its answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def timing(self) -> Timing:
        """Timing of the calls that were begun, waited for."""
        answer = self.answer()
        took, ended = (np.array(answer[key]) for key in ("took_s", "ended_s"))
        return Timing(self.case.period_s, took, ended, answer["core_share"])

    def answer(self) -> dict[str, Any]:
        """Answer to the oldest request that has none, waited for."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise RuntimeUnavailable(answer["missing"])
        if "error" in answer:
            raise MeasurementError(answer["error"])
        return answer

    def _died(self) -> Exception:
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().strip()
        if code > 0:  # a bug keeps its traceback
            return RuntimeError(f"{self.case}: the measuring process ended with code {code}\n{said}")
        how = f"was ended by {signal.Signals(-code).name}" if code else "ended without an answer"
        last = f" ({said.splitlines()[-1]})" if said else ""
        return MeasurementError(f"{self.case}: the measuring process {how}{last}; see whether memory was short")


def measure_point(probes: Sequence[Probe], streams: int) -> Point:
    """Timings of calls of `streams` streams back to back, in all these processes at the same time."""
    case = probes[0].case
    n_calls = max(calls_for(99.0), round(POINT_S / case.period_s)) if case.live else SEGMENT_CALLS
    for probe in probes:
        probe.begin(do="open", streams=streams, calls=WARM_UP_CALLS if case.live else 1)
    for probe in probes:
        probe.answer()
    for probe in probes:
        probe.begin(do="back", calls=n_calls, allowed_misses=n_calls // 100)
    timings = tuple(probe.timing() for probe in probes)
    return Point(streams, timings, all(len(timing.took_s) == n_calls for timing in timings), case.live)
