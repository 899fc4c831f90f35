"""Pictures of quantization: values of each product's input, and the cost of products in INT8, single and together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgese.errors import EdgeseError
from edgese.pictures.figure import BLUE, GREEN, ORANGE, RED, Axes, Line2D, Patch, new_figure, ticker, write_png
from edgese.quantize.calibration import Span
from edgese.quantize.search import Quantization

_TAKEN, _LEFT, _LIMIT = BLUE, ORANGE, RED
_MARKERS = {"minmax": "x", "entropy": "o", "percentile": "^"}
# Distinct by their dashes as well as by their colours.
_LINES: tuple[dict[str, Any], ...] = (
    {"color": RED, "linestyle": "-"},
    {"color": BLUE, "linestyle": (0, (4, 1.5))},
    {"color": GREEN, "linestyle": (0, (1, 1))},
)
_VALUES: dict[str, Any] = {"facecolor": "#d4d4d4", "edgecolor": "#8a8a8a", "linewidth": 0.6}
_COLUMNS = 4


def require_picture(png: Path) -> None:
    """Check before minutes of work that a path can be a picture's.

    Raises:
        EdgeseError: it is no name for a picture.
    """
    if png.suffix != ".png" or png.is_dir():
        raise EdgeseError(f"{png}: the picture's name must end in .png, and be no folder's")


def write_ranges_plot(spans: Sequence[Span], title: str, png: Path) -> None:
    """Write a panel for each product: counts of its input's values, logarithmic, and the ranges as vertical lines.

    An earlier picture is replaced.

    Raises:
        EdgeseError: there is nothing to draw, or the picture cannot be written.
    """
    if not spans:
        raise EdgeseError(f"{png}: found no product to draw, wanted at least one")
    methods = list(spans[0].chosen)
    n_columns = min(_COLUMNS, len(spans))
    n_rows = -(-len(spans) // n_columns)
    figure = new_figure(3.3 * n_columns + 0.4, 2.15 * n_rows + 1.3)
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis, span in zip(panels.flat, spans, strict=False):
        _draw_panel(axis, span)
    for axis in panels.flat[len(spans) :]:
        axis.set_axis_off()
    for axis in panels[:, 0]:
        axis.set_ylabel("values in a bin", fontsize=9)
    for place, axis in enumerate(panels.flat):
        if len(spans) - n_columns <= place < len(spans):  # nothing stands below
            axis.set_xlabel("value at the product's input", fontsize=9)
    keys: list[Line2D | Patch] = [Patch(label="values over all batches", **_VALUES)]
    keys += [
        Line2D([], [], linewidth=1.6, label=f"range by {method}", **style)
        for method, style in zip(methods, _LINES, strict=True)
    ]
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5)
    figure.legend(handles=keys, loc="outside lower left", ncols=len(keys), frameon=False, fontsize=9.5)
    write_png(figure, png)


def _draw_panel(axis: Axes, span: Span) -> None:
    counts, edges = span.histogram.counts, span.histogram.edges
    axis.stairs(np.maximum(counts, 0.5), edges, baseline=0.5, fill=True, **_VALUES)
    for found, style in zip(span.chosen.values(), _LINES, strict=True):
        for edge in (found.low, found.high):
            axis.axvline(edge, linewidth=1.4, **style)
    widest = max(max(-found.low, found.high) for found in span.chosen.values())
    low, high = min(-widest, float(edges[0])), max(widest, float(edges[-1]))
    margin = 0.04 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    axis.set_yscale("log")
    axis.set_ylim(0.5, 3.0 * max(float(counts.max()), 1.0))
    axis.yaxis.set_major_locator(ticker.LogLocator(numticks=5))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.tick_params(labelsize=8.5)
    axis.set_title(span.product, loc="left", fontsize=10, fontweight="bold")
    axis.grid(which="major", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def write_sensitivity_plot(found: Quantization, title: str, png: Path) -> None:
    """Write a row for each product, the costliest on top: noise, PESQ-WB lost, share of the arithmetic; below, sets.

    An earlier picture is replaced.

    Raises:
        EdgeseError: the picture cannot be written.
    """
    rows = len(found.costs)
    figure = new_figure(12.5, 0.33 * rows + 3.4)
    grid = figure.add_gridspec(2, 3, height_ratios=[0.33 * rows, 1.9], width_ratios=[1.15, 1, 0.8])
    first = figure.add_subplot(grid[0, 0])
    panels = [first, *(figure.add_subplot(grid[0, column], sharey=first) for column in (1, 2))]
    _draw_products(panels, found)
    _draw_sets(figure.add_subplot(grid[1, :]), found)
    keys: list[Patch | Line2D] = [
        Patch(facecolor=_TAKEN, label="taken in INT8"),
        Patch(facecolor=_LEFT, label="left in half precision" if found.plan.half else "left in float32"),
        *(
            Line2D(
                [],
                [],
                color="black",
                marker=marker,
                linestyle="none",
                markersize=5,
                fillstyle="none",
                label=f"with {method}'s range",
            )
            for method, marker in _MARKERS.items()
        ),
    ]
    figure.legend(handles=keys, loc="outside lower left", ncols=len(keys), frameon=False, fontsize=9.5)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5)
    write_png(figure, png)


def _draw_products(panels: list[Axes], found: Quantization) -> None:
    places = np.arange(len(found.costs))
    colours = [_TAKEN if cost.products[0] in found.plan.ranges else _LEFT for cost in found.costs]
    columns = (
        ([cost.snr_db for cost in found.costs], "SNR alone, dB (more is better)", " {:.0f}"),
        ([cost.pesq_loss for cost in found.costs], "PESQ-WB lost alone", "{:+.4f}"),
        ([100 * cost.share for cost in found.costs], "share of the arithmetic, %", "{:.1f}"),
    )
    for axis, (values, label, form) in zip(panels, columns, strict=True):
        bars = axis.barh(places, values, color=colours, height=0.72)
        axis.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=8.5)
        axis.set_xlabel(label, fontsize=9.5)
        axis.margins(x=0.22, y=0.01)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axis.axvline(0, color="#8a8a8a", linewidth=0.8)
        axis.tick_params(labelsize=8.5, left=False, labelleft=axis is panels[0])
        axis.spines[["top", "right", "left"]].set_visible(False)
    rows = {cost.products[0]: place for place, cost in enumerate(found.costs)}
    for entry in found.plan.facts["alone"]:
        place, marker = rows[entry["products"][0]], _MARKERS[entry["method"]]
        panels[0].plot(entry["snr_db"], place, marker=marker, color="black", markersize=4, fillstyle="none")
    panels[0].set_yticks(places, [cost.products[0] for cost in found.costs])


def _draw_sets(axis: Axes, found: Quantization) -> None:
    """Draw PESQ lost by each set in the order of their trials, over the share of the arithmetic that it holds."""
    shares = [100 * cost.share for cost in found.steps]
    losses = [cost.pesq_loss for cost in found.steps]
    budget = found.plan.facts["budget"]
    axis.plot(shares, losses, color="#9a9a9a", linewidth=1.2, zorder=1)
    axis.scatter(shares, losses, color=[*[_LEFT] * (len(shares) - 1), _TAKEN], s=42, zorder=2)
    for cost, share, loss in zip(found.steps, shares, losses, strict=True):
        words = f"{len(cost.products)} products: {loss:+.4f}, {cost.snr_db:.0f} dB"
        axis.annotate(words, (share, loss), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    axis.axhline(budget, color=_LIMIT, linewidth=1.4, linestyle=(0, (4, 1.5)))
    axis.annotate(
        f"budget {budget:g}",
        (0.002, budget),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=_LIMIT,
        fontsize=9,
    )
    axis.set_xlim(0, 114)
    axis.margins(y=0.35)
    axis.set_xlabel("share of the arithmetic in INT8 together, %", fontsize=9.5)
    axis.set_ylabel("PESQ-WB lost", fontsize=9.5)
    axis.tick_params(labelsize=8.5)
    axis.grid(color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
