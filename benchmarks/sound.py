"""Sound files of any length to measure with: the shipped noisy sample over and over, in constant memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from edgese.samples import NOISY


def sample(rate_hz: int = 16_000) -> NDArray[np.float32]:
    """Shipped noisy sample, (n_samples,) in [-1, 1]."""
    wave, own_rate_hz = soundfile.read(NOISY, dtype="float32")
    return np.asarray(wave if rate_hz == own_rate_hz else soxr.resample(wave, own_rate_hz, rate_hz), np.float32)


def write_sound(path: Path, seconds: float, *, rate_hz: int = 16_000, channels: int = 1) -> None:
    """Write a sound of this length in the format that `path` ends with, 16 bits a sample."""
    piece = np.repeat(sample(rate_hz)[:, None], channels, axis=1)
    left = round(seconds * rate_hz)
    with soundfile.SoundFile(path, "w", rate_hz, channels, "PCM_16") as file:
        while left > 0:
            file.write(piece[:left])
            left -= len(piece)
