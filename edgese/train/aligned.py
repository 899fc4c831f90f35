"""Enhanced training examples, brought in time with their targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgese.model.enhancer import WaveformEnhancer


def aligned(enhancer: WaveformEnhancer, replica: nn.Module, noisy: Tensor, *, bfloat16: bool) -> Tensor:
    """Enhanced sound of whole segments from their first sample on, (B, whole hops - overlap) float32.

    Args:
        replica: the enhancer, or what shares its gradients between processes.
        noisy: (B, n_samples).
        bfloat16: take products in bfloat16; the scan stays float32.
    """
    hop, overlap = enhancer.audio.hop, enhancer.audio.overlap
    whole = noisy.shape[1] // hop * hop
    with torch.autocast(noisy.device.type, torch.bfloat16, enabled=bfloat16):
        output, _ = replica(noisy[:, :whole], enhancer.initial_state(len(noisy)))
    result: Tensor = output[:, overlap:].float()
    return result
