"""Scores of bundles and of already enhanced files on recordings, each beside the noisy input of the same files.

    first, second = evaluate_all(Path("eval"), [Path("bundle"), Path("folder_of_enhanced_files")])
    first.mean("noisy"), first.mean("enhanced"), first.interval("gain")

A system that lacks files is compared with the noisy input on those that it has. Recordings without a clean one are
scored by what needs none: DNSMOS.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgese.atomic_file import shown, write_output
from edgese.audio import Wave
from edgese.audio.reader import read_wave
from edgese.enhance.files import denoiser_factory
from edgese.enhance.jobs import EnhanceOptions
from edgese.enhance.signal_path import denoise
from edgese.errors import AudioError, EdgeseError
from edgese.graphs.precision import Precision
from edgese.machine.processes import in_processes
from edgese.metrics import scores as metrics
from edgese.metrics.pairs import files_by_stem, pair_files

Scores = dict[str, float]
Which = Literal["noisy", "enhanced", "gain"]  # gain: enhanced - noisy, file by file

WHICH: tuple[Which, ...] = ("noisy", "enhanced", "gain")
RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0


@dataclasses.dataclass(frozen=True)
class Pair:
    """Scores of one recording, noisy and enhanced."""

    name: str
    noisy: Scores
    enhanced: Scores


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of one system on all pairs that it has, and the pairs that could not be scored, with the reason."""

    system: str
    pairs: tuple[Pair, ...]
    failed: dict[str, str]
    missing: tuple[str, ...] = ()  # pairs that the folder of enhanced files lacks

    @property
    def n_files(self) -> int:
        """Number of all pairs of the data, scored or not."""
        return len(self.pairs) + len(self.failed) + len(self.missing)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that the pairs were scored by; empty where there are none."""
        return tuple(self.pairs[0].noisy) if self.pairs else ()

    def mean(self, which: Which) -> Scores:
        """Mean of each metric over the pairs; empty where there are none."""
        return dict(zip(self.metrics, self._values(which).mean(axis=0).tolist(), strict=True)) if self.pairs else {}

    def interval(self, which: Which) -> dict[str, tuple[float, float]]:
        """95 % interval of each mean over other files of the same kind and voices; empty for fewer than two pairs."""
        if len(self.pairs) < 2:
            return {}
        low, high = bootstrap_interval(self._values(which))
        return {name: (float(low[at]), float(high[at])) for at, name in enumerate(self.metrics)}

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {
            "mean": {which: self.mean(which) for which in WHICH},
            "interval": {which: self.interval(which) for which in WHICH},
        }

    def _values(self, which: Which) -> NDArray[np.float64]:
        """Values of all metrics, (n_pairs, n_metrics)."""
        if which == "gain":
            return np.asarray(self._values("enhanced") - self._values("noisy"))
        sides: list[Scores] = [getattr(pair, which) for pair in self.pairs]
        return np.array([[scores[name] for name in self.metrics] for scores in sides])


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the 95 % percentile interval of the mean over the first axis (Efron & Tibshirani 1993, ch. 13); seeded.

    Args:
        values: (n, n_metrics); the rows are drawn whole, so that columns stay paired.
    """
    rng, n = np.random.default_rng(SEED), len(values)
    drawn = (rng.multinomial(n, np.full(n, 1 / n), RESAMPLES // 10) for _ in range(10))  # a tenth of the memory
    means = np.concatenate([counts @ values for counts in drawn]) / n
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def evaluate(
    data: Path,
    system: Path,
    *,
    runtime: str = "onnxruntime",
    precision: Precision = Precision.FP32,
    pcs: bool = False,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores of one system; for the arguments, see `evaluate_all`."""
    (result,) = evaluate_all(
        data, [system], runtime=runtime, precision=precision, pcs=pcs, jobs=jobs, on_progress=on_progress
    )
    return result


def evaluate_all(
    data: Path,
    systems: Sequence[Path],
    *,
    runtime: str = "onnxruntime",
    precision: Precision = Precision.FP32,
    pcs: bool = False,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Scores of several systems on the pairs of `data`/clean and `data`/noisy; the noisy input is scored once.

    Where `data` has no folder clean/, the recordings of noisy/, or of `data` itself, are scored by DNSMOS alone.

    Args:
        systems: bundles, or folders of files that some system has enhanced already, named like the pairs.
        runtime: what runs the bundles.
        precision: of the bundles' graphs.
        pcs: run the bundles' graphs with perceptual contrast stretching; their systems' names say both.
        jobs: processes; None: one for each core.
        on_progress: called with the files done and the files in all.

    Returns:
        One evaluation for each system, in their order; one that could not be scored at all has no pairs.

    Raises:
        AudioError: no recordings there, two files of one name, or nothing could be scored.
        EdgeseError: a package is missing, a bundle is unverified.
        ExportError, RuntimeUnavailable: a bundle is damaged or cannot be run.
    """
    metrics.packages()
    for at, system in enumerate(systems):
        if system in systems[:at]:
            raise AudioError(f"{system}: named twice, wanted each system once")
    options = EnhanceOptions(runtime=runtime, precision=precision, pcs=pcs)
    pairs = _recordings(data)
    names = sorted(pairs)
    sources = [_sources(system, names, options, data) for system in systems]
    wanted = [name for name in names if any(name in source for source in sources)]
    tasks = [_Task(name, *pairs[name], tuple(source.get(name) for source in sources), options) for name in wanted]
    outcomes: list[tuple[_Outcome, ...]] = []
    for outcome in in_processes(_score, tasks, jobs, _killed):
        outcomes.append(outcome)
        if on_progress:
            on_progress(len(outcomes), len(tasks))
    results = [
        _evaluation(_label(system, options), names, dict(zip(wanted, column, strict=True)))
        for system, column in zip(systems, zip(*outcomes, strict=True), strict=True)
    ]
    if not any(result.pairs for result in results):
        reason = next(iter(results[0].failed.values()))
        raise AudioError(f"{data}: none of {len(wanted)} recordings could be scored: {reason}")
    return results


def report(data: Path, results: Sequence[Evaluation]) -> dict[str, Any]:
    """Report for JSON, of plain values: the scores, and all that must be known to compare them with others."""
    return {
        "data": str(data),
        "packages": metrics.packages(),
        "metrics": {name: dataclasses.asdict(metric) for name, metric in metrics.METRICS.items()},
        "interval": {
            "method": "percentile bootstrap over files",
            "level": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "systems": [result.entry() for result in results],
    }


def write_csv(path: Path, results: Sequence[Evaluation], *, replace: bool) -> None:
    """Write a CSV with one row a system and file: its scores beside the noisy input's, or why there are none.

    Raises:
        OutputError: the file exists and must not be replaced, or cannot be written.
    """
    names = next(result.metrics for result in results if result.pairs)
    columns = [f"{which}_{name}" for which in ("noisy", "enhanced") for name in names]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["system", "file", *columns, "error"], lineterminator="\n")
    writer.writeheader()
    for result in results:
        for pair in result.pairs:
            scores = [side[name] for side in (pair.noisy, pair.enhanced) for name in names]
            writer.writerow({"system": result.system, "file": pair.name} | dict(zip(columns, scores, strict=True)))
        for name, reason in result.failed.items():
            writer.writerow({"system": result.system, "file": name, "error": reason})
    write_output(path, text.getvalue().encode(errors="backslashreplace"), replace=replace)


# Scoring, one recording a task


@dataclasses.dataclass(frozen=True)
class _Task:
    """Task of scoring one recording: its files, and the source of each system's version of it."""

    name: str
    clean: Path | None
    noisy: Path
    sources: tuple[Path | None, ...]  # a bundle's folder, an enhanced file, or None where a system lacks it
    options: EnhanceOptions  # for bundles


_Outcome = Pair | str | None  # scores, the reason why there are none, or nothing to score


def _score(task: _Task) -> tuple[_Outcome, ...]:
    """Outcome of each source of a task, in their order: scores, the reason why there are none, or None."""
    try:
        clean = None if task.clean is None else read_wave(task.clean, metrics.SAMPLE_RATE_HZ)
        noisy = read_wave(task.noisy, metrics.SAMPLE_RATE_HZ)
        before = _scores(clean, noisy, task.noisy)
    except EdgeseError as error:
        return tuple(None if source is None else str(error) for source in task.sources)

    def outcome(source: Path | None) -> _Outcome:
        if source is None:
            return None
        try:
            enhanced = _enhanced(noisy, source, task.options)
            return Pair(task.name, before, _scores(clean, enhanced, source))
        except EdgeseError as error:
            return str(error)

    return tuple(outcome(source) for source in task.sources)


def _scores(clean: Wave | None, wave: Wave, source: Path) -> Scores:
    try:
        return metrics.scores_without_clean(wave) if clean is None else metrics.all_scores(clean, wave)
    except EdgeseError as error:
        raise EdgeseError(f"{shown(source)}: {error}") from error


def _enhanced(noisy: Wave, source: Path, options: EnhanceOptions) -> Wave:
    if not source.is_dir():
        return read_wave(source, metrics.SAMPLE_RATE_HZ)
    with denoiser_factory(source, options)() as denoiser:
        blocks = denoise([noisy[:, None]], metrics.SAMPLE_RATE_HZ, 1, denoiser, options.atten_limit_db)
        return np.concatenate(list(blocks))[:, 0]


def _killed(task: _Task) -> tuple[_Outcome, ...]:
    reason = f"{shown(task.noisy)}: the process that scored it died (no memory left, or PESQ's C program): cut it"
    return tuple(None if source is None else reason for source in task.sources)


def _label(system: Path, options: EnhanceOptions) -> str:
    if not _is_bundle(system):
        return str(system)
    precision = "" if options.precision == Precision.FP32 else f" in {options.precision.value}"
    return f"{system}{precision}{' with PCS' if options.pcs else ''}"


def _evaluation(system: str, names: Sequence[str], outcomes: Mapping[str, _Outcome]) -> Evaluation:
    pairs = tuple(outcome for outcome in outcomes.values() if isinstance(outcome, Pair))
    failed = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)}
    missing = tuple(name for name in names if outcomes.get(name) is None)
    return Evaluation(system, pairs, failed, missing)


# Which files there are


def _recordings(data: Path) -> dict[str, tuple[Path | None, Path]]:
    """Clean file, where there is a folder of them, and noisy file by name."""
    if (data / "clean").is_dir():
        return dict(pair_files(data))
    folder = data / "noisy" if (data / "noisy").is_dir() else data
    files = files_by_stem(folder)
    if not files:
        raise AudioError(f"{folder}: found no recordings, wanted audio files, or folders clean/ and noisy/ with pairs")
    return {name: (None, path) for name, path in files.items()}


def _is_bundle(system: Path) -> bool:
    return (system / "manifest.json").is_file()


def _sources(system: Path, names: Sequence[str], options: EnhanceOptions, data: Path) -> dict[str, Path]:
    """Source of a system's version of each recording, by name: the bundle, or the file of that name."""
    if _is_bundle(system):
        denoiser_factory(system, options)  # whatever is wrong with the bundle is raised here, once
        return dict.fromkeys(names, system)
    files = files_by_stem(system)
    found = {name: files[name] for name in names if name in files}
    if not found:
        raise AudioError(f"{system}: neither a bundle nor a folder with enhanced files named like those of {data}")
    return found
