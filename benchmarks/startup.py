"""CPU time, user and system, until `edgese` answers: the bar is 0.5 s for `edgese --help`.

    python -m benchmarks.startup

Each command runs in a process of its own, once to warm up and then --repeats times; medians are shown. The first row
is Python by itself, which the others contain.
"""

from __future__ import annotations

import statistics
import sys

from benchmarks.machine import EDGESE, Row, parser, report, run_measured, verdict
from edgese.machine.host import describe

BAR_S = 0.5

COMMANDS = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import edgese": (sys.executable, "-c", "import edgese"),
    "edgese --version": (*EDGESE, "--version"),
    "edgese --help": (*EDGESE, "--help"),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=20)
    options = arguments.parse_args()
    machine = describe()
    rows: list[Row] = []
    for name, command in COMMANDS.items():
        run_measured(command)
        usages = [run_measured(command) for _ in range(options.repeats)]
        cpu_s = [usage.cpu_s for usage in usages]
        rows.append(
            {
                "command": name,
                "cpu_s": statistics.median(cpu_s),
                "cpu_least_s": min(cpu_s),
                "cpu_most_s": max(cpu_s),
                "wall_s": statistics.median(usage.wall_s for usage in usages),
            }
        )
    answer_s = float(rows[-1]["cpu_s"] or 0)
    note = verdict(f"edgese --help answers in under {BAR_S} s of CPU time", f"{answer_s:.3f} s", answer_s < BAR_S)
    report("startup", machine, rows, [note], as_json=options.json)


if __name__ == "__main__":
    main()
