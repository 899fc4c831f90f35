"""How far arrays are apart, against numbers made by hand, and against Polygraphy's where those can be trusted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from polygraphy.comparator import IterationResult, SimpleCompareFunc

from edgese.errors import VerificationError
from edgese.metrics.difference import (
    Agreement,
    TensorError,
    agreement,
    largest_difference,
    largest_value,
    relative_difference,
    tensor_error,
)
from edgese.metrics.scores import log_spectral_distance, wave_error

RATE_HZ = 16_000
NAN, INF = math.nan, math.inf


def tone(amplitude: float = 0.5, frequency_hz: float = 440.0, n_samples: int = RATE_HZ) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(n_samples) / RATE_HZ)).astype(np.float32)


# Tensors


def test_a_tensor_s_figures_are_those_made_by_hand() -> None:
    wanted, found = np.array([[3.0, 0.0], [0.0, -4.0]]), np.array([[3.0, 0.5], [0.0, -2.0]])
    assert tensor_error("y", wanted, found) == TensorError(
        "y",
        max_abs=2.0,
        mean_abs=2.5 / 4,
        relative=2.0 / 4.0,
        cosine=pytest.approx(17 / (5 * math.sqrt(9 + 0.25 + 4)), abs=1e-15),
        n_bad=0,
    )


def test_equal_tensors_are_no_way_apart() -> None:
    array = np.array([1.0, -2.0, 3.0], np.float32)
    error = tensor_error("y", array, array.copy())
    assert (error.max_abs, error.mean_abs, error.relative, error.n_bad) == (0.0, 0.0, 0.0, 0)
    assert error.cosine == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize(("factor", "cosine"), [(2.0, 1.0), (-1.0, -1.0)])
def test_the_cosine_is_that_of_the_direction_alone(factor: float, cosine: float) -> None:
    array = np.linspace(-1, 3, 20)
    assert tensor_error("y", array, factor * array).cosine == pytest.approx(cosine, abs=1e-15)


def test_tensors_at_right_angles_have_a_cosine_of_zero() -> None:
    assert tensor_error("y", np.array([1.0, 0.0]), np.array([0.0, 1.0])).cosine == 0.0


@pytest.mark.parametrize(
    ("wanted", "found", "relative", "cosine"),
    [([0.0, 0.0], [0.0, 0.0], 0.0, 1.0), ([0.0, 0.0], [0.0, 1e-9], INF, 0.0), ([0.0, 1.0], [0.0, 0.0], 1.0, 0.0)],
)
def test_zeros_agree_with_zeros_only(wanted: list[float], found: list[float], relative: float, cosine: float) -> None:
    error = tensor_error("y", np.array(wanted), np.array(found))
    assert (error.relative, error.cosine) == (relative, cosine)


def test_differences_are_taken_in_float64() -> None:
    """Their own types would run over."""
    assert tensor_error("y", np.array([-100], np.int8), np.array([100], np.int8)).max_abs == 200.0
    assert tensor_error("y", np.array([60_000], np.float16), np.array([-60_000], np.float16)).max_abs == 120_000.0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_what_is_not_finite_is_counted_and_meets_no_limit(bad: float) -> None:
    error = tensor_error("y", np.ones(5), np.array([1.0, bad, 1.0, bad, 1.0]))
    assert error.n_bad == 2
    figures = (error.max_abs, error.mean_abs, error.relative, error.cosine)
    assert all(math.isnan(figure) for figure in figures)
    assert not any(figure <= INF or figure >= -INF for figure in figures)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_nothing_agrees_with_what_is_not_finite_itself(bad: float) -> None:
    error = tensor_error("y", np.array([1.0, bad]), np.array([1.0, 2.0]))
    assert not error.max_abs <= 1e30
    assert not error.relative <= 1e30
    assert not error.cosine >= -1.0


@pytest.mark.parametrize("wanted", [(2, 3), (1, 6), (6,), (1,), (0,), (2, 0)])
@pytest.mark.parametrize("found", [(3, 2), (0,), (2, 0)])
def test_other_shapes_and_empty_tensors_are_refused(wanted: tuple[int, ...], found: tuple[int, ...]) -> None:
    with pytest.raises(VerificationError) as refused:
        tensor_error("ssm_0", np.zeros(wanted), np.zeros(found))
    assert str(refused.value) == f"ssm_0: found shape {found}, wanted {wanted} and at least one value"


# Waveforms


def test_a_quieter_waveform_has_the_figures_made_by_hand() -> None:
    """A tenth is lost: 20 dB of SNR, nothing of its shape, and 0.915 dB in each band that counts."""
    wave = tone()
    error = wave_error(wave, np.float32(0.9) * wave)
    assert error.max_abs == pytest.approx(0.05, rel=1e-6)
    assert error.snr_db == pytest.approx(20.0, abs=1e-5)
    assert error.si_sdr_db > 120
    assert error.lsd_db == pytest.approx(log_spectral_distance(wave, np.float32(0.9) * wave))
    assert 0 < error.lsd_db < -20 * math.log10(0.9)  # what is below the floor does not count


def test_another_tone_beside_it_is_its_distortion() -> None:
    wave, beside = tone(), tone(0.05, 1000.0)
    error = wave_error(wave, wave + beside)
    assert error.max_abs == pytest.approx(0.05, rel=1e-3)
    assert error.snr_db == pytest.approx(20.0, abs=1e-3)
    assert error.si_sdr_db == pytest.approx(20.0, abs=1e-3)
    assert error.lsd_db > 1


def test_equal_waveforms_have_no_noise_to_speak_of() -> None:
    error = wave_error(tone(), tone())
    assert (error.max_abs, error.snr_db, error.lsd_db) == (0.0, INF, 0.0)
    assert error.si_sdr_db > 120


def test_silence_for_sound_is_all_lost() -> None:
    error = wave_error(tone(), 0 * tone())
    assert error.max_abs == pytest.approx(0.5, rel=1e-3)
    assert error.snr_db == 0.0
    assert error.lsd_db > 3


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_waveform_that_is_not_finite_has_no_figures(bad: float) -> None:
    found = tone()
    found[100] = bad
    assert all(math.isnan(figure) for figure in dataclasses.astuple(wave_error(tone(), found)))


@pytest.mark.parametrize(
    ("wanted", "found", "reason"),
    [
        (0 * tone(), tone(), "waveform: nothing to compare with: LSD cannot score this pair"),
        (0 * tone(), 0 * tone(), "waveform: nothing to compare with: LSD cannot score this pair"),
        (tone(n_samples=511), tone(n_samples=511), "waveform: nothing to compare with"),
        (tone(), tone(n_samples=RATE_HZ - 1), r"waveform: found shape \(15999,\), wanted \(16000,\)"),
        (tone(n_samples=0), tone(n_samples=0), r"waveform: found shape \(0,\), wanted \(0,\) and at least one value"),
    ],
)
def test_waveforms_that_prove_nothing_are_refused(wanted: np.ndarray, found: np.ndarray, reason: str) -> None:
    with pytest.raises(VerificationError, match=reason):
        wave_error(wanted, found)


# Polygraphy's comparator: it gives the same differences, and passes what must fail. So it is measured with, not used.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_polygraphy_finds_the_same_differences(dtype: type) -> None:
    rng = np.random.default_rng(0)
    wanted = {name: rng.standard_normal(shape).astype(dtype) for name, shape in (("y", (3, 40)), ("ssm", (2, 4, 8)))}
    found = {name: array + (1e-3 * rng.standard_normal(array.shape)).astype(dtype) for name, array in wanted.items()}
    compare = SimpleCompareFunc(check_error_stat="max", atol=1, rtol=1)
    theirs = compare(IterationResult(found), IterationResult(wanted))
    assert theirs.keys() == wanted.keys()
    for name, result in theirs.items():
        ours = tensor_error(name, wanted[name], found[name])
        assert (result.max_absdiff, result.mean_absdiff) == pytest.approx((ours.max_abs, ours.mean_abs), rel=1e-6)


def test_polygraphy_passes_a_missing_output_and_an_empty_result() -> None:
    """The faults that keep Polygraphy's comparator out of the verdict."""
    compare = SimpleCompareFunc(atol=1e-5, rtol=1e-5)
    y, ssm = np.ones(3), np.ones(4)
    partial = compare(IterationResult({"y": y, "ssm": ssm}), IterationResult({"y": y}))
    assert "ssm" not in partial
    assert all(partial.values())
    nothing = compare(IterationResult({}), IterationResult({}))
    assert all(nothing.values())
    assert len(nothing) == 0


def test_agreement_names_every_limit_that_is_broken() -> None:
    wave = np.ones(256, np.float32)
    fp32: dict[str, Any] = {"least_snr_db": 100.0, "most_abs": 1e-5}
    fp16: dict[str, Any] = {"least_snr_db": 40.0, "most_abs": None}
    assert agreement(wave, wave, **fp32) == Agreement(np.inf, 0.0, ())
    assert agreement(wave, wave * np.float32(1.001), **fp16).failures == ()
    assert len(agreement(wave, wave * np.float32(1.001), **fp32).failures) == 2
    assert agreement(wave, wave * np.float32(1.02), **fp16).failures == ("SNR 34.0 dB, limit 40 dB",)
    assert agreement(wave, wave * np.float32(np.nan), **fp16).failures == ("NaN or Inf",)
    assert agreement(wave, wave[1:], **fp16).failures == ("found shape (255,), wanted (256,)",)
    assert "at least one sample" in agreement(wave[:0], wave[:0], **fp16).failures[0]
    assert "silent" in agreement(wave * 0, wave * 0, **fp16).failures[0]


def test_differences_of_other_shapes_or_of_nan_are_infinite() -> None:
    wave = np.array([0.0, -2.0, 1.0])
    assert largest_difference(wave, wave) == 0
    assert largest_difference(wave, wave + np.array([0, 0.5, -0.25])) == 0.5
    assert relative_difference(wave, wave + np.array([0, 0.5, -0.25])) == 0.25
    assert largest_difference(wave, wave[:2]) == np.inf
    assert largest_difference(wave, np.array([0.0, np.nan, 1.0])) == np.inf
    assert relative_difference(np.zeros(2), np.array([0.0, 0.5])) == 0.5
    assert largest_value(np.array([np.inf, -3.0, np.nan])) == 3
