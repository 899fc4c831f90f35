"""Rooms: measured ones read from their direct sound on, made ones seeded and cached, reverberation times right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edgese.errors import TrainingError
from edgese.train.rooms import LONGEST_MADE_T60_S, make_rooms, read_rooms, reverberation_time_s

from ..helpers.data_folders import RATE_HZ, write


def decaying(t60_s: float, seed: int = 0, n_samples: int = RATE_HZ) -> np.ndarray:
    """Noise that falls by 60 dB in t60_s, its first sample the loudest."""
    seconds = np.arange(n_samples) / RATE_HZ
    wave = 0.1 * np.random.default_rng(seed).standard_normal(n_samples) * 10 ** (-3 * seconds / t60_s)
    wave[0] = 0.9
    return wave


@pytest.mark.parametrize("t60_s", [0.1, 0.3, 0.7])
def test_reverberation_time_of_a_decay_is_found(t60_s: float) -> None:
    wave = decaying(t60_s)
    wave[0] = 0.1
    assert reverberation_time_s(wave.astype(np.float32), RATE_HZ) == pytest.approx(t60_s, rel=0.08)


def test_a_single_click_has_no_reverberation() -> None:
    assert reverberation_time_s(np.array([1, 0, 0], np.float32), RATE_HZ) < 0.001


def test_rooms_begin_with_their_direct_sound_at_unit_energy(tmp_path: Path) -> None:
    file = write(tmp_path / "room.wav", np.concatenate([np.zeros(500), decaying(0.3)]))
    (room,), _ = read_rooms([file], tmp_path / "manifest.csv", RATE_HZ)
    assert room.response.dtype == np.float32
    assert np.argmax(np.abs(room.response)) == 0
    assert np.sum(room.response**2) == pytest.approx(1, abs=1e-4)
    assert len(room.response) == RATE_HZ


def test_reverberation_time_comes_from_the_manifest_where_it_says_so(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.wav", decaying(0.3)) for name in ("known", "empty", "absent")]
    (tmp_path / "manifest.csv").write_text("file,t60_s\nknown.wav,1.5\nempty.wav,\n")
    (known, empty, absent), _ = read_rooms(files, tmp_path / "manifest.csv", RATE_HZ)
    assert known.t60_s == 1.5
    assert empty.t60_s == absent.t60_s < 0.4


@pytest.mark.parametrize("content", ["file,length\na.wav,1\n", "file,t60_s\na.wav,long\n"])
def test_manifest_that_cannot_be_read_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(content)
    with pytest.raises(TrainingError, match=r"manifest\.csv: .*t60_s"):
        read_rooms([], tmp_path / "manifest.csv", RATE_HZ)


def test_made_rooms_are_seeded_and_different(tmp_path: Path) -> None:
    pytest.importorskip("pyroomacoustics")
    rooms, same, other = (make_rooms(3, 8000, seed, tmp_path / name) for seed, name in ((0, "a"), (0, "b"), (1, "a")))
    assert len({room.response.tobytes() for room in [*rooms, *other]}) == 6
    for room, again in zip(rooms, same, strict=True):
        np.testing.assert_array_equal(room.response, again.response)
        assert room.t60_s == again.t60_s
        assert 0.02 < room.t60_s < 2 * LONGEST_MADE_T60_S
        assert np.sum(room.response**2) == pytest.approx(1, abs=1e-4)


def test_made_rooms_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyroomacoustics")
    rooms = make_rooms(2, 8000, 0, tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)  # none could be made now
    for room, again in zip(rooms, make_rooms(2, 8000, 0, tmp_path / "cache"), strict=True):
        np.testing.assert_array_equal(room.response, again.response)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


def test_missing_pyroomacoustics_is_named_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(TrainingError, match="-m pip install pyroomacoustics, or give the data a folder rir/"):
        make_rooms(2, 8000, 0, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
