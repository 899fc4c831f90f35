"""Training data: recordings decoded once into a memory map, mixtures made on the fly, every example by its number.

Example i of a run depends on the seed and on i alone: the order of workers, a restart or another machine change
nothing. Two layouts are understood:

    pairs    a folder with clean and noisy recordings of the same names (VoiceBank+DEMAND: clean_trainset_28spk_wav,
             noisy_trainset_28spk_wav; also clean/ and noisy/)
    mixing   a folder with speech/ (or train_speech/, clean/) and noise/ (or train_noise/), optionally rir/
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from edgese.audio import READABLE, read_wave
from edgese.config import DataConfig
from edgese.errors import TrainingError

Wave = NDArray[np.float32]
Progress = Callable[[int, int], None]
SILENCE_DBFS = -60.0


class Examples(Protocol):
    """Numbered (noisy, clean) pairs of float32 waves in [-1, 1], in time with each other and equally long."""

    def __call__(self, index: int) -> tuple[Wave, Wave]: ...


class Recordings:
    """Many recordings as one int16 memory map at the rate of the signal contract."""

    def __init__(
        self, files: Sequence[Path], sample_rate_hz: int, cache: Path, progress: Progress | None = None
    ) -> None:
        """Decodes `files` unless the cache holds them already (same paths, sizes and times)."""
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = hashlib.sha256(json.dumps([sample_rate_hz, stats]).encode()).hexdigest()[:24]
        self.files = list(files)
        samples_path, index_path = cache / f"{key}.i16", cache / f"{key}.json"
        if not index_path.exists():
            try:
                cache.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(
                    f"{cache}: cannot be the cache ({error.strerror}); choose another --cache"
                ) from error
            _decode(files, sample_rate_hz, samples_path, index_path, progress)
        self.bounds = np.array(json.loads(index_path.read_text()))
        self._samples = np.memmap(samples_path, dtype=np.int16, mode="r")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def n_samples(self) -> int:
        return int(self.bounds[-1])

    def length(self, index: int) -> int:
        """Samples of one recording."""
        return int(self.bounds[index + 1] - self.bounds[index])

    def read(self, index: int, start: int = 0, length: int | None = None) -> Wave:
        """Samples of one recording, as many as there are from `start` on, at most `length`."""
        first, last = int(self.bounds[index]) + start, int(self.bounds[index + 1])
        if length is not None:
            last = min(last, first + length)
        return np.asarray(self._samples[first:last] / np.float32(32768), dtype=np.float32)


class PairedExamples:
    """Segments of recorded (noisy, clean) pairs at random places and gains."""

    def __init__(self, noisy: Recordings, clean: Recordings, config: DataConfig, length: int, seed: int) -> None:
        self.noisy, self.clean, self.config, self.length, self.seed = noisy, clean, config, length, seed

    def __call__(self, index: int) -> tuple[Wave, Wave]:
        rng = np.random.default_rng([self.seed, index])
        choice = int(rng.integers(len(self.clean)))
        spare = self.clean.length(choice) - self.length
        start = int(rng.integers(spare + 1)) if spare > 0 and self.config.offset else 0
        noisy, clean = (_fit(store.read(choice, start, self.length), self.length) for store in (self.noisy, self.clean))
        gain = np.float32(10 ** (rng.uniform(*self.config.gain_db) / 20))
        return _limit(noisy * gain, clean * gain)


class MixedExamples:
    """Speech of one speaker and noise at a random SNR, level and offset; some rooms, some babble."""

    def __init__(
        self,
        speech: Recordings,
        speakers: Sequence[str],
        noise: Recordings,
        rooms: Sequence[Wave],
        config: DataConfig,
        length: int,
        seed: int,
    ) -> None:
        self.speech, self.noise, self.rooms, self.config = speech, noise, rooms, config
        self.length, self.seed = length, seed
        grouped: dict[str, list[int]] = defaultdict(list)
        for index, speaker in enumerate(speakers):
            grouped[speaker].append(index)
        self.by_speaker = list(grouped.values())
        # the square root lies between "every speaker alike" and "every minute alike": few speakers hold most minutes
        seconds = np.array([sum(speech.length(index) for index in group) for group in self.by_speaker], dtype=float)
        self.speaker_share = np.sqrt(seconds) / np.sqrt(seconds).sum()
        lengths = np.diff(noise.bounds).astype(float)
        self.noise_share = np.sqrt(lengths) / np.sqrt(lengths).sum()

    def __call__(self, index: int) -> tuple[Wave, Wave]:
        rng, config = np.random.default_rng([self.seed, index]), self.config
        clean = self._speech(rng, self.length, lead_in=config.offset)
        if self.rooms and rng.random() < config.reverb_probability:
            clean = _convolve(clean, self.rooms[int(rng.integers(len(self.rooms)))])
        noise = self._noise(rng)
        if rng.random() < config.second_noise_probability:
            noise = noise + self._noise(rng) * np.float32(10 ** (rng.uniform(-15, 0) / 20))
        level = _active_level(clean)
        noise_level = float(np.sqrt(np.mean(noise**2))) + 1e-9
        noise = noise * np.float32(level / noise_level * 10 ** (-rng.uniform(*config.snr_db) / 20))
        noisy = clean + noise
        # the level of the mixture, in dB below that of a full-scale recording at about -20 dBFS
        gain = 0.1 / (float(np.sqrt(np.mean(noisy**2))) + 1e-9) * 10 ** (rng.uniform(*config.gain_db) / 20)
        return _limit(noisy * np.float32(gain), clean * np.float32(gain))

    def _speech(self, rng: np.random.Generator, length: int, *, lead_in: bool) -> Wave:
        """One speaker talking for `length` samples: utterances one after another, with pauses between them."""
        group = self.by_speaker[int(rng.choice(len(self.by_speaker), p=self.speaker_share))]
        wave = np.zeros(length, dtype=np.float32)
        place = int(rng.integers(length // 4)) if lead_in and rng.random() < 0.3 else 0
        while place < length:
            choice = group[int(rng.integers(len(group)))]
            spare = self.speech.length(choice) - length
            start = int(rng.integers(spare + 1)) if spare > 0 and lead_in else 0
            piece = self.speech.read(choice, start, length)
            level = float(np.sqrt(np.mean(piece**2))) + 1e-9  # also of what no longer fits: its first samples are noise
            piece = piece[: length - place]
            wave[place : place + len(piece)] = piece * np.float32(0.1 / level)
            place += len(piece) + int(rng.integers(1, length // 4))
        return wave

    def _noise(self, rng: np.random.Generator) -> Wave:
        kind = rng.random()
        if kind < self.config.babble_probability:
            return _sum([self._speech(rng, self.length, lead_in=True) for _ in range(int(rng.integers(3, 9)))])
        if kind < self.config.babble_probability + 0.1:
            return _synthetic_noise(rng, self.length)
        choice = int(rng.choice(len(self.noise), p=self.noise_share))
        spare = self.noise.length(choice) - self.length
        start = int(rng.integers(spare + 1)) if spare > 0 and self.config.offset else 0
        wave = _fit(self.noise.read(choice, start, self.length), self.length, repeat=True)
        return _tilt(rng, wave / np.float32(np.sqrt(np.mean(wave**2)) + 1e-9))


@dataclasses.dataclass(frozen=True)
class DataSets:
    """What a run trains on and is validated on; their speakers are disjoint."""

    train: Examples
    validation: Examples
    description: dict[str, object]


def open_data(
    folder: Path, config: DataConfig, sample_rate_hz: int, seed: int, cache: Path, progress: Progress | None = None
) -> DataSets:
    """Training and validation examples of a data folder, in whichever layout it has.

    Raises:
        TrainingError: the folder is missing, has neither layout, or holds too little.
        AudioError: a recording that cannot be read, or holds no sound.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; wanted clean and noisy recordings, or speech and noise")
    length = round(config.segment_s * sample_rate_hz)
    clean_folder = _find_folder(folder, "clean_trainset", "clean", "train_clean")
    noisy_folder = _find_folder(folder, "noisy_trainset", "noisy", "train_noisy")
    speech_folder = _find_folder(folder, "train_speech", "speech") or clean_folder
    noise_folder = _find_folder(folder, "train_noise", "noise")

    def load(files: Sequence[Path]) -> Recordings:
        return Recordings(files, sample_rate_hz, cache, progress)

    if clean_folder and noisy_folder:
        noisy_files = {file.stem: file for file in _audio_files(noisy_folder)}
        files = [file for file in _audio_files(clean_folder) if file.stem in noisy_files]
        speakers = [file.stem.split("_")[0] for file in files]  # VoiceBank: p226_001.wav
        parts = _split(clean_folder, files, speakers, config, seed)
        train, held_out = (
            PairedExamples(load([noisy_files[f.stem] for f in part]), load(part), config, length, part_seed)
            for part, part_seed in zip(parts, (seed, seed + 1), strict=True)
        )
        return DataSets(train, held_out, {"layout": "pairs", "clean": len(files), "speakers": len(set(speakers))})
    if speech_folder and noise_folder:
        files, speakers = _speech_files(speech_folder)
        speaker_of = dict(zip(files, speakers, strict=True))
        speech_parts = _split(speech_folder, files, speakers, config, seed)
        noise_files = _audio_files(noise_folder)
        noise_parts = _split(noise_folder, noise_files, [str(file) for file in noise_files], config, seed)
        rooms = _rooms(folder / "rir", sample_rate_hz)
        mixed, held_out_mixed = (
            MixedExamples(load(speech), [speaker_of[f] for f in speech], load(noise), rooms, config, length, part_seed)
            for speech, noise, part_seed in zip(speech_parts, noise_parts, (seed, seed + 1), strict=True)
        )
        counts = {"speech": len(files), "speakers": len(set(speakers)), "noise": len(noise_files), "rooms": len(rooms)}
        return DataSets(mixed, held_out_mixed, {"layout": "mixing", **counts})
    raise TrainingError(
        f"{folder}: found {sorted(p.name for p in folder.iterdir())[:8]}, wanted clean/ and noisy/ "
        "(VoiceBank+DEMAND's clean_trainset_* and noisy_trainset_*), or speech/ and noise/"
    )


def _find_folder(folder: Path, *names: str) -> Path | None:
    for name in names:
        for candidate in sorted(folder.iterdir()):
            if candidate.is_dir() and (candidate.name == name or candidate.name.startswith(f"{name}_")):
                return candidate
    return None


def _audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE)


def _speech_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Files and their speakers: from manifest.csv where there is one, else the folder a file lies in."""
    manifest = folder / "manifest.csv"
    if manifest.exists():
        with manifest.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            columns = reader.fieldnames or []
            if not {"file", "speaker"} <= set(columns):
                raise TrainingError(f"{manifest}: found columns {', '.join(columns)}; wanted file and speaker too")
            rows = [row for row in reader if (folder / row["file"]).exists()]
        return [folder / row["file"] for row in rows], [row["speaker"] for row in rows]
    files = _audio_files(folder)
    return files, [file.parent.name if file.parent != folder else file.stem.split("_")[0] for file in files]


def _split(
    folder: Path, files: Sequence[Path], groups: Sequence[str], config: DataConfig, seed: int
) -> tuple[list[Path], list[Path]]:
    """Training and validation files with disjoint groups (speakers)."""
    counts = Counter(groups)
    held_out = max(1, round(config.validation_share * len(counts)))
    if len(counts) <= held_out:
        raise TrainingError(f"{folder}: found {len(counts)} speakers or noises, wanted at least {held_out + 1}")
    shuffled = np.random.default_rng([seed, 0]).permutation(sorted(counts)).tolist()
    # a few speakers hold most of some corpora: those stay in training
    shuffled.sort(key=lambda name: counts[name] > 4 * len(files) / len(counts))
    chosen = set(shuffled[:held_out])
    train = [file for file, group in zip(files, groups, strict=True) if group not in chosen]
    return train, [file for file, group in zip(files, groups, strict=True) if group in chosen]


def _rooms(folder: Path, sample_rate_hz: int, longest_t60_s: float = 0.8) -> list[Wave]:
    """Impulse responses from their direct sound on, at unit energy; long reverberation left out where T60 is known."""
    t60: dict[Path, float] = {}
    if (folder / "manifest.csv").exists():
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
            t60 = {folder / row["file"]: float(row["t60_s"] or 0) for row in csv.DictReader(lines)}
    rooms = []
    for file in _audio_files(folder) if folder.is_dir() else []:
        if t60.get(file, 0.0) > longest_t60_s:
            continue
        wave = read_wave(file, sample_rate_hz)
        wave = wave[int(np.argmax(np.abs(wave))) :]
        rooms.append(wave / np.float32(np.sqrt(np.sum(wave**2)) + 1e-9))
    return rooms


def _decode(
    files: Sequence[Path], sample_rate_hz: int, samples_path: Path, index_path: Path, progress: Progress | None
) -> None:
    bounds = [0]
    partial = samples_path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with partial.open("wb") as out:
            for number, file in enumerate(files):
                wave = read_wave(file, sample_rate_hz)
                out.write(np.rint(wave * 32768).clip(-32768, 32767).astype("<i2").tobytes())
                bounds.append(bounds[-1] + len(wave))
                if progress:
                    progress(number + 1, len(files))
        if bounds[-1] == 0:
            raise TrainingError(f"{files[0].parent if files else 'data'}: no audio in {len(files)} files")
        partial.replace(samples_path)
        partial.write_text(json.dumps(bounds))
        partial.replace(index_path)
    finally:
        partial.unlink(missing_ok=True)


def _fit(wave: Wave, length: int, *, repeat: bool = False) -> Wave:
    """Exactly `length` samples: repeated or filled up with zeros."""
    if repeat and 0 < len(wave) < length:
        wave = np.tile(wave, -(-length // len(wave)))
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


def _limit(noisy: Wave, clean: Wave) -> tuple[Wave, Wave]:
    """Both scaled down together where one of them would leave [-1, 1]."""
    peak = max(float(np.abs(noisy).max()), float(np.abs(clean).max()), 1.0)
    return (noisy / peak).astype(np.float32), (clean / peak).astype(np.float32)


def _active_level(wave: Wave, frame: int = 320) -> float:
    """Root mean square of the frames that are not silent: pauses do not change the SNR."""
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    power = (frames**2).mean(axis=1)
    active = power > max(power.max() * 1e-4, 10 ** (SILENCE_DBFS / 10))
    return float(np.sqrt(power[active].mean())) if active.any() else 1e-3


def _convolve(wave: Wave, room: Wave) -> Wave:
    return np.asarray(signal.fftconvolve(wave, room)[: len(wave)], dtype=np.float32)


def _tilt(rng: np.random.Generator, wave: Wave) -> Wave:
    """Half of the noises with another colour: a gentle first-order shelf, up to about 10 dB."""
    if rng.random() < 0.5:
        return wave
    return np.asarray(signal.lfilter([1, -rng.uniform(-0.8, 0.8)], [1], wave), dtype=np.float32)


def _synthetic_noise(rng: np.random.Generator, length: int) -> Wave:
    """Coloured noise (power falls with f^0 ... f^-2), sometimes with slow level changes, sometimes with mains hum."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** -rng.uniform(0, 1)
    wave = np.fft.irfft(spectrum, length)
    wave /= np.sqrt(np.mean(wave**2)) + 1e-9
    if rng.random() < 0.5:
        seconds = np.arange(length) / 16_000
        wave *= 1 + rng.uniform(0.2, 0.9) * np.sin(2 * np.pi * (rng.uniform(0.3, 6) * seconds + rng.random()))
    if rng.random() < 0.2:
        seconds = np.arange(length) / 16_000
        mains_hz = rng.choice([50.0, 60.0])
        for harmonic in range(1, int(rng.integers(3, 12))):
            wave += rng.uniform(0, 1) * np.sin(2 * np.pi * (mains_hz * harmonic * seconds + rng.random()))
    return wave.astype(np.float32)


def _sum(waves: Sequence[Wave]) -> Wave:
    return np.asarray(np.sum(waves, axis=0), dtype=np.float32)
