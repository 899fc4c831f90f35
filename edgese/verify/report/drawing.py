"""Pictures and sounds for an HTML page, small and without words: the page writes titles, ticks and legends itself.

So text has its own size at every width, follows dark mode, and can be read aloud. A `Plot` fills a square of 100 by 100
that the page stretches; a spectrogram is a bare bitmap. Nothing here needs a plotting library.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import EdgeseError, install_command, pip_command

try:
    from PIL import Image
except ImportError as error:
    raise EdgeseError(f"pillow is missing ({error}): {install_command('report')}") from error

Values = NDArray[np.float64]

MINUS = "\N{MINUS SIGN}"
MAX_POINTS = 200  # of a curve: more cannot be distinguished where it is shown
N_SERIES = 6  # colours of lines
N_BINS = 64  # of a histogram
SPECTROGRAM_SIZE = (560, 128)  # most columns, rows
N_COLOURS = 64  # of a spectrogram: 1.25 dB apart where it spans 80 dB

# Matplotlib's `magma` (Smith & van der Walt, CC0) at eleven places: even steps of lightness, readable in grey as well.
COLOURS = (
    *("#000004", "#140e36", "#3b0f70", "#641a80", "#8c2981", "#b73779"),
    *("#de4968", "#f7705c", "#fe9f6d", "#fecf92", "#fcfdbf"),
)


@dataclasses.dataclass(frozen=True)
class Tick:
    """Tick of an axis: its place in percent from the axis's start, and its label."""

    percent: float
    label: str


@dataclasses.dataclass(frozen=True)
class Axis:
    """Axis of values from `low` to `high`, laid out over 100 percent."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    @classmethod
    def linear(cls, low: float, high: float, n_ticks: int = 5, unit: str = "") -> Axis:
        """Linear axis with ticks at round values, at most `n_ticks` steps; the last one carries the unit."""
        step = _round_step((high - low) / n_ticks)
        values = step * np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        labels = [f"{value:g}".replace("-", MINUS) for value in np.round(values, 9) + 0.0]
        return cls._with_ticks(low, high, values, labels, unit)

    @classmethod
    def decades(cls, low: float, high: float, unit: str = "") -> Axis:
        """Logarithmic axis, which holds exponents of ten."""
        exponents = np.arange(math.ceil(low), math.floor(high) + 1)
        return cls._with_ticks(low, high, exponents, [f"{10.0**exponent:g}" for exponent in exponents], unit)

    @classmethod
    def _with_ticks(cls, low: float, high: float, values: NDArray[Any], labels: list[str], unit: str) -> Axis:
        if labels and unit:
            labels[-1] += f" {unit}"
        axis = cls(low, high, ())
        percents = axis.percent(values.astype(np.float64))
        return cls(low, high, tuple(map(Tick, np.round(percents, 2).tolist(), labels)))

    def percent(self, values: Values) -> Values:
        return np.asarray(100 * (values - self.low) / (self.high - self.low))


@dataclasses.dataclass(frozen=True)
class Plot:
    """Plot of lines in a square of 100 by 100, y downwards as in SVG."""

    alt: str
    x: Axis
    y: Axis
    paths: tuple[tuple[str, str], ...]  # class that the page gives a look, SVG path data


def curves(
    alt: str,
    x: Axis,
    y: Axis,
    lines: Sequence[tuple[Values, Values]],
    limits: Sequence[float] = (),
    *,
    steps: bool = False,
) -> Plot:
    """Plot of lines of class s0, s1, ... (`series`) and, across the whole width, limits.

    Args:
        lines: x and y of each; where y is not finite there is a gap.
        steps: each value holds until the next x; x has one value more than y.
    """
    across = [("limit", _path(np.array([0.0, 100.0]), np.full(2, y.percent(np.array(limit))))) for limit in limits]
    drawn = []
    for at, (places, values) in enumerate(lines):
        if steps:
            places, values = np.repeat(places, 2)[1:-1], np.repeat(values, 2)
        drawn.append((series(at), _path(x.percent(places), y.percent(values))))
    return Plot(alt, x, y, (*across, *drawn))


def histogram(alt: str, x: Axis, exponents: Values, mark: float) -> Plot:
    """Plot of counts as a filled outline of logarithmic height, so that a single one is seen; and one mark."""
    counts, edges = np.histogram(exponents, bins=N_BINS, range=(x.low, x.high))
    heights = 92 * np.log1p(counts) / np.log1p(counts.max())
    places = np.repeat(x.percent(edges), 2)
    outline = _path(places, np.concatenate([[0.0], np.repeat(heights, 2), [0.0]]))
    at = float(x.percent(np.array(mark)))
    return Plot(alt, x, Axis(0.0, 1.0, ()), (("bars", f"{outline}Z"), ("limit", f"M{at:.4g} 0V100")))


def series(at: int) -> str:
    """CSS class of a graph's line: `N_SERIES` colours, then the same ones dashed."""
    return f"s{at % N_SERIES}" + " dashed" * (at % (2 * N_SERIES) >= N_SERIES)


def thinned(values: Values) -> tuple[Values, int]:
    """Largest of each group of neighbours (NaN only where all are), at most `MAX_POINTS` groups; and a group's size."""
    size = -(-len(values) // MAX_POINTS)
    padded = np.pad(values, (0, -len(values) % size), constant_values=np.nan).reshape(-1, size)
    return np.fmax.reduce(padded, axis=1), size


def _path(x: Values, y: Values) -> str:
    pen, parts = "M", []
    for place, height in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(height):
            parts.append(f"{pen}{place:.4g} {100 - height:.4g}" + "h0" * (pen == "M"))  # a lone value becomes a dot
        pen = "L" if math.isfinite(height) else "M"
    return "".join(parts)


def _round_step(step: float) -> float:
    """Smallest of 1, 2, 5, 10, 20, ... that is not below a step."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


# Spectrograms


def spectrogram_db(wave: Wave, n_fft: int, hop: int) -> Values:
    """Spectrogram in dB, (columns, rows) of time and frequency; 0 dB is a sine at full scale that fills a frame.

    Frames end with their hop as the network's do; neighbours are pooled by their mean power to `SPECTROGRAM_SIZE`.
    """
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, (n_fft - hop, 0)), n_fft)[::hop]
    window = np.hanning(n_fft + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window)[:, 1:] * (2 / window.sum())) ** 2
    columns, rows = (-(-n // most) for n, most in zip(power.shape, SPECTROGRAM_SIZE, strict=True))
    power = power[: len(power) // columns * columns, : power.shape[1] // rows * rows]
    pooled = power.reshape(-1, columns, power.shape[1] // rows, rows).mean(axis=(1, 3))
    return np.asarray(10 * np.log10(np.maximum(pooled, 1e-30)))


def bitmap(levels_db: Values, low_db: float, high_db: float) -> str:
    """Data URI of a spectrogram (columns, rows) as a PNG, low frequencies at the bottom."""
    steps = np.round((levels_db - low_db) / (high_db - low_db) * (N_COLOURS - 1))
    return _uri("image/png", _png(np.clip(steps, 0, N_COLOURS - 1).astype(np.uint8).T[::-1]))


def _png(indices: NDArray[np.uint8]) -> bytes:
    """PNG of 8 bits from rows of palette indices."""
    known = np.array([list(bytes.fromhex(colour[1:])) for colour in COLOURS])
    places = np.linspace(0, len(known) - 1, N_COLOURS)
    palette = np.stack([np.interp(places, range(len(known)), channel) for channel in known.T], axis=1)
    picture = Image.fromarray(indices, mode="P")
    picture.putpalette(palette.round().astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


# Sounds


def flac(wave: Wave, rate_hz: int) -> str:
    """Data URI of a sound as a FLAC of 16 bits; what exceeds full scale is clipped.

    Raises:
        EdgeseError: this machine's libsndfile writes no FLAC.
    """
    file = io.BytesIO()
    try:
        soundfile.write(file, np.clip(wave, -1, 1 - 2**-15), rate_hz, format="FLAC", subtype="PCM_16")
    except (soundfile.LibsndfileError, ValueError) as error:
        raise EdgeseError(
            f"FLAC cannot be written ({error}): {pip_command('install', '--upgrade', 'soundfile')}"
        ) from error
    return _uri("audio/flac", file.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
