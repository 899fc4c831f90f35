"""DNSMOS: the ratings of the package that the network comes in, for recordings of any length."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable

import numpy as np
import pytest

from edgese.audio import Wave
from edgese.errors import EdgeseError
from edgese.metrics.dnsmos import dnsmos

pytest.importorskip("speechmos", reason="the metrics extra is not installed")

RATE_HZ = 16_000


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[Wave, int], dict[str, float]]:
    """The package's own function; what it imports for another rating (P.808) is replaced by a spectrum of zeros."""
    librosa = types.SimpleNamespace(
        feature=types.SimpleNamespace(melspectrogram=lambda **_: np.zeros((120, 900), np.float32)),
        power_to_db=lambda power, ref: power,
    )
    monkeypatch.setitem(sys.modules, "librosa", librosa)
    monkeypatch.setitem(sys.modules, "requests", types.SimpleNamespace(session=None))
    found: Callable[[Wave, int], dict[str, float]] = importlib.import_module("speechmos.dnsmos").run
    return found


@pytest.mark.parametrize("seconds", [2.5, 11.2])
def test_ratings_are_those_of_the_package(
    seconds: float, published: Callable[[Wave, int], dict[str, float]], speech_like: Callable[..., Wave]
) -> None:
    """Shorter than the network's window, and longer by two windows."""
    rng = np.random.default_rng(0)
    n_samples = int(seconds * RATE_HZ)
    wave = (speech_like(n_samples) + 0.01 * rng.standard_normal(n_samples)).astype(np.float32)
    wanted = published(wave, RATE_HZ)
    found = dnsmos(wave)
    assert found == pytest.approx([wanted["sig_mos"], wanted["bak_mos"], wanted["ovrl_mos"]], abs=1e-4)


def test_what_a_file_would_clip_is_clipped(speech_like: Callable[..., Wave]) -> None:
    loud = 4 * speech_like(RATE_HZ)
    assert np.abs(loud).max() > 1
    assert dnsmos(loud) == dnsmos(np.clip(loud, -1, 1))


def test_no_samples_are_refused() -> None:
    with pytest.raises(EdgeseError, match="DNSMOS cannot score this recording"):
        dnsmos(np.zeros(0, np.float32))
