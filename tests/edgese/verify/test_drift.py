"""Projection of a stream's distance from PyTorch to ten hours: what settles passes, what adds up does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from edgese.verify.drift import horizon_h, projected_db

SECONDS = 600.0


def tenths_of(difference: NDArray[np.float64]) -> list[float]:
    """SNR in each tenth of a stream of unit level, given the difference's power at a thousand moments."""
    return [float(-10 * np.log10(part.mean())) for part in np.array_split(difference, 10)]


def moments() -> NDArray[np.float64]:
    return (np.arange(1000) + 0.5) * SECONDS / 1000


@pytest.mark.parametrize(("power", "fall_db"), [(1, 10), (2, 20)], ids=["random walk", "straight line"])
def test_errors_that_add_up_are_followed_to_ten_hours(power: int, fall_db: float) -> None:
    found = projected_db(tenths_of(1e-12 * moments() ** power), SECONDS)
    after = -10 * math.log10(1e-12 * (3600 * horizon_h(SECONDS)) ** power)
    assert found == pytest.approx(after, abs=0.15 * fall_db)  # the tenths' means lie a little off the line


def test_a_distance_that_has_settled_stays() -> None:
    rng = np.random.default_rng(0)
    for spread_db in (0.0, 0.5, 2.0):
        tenths = 120 + spread_db * rng.standard_normal(10)
        assert projected_db(tenths.tolist(), SECONDS) > 117 - 2 * spread_db


def test_a_state_of_a_minute_that_has_filled_passes() -> None:
    """As that with a time constant of 47 s, the slowest of the shipped networks: no more is to come."""
    filled = 1e-12 * (1 - np.exp(-moments() / 47.0))
    assert projected_db(tenths_of(filled), SECONDS) > 115


def test_a_recurrence_in_half_precision_does_not_pass() -> None:
    """87 to 74 dB within 24 s, as measured; the limit of FP16 is 40 dB."""
    assert projected_db(np.linspace(87, 74, 10).tolist(), 24.0) < 40  # 30.5


def test_a_short_stream_vouches_for_a_hundred_times_its_length() -> None:
    assert horizon_h(600.0) == 10
    assert horizon_h(36.0) == 1


def test_no_difference_at_all_stays_none() -> None:
    assert projected_db([math.inf] * 10, SECONDS) == pytest.approx(300)
    assert math.isnan(projected_db([*[100.0] * 9, math.nan], SECONDS))


def test_ten_hours_that_were_run_are_not_projected() -> None:
    tenths = np.linspace(120, 110, 10).tolist()
    assert projected_db(tenths, 12 * 3600.0) == pytest.approx(110, abs=2)
