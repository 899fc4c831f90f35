"""Fuzzing of everything that reads what comes from outside: `make fuzz`, or python -m tests.fuzz.run --minutes 5.

Inputs are made by seeded mutation of good ones, so that each can be made again by its number. Every target runs in a
process of its own: an input fails that ends it (a signal), raises what is no refusal, takes longer than 10 s, or grows
its memory by more than 512 MB. What failed is written to out/fuzz/. Exit code 1 if anything did, or nothing was tried.

    python -m tests.fuzz.run --inputs 1000 --seed 7 manifest npz
    python -m tests.fuzz.run --seed 7 --only 812 manifest         # one input again, with its traceback
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .targets import TARGETS, Target, input_of, outcome

ROOT = Path(__file__).parents[2]
LIMIT_S = 10
LIMIT_BYTES = 512 << 20  # by which one input may grow the process
ADDRESSES_BYTES = 16 << 30  # that a process may have: beyond it, MemoryError instead of a machine that swaps
DEFAULT_MINUTES = 5.0
KEPT_FAILURES = 20  # of a target; then it is given up


def work(name: str, seed: int, first: int, seconds: float, most: int, make: Callable[[Path], Target]) -> None:
    """Read inputs from number `first` on; a line of JSON on stdout before each that may be the last, and at the end."""
    counts, slowest = Counter[str](), 0.0
    with tempfile.TemporaryDirectory(prefix="edgese-fuzz-") as folder:
        target = make(Path(folder))
        until, index = time.monotonic() + seconds, first
        while index < first + most and (time.monotonic() < until or index == first):
            content = input_of(name, target, seed, index)
            _say(at=index)
            before, began = _peak_bytes(), time.monotonic()
            signal.alarm(LIMIT_S)  # ends the process, also where it waits in a library
            try:
                counts[outcome(target, content)] += 1
                grown = _peak_bytes() - before
                if grown > LIMIT_BYTES and index > first:  # the first may have loaded libraries
                    _say(failed=index, why=f"grew by {grown >> 20} MB")
            except Exception as error:  # noqa: BLE001 - it is counted, and told
                at = traceback.extract_tb(error.__traceback__)[-1]
                why = f"{type(error).__name__}: {str(error)[:200]} in {Path(at.filename).name}, line {at.lineno}"
                _say(failed=index, why=why)
                counts["failed"] += 1
            signal.alarm(0)
            slowest = max(slowest, time.monotonic() - began)
            index += 1
            _say(next=index, counts=dict(counts), slowest=slowest, peak=_peak_bytes())


def fuzz(name: str, seed: int, seconds: float, most: int) -> dict[str, Any]:
    """Counts of a target's inputs, and its failures: number of the input -> why."""
    found: dict[str, Any] = {"counts": Counter(), "failures": {}, "slowest": 0.0, "peak": 0}
    until, index = time.monotonic() + seconds, 0
    while index < most and len(found["failures"]) < KEPT_FAILURES and (time.monotonic() < until or index == 0):
        left = max(0.0, until - time.monotonic())
        command = [sys.executable, "-m", "tests.fuzz.run", "--worker", name, "--seed", str(seed)]
        command += ["--first", str(index), "--seconds", str(left), "--inputs", str(most - index)]
        with (
            tempfile.TemporaryFile() as chatter,  # of libraries
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=chatter, text=True) as process,
        ):
            assert process.stdout is not None
            done, at = {"counts": {}, "slowest": 0.0, "peak": 0}, index
            for line in process.stdout:
                said = _parsed(line)
                at = said.get("at", at)
                if "failed" in said:
                    found["failures"][said["failed"]] = said["why"]
                if "next" in said:
                    done, index = said, said["next"]
            process.wait()
            chatter.seek(max(0, chatter.seek(0, 2) - 2000))
            last = chatter.read().decode(errors="replace")
        found["counts"].update(done["counts"])
        found["slowest"] = max(found["slowest"], done["slowest"])
        found["peak"] = max(found["peak"], done["peak"])
        if process.returncode == 0:
            break
        number = -process.returncode
        why = f"took longer than {LIMIT_S} s" if number == signal.SIGALRM else f"ended by signal {number}"
        found["failures"][at] = why if number > 0 else f"ended with exit code {process.returncode}: {last}"
        found["counts"]["failed"] += 1
        index = max(index, at + 1)
    return found


def main() -> int:
    """Fuzz the targets that are named, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"default: all: {', '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, help=f"in all; default: {DEFAULT_MINUTES:g}, or as --inputs needs")
    parser.add_argument("--inputs", type=int, help="of each target, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="read this one input of one target, here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.targets or list(TARGETS)
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"found {', '.join(unknown)}, wanted of {', '.join(TARGETS)}")
    if options.worker:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES_BYTES, ADDRESSES_BYTES))
        work(options.worker, options.seed, options.first, options.seconds, options.inputs, TARGETS[options.worker])
        return 0
    if options.only is not None:
        with tempfile.TemporaryDirectory(prefix="edgese-fuzz-") as folder:
            target = TARGETS[names[0]](Path(folder))
            _show(outcome(target, input_of(names[0], target, options.seed, options.only)))
        return 0
    minutes = options.minutes or (DEFAULT_MINUTES if options.inputs is None else 1e6)
    return _report(names, options.seed, 60 * minutes / len(names), options.inputs or 10**9)


def _report(names: list[str], seed: int, seconds: float, most: int) -> int:
    total, failed = 0, 0
    _show(f"{'target':12}{'inputs':>8}{'read':>8}{'refused':>9}{'failed':>8}{'slowest s':>11}{'peak MB':>9}")
    for name in names:
        found = fuzz(name, seed, seconds, most)
        counts = found["counts"]
        n_inputs = sum(counts.values())
        total, failed = total + n_inputs, failed + len(found["failures"])
        _show(
            f"{name:12}{n_inputs:8}{counts['read']:8}{counts['refused']:9}{len(found['failures']):8}"
            f"{found['slowest']:11.2f}{found['peak'] / 1e6:9.0f}"
        )
        for index, why in found["failures"].items():
            _show(f"  --seed {seed} --only {index} {name}: {why}")
            _keep(name, seed, index)
        if not n_inputs:
            _show(f"  {name}: nothing was tried")
            failed += 1
    _show(f"{total} inputs, {failed} failed")
    return 1 if failed or not total else 0


def _keep(name: str, seed: int, index: int) -> None:
    """Write an input to out/fuzz/."""
    place = ROOT / "out" / "fuzz"
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgese-fuzz-") as folder:
        (place / f"{name}-{seed}-{index}").write_bytes(input_of(name, TARGETS[name](Path(folder)), seed, index))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _parsed(line: str) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:  # a library speaks
        return {}
    return said if isinstance(said, dict) else {}


def _say(**values: Any) -> None:
    os.write(1, (json.dumps(values) + "\n").encode())


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
