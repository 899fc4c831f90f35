"""Terms of the training objective, each a mean over all its elements.

Spectra are those of the enhanced *waveform*, transformed again: what overlap-add cannot represent is not credited
(consistency, Le Roux et al. 2008; as loss, Wisdom et al. 2019). Both waveforms are divided by the level of the noisy
input first, so that quiet and loud examples weigh the same.
"""

from __future__ import annotations

from torch import Tensor

from edgese.config import LossConfig
from edgese.model.waveform import Transform

POWER_FLOOR = 1e-5  # 74 dB below white noise of unit level: keeps the gradient of the compressed magnitude finite


def compressed_spectrum(wave: Tensor, transform: Transform, compression: float) -> tuple[Tensor, Tensor]:
    """(B, n_samples) -> compressed magnitude (B, T, F) and compressed complex spectrum (B, T, F, 2)."""
    whole = wave[:, : wave.shape[1] // transform.config.hop * transform.config.hop]
    spectrum, _ = transform(whole, whole.new_zeros(len(whole), transform.config.overlap))
    power = spectrum.square().sum(-1) + POWER_FLOOR
    magnitude = power ** (compression / 2)
    return magnitude, spectrum * (magnitude * power**-0.5)[..., None]


def magnitude_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Squared error of compressed magnitudes (Braun & Tashev 2021, eq. 4)."""
    return (estimate - target).square().mean()


def complex_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Squared distance of compressed complex spectra (Braun & Tashev 2021, eq. 5)."""
    return (estimate - target).square().sum(-1).mean()


def waveform_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Absolute error of samples."""
    return (estimate - target).abs().mean()


def objective(
    enhanced: Tensor, clean: Tensor, noisy: Tensor, transform: Transform, config: LossConfig, compression: float
) -> dict[str, Tensor]:
    """Every term and their weighted sum, under "loss".

    Args:
        enhanced, clean, noisy: (B, n_samples), in time with each other.
    """
    level = noisy.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-5)
    enhanced, clean = enhanced / level, clean / level
    magnitude, spectrum = compressed_spectrum(enhanced, transform, compression)
    clean_magnitude, clean_spectrum = compressed_spectrum(clean, transform, compression)
    terms = {
        "magnitude": magnitude_loss(magnitude, clean_magnitude),
        "complex": complex_loss(spectrum, clean_spectrum),
        "waveform": waveform_loss(enhanced, clean),
    }
    total = config.magnitude * terms["magnitude"] + config.complex * terms["complex"]
    return {"loss": total + config.waveform * terms["waveform"]} | terms
