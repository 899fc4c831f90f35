"""Streams of all clients, advanced together: what has come in since the last round makes the next one.

An event loop owns it; the network computes in one thread beside it, which alone touches the batch. A round takes at
most `SLICE_MS` of each stream, so that nobody who sends much at once makes the others wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgese.errors import AudioError
from edgese.live.stream import Block, FailedStreamsError, Joined, StreamBatch
from runtimes.base import RuntimeUnavailable

SLICE_MS = 20

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclasses.dataclass
class _Due:
    """Samples of one stream that wait, and the answer as far as it has come."""

    samples: NDArray[Any]
    answer: asyncio.Future[Block]
    done: list[Block] = dataclasses.field(default_factory=list)
    at: int = 0


class Rounds:
    """Streams of a batch, for coroutines. An asynchronous context manager; leaving it closes the batch.

    Attributes:
        n_rounds: calls of the network's batch so far.
        busy_s: seconds that they took.
        task: it ends only by a bug, which leaving the context raises.
    """

    def __init__(self, batch: StreamBatch) -> None:
        self._batch = batch
        self._thread = ThreadPoolExecutor(1, "edgese-rounds")
        self._due: dict[Joined, _Due] = {}
        self._arrived = asyncio.Event()
        self.n_rounds, self.busy_s = 0, 0.0

    async def __aenter__(self) -> Rounds:
        self.task = asyncio.create_task(self._run(), name="edgese-rounds")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.task.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await self.task
        finally:
            await self._call(self._batch.close)
            self._thread.shutdown()

    async def join(self, rate_hz: int, channels: int) -> Joined:
        """A new stream. Errors: as `StreamBatch.join`."""
        return await self._call(self._batch.join, rate_hz, channels)

    async def process(self, joined: Joined, samples: NDArray[Any]) -> Block:
        """As many samples of this stream, enhanced; one call at a time for each stream.

        Raises:
            AudioError: as `StreamBatch.process`.
            RuntimeUnavailable: the runtime failed.
        """
        if not len(samples):
            return samples
        joined.port.require(samples)
        due = _Due(samples, asyncio.get_running_loop().create_future())
        self._due[joined] = due
        self._arrived.set()
        try:
            return await due.answer
        finally:
            self._due.pop(joined, None)

    async def leave(self, joined: Joined) -> Block:
        """The last samples of a stream, which is then gone. Errors: as `process`."""
        return await self._call(self._batch.leave, joined)

    def drop(self, joined: Joined) -> None:
        """Remove a stream; one that has left is left so."""
        self._thread.submit(self._batch.drop, joined)

    async def _call(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._due:
                await self._round()

    async def _round(self) -> None:
        blocks = {}
        for joined, due in self._due.items():
            blocks[joined] = due.samples[due.at : due.at + max(1, joined.sample_rate_hz * SLICE_MS // 1000)]
        failed: dict[Joined, Exception] = {}
        try:
            answers, took_s = await self._call(self._timed, blocks)
        except FailedStreamsError as error:
            answers, took_s, failed = error.answers, 0.0, dict(error.failed)
        except (RuntimeUnavailable, AudioError) as error:
            logger.error("the network failed in a round of %d streams: %s", len(blocks), error)
            answers, took_s, failed = {}, 0.0, dict.fromkeys(blocks, error)
        self.n_rounds += 1
        self.busy_s += took_s
        for joined in blocks:
            due_now = self._due.get(joined)
            if due_now is None or due_now.answer.done():
                continue
            if joined in failed:
                due_now.answer.set_exception(failed[joined])
                del self._due[joined]
                continue
            due_now.done.append(answers[joined])
            due_now.at += len(answers[joined])
            if due_now.at == len(due_now.samples):
                due_now.answer.set_result(due_now.done[0] if len(due_now.done) == 1 else np.concatenate(due_now.done))
                del self._due[joined]

    def _timed(self, blocks: dict[Joined, Block]) -> tuple[dict[Joined, Block], float]:
        started = time.perf_counter()
        answers = self._batch.process(blocks)
        return answers, time.perf_counter() - started
