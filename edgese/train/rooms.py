"""Room impulse responses that were measured, or made by pyroomacoustics where the data has none."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgese.audio import Wave
from edgese.audio.reader import read_wave
from edgese.errors import AudioError, TrainingError, pip_command
from export.staging import write_whole

LONGEST_MADE_T60_S = 0.6  # images grow with its cube


@dataclasses.dataclass(frozen=True)
class Room:
    """Impulse response of a room from its direct sound on, at unit energy, and its reverberation time."""

    response: Wave
    t60_s: float


def read_rooms(files: Sequence[Path], manifest: Path, sample_rate_hz: int) -> tuple[list[Room], list[str]]:
    """Impulse responses of files, and why others cannot be used.

    T60 comes from the manifest's columns file and t60_s where it has them, else it is measured.

    Raises:
        TrainingError: a manifest with other columns, or with a T60 that is no number.
    """
    known = _known_t60(manifest) if manifest.exists() else {}
    rooms, broken = [], []
    for file in files:
        try:
            wave = _from_direct_sound(read_wave(file, sample_rate_hz))
        except AudioError as error:
            broken.append(str(error))
            continue
        t60_s = known.get(file)
        rooms.append(Room(wave, reverberation_time_s(wave, sample_rate_hz) if t60_s is None else t60_s))
    return rooms, broken


def make_rooms(count: int, sample_rate_hz: int, seed: int, cache: Path) -> list[Room]:
    """Shoebox rooms of a desk's to a hall's size, source and microphone anywhere in them; made once and cached.

    Raises:
        TrainingError: pyroomacoustics is missing.
    """
    path = cache / f"rooms-{count}-{sample_rate_hz}-{seed}.npz"
    if not path.exists():
        made = [_make_room(np.random.default_rng([seed, number]), sample_rate_hz) for number in range(count)]
        packed = io.BytesIO()
        np.savez(packed, *(room.response for room in made), t60_s=[room.t60_s for room in made])
        try:
            write_whole(path, packed.getvalue())  # torchrun's processes may make them at once
        except OSError as error:
            raise TrainingError(
                f"{cache}: cannot be the cache ({error.strerror}); free space or choose another --cache"
            ) from error
    with np.load(path) as stored:
        return [Room(stored[f"arr_{number}"], float(t60_s)) for number, t60_s in enumerate(stored["t60_s"])]


def reverberation_time_s(response: Wave, sample_rate_hz: int) -> float:
    """T60 from the decay between -5 and -25 dB of the backward-integrated energy (Schroeder 1965; ISO 3382-1, T20)."""
    energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
    decay_db = 10 * np.log10(energy / energy[0] + 1e-12)
    first, last = (int(np.argmax(decay_db <= level_db)) for level_db in (-5, -25))
    return 3 * max(0, last - first) / sample_rate_hz


def _make_room(rng: np.random.Generator, sample_rate_hz: int) -> Room:
    try:
        import pyroomacoustics
    except ImportError as error:
        raise TrainingError(
            f"data.made_rooms: pyroomacoustics is missing: {pip_command('install', 'pyroomacoustics')}, "
            "or give the data a folder rir/"
        ) from error
    size_m = np.array([rng.uniform(2.5, 10), rng.uniform(2.5, 8), rng.uniform(2.3, 4)])
    surface, volume = 2 * (size_m[0] * size_m[1] + size_m[1] * size_m[2] + size_m[0] * size_m[2]), size_m.prod()
    shortest_s = 0.161 * volume / surface / 0.9  # Sabine, walls that take up nine tenths
    t60_s = rng.uniform(min(1.2 * shortest_s, LONGEST_MADE_T60_S), LONGEST_MADE_T60_S)
    absorption, order = pyroomacoustics.inverse_sabine(t60_s, size_m)
    room = pyroomacoustics.ShoeBox(
        size_m, fs=sample_rate_hz, materials=pyroomacoustics.Material(absorption), max_order=min(order, 30)
    )
    room.add_source(rng.uniform(0.3, size_m - 0.3))
    room.add_microphone(rng.uniform(0.3, size_m - 0.3))
    room.compute_rir()
    response = _from_direct_sound(np.asarray(room.rir[0][0], dtype=np.float32))
    return Room(response, reverberation_time_s(response, sample_rate_hz))


def _from_direct_sound(wave: Wave) -> Wave:
    wave = wave[int(np.argmax(np.abs(wave))) :]
    return np.asarray(wave / np.float32(np.sqrt(np.sum(wave**2)) + 1e-9), dtype=np.float32)


def _known_t60(manifest: Path) -> dict[Path, float]:
    with manifest.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if not {"file", "t60_s"} <= set(columns):
            raise TrainingError(f"{manifest}: found columns {', '.join(columns)}; wanted file and t60_s too")
        try:
            return {manifest.parent / row["file"]: float(row["t60_s"]) for row in reader if row["t60_s"]}
        except ValueError as error:
            raise TrainingError(f"{manifest}: column t60_s: {error}; wanted seconds, or nothing") from error
