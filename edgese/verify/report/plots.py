"""Plots and sounds of a report: the first recording, the error over time, and the duration of calls."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.verify.limits import LIMITS
from edgese.verify.report.drawing import (
    MINUS,
    Axis,
    Plot,
    Tick,
    bitmap,
    curves,
    flac,
    histogram,
    series,
    spectrogram_db,
    thinned,
)

if TYPE_CHECKING:
    from edgese.verify.findings import Proof, Streamed, Verification


EXCERPT_S = 10.0
RANGE_DB = 80  # of spectrograms, below the loudest of them
DIFFERENCE_RANGE_DB = 60
DIFFERENCE_DBFS = -30.0  # the level that a difference is played at, or less where its peaks would not fit
EQUAL_DBFS = -199.0  # a second whose difference is below this has none


# The first recording, seen and heard


@dataclasses.dataclass(frozen=True)
class Sound:
    """Version of the recording as picture and player; where there is nothing to show or play, the note says why."""

    title: str
    note: str
    picture: str | None = None  # data URI
    player: str | None = None  # data URI


@dataclasses.dataclass(frozen=True)
class Excerpts:
    """First recording as it was and as PyTorch and the graphs enhanced it, and the graphs' differences from PyTorch."""

    recording: str
    time: Axis
    frequency: Axis
    scale_db: tuple[int, int]
    gain_db: int  # that the players share: the loudest sound fits into full scale; not of differences
    sounds: tuple[Sound, ...]  # noisy, clean, PyTorch's
    pairs: tuple[tuple[Sound, Sound], ...]  # a graph's and its difference


def excerpts(verification: Verification) -> Excerpts:
    """Excerpts: noisy, clean, PyTorch's, and for each runtime, precision and variant the graph with the lowest SNR."""
    audio, recording = verification.bundle.manifest["audio"], verification.recordings[0]
    length = min(len(recording.noisy), round(EXCERPT_S * audio["sample_rate_hz"]))
    pytorch = {variant: wave[:length] for variant, wave in verification.pytorch.items()}
    sounds = [
        ("Noisy", "What went in", recording.noisy[:length]),
        ("Clean", "What it should become", recording.clean[:length]),
        *((_title("PyTorch", "", name), "What the graphs are compared with", wave) for name, wave in pytorch.items()),
    ]
    graphs = [
        (_title(proof.runtime, proof.graph.precision, proof.graph.variant), note, proof.graph.variant, excerpt[:length])
        for proof, excerpt, note in representatives(verification.proofs)
    ]
    studio = _Studio(audio, [wave for _, _, wave in sounds], RANGE_DB)
    gain_db = min(0, math.floor(-_decibels(max(np.abs(wave).max() for _, _, wave in sounds))))
    return Excerpts(
        recording=recording.name,
        time=Axis.linear(0.0, length / audio["sample_rate_hz"], unit="s"),
        frequency=Axis.linear(0.0, audio["sample_rate_hz"] / 2000, n_ticks=4, unit="kHz"),
        scale_db=studio.scale_db,
        gain_db=gain_db,
        sounds=tuple(studio.sound(title, note, wave, gain_db) for title, note, wave in sounds),
        pairs=tuple(
            (studio.sound(title, note, wave, gain_db), _difference(audio, title, wave - pytorch[variant]))
            for title, note, variant, wave in graphs
        ),
    )


def representatives(proofs: Sequence[Proof]) -> Iterator[tuple[Proof, Wave, str]]:
    """Graph with the lowest SNR (NaN is lowest) of each runtime, precision and variant, its sound, and a note on it."""
    groups: dict[tuple[str, str, str], list[tuple[float, Proof, Wave]]] = {}
    for proof in proofs:
        if proof.streamed is not None and proof.excerpt is not None:
            key = (proof.graph.variant, proof.graph.precision, proof.runtime)
            ratio_db = proof.streamed.wave.snr_db
            groups.setdefault(key, []).append((-math.inf if math.isnan(ratio_db) else ratio_db, proof, proof.excerpt))
    for group in groups.values():
        _, worst, excerpt = min(group, key=lambda item: item[0])
        yield worst, excerpt, worst.graph.file + (f", the lowest SNR of {len(group)} graphs" if len(group) > 1 else "")


class _Studio:
    """Maker of pictures and players of sounds, all in one colour scale that ends above the loudest of them."""

    def __init__(self, audio: Mapping[str, Any], waves: Sequence[Wave], range_db: int) -> None:
        self.audio = audio
        peaks_db = [self._levels_db(wave).max() for wave in waves if wave.any() and np.isfinite(wave).all()]
        high_db = 5 * math.ceil(max(peaks_db, default=0.0) / 5)
        self.scale_db = (high_db - range_db, high_db)

    def sound(self, title: str, note: str, wave: Wave, gain_db: int) -> Sound:
        if not np.isfinite(wave).all():
            return Sound(title, f"{note}. It holds NaN or Inf: nothing to show or to play")
        amplified = wave * np.float32(10 ** (gain_db / 20))
        note += ". Clipped in the player" * bool(np.abs(amplified).max() > 1)
        picture = bitmap(self._levels_db(wave), *self.scale_db)
        return Sound(title, note, picture, flac(amplified, self.audio["sample_rate_hz"]))

    def _levels_db(self, wave: Wave) -> NDArray[np.float64]:
        return spectrogram_db(wave, self.audio["n_fft"], self.audio["hop"])


def _difference(audio: Mapping[str, Any], graph: str, difference: Wave) -> Sound:
    title = f"{graph} {MINUS} PyTorch"
    if not np.isfinite(difference).all():
        return Sound(title, "Not a number: nothing to show or to play")
    if not difference.any():
        return Sound(title, "No sample differs")
    rms = np.sqrt(np.mean(difference.astype(np.float64) ** 2))
    level_db, peak_db = _decibels(rms), _decibels(np.abs(difference).max())
    gain_db = math.floor(min(DIFFERENCE_DBFS - level_db, -peak_db))
    magnifier = _Studio(audio, [difference], DIFFERENCE_RANGE_DB)
    low_db, high_db = magnifier.scale_db
    note = (
        f"Level {level_db:.0f} dBFS, played {abs(gain_db)} dB {'louder' if gain_db >= 0 else 'softer'}; "
        f"colours from {low_db} to {high_db} dB"
    )
    return magnifier.sound(title, note.replace("-", MINUS), difference, gain_db)


def _title(runtime: str, precision: str, variant: str) -> str:
    return " ".join(filter(None, (runtime, precision.upper(), variant and f"with {variant}")))


def _decibels(amplitude: float) -> float:
    return 20 * math.log10(max(amplitude, 1e-20))


# The error over time


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Difference of one runtime's graphs from PyTorch over the long stream."""

    runtime: str
    legend: tuple[tuple[str, str], ...]  # class of a line, graph
    level: Plot | None  # of the difference; None where nothing differs, or nothing is a number
    point_s: int  # seconds that a point stands for
    tenths: Plot | None  # SNR; None likewise


def timelines(proofs: Sequence[Proof]) -> list[Timeline]:
    """Timelines, one for each runtime that streamed."""
    return [
        _timeline(runtime, [(proof, proof.streamed) for proof in proofs if proof.runtime == runtime and proof.streamed])
        for runtime in dict.fromkeys(proof.runtime for proof in proofs if proof.streamed)
    ]


def _timeline(runtime: str, proofs: Sequence[tuple[Proof, Streamed]]) -> Timeline:
    levels = [np.where(s.difference_dbfs > EQUAL_DBFS, s.difference_dbfs, np.nan) for _, s in proofs]
    points = [thinned(values) for values in levels]
    seconds = max(map(len, levels))
    unit_s, unit = (60, "min") if seconds > 3 * 60 else (1, "s")
    size_s = max(size for _, size in points)
    tenths = [np.where(np.isinf(s.tenths_db), np.nan, s.tenths_db) for _, s in proofs]
    limits_db = sorted({LIMITS[proof.graph.precision].snr_db for proof, _ in proofs})
    return Timeline(
        runtime,
        legend=tuple((series(at), proof.graph.file) for at, (proof, _) in enumerate(proofs)),
        level=_curves(
            f"Level of the difference from PyTorch in {runtime} over {seconds} seconds",
            *("dBFS", Axis.linear(0.0, seconds / unit_s, unit=unit)),
            [((np.arange(len(values)) + 0.5) * size / unit_s, values) for values, size in points],
        ),
        point_s=size_s,
        tenths=_curves(
            f"SNR against PyTorch in {runtime} in each tenth of the stream",
            *("dB", Axis(0.0, 1.0, tuple(Tick(10 * at + 5, str(at + 1)) for at in range(10)))),
            [(np.linspace(0, 1, len(values) + 1), values) for values in tenths],
            limits_db,
            steps=True,
        ),
    )


def _curves(
    alt: str,
    unit: str,
    x: Axis,
    lines: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    limits: Sequence[float] = (),
    *,
    steps: bool = False,
) -> Plot | None:
    """Plot of lines on an axis of whole tens; None where no value is finite."""
    values = np.concatenate([values for _, values in lines])
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = (float(extreme) for extreme in (min([*limits, finite.min()]), max([*limits, finite.max()])))
    y = Axis.linear(10 * math.floor(low / 10), max(10 * math.ceil(high / 10), 10 * math.floor(low / 10) + 10))
    said = f"{alt}: from {finite.min():.0f} to {finite.max():.0f} {unit}".replace("-", MINUS)
    return curves(said, x, y, lines, limits, steps=steps)


# How long calls took


@dataclasses.dataclass(frozen=True)
class Latency:
    """Durations of the calls of one graph's long stream."""

    graph: str
    runtime: str
    n_calls: int
    median_ms: float
    p99_ms: float
    largest_ms: float
    deadline_ms: float  # the sound that a call takes lasts so long
    n_late: int
    plot: Plot


def latencies(proofs: Sequence[Proof], audio: Mapping[str, Any]) -> list[Latency]:
    """Latencies, one for each graph that streamed, on one axis."""
    calls_ms = [(proof, 1e3 * proof.streamed.call_s) for proof in proofs if proof.streamed is not None]
    deadlines_ms = [1e3 * proof.graph.block * audio["hop"] / audio["sample_rate_hz"] for proof, _ in calls_ms]
    if not calls_ms:
        return []
    exponents = [np.log10(np.maximum(values, 1e-6)) for _, values in calls_ms]
    ends = np.concatenate([*exponents, np.log10(deadlines_ms)])
    axis = Axis.decades(float(ends.min()) - 0.1, float(ends.max()) + 0.1, unit="ms")
    found = []
    for (proof, values), places, deadline_ms in zip(calls_ms, exponents, deadlines_ms, strict=True):
        median_ms, p99_ms = np.percentile(values, [50, 99])
        alt = f"Histogram of the calls of {proof.label}: median {median_ms:.2g} ms, deadline {deadline_ms:g} ms"
        found.append(
            Latency(
                *(proof.graph.file, proof.runtime, len(values), float(median_ms), float(p99_ms), float(values.max())),
                *(deadline_ms, int(np.count_nonzero(values > deadline_ms))),
                histogram(alt, axis, places, math.log10(deadline_ms)),
            )
        )
    return found
