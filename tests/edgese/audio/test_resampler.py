"""Rate conversion piece by piece: against the sound itself, soxr, and itself cut otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from edgese.audio import Samples
from edgese.audio.frame_queue import FrameQueue
from edgese.audio.resampler import Resampler, resample

PAIRS = ((48_000, 16_000), (16_000, 48_000), (44_100, 16_000), (16_000, 44_100), (8_000, 16_000), (16_000, 8_000),
         (22_050, 16_000), (96_000, 16_000), (44_101, 16_000), (16_000, 44_101))  # fmt: skip


def tones(rate_hz: int, band_hz: int, n_samples: int) -> Samples:
    time = np.arange(n_samples) / rate_hz
    shares = np.array([0.05, 0.21, 0.4, 0.45])  # of the band's rate
    sound = np.sin(2 * np.pi * shares * band_hz * time[:, None] + shares).mean(1)
    return np.stack([sound, -0.5 * sound], 1).astype(np.float32)


def whole(wave: Samples, from_hz: int, to_hz: int) -> Samples:
    return np.concatenate(list(resample([wave], from_hz, to_hz, wave.shape[1])))


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_sound_stays_what_and_where_it_was(from_hz: int, to_hz: int) -> None:
    found = whole(tones(from_hz, min(from_hz, to_hz), from_hz // 4 + 3), from_hz, to_hz)
    wanted = tones(to_hz, min(from_hz, to_hz), len(found))
    inner = slice(len(found) // 5, -len(found) // 5)  # where the filter has sound on both sides
    error = np.square(found[inner] - wanted[inner]).mean() / np.square(wanted[inner]).mean()
    assert 10 * np.log10(error) < -95


@pytest.mark.parametrize(("from_hz", "to_hz"), PAIRS)
def test_any_cut_gives_the_same_samples_and_as_many_as_were_said(from_hz: int, to_hz: int) -> None:
    wave = tones(from_hz, min(from_hz, to_hz), 3001)
    resampler = Resampler(from_hz, to_hz, 2)
    found, n_in = [], 0
    for size in [1, 1, 0, 2, 500, 7, 1200, *[1] * 200, 3001]:
        block = wave[n_in : n_in + size]
        found.append(resampler.push(block))
        n_in += len(block)
        assert sum(map(len, found)) == resampler.ready(n_in)
    found.append(resampler.finish())
    assert sum(map(len, found)) == -(-3001 * to_hz // from_hz)
    np.testing.assert_allclose(np.concatenate(found), whole(wave, from_hz, to_hz), rtol=0, atol=1e-6)


def test_an_impulse_comes_out_no_later_than_the_reach_says() -> None:
    resampler = Resampler(48_000, 16_000, 1)
    assert resampler.reach == 168  # 3.5 ms
    assert len(resampler.push(np.ones((168, 1), np.float32))) == 0
    assert len(resampler.push(np.ones((1, 1), np.float32))) == 1


def test_what_cannot_be_held_is_left_out_as_by_soxr() -> None:
    above = np.sin(2 * np.pi * 8_400 * np.arange(24_000) / 48_000).astype(np.float32)[:, None]
    below = np.sin(2 * np.pi * 7_200 * np.arange(24_000) / 48_000).astype(np.float32)[:, None]
    assert np.abs(whole(above, 48_000, 16_000)[500:-500]).max() < 1e-4
    theirs = soxr.resample(below, 48_000, 16_000, quality="VHQ")
    np.testing.assert_allclose(whole(below, 48_000, 16_000)[500:-500], theirs[500:-500], atol=1e-4)


def test_a_resampler_that_was_reset_begins_anew() -> None:
    wave = tones(44_100, 16_000, 1000)
    resampler = Resampler(44_100, 16_000, 2)
    first = np.concatenate([resampler.push(wave), resampler.finish()])
    resampler.reset()
    np.testing.assert_array_equal(np.concatenate([resampler.push(wave), resampler.finish()]), first)


def test_a_queue_gives_back_what_came_in_cut_anew() -> None:
    queue, frames = FrameQueue(), np.arange(20, dtype=np.float32).reshape(10, 2)
    assert len(list(queue.keeping(np.split(frames, [1, 1, 4])))) == 4
    taken: list[NDArray[np.float32]] = [queue.take(n) for n in (2, 1, 5, 2)]
    np.testing.assert_array_equal(np.concatenate(taken), frames)
    assert queue.n_frames == 0
