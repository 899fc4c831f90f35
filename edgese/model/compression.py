"""Input features of the networks: spectra with magnitudes compressed by a power, and their logarithm, the level.

Letters: B streams, T frames, F bins.
"""

from __future__ import annotations

import torch
from torch import Tensor

POWER_FLOOR = 1e-7  # about 16 bit's quantization noise in a bin: |X|^2 of white noise at -98 dBFS is 256 * 1.6e-10


def compressed(x: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Spectrum with its magnitude to the power of `exponent`, and a quarter of the magnitude's logarithm.

    Args:
        x: (B, T, 2, F), real and imaginary part, linear.

    Returns:
        (B, T, 2, F) and (B, T, 1, F), all of them near 1 for sound at usual levels.
    """
    power = (x * x).sum(-2, keepdim=True) + POWER_FLOOR
    log_magnitude = 0.5 * torch.log(power)
    return x * torch.exp((exponent - 1) * log_magnitude), 0.25 * log_magnitude


def features(x: Tensor, exponent: float) -> Tensor:
    """Compressed real and imaginary part and logarithm of the magnitude: (B, T, F, 2) -> (B, T, F, 3)."""
    return torch.cat(compressed(x.transpose(-1, -2), exponent), dim=-2).transpose(-1, -2)
