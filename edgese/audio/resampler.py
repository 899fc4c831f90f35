"""Conversion of the sample rate piece by piece, with a short, constant delay: what a live stream needs.

    down = Resampler(48_000, 16_000, n_channels=2)
    for block in blocks:
        ready = down.push(block)
    rest = down.finish()

A polyphase FIR filter of linear phase: a windowed sinc (Kaiser), 56 zero crossings to each side at the lower of the two
rates (3.5 ms at 16 kHz), so what comes out runs 3.5 ms behind. It passes 0.91 of the lower rate's band within 0.001 dB;
what would alias, or mirror, is below -93 dB from 1.02 of that band on. soxr, to which whole recordings go elsewhere, is
better still, but holds back 37 ms at 48 kHz and 116 ms at 8 kHz (`ResampleStream`, HQ; its faster qualities hold back
20 ms or alias), each way.

Source of the window and its width: J. F. Kaiser, "Nonrecursive digital filter design using the I0-sinh window
function", 1974.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Samples

_CROSSINGS = 56  # zero crossings of the sinc to each side, at the lower rate
_BETA = 9.29  # of Kaiser's window: -93 dB
_CUTOFF = 0.962  # of the lower rate's band, where the filter has -6 dB
_MOST_PHASES = 1024  # with more, a phase is interpolated between two of these; off by 1e-6 at most
_LEAST_OUTPUTS = 64  # of one product


class Resampler:
    """Converter of one stream from a rate to another; sample 0 stays at time 0.

    Args:
        from_hz, to_hz: rates, at least 1.
        n_channels: of each block.

    Attributes:
        reach: samples of the input that must have come in behind an output's own place before it can be given out.
    """

    def __init__(self, from_hz: int, to_hz: int, n_channels: int) -> None:
        divisor = math.gcd(from_hz, to_hz)
        self.from_hz, self.to_hz = from_hz, to_hz
        self._up, self._down = to_hz // divisor, from_hz // divisor
        self.reach = 0 if from_hz == to_hz else _reach(from_hz, to_hz)
        self._n_channels = n_channels
        self.reset()

    def reset(self) -> None:
        """Forget what came in: the next sample is sample 0 again."""
        self._n_in = self._n_out = 0
        history = max(0, self.reach - 1)
        self._kept = np.zeros((history, self._n_channels), np.float32)  # the last inputs that are still needed ...
        self._first = -history  # ... and the number of the first of them

    def ready(self, n_in: int) -> int:
        """Samples that have come out when `n_in` have come in."""
        return int(self.ready_each(np.array([n_in]))[0])

    def ready_each(self, n_in: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples that have come out for each of these numbers of samples that have come in."""
        return np.maximum(0, -(-(n_in - self.reach) * self._up // self._down))

    def push(self, block: Samples) -> Samples:
        """What these samples complete, (m, n_channels) float32, for a block of (n, n_channels); m may be 0."""
        self._n_in += len(block)
        if not self.reach:
            return block
        self._kept = np.concatenate([self._kept, block])
        return self._until(-(-(self._n_in - self.reach) * self._up // self._down))

    def finish(self) -> Samples:
        """What is left, silence following: in all, as many samples as begin before the input's end."""
        if not self.reach:
            return np.zeros((0, self._n_channels), np.float32)
        self._kept = np.concatenate([self._kept, np.zeros((self.reach, self._n_channels), np.float32)])
        return self._until(-(-self._n_in * self._up // self._down))

    def _until(self, end: int) -> Samples:
        """Outputs from where the last ones ended up to number `end`, from the inputs that are kept."""
        start, self._n_out = self._n_out, max(self._n_out, end)
        if end <= start:
            return np.zeros((0, self._n_channels), np.float32)
        if self._up > _MOST_PHASES:
            found, needed = self._gathered(start, end)
        else:
            found, needed = self._multiplied(start, end)
        drop = needed - self._first
        if drop > 0:
            self._kept = self._kept[drop:]
            self._first = needed
        return found

    def _multiplied(self, start: int, end: int) -> tuple[Samples, int]:
        """Outputs as products of windows with one matrix, and the first input that is needed from here on."""
        matrix, n_in, n_out = _matrix(self._up, self._down, self.reach)
        first, last = start // n_out, -(-end // n_out)  # windows
        begin = first * n_in - self.reach + 1 - self._first
        wanted = begin + (last - first - 1) * n_in + len(matrix)
        missing = max(0, wanted - len(self._kept))  # inputs of outputs behind `end`, which are cut off again
        kept = np.concatenate([self._kept[begin:], np.zeros((missing, self._n_channels), np.float32)])
        step, across = kept.strides
        shape, strides = (self._n_channels, last - first, len(matrix)), (across, n_in * step, step)
        windows = np.lib.stride_tricks.as_strided(kept, shape, strides, writeable=False)
        # without BLAS, whose threads would keep a second core spinning
        rows = np.ascontiguousarray(windows).reshape(-1, len(matrix))
        found = np.einsum("wk,ko->wo", rows, matrix).reshape(self._n_channels, -1).T
        needed = end // n_out * n_in - self.reach + 1
        return found[start - first * n_out : end - first * n_out], needed

    def _gathered(self, start: int, end: int) -> tuple[Samples, int]:
        """The same for rates with few common factors: every output has taps of its own."""
        table = _phases(_MOST_PHASES, self.reach, self._down / self._up)
        at = np.arange(start, end, dtype=np.int64) * self._down
        phase = (at % self._up) * (_MOST_PHASES / self._up)
        low = phase.astype(np.int64)
        share = (phase - low).astype(np.float32)[:, None]
        taps = table[low] * (1 - share) + table[low + 1] * share
        begin = at // self._up - self.reach + 1 - self._first
        windows = np.lib.stride_tricks.sliding_window_view(self._kept, 2 * self.reach, axis=0)[begin]
        return np.einsum("nck,nk->nc", windows, taps), end * self._down // self._up - self.reach + 1


def resample(blocks: Iterable[Samples], from_hz: int, to_hz: int, n_channels: int) -> Iterator[Samples]:
    """The same sound at another rate, (n, n_channels) float32 in as many blocks and one more, by a `Resampler`."""
    resampler = Resampler(from_hz, to_hz, n_channels)
    for block in blocks:
        yield resampler.push(block)
    yield resampler.finish()


def _reach(from_hz: int, to_hz: int) -> int:
    return math.ceil(_CROSSINGS * from_hz / min(from_hz, to_hz))


@functools.lru_cache(maxsize=16)
def _matrix(up: int, down: int, reach: int) -> tuple[NDArray[np.float32], int, int]:
    """Matrix (window, outputs) of whole periods of the phases, and how many inputs and outputs those are."""
    periods = -(-_LEAST_OUTPUTS // up)
    n_in, n_out = periods * down, periods * up
    table = _phases(up, reach, down / up)
    matrix = np.zeros((n_in + 2 * reach, n_out), np.float32)
    for output in range(n_out):
        at = output * down
        matrix[at // up : at // up + 2 * reach, output] = table[at % up]
    return matrix, n_in, n_out


@functools.lru_cache(maxsize=16)
def _phases(n_phases: int, reach: int, step: float) -> NDArray[np.float32]:
    """Taps (n_phases + 1, 2 reach) of outputs that lie phase / n_phases behind an input; each row sums to 1.

    Args:
        step: inputs for an output.
    """
    behind = np.arange(n_phases + 1)[:, None] / n_phases
    distance = np.arange(1 - reach, reach + 1)[None] - behind
    band = _CUTOFF * min(1.0, 1 / step)  # of the input's, where the filter has -6 dB
    window = np.i0(_BETA * np.sqrt(np.maximum(1 - (distance / reach) ** 2, 0))) / np.i0(_BETA)
    taps = np.sinc(band * distance) * window
    return np.asarray(taps / taps.sum(axis=1, keepdims=True), np.float32)
