"""The transform: one definition in NumPy, two forms in PyTorch, perfect reconstruction, and the latency it states."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgese.config import AudioConfig
from edgese.model import stft as features
from edgese.model.enhancer import Transform, WaveformEnhancer
from edgese.model.network import Network

# What is compared            tolerance  measured
RECONSTRUCTION = 1e-6  # NumPy: float64 5e-16, float32 2e-7; PyTorch float32: fft 2e-7, matmul 4e-7
FORMS = 5e-5  # of spectra with magnitudes up to 45, PyTorch float32: fft 5e-6, matmul 1.3e-5

OTHER_FRAMINGS = [
    AudioConfig(),
    AudioConfig(n_fft=512, hop=256),
    AudioConfig(n_fft=48, hop=16),
    AudioConfig(n_fft=320, hop=80),
]


class Identity(Network):
    """A network that changes nothing and remembers nothing."""

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {}


@pytest.fixture
def passthrough(audio: AudioConfig) -> WaveformEnhancer:
    return WaveformEnhancer(Identity(), audio)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("config", OTHER_FRAMINGS, ids=lambda config: f"{config.n_fft}-{config.hop}")
def test_inverse_restores_the_waveform(config: AudioConfig, dtype: type, speech_like) -> None:
    wave = (speech_like(16_000) + 0.3 * np.random.default_rng(0).uniform(-1, 1, 16_000)).clip(-1, 1).astype(dtype)
    restored = features.istft(features.stft(wave, config), config)
    assert len(restored) == -(-16_000 // config.hop) * config.hop - config.overlap
    assert np.abs(restored - wave[: len(restored)]).max() <= RECONSTRUCTION


def test_spectrum_is_the_sum_that_defines_it(speech_like) -> None:
    config = AudioConfig(n_fft=32, hop=8)
    wave = speech_like(100).astype(np.float64)
    spectrum = features.stft(wave, config)
    assert spectrum.shape == (13, 17)  # the last hop is filled up
    n = np.arange(32)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / 32)
    for t in (0, 1, 5, 12):
        samples = [wave[i] if 0 <= i < 100 else 0.0 for i in range((t + 1) * 8 - 32, (t + 1) * 8)]
        for f in (0, 3, 16):
            expected = np.sum(np.sqrt(hann) * samples * np.exp(-2j * np.pi * f * n / 32))
            assert spectrum[t, f] == pytest.approx(expected, abs=1e-12)


def test_window_is_periodic_and_its_squares_add_up(audio: AudioConfig) -> None:
    window = features.window(audio)
    assert window[0] == 0
    assert window[256] == 1
    np.testing.assert_allclose(window[1:], window[:0:-1], atol=1e-15)
    total = (window**2).reshape(-1, audio.hop).sum(axis=0)
    np.testing.assert_allclose(total * features.synthesis_scale(audio), 1, atol=1e-15)


def test_stream_starts_from_zeros(audio: AudioConfig, speech_like) -> None:
    wave = speech_like(640, seed=3).astype(np.float64) + 0.01
    silent = np.concatenate([np.zeros(audio.overlap), wave])
    np.testing.assert_array_equal(features.stft(wave, audio), features.stft(silent, audio)[3:])
    np.testing.assert_allclose(
        features.stft(wave, audio)[0], np.fft.rfft(features.window(audio) * silent[: audio.n_fft]), atol=1e-12
    )


def test_frame_ends_with_its_hop(audio: AudioConfig) -> None:
    wave = np.zeros(2048)
    wave[1024:] = 1  # begins with hop 8
    loud = np.abs(features.stft(wave, audio)).max(axis=1) > 0
    assert not loud[:8].any()
    assert loud[8:].all()


@pytest.mark.parametrize("form", ["fft", "matmul"])
@pytest.mark.parametrize("config", OTHER_FRAMINGS, ids=lambda config: f"{config.n_fft}-{config.hop}")
def test_torch_transform_equals_the_numpy_definition(config: AudioConfig, form: str, speech_like) -> None:
    waves = np.stack([speech_like(20 * config.hop, seed=seed) for seed in (0, 1)])
    transform = Transform(config)
    transform.form = form
    spectrum, before = transform(torch.from_numpy(waves), torch.zeros(2, config.overlap))
    expected = np.stack([features.stft(wave.astype(np.float64), config) for wave in waves])
    assert spectrum.shape == (2, 20, config.n_bins, 2)
    assert np.abs(spectrum.numpy()[..., 0] - expected.real).max() <= FORMS
    assert np.abs(spectrum.numpy()[..., 1] - expected.imag).max() <= FORMS
    np.testing.assert_array_equal(before.numpy(), waves[:, -config.overlap :])


@pytest.mark.parametrize("form", ["fft", "matmul"])
@pytest.mark.parametrize("config", OTHER_FRAMINGS, ids=lambda config: f"{config.n_fft}-{config.hop}")
def test_torch_inverse_equals_the_numpy_definition(config: AudioConfig, form: str) -> None:
    rng = np.random.default_rng(0)
    spectra = rng.standard_normal((2, 20, config.n_bins)) + 1j * rng.standard_normal((2, 20, config.n_bins))
    spectra[..., [0, -1]] = spectra[..., [0, -1]].real
    transform = Transform(config)
    transform.form = form
    packed = torch.from_numpy(np.stack([spectra.real, spectra.imag], axis=-1)).float()
    wave, _ = transform.inverse(packed, torch.zeros(2, config.overlap))
    assert wave.shape == (2, 20 * config.hop)
    expected = np.stack([features.istft(spectrum, config) for spectrum in spectra])
    assert np.abs(wave.numpy()[:, config.overlap :] - expected).max() <= RECONSTRUCTION


@pytest.mark.parametrize("form", ["fft", "matmul"])
def test_both_directions_carry_their_memory_across_calls(form: str, audio: AudioConfig, speech_like) -> None:
    wave = torch.from_numpy(speech_like(12 * audio.hop))[None]
    transform = Transform(audio)
    transform.form = form
    zeros = torch.zeros(1, audio.overlap)
    whole, _ = transform.inverse(transform(wave, zeros)[0], zeros)
    analysis, synthesis, pieces = zeros, zeros, []
    for piece in wave.split([audio.hop, 4 * audio.hop, 2 * audio.hop, 5 * audio.hop], dim=1):
        spectrum, analysis = transform(piece, analysis)
        samples, synthesis = transform.inverse(spectrum, synthesis)
        pieces.append(samples)
    assert (torch.cat(pieces, dim=1) - whole).abs().max() <= RECONSTRUCTION


@pytest.mark.parametrize("form", ["fft", "matmul"])
def test_output_runs_one_overlap_behind_the_input(form: str, passthrough: WaveformEnhancer, speech_like) -> None:
    passthrough.transform.form = form
    wave = torch.from_numpy(speech_like(25_600))[None]
    output, _ = passthrough(wave, passthrough.initial_state())
    assert (output[:, 384:] - wave[:, :-384]).abs().max() <= RECONSTRUCTION
    assert output[:, :384].abs().max() <= RECONSTRUCTION


@pytest.mark.parametrize("place", [0, 1, 127, 128, 1000])
def test_impulse_comes_out_one_overlap_later(place: int, passthrough: WaveformEnhancer, audio: AudioConfig) -> None:
    wave = torch.zeros(1, 2560)
    wave[0, place] = 1
    output, _ = passthrough(wave, passthrough.initial_state())
    assert int(output.abs().argmax()) - place == audio.overlap == 384
    assert float(output[0, place + audio.overlap]) == pytest.approx(1, abs=RECONSTRUCTION)


def test_stated_latency_is_what_a_sample_at_its_worst_place_waits(
    passthrough: WaveformEnhancer, audio: AudioConfig
) -> None:
    waits = []
    for place in range(1024, 1024 + audio.hop):
        wave, state = torch.zeros(1, 2560), passthrough.initial_state()
        wave[0, place] = 1
        for number, hop in enumerate(wave.split(audio.hop, dim=1)):
            output, state = passthrough(hop, state)
            if output.abs().max() > 0.5:
                waits.append((number + 1) * audio.hop - place)  # samples gathered, the impulse's own included
                break
    assert len(waits) == audio.hop
    assert max(waits) == audio.latency_samples == 512
    assert audio.latency_ms == 32


def test_enhance_is_in_time_with_its_input_and_equally_long(passthrough: WaveformEnhancer, speech_like) -> None:
    for n_samples in (1, 127, 128, 129, 5000):
        wave = torch.from_numpy(speech_like(6000)[-n_samples:].copy())[None]
        wave[0, -1] = 0.5  # the tail counts
        output = passthrough.enhance(wave, block=7)
        assert output.shape == wave.shape
        assert (output - wave).abs().max() <= RECONSTRUCTION
