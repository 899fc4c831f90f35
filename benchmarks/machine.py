"""Cost of another process, and reports of measurements with the machine that they were made on. Linux only."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgese.machine.host import MB, Machine, memory_mb

EDGESE = (sys.executable, "-m", "edgese")  # from the root this needs no installation

Row = Mapping[str, float | int | str | None]  # a column's name -> its value; None: not measured


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Argument parser that shows a script's docstring and knows `--json`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return made


def enhance_command(model: Path | None) -> tuple[str, ...]:
    """Command `edgese enhance` with a bundle, by default the shipped one; files and options are to be added."""
    return (*EDGESE, "enhance", *(("--model", str(model)) if model else ()))


def report(name: str, machine: Machine, rows: Sequence[Row], notes: Sequence[str] = (), *, as_json: bool) -> None:
    """Print what was measured, and on what."""
    if as_json:
        print(json.dumps({"benchmark": name, "machine": machine.entry(), "rows": rows, "notes": notes}, indent=2))
        return
    print(machine, end="\n\n")
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if notes:
        print("", *notes, sep="\n")


def verdict(bar: str, found: str, met: bool) -> str:
    """Line that says whether a bar of the project is met, and what was found."""
    return f"{'met' if met else 'NOT MET'}: {bar}; found {found}"


@dataclasses.dataclass(frozen=True)
class Usage:
    """Time and memory of one process from its start to its end."""

    wall_s: float
    cpu_s: float  # user and system, all threads
    peak_mb: float | None  # of resident memory; None where it is no more than this process's own


def run_measured(command: Sequence[str]) -> Usage:
    """Run a command to its end, its output thrown away.

    Raises:
        SystemExit: the command failed; the message ends with what it said.
    """
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said.read()[-2000:]}")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux starts a process's peak at its parent's
    peak_mb = usage.ru_maxrss * 1024 / MB if usage.ru_maxrss > own else None
    return Usage(wall_s, usage.ru_utime + usage.ru_stime, peak_mb)


def peak_growth_mb(work: Callable[[], object]) -> float:
    """Peak growth of this process's resident memory while `work` runs, over what it was before, MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = _memory_mb("VmRSS")
    work()
    return _memory_mb("VmHWM") - before


def _memory_mb(field: str) -> float:
    found = memory_mb(field)
    if found is None:
        raise SystemExit(f"/proc/self/status: has no {field}; this benchmark needs Linux")
    return found


def _cell(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
