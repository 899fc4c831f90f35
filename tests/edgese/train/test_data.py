"""What a data folder holds: each layout found, speakers and noises apart, the cache, errors in one line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.config import DataConfig
from edgese.errors import EdgeseError, TrainingError
from edgese.train import data as data_module
from edgese.train.data import DataSets, open_data
from edgese.train.decoded import DecodedRecordings
from edgese.train.mixing import Talkers

from ..helpers.data_folders import PLAIN, RATE_HZ, SpeechLike, write

Open = Callable[..., DataSets]


# Splits


def speakers_of(recordings: DecodedRecordings) -> set[str]:
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


def write_manifest(folder: Path, marks: dict[str, str]) -> None:
    """A manifest of all recordings below, by folder or file name marked for a split."""
    rows = []
    for file in sorted(folder.rglob("*.wav")):
        name = file.relative_to(folder)
        rows.append(f"{name},{file.parent.name},{marks.get(file.parent.name, marks.get(file.stem, ''))}")
    (folder / "manifest.csv").write_text("\n".join(["file,speaker,split", *rows]) + "\n")


@pytest.mark.parametrize("seed", range(5))
def test_what_a_manifest_marks_for_training_never_validates(seed: int, mixing: Path, open_folder: Open) -> None:
    write_manifest(mixing / "speech", {"s0": "train", "s1": "train", "s3": "train", "s4": "train"})
    write_manifest(mixing / "noise", {"n0": "train", "n2": "train"})
    data = open_folder(mixing, seed=seed)
    assert speakers_of(data.validation.speech) == {"s2"}
    assert {file.stem for file in data.validation.noise.files} < {"n1", "n3"}


def test_what_a_manifest_marks_for_validation_is_the_validation(mixing: Path, open_folder: Open) -> None:
    write_manifest(mixing / "speech", {"s1": "validation", "s3": "validation", "s4": "test"})
    write_manifest(mixing / "noise", {"n1": "validation", "n2": "test"})
    data = open_folder(mixing, dataclasses.replace(PLAIN, validation_share=0.9))
    assert speakers_of(data.train.speech) == {"s0", "s2"}
    assert speakers_of(data.validation.speech) == {"s1", "s3"}
    assert [{file.stem for file in part.noise.files} for part in (data.train, data.validation)] == [
        {"n0", "n3"},
        {"n1"},
    ]


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        (dict.fromkeys(["s0", "s1", "s2", "s3", "s4"], "train"), "found 5 speakers, 5 of them marked for training"),
        ({"s0": "training"}, r"manifest.csv: split of s0/0.wav: found 'training', wanted one of"),
    ],
)
def test_splits_that_cannot_be_are_refused(
    marks: dict[str, str], message: str, mixing: Path, open_folder: Open
) -> None:
    write_manifest(mixing / "speech", marks)
    with pytest.raises(TrainingError, match=message):
        open_folder(mixing)


def test_speaker_in_both_splits_is_refused(mixing: Path, open_folder: Open) -> None:
    rows = ["s0/0.wav,anna,train", "s0/1.wav,anna,validation", "s1/0.wav,bert,"]
    (mixing / "speech" / "manifest.csv").write_text("\n".join(["file,speaker,split", *rows]) + "\n")
    with pytest.raises(TrainingError, match=r"manifest\.csv: anna has recordings of both splits, wanted speakers in"):
        open_folder(mixing)


# Shares


def test_folders_get_the_shares_that_the_settings_give_them(mixing: Path, open_folder: Open) -> None:
    shares = (("noise", 1.0), ("speech/s1", 0.5), ("speech/s3", 0.3))
    config = dataclasses.replace(PLAIN, share=shares, validation_share=0.2)
    for seed in range(9):
        data = open_folder(mixing, config, seed=seed)
        talkers = data.train.talkers
        if speakers_of(data.validation.speech) & {"s1", "s3"}:
            continue
        names = [talkers.recordings.files[group[0]].parent.name for group in talkers.by_speaker]
        found = dict(zip(names, talkers._share, strict=True))
        assert (found["s1"], found["s3"]) == pytest.approx((0.5, 0.3))
        assert sum(found.values()) == pytest.approx(1)
        rest = [share for name, share in found.items() if name not in ("s1", "s3")]
        assert rest == pytest.approx([0.1, 0.1])
        assert data.train.noise_probabilities.sum() == pytest.approx(1)
        break
    else:
        pytest.fail("no seed keeps both speakers in training")


def test_share_of_a_folder_that_a_split_lacks_goes_to_the_others(tmp_path: Path, speech_like: SpeechLike) -> None:
    for name in ("a/one", "a/two", "b/three"):
        write(tmp_path / f"{name}.wav", speech_like(4000))
    files = [tmp_path / f"{name}.wav" for name in ("a/one", "a/two", "b/three")]
    recordings = DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
    shares = [(tmp_path / "b", 0.6), (tmp_path / "c", 0.4)]
    assert Talkers(recordings, ["one", "two", "three"], shares)._share == pytest.approx([0.2, 0.2, 0.6])
    everything = [(tmp_path / "b", 0.6), (tmp_path, 0.1)]  # the inner folder of the two counts
    assert Talkers(recordings, ["one", "two", "three"], everything)._share == pytest.approx([1 / 14, 1 / 14, 6 / 7])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ((("speech/nobody", 0.5),), r"data\.share: found 'speech/nobody', wanted a folder below .* with recordings"),
        ((("speech/s0", 0.5), ("speech/s1", 0.6)), r"data\.share: found 1\.1 for speech/s0, speech/s1 together"),
    ],
)
def test_shares_that_cannot_be_are_refused(
    shares: tuple[tuple[str, float], ...], message: str, mixing: Path, open_folder: Open
) -> None:
    with pytest.raises(TrainingError, match=message):
        open_folder(mixing, dataclasses.replace(PLAIN, share=shares))


def test_description_counts_what_was_found(mixing: Path, pairs: Path, open_folder: Open) -> None:
    mixed, paired = open_folder(mixing).description, open_folder(pairs).description
    assert mixed == {"layout": "mixing", "speech": 10, "speakers": 5, "noise": 4, "rooms": 1}
    assert paired == {"layout": "pairs", "clean": 8, "speakers": 4}


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


def test_pairs_are_matched_by_name_alone(pairs: Path, open_folder: Open) -> None:
    (pairs / "noisy_trainset_28spk_wav" / "p0_000.wav").unlink()
    (pairs / "clean_trainset_28spk_wav" / "p3_001.wav").unlink()
    data = open_folder(pairs)
    assert data.description["clean"] == 6
    for part in (data.train, data.validation):
        assert [file.stem for file in part.clean.files] == [file.stem for file in part.noisy.files]


def write_voicebank(folder: Path, speakers: int, first: int) -> None:
    """One of the two training sets as it is unpacked: 48 kHz, transcripts beside it."""
    for speaker in range(first, first + speakers):
        for take in range(2):
            wave = np.random.default_rng(speaker + 100 * take).normal(0, 0.1, 12_000)
            for kind in ("clean", "noisy"):
                name = f"p{speaker}_{take + 1:03}.wav"
                write(folder / f"{kind}_trainset_{speakers}spk_wav" / name, wave, 48_000)
    (folder / f"trainset_{speakers}spk_txt").mkdir()
    (folder / f"trainset_{speakers}spk_txt" / "p1_001.txt").write_text("Please call Stella.")


def test_voicebank_is_taken_as_distributed_both_sets_together_and_never_the_test_set(
    tmp_path: Path, open_folder: Open, speech_like: SpeechLike
) -> None:
    write_voicebank(tmp_path / "d", speakers=3, first=226)
    write_voicebank(tmp_path / "d", speakers=5, first=300)
    for kind in ("clean", "noisy"):
        for name in ("p232_001.wav", "p257_001.wav"):
            write(tmp_path / "d" / f"{kind}_testset_wav" / name, speech_like(4000))
    data = open_folder(tmp_path / "d", dataclasses.replace(PLAIN, validation_share=0.25))
    assert data.description == {"layout": "pairs", "clean": 16, "speakers": 8}
    groups = [speakers_of(part.clean) for part in (data.train, data.validation)]
    assert [len(group) for group in groups] == [6, 2]
    assert groups[0] | groups[1] == {"p226", "p227", "p228", *(f"p{number}" for number in range(300, 305))}
    assert data.train.clean.length(0) == 4000  # at 16 kHz
    for part in (data.train, data.validation):
        assert [file.name for file in part.clean.files] == [file.name for file in part.noisy.files]


def test_pairs_of_several_folders_stay_with_their_neighbours(tmp_path: Path, open_folder: Open) -> None:
    for number, corpus in enumerate(("a", "b")):
        for kind in ("clean", "noisy"):
            write(tmp_path / "d" / corpus / kind / f"p{number}_001.wav", np.full(9000, 0.1))
    data = open_folder(tmp_path / "d")
    assert data.description == {"layout": "pairs", "clean": 2, "speakers": 2}
    for part in (data.train, data.validation):
        assert [file.parent.parent for file in part.clean.files] == [file.parent.parent for file in part.noisy.files]


def test_a_test_set_alone_is_nothing_to_train_on(tmp_path: Path, open_folder: Open, speech_like: SpeechLike) -> None:
    for kind in ("clean", "noisy"):
        for speaker in (232, 257):
            write(tmp_path / "d" / f"{kind}_testset_wav" / f"p{speaker}_001.wav", speech_like(4000))
            write(tmp_path / "d" / "eval" / kind / f"p{speaker}_001.wav", speech_like(4000))
    with pytest.raises(TrainingError, match=r"found .*'clean_testset_wav', 'eval'.*wanted clean/ and noisy/"):
        open_folder(tmp_path / "d")


DNS = {
    "fullband": ("datasets_fullband/clean_fullband", "datasets_fullband/noise_fullband", "datasets_fullband"),
    "wideband": ("datasets/clean", "datasets/noise", "datasets"),
    "unpacked deeper": ("a/b/clean_fullband", "a/c/noise_fullband", "a/c"),
}


@pytest.mark.parametrize("kind", DNS)
def test_dns_challenge_folders_are_found_by_name_at_any_depth(
    kind: str, tmp_path: Path, open_folder: Open, speech_like: SpeechLike
) -> None:
    speech, noise, around = (tmp_path / "d" / part for part in DNS[kind])
    readers = [f"book_{book:05}_chp_0009_reader_{6000 + reader:05}_0_seg_1" for book in (1, 2) for reader in range(3)]
    for number, name in enumerate(readers):
        write(speech / "read_speech" / f"{name}.wav", speech_like(9000, seed=number))
    for number in range(3):
        write(noise / f"fan-Freesound_{number}.wav", 0.1 * np.random.default_rng(number).standard_normal(9000))
        write(around / "dev_testset" / "noisy" / f"{number}.wav", speech_like(9000))
    response = 0.5 * np.exp(-np.arange(2000) / 300) * np.random.default_rng(0).standard_normal(2000)
    write(around / "impulse_responses" / "SLR26" / "simulated_rirs_48k" / "Room001-00001.wav", response)
    data = open_folder(tmp_path / "d")
    assert data.description == {"layout": "mixing", "speech": 6, "speakers": 3, "noise": 3, "rooms": 1}
    assert data.train(0)[0].any()


def test_mixtures_that_the_dns_challenge_made_are_paired_by_their_number(
    tmp_path: Path, open_folder: Open, speech_like: SpeechLike
) -> None:
    for number in range(4):
        wave = speech_like(9000, seed=number)
        write(tmp_path / "d" / "training" / "clean" / f"clean_fileid_{number}.wav", wave)
        write(tmp_path / "d" / "training" / "noisy" / f"book_reader_1_snr{number}_tl-20_fileid_{number}.wav", wave / 2)
    data = open_folder(tmp_path / "d")
    assert data.description == {"layout": "pairs", "clean": 4, "speakers": 4}
    noisy, clean = data.train(0)
    np.testing.assert_allclose(noisy, clean / 2, atol=2e-4)


SPEAKER_NAMES = {
    "a folder each": (["anna/1.wav", "anna/2.wav", "bert/1.wav"], 2),
    "in the file's name": (["p225_001_mic1.flac", "p225_002_mic1.flac", "s5_001_mic1.flac"], 2),
    "in the file's name, a folder for the corpus": (["vctk/p225_001.flac", "vctk/p226_001.flac"], 2),
    "before an underscore": (["anna_1.wav", "anna_2.wav", "bert_1.wav"], 2),
    "LibriSpeech": (["84/121123/84-121123-0000.flac", "84/121550/84-121550-0000.flac", "85/1/85-1-0000.flac"], 2),
    "CREMA-D": (["emotional_speech/1001_DFA_ANG_XX.wav", "emotional_speech/1002_DFA_ANG_XX.wav"], 2),
    "a folder above one for the format": (["anna/wavs/1.wav", "anna/wavs/2.wav", "bert/wavs/1.wav"], 2),
    "not to be known: each by itself": (["french_speech/1.wav", "french_speech/2.wav", "french_speech/3.wav"], 3),
}


@pytest.mark.parametrize("kind", SPEAKER_NAMES)
def test_speakers_are_told_by_names(
    kind: str, mixing: Path, tmp_path: Path, open_folder: Open, speech_like: SpeechLike
) -> None:
    names, n_speakers = SPEAKER_NAMES[kind]
    for number, name in enumerate(names):
        write(tmp_path / "d" / "speech" / name, speech_like(4000, seed=number))
    (mixing / "noise").rename(tmp_path / "d" / "noise")
    assert open_folder(tmp_path / "d").description["speakers"] == n_speakers


def test_pairs_win_over_noise_beside_them_and_say_so(pairs: Path, mixing: Path, open_folder: Open) -> None:
    (mixing / "noise").rename(pairs / "noise")
    assert open_folder(pairs).description == {"layout": "pairs", "clean": 8, "speakers": 4, "ignored": "noise"}


def test_clean_speech_of_voicebank_is_mixed_with_noise_where_it_has_no_noisy_side(
    pairs: Path, mixing: Path, open_folder: Open
) -> None:
    (mixing / "noise").rename(pairs / "noise")
    (pairs / "noisy_trainset_28spk_wav").rename(pairs / "elsewhere")
    assert open_folder(pairs).description["layout"] == "mixing"


def test_of_very_many_rooms_a_seeded_choice_is_kept(
    mixing: Path, open_folder: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):
        write(mixing / "rir" / f"{number}.wav", np.exp(-np.arange(1000) / (20 + 30 * number)))
    monkeypatch.setattr(data_module, "MOST_ROOMS", 3)
    chosen = [[room.tobytes() for room in open_folder(mixing, seed=seed).train.halls] for seed in (0, 0, 1)]
    assert [len(rooms) for rooms in chosen] == [3, 3, 3]
    assert chosen[0] == chosen[1] != chosen[2]


def test_rooms_are_made_where_the_folder_has_none_and_only_when_asked(mixing: Path, open_folder: Open) -> None:
    pytest.importorskip("pyroomacoustics")
    asked = dataclasses.replace(PLAIN, made_rooms=2)
    assert open_folder(mixing, asked).description["rooms"] == 1  # its own
    (mixing / "rir" / "room.wav").unlink()
    assert open_folder(mixing).description["rooms"] == 0
    assert open_folder(mixing, asked).description["rooms"] == 2


def test_shared_recordings_are_understood(tmp_path: Path) -> None:
    """The layout of the recordings that the shipped weights were trained on, where they lie beside the project."""
    folder = Path(__file__).parents[3].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data here")
    small = tmp_path / "d"
    for part in ("train_speech", "train_noise", "rir"):
        lines = (folder / part / "manifest.csv").read_text(encoding="utf-8").splitlines()
        (small / part).mkdir(parents=True)
        (small / part / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
        for line in lines[1::60]:
            name = line.split(",")[0]
            (small / part / name).parent.mkdir(parents=True, exist_ok=True)
            (small / part / name).symlink_to(folder / part / name)
    (small / "eval").symlink_to(folder / "eval")
    data = open_data(small, DataConfig(), RATE_HZ, 0, tmp_path / "cache")
    assert data.description["layout"] == "mixing"
    assert len(data.train.rooms) < len(data.train.halls)  # the long ones are for babble alone
    for examples in (data.train, data.validation):
        assert not [file for file in examples.speech.files if "eval" in file.parts]
        assert all(np.isfinite(wave).all() for index in range(20) for wave in examples(index))


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
    assert decoded() == 10
    assert decoded() == 0


def test_another_seed_or_share_splits_anew_without_decoding_anew(mixing: Path, pairs: Path, open_folder: Open) -> None:
    config = dataclasses.replace(PLAIN, validation_share=0.5)
    calls: list[int] = []
    for folder in (mixing, pairs):
        first = open_folder(folder)
        second = open_folder(folder, config, seed=5, progress=lambda done, total: calls.append(done))
        assert first.train(0)[0].tobytes() != second.train(0)[0].tobytes()
    assert not calls


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
    assert "found speech but no noise in ['music', 'speech']" in message
    assert "wanted clean/ and noisy/" in message
    assert "speech/ and noise/" in message


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("speech", "noise"), "found no audio files"),
        (("clean", "noisy"), "clean: found no recording that .*noisy has too"),
        (("noise",), r"found noise but no speech in \['noise'\]"),
    ],
)
def test_empty_and_missing_folders_are_refused(
    names: tuple[str, ...], found: str, tmp_path: Path, open_folder: Open
) -> None:
    for name in names:
        (tmp_path / "d" / name).mkdir(parents=True)
    with pytest.raises(TrainingError, match=found) as refusal:
        open_folder(tmp_path / "d")
    one_line(refusal)


def test_pairs_of_unequal_length_are_refused_by_name(pairs: Path, open_folder: Open) -> None:
    longer = write(pairs / "noisy_trainset_28spk_wav" / "p2_001.wav", np.full(12_000, 0.1))
    with pytest.raises(TrainingError) as refusal:
        open_folder(pairs)
    assert one_line(refusal).startswith(f"{longer}: found 12000 samples, wanted 11000 as in ")


def test_of_one_speaker_alone_recordings_are_held_out(mixing: Path, open_folder: Open) -> None:
    for speaker in range(1, 5):
        for file in (mixing / "speech" / f"s{speaker}").iterdir():
            file.unlink()
    sets = open_folder(mixing)
    assert sets.description["held out"] == "recordings of the one speaker"
    parts = [set(examples.speech.files) for examples in (sets.train, sets.validation)]
    assert all(parts)
    assert not parts[0] & parts[1]
    files = sorted((mixing / "speech" / "s0").iterdir())
    for file in files[1:]:
        file.unlink()
    with pytest.raises(TrainingError, match="found 1 recordings, wanted at least 2"):
        open_folder(mixing)


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


def spoil(file: Path, kind: str) -> None:
    content = BROKEN[kind]
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        soundfile.write(file, content, RATE_HZ, subtype="FLOAT")


@pytest.mark.parametrize("kind", BROKEN)
def test_recordings_that_cannot_be_used_are_passed_over_and_named(
    kind: str, mixing: Path, open_folder: Open, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [mixing / "noise" / "n2.wav", next((mixing / "speech" / "s1").iterdir())]
    for file in broken:
        spoil(file, kind)
    for _ in range(2):  # decoded now, then from the cache
        caplog.clear()
        sets = open_folder(mixing)
        assert sets.description["passed over"] == 2
        assert all(f"{file}: " in caplog.text for file in broken)
        used = {file for part in (sets.train, sets.validation) for file in (*part.speech.files, *part.noise.files)}
        assert not used & set(broken)
        sets.train(0)


def test_a_pair_with_a_broken_side_is_passed_over_and_what_has_no_partner_named(
    pairs: Path, open_folder: Open, caplog: pytest.LogCaptureFixture
) -> None:
    silent, alone = pairs / "noisy_trainset_28spk_wav" / "p2_001.wav", pairs / "clean_trainset_28spk_wav" / "p9_001.wav"
    n_before = open_folder(pairs).description["clean"]
    spoil(silent, "silent")
    alone.write_bytes((pairs / "clean_trainset_28spk_wav" / "p2_001.wav").read_bytes())
    description = open_folder(pairs).description
    assert (description["clean"], description["passed over"], description["unpaired"]) == (n_before - 1, 1, 1)
    assert f"{silent}: found silence" in caplog.text
    assert f"only one of the clean and noisy folders has: {alone}" in caplog.text


@pytest.mark.parametrize("header", ["path,speaker", "file,name"])
def test_manifest_of_another_kind_is_refused_by_name(header: str, mixing: Path, open_folder: Open) -> None:
    (mixing / "speech" / "manifest.csv").write_text(f"{header}\ns0/0.wav,s0\n")
    with pytest.raises(TrainingError, match=r"manifest\.csv") as refusal:
        open_folder(mixing)
    one_line(refusal)
