"""Level of speech by octave: a filter's gain in its band and nowhere else, whatever the pauses hold."""

from __future__ import annotations

import numpy as np
import pytest

from edgese.audio import Wave
from edgese.errors import EdgeseError
from edgese.metrics.band_levels import CENTRES_HZ, band_levels_db

RATE_HZ = 16_000


def noise(seed: int, n_samples: int = 16_000) -> Wave:
    return (0.1 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def filtered(wave: Wave, low_hz: float, high_hz: float, gain_db: float) -> Wave:
    """The wave with what lies between two frequencies changed by a gain."""
    spectrum = np.fft.rfft(wave)
    hz = np.fft.rfftfreq(len(wave), 1 / RATE_HZ)
    spectrum[(hz >= low_hz) & (hz < high_hz)] *= 10 ** (gain_db / 20)
    return np.fft.irfft(spectrum, len(wave)).astype(np.float32)


@pytest.mark.parametrize("octave", range(len(CENTRES_HZ)))
def test_the_gain_of_an_octave_is_found_in_it_alone(octave: int) -> None:
    """To 1.2 dB: a window of 64 ms sees over the edges of the lowest octave, which is six bins wide."""
    exact = 1000 * 10 ** (0.3 * (octave - 3))
    clean = noise(octave)
    found = band_levels_db(clean, filtered(clean, exact * 10**-0.15, exact * 10**0.15, -6))
    assert found[octave] == pytest.approx(-6, abs=1.2)
    assert all(abs(level) < 0.1 for at, level in enumerate(found) if abs(at - octave) > 1)


def test_a_change_of_level_is_found_in_every_band() -> None:
    clean = noise(0)
    assert band_levels_db(clean, 2 * clean) == pytest.approx([20 * np.log10(2)] * 7, abs=1e-3)


def test_pauses_do_not_count() -> None:
    """Noise of -20 dB left in a pause moves no level, and silence there moves none."""
    clean = noise(0)
    clean[8_000:] *= 1e-3
    left = clean.copy()
    left[8_600:] = 0.1 * noise(1)[8_600:]
    assert band_levels_db(clean, left) == pytest.approx(band_levels_db(clean, clean), abs=1e-3)


def test_a_band_that_is_empty_in_both_is_right_and_one_that_is_filled_is_not() -> None:
    clean = filtered(noise(0), 3_000, 8_001, -200)
    assert band_levels_db(clean, clean)[-1] == pytest.approx(0, abs=1e-9)
    assert band_levels_db(clean, noise(0))[-1] > 40


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(EdgeseError, match="found 1023 samples, wanted at least 1024"):
        band_levels_db(noise(0, 1023), noise(0, 1023))
    with pytest.raises(EdgeseError, match="a clean recording that is silent"):
        band_levels_db(0 * noise(0), noise(0))
