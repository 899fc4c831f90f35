"""Sound above the network's band: whole where the network changes nothing, and cut as the network cuts below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from edgese.audio import Samples
from edgese.enhance.signal_path import denoise
from edgese.networks import AudioConfig

RATES = (22_050, 44_100, 48_000, 96_000)


class Doing:
    """Denoiser that does one thing to sound at 16 kHz."""

    config, trained = AudioConfig(), True

    def __init__(self, gain: Any) -> None:
        self.gain = gain

    def __enter__(self) -> Doing:
        return self

    def __exit__(self, *exc: object) -> None: ...
    def prepare(self, *arguments: object) -> None: ...

    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]:
        at = 0
        for block in blocks:
            time = (at + np.arange(len(block))) / 16_000
            at += len(block)
            yield block * np.broadcast_to(self.gain(time), (n_channels, len(block))).T.astype(np.float32)
        yield np.zeros((64, n_channels), np.float32)


def noise(rate_hz: int, seconds: float = 1.0, n_channels: int = 1) -> Samples:
    shape = round(rate_hz * seconds), n_channels
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def through(gain: Any, wave: Samples, rate_hz: int, size: int = 5000, **options: Any) -> Samples:
    blocks = [wave[at : at + size] for at in range(0, len(wave), size)]
    return np.concatenate(list(denoise(blocks, rate_hz, wave.shape[1], Doing(gain), **options)))


def level_db(wave: Samples, rate_hz: int, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    hz = np.fft.rfftfreq(len(wave), 1 / rate_hz)
    return float(10 * np.log10(power[(hz >= low_hz) & (hz < high_hz)].mean() / len(wave)))


@pytest.mark.parametrize("rate_hz", RATES)
def test_a_network_that_changes_nothing_gives_back_the_whole_recording(rate_hz: int) -> None:
    wave = noise(rate_hz, 0.3, 2)
    np.testing.assert_allclose(through(lambda time: 1.0, wave, rate_hz), wave, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate_hz", RATES)
def test_the_band_above_is_cut_as_the_one_below_without_a_seam_between(rate_hz: int) -> None:
    cut = through(lambda time: 0.1, noise(rate_hz), rate_hz)[:, 0]
    for low_hz in range(3_000, rate_hz // 2 - 1000, 1000):
        change = level_db(cut, rate_hz, low_hz, low_hz + 1000) - level_db(
            noise(rate_hz)[:, 0], rate_hz, low_hz, low_hz + 1000
        )
        assert change == pytest.approx(-20, abs=0.7)


def test_the_gain_rises_within_a_hop_and_falls_without_haste() -> None:
    wave = noise(48_000)
    wave[19_200:28_800] *= 10  # stands out
    opened = through(lambda time: np.where((time > 0.4) & (time < 0.6), 1.0, 0.01), wave, 48_000)[:, 0]

    def above(begin_s: float) -> float:
        part = slice(round(begin_s * 48_000), round((begin_s + 0.02) * 48_000))
        return level_db(opened[part], 48_000, 10_000, 20_000) - level_db(wave[part, 0], 48_000, 10_000, 20_000)

    assert above(0.375) < -35  # 25 ms before
    assert above(0.412) > -3
    assert above(0.5) > -0.5
    assert -25 < above(0.63) < -6  # 10 dB in 35 ms
    assert above(0.9) < -35


def test_noise_above_does_not_come_and_go_with_the_words() -> None:
    wave, time = noise(48_000), np.arange(48_000) / 48_000
    opened = through(lambda time: np.where((time > 0.4) & (time < 0.8), 1.0, 0.01), wave, 48_000)[:, 0]
    word = (time > 0.45) & (time < 0.78)
    change = [
        level_db(opened[word], 48_000, *band) - level_db(wave[word, 0], 48_000, *band)
        for band in ((3_000, 7_000), (9_000, 23_000))
    ]
    assert change[0] == pytest.approx(0, abs=0.2)
    assert change[1] < -6


def test_the_gain_never_exceeds_1_and_channels_have_their_own() -> None:
    wave = noise(48_000, n_channels=2)
    found = through(lambda time: np.stack([0 * time + 4.0, 0 * time + 0.1]), wave, 48_000)
    changes = [
        level_db(found[:, c], 48_000, 10_000, 20_000) - level_db(wave[:, c], 48_000, 10_000, 20_000) for c in (0, 1)
    ]
    assert changes == pytest.approx([0, -20], abs=0.5)


@pytest.mark.parametrize("size", [1, 127, 4800, 10**6])
def test_the_split_into_blocks_changes_no_sample(size: int) -> None:
    wave = noise(44_100, 0.1)
    whole = through(lambda time: 0.5 + 0.5 * np.sin(40 * time), wave, 44_100)
    assert len(whole) == len(wave)
    np.testing.assert_allclose(
        through(lambda time: 0.5 + 0.5 * np.sin(40 * time), wave, 44_100, size), whole, rtol=0, atol=1e-6
    )


def test_sound_that_lies_above_alone_is_kept() -> None:
    time = np.arange(48_000) / 48_000
    wave = (0.3 * np.sin(2 * np.pi * 12_000 * time) * np.hanning(48_000)).astype(np.float32)[:, None]
    np.testing.assert_allclose(through(lambda time: 0.0, wave, 48_000), wave, atol=3e-3)


@pytest.mark.parametrize("n_samples", [1, 2, 400, 1536])
def test_the_shortest_recordings_come_back_whole(n_samples: int) -> None:
    wave = noise(48_000)[:n_samples]
    np.testing.assert_allclose(through(lambda time: 1.0, wave, 48_000), wave, rtol=0, atol=1e-6)
