"""Measuring process: opens one graph, reports the times and memory of that, then times calls of it on request.

    python -m edgese.bench.coldstart BUNDLE block1.fp32.onnx onnxruntime --sound wave.npy

Prints one line of JSON about its start, then answers each line on stdin with one on stdout, until stdin ends:
`{"do": "open", "streams": 2, "calls": 10}`, `{"do": "back", "calls": 1000}`, `{"do": "paced", "calls": 625}`.
`edgese.bench.probe` is the other side. Nothing heavy is imported before the clock runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgese.bench.timing import Feed, Timing
    from export.bundle import Graph
    from runtimes.base import Runtime

WARM_UP_CALLS = 50
WARM_UP_SEGMENTS = 2  # where a call takes one, which lasts for seconds
WARM_UP_HOPS = 400  # and at least so many: memory is read after them

Answer = Callable[[dict[str, Any]], None]


def main() -> None:
    began_s = time.monotonic()
    options = _options()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})  # before any library makes a thread
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        serve(options, began_s, sys.stdin, lambda entry: print(json.dumps(entry), file=answers, flush=True))


def serve(options: argparse.Namespace, began_s: float, requests: Iterable[str], answer: Answer) -> None:
    """Open the graph and answer requests; `missing`: the runtime does not load, `error`: what the user can mend."""
    from edgese.errors import EdgeseError
    from export import ExportError
    from runtimes.base import RuntimeUnavailable
    from runtimes.registry import load_runtime

    try:
        load_runtime(options.runtime)
    except RuntimeUnavailable as error:
        answer({"missing": str(error)})
        return
    imported_s = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            session = Session.open_graph(stack, options.bundle, options.graph, options.runtime, options.sound)
            loaded_s = time.monotonic()
            first_call_s = session.first_call(options.streams)
            cold = {
                "start_s": None if options.since is None else began_s - options.since,
                "import_s": imported_s - began_s,
                "load_s": loaded_s - imported_s,
                "first_call_s": first_call_s,
                **session.open(options.streams, session.warm_up_calls),
            }
            answer({"cold": cold})
            for line in requests:
                request = json.loads(line)
                answer(getattr(session, request.pop("do"))(**request))
    except (EdgeseError, ExportError, RuntimeUnavailable) as error:
        answer({"error": str(error)})


class Session:
    """One open graph, and timed calls of it on one stream after another."""

    def __init__(
        self, runtime: Runtime, graph: Graph, wave: NDArray[np.float32], period_s: float, *, live: bool = True
    ) -> None:
        self._runtime, self._graph, self._wave, self._period_s = runtime, graph, wave, period_s
        self.warm_up_calls = max(WARM_UP_CALLS, WARM_UP_HOPS // graph.block) if live else WARM_UP_SEGMENTS

    @classmethod
    def open_graph(cls, stack: contextlib.ExitStack, path: Path, file: str, runtime: str, sound: Path) -> Session:
        """Session of a checked bundle's graph `file`, open on one thread."""
        import numpy as np

        from edgese.graphs.audio_facts import open_bundle
        from edgese.graphs.opening import open_graph
        from edgese.graphs.segments import Segments

        bundle = open_bundle(path)
        (graph,) = (graph for graph in bundle.graphs if graph.file == file)
        audio, segments = bundle.manifest["audio"], Segments.of(bundle.manifest)
        opened = stack.enter_context(open_graph(bundle, graph, runtime, threads=1))
        n_new = graph.block * audio["hop"] if segments is None else segments.advance
        return cls(opened, graph, np.load(sound), n_new / audio["sample_rate_hz"], live=segments is None)

    def first_call(self, streams: int) -> float:
        """Seconds until a new stream has given its first block."""
        feeds = self._feed(streams)(0)
        started = time.perf_counter()
        self._runtime.stream(self._graph.states, streams=streams)(feeds)
        return time.perf_counter() - started

    def open(self, streams: int, calls: int) -> dict[str, Any]:
        """Begin a stream and call it until it is warm; returns the peak memory of this process so far, MB."""
        from edgese.machine.host import memory_mb

        self._call = self._runtime.stream(self._graph.states, streams=streams)
        self._next = self._feed(streams)
        for index in range(calls):
            self._call(self._next(index))
        return {"peak_mb": memory_mb("VmHWM")}

    def back(self, calls: int, allowed_misses: int | None = None) -> dict[str, Any]:
        from edgese.bench.timing import back_to_back

        return _entry(back_to_back(self._call, self._next, calls, self._period_s, allowed_misses=allowed_misses))

    def paced(self, calls: int) -> dict[str, Any]:
        from edgese.bench.timing import paced

        return _entry(paced(self._call, self._next, calls, self._period_s))

    def _feed(self, streams: int) -> Feed:
        """Inputs of each call: block after block of the sound, repeated, each stream at another place in it."""
        import numpy as np

        size = next(int(spec.shape[1]) for spec in self._graph.inputs if spec.name == "wave")
        wave = np.tile(self._wave, -(-size // len(self._wave)))  # a segment may be longer than the sound
        blocks = wave[: len(wave) // size * size].reshape(-1, size)
        places = 7 * np.arange(streams)
        return lambda index: {"wave": blocks[(index + places) % len(blocks)]}


def _entry(timing: Timing) -> dict[str, Any]:
    return {"took_s": timing.took_s.tolist(), "ended_s": timing.ended_s.tolist(), "core_share": timing.core_share}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("graph", help="a file of the bundle")
    parser.add_argument("runtime")
    parser.add_argument("--sound", type=Path, required=True, help="samples at the network's rate, as NumPy saves them")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--core", type=int, help="the one core to run on")
    parser.add_argument("--since", type=float, help="time.monotonic() when this process was started")
    return parser.parse_args()


if __name__ == "__main__":
    main()
