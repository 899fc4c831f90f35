"""What a network costs, part by part: parameters, and multiply-accumulates for one frame."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils.flop_counter import FlopCounterMode

from edgese.model.product import products
from edgese.model.waveform import StreamStep, WaveformEnhancer

PARTS = {
    "transform": "STFT and inverse",
    "split": "band split",
    "blocks": "Mamba blocks",
    "fusions": "cross-band fusion",
    "norm": "last norm",
    "magnitude_head": "magnitude head",
    "phase_head": "phase head",
    "magnitude_decoder": "magnitude decoder",
    "phase_decoder": "phase decoder",
}

_NETWORK = "StreamStep.enhancer.network."


def parameters(enhancer: WaveformEnhancer) -> dict[str, int]:
    """Trained parameters of each part; their sum is the network's."""
    counts: Counter[str] = Counter()
    for name, parameter in enhancer.network.named_parameters():
        counts[PARTS[name.split(".")[0]]] += parameter.numel()
    return {part: counts[part] for part in PARTS.values() if part in counts}


@torch.no_grad()
def macs_per_frame(enhancer: WaveformEnhancer) -> dict[str, int]:
    """Multiply-accumulates of one frame in the exported form, by part.

    Matrix products as PyTorch's FlopCounterMode sees them (padding of narrow bands included, as it is computed);
    the scan's own products and the convolution, which are elementwise, by their definition.
    """
    counts: Counter[str] = Counter()
    by_module = _macs_by_module(enhancer)
    for module, macs in by_module.items():
        if module and "." not in module.removeprefix("blocks.").removeprefix("fusions."):
            counts[PARTS[module.split(".")[0]]] += macs
    counts[PARTS["transform"]] = by_module[""] - sum(counts.values())
    config = enhancer.network.config
    # per band and channel: decay * h and b * x for each state (c . h is a product, counted above); the taps
    elementwise = config.n_bands * config.inner * (2 * config.states + config.conv_width)
    # a head's values are copied to its channels by a product with zeros and ones: dt for each band, and a once
    copies = (config.n_bands + 1) * config.decay_heads * config.inner if config.decay_heads < config.inner else 0
    counts[PARTS["blocks"]] += config.layers * (elementwise - copies)
    return {part: counts[part] for part in PARTS.values() if counts[part]}


@torch.no_grad()
def product_macs(enhancer: WaveformEnhancer) -> dict[str, int]:
    """Multiply-accumulates of one frame in each product of the network (`edgese.model.product`), by its path."""
    by_module = _macs_by_module(enhancer)
    return {product: by_module[product] for product in products(enhancer.network)}


def _macs_by_module(enhancer: WaveformEnhancer) -> dict[str, int]:
    """Matrix products of one frame inside each module of the network, by its path; under "", all there are."""
    with FlopCounterMode(display=False) as counter:
        StreamStep(enhancer)(torch.zeros(1, enhancer.audio.hop), *enhancer.initial_state().values())
    found = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    inside = {name.removeprefix(_NETWORK): macs for name, macs in found.items() if name.startswith(_NETWORK)}
    return {"": found["Global"], **inside}
