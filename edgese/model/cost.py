"""Cost of a network, part by part: parameters, and multiply-accumulates for one frame."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgese.model.enhancer import StreamStep, WaveformEnhancer
from edgese.model.product import products

SEGMENT_HOPS = 512  # 4.096 s: what a network that is not causal takes at once (edgese/graphs/segments.py says why)
TRANSFORM = "STFT and inverse"

_NETWORK = "StreamStep.enhancer.network."
_SHORT = (4, 8, 12, 16)  # hops, equally spaced


def parameters(enhancer: WaveformEnhancer) -> dict[str, int]:
    """Trained parameters of each part; their sum is the network's."""
    counts: Counter[str] = Counter()
    for name, parameter in enhancer.network.named_parameters():
        counts[_part(enhancer, name)] += parameter.numel()
    return _in_order(enhancer, counts)


@torch.no_grad()
def macs_per_frame(enhancer: WaveformEnhancer, segment_hops: int = SEGMENT_HOPS) -> dict[str, int]:
    """Multiply-accumulates of one frame in the exported form, by part.

    Args:
        segment_hops: frames that a network which is not causal takes at once, each of which may look at all others:
            the mean of one.

    Matrix products as PyTorch's FlopCounterMode sees them (padding of narrow bands included, as it is computed), and
    what the network says of the rest (`Network.uncounted_macs`).
    """
    counts: Counter[str] = Counter()
    by_module = _macs_by_module(enhancer, segment_hops)
    lists = {name for name, child in enhancer.network.named_children() if isinstance(child, nn.ModuleList)}
    for module, macs in by_module.items():
        top, _, rest = module.partition(".")
        if module and (not rest or (top in lists and "." not in rest)):
            counts[_part(enhancer, module)] += macs
    counts[TRANSFORM] = by_module[""] - sum(counts.values())
    for module, macs in enhancer.network.uncounted_macs().items():
        counts[_part(enhancer, module)] += macs
    return _in_order(enhancer, counts)


def _part(enhancer: WaveformEnhancer, module: str) -> str:
    """Name, in tables, of the part of the network that a submodule or parameter belongs to."""
    top = module.partition(".")[0]
    return enhancer.network.parts.get(top, top)


def _in_order(enhancer: WaveformEnhancer, counts: Counter[str]) -> dict[str, int]:
    parts = [TRANSFORM, *enhancer.network.parts.values(), *counts]
    return {part: counts[part] for part in dict.fromkeys(parts) if counts[part]}


@torch.no_grad()
def product_macs(enhancer: WaveformEnhancer, segment_hops: int = SEGMENT_HOPS) -> dict[str, int]:
    """Multiply-accumulates of one frame in each product of the network (`edgese.model.product`), by its path."""
    by_module = _macs_by_module(enhancer, segment_hops)
    return {product: by_module[product] for product in products(enhancer.network)}


def _macs_by_module(enhancer: WaveformEnhancer, segment_hops: int) -> dict[str, int]:
    """Multiply-accumulates of one frame's matrix products in each module, by its path; under "", in all of them."""
    hops = 1 if enhancer.network.causal else segment_hops
    found = {name: macs // hops for name, macs in _counted(enhancer, hops).items()}
    inside = {name.removeprefix(_NETWORK): macs for name, macs in found.items() if name.startswith(_NETWORK)}
    return {"": found["Global"], **inside}


def _counted(enhancer: WaveformEnhancer, hops: int) -> dict[str, int]:
    """Multiply-accumulates of `hops` hops by module, as PyTorch names them; under "Global", in all.

    What a frame costs, and what a pair of frames does (attention over time), make a parabola over the number of frames:
    for many hops it is drawn through short runs, where one more run lies on it. 512 hops of `mbs-net-original` take
    half a minute, these runs a second.
    """
    if hops <= _SHORT[-1]:
        return _run(enhancer, hops)
    first, second, third, fourth = (_run(enhancer, short) for short in _SHORT)
    counts = {}
    for name in first:
        slope, bend = second[name] - first[name], third[name] - 2 * second[name] + first[name]
        if fourth[name] != first[name] + 3 * slope + 3 * bend:
            return _run(enhancer, hops)
        steps = (hops - _SHORT[0]) / (_SHORT[1] - _SHORT[0])
        counts[name] = round(first[name] + steps * slope + steps * (steps - 1) / 2 * bend)
    return counts


def _run(enhancer: WaveformEnhancer, hops: int) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        StreamStep(enhancer)(torch.zeros(1, hops * enhancer.audio.hop), *enhancer.initial_state().values())
    return {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
