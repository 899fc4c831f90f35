"""Axes, lines, spectrograms and sounds that a page draws: small, exact, and readable by others' decoders."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import soundfile

from edgese.verify.report.drawing import (
    MAX_POINTS,
    MINUS,
    N_COLOURS,
    N_SERIES,
    SPECTROGRAM_SIZE,
    Axis,
    bitmap,
    curves,
    flac,
    histogram,
    series,
    spectrogram_db,
    thinned,
)

RATE_HZ = 16_000


def content(uri: str, kind: str) -> bytes:
    head, _, encoded = uri.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(encoded, validate=True)


def tone(frequency_hz: float, seconds: float = 1.0, level: float = 1.0) -> np.ndarray:
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (level * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 8.85, ["0", "2", "4", "6", "8 s"]),
        (0, 10, ["0", "2", "4", "6", "8", "10 s"]),
        (-160, -130, [f"{MINUS}160", f"{MINUS}150", f"{MINUS}140", f"{MINUS}130 s"]),
        (-0.3, 0.3, [f"{MINUS}0.2", "0", "0.2 s"]),
    ],
)
def test_ticks_are_round_numbers_and_the_last_one_has_the_unit(low: float, high: float, labels: list[str]) -> None:
    axis = Axis.linear(low, high, unit="s")
    assert [tick.label for tick in axis.ticks] == labels
    values = [float(label.removesuffix(" s").replace(MINUS, "-")) for label in labels]
    assert [tick.percent for tick in axis.ticks] == pytest.approx(axis.percent(np.array(values)), abs=0.01)


def test_a_logarithmic_axis_has_a_tick_at_each_power_of_ten() -> None:
    axis = Axis.decades(-1.5, 2.1, unit="ms")
    assert [tick.label for tick in axis.ticks] == ["0.1", "1", "10", "100 ms"]
    assert [tick.percent for tick in axis.ticks] == pytest.approx(
        [100 * (at + 1.5) / 3.6 for at in (-1, 0, 1, 2)], abs=0.01
    )


def test_lines_leave_gaps_where_nothing_is_known_and_a_lone_value_is_a_dot() -> None:
    places, values = np.arange(6.0), np.array([0.0, 1.0, np.nan, 2.0, np.nan, np.inf])
    plot = curves("alt", Axis(0, 5, ()), Axis(0, 2, ()), [(places, values)], limits=[1.5])
    assert dict(plot.paths) == {"limit": "M0 25h0L100 25", "s0": "M0 100h0L20 50M60 0h0"}


def test_steps_hold_until_the_next_one() -> None:
    plot = curves("alt", Axis(0, 2, ()), Axis(0, 1, ()), [(np.array([0.0, 1, 2]), np.array([0.0, 1]))], steps=True)
    assert dict(plot.paths) == {"s0": "M0 100h0L50 100L50 0L100 0"}


def test_many_lines_differ_by_colour_or_dashes() -> None:
    assert len({series(at) for at in range(2 * N_SERIES)}) == 2 * N_SERIES


def test_long_curves_keep_their_largest_values() -> None:
    values = np.full(3601, -90.0)
    values[1234], values[:40] = -20.0, np.nan
    points, size = thinned(values)
    assert len(points) <= MAX_POINTS
    assert size == 19
    assert points[1234 // size] == -20
    assert np.isnan(points[:2]).all()
    assert np.nanmin(points) == -90
    assert np.array_equal(thinned(values[40:100])[0], values[40:100])  # short ones are kept


def test_a_histogram_shows_a_single_call_among_thousands() -> None:
    plot = histogram("alt", Axis(0, 2, ()), np.array([0.5] * 5000 + [1.9]), mark=1.0)
    (_, bars), (_, mark) = plot.paths
    heights = [100 - float(point.split(" ")[1]) for point in bars.strip("MZ").replace("h0", "").split("L")]
    assert mark == "M50 0V100"
    assert max(heights) == pytest.approx(92)
    assert sum(height > 5 for height in heights) == 4  # two bars, two corners each


def test_a_sine_at_full_scale_is_zero_decibels_where_it_sounds() -> None:
    levels = spectrogram_db(tone(2000), 512, 128)
    assert levels.shape == (125, 128)
    row = int(2000 / 8000 * 128)  # two bins a row: the sine and half of its side lobes
    assert levels[60, row - 1] + 10 * np.log10(2) == pytest.approx(0, abs=1.1)
    assert levels[60, row + 8] < -100
    assert levels[60].argmax() == row - 1
    quiet = spectrogram_db(tone(2000, level=0.1), 512, 128)
    assert np.allclose(levels[60, row - 1] - quiet[60, row - 1], 20, atol=1e-3)


def test_spectrograms_of_long_sounds_stay_small() -> None:
    levels = spectrogram_db(tone(440, seconds=30), 512, 128)
    assert all(n <= most for n, most in zip(levels.shape, SPECTROGRAM_SIZE, strict=True))


def test_silence_has_a_level() -> None:
    assert np.isfinite(spectrogram_db(np.zeros(4000, np.float32), 512, 128)).all()


def test_a_bitmap_is_a_png_with_low_frequencies_at_the_bottom() -> None:
    image = pytest.importorskip("matplotlib.image", reason="the [plot] extra is not installed")
    levels = np.full((30, 20), -80.0)
    levels[:, 2] = 0.0  # a low tone
    levels[4, :] = 20.0  # above the scale
    png = content(bitmap(levels, -80, 0), "image/png")
    pixels = image.imread(io.BytesIO(png), format="png")[..., :3]
    assert pixels.shape[:2] == (20, 30)
    assert np.allclose(pixels[-3], [252 / 255, 253 / 255, 191 / 255], atol=0.003)
    assert np.allclose(pixels[:, 4], pixels[-3, 0])
    assert np.allclose(pixels[0, 0], [0, 0, 4 / 255], atol=0.003)
    ramp = image.imread(io.BytesIO(content(bitmap(np.linspace(-80, 0, 400)[:, None], -80, 0), "image/png")))[0, :, :3]
    assert len(np.unique(ramp, axis=0)) == N_COLOURS
    assert (np.diff(ramp @ [0.2126, 0.7152, 0.0722]) >= -1e-3).all()  # louder is lighter


def test_a_sound_comes_back_from_its_flac() -> None:
    wave = tone(440, seconds=0.5, level=1.5)
    read, rate_hz = soundfile.read(io.BytesIO(content(flac(wave, RATE_HZ), "audio/flac")), dtype="float32")
    assert rate_hz == RATE_HZ
    assert np.allclose(read, np.clip(wave, -1, 1), atol=2**-15)
