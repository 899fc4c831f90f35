"""Scores of a bundle, or of already enhanced files, on clean/noisy pairs; the noisy input stands in the same table."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from edgese import metrics
from edgese.audio import READABLE, read_wave
from edgese.enhance import EnhanceOptions, denoise, denoiser_factory
from edgese.errors import AudioError, EdgeseError

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One recording's scores before and after."""

    name: str
    noisy: Scores
    enhanced: Scores


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of all pairs; those that could not be scored are listed with the reason."""

    system: str
    pairs: tuple[Pair, ...]
    failed: dict[str, str]

    def mean(self, which: str) -> Scores:
        """Mean of each metric over the pairs; `which` is "noisy" or "enhanced"."""
        scores = [getattr(pair, which) for pair in self.pairs]
        return {name: float(np.mean([score[name] for score in scores])) for name in metrics.NAMES}


def evaluate(
    data: Path,
    system: Path,
    *,
    runtime: str = "onnxruntime",
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores of every pair of `data`/clean and `data`/noisy.

    Args:
        system: a bundle, or a folder of files that some system has enhanced already, named like the pairs.

    Raises:
        AudioError: no pairs there, or none could be scored.
    """
    names = _pair_names(data)
    enhanced_files: dict[str, Path] | None = None
    if not (system / "manifest.json").is_file():
        enhanced_files = _by_stem(system)
        names = [name for name in names if name in enhanced_files]
        if not names:
            raise AudioError(f"{system}: neither a bundle nor a folder with enhanced files named like those of {data}")
    tasks = [(data, name, system, runtime, enhanced_files and enhanced_files[name]) for name in names]
    pairs: list[Pair] = []
    failed: dict[str, str] = {}
    # spawned: a fork would inherit locks of the caller's threads
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or len(os.sched_getaffinity(0)), mp_context=context) as pool:
        for number, (name, result) in enumerate(zip(names, pool.map(_score, tasks), strict=True)):
            if isinstance(result, Pair):
                pairs.append(result)
            else:
                failed[name] = result
            if on_progress:
                on_progress(number + 1, len(names))
    if not pairs:
        raise AudioError(f"{data}: none of {len(names)} pairs could be scored: {next(iter(failed.values()))}")
    return Evaluation(str(system), tuple(pairs), failed)


def _score(task: tuple[Path, str, Path, str, Path | None]) -> Pair | str:
    data, name, system, runtime, enhanced_file = task
    try:
        clean, noisy = (read_wave(_by_stem(data / kind)[name], metrics.SAMPLE_RATE_HZ) for kind in ("clean", "noisy"))
        if enhanced_file is None:
            with denoiser_factory(system, EnhanceOptions(runtime=runtime))() as denoiser:
                blocks = denoise([noisy[:, None]], metrics.SAMPLE_RATE_HZ, 1, denoiser)
                enhanced = np.concatenate(list(blocks))[:, 0]
        else:
            enhanced = read_wave(enhanced_file, metrics.SAMPLE_RATE_HZ)
        lengths = {len(clean), len(noisy), len(enhanced)}
        if len(lengths) > 1:
            return f"clean, noisy and enhanced have {len(clean)}, {len(noisy)} and {len(enhanced)} samples"
        return Pair(name, metrics.all_scores(clean, noisy), metrics.all_scores(clean, enhanced))
    except EdgeseError as error:
        return str(error)


def _pair_names(data: Path) -> list[str]:
    clean, noisy = (_by_stem(data / kind) for kind in ("clean", "noisy"))
    names = sorted(clean.keys() & noisy.keys())
    if not names:
        raise AudioError(f"{data}: found no pairs, wanted files of the same names in clean/ and noisy/")
    return names


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise AudioError(f"{folder}: no such folder")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in READABLE}
