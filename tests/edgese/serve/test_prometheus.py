"""Numbers in Prometheus' text format."""

from __future__ import annotations

from edgese.serve.prometheus import Counts


def test_the_numbers_are_those_that_were_counted() -> None:
    counts = Counts()
    for took_s in (0.001, 0.002, 0.03, 9.0):
        counts.answered(took_s, 0.5)
    counts.connections["accepted"] += 2
    counts.closed["client"] += 1
    lines = counts.text(
        {"edgese_streams": ("Open.", 3.0)}, {"edgese_rounds_total": ("Rounds.", 12345678.0)}
    ).splitlines()
    for line in (
        "# TYPE edgese_streams gauge",
        "edgese_streams 3",
        "# TYPE edgese_rounds_total counter",
        "edgese_rounds_total 12345678",
        "edgese_sound_seconds_total 2",
        'edgese_connections_total{result="accepted"} 2',
        'edgese_closed_total{reason="client"} 1',
        'edgese_answer_seconds_bucket{le="0.002"} 2',
        'edgese_answer_seconds_bucket{le="0.02"} 2',
        'edgese_answer_seconds_bucket{le="0.05"} 3',
        'edgese_answer_seconds_bucket{le="5.0"} 3',
        'edgese_answer_seconds_bucket{le="+Inf"} 4',
        "edgese_answer_seconds_sum 9.033",
        "edgese_answer_seconds_count 4",
    ):
        assert line in lines, line
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
