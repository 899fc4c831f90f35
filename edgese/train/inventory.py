"""Inventory of training data before the first step: what is fed, source by source, looked at in numbers.

A source is a folder of recordings, as a corpus is unpacked. A few seconds of a few of its recordings are looked at:
quick, and a sample, which says nothing of single files. It finds what spoils a whole run and nobody hears: a copy at
another speed, with its treble gone, clipped or silent.

Speed is told by three things. The length is compared with what the data's manifest (column `seconds`) or else the
file's header claims. Where that fits, speech is known by its pitch and by the rate at which its level goes up and down:
104 to 235 Hz and 4.0 to 5.8 a second in 19 corpora. The two together (`haste`) tell 17 of 18 corpora at twice their
speed and 16 of 19 at half of it from all of these: what a manifest claims is the surer way.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.audio.reader import AudioReader
from edgese.errors import AudioError, TrainingError
from edgese.train.decoded import DecodedRecordings
from export.staging import write_whole

Kind = Literal["speech", "noise", "clean", "noisy"]

N_FILES, PIECE_S = 12, 4.0  # of a source that are looked at
LEAST_VOICED, LEAST_PIECES = 50, 5  # frames and recordings to know voices by
BANDS_HZ = (0, 500, 1000, 2000, 4000, 8000)
_VERSION = 1  # of the numbers that a cache may hold

# Limits; measured on 21 corpora of speech and 37 of noise, see docs/training.md
SILENT_DBFS = -65.0
CLIPPED_SHARE = 1e-3  # of samples at full scale, in the median piece
EMPTY_DB = -55.0  # of speech above 4 kHz under the whole
LENGTH_RATIO = 1.02
PITCH_HZ, SYLLABLES_HZ = 160.0, 4.85
FAST, SLOW, HIGH_HZ = 1.0, -1.15, 290.0  # of `haste`, refused beyond; of the pitch
UNUSUAL_HASTE, UNUSUAL_DB = (-1.0, 0.75), 6.0  # named beyond


@dataclasses.dataclass(frozen=True)
class Material:
    """Recordings of one kind, with what is known of each."""

    kind: Kind
    folder: Path  # of all the data
    recordings: DecodedRecordings
    groups: Sequence[str]  # speaker, or the recording itself
    claimed_s: Sequence[float | None]  # by a manifest
    share: NDArray[np.float64]  # probability that training draws it


@dataclasses.dataclass(frozen=True)
class SourceReport:
    """What a source holds and what a sample of it looks like; None where it was not measured."""

    kind: Kind
    name: str
    files: int
    hours: float
    speakers: int
    share: float
    looked_at: int
    rates_hz: tuple[int, ...]
    channels: tuple[int, ...]
    length_ratio: float | None  # found over claimed, of the recording that differs most
    level_dbfs: float
    clipped_share: float
    bands_db: tuple[float, ...]  # of BANDS_HZ, under the whole
    pitch_hz: float | None
    syllables_hz: float | None
    faults: tuple[str, ...] = ()
    unusual: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Report for a reader: what there is, what a sample of it looks like, and what is wrong or unusual."""
        rates = ", ".join(f"{rate / 1000:g}" for rate in self.rates_hz) or "?"
        channels = ", ".join(map(str, self.channels)) or "?"
        who = f", {self.speakers} speaker{'s' * (self.speakers != 1)}" if self.kind in ("speech", "clean") else ""
        bands = " ".join(f"{level:.0f}" for level in self.bands_db)
        voice = f", pitch {self.pitch_hz:.0f} Hz" if self.pitch_hz else ""
        first = (
            f"{self.kind} {self.name}: {self.files} files, {self.hours:.2f} h{who}, {100 * self.share:.1f} % of draws; "
            f"of {self.looked_at}: {rates} kHz, channels {channels}, {self.level_dbfs:.0f} dBFS, "
            f"below .5, 1, 2, 4, 8 kHz {bands} dB{voice}"
        )
        return [
            first,
            *(f"    unusual: {text}" for text in self.unusual),
            *(f"    FAULT: {text}" for text in self.faults),
        ]


def take_inventory(materials: Sequence[Material], cache: Path) -> list[SourceReport]:
    """Reports of all sources, from the cache where the same recordings were looked at before.

    Raises:
        TrainingError: the cache cannot be written.
    """
    reports: list[SourceReport] = []
    for material in materials:
        by_source: dict[str, list[int]] = defaultdict(list)
        for index, file in enumerate(material.recordings.files):
            by_source[_source_of(file, material.folder)].append(index)
        facts = _cached(material, by_source, cache)
        of_kind = [_report(material, name, members, facts[name]) for name, members in sorted(by_source.items())]
        reports += [_judged(report, of_kind) for report in of_kind]
    return reports


def require_usable(reports: Sequence[SourceReport]) -> None:
    """Refuse data of which a source would teach something wrong.

    Raises:
        TrainingError: with every fault that was found.
    """
    faults = [f"{report.name}: {fault}" for report in reports for fault in report.faults]
    if faults:
        raise TrainingError(
            f"{'; '.join(faults)}. Mend or remove what is named, or give --skip-data-check if you know better"
        )


def _source_of(file: Path, folder: Path) -> str:
    """Name of a source: the folder of a recording below the data's, two levels at most (train_speech/librispeech)."""
    parts = file.relative_to(folder).parts[:-1] if folder in file.parents else file.parts[-3:-1]
    return "/".join(parts[:2]) or "."


def _cached(material: Material, by_source: dict[str, list[int]], cache: Path) -> dict[str, dict[str, Any]]:
    recordings = material.recordings
    claims = [None if seconds is None else round(seconds, 3) for seconds in material.claimed_s]
    names = [str(file) for file in recordings.files]
    known = json.dumps([_VERSION, material.kind, recordings.digest, names, claims])
    path = cache / f"{hashlib.sha256(known.encode()).hexdigest()[:24]}.inventory.json"
    try:
        stored: dict[str, dict[str, Any]] = json.loads(path.read_text())
        if stored.keys() == by_source.keys():
            return stored
    except (OSError, ValueError, AttributeError):  # none yet, or cut short
        pass
    facts = {name: _look(material, members) for name, members in by_source.items()}
    try:
        write_whole(path, json.dumps(facts).encode())
    except OSError as error:
        raise TrainingError(
            f"{cache}: cannot be the cache ({error.strerror}); free space or choose another --cache"
        ) from error
    return facts


def _look(material: Material, members: Sequence[int]) -> dict[str, Any]:
    """Measured facts of a source: names as in `SourceReport`."""
    recordings = material.recordings
    chosen = np.random.default_rng(len(members)).permutation(members)[:N_FILES].tolist()
    rate_hz = recordings.sample_rate_hz
    pieces = [recordings.read(index, 0, round(PIECE_S * rate_hz)) for index in chosen]
    headers = [_header(recordings.files[index]) for index in chosen]
    ratios = []
    for index in members:  # a manifest claims for all of them, and their lengths are known
        if material.claimed_s[index]:
            ratios.append(recordings.length(index) / rate_hz / float(material.claimed_s[index] or 0))
    for index, (_, _, seconds) in zip(chosen, headers, strict=True):
        if not material.claimed_s[index] and seconds:
            ratios.append(recordings.length(index) / rate_hz / seconds)
    speech = material.kind in ("speech", "clean")
    pitch = [value for piece in pieces for value in pitches_hz(piece, rate_hz)] if speech else []
    rates = [value for piece in pieces if (value := syllable_rate_hz(piece, rate_hz)) is not None] if speech else []
    powers = np.array([_band_powers(piece, rate_hz) for piece in pieces])  # (pieces, bands)
    bands = 10 * np.log10(powers / (powers.sum(1, keepdims=True) + 1e-20) + 1e-12)
    return {
        "looked_at": len(pieces),
        "rates_hz": sorted({rate for rate, _, _ in headers if rate}),
        "channels": sorted({channels for _, channels, _ in headers if channels}),
        "length_ratio": max(ratios, key=lambda ratio: abs(math.log(max(ratio, 1e-3))), default=None),
        "typical_ratio": float(np.median(ratios)) if ratios else None,
        "level_dbfs": float(np.median([10 * np.log10(np.mean(piece**2) + 1e-12) for piece in pieces])),
        "clipped_share": float(np.median([np.mean(np.abs(piece) >= 0.999) for piece in pieces])),
        "bands_db": np.median(bands, axis=0).tolist(),
        "pitch_hz": float(np.median(pitch)) if len(pitch) >= LEAST_VOICED else None,
        "syllables_hz": float(np.mean(rates)) if len(rates) >= LEAST_PIECES else None,
    }


def _report(material: Material, name: str, members: Sequence[int], facts: dict[str, Any]) -> SourceReport:
    known: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
    typical = known.pop("typical_ratio")
    lengths = material.recordings.lengths[list(members)]
    report = SourceReport(
        kind=material.kind,
        name=name,
        files=len(members),
        hours=float(lengths.sum()) / material.recordings.sample_rate_hz / 3600,
        speakers=len({material.groups[index] for index in members}),
        share=float(material.share[list(members)].sum()),
        **known,
    )
    return dataclasses.replace(report, faults=tuple(_faults(report, typical)))


def _faults(report: SourceReport, typical_ratio: float | None) -> list[str]:
    """What makes a source unfit, in words."""
    if report.level_dbfs < SILENT_DBFS:
        return [f"silent: {report.level_dbfs:.0f} dBFS, wanted above {SILENT_DBFS:.0f}"]
    faults = []
    speech = report.kind in ("speech", "clean")
    if typical_ratio and not 1 / LENGTH_RATIO < typical_ratio < LENGTH_RATIO:
        faults.append(
            f"its recordings last {typical_ratio:.2f} times as long as the manifest or their headers say: "
            "another speed, or cut"
        )
    elif speech and report.pitch_hz and report.syllables_hz:
        value = haste(report.pitch_hz, report.syllables_hz)
        if value > FAST or report.pitch_hz > HIGH_HZ or value < SLOW:
            faults.append(
                f"its voices sound at another speed: pitch {report.pitch_hz:.0f} Hz, {report.syllables_hz:.1f} rises "
                f"of the level a second, wanted about {PITCH_HZ:.0f} Hz and {SYLLABLES_HZ:.1f}; a header that lies?"
            )
    if speech and report.bands_db[-1] < EMPTY_DB:
        faults.append(
            f"empty above 4 kHz: {report.bands_db[-1]:.0f} dB under the whole, wanted above {EMPTY_DB:.0f}; it was "
            "stored at a lower rate"
        )
    if report.clipped_share > CLIPPED_SHARE:
        faults.append(f"clipped: {100 * report.clipped_share:.1f} % of the samples at full scale")
    return faults


def _judged(report: SourceReport, others: Sequence[SourceReport]) -> SourceReport:
    """Report with what is unusual in a source beside the others of its kind."""
    unusual = []
    if len(others) > 2 and report.kind in ("speech", "clean"):
        usual = np.median([other.bands_db for other in others], axis=0)
        for edges, found, wanted in zip(itertools.pairwise(BANDS_HZ), report.bands_db, usual, strict=True):
            if abs(found - wanted) > UNUSUAL_DB:
                unusual.append(f"{edges[0]} - {edges[1]} Hz {found - wanted:+.0f} dB from the usual")
    if report.pitch_hz and report.syllables_hz and not report.faults:
        low, high = UNUSUAL_HASTE
        value = haste(report.pitch_hz, report.syllables_hz)
        if not low < value < high:
            unusual.append(f"voices {'high and fast' if value > high else 'deep and slow'}: speed?")
    ratio = report.length_ratio
    if ratio and not report.faults and not 1 / LENGTH_RATIO < ratio < LENGTH_RATIO:
        unusual.append(f"one recording lasts {ratio:.2f} times as long as claimed")
    return dataclasses.replace(report, unusual=tuple(unusual))


def haste(pitch_hz: float, syllables_hz: float) -> float:
    """Speed of voices: 0 for usual ones, about 1.5 at twice, -1.7 at half the speed; -1.0 to 0.7 was found."""
    return math.log2(pitch_hz / PITCH_HZ) + 2 * math.log2(syllables_hz / SYLLABLES_HZ)


def pitches_hz(wave: Wave, rate_hz: int) -> list[float]:
    """Pitch of the voiced frames of a wave, 55 to 600 Hz, by autocorrelation; the least lag of several."""
    size = rate_hz * 64 // 1000
    if len(wave) < size:
        return []
    frames = np.lib.stride_tricks.sliding_window_view(wave, size)[:: size // 2].astype(np.float64)
    power = np.square(frames).mean(1)
    frames = frames[power > 0.03 * power.max()]
    window = np.hanning(size)
    of_frames, of_window = (
        np.fft.irfft(np.abs(np.fft.rfft(x, 2 * size)) ** 2)[..., :size] for x in (frames * window, window)
    )
    likeness = of_frames / (of_frames[:, :1] + 1e-20) / (of_window / of_window[0] + 1e-3)
    first, last = rate_hz // 600, rate_hz // 55
    near = likeness[:, first - 1 : last + 1]
    best = near.max(1, keepdims=True)
    peaks = (near[:, 1:-1] > near[:, :-2]) & (near[:, 1:-1] >= near[:, 2:]) & (near[:, 1:-1] > 0.85 * best)
    voiced = peaks.any(1) & (best[:, 0] > 0.6)
    return [rate_hz / (first + int(lag)) for lag in peaks[voiced].argmax(1)]


def syllable_rate_hz(wave: Wave, rate_hz: int) -> float | None:
    """Mean frequency, 1.5 to 20 Hz, at which the level of a wave goes up and down; None of less than a second."""
    size = rate_hz // 50
    if len(wave) < rate_hz:
        return None
    amplitude = np.sqrt(np.square(wave[: len(wave) // size * size].reshape(-1, size), dtype=np.float64).mean(1))
    level = np.log(np.maximum(amplitude, amplitude.max() * 0.01) + 1e-9)
    power = np.abs(np.fft.rfft((level - level.mean()) * np.hanning(len(level)))) ** 2
    frequency = np.fft.rfftfreq(len(level), 0.02)
    inside = (frequency >= 1.5) & (frequency <= 20)
    total = float(power[inside].sum())
    return float((power * frequency)[inside].sum()) / total if total > 0 else None


def _band_powers(wave: Wave, rate_hz: int) -> NDArray[np.float64]:
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    frequency = np.fft.rfftfreq(len(wave), 1 / rate_hz)
    edges = np.searchsorted(frequency, [*BANDS_HZ[:-1], BANDS_HZ[-1] + 1])
    return np.array([power[low:high].sum() for low, high in itertools.pairwise(edges)])


def _header(file: Path) -> tuple[int, int, float]:
    """Rate, channels and seconds that a file's header states; 0 of what it does not."""
    try:
        with AudioReader(file) as reader:
            info = reader.info
            return info.sample_rate_hz, info.n_channels, (info.duration_s or 0.0) if info.exact else 0.0
    except AudioError:  # it was decoded, so it is there; what cannot be told is left out
        return 0, 0, 0.0
