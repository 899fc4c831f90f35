"""Numbers of a server that runs, in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Counts:
    """What has happened since the start.

    Attributes:
        connections: `accepted`, or why a connection was refused, -> how many.
        closed: why a stream ended -> how many.
        sound_s: seconds of sound that came in, all streams together.
        messages: of samples that were answered.
    """

    def __init__(self) -> None:
        self.connections: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.sound_s, self.messages = 0.0, 0
        self._answers = [0] * (len(BOUNDS_S) + 1)
        self._answers_s = 0.0

    def answered(self, took_s: float, sound_s: float) -> None:
        """Count a message, answered after `took_s`, that held `sound_s` of sound."""
        self.messages += 1
        self.sound_s += sound_s
        self._answers[bisect.bisect_left(BOUNDS_S, took_s)] += 1
        self._answers_s += took_s

    def text(self, gauges: Mapping[str, tuple[str, float]], totals: Mapping[str, tuple[str, float]]) -> str:
        """All numbers, and further ones: name -> (help, value)."""
        return "\n".join(self._lines(gauges, totals)) + "\n"

    def _lines(self, gauges: Mapping[str, tuple[str, float]], totals: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        own = {
            "edgese_sound_seconds_total": ("Seconds of sound that came in.", self.sound_s),
            "edgese_messages_total": ("Messages of samples answered.", float(self.messages)),
        }
        for kind, numbers in (("gauge", gauges), ("counter", {**own, **totals})):
            for name, (says, value) in numbers.items():
                yield from (f"# HELP {name} {says}", f"# TYPE {name} {kind}", f"{name} {value:.10g}")
        for name, says, label, counter in (
            ("edgese_connections_total", "Connections by what became of them.", "result", self.connections),
            ("edgese_closed_total", "Streams that ended, by reason.", "reason", self.closed),
        ):
            yield from (f"# HELP {name} {says}", f"# TYPE {name} counter")
            yield from (f'{name}{{{label}="{key}"}} {count}' for key, count in sorted(counter.items()))
        name = "edgese_answer_seconds"
        yield from (
            f"# HELP {name} From when a message is taken up to when its answer is sent.",
            f"# TYPE {name} histogram",
        )
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), itertools.accumulate(self._answers), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield from (f"{name}_sum {self._answers_s:.10g}", f"{name}_count {self.messages}")
