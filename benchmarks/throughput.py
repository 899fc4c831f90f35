"""Speed of `edgese enhance` in times real time, by number of files and of files at a time (--jobs).

    python -m benchmarks.throughput

Whole processes are timed, their start included, on generated 16 kHz mono files in a temporary folder. `speedup` is
over one job on as many files; more jobs than files are left out.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import Row, Usage, enhance_command, parser, report, run_measured
from benchmarks.sound import write_sound
from edgese.machine.host import describe


def main() -> None:
    cores = len(os.sched_getaffinity(0))
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="a bundle; default: the shipped one")
    arguments.add_argument("--files", type=int, nargs="+", default=[1, 2, 8], help="numbers of files")
    arguments.add_argument("--jobs", type=int, nargs="+", default=sorted({1, 2, cores}), help="files at a time")
    arguments.add_argument("--seconds", type=float, default=60.0, help="length of a file")
    options = arguments.parse_args()
    machine = describe()
    command = enhance_command(options.model)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        sounds = [Path(folder) / f"noisy-{index}.wav" for index in range(max(options.files))]
        for sound in sounds:
            write_sound(sound, options.seconds)
        enhance(command, sounds[:1], Path(folder) / "clean", 1)  # writes Python's bytecode, fills caches
        for n_files in options.files:
            alone_s = None
            for n_jobs in sorted(jobs for jobs in set(options.jobs) if jobs <= n_files):
                usage = enhance(command, sounds[:n_files], Path(folder) / "clean", n_jobs)
                alone_s = usage.wall_s if n_jobs == 1 else alone_s
                rows.append(
                    {
                        "files": n_files,
                        "jobs": n_jobs,
                        "wall_s": usage.wall_s,
                        "cpu_s": usage.cpu_s,
                        "times_real_time": n_files * options.seconds / usage.wall_s,
                        "speedup": alone_s and alone_s / usage.wall_s,
                        "peak_mb": usage.peak_mb,
                    }
                )
    report("throughput", machine, rows, as_json=options.json)


def enhance(command: Sequence[str], sounds: Sequence[Path], output: Path, n_jobs: int) -> Usage:
    """Time and memory of the command on these files; its output is removed."""
    output.mkdir()
    usage = run_measured([*command, *map(str, sounds), "-o", str(output), "--jobs", str(n_jobs)])
    shutil.rmtree(output)
    return usage


if __name__ == "__main__":
    main()
