"""Terms of the objective against their formulas in NumPy; what they must and must not react to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from edgese.config import AudioConfig, LossConfig
from edgese.model import stft as features
from edgese.model.enhancer import Transform
from edgese.train.losses import (
    POWER_FLOOR,
    RESOLUTIONS,
    Objective,
    band_level_loss,
    complex_loss,
    compressed_spectrum,
    distillation_loss,
    magnitude_loss,
    multi_resolution_loss,
    phase_loss,
    trust,
    waveform_loss,
)

N_SAMPLES = 8000  # not a whole number of hops
EVERY_TERM = LossConfig(perceptual=0.1, phase=0.1, multi_resolution=0.1, band_level=0.1)


@pytest.fixture
def transform(audio: AudioConfig) -> Transform:
    return Transform(audio)


@pytest.fixture
def objective(audio: AudioConfig) -> Objective:
    return Objective(EVERY_TERM, audio, 0.3)


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


def test_loss_is_the_weighted_sum_of_its_terms(audio: AudioConfig, clean: Tensor, noisy: Tensor) -> None:
    weights = LossConfig(
        magnitude=0.7,
        complex=0.2,
        waveform=3.0,
        perceptual=0.3,
        phase=0.4,
        multi_resolution=0.5,
        band_level=0.6,
        distillation=0.8,
    )
    terms = Objective(weights, audio, 0.3)(noisy, clean, noisy, (noisy + clean) / 2)
    assert set(terms) == {"loss", *dataclasses.asdict(weights)}
    assert all(term.ndim == 0 and term > 0 for term in terms.values())
    expected = sum(weight * float(terms[name]) for name, weight in dataclasses.asdict(weights).items())
    assert float(terms["loss"]) == pytest.approx(expected)


def test_term_without_weight_is_not_computed(audio: AudioConfig, clean: Tensor, noisy: Tensor) -> None:
    terms = Objective(LossConfig(magnitude=0, waveform=2.0, complex=0, perceptual=0, band_level=0), audio, 0.3)(
        noisy, clean, noisy
    )
    assert set(terms) == {"loss", "waveform"}
    assert float(terms["loss"]) == pytest.approx(2 * float(terms["waveform"]))


def test_perfect_enhancement_costs_nothing(objective: Objective, clean: Tensor, noisy: Tensor) -> None:
    terms = objective(clean, clean, noisy)
    # roots are kept from zero, where their slope is infinite: 0.01 of disturbance each
    assert all(float(term) == pytest.approx(0, abs=2e-3) for term in terms.values())


def test_nearer_to_clean_costs_less_in_every_term(objective: Objective, clean: Tensor, noisy: Tensor) -> None:
    costs = [objective(clean + share * (noisy - clean), clean, noisy) for share in (0.1, 0.5, 1)]
    for name in costs[0]:
        assert costs[0][name] < costs[1][name] < costs[2][name], name


@pytest.mark.parametrize("gain_db", [-40, 10])
def test_level_of_an_example_does_not_change_its_weight(
    gain_db: int, objective: Objective, clean: Tensor, noisy: Tensor
) -> None:
    gain = 10 ** (gain_db / 20)
    plain = objective(0.5 * noisy, clean, noisy)
    scaled = objective(gain * 0.5 * noisy, gain * clean, gain * noisy)
    for name, term in plain.items():
        assert float(scaled[name]) == pytest.approx(float(term), rel=1e-3), name


def test_wrong_phase_costs_nothing_in_magnitude_alone(objective: Objective, clean: Tensor, noisy: Tensor) -> None:
    terms = objective(-clean, clean, noisy)
    assert float(terms["magnitude"]) == pytest.approx(0, abs=1e-10)
    assert terms["complex"] > 0.01
    assert terms["waveform"] > 0.01


@pytest.mark.parametrize("kind", ["silent output", "silent clean", "all silent"])
def test_silence_gives_finite_losses_and_gradients(
    kind: str, objective: Objective, clean: Tensor, noisy: Tensor
) -> None:
    silent = torch.zeros_like(clean)
    enhanced = (silent.clone() if kind != "silent clean" else noisy.clone()).requires_grad_()
    target = clean if kind == "silent output" else silent
    heard = silent if kind == "all silent" else noisy
    terms = objective(enhanced, target, heard)
    terms["loss"].backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(enhanced.grad).all()


@pytest.mark.parametrize("term", ["magnitude", "complex", "phase", "multi_resolution"])
def test_gradient_is_that_of_the_value(term: str, audio: AudioConfig, clean: Tensor, noisy: Tensor) -> None:
    weights = dict.fromkeys(dataclasses.asdict(LossConfig()), 0.0) | {term: 1.0}
    objective = Objective(LossConfig(**weights), audio, 0.3).double()
    clean, noisy = clean[:1, 2000:3600].double(), noisy[:1, 2000:3600].double()
    assert torch.autograd.gradcheck(
        lambda wave: objective(wave, clean, noisy)["loss"],
        (0.5 * noisy).requires_grad_(),
        fast_mode=True,
        atol=1e-4,
    )


def test_phase_loss_sees_a_turn_of_all_bins_once_and_whole_turns_never() -> None:
    spectrum = torch.randn(1, 6, 5, 2, generator=torch.Generator().manual_seed(0))
    angles = torch.tensor(0.5)
    turned = torch.stack(
        [
            spectrum[..., 0] * angles.cos() - spectrum[..., 1] * angles.sin(),
            spectrum[..., 0] * angles.sin() + spectrum[..., 1] * angles.cos(),
        ],
        dim=-1,
    )
    # the same error in each bin and frame: group delay and instantaneous frequency are right
    assert float(phase_loss(turned, spectrum)) == pytest.approx(0.5, abs=1e-3)
    assert float(phase_loss(spectrum, spectrum)) == pytest.approx(0, abs=1e-6)


def test_multi_resolution_loss_is_its_formula(clean: Tensor, noisy: Tensor) -> None:
    expected = []
    for n_fft in RESOLUTIONS:
        window = np.hanning(n_fft + 1)[:-1]
        found, wanted = (
            [
                np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, n_fft)[:: n_fft // 4] * window))
                for padded in np.pad(waves.numpy(), ((0, 0), (n_fft // 2, n_fft // 2)), mode="reflect")
            ]
            for waves in (noisy, clean)
        )
        for a, b in zip(found, wanted, strict=True):
            a, b = np.sqrt(a**2 + POWER_FLOOR), np.sqrt(b**2 + POWER_FLOOR)
            expected.append(np.linalg.norm(a - b) / np.linalg.norm(b) + np.mean(np.abs(np.log(a) - np.log(b))))
    assert float(multi_resolution_loss(noisy, clean)) == pytest.approx(np.mean(expected), rel=1e-3)


def test_band_level_is_the_log_ratio_of_energies_and_finds_a_dulled_band(transform: Transform) -> None:
    noise = torch.randn(2, N_SAMPLES, generator=torch.Generator().manual_seed(3))
    assert band_level_loss(noise, noise, transform) == 0
    quieter = float(band_level_loss(0.1 * noise, noise, transform))  # -20 dB in every band: Huber's linear part
    assert quieter == pytest.approx(np.log(100) - 0.25, rel=1e-3)
    spectrum = torch.fft.rfft(noise)
    spectrum[:, round(N_SAMPLES * 6000 / 16_000) :] *= 0.1
    dulled = band_level_loss(torch.fft.irfft(spectrum, N_SAMPLES), noise, transform)
    assert float(dulled) == pytest.approx(0.2 * quieter, rel=0.1)  # two bands of ten


def test_band_level_leaves_out_pauses_and_silence(transform: Transform) -> None:
    noise = torch.randn(1, N_SAMPLES, generator=torch.Generator().manual_seed(3))
    target = noise * (torch.arange(N_SAMPLES) < N_SAMPLES // 2)
    filled = target + 0.5 * noise * (torch.arange(N_SAMPLES) >= N_SAMPLES // 2 + 512)
    assert band_level_loss(filled, target, transform) == 0
    silence = torch.zeros(1, N_SAMPLES, requires_grad=True)
    loss = band_level_loss(silence, torch.zeros(1, N_SAMPLES), transform)
    loss.backward()
    assert loss == 0
    assert silence.grad is not None
    assert not silence.grad.any()


# A teacher


def spectra(*waves: Tensor, transform: Transform) -> list[tuple[Tensor, Tensor]]:
    return [compressed_spectrum(wave, transform, 0.3) for wave in waves]


def test_trust_in_a_teacher_is_its_formula(transform: Transform, clean: Tensor, noisy: Tensor) -> None:
    part = slice(3000, 5000)
    taught = clean + 0.3 * (noisy - clean).flip(1)
    found, taught, truth, heard = (
        spectrum.double().numpy()
        for _, spectrum in spectra(*(x[:, part] for x in (noisy / 2, taught, clean, noisy)), transform=transform)
    )
    result = trust(*map(torch.from_numpy, (found, taught, truth, heard))).numpy()
    _, frames, bins = result.shape
    for t, f in [(0, 0), (1, 3), (frames - 1, bins - 1), (7, 100), (4, 256)]:
        around = slice(max(0, t - 2), t + 3), slice(max(0, f - 4), f + 5)
        student, teacher, noise = (
            np.square(x - truth).sum(-1)[(slice(None), *around)].mean((1, 2)) for x in (found, taught, heard)
        )
        expected = student / (student + teacher + 1e-6) * noise / (noise + teacher + 1e-6)
        np.testing.assert_allclose(result[:, t, f], expected, rtol=1e-6)


def test_trust_falls_with_the_teachers_error_from_one_to_nothing(
    transform: Transform, clean: Tensor, noisy: Tensor
) -> None:
    taught = [clean + share * (noisy - clean).flip(1) for share in (0, 0.3, 1, 10)]
    found, truth, *others = spectra(noisy, clean, *taught, transform=transform)
    means = [float(trust(found[1], teacher[1], truth[1], found[1]).mean()) for teacher in others]
    assert means[0] > 0.99
    assert 0.9 > means[1] > means[2] > 0.1
    assert means[3] < 0.05


def test_teacher_that_is_right_counts_like_the_truth(transform: Transform, clean: Tensor, noisy: Tensor) -> None:
    found, truth = spectra(noisy, clean, transform=transform)
    mask = (found[0] / found[0]).clamp_max(2) - (truth[0] / found[0]).clamp_max(2)
    expected = magnitude_loss(found[0], truth[0]) + 0.3 * complex_loss(found[1], truth[1]) + mask.square().mean()
    assert float(distillation_loss(found, truth, truth, found)) == pytest.approx(float(expected), rel=1e-2)


def test_gradients_of_a_teachers_part_reach_the_student_alone(
    transform: Transform, clean: Tensor, noisy: Tensor
) -> None:
    waves = [wave.clone().requires_grad_() for wave in (0.5 * noisy, 0.9 * clean, clean, noisy)]
    distillation_loss(*spectra(*waves, transform=transform)).backward()
    assert waves[0].grad.abs().sum() > 0
    assert [wave.grad for wave in waves[1:3]] == [None, None]  # the truth only weighs
