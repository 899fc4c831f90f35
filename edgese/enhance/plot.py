"""Picture of an enhancement: spectrograms before and after, in one colour scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgese.audio.libsndfile import soxr
from edgese.audio.media import open_reader
from edgese.config import AudioConfig
from edgese.model.stft import stft
from edgese.pictures.figure import drawing, new_figure

EXCERPT_S = 30.0  # of the beginning: long files keep readable pictures and flat memory
_RANGE_DB = 80.0


def write_comparison(before: Path, after: Path, png: Path) -> None:
    """Write the spectrograms of two recordings' first 30 s, 0 to 8 kHz, channels mixed, as a PNG.

    Both share one colour scale that ends at the louder one's peak.

    Raises:
        AudioError: a recording cannot be read.
        OSError: the picture cannot be written.
    """
    config = AudioConfig()
    pictures = {"Before": _spectrogram_db(before, config), "After": _spectrogram_db(after, config)}
    top_db = max(float(picture.max()) for picture in pictures.values())
    with drawing:
        figure = new_figure(11, 6.5)
        axes = figure.subplots(2, 1, sharex=True)
        for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
            axis.imshow(
                picture.T,
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                cmap="magma",
                vmin=top_db - _RANGE_DB,
                vmax=top_db,
                extent=(0.0, len(picture) * config.hop_ms / 1000, 0.0, config.sample_rate_hz / 2000),
            )
            axis.set_title(title, loc="left")
            axis.set_ylabel("frequency (kHz)")
        axes[-1].set_xlabel("time (s)")
        figure.colorbar(axes[0].images[0], ax=axes, label="level (dB)", pad=0.01)
        figure.savefig(png, format="png", dpi=120)


def _spectrogram_db(path: Path, config: AudioConfig) -> NDArray[np.float64]:
    """Levels of a recording's beginning, (T, F) dB; 0 is a sine at full scale."""
    with open_reader(path) as reader:
        wave = soxr.resample(reader.excerpt(EXCERPT_S), reader.info.sample_rate_hz, config.sample_rate_hz)
    # A sine of amplitude 1 gives sum(window) / 2 = n_fft / pi at its bin, the window being half a sine.
    magnitude = np.abs(stft(wave, config)) * (np.pi / config.n_fft)
    level_db: NDArray[np.float64] = 20 * np.log10(np.maximum(magnitude, 1e-10))
    return level_db
