"""The way of a recording's sound through a denoiser, in constant memory, on a desk and on a board alike.

The network runs at 16 kHz; at higher rates, what lies above its band is carried past it (whole_band.py). Each channel
is enhanced by itself, as one stream of the graph. Output and input have the same length and are aligned to a fraction
of a sample, at any rate. Quiet recordings are lifted for the network and lowered again, offsets taken out (lift.py).
The same for a live stream: edgese/live/.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgese.audio import Samples
from edgese.audio.frame_queue import FrameQueue
from edgese.audio.resampler import resample
from edgese.enhance.lift import Lift
from edgese.enhance.whole_band import WholeBand

if TYPE_CHECKING:
    from typing_extensions import Self

RESAMPLER_TAIL = 256  # samples of the network's rate beyond the end that a resampler, to 4 kHz and up, may ask for


class Frames(Protocol):
    """Rate and hop of a network, as `AudioConfig` and `AudioFacts` have them."""

    @property
    def sample_rate_hz(self) -> int: ...
    @property
    def hop(self) -> int: ...


class BlockEnhancer(Protocol):
    """Enhancer of a recording's blocks at the network's rate, aligned, and some silence after their end."""

    @property
    def config(self) -> Frames: ...
    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]: ...


class Enhancer(BlockEnhancer, Protocol):
    """Enhancer of files' sound: a runtime here (`Denoiser`) or a board (edgese.board.denoiser)."""

    trained: bool

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def prepare(self, source: Path, name: str, stop: threading.Event) -> None: ...


def share_of_input(atten_limit_db: float | None) -> float:
    """Share of the input that is mixed into the output, so that nothing is attenuated by more; 0 without a limit."""
    return 0.0 if atten_limit_db is None else 10.0 ** (-atten_limit_db / 20)


def denoise(
    blocks: Iterable[Samples],
    rate_hz: int,
    n_channels: int,
    denoiser: BlockEnhancer,
    atten_limit_db: float | None = None,
    *,
    narrow: bool = False,
) -> Iterator[Samples]:
    """Enhanced sound of a stream of blocks at any rate: same length in all, aligned, cut into other blocks.

    Args:
        blocks: (n, n_channels) float32 in [-1, 1] at `rate_hz`.
        atten_limit_db: mix so much of the input in that nothing is attenuated by more: enhanced +
            10^(-limit / 20) * (input - enhanced). The input comes with all its frequencies.
        narrow: leave out what lies above the network's band.
    """
    dry_gain = share_of_input(atten_limit_db)
    model_hz = denoiser.config.sample_rate_hz
    whole, dry, heard = FrameQueue(), FrameQueue(), FrameQueue()
    incoming = dry.keeping(blocks) if dry_gain else blocks
    noisy = resample(whole.keeping(incoming), rate_hz, model_hz, n_channels)
    lift = Lift(model_hz, n_channels)
    enhanced_blocks = lift.taken_back(denoiser.blocks(lift.raised(heard.keeping(noisy)), n_channels))
    for wet in _at_rate(enhanced_blocks, heard, whole, denoiser.config, rate_hz, n_channels, narrow):
        if len(wet):
            yield wet + np.float32(dry_gain) * (dry.take(len(wet)) - wet) if dry_gain else wet
    assert whole.n_frames == 0, "the output is shorter than the input"


def _at_rate(
    enhanced: Iterable[Samples],
    heard: FrameQueue,
    whole: FrameQueue,
    config: Frames,
    rate_hz: int,
    n_channels: int,
    narrow: bool,
) -> Iterator[Samples]:
    """Blocks at the input's rate, as long in all as what is in `whole`.

    Args:
        heard: what went into the network, from where `enhanced` stands on.
    """
    if narrow or rate_hz <= config.sample_rate_hz:
        for wet in resample(enhanced, config.sample_rate_hz, rate_hz, n_channels):
            wet = wet[: whole.n_frames]  # behind the end, the network only answers the silence that drove it out
            if len(wet):
                whole.take(len(wet))
                yield wet
        return
    joiner = WholeBand(rate_hz, config.sample_rate_hz, config.hop, n_channels)
    for wet in enhanced:
        wet = wet[: heard.n_frames]
        if len(wet):
            yield joiner.push(wet, heard.take(len(wet)), whole)
    yield joiner.finish(whole)
