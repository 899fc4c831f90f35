"""Small data folders of both layouts, made on the spot."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from edgese.config import DataConfig

RATE_HZ = 16_000
PROBABILITIES = [field.name for field in dataclasses.fields(DataConfig) if field.name.endswith("_probability")]
PLAIN = DataConfig(segment_s=0.5, **dict.fromkeys(PROBABILITIES, 0.0))  # one recorded noise, nothing changed
EVERYTHING = DataConfig(segment_s=0.5, **dict.fromkeys(PROBABILITIES, 0.4))

SpeechLike = Callable[..., NDArray[np.float32]]


def write(path: Path, wave: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, subtype="PCM_16")
    return path


def write_mixing(folder: Path, speech_like: SpeechLike) -> Path:
    """speech/ with a folder for each of five speakers, noise/ with four noises, rir/ with one room."""
    rng = np.random.default_rng(0)
    for speaker in range(5):
        for take in range(2):
            wave = speech_like(12_000 + 2000 * take, seed=10 * speaker + take)
            write(folder / "speech" / f"s{speaker}" / f"{take}.wav", wave)
    for noise in range(4):
        write(folder / "noise" / f"n{noise}.wav", rng.normal(0, 0.02 * (noise + 1), 9000 + 1000 * noise))
    write(folder / "rir" / "room.wav", rng.normal(0, 0.3, 2000) * np.exp(-np.arange(2000) / 300))
    return folder


def write_pairs(folder: Path, speech_like: SpeechLike) -> Path:
    """VoiceBank+DEMAND's layout: four speakers; noisy is clean at half the amplitude, so that a shift would show."""
    rng = np.random.default_rng(0)
    for speaker in range(4):
        for take in range(2):
            wave = speech_like(10_000 + 1000 * take, seed=10 * speaker + take)
            wave += rng.normal(0, 0.001, len(wave)).astype(np.float32)  # a room is never silent
            write(folder / "clean_trainset_28spk_wav" / f"p{speaker}_{take:03}.wav", wave)
            write(folder / "noisy_trainset_28spk_wav" / f"p{speaker}_{take:03}.wav", wave / 2)
    return folder


def tone(frequency_hz: float, n_samples: int = 9000, rate_hz: int = RATE_HZ) -> NDArray[np.float64]:
    return 0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(n_samples) / rate_hz)


def write_tones(folder: Path, speakers_hz: list[float], noises_hz: list[float], n_samples: int = 9000) -> Path:
    """Every speaker and every noise a tone of its own, by which it is known again; the file names say it."""
    for frequency_hz in speakers_hz:
        write(folder / "speech" / f"{frequency_hz:g}" / "a.wav", tone(frequency_hz, n_samples))
    for frequency_hz in noises_hz:
        write(folder / "noise" / f"{frequency_hz:g}.wav", tone(frequency_hz, n_samples))
    return folder


def strength(wave: np.ndarray, frequency_hz: float, width_hz: float = 25.0) -> float:
    """Share of a wave's power that lies around a frequency."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    near = np.abs(np.fft.rfftfreq(len(wave), 1 / RATE_HZ) - frequency_hz) <= width_hz
    return float(power[near].sum() / (power.sum() + 1e-20))
