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
MOST_MASK = 2.0
TRUST_WINDOW = (5, 9)  # frames and bins, odd
RESOLUTIONS = (256, 512, 1024)  # samples of a window; hops are a quarter of it

Spectrum = tuple[Tensor, Tensor]  # compressed: magnitude (B, T, F), complex (B, T, F, 2)


def compressed_spectrum(wave: Tensor, transform: Transform, compression: float) -> Spectrum:
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


def distillation_loss(found: Spectrum, taught: Spectrum, clean: Spectrum, noisy: Spectrum) -> Tensor:
    """Distance from a teacher's compressed magnitude, complex spectrum and mask, counted where the teacher is right.

    The mask is what is left of the noisy input's compressed magnitude, at most 2: in it quiet bins count like loud
    ones. Gradients go to `found` alone.

    Args:
        found, taught, clean, noisy: magnitudes (B, T, F) and spectra (B, T, F, 2) of `compressed_spectrum`.
    """
    magnitude, spectrum = (estimate - target.detach() for estimate, target in zip(found, taught, strict=True))
    mask = (found[0] / noisy[0]).clamp_max(MOST_MASK) - (taught[0] / noisy[0]).clamp_max(MOST_MASK).detach()
    error = magnitude.square() + 0.3 * spectrum.square().sum(-1) + mask.square()
    return (trust(found[1], taught[1], clean[1], noisy[1]) * error).mean()


@torch.no_grad()
def trust(found: Tensor, taught: Tensor, clean: Tensor, noisy: Tensor) -> Tensor:
    """Weight of a teacher by bin, (B, T, F) in [0, 1]: 1 where it is right, 0 where it is far from the clean spectrum.

    The product of two shares: of the student's error in the student's and the teacher's together, and of the noise in
    the noise's and the teacher's together. So a teacher that is no better than the student, or than no enhancement,
    counts half. Errors are squared distances of compressed spectra (B, T, F, 2), meant over `TRUST_WINDOW` bins around:
    those of a single bin are small by chance.
    """
    of_student, of_teacher, of_noise = (_local_mean((x - clean).square().sum(-1)) for x in (found, taught, noisy))
    share: Tensor = of_student / (of_student + of_teacher + 1e-6)
    return share * (of_noise / (of_noise + of_teacher + 1e-6))


def _local_mean(power: Tensor) -> Tensor:
    """Mean over the bins and frames around each, (B, T, F) -> the same shape; over fewer at the edges."""
    around = (TRUST_WINDOW[0] // 2, TRUST_WINDOW[1] // 2)
    return nn.functional.avg_pool2d(power, TRUST_WINDOW, stride=1, padding=around, count_include_pad=False)


class Objective(nn.Module):
    """Training objective: the weighted sum of all terms whose weight is not zero.

    The one for a teacher's part is computed where there is a teacher.
    """

    def __init__(self, config: LossConfig, audio: AudioConfig, compression: float) -> None:
        super().__init__()
        self.config, self.compression = config, compression
        self.transform = Transform(audio)
        self.disturbance = PerceptualDisturbance()

    def forward(
        self, enhanced: Tensor, clean: Tensor, noisy: Tensor, taught: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Values of the terms with a weight, unweighted, and their weighted sum under "loss".

        Args:
            enhanced, clean, noisy: (B, n_samples), in time with each other.
            taught: the same noisy sound as a teacher enhances it.
        """
        level = noisy.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-5)
        enhanced, clean = enhanced / level, clean / level
        found, wanted = self._compressed(enhanced), self._compressed(clean)
        terms = {
            "magnitude": lambda: magnitude_loss(found[0], wanted[0]),
            "complex": lambda: complex_loss(found[1], wanted[1]),
            "waveform": lambda: waveform_loss(enhanced, clean),
            "perceptual": lambda: self._perceptual(enhanced, clean),
            "phase": lambda: phase_loss(found[1], wanted[1]),
            "multi_resolution": lambda: multi_resolution_loss(enhanced, clean),
            "band_level": lambda: band_level_loss(enhanced, clean, self.transform),
        }
        if taught is not None:
            others = [self._compressed(wave / level) for wave in (taught, noisy)]
            terms["distillation"] = lambda: distillation_loss(found, others[0], wanted, others[1])
        weights = {name: weight for name, weight in dataclasses.asdict(self.config).items() if weight > 0}
        counted = {name: terms[name]() for name in weights if name in terms}
        total = torch.stack([weights[name] * value for name, value in counted.items()]).sum()
        return {"loss": total} | counted

    def _compressed(self, wave: Tensor) -> Spectrum:
        return compressed_spectrum(wave, self.transform, self.compression)

    def _perceptual(self, enhanced: Tensor, clean: Tensor) -> Tensor:
        """Distance of raw PESQ from 4.5 (perceptual.py); 0 for a target 60 dB below the input, which is no speech."""
        missing = 4.5 - raw_pesq(*self.disturbance(enhanced, clean))
        return (missing * (clean.square().mean(1) > 1e-6)).mean()


def _wrapped(angle: Tensor) -> Tensor:
    """Angle brought to [-pi, pi]."""
    return angle - 2 * math.pi * torch.round(angle / (2 * math.pi))
