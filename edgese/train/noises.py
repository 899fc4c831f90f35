"""Synthetic noise of kinds that recordings are short of: air and traffic, engines, hum, things that knock and ring.

Every function takes a generator, a length in samples and the sample rate, and gives (length,) float32 of unit power.
Sound of a given kind is drawn anew each time, so that no network can learn it by heart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from edgese.audio import Wave

LOWEST_HZ = 60.0  # spectra are flat below


def synthetic_noise(rng: np.random.Generator, length: int, sample_rate_hz: int) -> Wave:
    """Noise of one of the kinds below, over steady coloured noise where it would leave silence between."""
    kinds: tuple[Callable[..., Wave], ...] = (air, air, engine, engine, impacts, hum)
    kind = kinds[int(rng.integers(len(kinds)))]
    wave = kind(rng, length, sample_rate_hz)
    if kind in (impacts, hum):
        wave = wave + coloured(rng, length, sample_rate_hz) * decibels(rng.uniform(-15, 5))
    return unit_power(wave)


def coloured(
    rng: np.random.Generator,
    length: int,
    sample_rate_hz: int,
    tilt_db: tuple[float, float] = (-7.0, 2.0),
    spread_db: float = 6.0,
) -> Wave:
    """Steady noise with a smooth random spectrum; `tilt_db` per octave: rooms, streets and vehicles fall by 3 to 7."""
    n_bins = length // 2 + 1
    spectrum = rng.standard_normal(2 * n_bins, dtype=np.float32).view(np.complex64)
    envelope = spectral_envelope(rng, n_bins, sample_rate_hz, rng.uniform(*tilt_db), spread_db)
    return unit_power(fft.irfft(spectrum * envelope, length))


def air(rng: np.random.Generator, length: int, sample_rate_hz: int) -> Wave:
    """Noise of air: two coloured noises that swell and fade on their own: ventilation, wind, water, distant traffic."""
    waves = [coloured(rng, length, sample_rate_hz) * swell(rng, length, sample_rate_hz) for _ in range(2)]
    return unit_power(waves[0] + waves[1] * decibels(rng.uniform(-15, 0)))


def engine(rng: np.random.Generator, length: int, sample_rate_hz: int) -> Wave:
    """Noise of an engine: harmonics of a wandering low pitch and the rumble of a vehicle around them."""
    pitch_hz = log_uniform(rng, 20, 150) * (1 + rng.uniform(0, 0.15) * _wander(rng, length, sample_rate_hz))
    tone = _harmonics(rng, pitch_hz, sample_rate_hz, int(rng.integers(4, 24)), fall=rng.uniform(0.3, 2.0))
    rumble = coloured(rng, length, sample_rate_hz, tilt_db=(-10.0, -3.0))
    tone, rumble = (wave * swell(rng, length, sample_rate_hz) for wave in (tone, rumble))
    return unit_power(rumble + tone * decibels(rng.uniform(-20, 6)))


def hum(rng: np.random.Generator, length: int, sample_rate_hz: int) -> Wave:
    """Mains hum: harmonics of 50 or 60 Hz."""
    mains_hz = np.full(length, rng.choice([50.0, 60.0]))
    return _harmonics(rng, mains_hz, sample_rate_hz, int(rng.integers(3, 20)), fall=rng.uniform(0.2, 1.5))


def impacts(rng: np.random.Generator, length: int, sample_rate_hz: int) -> Wave:
    """Decaying resonances at random times: cutlery, keyboards, steps, doors, bells, plucked notes."""
    sounds = [_impact(rng, sample_rate_hz) for _ in range(int(rng.integers(1, 5)))]
    wave = np.zeros(length, dtype=np.float32)
    per_second = log_uniform(rng, 0.7, 12)
    for place in rng.integers(0, length, 1 + int(rng.poisson(per_second * length / sample_rate_hz))):
        sound = sounds[int(rng.integers(len(sounds)))][: length - place]
        wave[place : place + len(sound)] += sound * decibels(rng.normal(0, 5))
    return unit_power(wave)


def _impact(rng: np.random.Generator, sample_rate_hz: int) -> Wave:
    """Sound of one knock, at unit power: a few resonances, harmonic or not, and a burst of noise."""
    decay_s = log_uniform(rng, 0.003, 0.3)
    seconds = np.arange(int(min(4 * decay_s, 0.6) * sample_rate_hz) + 1, dtype=np.float32) / np.float32(sample_rate_hz)
    base_hz, harmonic = log_uniform(rng, 80, 4000), rng.random() < 0.3
    wave = rng.uniform(0, 1) * rng.standard_normal(len(seconds), dtype=np.float32) * np.exp(-4 * seconds / decay_s)
    for number in range(1, int(rng.integers(2, 6))):
        partial_hz = base_hz * number if harmonic else base_hz * rng.uniform(1, 4)
        if partial_hz < 0.45 * sample_rate_hz:
            ring = np.sin(2 * np.pi * partial_hz * seconds + np.float32(rng.uniform(0, 6)))
            wave = wave + rng.uniform(0.2, 1) * ring * np.exp(-seconds / (decay_s * rng.uniform(0.3, 1)))
    return unit_power(wave)


def _harmonics(
    rng: np.random.Generator, pitch_hz: NDArray[np.float64], sample_rate_hz: int, count: int, fall: float
) -> Wave:
    """Sum of at most `count` harmonics below the Nyquist frequency, amplitudes falling with number^-fall."""
    phase = (2 * np.pi * (np.cumsum(pitch_hz) / sample_rate_hz % 1)).astype(np.float32)
    wave = np.zeros(len(pitch_hz), dtype=np.float32)
    for number in range(1, max(2, min(count + 1, int(0.45 * sample_rate_hz / pitch_hz.max())))):
        amplitude = np.float32(rng.uniform(0.1, 1) * number**-fall)
        wave += amplitude * np.sin(number * phase + np.float32(rng.uniform(0, 6)))
    return unit_power(wave)


def swell(rng: np.random.Generator, length: int, sample_rate_hz: int) -> Wave:
    """Gains, (length,), that wander by some decibels, slowly (0.3 a second) to fast (20 a second)."""
    depth_db = rng.uniform(0.5, 7)
    return _gains(depth_db * _wander(rng, length, sample_rate_hz))


def stages(rng: np.random.Generator, length: int, sample_rate_hz: int) -> Wave:
    """Gains, (length,) at most 1, of a noise that comes, goes or passes by, switched in 20 ms or sliding."""
    n_stages = int(rng.integers(2, 5))
    levels_db = rng.uniform(-25, 0, n_stages)
    levels_db[int(rng.integers(n_stages))] = 0.0
    times = np.sort(rng.uniform(0, length, n_stages))
    if rng.random() < 0.5:
        ramp = 0.01 * sample_rate_hz
        times = np.stack([times[1:] - ramp, times[1:] + ramp], axis=1).reshape(-1)
        levels_db = np.repeat(levels_db, 2)[1:-1]
        times = np.maximum.accumulate(times)
    return _gains(np.interp(np.arange(length), times, levels_db))


def spectral_envelope(
    rng: np.random.Generator, n_bins: int, sample_rate_hz: int, tilt_db: float, spread_db: float
) -> Wave:
    """Gains, (n_bins,) from 0 Hz to Nyquist, smooth over log frequency: control points in dB around a straight tilt."""
    octaves = _octaves(n_bins, sample_rate_hz)
    points = np.linspace(0, octaves[-1], int(rng.integers(3, 9)))
    levels_db = rng.normal(0, spread_db, len(points)) + tilt_db * points
    gains = _gains(np.interp(octaves, points, levels_db))
    gains[0] = 0
    return gains


def decibels(level_db: float) -> np.float32:
    """Amplitude of a level in dB."""
    amplitude: np.float32 = np.float32(math.pow(10, level_db / 20))
    return amplitude


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def unit_power(wave: NDArray[np.floating]) -> Wave:
    """Wave scaled to a mean square of 1; silence stays silent."""
    return np.asarray(wave * np.float32(1 / (np.sqrt(np.mean(np.square(wave))) + 1e-9)), dtype=np.float32)


def _wander(rng: np.random.Generator, length: int, sample_rate_hz: int) -> NDArray[np.float64]:
    """Random line, (length,), around 0 with a spread of 1, turning 0.3 to 20 times a second."""
    turns_hz = log_uniform(rng, 0.3, 20)
    n_points = int(np.ceil(length / sample_rate_hz * turns_hz)) + 2
    places = (np.arange(n_points) - rng.random()) * sample_rate_hz / turns_hz
    line = np.interp(np.arange(length), places, rng.standard_normal(n_points).clip(-2.5, 2.5))
    return np.asarray(line, dtype=np.float64)


def _gains(levels_db: NDArray[np.float64]) -> Wave:
    return np.asarray(np.exp(levels_db.astype(np.float32) * np.float32(np.log(10) / 20)), dtype=np.float32)


@functools.lru_cache(maxsize=8)
def _octaves(n_bins: int, sample_rate_hz: int) -> NDArray[np.float64]:
    """Octaves of each bin above the lowest frequency that counts."""
    return np.log2(np.maximum(np.linspace(0, sample_rate_hz / 2, n_bins), LOWEST_HZ) / LOWEST_HZ)
