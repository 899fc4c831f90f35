"""Sound made longer or shorter by single samples, so that two clocks that differ stay together."""

from __future__ import annotations

import numpy as np

from edgese.audio import Samples

DELAY = 2  # samples
_KEPT = 3


class Stretch:
    """Blocks of a stream, some of them a few samples longer or shorter, without a seam.

    Between samples by a polynomial through the four around (Lagrange); where nothing is to be changed, the samples as
    they are. `DELAY` samples later.
    """

    def __init__(self, channels: int) -> None:
        self._last = np.zeros((_KEPT, channels), np.float32)

    def push(self, block: Samples, longer: int) -> Samples:
        """A block of `len(block) + longer` samples; at least one must be left."""
        frames = np.concatenate([self._last, block])
        self._last = frames[-_KEPT:]
        if not longer:
            return frames[_KEPT - DELAY : len(frames) - DELAY]
        n_out = len(block) + longer
        places = 1 + np.arange(n_out) * (len(block) / n_out)
        at = places.astype(np.int64)
        t = (places - at).astype(np.float32)[:, None]
        before, here, after, beyond = (frames[at + offset] for offset in (-1, 0, 1, 2))
        stretched = (
            before * (-t * (t - 1) * (t - 2) / 6)
            + here * ((t + 1) * (t - 1) * (t - 2) / 2)
            + after * (-(t + 1) * t * (t - 2) / 2)
            + beyond * ((t + 1) * t * (t - 1) / 6)
        )
        return stretched.astype(np.float32)
