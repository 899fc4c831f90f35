"""Frames between two threads, neither of which ever waits for the other."""

from __future__ import annotations

import numpy as np

from edgese.audio import Samples


class Ring:
    """Ring of (n, channels) float32 for one thread that puts and one that takes.

    Each of the two counters is changed by one thread alone, after the frames are where they belong.

    Attributes:
        n_put, n_taken: frames, since the beginning.
    """

    def __init__(self, capacity: int, channels: int) -> None:
        self._frames = np.zeros((capacity, channels), np.float32)
        self.n_put = self.n_taken = 0

    @property
    def n_frames(self) -> int:
        """Frames that wait."""
        return self.n_put - self.n_taken

    def put(self, frames: Samples) -> int:
        """Add frames behind the others; how many of them found no place, the last ones."""
        n = min(len(frames), len(self._frames) - self.n_frames)
        at = self.n_put % len(self._frames)
        first = min(n, len(self._frames) - at)
        self._frames[at : at + first] = frames[:first]
        self._frames[: n - first] = frames[first:n]
        self.n_put += n
        return len(frames) - n

    def take(self, most: int) -> Samples:
        """The oldest frames, at most so many, (n, channels)."""
        n = min(most, self.n_frames)
        at = self.n_taken % len(self._frames)
        first = min(n, len(self._frames) - at)
        taken = np.concatenate([self._frames[at : at + first], self._frames[: n - first]])
        self.n_taken += n
        return taken
