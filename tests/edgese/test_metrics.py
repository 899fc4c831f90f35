"""Metrics against values that follow from their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from edgese import metrics

pytest.importorskip("pesq", reason="the metrics extra is not installed")


def noise(seed: int, n_samples: int = 32_000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def test_si_sdr_of_orthogonal_noise_is_its_energy_ratio() -> None:
    clean, other = noise(0), noise(1)
    clean, other = clean - clean.mean(), other - other.mean()
    other = other - clean * (other @ clean) / (clean @ clean)
    scaled = other * np.sqrt((clean @ clean) / (other @ other)) * np.float32(0.1)  # 20 dB below
    assert metrics.si_sdr(clean, 3 * (clean + scaled)) == pytest.approx(20.0, abs=1e-3)


def test_si_sdr_ignores_gain_and_offset() -> None:
    clean = noise(0)
    assert metrics.si_sdr(clean, 0.25 * clean + 0.1) > 60


def test_snr_is_infinite_only_for_equal_signals() -> None:
    clean = noise(0)
    assert metrics.snr_db(clean, clean) == float("inf")
    assert metrics.snr_db(clean, clean * np.float32(0.9)) == pytest.approx(20.0, abs=1e-3)


def test_a_perfect_copy_gets_the_best_scores(speech_like) -> None:
    clean = speech_like(48_000)
    assert metrics.pesq_wb(clean, clean) == pytest.approx(4.644, abs=1e-3)
    assert metrics.stoi(clean, clean) == pytest.approx(1.0, abs=1e-6)


def test_more_noise_scores_lower_in_every_metric(speech_like) -> None:
    clean = speech_like(48_000)
    little, much = (metrics.all_scores(clean, clean + gain * noise(3, len(clean))) for gain in (0.1, 1.0))
    assert set(little) == set(metrics.NAMES)
    assert all(little[name] > much[name] for name in metrics.NAMES)


def test_silence_is_refused_by_pesq_in_one_line() -> None:
    from edgese.errors import EdgeseError

    with pytest.raises(EdgeseError, match="PESQ cannot score"):
        metrics.pesq_wb(np.zeros(32_000, np.float32), np.zeros(32_000, np.float32))
