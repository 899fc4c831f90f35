"""Queue of frames that wait, in blocks, until something else has caught up with them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from edgese.audio import Samples


def cut_anew(blocks: Iterable[Samples], n_frames: int) -> Iterator[Samples]:
    """The same frames in blocks of `n_frames`; the last holds what is left, and is none if nothing is."""
    queue = FrameQueue()
    for block in blocks:
        queue.put(block)
        while queue.n_frames >= n_frames:
            yield queue.take(n_frames)
    if queue.n_frames:
        yield queue.take(queue.n_frames)


class FrameQueue:
    """Queue of the frames of a stream, (n, n_channels) float32 in and out, cut anew as they are taken."""

    def __init__(self) -> None:
        self._blocks: deque[Samples] = deque()
        self.n_frames = 0

    def put(self, block: Samples) -> None:
        """Add frames behind the others."""
        if len(block):
            self._blocks.append(block)
            self.n_frames += len(block)

    def keeping(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """The same blocks, each added as it passes."""
        for block in blocks:
            self.put(block)
            yield block

    def take(self, n_frames: int) -> Samples:
        """Remove and return the oldest frames, (n_frames, n_channels); at most `self.n_frames`, at least 1."""
        self.n_frames -= n_frames
        taken = []
        while n_frames:
            block = self._blocks.popleft()
            taken.append(block[:n_frames])
            if len(block) > n_frames:
                self._blocks.appendleft(block[n_frames:])
            n_frames -= len(taken[-1])
        return taken[0] if len(taken) == 1 else np.concatenate(taken)
