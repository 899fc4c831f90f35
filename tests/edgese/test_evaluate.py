"""Scores of enhanced files and of bundles: each pair by its name, and whatever cannot be scored named, not averaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from edgese import metrics
from edgese.errors import AudioError, EdgeseError
from edgese.evaluate import Evaluation, evaluate
from export import ExportError

from .identity_bundle import write_identity_bundle

pytest.importorskip("pesq", reason="the metrics extra is not installed")
pytest.importorskip("pystoi", reason="the metrics extra is not installed")

Wave = NDArray[np.float32]
RATE_HZ = 16_000
N_SAMPLES = 24_000
N_PAIRS = 3


def write(path: Path, wave: Wave, rate_hz: int = RATE_HZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, subtype="FLOAT" if path.suffix == ".wav" else None)


@pytest.fixture(scope="module")
def waves(speech_like: Callable[..., Wave]) -> dict[str, tuple[Wave, Wave]]:
    """Clean and noisy waves by name; each pair noisier than the one before."""
    rng = np.random.default_rng(0)
    clean = {f"p{index}": speech_like(N_SAMPLES, seed=index) for index in range(N_PAIRS)}
    return {
        name: (wave, (wave + 0.02 * 2**index * rng.standard_normal(N_SAMPLES)).astype(np.float32))
        for index, (name, wave) in enumerate(clean.items())
    }


@pytest.fixture(scope="module")
def data(waves: dict[str, tuple[Wave, Wave]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs as files, and on each side a recording that the other lacks."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, (clean, noisy) in waves.items():
        write(folder / "clean" / f"{name}.wav", clean)
        write(folder / "noisy" / f"{name}.wav", noisy)
    write(folder / "clean" / "only_clean.wav", waves["p0"][0])
    write(folder / "noisy" / "only_noisy.wav", waves["p0"][1])
    (folder / "clean" / "README.txt").write_text("no recording")
    return folder


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def mixed(
    data: Path,
    waves: dict[str, tuple[Wave, Wave]],
    tmp_path_factory: pytest.TempPathFactory,
    told: list[tuple[int, int]],
) -> Evaluation:
    """A system that copied the clean recording, left one as it was, and lost the last sample of another."""
    folder = tmp_path_factory.mktemp("system")
    write(folder / "p0.wav", waves["p0"][0])
    write(folder / "p1.wav", waves["p1"][1])
    write(folder / "p2.wav", waves["p2"][0][:-1])
    write(folder / "of_something_else.wav", waves["p0"][0])
    return evaluate(data, folder, jobs=1, on_progress=lambda done, total: told.append((done, total)))


def test_a_perfect_copy_has_the_best_scores(mixed: Evaluation) -> None:
    perfect = mixed.pairs[0]
    assert perfect.name == "p0"
    assert perfect.enhanced["pesq_wb"] == pytest.approx(4.644, abs=1e-3)
    assert perfect.enhanced["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert perfect.enhanced["si_sdr_db"] > 100


def test_the_noisy_input_is_scored_beside_it(mixed: Evaluation, waves: dict[str, tuple[Wave, Wave]]) -> None:
    for pair in mixed.pairs:
        assert pair.noisy == pytest.approx(metrics.all_scores(*waves[pair.name]), abs=1e-6)
        assert pair.noisy["pesq_wb"] < 2


def test_a_recording_left_as_it_was_gains_nothing(mixed: Evaluation) -> None:
    assert mixed.pairs[1].enhanced == mixed.pairs[1].noisy


def test_an_enhanced_file_of_another_length_is_listed_and_not_scored(mixed: Evaluation) -> None:
    assert mixed.failed == {"p2": "clean, noisy and enhanced have 24000, 24000 and 23999 samples"}
    assert [pair.name for pair in mixed.pairs] == ["p0", "p1"]


def test_means_are_over_the_pairs_that_were_scored(mixed: Evaluation) -> None:
    for which in ("noisy", "enhanced"):
        for name in metrics.NAMES:
            values = [getattr(pair, which)[name] for pair in mixed.pairs]
            assert mixed.mean(which)[name] == pytest.approx(sum(values) / 2)


def test_progress_counts_every_pair(mixed: Evaluation, told: list[tuple[int, int]]) -> None:
    assert len(mixed.pairs) + len(mixed.failed) == N_PAIRS
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_bundle_that_changes_nothing_scores_as_the_noisy_input(data: Path, identity_bundle: Path) -> None:
    """Its delay is compensated, to the sample and to the tail; two processes give the pairs in order."""
    result = evaluate(data, identity_bundle, jobs=2)
    assert result.failed == {}
    assert [pair.name for pair in result.pairs] == ["p0", "p1", "p2"]
    for pair in result.pairs:
        assert pair.enhanced == pair.noisy
    assert result.mean("enhanced") == result.mean("noisy")
    assert result.system == str(identity_bundle)


def test_pairs_of_other_formats_and_rates_are_brought_to_16_khz(
    waves: dict[str, tuple[Wave, Wave]], tmp_path: Path
) -> None:
    clean, noisy = waves["p1"]
    write(tmp_path / "clean" / "p1.flac", np.repeat(clean, 2)[:, None].repeat(2, axis=1), 2 * RATE_HZ)
    write(tmp_path / "noisy" / "p1.wav", np.repeat(noisy, 2), 2 * RATE_HZ)
    write(tmp_path / "system" / "p1.WAV", np.repeat(clean, 2), 2 * RATE_HZ)
    (pair,) = evaluate(tmp_path, tmp_path / "system", jobs=1).pairs
    assert pair.enhanced["pesq_wb"] == pytest.approx(4.64, abs=0.02)
    assert pair.noisy["pesq_wb"] < 2


# What cannot be scored


def test_folders_without_pairs_are_refused(data: Path, tmp_path: Path, identity_bundle: Path) -> None:
    with pytest.raises(AudioError, match="clean: no such folder"):
        evaluate(tmp_path, identity_bundle)
    (tmp_path / "clean").mkdir()
    with pytest.raises(AudioError, match="noisy: no such folder"):
        evaluate(tmp_path, identity_bundle)
    shutil.copytree(data / "noisy", tmp_path / "noisy")
    with pytest.raises(AudioError, match="found no pairs, wanted files of the same names"):
        evaluate(tmp_path, identity_bundle)


def test_a_system_without_a_file_of_the_pairs_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such folder"):
        evaluate(data, tmp_path / "missing")
    with pytest.raises(AudioError, match="neither a bundle nor a folder with enhanced files named like those"):
        evaluate(data, tmp_path)
    write(tmp_path / "of_something_else.wav", np.zeros(N_SAMPLES, np.float32))
    with pytest.raises(AudioError, match="neither a bundle nor a folder with enhanced files named like those"):
        evaluate(data, tmp_path)


def test_nothing_scored_is_a_failure(data: Path, tmp_path: Path) -> None:
    """A system whose every file is unusable has no mean."""
    (tmp_path / "p0.wav").write_bytes(b"RIFF")
    write(tmp_path / "p1.wav", np.zeros(N_SAMPLES, np.float32))
    with pytest.raises(AudioError, match=r"none of 2 pairs could be scored: .*p0\.wav"):
        evaluate(data, tmp_path, jobs=1)


def test_a_damaged_bundle_ends_the_evaluation(data: Path, tmp_path: Path) -> None:
    bundle = write_identity_bundle(tmp_path / "bundle")
    (bundle / "fp32-block16.onnx").write_bytes(b"damaged")
    with pytest.raises(ExportError, match=r"fp32-block16\.onnx: changed since it was exported"):
        evaluate(data, bundle, jobs=1)


def test_a_bundle_that_failed_its_verification_is_not_scored(data: Path, tmp_path: Path) -> None:
    bundle = write_identity_bundle(tmp_path / "bundle")
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"passed": true', '"passed": false'))
    with pytest.raises(AudioError, match="did not pass its verification"):
        evaluate(data, bundle, jobs=1)


def test_a_silent_output_is_an_error_of_one_line_and_no_crash(waves: dict[str, tuple[Wave, Wave]]) -> None:
    """The package divides by the level of what it is given."""
    clean, _ = waves["p0"]
    with pytest.raises(EdgeseError, match="PESQ cannot score this pair"):
        metrics.pesq_wb(clean, 0 * clean)


def test_a_recording_too_short_for_stoi_is_an_error_and_no_score(waves: dict[str, tuple[Wave, Wave]]) -> None:
    """The package warns and answers 1e-5, which would sink a mean."""
    clean, noisy = waves["p0"]
    with pytest.raises(EdgeseError, match="STOI cannot score this pair"):
        metrics.stoi(clean[:6_000], noisy[:6_000])
