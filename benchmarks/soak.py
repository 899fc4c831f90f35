"""Hours of sound through one stream: does its output stay what it was, and its memory what it took?

    python -m benchmarks.soak [--model BUNDLE] [--hours 10] [--runtime native] [--precision int8]

One minute of noisy speech (the shipped sample at 0, -10 and -20 dB) is streamed again and again, faster than real time,
the states never reset. Once all states are filled, the same minute must give the same output: each is compared with the
tenth one, and what a state loses or gathers over hours shows as a falling SNR, whatever PyTorch would say to it.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.machine import Row, parser, report, verdict
from edgese.audio.reader import read_wave
from edgese.graphs.bundles import bundle_path, choose_graph
from edgese.graphs.opening import open_graph
from edgese.graphs.precision import Precision
from edgese.graphs.streaming import run, samples
from edgese.machine.host import describe, memory_mb
from edgese.metrics.difference import snr_db
from edgese.samples import NOISY
from edgese.verify.truth import long_sound
from export.bundle import Bundle

MINUTE = 60
REFERENCE = 9  # the tenth minute: the slowest state of the shipped networks takes 47 s to forget to a third


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="a bundle; default: the shipped one")
    arguments.add_argument("--hours", type=float, default=10.0)
    arguments.add_argument("--runtime", default="onnxruntime")
    arguments.add_argument("--precision", type=Precision, default=Precision.FP32)
    options = arguments.parse_args()
    bundle = Bundle.open(bundle_path(options.model))
    graph = choose_graph(bundle, precision=options.precision)
    rate_hz = bundle.manifest["audio"]["sample_rate_hz"]
    whole = samples(graph, graph.block)
    minute = long_sound([read_wave(NOISY, rate_hz)], MINUTE * rate_hz // whole * whole)
    rows: list[Row] = []
    worst_db, started = float("inf"), time.monotonic()
    n_minutes = max(REFERENCE + 2, round(options.hours * 60))
    with open_graph(bundle, graph, options.runtime) as opened:
        stream = opened.stream(graph.states, streams=1)
        reference = minute
        for at in range(n_minutes):
            enhanced = run(stream, graph, minute)
            if at == REFERENCE:
                reference = enhanced
            if at > REFERENCE:
                found_db = snr_db(reference, enhanced)
                worst_db = min(worst_db, found_db)
                if at == REFERENCE + 1 or at == n_minutes - 1 or (at + 1) % max(1, n_minutes // 10) == 0:
                    level = 10 * np.log10(np.mean(enhanced.astype(np.float64) ** 2))
                    hours = (at + 1) / 60
                    rows.append({"hours": hours, "SNR dB": found_db, "level dBFS": level, "RSS MB": memory_mb("VmRSS")})
    took_s = time.monotonic() - started
    grown_mb = float(rows[-1]["RSS MB"] or 0) - float(rows[0]["RSS MB"] or 0)
    notes = [
        f"{bundle.manifest['name']}, {graph.file} in {options.runtime}: {n_minutes * 60 / took_s:.0f}x real time",
        verdict(
            "the output of a minute stays the same, 60 dB", f"{worst_db:.1f} dB in the worst minute", worst_db >= 60
        ),
        verdict("memory grows by less than 5 MB", f"{grown_mb:+.1f} MB", grown_mb < 5),
    ]
    report("soak", describe(), rows, notes, as_json=options.json)


if __name__ == "__main__":
    main()
