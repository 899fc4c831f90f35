"""Running work in several processes, any of which may die; an event for ending tidily on a signal."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import FrameType
from typing import TypeVar

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it: 128 + SIGINT

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_cores() -> int:
    """Number of cores that this process may use, where the system says so; else of all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], jobs: int | None, killed: Callable[[Item], Result]
) -> Iterator[Result]:
    """Results `work(item)` of each item, in their order, on several cores; `killed(item)` where it ends its process.

    Args:
        jobs: processes; None: one for each core.
    """
    n_workers = min(jobs or n_cores(), len(items))
    while items:
        n_done = 0
        try:
            with _pool(n_workers) as pool:
                for result in pool.map(work, items):
                    yield result
                    n_done += 1
        except BrokenProcessPool:  # all under way are lost with the one that did it: it is looked for among them
            for item in items[n_done : n_done + n_workers]:
                yield _alone(work, item, killed)
            n_done += n_workers
        items = items[n_done:]


def _alone(work: Callable[[Item], Result], item: Item, killed: Callable[[Item], Result]) -> Result:
    try:
        with _pool(1) as pool:
            return pool.submit(work, item).result()
    except BrokenProcessPool:
        return killed(item)


def _pool(n_workers: int) -> ProcessPoolExecutor:
    # spawned: a fork would inherit locks of the caller's threads
    return ProcessPoolExecutor(n_workers, mp_context=multiprocessing.get_context("spawn"))


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """Event that Ctrl-C and SIGTERM set, so that work ends tidily; a second signal acts as it always does.

    For the main thread only, which alone may set handlers.
    """
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
