"""Differentiable PESQ: the disturbance of ITU-T P.862 between two waveforms that are aligned with each other.

Follows P.862 (2001), sections 10.2.2 to 10.2.12, in the wideband form of P.862.2 (2007): level alignment, input filter,
Bark spectra, compensation of linear filtering and gain, Zwicker loudness, disturbances, aggregation. Left out is what
training does not need: time alignment, the realignment of bad intervals, cutting silence at both ends, the weights of
recordings longer than 16 s, the last incomplete interval. Levels are aligned per example on the power spectrum (350 Hz
to 3.25 kHz), the input filter acts there too. The rule that keeps a frame's gain close to the one before it is cut
after four frames (0.2^4 < 0.2 %).

The table beside this file holds the 49 bands of P.862 at 16 kHz, as the reference implementation gives them; its first
lines name the edition.

Letters: B examples, T frames of 512 samples every 256, F bins 0 to 255, K = 49 Bark bands.
"""

from __future__ import annotations

from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE_HZ = 16_000
N_FFT, HOP = 512, 256

_LEVEL = 1e7  # mean power that speech is brought to (P.862, 10.2.1)
_LEVEL_BAND_HZ = (350.0, 3250.0)
_POWER_SCALE, _LOUDNESS_SCALE = 6.910853e-6, 1.866055e-1  # S_p and S_l of the reference implementation at 16 kHz
_ZWICKER_POWER = 0.23
# numerator and denominator of the wideband input filter at 16 kHz (P.862.2, reference implementation)
_INPUT_FILTER = ((2.740826, -5.4816519, 2.740826), (1.0, -1.9444777, 0.94597794))


class PerceptualDisturbance(nn.Module):
    """Symmetric and asymmetric disturbance of P.862, with gradients."""

    window: Tensor
    input_gain: Tensor  # (F,), power
    to_bark: Tensor  # (F, K)
    width: Tensor  # (K,), in Bark
    threshold: Tensor  # (K,), power of the hearing threshold
    exponent: Tensor  # (K,), of the loudness

    def __init__(self) -> None:
        super().__init__()
        with (resources.files("edgese.train") / "p862_bands.csv").open(encoding="utf-8") as lines:
            rows = [line for line in lines if line[0].isdigit()]  # after its source and the names of its columns
        n_bins, centre, width, correction, threshold = np.loadtxt(rows, delimiter=",").T
        band = np.repeat(np.arange(len(n_bins)), n_bins.astype(int))  # of each bin
        to_bark = np.eye(len(n_bins))[band] * correction * _POWER_SCALE
        to_bark[0] = 0  # no band takes a constant
        delays = np.exp(-2j * np.pi * np.arange(N_FFT // 2)[:, None] * np.arange(3) / N_FFT)
        response = (delays @ _INPUT_FILTER[0]) / (delays @ _INPUT_FILTER[1])
        tables = {
            "input_gain": np.abs(response) ** 2,
            "to_bark": to_bark,
            "width": width,
            "threshold": threshold,
            "exponent": _ZWICKER_POWER * np.clip(6 / (centre + 2), 1, 2) ** 0.15,
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, enhanced: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Disturbances of each example, below 0.02 where both waves are equal.

        Args:
            enhanced, clean: (B, n_samples) at 16 kHz, any level, at least 0.34 s (one interval of 20 frames).

        Returns:
            symmetric and asymmetric disturbance, (B,) each.
        """
        degraded, reference = self._bark(enhanced), self._bark(clean)
        reference = reference * self._filter_compensation(degraded, reference)
        degraded = degraded * self._gain_compensation(degraded, reference)
        heard, wanted = self._loudness(degraded), self._loudness(reference)
        difference = heard - wanted
        excess = (difference.abs() - 0.25 * torch.minimum(heard, wanted)).clamp_min(0)  # small changes are masked
        added = ((degraded + 50) / (reference + 50)) ** 1.2  # what is added disturbs more than what is left out
        added = torch.where(added < 3, 0, added.clamp_max(12))
        # frames in pauses weigh more
        weight = ((self._audible(reference, 1) + 1e5) / 1e7) ** -0.04
        symmetric, asymmetric = self._band_norm(excess, 2), self._band_norm(excess * added, 1)
        return _over_time(symmetric * weight), _over_time(asymmetric * weight)

    def _bark(self, wave: Tensor) -> Tensor:
        """Power in Bark bands, (B, T, K), of waves (B, n_samples) at the standard's level."""
        spectrum = torch.fft.rfft(wave.unfold(1, N_FFT, HOP) * self.window)[..., : N_FFT // 2]
        power = spectrum.real.square() + spectrum.imag.square()
        first, last = (round(edge * N_FFT / SAMPLE_RATE_HZ) for edge in _LEVEL_BAND_HZ)
        in_band = power[..., first : last + 1].sum(-1).mean(-1) * 2 / (N_FFT * self.window.square().sum())
        scale = _LEVEL / (in_band + 1e-12)
        bark: Tensor = (power * self.input_gain * scale[:, None, None]) @ self.to_bark
        return bark

    def _audible(self, bark: Tensor, factor: float) -> Tensor:
        """Power of the bands above `factor` times the hearing threshold, (B, T)."""
        return (bark * (bark > factor * self.threshold)).sum(-1) - bark[..., 0] * (
            bark[..., 0] > factor * self.threshold[0]
        )

    def _filter_compensation(self, degraded: Tensor, reference: Tensor) -> Tensor:
        """Factors by which each band differs over the whole of speech, (B, 1, K): a linear filter disturbs little."""
        speech = (self._audible(reference, 100) >= 1e7)[..., None]
        means = [(bark * ((bark > 100 * self.threshold) & speech)).mean(1) + 1000 for bark in (degraded, reference)]
        return (means[0] / means[1]).clamp(0.01, 100)[:, None]

    def _gain_compensation(self, degraded: Tensor, reference: Tensor) -> Tensor:
        """Factors by which each frame's level differs, smoothed, (B, T, 1)."""
        ratio = (self._audible(reference, 1) + 5e3) / (self._audible(degraded, 1) + 5e3)
        smooth = 0.8 * ratio
        for lag in range(1, 4):
            smooth = smooth + 0.8 * 0.2**lag * torch.cat([ratio[:, :1].expand(-1, lag), ratio[:, :-lag]], dim=1)
        return (smooth / (1 - 0.2**4)).clamp(3e-4, 5)[..., None]

    def _loudness(self, bark: Tensor) -> Tensor:
        """Loudness in sone per Bark (Zwicker's law with P.862's exponents), 0 below the threshold."""
        above = bark.clamp_min(self.threshold) / self.threshold
        loudness = (2 * self.threshold) ** self.exponent * ((0.5 + 0.5 * above) ** self.exponent - 1)
        return _LOUDNESS_SCALE * loudness

    def _band_norm(self, density: Tensor, order: int) -> Tensor:
        """Norm over bands weighted by their widths, (B, T); the lowest band is left out."""
        total = self.width[1:].sum()
        powered = ((density * self.width)[..., 1:] ** order).sum(-1) / total
        return total * (powered + 1e-12) ** (1 / order)


def _over_time(disturbance: Tensor) -> Tensor:
    """Mean over time, (B, T) -> (B,): L6 within intervals of 20 frames, half overlapping, then L2 over intervals."""
    intervals = disturbance.clamp_max(45).unfold(1, 20, 10)
    within = (intervals**6).mean(-1).clamp_min(1e-12) ** (1 / 6)
    return within.square().mean(-1).sqrt()


def raw_pesq(symmetric: Tensor, asymmetric: Tensor) -> Tensor:
    """Raw score of P.862, 4.5 for no disturbance (section 10.2.12)."""
    return 4.5 - 0.1 * symmetric - 0.0309 * asymmetric
