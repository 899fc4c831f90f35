"""Recipe of this folder's sample: two synthesised voices, clean.flac, and the same in synthetic noise, noisy.flac.

    apt-get install espeak-ng
    python edgese/samples/make_noisy.py [FOLDER]

Every sound is computed here: the speech by espeak-ng from sentences of our own, the noise by NumPy from a fixed seed.
One version of espeak-ng gives the same files each time; another one may pronounce differently.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float64]

RATE_HZ = 16_000
SEED = 2
SPEECH_DBFS = -24.0  # RMS while somebody speaks
SNR_DB = 5.0  # mean powers of speech and noise while somebody speaks
PAUSE_S = 0.6  # before, between and after the lines

# Options of espeak-ng and what it says.
LINES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("-v", "en-gb", "-s", "165", "-p", "35"), "Good evening. This is a noisy line, so I will speak slowly."),
    (("-v", "en-us+f3", "-s", "170", "-p", "55"), "No need to. Every word arrives once the noise is gone."),
)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    clean, speaking = speech()
    noise = street(len(clean), np.random.default_rng(SEED))
    noise *= 10 ** ((SPEECH_DBFS - SNR_DB) / 20) / rms(noise[speaking])
    for name, wave in (("clean.flac", clean), ("noisy.flac", clean + noise)):
        soundfile.write(folder / name, wave, RATE_HZ, subtype="PCM_16")


def speech() -> tuple[Wave, NDArray[np.bool_]]:
    """Speech of all lines, equally loud, with pauses around them; and True at each sample of a line."""
    pause = np.zeros(round(PAUSE_S * RATE_HZ))
    pieces = [pause]
    for options, text in LINES:
        line = say(options, text)
        pieces += [line * 10 ** (SPEECH_DBFS / 20) / rms(line), pause]
    speaking = [np.full(len(piece), index % 2 == 1) for index, piece in enumerate(pieces)]
    return np.concatenate(pieces), np.concatenate(speaking)


def say(options: tuple[str, ...], text: str) -> Wave:
    """Sound of one line by espeak-ng, without the silence around it."""
    program = shutil.which("espeak-ng")
    if program is None:
        raise SystemExit("espeak-ng: not found; apt-get install espeak-ng")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "line.wav"
        subprocess.run([program, *options, "-w", str(path), text], check=True)
        wave, rate_hz = soundfile.read(path)
    wave = soxr.resample(wave, rate_hz, RATE_HZ)
    loud = np.flatnonzero(np.abs(wave) > 0.01 * np.abs(wave).max())
    return np.asarray(wave[loud[0] : loud[-1] + 1], np.float64)


def street(n_samples: int, random: np.random.Generator) -> Wave:
    """Noise that swells and fades, the hum of a transformer, a few clicks; at no particular level."""
    swell_db = 3.0 * coloured(n_samples, random, slope=0.0, high_hz=0.7)
    noise = 10 ** (swell_db / 20) * coloured(n_samples, random, slope=1.4, low_hz=80.0)
    return noise + 0.4 * hum(n_samples, random) + clicks(n_samples, random, count=9)


def coloured(
    n_samples: int, random: np.random.Generator, *, slope: float, low_hz: float = 0.1, high_hz: float = RATE_HZ / 2
) -> Wave:
    """Gaussian noise of unit RMS between two frequencies, its power falling as f^-slope."""
    frequency = np.fft.rfftfreq(n_samples, 1 / RATE_HZ)
    inside = (frequency >= low_hz) & (frequency <= high_hz)
    gain = np.where(inside, np.maximum(frequency, low_hz) ** (-slope / 2), 0.0)
    wave = np.fft.irfft(np.fft.rfft(random.standard_normal(n_samples)) * gain, n_samples)
    return wave / rms(wave)


def hum(n_samples: int, random: np.random.Generator) -> Wave:
    """Mains hum of unit RMS: 100 Hz and its harmonics."""
    time_s = np.arange(n_samples) / RATE_HZ
    phases = random.uniform(0, 2 * np.pi, 8)
    wave = sum(np.sin(2 * np.pi * 100 * k * time_s + phase) / k for k, phase in enumerate(phases, start=1))
    return np.asarray(wave / rms(wave), np.float64)


def clicks(n_samples: int, random: np.random.Generator, *, count: int) -> Wave:
    """Short damped tones at random times, like cutlery; their peaks lie between 3 and 8."""
    wave = np.zeros(n_samples)
    time_s = np.arange(RATE_HZ // 20) / RATE_HZ
    for start in random.integers(0, n_samples - len(time_s), count):
        pitch_hz, decay_s, peak = random.uniform(1000, 5000), random.uniform(0.002, 0.008), random.uniform(3, 8)
        wave[start : start + len(time_s)] += peak * np.exp(-time_s / decay_s) * np.sin(2 * np.pi * pitch_hz * time_s)
    return wave


def rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(wave**2)))


if __name__ == "__main__":
    main()
