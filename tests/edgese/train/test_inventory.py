"""What is looked at before training: sources that are right pass, and each fault is found where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soxr

from edgese.audio import Wave
from edgese.errors import TrainingError
from edgese.train.data import DataSets
from edgese.train.decoded import DecodedRecordings
from edgese.train.inventory import (
    Kind,
    Material,
    SourceReport,
    pitches_hz,
    require_usable,
    syllable_rate_hz,
    take_inventory,
)

from ..helpers.data_folders import RATE_HZ, write

N_SAMPLES = 2 * RATE_HZ


def voice(seed: int, n_samples: int = N_SAMPLES) -> Wave:
    """Harmonics of 120 to 180 Hz in syllables of 0.08 to 0.2 s, some of them hissed, over the noise of a room."""
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * rng.uniform(120, 180) * np.arange(n_samples) / RATE_HZ
    voiced = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 40))
    hiss = np.diff(rng.standard_normal(n_samples + 1))
    wave = 0.001 * rng.standard_normal(n_samples)
    place = 0
    while place < n_samples:
        syllable = np.hanning(int(rng.uniform(0.08, 0.2) * RATE_HZ))[: n_samples - place] * rng.uniform(0.3, 1)
        part = slice(place, place + len(syllable))
        wave[part] += syllable * (0.1 * voiced[part] if rng.random() < 0.8 else 0.1 * hiss[part])
        place += len(syllable) + int(rng.uniform(0, 0.1) * RATE_HZ)
    return (0.3 * wave).astype(np.float32)


def faster(wave: Wave, speed: float) -> Wave:
    return soxr.resample(wave, speed, 1.0)


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., list[SourceReport]]:
    """`look({"a": [wave, ...], ...}, kind="speech", claimed_s=None)`: reports of these sources."""

    def looked(
        sources: dict[str, list[Wave]], kind: Kind = "speech", claimed_s: float | None = None, channels: int = 1
    ) -> list[SourceReport]:
        files = [
            write(tmp_path / "data" / name / f"{number}.wav", np.stack([wave] * channels, axis=1))
            for name, waves in sources.items()
            for number, wave in enumerate(waves)
        ]
        recordings = DecodedRecordings(files, RATE_HZ, tmp_path / "cache")
        n = len(files)
        groups = [str(file.parent) for file in files]
        material = Material(kind, tmp_path / "data", recordings, groups, [claimed_s] * n, np.full(n, 1 / n))
        return take_inventory([material], tmp_path / "cache")

    return looked


Look = Callable[..., list[SourceReport]]
VOICES = [voice(seed) for seed in range(6)]


def test_sound_sources_pass_and_are_counted(look: Look) -> None:
    first, second = look({"a": VOICES, "b": VOICES[:2]}, channels=2)
    assert (first.name, first.files, first.speakers, first.looked_at) == ("a", 6, 1, 6)
    assert (first.rates_hz, first.channels, first.length_ratio) == ((RATE_HZ,), (2,), 1.0)
    assert first.hours == pytest.approx(6 * 2 / 3600)
    assert (first.share, second.share) == pytest.approx((0.75, 0.25))
    assert first.level_dbfs == pytest.approx(np.median([20 * np.log10(np.std(wave)) for wave in VOICES]), abs=0.1)
    assert first.pitch_hz == pytest.approx(150, abs=30)
    assert second.pitch_hz is not None
    assert second.syllables_hz is None  # of two recordings nothing is said
    require_usable([first, second])
    assert first.lines()[0].startswith(
        "speech a: 6 files, 0.00 h, 1 speaker, 75.0 % of draws; of 6: 16 kHz, channels 2"
    )
    assert not first.unusual


@pytest.mark.parametrize(
    ("waves", "fault"),
    [
        ([faster(wave, 2.0) for wave in VOICES], "its voices sound at another speed: pitch [23]"),
        ([faster(wave, 0.5) for wave in VOICES], "its voices sound at another speed: pitch 7"),
        ([wave * 1e-4 for wave in VOICES], "silent: -"),
        ([np.clip(60 * wave, -1, 1) for wave in VOICES], "clipped: "),
        ([faster(faster(wave, 2.1), 1 / 2.1) for wave in VOICES], "empty above 4 kHz: -"),
    ],
    ids=["twice as fast", "half as fast", "silent", "clipped", "telephone"],
)
def test_source_that_would_spoil_a_run_is_refused_by_name(waves: list[Wave], fault: str, look: Look) -> None:
    reports = look({"good": VOICES, "bad": waves})
    assert {report.name: bool(report.faults) for report in reports} == {"good": False, "bad": True}
    with pytest.raises(TrainingError, match=f"^bad: {fault}.*--skip-data-check"):
        require_usable(reports)


@pytest.mark.parametrize(("kind", "ratio"), [("speech", 0.5), ("noise", 2.0)])
def test_length_that_a_manifest_does_not_claim_is_another_speed(kind: Kind, ratio: float, look: Look) -> None:
    (report,) = look({"a": VOICES}, kind, claimed_s=2 / ratio)
    assert report.length_ratio == pytest.approx(ratio)
    with pytest.raises(TrainingError, match=f"a: its recordings last {ratio:.2f} times as long as the manifest"):
        require_usable([report])


def test_noise_may_be_dull_and_at_any_pitch(look: Look) -> None:
    rumble = [np.cumsum(faster(voice(seed), 3.0)).astype(np.float32) * 0.1 for seed in range(6)]
    (report,) = look({"rumble": rumble}, "noise")
    assert report.bands_db[-1] < -25
    assert (report.pitch_hz, report.faults) == (None, ())


def test_source_with_another_spectrum_than_the_others_is_named(look: Look) -> None:
    rng = np.random.default_rng(0)
    bright = [wave + 0.05 * np.diff(rng.standard_normal(len(wave) + 1)).astype(np.float32) for wave in VOICES]
    reports = look({"a": VOICES, "b": VOICES[:3], "bright": bright})
    assert {report.name: bool(report.unusual) for report in reports} == {"a": False, "b": False, "bright": True}
    assert any("unusual: 0 - 500 Hz -" in line for line in reports[2].lines())


def test_numbers_are_kept_with_the_decoded_data(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = look({"a": VOICES})
    monkeypatch.setattr("edgese.train.inventory._look", None)  # would fail
    assert look({"a": VOICES}) == wanted


def test_materials_of_a_folder_say_what_is_drawn(mixing: Path, open_folder: Callable[..., DataSets]) -> None:
    data = open_folder(mixing)
    assert [material.kind for material in data.materials] == ["speech", "noise"]
    held_out = {file for part in (data.validation.speech, data.validation.noise) for file in part.files}
    for material in data.materials:
        assert material.share.sum() == pytest.approx(1)
        drawn = {file for file, share in zip(material.recordings.files, material.share, strict=True) if share > 0}
        assert drawn == {*material.recordings.files} - held_out


def test_pitch_and_syllables_follow_the_speed() -> None:
    wave = voice(1, 4 * RATE_HZ)
    pitch, syllables = float(np.median(pitches_hz(wave, RATE_HZ))), syllable_rate_hz(wave, RATE_HZ)
    double = faster(wave, 2.0)
    assert float(np.median(pitches_hz(double, RATE_HZ))) == pytest.approx(2 * pitch, rel=0.05)
    assert syllable_rate_hz(double, RATE_HZ) > 1.3 * syllables
    assert syllable_rate_hz(wave[: RATE_HZ // 2], RATE_HZ) is None
    assert pitches_hz(wave[:100], RATE_HZ) == []
    assert pitches_hz(np.zeros(RATE_HZ, np.float32), RATE_HZ) == []


def test_report_is_plain_data(look: Look) -> None:
    (report,) = look({"a": VOICES})
    assert dataclasses.asdict(report)["bands_db"] == report.bands_db
    assert sum(10 ** (level / 10) for level in report.bands_db) == pytest.approx(1, abs=0.3)  # medians of shares
