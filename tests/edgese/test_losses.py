"""Terms of the objective against their formulas in NumPy; what they must and must not react to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgese import features
from edgese.config import AudioConfig, LossConfig
from edgese.losses import POWER_FLOOR, complex_loss, compressed_spectrum, magnitude_loss, objective, waveform_loss
from edgese.model.waveform import Transform

N_SAMPLES = 4000  # not a whole number of hops


@pytest.fixture
def transform(audio: AudioConfig) -> Transform:
    return Transform(audio)


@pytest.fixture
def clean(speech_like) -> Tensor:
    return torch.from_numpy(np.stack([speech_like(N_SAMPLES, seed=seed) for seed in (0, 1)]))


@pytest.fixture
def noisy(clean: Tensor) -> Tensor:
    return clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def test_compressed_spectrum_is_the_definition_compressed(
    transform: Transform, audio: AudioConfig, clean: Tensor
) -> None:
    magnitude, spectrum = compressed_spectrum(clean, transform, 0.3)
    whole = N_SAMPLES // audio.hop * audio.hop
    exact = np.stack([features.stft(wave[:whole].astype(np.float64), audio) for wave in clean.numpy()])
    floored = np.sqrt(np.abs(exact) ** 2 + POWER_FLOOR)
    np.testing.assert_allclose(magnitude.numpy(), floored**0.3, rtol=1e-4)
    np.testing.assert_allclose(spectrum.numpy()[..., 0], (exact * floored**-0.7).real, atol=1e-3)
    np.testing.assert_allclose(spectrum.numpy()[..., 1], (exact * floored**-0.7).imag, atol=1e-3)


def test_terms_are_means_of_their_formulas() -> None:
    estimate, target = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    assert float(magnitude_loss(estimate, target)) == pytest.approx((0 + 4 + 0 + 9) / 4)
    assert float(complex_loss(estimate, target)) == pytest.approx((4 + 9) / 2)  # last axis: real and imaginary
    assert float(waveform_loss(estimate, target)) == pytest.approx((0 + 2 + 0 + 3) / 4)


def test_loss_is_the_weighted_sum_of_its_terms(transform: Transform, clean: Tensor, noisy: Tensor) -> None:
    weights = LossConfig(magnitude=0.7, complex=0.2, waveform=3.0)
    terms = objective(noisy, clean, noisy, transform, weights, 0.3)
    assert set(terms) == {"loss", "magnitude", "complex", "waveform"}
    assert all(term.ndim == 0 and term > 0 for term in terms.values())
    expected = 0.7 * terms["magnitude"] + 0.2 * terms["complex"] + 3.0 * terms["waveform"]
    assert float(terms["loss"]) == pytest.approx(float(expected))


def test_perfect_enhancement_costs_nothing(transform: Transform, clean: Tensor, noisy: Tensor) -> None:
    terms = objective(clean, clean, noisy, transform, LossConfig(), 0.3)
    assert all(float(term) == 0 for term in terms.values())


def test_nearer_to_clean_costs_less_in_every_term(transform: Transform, clean: Tensor, noisy: Tensor) -> None:
    costs = [
        objective(clean + share * (noisy - clean), clean, noisy, transform, LossConfig(), 0.3)
        for share in (0.1, 0.5, 1)
    ]
    for name in costs[0]:
        assert costs[0][name] < costs[1][name] < costs[2][name], name


@pytest.mark.parametrize("gain_db", [-40, 10])
def test_level_of_an_example_does_not_change_its_weight(
    gain_db: int, transform: Transform, clean: Tensor, noisy: Tensor
) -> None:
    gain = 10 ** (gain_db / 20)
    plain = objective(0.5 * noisy, clean, noisy, transform, LossConfig(), 0.3)
    scaled = objective(gain * 0.5 * noisy, gain * clean, gain * noisy, transform, LossConfig(), 0.3)
    for name, term in plain.items():
        assert float(scaled[name]) == pytest.approx(float(term), rel=1e-3), name


def test_wrong_phase_costs_nothing_in_magnitude_alone(transform: Transform, clean: Tensor, noisy: Tensor) -> None:
    terms = objective(-clean, clean, noisy, transform, LossConfig(), 0.3)
    assert float(terms["magnitude"]) == pytest.approx(0, abs=1e-10)
    assert terms["complex"] > 0.01
    assert terms["waveform"] > 0.01


@pytest.mark.parametrize("kind", ["silent output", "silent clean", "all silent"])
def test_silence_gives_finite_losses_and_gradients(
    kind: str, transform: Transform, clean: Tensor, noisy: Tensor
) -> None:
    silent = torch.zeros_like(clean)
    enhanced = (silent.clone() if kind != "silent clean" else noisy.clone()).requires_grad_()
    target = clean if kind == "silent output" else silent
    heard = silent if kind == "all silent" else noisy
    terms = objective(enhanced, target, heard, transform, LossConfig(), 0.3)
    terms["loss"].backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(enhanced.grad).all()


def test_gradient_is_that_of_the_value(transform: Transform, clean: Tensor, noisy: Tensor) -> None:
    transform = transform.double()
    clean, noisy = clean[:1, :640].double(), noisy[:1, :640].double()
    assert torch.autograd.gradcheck(
        lambda wave: objective(wave, clean, noisy, transform, LossConfig(waveform=0), 0.3)["loss"],
        (0.5 * noisy).requires_grad_(),
        fast_mode=True,
        atol=1e-4,
    )
