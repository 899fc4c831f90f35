"""Perceptual contrast stretching (PCS): loud parts of a bin gain on soft ones, most where speech is understood.

    |Y| = expm1(g log1p(|X|)),  phase kept

with one exponent g for each bin: 1 + 0.4 times the bin's share in intelligibility, so 1.4 from 375 Hz to 4.3 kHz.
Chao, Yu, Fu, Lu, Tsao 2022, "Perceptual Contrast Stretching on Target Feature for Speech Enhancement", Interspeech;
values and scale checked against the authors' code (github.com/RoyChao19477/PCS, PCS/PCS.py). No frame sees another.

The map is no power law: it is linear for |X| << 1 and g acts for |X| >> 1, so what it does depends on the level.
The authors measure |X| in an unnormalised 512-point transform of waves in [-1, 1] through a Hamming window; spectra
are brought to that scale first. Afterwards they divide a recording by its largest sample, which a stream cannot do:
here a constant takes its place.

Letters: B streams, T frames, F bins.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.model.pcs_constants import FLOOR, OUTPUT_GAIN, exponents, scale


class ContrastStretching(nn.Module):
    """PCS of a spectrum, made of operators that every runtime has: exp and log for expm1 and log1p."""

    exponents: Tensor  # (F,)

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.scale = scale(config)
        self.register_buffer("exponents", torch.from_numpy(exponents(config)).float(), persistent=False)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Stretched spectrum: (B, T, F, 2), last axis real and imaginary, linear -> the same shape."""
        x = spectrum.transpose(-1, -2)  # (B, T, 2, F)
        power = (x * x).sum(-2, keepdim=True) * self.scale**2
        magnitude = torch.sqrt(power.clamp(min=FLOOR**2))  # (B, T, 1, F)
        stretched = torch.exp(self.exponents * torch.log(1 + magnitude)) - 1
        return (x * (OUTPUT_GAIN * stretched / magnitude)).transpose(-1, -2)
