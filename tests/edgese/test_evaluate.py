"""Scores of enhanced files and of bundles: each pair by its name, and whatever cannot be scored named, not averaged."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import AudioError, EdgeseError, OutputError, VerificationError
from edgese.evaluate import SEED, Evaluation, Pair, bootstrap_interval, evaluate, evaluate_all, report, write_csv
from edgese.machine.processes import in_processes
from edgese.metrics import scores as metrics
from export import ExportError

from .helpers.command_line import run_python
from .helpers.identity_bundle import write_identity_bundle

pytest.importorskip("pesq", reason="the metrics extra is not installed")
pytest.importorskip("pystoi", reason="the metrics extra is not installed")

ROOT = Path(__file__).parents[2]
EVAL_PAIRS = ROOT.parent / "shared" / "data" / "eval"
RATE_HZ = 16_000
N_SAMPLES = 24_000
N_PAIRS = 4


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
    """The pairs as files."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, (clean, noisy) in waves.items():
        write(folder / "clean" / f"{name}.wav", clean)
        write(folder / "noisy" / f"{name}.wav", noisy)
    (folder / "clean" / "README.txt").write_text("no recording")
    return folder


@pytest.fixture(scope="module")
def progress() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def systems(
    waves: dict[str, tuple[Wave, Wave]], tmp_path_factory: pytest.TempPathFactory, identity_bundle: Path
) -> list[Path]:
    """One with a file of every kind; one that has two files only; a bundle that changes nothing."""
    mixed, few = (tmp_path_factory.mktemp("systems") / name for name in ("mixed", "few"))
    write(mixed / "p0.wav", waves["p0"][0])
    write(mixed / "p1.wav", waves["p1"][1])
    write(mixed / "p2.wav", waves["p2"][0][:-1])
    write(mixed / "p3.wav", 0 * waves["p3"][0])
    write(mixed / "of_something_else.wav", waves["p0"][0])
    write(few / "p1.flac", waves["p1"][0])
    write(few / "p3.flac", waves["p3"][0])
    return [mixed, few, identity_bundle]


@pytest.fixture(scope="module")
def results(data: Path, systems: list[Path], progress: list[tuple[int, int]]) -> list[Evaluation]:
    return evaluate_all(data, systems, jobs=2, on_progress=lambda done, total: progress.append((done, total)))


@pytest.fixture(scope="module")
def mixed(results: list[Evaluation]) -> Evaluation:
    return results[0]


@pytest.fixture(scope="module")
def few(results: list[Evaluation]) -> Evaluation:
    return results[1]


@pytest.fixture(scope="module")
def identity(results: list[Evaluation]) -> Evaluation:
    return results[2]


# Pair by pair


def test_a_perfect_copy_has_the_best_scores(mixed: Evaluation) -> None:
    perfect = mixed.pairs[0]
    assert perfect.name == "p0"
    assert perfect.enhanced["pesq_wb"] == pytest.approx(4.644, abs=1e-3)
    assert perfect.enhanced["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert perfect.enhanced["si_sdr_db"] > 100
    assert perfect.enhanced["lsd_db"] == 0


def test_the_noisy_input_is_scored_beside_it(mixed: Evaluation, waves: dict[str, tuple[Wave, Wave]]) -> None:
    for pair in mixed.pairs:
        assert pair.noisy == pytest.approx(metrics.all_scores(*waves[pair.name]), abs=1e-6)
        assert pair.noisy["pesq_wb"] < 2


def test_a_recording_left_as_it_was_gains_nothing(mixed: Evaluation) -> None:
    assert mixed.pairs[1].enhanced == mixed.pairs[1].noisy


def test_what_cannot_be_scored_is_listed_with_the_reason(mixed: Evaluation, systems: list[Path]) -> None:
    """Another length; silence: neither is dropped, neither is averaged."""
    assert [pair.name for pair in mixed.pairs] == ["p0", "p1"]
    assert mixed.failed.keys() == {"p2", "p3"}
    assert mixed.failed["p2"].startswith(f"{systems[0] / 'p2.wav'}: found 23999 samples, wanted 24000")
    assert mixed.failed["p3"].startswith(f"{systems[0] / 'p3.wav'}: found silence")


def test_means_are_over_the_pairs_that_were_scored(mixed: Evaluation) -> None:
    for name in metrics.NAMES:
        noisy, enhanced = ([getattr(pair, which)[name] for pair in mixed.pairs] for which in ("noisy", "enhanced"))
        assert mixed.mean("noisy")[name] == pytest.approx(sum(noisy) / 2)
        assert mixed.mean("enhanced")[name] == pytest.approx(sum(enhanced) / 2)
        assert mixed.mean("gain")[name] == pytest.approx((sum(enhanced) - sum(noisy)) / 2)


def test_progress_counts_every_recording_once(results: list[Evaluation], progress: list[tuple[int, int]]) -> None:
    assert len(results) == 3
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_bundle_that_changes_nothing_scores_as_the_noisy_input(identity: Evaluation, identity_bundle: Path) -> None:
    """Its delay is compensated, to the sample and to the tail; two processes give the pairs in order."""
    assert identity.failed == {}
    assert [pair.name for pair in identity.pairs] == ["p0", "p1", "p2", "p3"]
    for pair in identity.pairs:
        assert pair.enhanced == pair.noisy
    assert set(identity.mean("gain").values()) == {0.0}
    assert identity.system == str(identity_bundle)


def test_a_system_that_lacks_files_is_compared_on_its_own(few: Evaluation, identity: Evaluation) -> None:
    """Its baseline is the noisy input of the two files that it has."""
    assert [pair.name for pair in few.pairs] == ["p1", "p3"]
    assert few.missing == ("p0", "p2")
    assert few.failed == {}
    assert few.n_files == identity.n_files == N_PAIRS
    noisy = {pair.name: pair.noisy for pair in identity.pairs}
    assert [pair.noisy for pair in few.pairs] == [noisy["p1"], noisy["p3"]]
    assert few.mean("noisy") != identity.mean("noisy")


@pytest.mark.slow
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


# Intervals


def evaluation_of(noisy: NDArray[np.float64], enhanced: NDArray[np.float64]) -> Evaluation:
    """Made-up pairs with these scores in every metric."""
    sides = [[dict.fromkeys(metrics.NAMES, float(value)) for value in side] for side in (noisy, enhanced)]
    return Evaluation("made up", tuple(Pair(f"p{at}", *pair) for at, pair in enumerate(zip(*sides, strict=True))), {})


def test_the_interval_of_a_normal_sample_is_that_of_the_textbook() -> None:
    values = np.random.default_rng(1).normal(5, 2, (200, 1))
    low, high = bootstrap_interval(values)
    error = values.std() / np.sqrt(200)
    assert low[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.05 * error)
    assert high[0] == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error)


def test_the_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="the metrics extra is not installed")
    values = np.random.default_rng(2).exponential(1, (30, 1))
    expected = stats.bootstrap(
        (values[:, 0],), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(SEED)
    ).confidence_interval
    np.testing.assert_allclose(np.ravel(bootstrap_interval(values)), expected, atol=0.02)


def test_the_interval_is_repeatable_and_lies_around_the_mean() -> None:
    values = np.random.default_rng(3).random((12, 3))
    low, high = bootstrap_interval(values)
    np.testing.assert_array_equal(bootstrap_interval(values), (low, high))
    assert (low < values.mean(axis=0)).all()
    assert (values.mean(axis=0) < high).all()


def test_the_gain_is_judged_pair_by_pair() -> None:
    """Files differ far more than what is gained on each: pairing takes their spread out."""
    noisy = np.linspace(1, 4, 20)
    result = evaluation_of(noisy, noisy + 0.2 + 0.01 * np.cos(np.arange(20)))
    low, high = result.interval("gain")["pesq_wb"]
    assert 0.19 < low < result.mean("gain")["pesq_wb"] < high < 0.21
    low, high = result.interval("enhanced")["pesq_wb"]
    assert high - low > 0.5


def test_there_is_no_interval_of_a_single_pair() -> None:
    result = evaluation_of(np.ones(1), np.ones(1))
    assert result.interval("enhanced") == {}
    assert result.mean("enhanced").keys() == set(metrics.NAMES)


# For machines


def test_the_report_is_json_and_says_what_scored(data: Path, results: list[Evaluation]) -> None:
    found = json.loads(json.dumps(report(data, results), allow_nan=False))
    assert found["packages"]["pesq"] == "0.0.4"
    assert found["metrics"]["pesq_wb"]["definition"] == "ITU-T P.862.2, wideband, MOS-LQO"
    assert found["interval"]["resamples"] == 10_000
    first, second, _ = found["systems"]
    assert first["failed"] == results[0].failed
    assert second["missing"] == ["p0", "p2"]
    assert second["pairs"] == [dataclasses.asdict(pair) for pair in results[1].pairs]
    assert second["mean"]["gain"] == results[1].mean("gain")
    assert second["interval"]["gain"]["stoi"] == list(results[1].interval("gain")["stoi"])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_csv_has_a_row_for_each_system_and_file(results: list[Evaluation], tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.csv"
    write_csv(path, results, replace=False)
    rows = read_csv(path)
    assert [(Path(row["system"]).name, row["file"]) for row in rows] == [
        *(("mixed", name) for name in ("p0", "p1", "p2", "p3")),
        *(("few", name) for name in ("p1", "p3")),
        *(("identity", name) for name in ("p0", "p1", "p2", "p3")),
    ]
    assert float(rows[0]["noisy_stoi"]) == results[0].pairs[0].noisy["stoi"]
    assert float(rows[0]["enhanced_stoi"]) == results[0].pairs[0].enhanced["stoi"]
    assert rows[0]["error"] == ""
    assert rows[2]["error"] == results[0].failed["p2"]
    assert rows[2]["enhanced_stoi"] == ""


def test_a_csv_that_exists_is_replaced_only_when_asked(results: list[Evaluation], tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"scores\.csv: exists already"):
        write_csv(path, results, replace=False)
    assert path.read_text() == "mine"
    write_csv(path, results, replace=True)
    assert len(read_csv(path)) == 10
    assert [file.name for file in tmp_path.iterdir()] == ["scores.csv"]


# What cannot be scored


def test_folders_without_pairs_are_refused(data: Path, tmp_path: Path, identity_bundle: Path) -> None:
    with pytest.raises(AudioError, match="found no recordings, wanted audio files, or folders clean/ and noisy/"):
        evaluate(tmp_path, identity_bundle)
    (tmp_path / "clean").mkdir()
    with pytest.raises(AudioError, match="noisy: no such folder"):
        evaluate(tmp_path, identity_bundle)
    shutil.copytree(data / "noisy", tmp_path / "noisy")
    with pytest.raises(AudioError, match="found no pairs, wanted files of the same names"):
        evaluate(tmp_path, identity_bundle)


@pytest.mark.parametrize("kind", ["clean", "noisy", "system"])
def test_two_files_of_one_name_are_refused(kind: str, tmp_path: Path, waves: dict[str, tuple[Wave, Wave]]) -> None:
    for folder in ("clean", "noisy", "system"):
        write(tmp_path / folder / "p0.wav", waves["p0"][0])
    write(tmp_path / kind / "p0.flac", waves["p0"][0])
    with pytest.raises(AudioError, match=rf"{kind}: found both p0\.flac and p0\.wav, wanted one file of a name"):
        evaluate(tmp_path, tmp_path / "system")


@pytest.mark.parametrize("inside", ["noisy", "."])
def test_recordings_without_a_clean_one_are_scored_by_what_needs_none(
    inside: str, waves: dict[str, tuple[Wave, Wave]], tmp_path: Path
) -> None:
    write(tmp_path / "data" / inside / "p3.wav", waves["p3"][1])
    write(tmp_path / "system" / "p3.wav", waves["p3"][0])
    result = evaluate(tmp_path / "data", tmp_path / "system", jobs=1)
    assert result.metrics == ("dnsmos_sig", "dnsmos_bak", "dnsmos_ovrl")
    assert result.mean("noisy")["dnsmos_bak"] < result.mean("enhanced")["dnsmos_bak"]
    assert result.pairs[0].noisy == pytest.approx(metrics.scores_without_clean(waves["p3"][1]), abs=1e-6)
    write_csv(tmp_path / "scores.csv", [result], replace=False)
    assert list(read_csv(tmp_path / "scores.csv")[0]) == [
        *("system", "file", *(f"{side}_{name}" for side in ("noisy", "enhanced") for name in result.metrics), "error")
    ]


def test_recordings_without_a_partner_are_told(
    tmp_path: Path, waves: dict[str, tuple[Wave, Wave]], caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("clean", "noisy"):
        write(tmp_path / folder / "p0.wav", waves["p0"][0])
        write(tmp_path / folder / f"only_{folder}.wav", waves["p0"][0])
    with caplog.at_level(logging.WARNING), pytest.raises(AudioError, match="missing: no such folder"):
        evaluate(tmp_path, tmp_path / "missing")
    assert "2 files are left out, in clean/ or noisy/ only: clean/only_clean.wav, noisy/only_noisy.wav" in caplog.text


def test_a_system_named_twice_is_refused(data: Path, systems: list[Path]) -> None:
    with pytest.raises(AudioError, match="mixed: named twice"):
        evaluate_all(data, [systems[0], systems[1], systems[0]])


def test_a_system_without_a_file_of_the_pairs_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such folder"):
        evaluate(data, tmp_path / "missing")
    with pytest.raises(AudioError, match="neither a bundle nor a folder with enhanced files named like those"):
        evaluate(data, tmp_path)
    write(tmp_path / "of_something_else.wav", np.zeros(N_SAMPLES, np.float32))
    with pytest.raises(AudioError, match="neither a bundle nor a folder with enhanced files named like those"):
        evaluate(data, tmp_path)


@pytest.mark.slow
def test_a_recording_that_one_metric_cannot_score_has_failed(
    waves: dict[str, tuple[Wave, Wave]], tmp_path: Path
) -> None:
    """A click of 25 ms, in which PESQ finds no utterance, does not leave the other metrics with a file more."""
    clean, noisy = waves["p1"]
    click = np.where((np.arange(N_SAMPLES) >= 12_000) & (np.arange(N_SAMPLES) < 12_400), noisy, 0).astype(np.float32)
    for name, pair in {"click": (click, noisy), "speech": (clean, noisy)}.items():
        write(tmp_path / "clean" / f"{name}.wav", pair[0])
        write(tmp_path / "noisy" / f"{name}.wav", pair[1])
    result = evaluate(tmp_path, tmp_path / "noisy", jobs=1)
    assert [pair.name for pair in result.pairs] == ["speech"]
    noisy_path = tmp_path / "noisy" / "click.wav"
    reason = "PESQ cannot score this pair (NoUtterancesError: No utterances detected)"
    assert result.failed == {"click": f"{noisy_path}: {reason}"}


@pytest.mark.slow
def test_nothing_scored_is_a_failure(data: Path, tmp_path: Path) -> None:
    """A system whose every file is unusable has no mean."""
    (tmp_path / "p0.wav").write_bytes(b"RIFF")
    write(tmp_path / "p1.wav", np.zeros(N_SAMPLES, np.float32))
    with pytest.raises(AudioError, match=r"none of 2 recordings could be scored: .*p0\.wav"):
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
    with pytest.raises(VerificationError, match="did not pass its verification"):
        evaluate(data, bundle, jobs=1)


def test_a_missing_package_is_told_before_any_work(data: Path, systems: list[Path], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pystoi", None)
    with pytest.raises(EdgeseError, match=r"pystoi is missing: .* -m pip install"):
        evaluate_all(data, systems)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_kills_its_process_fails_alone(jobs: int) -> None:
    """As PESQ's C program can; the rest is done all the same, in order."""
    work = ["1 + 1", "2 + 2", "__import__('os')._exit(1)", "4 + 4", "5 + 5"]
    assert list(in_processes(eval, work, jobs, lambda item: f"died of {item}")) == [2, 4, f"died of {work[2]}", 8, 10]


def test_a_bug_in_a_process_is_no_score(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        list(in_processes(eval, ["1 / 0", "1"], 1, str))


# The command


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = run_python(["-m", "edgese", "evaluate", *arguments], cwd)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.slow
def test_the_command_prints_one_table_of_all_systems(data: Path, systems: list[Path], tmp_path: Path) -> None:
    mixed, few, bundle = systems
    arguments = ("--data", data, "-s", few, "-s", mixed, "--model", bundle, "-j", 2)
    done = run(*arguments, "--csv", "scores.csv", cwd=tmp_path)
    assert done.returncode == 1  # of `mixed`, two files could not be scored
    assert [line.split(": ")[:3] for line in done.stderr.splitlines()] == [
        ["error", "p2", "not scored"],
        ["error", "p3", "not scored"],
    ]
    *_, packages, rated, header = done.stdout.splitlines()[:5]
    assert "PESQ: pesq 0.0.4, MOS-LQO; WB: P.862.2, NB: P.862.1 at 16 kHz" in packages
    assert rated.startswith("SIG, BAK, OVRL: DNSMOS P.835, speechmos 0.0.1.1")
    assert " ".join(header.split()) == "files PESQ-WB PESQ-NB STOI ESTOI SI-SDR dB CSIG CBAK COVL LSD dB SIG BAK OVRL"
    scores, levels = done.stdout.split("\n\n")
    rows = [line.split() for line in scores.splitlines()[5:] if line[:10].strip()]  # intervals have no label
    assert [" ".join(row[:-12]) for row in rows] == [
        *("noisy 4/4", "identity 4/4", "gain"),
        *("noisy 2/4", "few 2/4", "gain"),
        *("noisy 2/4", "mixed 2/4", "gain"),
    ]
    heading, header, *lines = levels.splitlines()
    assert heading == "level of speech over that of the clean recording by octave band, dB; 0 is best"
    assert header.split()[:5] == ["files", "125", "Hz", "250", "Hz"]
    assert [" ".join(line.split()[:-7]) for line in lines if line[:10].strip()] == [
        *("noisy 4/4", "identity 4/4", "noisy 2/4", "few 2/4", "noisy 2/4", "mixed 2/4")
    ]
    assert len(read_csv(tmp_path / "scores.csv")) == 10
    again = run(*arguments, "--csv", "scores.csv", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "error: scores.csv: exists already; replace it with --force, or choose another --csv\n"


# Recordings


@pytest.mark.slow
def test_other_systems_stand_beside_the_noisy_input_of_their_files(tmp_path: Path) -> None:
    """What its README says of one of them, on files that it has."""
    if not EVAL_PAIRS.is_dir():
        pytest.skip("the evaluation pairs are not on this machine (../shared/data/eval)")
    names = ("p232_014", "p232_050", "p257_231")
    for kind in ("clean", "noisy"):
        (tmp_path / kind).mkdir()
        for name in names:
            (source,) = (EVAL_PAIRS / kind).glob(f"{name}.*")
            (tmp_path / kind / source.name).symlink_to(source)
    bsrnn, cmgan = evaluate_all(tmp_path, [EVAL_PAIRS / "peers" / name for name in ("BSRNN_sungwon23", "CMGAN")])
    assert [pair.name for pair in bsrnn.pairs] == [*names]
    assert cmgan.missing == names[1:]
    for name, metric in metrics.METRICS.items():
        low, high = bsrnn.interval("gain")[name]
        if metric.needs_clean and metric.higher_is_better is not None:
            assert low > 0 if metric.higher_is_better else high < 0, name
    assert cmgan.pairs[0].enhanced["pesq_wb"] == pytest.approx(2.98, abs=0.01)
