"""Picture of a training run: losses, validation scores and learning rate by step."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.errors import EdgeseError
from edgese.pictures.figure import drawing, new_figure, ticker, write_png

SMOOTHING = 1 / 40  # share of a run that the training losses are averaged over: single batches scatter widely


def write_learning_curves(log: Path, png: Path) -> None:
    """Write the course of a training run as a PNG: its losses, the validation's scores, the learning rate, by step.

    Columns are known by their names: those of validation begin with `validation_`, those that end in `_rate`, `_norm`
    or `_per_second` are no losses, all others are terms of the training loss. Losses that spread over more than a
    factor of four have a logarithmic axis.

    Args:
        log: the `log.csv` of `edgese train`; columns may be missing, and cells empty.

    Raises:
        EdgeseError: the log cannot be read, or holds no steps or something else than numbers; the picture cannot be
            written.
    """
    curves = _read_log(log)
    scores = [name for name in curves if name.startswith("validation_") and name != "validation_loss"]
    in_db = [name for name in scores if name.endswith("_db")]
    terms = [n for n in curves if not n.startswith("validation_") and not n.endswith(("_rate", "_norm", "_per_second"))]
    panels: dict[str, list[str]] = {
        "loss": [name for name in ("loss", "validation_loss") if name in curves],
        "terms of the loss": [name for name in terms if name != "loss"],
        **{name.removeprefix("validation_"): [name] for name in scores if name not in in_db},
        "dB": in_db,
        "learning rate": [name for name in curves if name.endswith("_rate")],
    }
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        raise EdgeseError(f"{log}: found no curve to draw, wanted the log.csv of edgese train")
    with drawing:
        figure = new_figure(9, 1 + 2 * len(panels))
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (title, names) in zip(axes, panels.items(), strict=True):
            for name in names:
                _draw_curve(axis, name, *curves[name])
            values = np.concatenate([curves[name][1] for name in names])
            if "loss" in title and 0 < 4 * values.min() < values.max():
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter(ticker.NullFormatter())
            axis.set_title(title, loc="left")
            axis.grid(alpha=0.3)
            if len(names) > 1 or names[0].startswith("validation_"):
                axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        axes[-1].set_xlabel("step")
        write_png(figure, png)


Curve = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values; only where there is a value


def _read_log(log: Path) -> dict[str, Curve]:
    """Steps and values of each column that has some, by name, in the order of the file."""
    try:
        with log.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines, restkey="", restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EdgeseError(f"{log}: cannot be read as CSV ({error})") from error
    if not rows or "step" not in rows[0]:
        raise EdgeseError(f"{log}: found no steps, wanted the log.csv of edgese train")
    curves: dict[str, Curve] = {}
    for name in rows[0]:
        if name in ("", "step"):
            continue
        try:
            points = np.array([(float(row["step"]), float(row[name])) for row in rows if row[name]])
        except ValueError as error:
            raise EdgeseError(f"{log}: column {name}: {error}; wanted numbers, or nothing") from error
        points = points.reshape(-1, 2)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            curves[name] = points[:, 0], points[:, 1]
    return curves


def _draw_curve(axis: Any, name: str, steps: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Draw a curve: training smoothed over its raw values, validation with its best value named in the legend."""
    if name.endswith("_rate"):
        axis.plot(steps, values, label=name)
    elif name.startswith("validation_"):
        best = int(values.argmin() if name.endswith("loss") else values.argmax())
        label = f"{name}\nbest {values[best]:.4g} at {steps[best]:.0f}"
        axis.plot(steps, values, marker=".", markersize=4, label=label)
    else:
        (line,) = axis.plot(steps, _smoothed(values), label=name)
        axis.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8, zorder=1)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moving mean over `SMOOTHING` of the run around each value; over fewer values at its ends."""
    window = np.ones(2 * round(len(values) * SMOOTHING / 2) + 1)
    counts = np.convolve(np.ones(len(values)), window, mode="full")
    sums = np.convolve(values, window, mode="full")
    means: NDArray[np.float64] = (sums / counts)[len(window) // 2 :][: len(values)]
    return means
