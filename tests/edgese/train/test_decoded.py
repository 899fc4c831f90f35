"""Recordings: decoded once, in any format, read in part; the cache is whole or not there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.errors import EdgeseError, TrainingError
from edgese.train import decoded
from edgese.train.decoded import DecodedRecordings

from ..helpers.data_folders import RATE_HZ, SpeechLike, write


def test_any_rate_channel_count_and_format_is_decoded_to_16_khz_mono(tmp_path: Path, speech_like: SpeechLike) -> None:
    wave = speech_like(16_000)
    stereo = np.stack([np.zeros(48_000), 0.5 * np.sin(0.05 * np.arange(48_000))], axis=1)
    files = [
        write(tmp_path / "a.wav", wave),
        write(tmp_path / "b.flac", stereo, 48_000),
        write(tmp_path / "c.wav", wave[:8000], 8000),
    ]
    soundfile.write(tmp_path / "d.ogg", wave, RATE_HZ)
    recordings = DecodedRecordings([*files, tmp_path / "d.ogg"], RATE_HZ, tmp_path / "cache")
    assert [recordings.length(index) for index in range(3)] == [16_000, 16_000, 16_000]
    assert abs(recordings.length(3) - 16_000) < 10
    assert np.abs(recordings.read(1)[1000:-1000]).max() == pytest.approx(0.25, abs=0.01)


def test_16_bit_samples_are_read_as_they_are(tmp_path: Path) -> None:
    every = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "all.wav", every, RATE_HZ, subtype="PCM_16")
    recordings = DecodedRecordings([tmp_path / "all.wav"], RATE_HZ, tmp_path / "cache")
    np.testing.assert_array_equal(recordings.read(0), every.astype(np.float32) / 32768)


def test_recordings_are_read_in_part_and_never_into_their_neighbour(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.wav", np.full(1000 + n, 0.1 * (n + 1))) for n in range(3)]
    recordings = DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
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


def test_decoding_that_was_cut_short_is_not_taken_for_a_cache(tmp_path: Path, speech_like: SpeechLike) -> None:
    files = [write(tmp_path / f"{n}.wav", speech_like(4000, seed=n)) for n in range(3)]

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        DecodedRecordings(files, RATE_HZ, tmp_path / "cache", interrupt)
    recordings = DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
    for index in range(3):
        np.testing.assert_allclose(recordings.read(index), speech_like(4000, seed=index), atol=1e-4)


def test_cache_index_appears_whole_or_not_at_all(
    tmp_path: Path, speech_like: SpeechLike, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write(tmp_path / "a.wav", speech_like(4000))]

    def torn(path: Path, content: bytes) -> None:
        path.write_bytes(content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoded, "write_whole", torn)
        with pytest.raises(KeyboardInterrupt):
            DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
    assert DecodedRecordings(files, RATE_HZ, tmp_path / "cache").n_samples == 4000


@pytest.mark.parametrize("part", ["samples", "index"])
def test_a_cache_that_was_cut_is_made_anew(part: str, tmp_path: Path, speech_like: SpeechLike) -> None:
    """As by a power cut: else recordings end in silence or a traceback."""
    files = [write(tmp_path / f"{n}.wav", speech_like(4000, seed=n)) for n in range(3)]
    DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
    (cut,) = (tmp_path / "cache").glob("*.i16" if part == "samples" else "*.json")
    os.truncate(cut, cut.stat().st_size // 2)
    again = DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
    for index in range(3):
        np.testing.assert_allclose(again.read(index), speech_like(4000, seed=index), atol=1e-4)


def test_the_digest_is_of_the_recordings_wherever_they_lie(tmp_path: Path, speech_like: SpeechLike) -> None:
    def digest(folder: str, seed: int) -> str:
        (tmp_path / folder).mkdir()
        file = write(tmp_path / folder / "a.wav", speech_like(4000, seed=seed))
        return DecodedRecordings([file], RATE_HZ, tmp_path / "cache").digest

    assert digest("here", 0) == digest("there", 0) != digest("elsewhere", 1)


def test_cache_is_made_anew_for_another_rate_and_for_changed_files(tmp_path: Path, speech_like: SpeechLike) -> None:
    file = write(tmp_path / "a.wav", speech_like(4000))

    def decoded(rate_hz: int = RATE_HZ) -> int:
        calls: list[int] = []
        DecodedRecordings([file], rate_hz, tmp_path / "cache", lambda done, total: calls.append(done))
        return len(calls)

    assert decoded() == 1
    assert decoded() == 0
    assert decoded(8000) == 1
    os.utime(file, ns=(0, 0))
    assert decoded() == 1
    write(file, speech_like(5000))
    os.utime(file, ns=(0, 0))
    assert decoded() == 1  # another size


def test_many_recordings_are_decoded_in_order(tmp_path: Path) -> None:
    """Some ahead of others, on several threads: each must still come out at its own place."""
    files = [write(tmp_path / f"{n:03}.wav", np.full(600 + 37 * (n % 11), 0.001 * (n + 1))) for n in range(150)]
    done: list[int] = []
    recordings = DecodedRecordings(files, RATE_HZ, tmp_path / "cache", lambda number, total: done.append(number))
    assert done == list(range(1, 151))
    for index in range(150):
        wave = recordings.read(index)
        assert len(wave) == 600 + 37 * (index % 11)
        np.testing.assert_allclose(wave, 0.001 * (index + 1), atol=1e-4)


def test_broken_recordings_are_empty_and_all_broken_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n:03}.wav", np.full(1000, 0.1)) for n in range(12)]
    for number in (3, 7):
        files[number].write_bytes(b"RIFF, then nothing")
    for _ in range(2):  # decoded, then from the cache
        recordings = DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
        assert list(recordings.broken) == [3, 7]
        assert recordings.broken[3].startswith(f"{files[3]}: ")
        assert [recordings.length(number) for number in (2, 3, 4)] == [1000, 0, 1000]
    for file in files:
        file.write_bytes(b"RIFF, then nothing")
    with pytest.raises(EdgeseError) as refusal:
        DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
    message = str(refusal.value)
    assert message.startswith(f"{files[0]}: ")
    assert message.endswith("; and 7 more")
    assert "\n" not in message


def test_cache_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.wav", np.full(1000, 0.1))
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(TrainingError, match="choose another --cache"):
        DecodedRecordings([file], RATE_HZ, tmp_path / "cache")


# Parts and copies


def test_a_subset_reads_the_same_recordings_of_the_same_map(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.wav", np.full(1000 + n, 0.1 * (n + 1))) for n in range(5)]
    whole = DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
    part = whole.subset([3, 1])
    assert part.files == [files[3], files[1]]
    assert len(part) == 2
    assert part.n_samples == 1003 + 1001
    np.testing.assert_array_equal(part.read(0, 10, 50), whole.read(3, 10, 50))
    np.testing.assert_array_equal(part.read(1), whole.read(1))
    assert len(whole) == 5
    assert len(list((tmp_path / "cache").glob("*.i16"))) == 1


def test_a_pickled_copy_opens_the_map_instead_of_carrying_it(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.wav", np.full(40_000, 0.1 * (n + 1))) for n in range(3)]
    recordings = DecodedRecordings(files, RATE_HZ, tmp_path / "cache").subset([2, 0])
    content = pickle.dumps(recordings)
    assert len(content) < 10_000
    copy = pickle.loads(content)
    for index in range(2):
        np.testing.assert_array_equal(copy.read(index), recordings.read(index))
