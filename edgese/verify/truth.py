"""PyTorch's output for minutes of sound, in float32 and float64, with which every graph is compared."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgese.audio import Wave
from edgese.errors import VerificationError
from edgese.model.enhancer import SegmentStep, WaveformEnhancer
from edgese.verify.limits import VERIFICATION_HOPS

LEVELS = (1.0, 0.32, 0.1)  # about 0, -10 and -20 dB


@dataclasses.dataclass(frozen=True)
class Truth:
    """PyTorch's output for a stretch of sound: samples as streamed (with their lag) and the states after it."""

    wave: Wave  # (n_samples,) what went in, whole hops
    enhanced: Wave  # (n_samples,)
    states: Mapping[str, NDArray[np.float32]]


@torch.no_grad()
def pytorch_truth(enhancer: WaveformEnhancer, wave: Wave, block_multiple: int) -> Truth:
    """PyTorch's output for `wave`, cut to whole blocks of `block_multiple` hops, to compare graphs with.

    A network that is not causal takes each of them as a segment of its own.

    Raises:
        VerificationError: nothing is left of it, or PyTorch itself gives NaN.
    """
    size = block_multiple * enhancer.audio.hop
    whole = wave[: len(wave) // size * size]
    if not len(whole):
        raise VerificationError(f"verification sound: found {len(wave)} samples, wanted at least {size}")
    if enhancer.network.causal:
        at_a_time = VERIFICATION_HOPS * enhancer.audio.hop
        enhanced, states = streamed(enhancer, torch.from_numpy(whole), at_a_time, enhancer.initial_state())
    else:
        enhanced, states = in_segments(enhancer, torch.from_numpy(whole), size), {}
    if not torch.isfinite(enhanced).all():
        raise VerificationError("PyTorch itself gives NaN or Inf: the weights are broken")
    return Truth(whole, enhanced.numpy(), {name: state.numpy() for name, state in states.items()})


@torch.no_grad()
def float64_truth(enhancer: WaveformEnhancer, wave: Wave, block_multiple: int) -> Truth:
    """Output of the same weights in double precision, by the scan's definition; outputs and states are float64.

    Args:
        wave: whole blocks of `block_multiple` hops: the segments of a network that is not causal.
    """
    exact = copy.deepcopy(enhancer).double()
    exact.network.use_form("exact")
    sound = torch.from_numpy(wave).double()
    if enhancer.network.causal:
        zeros = {name: state.double() for name, state in exact.initial_state().items()}
        enhanced, states = streamed(exact, sound, 1000 * enhancer.audio.hop, zeros)
    else:
        enhanced, states = in_segments(exact, sound, block_multiple * enhancer.audio.hop), {}
    return Truth(wave, enhanced.numpy(), {name: state.numpy() for name, state in states.items()})


def streamed(
    enhancer: WaveformEnhancer, sound: Tensor, size: int, states: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output for a sound (n_samples,), `size` samples at a time, and the states after it."""
    pieces = []
    for piece in sound[None].split(size, dim=1):
        enhanced, states = enhancer(piece, states)
        pieces.append(enhanced[0])
    return torch.cat(pieces), states


def in_segments(enhancer: WaveformEnhancer, sound: Tensor, size: int) -> Tensor:
    """Output for a sound (n_samples,), each `size` samples as a segment of its own; not cross-faded."""
    step = SegmentStep(enhancer)
    return torch.cat([step(segment)[0] for segment in sound[None].split(size, dim=1)])


def long_sound(recordings: Sequence[Wave], n_samples: int) -> Wave:
    """Sound of `n_samples` samples: these recordings at each level in turn, as often as it takes."""
    once = [wave * np.float32(gain) for gain in LEVELS for wave in recordings]
    length = sum(map(len, once))
    if not length:
        raise VerificationError("verification sound: found no samples, wanted speech")
    return np.concatenate(once * -(-n_samples // length))[:n_samples]
