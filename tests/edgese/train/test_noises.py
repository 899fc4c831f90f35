"""Synthetic noises: of unit power, at any rate and length, each with the spectrum that its name promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from edgese.train import noises

KINDS: dict[str, Callable[..., noises.Wave]] = {
    function.__name__: function
    for function in (
        noises.synthetic_noise,
        noises.coloured,
        noises.air,
        noises.engine,
        noises.hum,
        noises.impacts,
    )
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length", "rate_hz"), [(8000, 16_000), (4001, 8000), (24_000, 48_000), (320, 16_000)])
def test_noise_is_finite_float32_of_unit_power(kind: str, length: int, rate_hz: int) -> None:
    for seed in range(8):
        wave = KINDS[kind](np.random.default_rng(seed), length, rate_hz)
        assert wave.shape == (length,)
        assert wave.dtype == np.float32
        assert np.mean(wave.astype(np.float64) ** 2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_depends_on_its_generator_alone_and_differs_each_time(kind: str) -> None:
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    first, second = (KINDS[kind](rng, 4000, 16_000) for _ in range(2))
    np.testing.assert_array_equal(KINDS[kind](same, 4000, 16_000), first)
    assert first.tobytes() != second.tobytes()


def spectrum_db(wave: np.ndarray, rate_hz: int) -> tuple[np.ndarray, np.ndarray]:
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    return np.fft.rfftfreq(len(wave), 1 / rate_hz), 10 * np.log10(power + 1e-12)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 48_000])
def test_hum_consists_of_mains_harmonics_at_any_rate(rate_hz: int) -> None:
    found = set()
    for seed in range(10):
        frequencies, level_db = spectrum_db(noises.hum(np.random.default_rng(seed), 2 * rate_hz, rate_hz), rate_hz)
        loud_hz = frequencies[level_db > level_db.max() - 20]
        mains_hz = min((50, 60), key=lambda base: np.abs(loud_hz - base * np.round(loud_hz / base)).max())
        assert np.abs(loud_hz - mains_hz * np.round(loud_hz / mains_hz)).max() < 2
        assert loud_hz.max() < rate_hz / 2
        found.add(mains_hz)
    assert found == {50, 60}


def test_engine_lies_below_speech_formants() -> None:
    for seed in range(20):
        frequencies, level_db = spectrum_db(noises.engine(np.random.default_rng(seed), 16_000, 16_000), 16_000)
        power = 10 ** (level_db / 10)
        assert power[frequencies < 1500].sum() > 0.5 * power.sum()


@pytest.mark.parametrize("tilt_db", [-6.0, 0.0, 2.0])
def test_tilt_is_in_decibels_per_octave(tilt_db: float) -> None:
    rng = np.random.default_rng(0)
    gains = noises.spectral_envelope(rng, 8001, 16_000, tilt_db, spread_db=0)
    octaves_db = 20 * np.log10(gains[[500, 1000, 2000, 4000, 8000]])
    np.testing.assert_allclose(np.diff(octaves_db), tilt_db, atol=0.01)
    assert gains[0] == 0  # no constant part


def test_envelope_is_smooth() -> None:
    for seed in range(10):
        gains = noises.spectral_envelope(np.random.default_rng(seed), 8001, 16_000, -3, spread_db=6)
        assert np.abs(np.diff(20 * np.log10(gains[100:]))).max() < 2  # dB a bin


def test_impacts_are_far_louder_at_their_peaks_than_on_average() -> None:
    peaks = [np.abs(noises.impacts(np.random.default_rng(seed), 32_000, 16_000)).max() for seed in range(20)]
    assert np.median(peaks) > 6


def test_stages_come_and_go_between_0_and_minus_25_db() -> None:
    spans = []
    for seed in range(30):
        gains_db = 20 * np.log10(noises.stages(np.random.default_rng(seed), 16_000, 16_000))
        assert gains_db.shape == (16_000,)
        assert -25.01 <= gains_db.min() <= gains_db.max() <= 0.01
        spans.append(gains_db.max() - gains_db.min())
    assert np.median(spans) > 6


def test_swell_wanders_around_its_mean() -> None:
    for seed in range(10):
        gains_db = 20 * np.log10(noises.swell(np.random.default_rng(seed), 16_000, 16_000))
        assert 0.1 < np.ptp(gains_db) < 40
        assert np.abs(np.diff(gains_db)).max() < 0.2  # dB a sample: no clicks


def test_silence_stays_silent() -> None:
    np.testing.assert_array_equal(noises.unit_power(np.zeros(10, np.float32)), 0)
