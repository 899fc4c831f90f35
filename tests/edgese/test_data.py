"""Training data from both layouts: every example by its number, speakers apart, SNR as asked, errors in one line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from edgese.config import DataConfig
from edgese.data import DataSets, Recordings, open_data
from edgese.errors import EdgeseError, TrainingError

RATE_HZ = 16_000
PLAIN = DataConfig(segment_s=0.5, reverb_probability=0, babble_probability=0, second_noise_probability=0)
EVERYTHING = DataConfig(segment_s=0.5, reverb_probability=0.5, babble_probability=0.3, second_noise_probability=0.5)

Wave = NDArray[np.float32]
Open = Callable[..., DataSets]


def write(path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, subtype="PCM_16")
    return path


@pytest.fixture
def mixing(tmp_path: Path, speech_like) -> Path:
    """speech/ with a folder for each of five speakers, noise/ with four noises, rir/ with one room."""
    folder, rng = tmp_path / "mixing", np.random.default_rng(0)
    for speaker in range(5):
        for take in range(2):
            wave = speech_like(12_000 + 2000 * take, seed=10 * speaker + take)
            write(folder / "speech" / f"s{speaker}" / f"{take}.wav", wave)
    for noise in range(4):
        write(folder / "noise" / f"n{noise}.wav", rng.normal(0, 0.02 * (noise + 1), 9000 + 1000 * noise))
    write(folder / "rir" / "room.wav", rng.normal(0, 0.3, 2000) * np.exp(-np.arange(2000) / 300))
    return folder


@pytest.fixture
def pairs(tmp_path: Path, speech_like) -> Path:
    """VoiceBank+DEMAND's layout: four speakers; noisy is clean at half the amplitude, so that a shift would show."""
    folder, rng = tmp_path / "pairs", np.random.default_rng(0)
    for speaker in range(4):
        for take in range(2):
            wave = speech_like(10_000 + 1000 * take, seed=10 * speaker + take)
            wave += rng.normal(0, 0.001, len(wave))  # a room is never silent
            write(folder / "clean_trainset_28spk_wav" / f"p{speaker}_{take:03}.wav", wave)
            write(folder / "noisy_trainset_28spk_wav" / f"p{speaker}_{take:03}.wav", wave / 2)
    return folder


@pytest.fixture
def open_folder(tmp_path: Path) -> Open:
    """`open_folder(folder, config=PLAIN, seed=0)` with a cache of the test's own."""

    def opened(folder: Path, config: DataConfig = PLAIN, seed: int = 0, **options) -> DataSets:
        return open_data(folder, config, RATE_HZ, seed, tmp_path / "cache", **options)

    return opened


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


def test_large_step_numbers_are_examples_too(folder: Path, open_folder: Open) -> None:
    assert open_folder(folder).train(2**40)[0].any()


def speakers_of(recordings: Recordings) -> set[str]:
    return {file.parent.name if file.parent.name[0] == "s" else file.stem.split("_")[0] for file in recordings.files}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_speakers_and_noises_of_training_and_validation_are_disjoint(
    seed: int, mixing: Path, pairs: Path, open_folder: Open
) -> None:
    mixed, paired = open_folder(mixing, seed=seed), open_folder(pairs, seed=seed)
    assert speakers_of(mixed.train.speech) | speakers_of(mixed.validation.speech) == {f"s{n}" for n in range(5)}
    assert not speakers_of(mixed.train.speech) & speakers_of(mixed.validation.speech)
    assert not set(mixed.train.noise.files) & set(mixed.validation.noise.files)
    assert len(mixed.train.noise.files) + len(mixed.validation.noise.files) == 4
    assert speakers_of(paired.train.clean) | speakers_of(paired.validation.clean) == {f"p{n}" for n in range(4)}
    assert not speakers_of(paired.train.clean) & speakers_of(paired.validation.clean)


def test_speakers_come_from_the_manifest_where_there_is_one(mixing: Path, open_folder: Open) -> None:
    files = sorted((mixing / "speech").rglob("*.wav"))
    rows = [f"{file.relative_to(mixing / 'speech')},{number % 3}" for number, file in enumerate(files)]
    (mixing / "speech" / "manifest.csv").write_text("\n".join(["file,speaker", *rows, "gone.wav,1"]) + "\n")
    data = open_folder(mixing)
    assert data.description["speakers"] == 3
    assert data.description["speech"] == 10
    speaker = {file: number % 3 for number, file in enumerate(files)}
    groups = [{speaker[file] for file in part.speech.files} for part in (data.train, data.validation)]
    assert groups[0] | groups[1] == {0, 1, 2}
    assert not groups[0] & groups[1]


def test_description_counts_what_was_found(mixing: Path, pairs: Path, open_folder: Open) -> None:
    mixed, paired = open_folder(mixing).description, open_folder(pairs).description
    assert mixed == {"layout": "mixing", "speech": 10, "speakers": 5, "noise": 4, "rooms": 1}
    assert paired == {"layout": "pairs", "clean": 8, "speakers": 4}


# Mixing


@pytest.mark.parametrize("snr_db", [(-5.0, -5.0), (0.0, 3.0), (20.0, 20.0)])
def test_snr_of_active_speech_is_within_its_range(snr_db: tuple[float, float], mixing: Path, open_folder: Open) -> None:
    # a quiet mixture, so that nothing is limited, babble and second noises included
    config = dataclasses.replace(EVERYTHING, reverb_probability=0, snr_db=snr_db, gain_db=(-20, -10))
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


# Pairs


def test_pairs_stay_in_time_and_in_proportion(pairs: Path, open_folder: Open) -> None:
    examples = open_folder(pairs).train
    for index in range(20):
        noisy, clean = examples(index)
        np.testing.assert_allclose(noisy, clean / 2, atol=2e-4)


def test_pairs_are_matched_by_name_alone(pairs: Path, open_folder: Open) -> None:
    (pairs / "noisy_trainset_28spk_wav" / "p0_000.wav").unlink()
    (pairs / "clean_trainset_28spk_wav" / "p3_001.wav").unlink()
    data = open_folder(pairs)
    assert data.description["clean"] == 6
    for part in (data.train, data.validation):
        assert [file.stem for file in part.clean.files] == [file.stem for file in part.noisy.files]


def test_pairs_shorter_than_a_segment_are_filled_up(tmp_path: Path, open_folder: Open, speech_like) -> None:
    for speaker in range(2):
        wave = speech_like(3000, seed=speaker) + np.float32(0.01)
        write(tmp_path / "d" / "clean" / f"p{speaker}_1.wav", wave)
        write(tmp_path / "d" / "noisy" / f"p{speaker}_1.wav", wave)
    noisy, clean = open_folder(tmp_path / "d").train(0)
    assert clean[:3000].any()
    assert not clean[3000:].any()
    assert not noisy[3000:].any()


def test_clean_louder_than_noisy_stays_in_range(tmp_path: Path, open_folder: Open, speech_like) -> None:
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


# Layouts


@pytest.mark.parametrize(
    "names", [("clean", "noisy"), ("clean_trainset_wav", "noisy_trainset_wav"), ("train_clean", "train_noisy")]
)
def test_pair_folders_by_their_names(names: tuple[str, str], pairs: Path, open_folder: Open) -> None:
    for old, new in zip(("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"), names, strict=True):
        (pairs / old).rename(pairs / new)
    assert open_folder(pairs).description["layout"] == "pairs"


@pytest.mark.parametrize("names", [("train_speech", "train_noise"), ("clean", "noise"), ("speech", "train_noise")])
def test_mixing_folders_by_their_names(names: tuple[str, str], mixing: Path, open_folder: Open) -> None:
    for old, new in zip(("speech", "noise"), names, strict=True):
        (mixing / old).rename(mixing / new)
    assert open_folder(mixing).description["layout"] == "mixing"


def test_any_rate_channel_count_and_format_is_decoded_to_16_khz_mono(tmp_path: Path, speech_like) -> None:
    wave = speech_like(16_000)
    stereo = np.stack([np.zeros(48_000), 0.5 * np.sin(0.05 * np.arange(48_000))], axis=1)
    files = [
        write(tmp_path / "a.wav", wave),
        write(tmp_path / "b.flac", stereo, 48_000),
        write(tmp_path / "c.wav", wave[:8000], 8000),
    ]
    soundfile.write(tmp_path / "d.ogg", wave, RATE_HZ)
    recordings = Recordings([*files, tmp_path / "d.ogg"], RATE_HZ, tmp_path / "cache")
    assert [recordings.length(index) for index in range(3)] == [16_000, 16_000, 16_000]
    assert abs(recordings.length(3) - 16_000) < 10
    assert np.abs(recordings.read(1)[1000:-1000]).max() == pytest.approx(0.25, abs=0.01)


def test_16_bit_samples_are_read_as_they_are(tmp_path: Path) -> None:
    every = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "all.wav", every, RATE_HZ, subtype="PCM_16")
    recordings = Recordings([tmp_path / "all.wav"], RATE_HZ, tmp_path / "cache")
    np.testing.assert_array_equal(recordings.read(0), every.astype(np.float32) / 32768)


def test_recordings_are_read_in_part_and_never_into_their_neighbour(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.wav", np.full(1000 + n, 0.1 * (n + 1))) for n in range(3)]
    recordings = Recordings(files, RATE_HZ, tmp_path / "cache")
    assert len(recordings) == 3
    assert recordings.n_samples == 3003
    for index in range(3):
        whole = recordings.read(index)
        assert len(whole) == recordings.length(index) == 1000 + index
        np.testing.assert_allclose(whole, 0.1 * (index + 1), atol=1e-4)
        assert len(recordings.read(index, start=900)) == 100 + index
        assert len(recordings.read(index, start=900, length=50)) == 50
        assert len(recordings.read(index, start=900, length=5000)) == 100 + index


# Cache


def test_cache_is_reused_until_a_recording_changes(mixing: Path, open_folder: Open) -> None:
    def decoded() -> int:
        calls: list[tuple[int, int]] = []
        open_folder(mixing, progress=lambda done, total: calls.append((done, total)))
        assert all(1 <= done <= total for done, total in calls)
        return len(calls)

    assert decoded() == 14  # 10 of speech, 4 of noise
    assert decoded() == 0
    changed = mixing / "speech" / "s1" / "0.wav"
    os.utime(changed, ns=(0, 0))
    assert 0 < decoded() < 14
    assert decoded() == 0


def test_decoding_that_was_cut_short_is_not_taken_for_a_cache(tmp_path: Path, speech_like) -> None:
    files = [write(tmp_path / f"{n}.wav", speech_like(4000, seed=n)) for n in range(3)]

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Recordings(files, RATE_HZ, tmp_path / "cache", interrupt)
    recordings = Recordings(files, RATE_HZ, tmp_path / "cache")
    for index in range(3):
        np.testing.assert_allclose(recordings.read(index), speech_like(4000, seed=index), atol=1e-4)


def test_cache_index_appears_whole_or_not_at_all(tmp_path: Path, speech_like, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / "a.wav", speech_like(4000))]

    def torn(self: Path, text: str, *args, **kwargs) -> int:
        with self.open("w") as out:
            out.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(KeyboardInterrupt):
            Recordings(files, RATE_HZ, tmp_path / "cache")
    assert Recordings(files, RATE_HZ, tmp_path / "cache").n_samples == 4000


# Refusals


def one_line(refusal: pytest.ExceptionInfo[EdgeseError]) -> str:
    text = str(refusal.value)
    assert "\n" not in text
    return text


def test_missing_folder_is_named(tmp_path: Path, open_folder: Open) -> None:
    with pytest.raises(TrainingError) as refusal:
        open_folder(tmp_path / "nowhere")
    assert one_line(refusal).startswith(f"{tmp_path / 'nowhere'}: no such folder; wanted ")


def test_folder_of_neither_layout_is_refused_with_what_was_found_and_wanted(tmp_path: Path, open_folder: Open) -> None:
    for name in ("music", "speech"):
        (tmp_path / "d" / name).mkdir(parents=True)
    with pytest.raises(TrainingError) as refusal:
        open_folder(tmp_path / "d")
    message = one_line(refusal)
    assert "found ['music', 'speech']" in message
    assert "wanted clean/ and noisy/" in message
    assert "speech/ and noise/" in message


@pytest.mark.parametrize("layout", ["mixing", "pairs"])
def test_empty_folders_are_refused(layout: str, tmp_path: Path, open_folder: Open) -> None:
    for name in {"mixing": ("speech", "noise"), "pairs": ("clean", "noisy")}[layout]:
        (tmp_path / "d" / name).mkdir(parents=True)
    with pytest.raises(TrainingError) as refusal:
        open_folder(tmp_path / "d")
    assert "found 0 speakers" in one_line(refusal)


def test_one_speaker_alone_is_refused(mixing: Path, open_folder: Open) -> None:
    for speaker in range(1, 5):
        for file in (mixing / "speech" / f"s{speaker}").iterdir():
            file.unlink()
    with pytest.raises(TrainingError) as refusal:
        open_folder(mixing)
    assert "found 1 speakers" in one_line(refusal)
    assert "wanted at least 2" in one_line(refusal)


def test_one_noise_alone_is_refused(mixing: Path, open_folder: Open) -> None:
    for number in range(1, 4):
        (mixing / "noise" / f"n{number}.wav").unlink()
    with pytest.raises(TrainingError, match=r"noise: found 1 .*wanted at least 2"):
        open_folder(mixing)


BROKEN = {
    "empty": b"",
    "no audio": b"not audio at all",
    "truncated": b"RIFF\x00\x00\x00\x00WAVEfmt ",
    "no samples": np.zeros(0),
    "silent": np.zeros(9000),
    "not finite": np.full(9000, np.nan),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_recording_that_cannot_be_used_is_named_and_leaves_no_cache(
    kind: str, mixing: Path, open_folder: Open, tmp_path: Path
) -> None:
    broken, content = mixing / "noise" / "n2.wav", BROKEN[kind]
    if isinstance(content, bytes):
        broken.write_bytes(content)
    else:
        soundfile.write(broken, content, RATE_HZ, subtype="FLOAT")
    with pytest.raises(EdgeseError) as refusal:
        open_folder(mixing)
    assert one_line(refusal).startswith(f"{broken}: ")
    assert not list((tmp_path / "cache").glob("*.tmp"))


@pytest.mark.parametrize("header", ["path,speaker", "file,name"])
def test_manifest_of_another_kind_is_refused_by_name(header: str, mixing: Path, open_folder: Open) -> None:
    (mixing / "speech" / "manifest.csv").write_text(f"{header}\ns0/0.wav,s0\n")
    with pytest.raises(TrainingError, match=r"manifest\.csv") as refusal:
        open_folder(mixing)
    one_line(refusal)
