"""What stands around the network in a live stream: rates, hops, alignment, the band above, a constant delay.

    samples at any rate -> 16 kHz -> lift -> hops | network | lowered -> the input's rate, band above -> as many samples

It is the way of `enhance` (edgese/enhance/signal_path.py), pushed by the samples that come in instead of pulled by
those that go out. What goes out is as long as what came in, block by block: the delay is made of zeros at the start.
"""

from __future__ import annotations

import math

import numpy as np

from edgese.audio import Samples, Wave
from edgese.audio.frame_queue import FrameQueue
from edgese.audio.resampler import Resampler
from edgese.enhance.lift import LiveLift
from edgese.enhance.signal_path import RESAMPLER_TAIL
from edgese.enhance.whole_band import WholeBand
from edgese.networks import AudioConfig


class Front:
    """Signal path of one stream: takes blocks, gives hops to the network, takes its answers, gives blocks back.

    Args:
        rate_hz: of the samples that come in and go out.
        config: of the network.
        dry_gain: share of the input in the output.
        narrow: leave out what lies above the network's band.

    Attributes:
        latency_samples: samples at `rate_hz` by which the output runs behind the input.
    """

    def __init__(self, rate_hz: int, n_channels: int, config: AudioConfig, dry_gain: float, narrow: bool) -> None:
        self._n_channels, self._hop, self._overlap = n_channels, config.hop, config.overlap
        self._dry_gain = np.float32(dry_gain)
        self._down = Resampler(rate_hz, config.sample_rate_hz, n_channels)
        whole_band = rate_hz > config.sample_rate_hz and not narrow
        self._up = Resampler(config.sample_rate_hz, rate_hz, n_channels)
        self._joiner = WholeBand(rate_hz, config.sample_rate_hz, config.hop, n_channels) if whole_band else None
        self._model_hz = config.sample_rate_hz
        self.latency_samples = _latency_samples(self._down, self._up, config)
        self.reset()

    def reset(self) -> None:
        """Forget all sound: the next sample is the first."""
        self._down.reset()
        self._up.reset()
        if self._joiner is not None:
            self._joiner.reset()
        self._lift = LiveLift(self._model_hz, self._n_channels)
        self._skip = self._overlap  # samples of the network's output that belong before the first input
        self._waiting = np.zeros((0, self._n_channels), np.float32)  # for the network
        self._whole, self._dry, self._heard, self._done = FrameQueue(), FrameQueue(), FrameQueue(), FrameQueue()
        self._done.put(np.zeros((self.latency_samples, self._n_channels), np.float32))

    def feed(self, block: Samples) -> None:
        """Take (n, n_channels) float32."""
        self._whole.put(block)
        if self._dry_gain:
            self._dry.put(block)
        self._hear(self._down.push(block))

    def end(self) -> None:
        """Take the end of the sound: silence follows until all of it has come out."""
        self._hear(self._down.finish())
        n_missing = self._overlap + RESAMPLER_TAIL - len(self._waiting) % self._hop
        silence = np.zeros((max(0, n_missing) + self._hop, self._n_channels), np.float32)
        self._waiting = np.concatenate([self._waiting, silence])

    @property
    def n_hops(self) -> int:
        """Hops that wait for the network."""
        return len(self._waiting) // self._hop

    def take_hop(self) -> Wave:
        """The next hop for the network, (n_channels, hop)."""
        hop, self._waiting = self._waiting[: self._hop], self._waiting[self._hop :]
        return np.ascontiguousarray(self._lift.raised(hop).T)

    def put_hop(self, enhanced: Wave) -> None:
        """Take the network's answer to the oldest hop that was taken and not yet answered, (n_channels, hop)."""
        if self._skip:
            self._skip -= self._hop
            return
        wet = self._lift.taken_back(enhanced.T)
        if self._joiner is None:
            self._mix(self._up.push(wet)[: self._whole.n_frames])
            return
        wet = wet[: self._heard.n_frames]
        if len(wet):
            self._mix(self._joiner.push(wet, self._heard.take(len(wet)), self._whole))

    def finish(self) -> None:
        """Complete the sound after `end`, when no hop waits any more."""
        if self._joiner is None:
            self._mix(self._up.finish()[: self._whole.n_frames])
        else:
            self._mix(self._joiner.finish(self._whole))

    def take(self, n_frames: int) -> Samples:
        """The next output, (n_frames, n_channels); as many as came in can be had, and `latency_samples` at the end."""
        return self._done.take(n_frames) if n_frames else np.zeros((0, self._n_channels), np.float32)

    def _hear(self, block: Samples) -> None:
        if self._joiner is not None:
            self._heard.put(block)
        self._waiting = np.concatenate([self._waiting, block])

    def _mix(self, wet: Samples) -> None:
        if not len(wet):
            return
        if self._joiner is None:
            self._whole.take(len(wet))
        self._done.put(wet + self._dry_gain * (self._dry.take(len(wet)) - wet) if self._dry_gain else wet)


def _latency_samples(down: Resampler, up: Resampler, config: AudioConfig) -> int:
    """The least delay at which every block can be answered with as many samples, however it is cut.

    It is the largest lead of what came in over what can have come out, over one period of rates and hops.
    """
    hops_s = math.lcm(config.hop * down.from_hz, config.sample_rate_hz) // down.from_hz  # not yet whole input samples
    period = math.lcm(hops_s * down.from_hz, config.sample_rate_hz) // config.sample_rate_hz
    start = down.reach + (config.n_fft + up.reach) * down.from_hz // config.sample_rate_hz + down.from_hz // 10
    n_in = np.arange(start, start + min(period, 1 << 20))
    heard = down.ready_each(n_in) // config.hop * config.hop
    return int((n_in - up.ready_each(np.maximum(heard - config.overlap, 0))).max())
