"""Sound above the network's band: split off, delayed alike, and given back with the network's own gain.

A network at 16 kHz hears nothing above 8 kHz, but a recording at 48 kHz has consonants there, and noise. What the
network's rate cannot hold is the input less its own band, brought down to that rate and up again, so input and network
share the sound between them and nothing is lost: where the network changes nothing, what comes out is what came in.

    input ----------------------- delay -------------------- (+) --- x gain --- (+) --- output
      |                                                       | -                |
      +-- down to 16 kHz --+-- delay --- up to the input's rate                  |
                           +-- network - up to the input's rate ------------------
                                  gain: what the network did from 4 to 7.3 kHz, hop by hop

Consonants go on across 8 kHz, so what the network did to the upper half of its band is right above it too: the ratio of
the energies of what came out of it and what went in, over the last 16 ms, at most 1. It rises within a hop, as a
consonant begins, and falls by 9 dB in 30 ms at the fastest, so that it does not flutter.

Vowels do not go on, but the network lets them pass, and noise above them would come and go with every word. So the gain
is also held to what stands out above 8 kHz itself: the noise there is the power that was heard while the network kept
its own band closed, and what is no louder stays out (spectral subtraction, Boll 1979, of one band).
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from edgese.audio import Samples
from edgese.audio.frame_queue import FrameQueue
from edgese.audio.resampler import Resampler

_BAND = (0.5, 0.91)  # of the network's band, by which the gain goes: its upper half, below the resampler's edge
_WINDOW_S = 0.016
_CLOSED = 0.3  # gain of the network's band below which what is heard above it is noise
_PIECE_S = 0.002  # by which the noise is followed ...
_PIECES = 8  # ... and of these, the power's mean
_NOISE_S = 0.15  # in which the noise is learnt
_FALL_S = 0.03  # in which the gain falls by a factor of e at most
_FLOOR = 1e-8  # energy beside which what came in and out is silence, and the gain 1


class WholeBand:
    """Joiner of the network's sound with what lies above it, for one stream at a rate above the network's.

    Args:
        rate_hz: of input and output.
        model_hz: of the network, below it.
    """

    def __init__(self, rate_hz: int, model_hz: int, hop: int, n_channels: int) -> None:
        self._hop, self._n_channels = hop, n_channels
        self._hops_a_frame = model_hz / rate_hz / hop
        self._window = np.hanning(round(_WINDOW_S * model_hz) + 1)[:-1].astype(np.float32)
        edges = [math.ceil(share * len(self._window) / 2) for share in _BAND]
        self._bins = slice(*edges)
        self._fall = math.exp(-hop / model_hz / _FALL_S)
        self._piece = max(1, round(_PIECE_S * rate_hz))
        self._up = Resampler(model_hz, rate_hz, 2 * n_channels)  # what came out of the network, and what went in
        self.reset()

    def reset(self) -> None:
        """Forget all sound: the next is the beginning of a stream."""
        self._up.reset()
        self._waiting = np.zeros((0, 2 * self._n_channels), np.float32)  # less than a hop
        self._before = np.zeros((len(self._window) - self._hop, 2 * self._n_channels), np.float32)
        self._gains = np.ones((0, self._n_channels), np.float32)  # at the beginnings of hops, from number ...
        self._first = 0  # ... this one on
        self._n_out = 0
        self._noises = [_Noise() for _ in range(self._n_channels)]
        self._above = np.zeros((0, 2 * self._n_channels), np.float32)  # of less than a piece: power above, gain

    def push(self, enhanced: Samples, noisy: Samples, whole: FrameQueue) -> Samples:
        """What is complete, (m, n_channels) at the input's rate.

        Args:
            enhanced, noisy: (n, n_channels) at the network's rate, what came out and what went in, aligned.
            whole: the input at its own rate; what is given back is taken from it.
        """
        self._waiting = np.concatenate([self._waiting, np.concatenate([enhanced, noisy], axis=1)])
        n_whole = len(self._waiting) // self._hop * self._hop
        hops, self._waiting = self._waiting[:n_whole], self._waiting[n_whole:]
        self._follow(hops)
        return self._join(self._up.push(hops), whole)

    def finish(self, whole: FrameQueue) -> Samples:
        """The rest of what is in `whole`, which came in to its end."""
        rest = self._waiting
        self._follow(np.pad(rest, ((0, -len(rest) % self._hop), (0, 0))))
        self._waiting = rest[:0]
        parts = [self._join(self._up.push(rest), whole), self._join(self._up.finish(), whole)]
        return np.concatenate(parts)

    def _follow(self, hops: Samples) -> None:
        """Add the gains at the ends of these hops."""
        sound = np.concatenate([self._before, hops])
        self._before = sound[len(hops) :]
        n_hops = len(hops) // self._hop
        if not n_hops:
            return
        frames = np.lib.stride_tricks.sliding_window_view(sound, len(self._window), axis=0)[:: self._hop]
        spectra = np.fft.rfft(frames * self._window)[..., self._bins]  # (hops, 2 channels, bins)
        energies = (spectra.real**2 + spectra.imag**2).mean(-1) + _FLOOR
        wanted = np.sqrt(np.minimum(energies[:, : self._n_channels] / energies[:, self._n_channels :], 1))
        gains = np.empty((n_hops, self._n_channels), np.float32)
        last = self._gains[-1] if len(self._gains) else wanted[0]
        for at, gain in enumerate(wanted):
            last = gains[at] = np.maximum(gain, last * self._fall)
        begin = self._gains if len(self._gains) else gains[:1]
        self._gains = np.concatenate([begin, gains])

    def _join(self, lifted: Samples, whole: FrameQueue) -> Samples:
        """Sound of both bands, as much of it as `lifted` has and the input had."""
        lifted = lifted[: whole.n_frames]
        if not len(lifted):
            return np.zeros((0, self._n_channels), np.float32)
        enhanced, noisy = lifted[:, : self._n_channels], lifted[:, self._n_channels :]
        at = (self._n_out + np.arange(len(lifted))) * self._hops_a_frame - self._first
        hop = at.astype(np.int64)
        share = (at - hop).astype(np.float32)[:, None]
        gains = self._gains[hop] * (1 - share) + self._gains[hop + 1] * share
        self._n_out += len(lifted)
        self._gains, self._first = self._gains[hop[-1] :], self._first + int(hop[-1])
        above = whole.take(len(lifted)) - noisy
        joined: Samples = enhanced + np.minimum(gains, self._standing_out(above, gains)) * above
        return joined

    def _standing_out(self, above: Samples, gains: Samples) -> Samples:
        """Gains (n, n_channels) by what stands out of the noise: straight lines between those after each piece."""
        begin = len(self._above)
        self._above = np.concatenate([self._above, np.concatenate([above**2, gains], axis=1)])
        n_pieces = len(self._above) // self._piece
        whole = self._above[: n_pieces * self._piece].reshape(n_pieces, self._piece, 2 * self._n_channels).mean(1)
        points = [[noise.before, noise.last] for noise in self._noises]
        for heard in whole.tolist():
            for channel, noise in enumerate(self._noises):
                power, gain = heard[channel :: self._n_channels]
                points[channel].append(noise.hear(power, gain))
        at = (begin + np.arange(len(above))) / self._piece
        piece = at.astype(np.int64)
        share = (at - piece).astype(np.float32)[:, None]
        table = np.asarray(points, np.float32).T
        self._above = self._above[n_pieces * self._piece :]
        standing_out: Samples = table[piece] * (1 - share) + table[piece + 1] * share
        return standing_out


class _Noise:
    """Follower of the noise above the network's band in one channel, piece by piece; in plain numbers, for speed."""

    def __init__(self) -> None:
        self._powers = deque([0.0] * _PIECES, maxlen=_PIECES)  # of the last pieces
        self._noise, self._known = 0.0, False
        self._fall = math.exp(-_PIECE_S / _FALL_S)
        self.before = self.last = 1.0  # gains after the last piece but one, and after the last

    def hear(self, power: float, gain: float) -> float:
        """Gain after a piece of this power, which the network's gain let through."""
        self._powers.append(power)
        mean = sum(self._powers) / _PIECES + 1e-20
        closed = gain < _CLOSED
        if closed or mean < self._noise:
            self._noise += (mean - self._noise) * (_PIECE_S / _NOISE_S if self._known else 1)
        self._known |= closed
        wanted = math.sqrt(max(1 - self._noise / mean, 0))
        self.before, self.last = self.last, max(wanted, self.last * self._fall)
        return self.last
