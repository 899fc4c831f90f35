"""The differentiable PESQ against the standard's own program, and what it must and must not hear."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from edgese.metrics.scores import pesq_wb
from edgese.train.perceptual import PerceptualDisturbance, raw_pesq

pytest.importorskip("pesq")

N_SAMPLES = 48_000


@pytest.fixture(scope="module")
def disturbance() -> PerceptualDisturbance:
    return PerceptualDisturbance()


@pytest.fixture(scope="module")
def clean(speech_like) -> Tensor:
    return torch.from_numpy(np.stack([speech_like(N_SAMPLES, seed=seed) for seed in range(4)]))


@pytest.fixture(scope="module")
def noise() -> Tensor:
    """As loud as the speech and of its colour: power falls by 12 dB an octave."""
    spectrum = torch.fft.rfft(torch.randn(4, N_SAMPLES, generator=torch.Generator().manual_seed(0)))
    hz = torch.fft.rfftfreq(N_SAMPLES, 1 / 16_000)
    wave = torch.fft.irfft(spectrum / (1 + (hz / 300) ** 2), N_SAMPLES)
    return 0.1 * wave / wave.std(1, keepdim=True)


def _score(disturbance: PerceptualDisturbance, enhanced: Tensor, clean: Tensor) -> np.ndarray:
    """MOS-LQO of the raw score in the wideband form (P.862.2, section 5)."""
    raw = raw_pesq(*disturbance(enhanced, clean)).detach().numpy()
    return 0.999 + 4 / (1 + np.exp(-1.3669 * raw + 3.8224))


def test_agrees_with_the_reference_program(disturbance: PerceptualDisturbance, clean: Tensor, noise: Tensor) -> None:
    """Within 0.3 each and 0.15 on average: alignment in time and bad intervals are what is left out."""
    ours, reference = [], []
    for snr_db in (0, 10, 20, 30, 40, 50):
        noisy = clean + 10 ** (-snr_db / 20) * noise
        ours.extend(_score(disturbance, noisy, clean))
        reference.extend(pesq_wb(c, n) for c, n in zip(clean.numpy(), noisy.numpy(), strict=True))
    difference = np.abs(np.subtract(ours, reference))
    assert np.ptp(reference) > 1.5  # of bad and of good sound
    assert difference.mean() < 0.15, difference
    assert difference.max() < 0.3, difference
    assert np.corrcoef(ours, reference)[0, 1] > 0.98


def test_equal_waves_disturb_nothing(disturbance: PerceptualDisturbance, clean: Tensor) -> None:
    symmetric, asymmetric = disturbance(clean, clean)
    assert float(symmetric.max()) < 0.02
    assert float(asymmetric.max()) < 0.02
    assert _score(disturbance, clean, clean) == pytest.approx(4.64, abs=0.01)  # the top of the wideband scale


def test_level_is_not_heard(disturbance: PerceptualDisturbance, clean: Tensor, noise: Tensor) -> None:
    noisy = clean + 0.2 * noise
    wanted = _score(disturbance, noisy, clean)
    for gain_db in (-40, 20):
        found = _score(disturbance, 10 ** (gain_db / 20) * noisy, clean)
        np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("change", ["noisy", "nothing", "silence", "silent target", "all silent"])
def test_gradients_are_finite(change: str, disturbance: PerceptualDisturbance, clean: Tensor, noise: Tensor) -> None:
    silent = torch.zeros_like(clean)
    enhanced: dict[str, Callable[[], Tensor]] = {
        "noisy": lambda: clean + noise,
        "nothing": lambda: clean,
        "silence": lambda: silent,
        "silent target": lambda: noise,
        "all silent": lambda: silent,
    }
    wave = enhanced[change]().clone().requires_grad_()
    missing = 4.5 - raw_pesq(*disturbance(wave, silent if "silent" in change else clean))
    missing.sum().backward()
    assert torch.isfinite(missing).all()
    assert wave.grad is not None
    assert torch.isfinite(wave.grad).all()


def test_following_the_gradient_raises_the_true_score(
    disturbance: PerceptualDisturbance, clean: Tensor, noise: Tensor
) -> None:
    """A spectral gain per frame, moved by the loss alone, must please the reference program too."""
    noisy = (clean + 0.1 * noise)[:1]
    window = torch.hann_window(512)
    spectrum = torch.stft(noisy, 512, 128, window=window, return_complex=True)
    gain = torch.full(spectrum.shape, 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([gain], lr=0.1)
    before = pesq_wb(clean[0].numpy(), noisy[0].numpy())
    for _ in range(40):
        wave = torch.istft(spectrum * torch.sigmoid(gain), 512, 128, window=window, length=N_SAMPLES)
        optimizer.zero_grad()
        (4.5 - raw_pesq(*disturbance(wave, clean[:1]))).sum().backward()
        optimizer.step()
    assert pesq_wb(clean[0].numpy(), wave[0].detach().numpy()) > before + 0.5
