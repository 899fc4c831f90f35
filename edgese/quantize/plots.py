"""Picture of a search for INT8: what each product costs alone, and what the sets that were tried cost together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgese.atomic_file import write_png
from edgese.errors import EdgeseError, install_command
from edgese.quantize.search import Quantization

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise EdgeseError(f"matplotlib is missing ({error}): {install_command('plot')}") from error

# Told apart by colour-blind readers, too, after Okabe & Ito 2008.
_TAKEN, _LEFT, _LIMIT = "#0072B2", "#C98500", "#B2182B"
_MARKERS = {"minmax": "x", "entropy": "o", "percentile": "^"}


def write_sensitivity_plot(found: Quantization, title: str, png: Path) -> None:
    """Write a row for each product, the costliest on top: noise, PESQ-WB lost, share of the arithmetic; below, sets.

    An earlier picture is replaced.

    Raises:
        EdgeseError: the picture cannot be written.
    """
    rows = len(found.costs)
    figure = Figure(figsize=(12.5, 0.33 * rows + 3.4), layout="constrained")
    FigureCanvasAgg(figure)
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
        axis.xaxis.set_major_locator(MaxNLocator(5))
        axis.axvline(0, color="#8a8a8a", linewidth=0.8)
        axis.tick_params(labelsize=8.5, left=False, labelleft=axis is panels[0])
        axis.spines[["top", "right", "left"]].set_visible(False)
    rows = {cost.products[0]: place for place, cost in enumerate(found.costs)}
    for entry in found.plan.facts["alone"]:
        place, marker = rows[entry["products"][0]], _MARKERS[entry["method"]]
        panels[0].plot(entry["snr_db"], place, marker=marker, color="black", markersize=4, fillstyle="none")
    panels[0].set_yticks(places, [cost.products[0] for cost in found.costs])


def _draw_sets(axis: Axes, found: Quantization) -> None:
    """The sets in the order in which they were tried, by how much of the arithmetic they hold."""
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
