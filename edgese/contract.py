"""Check of a network's contract before it is trained, exported or verified: causality, states, shapes; under a second.

A network that says `causal` may look at earlier frames through its state only: then a stream that is cut anywhere gives
the same samples, and a graph that takes one hop gives what PyTorch gives. One that looks ahead scores better in PyTorch
than it ever will on a device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from edgese.errors import VerificationError
from edgese.metrics.difference import tensor_error
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.network import Network

FRAMES = 40  # longer than the chunks of training scans
CHANGED = (3, 16, 29)  # frames whose change must not affect earlier ones, off and on the borders of blocks
CUTS = (1, 4, 1, 16, 18)
LEAK = 1e-6  # of the largest output: the same sums over the same numbers, or nearly
STREAMING = 1e-4  # of the largest output: other sums; a state that is forgotten changes far more


@torch.no_grad()
def require_contract(enhancer: WaveformEnhancer) -> None:
    """Try the network on two streams of noise, in the form it is trained in, and refuse one that breaks its contract.

    Raises:
        VerificationError: its output or state is not of the shape, type or names that they must be, it changes the
            state that it is given, one stream affects another, it looks ahead, or a cut stream is not the whole; or
            it is not causal and has a state.
    """
    network, was_training = enhancer.network, enhancer.training
    enhancer.eval()
    try:
        problem = next(_problems(network, _spectrum(enhancer)), None)
    finally:
        enhancer.train(was_training)
    if problem is not None:
        raise VerificationError(f"network {network.config.name}: {problem} (docs/networks.md)")


def _spectrum(enhancer: WaveformEnhancer) -> Tensor:
    """Noise as loud as speech, louder from frame to frame and softer again: (2, FRAMES, F, 2) float32."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, FRAMES, enhancer.audio.n_bins, 2, generator=generator)
    swell = 1 + torch.sin(torch.arange(FRAMES) / 2)[:, None, None]
    return (noise * swell).to(enhancer.transform.dft.window.device)


def _problems(network: Network, x: Tensor) -> Iterator[str]:
    state = network.initial_state(len(x))
    if not network.causal and state:
        yield f"has the states {', '.join(state)}, wanted none of one that is not causal"
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or tensor.shape[:1] != x.shape[:1] or tensor.any():
            yield f"state {name}: found {_described(tensor)}, wanted float32 zeros, first axis {len(x)} streams"
    given = {name: tensor.clone() for name, tensor in state.items()}
    y, after = network(x, state)
    if y.shape != x.shape or y.dtype != x.dtype or not torch.isfinite(y).all():
        yield f"its output: found {_described(y)}, wanted {_described(x)}, all of it finite"
    for name, tensor in state.items():
        if not torch.equal(tensor, given[name]):
            yield f"state {name}: changed in place, wanted a new tensor"
        if name not in after or after[name].shape != tensor.shape or after[name].dtype != tensor.dtype:
            found = _described(after[name]) if name in after else "none"
            yield f"state {name} after {FRAMES} frames: found {found}, wanted {_described(tensor)}"
    other = torch.cat([x[:1], -3 * x[1:]])
    if not _relative(y[:1], network(other, state)[0][:1]) <= LEAK:
        yield "the sound of one stream changes another, wanted each as if alone"
    if network.causal:
        yield from _leaks(network, x, y)
        yield from _forgets(network, x, y)


def _leaks(network: Network, x: Tensor, y: Tensor) -> Iterator[str]:
    for frame in CHANGED:
        changed = torch.cat([x[:, :frame], -3 * x[:, frame : frame + 1], x[:, frame + 1 :]], dim=1)
        before = network(changed, network.initial_state(len(x)))[0][:, :frame]
        differs = (before - y[:, :frame]).abs().amax(dim=(0, 2, 3)) > LEAK * y.abs().max()
        if differs.any():
            first = int(differs.nonzero()[0])
            yield (
                f"looks ahead: a change in frame {frame} shows {frame - first} earlier, in frame {first}; wanted "
                "nothing of later frames in one that says it is causal"
            )


def _forgets(network: Network, x: Tensor, y: Tensor) -> Iterator[str]:
    state, pieces = network.initial_state(len(x)), []
    for piece in x.split(CUTS, dim=1):
        found, state = network(piece, state)
        pieces.append(found)
    difference = _relative(y, torch.cat(pieces, dim=1))
    if not difference <= STREAMING:
        yield (
            f"a stream cut into {', '.join(map(str, CUTS))} frames differs from the whole by {difference:.1g} of its "
            f"largest value, limit {STREAMING:g}; wanted all that it knows of earlier frames in its state"
        )


def _relative(wanted: Tensor, found: Tensor) -> float:
    """Largest difference divided by the largest wanted value."""
    return tensor_error("output", wanted.cpu().numpy(), found.cpu().numpy()).relative


def _described(tensor: Tensor) -> str:
    """Shape and type of a tensor, as text."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
