"""Lift of quiet sound for the network: exactly undone, without a jump, and nothing at usual levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from edgese.audio import Samples
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.lift import LOUD_ENOUGH_DBFS, Lift
from edgese.enhance.signal_path import denoise
from edgese.graphs.bundles import open_verified, shipped_bundle

RATE_HZ = 16_000


def sound(seconds: float, level_dbfs: float, seed: int = 0, n_channels: int = 1) -> Samples:
    noise = np.random.default_rng(seed).standard_normal((round(seconds * RATE_HZ), n_channels))
    return (10 ** (level_dbfs / 20) * noise).astype(np.float32)


def cut(wave: Samples, *lengths: int) -> Iterable[Samples]:
    """Blocks of these lengths in turn."""
    at = 0
    while at < len(wave):
        for length in lengths:
            if at < len(wave):
                yield wave[at : at + length]
                at += length


def raised(wave: Samples, *lengths: int) -> Samples:
    return np.concatenate(list(Lift(RATE_HZ, wave.shape[1]).raised(cut(wave, *lengths or (5000,)))))


def level_dbfs(wave: Samples) -> float:
    return float(10 * np.log10(np.mean(wave.astype(np.float64) ** 2)))


@pytest.mark.parametrize("level", [0.0, -20.0, -39.0])
def test_usual_levels_pass_bit_for_bit(level: float) -> None:
    """Pauses of some seconds, and digital silence in them, too."""
    wave = sound(9, level)
    wave[20_000:90_000] *= 1e-4
    wave[100_000:110_000] = 0
    lift = Lift(RATE_HZ, 1)
    there = list(lift.raised(cut(wave, 777)))
    np.testing.assert_array_equal(np.concatenate(there), wave)
    np.testing.assert_array_equal(np.concatenate(list(lift.taken_back(there))), wave)


@pytest.mark.parametrize(("level", "lifted"), [(-45, -35), (-60, -30), (-75, -30), (-90, -40)])
def test_quiet_sound_is_lifted(level: float, lifted: float) -> None:
    """By 2 dB a dB at first, then to -30 dBFS, by 50 dB at most."""
    assert level < LOUD_ENOUGH_DBFS
    assert level_dbfs(raised(sound(3, level))) == pytest.approx(lifted, abs=0.5)


def test_the_lift_is_taken_back_to_the_sample() -> None:
    """Whatever blocks the network gives; behind the end, too, where it answers silence."""
    wave = np.concatenate([sound(15, -70), sound(5, -30, seed=1), sound(25, -55, seed=2)])
    lift = Lift(RATE_HZ, 1)

    def network(blocks: Iterable[Samples]) -> Iterable[Samples]:
        out = np.concatenate([*blocks, np.zeros((64, 1), np.float32)])
        yield from cut(out, 2048, 3, 128)

    back = np.concatenate(list(lift.taken_back(network(lift.raised(cut(wave, 4096, 100))))))
    assert len(back) == len(wave) + 64
    np.testing.assert_allclose(back[: len(wave)], wave, rtol=2e-7)


def test_the_gain_moves_without_a_jump_and_before_loud_sound_comes() -> None:
    wave = np.full((45 * RATE_HZ, 1), 10 ** (-70 / 20), np.float32)
    wave[1::2] *= -1  # of constant power
    wave[25 * RATE_HZ : 26 * RATE_HZ] *= 1000
    gain_db = 20 * np.log10(raised(wave)[:, 0] / wave[:, 0])
    assert np.abs(np.diff(gain_db)).max() * RATE_HZ < 30  # dB a second
    assert gain_db[0] == pytest.approx(40, abs=0.1)
    assert np.abs(gain_db[17 * RATE_HZ : 34 * RATE_HZ]).max() < 1e-5
    assert gain_db[-1] == pytest.approx(40, abs=0.1)


def test_blocks_and_channels_make_no_difference() -> None:
    both = np.concatenate([sound(4, -65), sound(4, -20, seed=1)], axis=1)
    together = raised(both)
    np.testing.assert_array_equal(together, raised(both, 1, 12_345, 700))
    for channel in range(2):
        np.testing.assert_array_equal(together[:, channel : channel + 1], raised(both[:, channel : channel + 1]))


@pytest.mark.parametrize("offset", [0.2, -0.02])
def test_an_offset_is_taken_out(offset: float) -> None:
    wave = sound(5, -40)
    found = raised(wave + np.float32(offset))
    assert abs(float(found.mean())) < 0.03 * float(wave.std())
    np.testing.assert_allclose(found - found.mean(), wave - wave.mean(), atol=1e-6)


def test_a_click_is_no_offset() -> None:
    click = np.zeros((2000, 1), np.float32)
    click[0] = 1
    np.testing.assert_array_equal(raised(click), click)


def test_an_offset_does_not_hide_that_the_sound_is_quiet() -> None:
    found = raised(sound(5, -60) + np.float32(0.1))
    assert level_dbfs(found - found.mean()) == pytest.approx(-30, abs=0.5)


@pytest.mark.parametrize("way_back", [True, False])
def test_nothing_of_a_long_recording_is_kept(way_back: bool) -> None:
    """Neither what decided the gains nor, where nothing is taken back, the gains."""
    lift = Lift(RATE_HZ, 1)
    there = lift.raised((sound(1, -60, seed=second) for second in range(60)), way_back=way_back)
    for _ in lift.taken_back(there) if way_back else there:
        assert len(lift._sums) + len(lift._targets) + len(lift._gains) < 80


def test_an_empty_recording_stays_empty() -> None:
    assert list(Lift(RATE_HZ, 2).raised([np.zeros((0, 2), np.float32)])) == []


def test_what_is_quiet_is_enhanced_as_if_it_were_not(speech_like: Callable[..., np.ndarray]) -> None:
    """The same speech 40 dB lower comes out 40 dB lower, and nothing else."""
    rng = np.random.default_rng(0)
    wave = speech_like(2 * RATE_HZ)
    wave = (wave / wave.std() * 10 ** (-30 / 20) + 1e-3 * rng.standard_normal(len(wave))).astype(np.float32)[:, None]
    with Denoiser(open_verified(shipped_bundle("small")), block=16) as denoiser:
        outputs = [
            np.concatenate(list(denoise([np.float32(gain) * wave], RATE_HZ, 1, denoiser))) / np.float32(gain)
            for gain in (1, 1e-2)
        ]
    difference_db = level_dbfs(outputs[0]) - level_dbfs(outputs[1] - outputs[0])
    assert difference_db > 20
