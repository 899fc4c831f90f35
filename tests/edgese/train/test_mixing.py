"""Mixtures: every example by its number, SNR and level as asked, each augmentation does what its name says."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgese.audio import Wave
from edgese.train.data import DataSets, open_data
from edgese.train.mixing import numbered_generator, validation_config

from ..helpers.data_folders import (
    EVERYTHING,
    PLAIN,
    PROBABILITIES,
    RATE_HZ,
    SpeechLike,
    strength,
    tone,
    write,
    write_tones,
)

Open = Callable[..., DataSets]


@pytest.fixture(params=["mixing", "pairs"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A data folder of each layout."""
    path: Path = request.getfixturevalue(request.param)
    return path


def active_level(wave: Wave) -> float:
    """RMS of the 20 ms frames that are within 40 dB of the loudest."""
    powers = [float(np.mean(frame.astype(np.float64) ** 2)) for frame in np.split(wave, len(wave) // 320)]
    return float(np.sqrt(np.mean([power for power in powers if power > 1e-4 * max(powers)])))


# Examples


def test_examples_are_equally_long_float32_waves_in_range(folder: Path, open_folder: Open) -> None:
    data = open_folder(folder, dataclasses.replace(EVERYTHING, gain_db=(0, 40), snr_db=(-10, 0)))
    for examples in (data.train, data.validation):
        for index in range(40):
            for wave in examples(index):
                assert wave.shape == (8000,)
                assert wave.dtype == np.float32
                assert np.isfinite(wave).all()
                assert np.abs(wave).max() <= 1
            assert examples(index)[0].any()


def test_example_depends_on_the_seed_and_its_number_alone(folder: Path, open_folder: Open, tmp_path: Path) -> None:
    first = open_folder(folder, EVERYTHING, seed=3)
    forwards = [first.train(index) for index in range(8)]
    other_cache = open_data(folder, EVERYTHING, RATE_HZ, 3, tmp_path / "elsewhere")
    for index in (7, 0, 3, 3):  # in any order, as often as one likes, decoded anew
        for found, wanted in zip(other_cache.train(index), forwards[index], strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_other_numbers_and_seeds_give_other_examples(folder: Path, open_folder: Open) -> None:
    data, other = open_folder(folder, EVERYTHING), open_folder(folder, EVERYTHING, seed=1)
    noisy = [data.train(index)[0] for index in range(6)] + [other.train(index)[0] for index in range(6)]
    noisy.append(data.train(10**9)[0])
    assert len({wave.tobytes() for wave in noisy}) == len(noisy)
    assert all(data.validation(index)[0].tobytes() != data.train(index)[0].tobytes() for index in range(6))


def test_another_process_makes_the_same_examples(mixing: Path, pairs: Path, open_folder: Open) -> None:
    """As the workers of a loader do that were spawned, not forked."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for folder in (mixing, pairs):
            examples = open_folder(folder, EVERYTHING).train
            for index in (5, 2):
                for found, wanted in zip(pool.submit(examples, index).result(), examples(index), strict=True):
                    np.testing.assert_array_equal(found, wanted)


def test_no_two_seeds_splits_and_numbers_share_a_stream() -> None:
    numbers = (0, 1, 2, 2**32, 2**32 + 1)
    streams = {
        numbered_generator(seed, split, index).bytes(16) for seed in numbers for split in (0, 1) for index in numbers
    }
    assert len(streams) == len(numbers) ** 2 * 2


def test_large_step_numbers_are_examples_too(folder: Path, open_folder: Open) -> None:
    assert open_folder(folder).train(2**40)[0].any()


# Mixing


@pytest.mark.parametrize("snr_db", [(-5.0, -5.0), (0.0, 3.0), (20.0, 20.0)])
def test_snr_of_active_speech_is_within_its_range(snr_db: tuple[float, float], mixing: Path, open_folder: Open) -> None:
    # a quiet mixture, so that nothing is limited, babble and second noises included
    ranges = {"snr_db": snr_db, "gain_db": (-20, -10)}
    changed = ("reverb", "band_limit", "clipping", "near_clean")
    config = dataclasses.replace(EVERYTHING, **ranges, **{f"{name}_probability": 0 for name in changed})
    examples = open_folder(mixing, config).train
    found = []
    for index in range(30):
        noisy, clean = examples(index)
        noise = noisy.astype(np.float64) - clean
        found.append(20 * np.log10(active_level(clean) / np.sqrt(np.mean(noise**2))))
    assert snr_db[0] - 0.05 <= min(found)
    assert max(found) <= snr_db[1] + 0.05
    assert max(found) - min(found) >= 0.5 * (snr_db[1] - snr_db[0])


def test_level_of_the_mixture_is_within_its_range(mixing: Path, open_folder: Open) -> None:
    examples = open_folder(mixing, dataclasses.replace(PLAIN, gain_db=(-12, -6))).train
    levels = [20 * np.log10(np.sqrt(np.mean(examples(index)[0] ** 2))) for index in range(30)]
    assert -32.05 <= min(levels) < max(levels) <= -25.95  # around -20 dBFS plus gain
    assert max(levels) - min(levels) > 3


def test_speech_and_noise_start_at_random_places_unless_told(mixing: Path, open_folder: Open) -> None:
    def beginnings(offset: bool) -> set[bytes]:
        """The first half second of every clean wave, up to level."""
        examples = open_folder(mixing, dataclasses.replace(PLAIN, offset=offset)).train
        waves = [examples(index)[1][:800] for index in range(60)]
        return {np.round(50 * wave / (np.abs(wave).max() + 1e-9)).tobytes() for wave in waves}

    assert len(beginnings(offset=False)) <= 8  # recordings of four speakers
    assert len(beginnings(offset=True)) > 20


def test_room_changes_clean_and_noisy_alike(mixing: Path, open_folder: Open) -> None:
    """The target is the reverberant speech: what is added to it is noise alone, at the SNR asked for."""
    config = dataclasses.replace(PLAIN, snr_db=(60, 60), gain_db=(-20, -20), reverb_probability=1)
    reverberant = open_folder(mixing, config).train
    dry = open_folder(mixing, dataclasses.replace(config, reverb_probability=0)).train
    for index in range(5):
        noisy, clean = reverberant(index)
        assert np.abs(noisy - clean).max() < 0.02 * np.abs(clean).max()
        assert np.abs(clean - dry(index)[1]).max() > 0.1 * np.abs(clean).max()


def test_short_recordings_are_joined_with_pauses_and_noise_repeated(tmp_path: Path, open_folder: Open) -> None:
    n = np.arange(1600)
    for speaker in range(2):
        write(tmp_path / "d" / "speech" / f"s{speaker}" / "a.wav", 0.3 * np.sin(0.3 * n))
        write(tmp_path / "d" / "noise" / f"{speaker}.wav", 0.1 * np.sin(2.0 * n[:640]))
    examples = open_folder(tmp_path / "d", dataclasses.replace(PLAIN, segment_s=1.0)).train
    for index in range(10):
        noisy, clean = examples(index)
        active = np.abs(clean) > 0
        assert 0.1 < active.mean() < 1
        assert (np.abs(noisy - clean).reshape(-1, 640).max(axis=1) > 0).all()  # noise throughout


def test_an_utterance_cut_at_its_very_beginning_is_not_blown_up(tmp_path: Path, open_folder: Open) -> None:
    """Level is that of the speech, not that of the few samples of room noise before it which still fit in."""
    rng, n = np.random.default_rng(0), np.arange(8000)
    for speaker in range(2):
        lead_in = 1e-4 * rng.standard_normal(3000)
        wave = np.concatenate([lead_in, 0.3 * np.sin(0.2 * n[:3000]), 1e-4 * rng.standard_normal(1000)])
        write(tmp_path / "d" / "speech" / f"s{speaker}" / "a.wav", wave)
        write(tmp_path / "d" / "noise" / f"{speaker}.wav", 0.1 * rng.standard_normal(8000))
    config = dataclasses.replace(PLAIN, segment_s=1.0, gain_db=(-20, -20))
    examples = open_folder(tmp_path / "d", config).train
    for index in range(60):
        _, clean = examples(index)
        loud = np.abs(clean) > 0.2 * np.abs(clean).max()
        # a lead-in has no tone: its neighbours are unrelated; the tone's second difference is tiny
        rough = np.abs(np.diff(clean, 2, prepend=0, append=0)) > 0.2 * np.abs(clean).max()
        assert (loud & rough).sum() <= 8, index  # edges only


def made(examples: Callable[[int], tuple[Wave, Wave]], n: int = 10) -> list[tuple[Wave, Wave]]:
    """(noise, clean) of the first examples, at float64."""
    waves = [[wave.astype(np.float64) for wave in examples(index)] for index in range(n)]
    return [(noisy - clean, clean) for noisy, clean in waves]


SPEAKERS_HZ = [700.0, 1100.0, 1500.0, 1900.0, 2300.0, 2700.0]
NOISES_HZ = [3500.0, 4000.0, 4500.0, 5000.0, 5500.0, 6000.0]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_noise_and_babble_are_of_the_recordings_of_their_own_split(
    split: str, tmp_path: Path, open_folder: Open
) -> None:
    """Told by tones: who speaks, who babbles and what makes noise; a talker never babbles into his own speech."""
    write_tones(tmp_path / "d", SPEAKERS_HZ, NOISES_HZ)
    config = dataclasses.replace(PLAIN, babble_probability=0.5, snr_db=(0, 0), gain_db=(-20, -20), validation_share=0.5)
    examples = getattr(open_folder(tmp_path / "d", config), split)
    speakers = {float(file.parent.name) for file in examples.speech.files}
    noises = {float(file.stem) for file in examples.noise.files}
    assert len(speakers) == len(noises) == 3
    spoken, babbled, noised = set(), set(), set()
    for noise, clean in made(examples, 40):
        own = max(SPEAKERS_HZ, key=lambda hz: strength(clean, hz))
        spoken.add(own)
        loud = {hz for hz in SPEAKERS_HZ + NOISES_HZ if strength(noise, hz) > 0.05}
        assert own not in loud
        babbled |= loud & set(SPEAKERS_HZ)
        noised |= loud & set(NOISES_HZ)
    assert spoken == babbled == speakers
    assert noised == noises


def test_validation_leaves_out_what_test_recordings_are_not(mixing: Path, open_folder: Open) -> None:
    config = dataclasses.replace(EVERYTHING, clipping_probability=1, band_limit_probability=1, near_clean_probability=1)
    data = open_folder(mixing, config)
    assert data.train.config == config
    assert data.validation.config == validation_config(config)
    left_out = {name for name in PROBABILITIES if getattr(data.validation.config, name) == 0}
    assert left_out == {
        *("near_clean_probability", "speech_speed_probability", "speech_tilt_probability"),
        *("band_limit_probability", "clipping_probability", "remix_probability"),
    }


def test_nearly_clean_examples_have_an_snr_of_their_own(mixing: Path, open_folder: Open) -> None:
    config = dataclasses.replace(PLAIN, near_clean_probability=0.5, snr_db=(0, 1), near_clean_snr_db=(30, 31))
    config = dataclasses.replace(config, gain_db=(-10, -10))
    snr_db = [
        20 * np.log10(active_level(clean) / np.sqrt(np.mean(noise**2)))
        for noise, clean in made(open_folder(mixing, config).train, 40)
    ]
    near = [value for value in snr_db if value > 20]
    assert 10 <= len(near) <= 30
    assert all(29.9 <= value <= 31.1 for value in near)
    assert all(-0.1 <= value <= 1.1 for value in snr_db if value <= 20)


def test_speeds_shift_pitch(tmp_path: Path, open_folder: Open) -> None:
    write_tones(tmp_path / "d", [1000.0, 1000.5], [3000.0, 3000.5], n_samples=16_000)
    config = dataclasses.replace(PLAIN, speech_speed=(1.1, 1.1), noise_speed=(0.8, 0.8), snr_db=(0, 0))
    config = dataclasses.replace(config, speech_speed_probability=1, noise_speed_probability=1)
    for noise, clean in made(open_folder(tmp_path / "d", config).train):
        assert strength(clean, 1100) > 0.9
        assert strength(noise, 2400) > 0.9
        assert len(clean) == 8000


def test_reversal_plays_the_same_noise_backwards(mixing: Path, open_folder: Open) -> None:
    config = dataclasses.replace(PLAIN, snr_db=(0, 0), gain_db=(-20, -20))
    forwards = made(open_folder(mixing, config).train)
    backwards = made(open_folder(mixing, dataclasses.replace(config, noise_reversal_probability=1)).train)
    for (noise, clean), (reversed_noise, same) in zip(forwards, backwards, strict=True):
        assert np.corrcoef(same, clean)[0, 1] > 0.9999
        assert np.corrcoef(noise, reversed_noise[::-1])[0, 1] > 0.999


@pytest.mark.parametrize("name", ["noise_colour", "noise_stages", "synthetic", "babble", "another_noise"])
def test_changes_of_the_noise_leave_the_speech_alone(name: str, mixing: Path, open_folder: Open) -> None:
    config = dataclasses.replace(PLAIN, snr_db=(0, 0), gain_db=(-20, -20))
    plain = made(open_folder(mixing, config).train)
    changed = made(open_folder(mixing, dataclasses.replace(config, **{f"{name}_probability": 1.0})).train)
    for (noise, clean), (other, same) in zip(plain, changed, strict=True):
        assert np.corrcoef(clean, same)[0, 1] > 0.9999
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.999


def test_microphone_tilt_is_in_the_target_too(mixing: Path, open_folder: Open) -> None:
    config = dataclasses.replace(PLAIN, snr_db=(60, 60), gain_db=(-20, -20), speech_tilt_probability=1)
    for noise, clean in made(open_folder(mixing, config).train):
        assert np.abs(noise).max() < 0.02 * np.abs(clean).max()


def test_band_limit_takes_from_noisy_and_clean_alike(tmp_path: Path, open_folder: Open) -> None:
    rng = np.random.default_rng(0)
    for number in range(2):
        write(tmp_path / "d" / "speech" / f"s{number}" / "a.wav", 0.1 * rng.standard_normal(9000))
        write(tmp_path / "d" / "noise" / f"{number}.wav", 0.1 * rng.standard_normal(9000))
    config = dataclasses.replace(PLAIN, snr_db=(0, 0), gain_db=(-20, -20), band_limit_probability=1)
    edges = []
    for noise, clean in made(open_folder(tmp_path / "d", config).train):
        levels = [np.abs(np.fft.rfft(wave)) for wave in (noise, clean)]
        highest = [int(np.flatnonzero(level > 0.05 * level.max())[-1]) for level in levels]
        assert abs(highest[0] - highest[1]) < 60  # bins of 2 Hz
        edges.append(max(highest) / 4000)
    assert 0.35 < min(edges) < max(edges) < 0.98
    assert max(edges) - min(edges) > 0.1


def test_clipping_cuts_the_peaks_of_the_noisy_side_alone(mixing: Path, open_folder: Open) -> None:
    config = dataclasses.replace(PLAIN, gain_db=(-20, -20))
    whole, clipped = (
        open_folder(mixing, dataclasses.replace(config, clipping_probability=probability)).train
        for probability in (0.0, 1.0)
    )
    for index in range(10):
        (before, clean), (after, same) = whole(index), clipped(index)
        np.testing.assert_array_equal(same, clean)
        peak = np.abs(after).max()
        cut = np.abs(before) > peak
        assert 0 < cut.mean() <= 0.0105
        np.testing.assert_array_equal(after[~cut], before[~cut])
        np.testing.assert_allclose(np.abs(after[cut]), peak)


# Pairs


def test_pairs_stay_in_time_and_in_proportion(pairs: Path, open_folder: Open) -> None:
    examples = open_folder(pairs).train
    for index in range(20):
        noisy, clean = examples(index)
        np.testing.assert_allclose(noisy, clean / 2, atol=2e-4)


def test_pairs_shorter_than_a_segment_are_filled_up(tmp_path: Path, open_folder: Open, speech_like: SpeechLike) -> None:
    for speaker in range(2):
        wave = speech_like(3000, seed=speaker) + np.float32(0.01)
        write(tmp_path / "d" / "clean" / f"p{speaker}_1.wav", wave)
        write(tmp_path / "d" / "noisy" / f"p{speaker}_1.wav", wave)
    noisy, clean = open_folder(tmp_path / "d").train(0)
    assert clean[:3000].any()
    assert not clean[3000:].any()
    assert not noisy[3000:].any()


def test_clean_louder_than_noisy_stays_in_range(tmp_path: Path, open_folder: Open, speech_like: SpeechLike) -> None:
    for speaker in range(2):
        wave = speech_like(9000, seed=speaker)
        wave = wave / np.abs(wave).max()
        write(tmp_path / "d" / "clean" / f"p{speaker}_1.wav", wave)
        write(tmp_path / "d" / "noisy" / f"p{speaker}_1.wav", wave / 4)
    examples = open_folder(tmp_path / "d", dataclasses.replace(PLAIN, gain_db=(12, 12))).train
    for index in range(10):
        noisy, clean = examples(index)
        assert np.abs(clean).max() <= 1
        np.testing.assert_allclose(noisy, clean / 4, atol=1e-3)


def test_remixed_pairs_take_the_noise_of_another_pair(tmp_path: Path, open_folder: Open) -> None:
    for number, (speech_hz, noise_hz) in enumerate(zip(SPEAKERS_HZ, NOISES_HZ, strict=True)):
        clean = tone(speech_hz)
        write(tmp_path / "d" / "clean" / f"p{number}_1.wav", clean)
        write(tmp_path / "d" / "noisy" / f"p{number}_1.wav", clean + tone(noise_hz))
    own = dict(zip(SPEAKERS_HZ, NOISES_HZ, strict=True))
    n_own = {0.0: 0, 1.0: 0}
    for probability in n_own:
        config = dataclasses.replace(PLAIN, remix_probability=probability, gain_db=(-10, -10))
        for noise, clean in made(open_folder(tmp_path / "d", config).train, 40):
            speaker = max(SPEAKERS_HZ, key=lambda hz: strength(clean, hz))
            heard = max(NOISES_HZ, key=lambda hz: strength(noise, hz))
            n_own[probability] += heard == own[speaker]
            ratio_db = 10 * np.log10(np.mean(noise**2) / np.mean(clean**2))
            assert abs(ratio_db) < (3.1 if probability else 0.1)
    assert n_own[0.0] == 40
    assert n_own[1.0] < 25
