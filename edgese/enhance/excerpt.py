"""Some seconds of a recording before and after, to hear what `enhance` would do: `--preview 10`.

The seconds are those with the most sound within the first ten minutes; the network hears the three before them, so that
it has settled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgese.audio import Samples
from edgese.audio.media import open_reader
from edgese.enhance.signal_path import Enhancer, denoise

PAUSE_S = 0.5  # between before and after
_SEARCHED_S = 600
_SETTLING_S = 3.0


def excerpt(source: Path, name: str, seconds: float) -> tuple[Samples, int]:
    """The loudest seconds of a recording, (n, n_channels), and how many frames of it only lead to them.

    Raises:
        AudioError: what the reader refuses.
    """
    with open_reader(source, name) as reader:
        rate_hz = reader.info.sample_rate_hz
        energies = [np.zeros(0)]
        for block in reader.blocks():
            energies.append(np.square(block.astype(np.float64)).sum(1))
            if sum(map(len, energies)) >= _SEARCHED_S * rate_hz:
                break
    energy = np.concatenate(energies)
    n_frames = min(len(energy), max(1, round(seconds * rate_hz)))
    total = np.concatenate([[0.0], np.cumsum(energy)])
    start = int(np.argmax(total[n_frames:] - total[:-n_frames]))
    first = max(0, start - round(_SETTLING_S * rate_hz))
    kept, n_read = [], 0
    with open_reader(source, name) as reader:
        for block in reader.blocks():
            kept.append(block[max(0, first - n_read) : start + n_frames - n_read])
            n_read += len(block)
            if n_read >= start + n_frames:
                break
    return np.concatenate(kept), start - first


def before_after(
    source: Path, name: str, rate_hz: int, seconds: float, denoiser: Enhancer, limit_db: float | None, narrow: bool
) -> Iterator[Samples]:
    """The seconds as they were, a pause, and the same seconds enhanced: three blocks of (n, n_channels)."""
    sound, lead = excerpt(source, name, seconds)
    n_channels = sound.shape[1]
    yield sound[lead:]
    yield np.zeros((round(PAUSE_S * rate_hz), n_channels), np.float32)
    enhanced = denoise([sound], rate_hz, n_channels, denoiser, limit_db, narrow=narrow)
    yield np.concatenate(list(enhanced))[lead:]
