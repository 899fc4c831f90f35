"""Conditioning of a recording for the network, and its undoing: quiet sound is lifted, a constant offset taken out.

The network has learnt from recordings between about -51 and -21 dBFS. Below, it loses speech, and says nothing: 0.2
PESQ at -60 dBFS, 0.7 at -70 (docs/results.md). So sound is brought to where it hears well, and what comes back is
lowered by the same gain, sample by sample. The gain follows the loudest 0.4 s of the ten seconds before and after, so
that a pause moves nothing, and is averaged over 2 s. Recordings at usual levels pass through bit for bit.

An offset (a sound card's, a cheap microphone's) is heard as sound of 0 Hz; one of 0.1 costs clean speech 4 dB SI-SDR.
It is the mean of the same 20 s, where this is more than a fiftieth of the level; it is not put back.

Eleven seconds are kept in memory, whatever the length of the recording.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Samples
from edgese.audio.frame_queue import FrameQueue, cut_anew

_STEP_S = 0.4
_AROUND = 25  # steps before and after that decide a step's gain and offset: 10 s
_SMOOTH = 2  # steps before and after over which both are averaged
_AHEAD = _AROUND + _SMOOTH + 1
LOUD_ENOUGH_DBFS = -40.0  # RMS of the loudest step; a recording of -45 dBFS has it
_LIFTED_DBFS = -30.0  # to where it is lifted from 10 dB below and less; between, by 2 dB a dB
_MOST_DB = 50.0
_OFFSET_SHARE = 0.02  # of the level of the loudest step: smaller offsets stay
_NEAR_DB = 0.01  # of the gain that is aimed at: it is reached
_PEAKS = 10.0  # power of the loudest moments beside that of the loudest step, at most
_LEAST_S = 1.0  # of sound for a mean to be an offset


class Lift:
    """Lift of one recording, for the way in and the way out.

    Args:
        rate_hz: of the network's side.
    """

    def __init__(self, rate_hz: int, n_channels: int) -> None:
        self._size, self._least = round(_STEP_S * rate_hz), round(_LEAST_S * rate_hz)
        self._n_channels = n_channels
        # of the steps that are still needed, by number: count, sum and sum of squares of the samples, (3, C) ...
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._targets: dict[int, NDArray[np.float64]] = {}  # ... and gain in dB and offset, not smoothed, (2, C)
        self._gains: deque[Samples] = deque()  # of samples that went in and have not come back

    def raised(self, blocks: Iterable[Samples], *, way_back: bool = True) -> Iterator[Samples]:
        """Blocks for the network: (n, n_channels) float32 of any n -> the same samples, lifted, in other blocks.

        Args:
            way_back: keep the gains until `taken_back` asks for them.
        """
        waiting: deque[Samples] = deque()
        done = 0
        for at, step in enumerate(cut_anew(blocks, self._size)):
            wide = step.astype(np.float64)
            self._sums[at] = np.stack([np.full(self._n_channels, len(step)), wide.sum(0), (wide**2).sum(0)])
            waiting.append(step)
            if len(waiting) > _AHEAD:
                yield self._raise(waiting.popleft(), done, way_back)
                done += 1
        while waiting:
            yield self._raise(waiting.popleft(), done, way_back)
            done += 1

    def taken_back(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        """Blocks from the network at the level of what went in; what goes on behind its end has the last gain."""
        gains = np.ones((0, self._n_channels), np.float32)
        last = np.ones((1, self._n_channels), np.float32)
        for block in blocks:
            while len(gains) < len(block) and self._gains:
                gains = np.concatenate([gains, self._gains.popleft()])
                last = gains[-1:]
            missing = len(block) - len(gains)
            if missing > 0:
                gains = np.concatenate([gains, np.repeat(last, missing, axis=0)])
            yield block / gains[: len(block)]
            gains = gains[len(block) :]

    def _raise(self, step: Samples, at: int, way_back: bool) -> Samples:
        """One step with gain and offset as straight lines between those halfway to its neighbours."""
        self._sums.pop(at - _AROUND - 1, None)
        self._targets.pop(at - _SMOOTH - 2, None)
        before, own, after = (self._smooth(index) for index in (at - 1, at, at + 1))
        ramp = ((np.arange(len(step)) + 0.5) / len(step))[:, None]
        gain_db, offset = ((before + own) / 2)[:, None] * (1 - ramp) + ((own + after) / 2)[:, None] * ramp
        gains = (10 ** (gain_db / 20)).astype(np.float32)
        if way_back:
            self._gains.append(gains)
        conditioned: Samples = (step - offset.astype(np.float32)) * gains
        return conditioned

    def _smooth(self, at: int) -> NDArray[np.float64]:
        """Gain in dB and offset of a step, (2, C), averaged with its neighbours'."""
        last = max(self._sums)
        at = min(max(at, 0), last)
        around = range(max(at - _SMOOTH, 0), min(at + _SMOOTH, last) + 1)
        for step in around:
            if step not in self._targets:
                self._targets[step] = self._target(step)
        return np.asarray(np.mean([self._targets[step] for step in around], axis=0))

    def _target(self, at: int) -> NDArray[np.float64]:
        """Gain in dB and offset of a step for itself, (2, C), by the steps around it."""
        around = [self._sums[step] for step in range(at - _AROUND, at + _AROUND + 1) if step in self._sums]
        return _goal(np.stack(around, axis=1), self._least)


class LiveLift:
    """Lift of a live stream, which cannot look ahead; see above for what it does.

    It begins when ten seconds have been heard and all of them were quiet, and ends at once, within the piece that is
    louder: what is not quiet for so long passes through bit for bit.

    Args:
        rate_hz: of the network's side.
    """

    def __init__(self, rate_hz: int, n_channels: int) -> None:
        self._size, self._n_channels = round(_STEP_S * rate_hz), n_channels
        self._sums: deque[NDArray[np.float64]] = deque(maxlen=_AROUND)  # of the last steps, (3, C) each
        self._step = np.zeros((3, n_channels))  # of the one that is under way
        self._gain_db = np.zeros(n_channels)
        self._offset = np.zeros(n_channels)
        self._goal = np.zeros((2, n_channels))  # gain in dB and offset that are aimed at
        self._idle = True  # nothing is raised, lowered or aimed at: what most hops of most streams meet
        self._gains = FrameQueue()

    def raised(self, block: Samples) -> Samples:
        """(n, n_channels) float32 for the network, n at least 1."""
        if self._idle:
            self._hear(block)
            self._gains.put(np.ones_like(block))
            return block
        gain_db, offset = self._gain_db, self._offset
        share = min(1.0, len(block) / self._size)
        near = np.abs(self._goal[0] - gain_db) < _NEAR_DB
        self._gain_db = np.where(near, self._goal[0], gain_db + share * (self._goal[0] - gain_db))
        self._offset = np.where(near & (self._goal[1] == 0), 0, offset + share * (self._goal[1] - offset))
        if self._gain_db.any() or gain_db.any():
            power = np.square(block.astype(np.float64) - self._offset).mean(0)
            self._gain_db = np.minimum(self._gain_db, _gain_db(power / _PEAKS))
        self._hear(block)
        if not (gain_db.any() or self._gain_db.any() or offset.any() or self._offset.any()):
            self._idle = not self._goal.any()
            self._gains.put(np.ones_like(block))
            return block
        ramp = (np.arange(1, len(block) + 1) / len(block))[:, None]
        gains = (10 ** ((gain_db + ramp * (self._gain_db - gain_db)) / 20)).astype(np.float32)
        self._gains.put(gains)
        conditioned: Samples = (block - (offset + ramp * (self._offset - offset)).astype(np.float32)) * gains
        return conditioned

    def taken_back(self, block: Samples) -> Samples:
        """A block from the network at the level of what went in; what goes on behind its end has gain 1."""
        n_known = min(len(block), self._gains.n_frames)
        gains = self._gains.take(n_known) if n_known else np.ones((0, self._n_channels), np.float32)
        back: Samples = np.concatenate([block[:n_known] / gains, block[n_known:]])
        return back

    def _hear(self, block: Samples) -> None:
        wide = block.astype(np.float64)
        self._step[0] += len(block)
        self._step[1] += wide.sum(0)
        self._step[2] += (wide**2).sum(0)
        if self._step[0, 0] >= self._size:
            self._sums.append(self._step)
            self._step = np.zeros_like(self._step)
            if len(self._sums) == _AROUND:
                self._goal = _goal(np.stack(list(self._sums), axis=1), self._size)
                self._idle = self._idle and not self._goal.any()


def _goal(steps: NDArray[np.float64], least: int) -> NDArray[np.float64]:
    """Gain in dB and offset, (2, C), by the count, sum and sum of squares of steps, (3, steps, C).

    Args:
        least: samples for a mean to be an offset.
    """
    counts, sums, squares = steps
    mean = sums.sum(0) / counts.sum(0)
    # of each step, about that mean: the power of what is left when the offset is gone
    power = np.maximum(squares / counts - 2 * mean * sums / counts + mean**2, 0).max(axis=0)
    offset = np.sign(mean) * np.maximum(np.abs(mean) - _OFFSET_SHARE * np.sqrt(power), 0)
    return np.stack([_gain_db(power), offset * (counts.sum(0) >= least)])


def _gain_db(power: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gain in dB of sound whose loudest step has this power, (C,)."""
    below_db = np.maximum(LOUD_ENOUGH_DBFS - 10 * np.log10(np.maximum(power, 1e-20)), 0)
    gain_db = np.minimum(2 * below_db, below_db + _LIFTED_DBFS - LOUD_ENOUGH_DBFS)
    return np.asarray(np.minimum(gain_db, _MOST_DB))
