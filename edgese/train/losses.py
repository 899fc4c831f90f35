"""Terms of the training objective, each a mean over all its elements.

Spectra are those of the enhanced *waveform*, transformed again: what overlap-add cannot represent is not credited
(consistency, Le Roux et al. 2008; as loss, Wisdom et al. 2019). Both waveforms are divided by the level of the noisy
input first, so that quiet and loud examples weigh the same.

Letters: B examples, T frames, F bins.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from torch import Tensor, nn

from edgese.config import AudioConfig, LossConfig
from edgese.model.enhancer import Transform
from edgese.train.perceptual import PerceptualDisturbance, raw_pesq

POWER_FLOOR = 1e-5  # 74 dB below white noise of unit level: keeps the gradient of the compressed magnitude finite
BAND_EDGES_HZ = (125, 250, 500, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000)
RESOLUTIONS = (256, 512, 1024)  # samples of a window; hops are a quarter of it


def compressed_spectrum(wave: Tensor, transform: Transform, compression: float) -> tuple[Tensor, Tensor]:
    """Compressed magnitude (B, T, F) and compressed complex spectrum (B, T, F, 2) of waves (B, n_samples)."""
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


def phase_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Anti-wrapped error of phase, group delay and instantaneous frequency (Ai & Ling 2023, eqs. 6 to 9), in radians.

    Args:
        estimate, target: (B, T, F, 2) complex spectra, compressed or not.
    """
    # the difference of two phases as the angle of a product: no wrapping to undo before differences are taken
    real = (estimate * target).sum(-1) + 1e-6
    imag = estimate[..., 1] * target[..., 0] - estimate[..., 0] * target[..., 1]
    error = torch.atan2(imag, real)  # (B, T, F), in [-pi, pi]
    along_frequency, along_time = (_wrapped(error.diff(dim=axis)) for axis in (2, 1))
    return error.abs().mean() + along_frequency.abs().mean() + along_time.abs().mean()


def multi_resolution_loss(estimate: Tensor, target: Tensor) -> Tensor:
    """Spectral convergence and log magnitude error over several windows (Yamamoto et al. 2020, eqs. 4 to 6)."""
    losses = []
    for n_fft in RESOLUTIONS:
        window = torch.hann_window(n_fft, device=estimate.device)
        found, wanted = (
            (
                torch.stft(wave, n_fft, n_fft // 4, window=window, return_complex=True).abs().square() + POWER_FLOOR
            ).sqrt()
            for wave in (estimate, target)
        )
        convergence = ((found - wanted).square().sum((1, 2)) + POWER_FLOOR).sqrt() / wanted.square().sum((1, 2)).sqrt()
        losses.append(convergence.mean() + (found.log() - wanted.log()).abs().mean())
    return torch.stack(losses).mean()


def band_level_loss(estimate: Tensor, target: Tensor, transform: Transform) -> Tensor:
    """Error of the level of speech by frequency band, which neither a mean over bins nor P.862 holds to account.

    Energies are summed over the frames in which the target's band is within 20 dB of its loudest frame; the natural
    logarithm of their ratio is taken to Huber's loss (quadratic up to 0.5, which is 2.2 dB). Bands without speech are
    left out.

    Args:
        estimate, target: (B, n_samples) of the level that `Objective` brings them to.
    """
    found, wanted = (_band_energies(wave, transform) for wave in (estimate, target))  # (B, T, bands)
    speaks = wanted > 1e-2 * wanted.amax(1, keepdim=True)
    ratio = torch.log(((found * speaks).sum(1) + 1e-3) / ((wanted * speaks).sum(1) + 1e-3))
    counts = (wanted * speaks).mean(1) > 1e-4  # 80 dB and more below white noise as loud as the noisy input: no speech
    error = nn.functional.smooth_l1_loss(ratio, torch.zeros_like(ratio), reduction="none", beta=0.5)
    return (error * counts).sum() / counts.sum().clamp_min(1)


def _band_energies(wave: Tensor, transform: Transform) -> Tensor:
    """Energies of the bands between `BAND_EDGES_HZ`: (B, n_samples) -> (B, T, bands)."""
    config = transform.config
    whole = wave[:, : wave.shape[1] // config.hop * config.hop]
    spectrum, _ = transform(whole, whole.new_zeros(len(whole), config.overlap))
    bins = [round(edge * config.n_fft / config.sample_rate_hz) for edge in BAND_EDGES_HZ]
    power = spectrum.square().sum(-1)  # (B, T, F)
    return torch.stack([power[..., low:high].sum(-1) for low, high in itertools.pairwise(bins)], dim=-1)


class Objective(nn.Module):
    """Training objective: the weighted sum of all terms whose weight is not zero."""

    def __init__(self, config: LossConfig, audio: AudioConfig, compression: float) -> None:
        super().__init__()
        self.config, self.compression = config, compression
        self.transform = Transform(audio)
        self.disturbance = PerceptualDisturbance()

    def forward(self, enhanced: Tensor, clean: Tensor, noisy: Tensor) -> dict[str, Tensor]:
        """Values of the terms with a weight, unweighted, and their weighted sum under "loss".

        Args:
            enhanced, clean, noisy: (B, n_samples), in time with each other.
        """
        level = noisy.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-5)
        enhanced, clean = enhanced / level, clean / level
        magnitude, spectrum = compressed_spectrum(enhanced, self.transform, self.compression)
        clean_magnitude, clean_spectrum = compressed_spectrum(clean, self.transform, self.compression)
        terms = {
            "magnitude": lambda: magnitude_loss(magnitude, clean_magnitude),
            "complex": lambda: complex_loss(spectrum, clean_spectrum),
            "waveform": lambda: waveform_loss(enhanced, clean),
            "perceptual": lambda: self._perceptual(enhanced, clean),
            "phase": lambda: phase_loss(spectrum, clean_spectrum),
            "multi_resolution": lambda: multi_resolution_loss(enhanced, clean),
            "band_level": lambda: band_level_loss(enhanced, clean, self.transform),
        }
        weights = {name: weight for name, weight in dataclasses.asdict(self.config).items() if weight > 0}
        counted = {name: terms[name]() for name in weights}
        total = torch.stack([weight * counted[name] for name, weight in weights.items()]).sum()
        return {"loss": total} | counted

    def _perceptual(self, enhanced: Tensor, clean: Tensor) -> Tensor:
        """Distance of raw PESQ from 4.5 (perceptual.py); 0 for a target 60 dB below the input, which is no speech."""
        missing = 4.5 - raw_pesq(*self.disturbance(enhanced, clean))
        return (missing * (clean.square().mean(1) > 1e-6)).mean()


def _wrapped(angle: Tensor) -> Tensor:
    """Angle brought to [-pi, pi]."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
