"""PESQ of many examples in processes of their own, while the device enhances the next ones.

PESQ is C code that holds the interpreter's lock, a fortieth of a second for two seconds of sound. Each process is
`python -m edgese.train.scoring`, which answers on its output what comes over its input, and ends when that ends:
nothing is forked from a process with a GPU and threads, and no script needs a guard around its main part.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from edgese.audio import Wave
from edgese.errors import EdgeseError
from edgese.machine.processes import n_cores
from edgese.metrics.scores import pesq_wb

logger = logging.getLogger(__name__)

WORST_PESQ = 1.04  # bottom of the wideband scale
MOST_PROCESSES = 16
WORTH_PROCESSES = 16  # examples; fewer are done sooner than a process is there


def pesq_of(target: Wave, enhanced: Wave) -> float | None:
    """PESQ-WB; the scale's worst where nothing is left of the speech, None without speech or without the package."""
    if target.any() and not enhanced.any():
        return WORST_PESQ
    try:
        return pesq_wb(target, enhanced)
    except EdgeseError as error:
        logger.info("validation without PESQ of one example: %s", error)
        return None


class Scorers:
    """Processes that score, started with the first example and kept until `close`."""

    def __init__(self, n_examples: int) -> None:
        """Processes for validations of so many examples; for a few of them this one does it."""
        jobs = min(n_cores(), MOST_PROCESSES, n_examples)
        self._threads = ThreadPoolExecutor(jobs) if n_examples >= WORTH_PROCESSES and jobs > 1 else None
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def submit(self, target: Wave, enhanced: Wave) -> Future[float | None]:
        """PESQ of an example, to be had when it is done."""
        if self._threads:
            return self._threads.submit(self._ask, target, enhanced)
        done: Future[float | None] = Future()
        done.set_result(pesq_of(target, enhanced))
        return done

    def close(self) -> None:
        """End the processes."""
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
        with contextlib.suppress(queue.Empty):
            while True:
                _end(self._idle.get_nowait())

    def _ask(self, target: Wave, enhanced: Wave) -> float | None:
        """Answer of an idle process, or of a new one; None, and a warning, where it died of the example."""
        try:
            process = self._idle.get_nowait()
        except queue.Empty:
            process = _started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack("<q", len(target)))
            for wave in (target, enhanced):
                process.stdin.write(np.ascontiguousarray(wave, "<f4").tobytes())
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer:
            logger.warning("validation without PESQ of one example: its process ended (%s)", process.wait())
            _end(process)
            return None
        self._idle.put(process)
        score: float | None = json.loads(answer)
        return score


def _started() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-m", "edgese.train.scoring"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for the process that ends them
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    process.wait()


def _questions() -> Iterator[tuple[Wave, Wave]]:
    while head := sys.stdin.buffer.read(8):
        n_bytes = 4 * int(struct.unpack("<q", head)[0])
        target, enhanced = (np.frombuffer(sys.stdin.buffer.read(n_bytes), "<f4") for _ in range(2))
        yield target, enhanced


def main() -> None:
    """Answer questions: the number of samples and two waves for each, a line of JSON with the score back."""
    for target, enhanced in _questions():
        sys.stdout.buffer.write(json.dumps(pesq_of(target, enhanced)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
