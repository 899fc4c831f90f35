"""Picture of a calibration: how often each product's input takes which value, and what each method keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgese.atomic_file import write_png
from edgese.errors import EdgeseError, install_command
from edgese.quantize.calibration import Span

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
except ImportError as error:
    raise EdgeseError(f"matplotlib is missing ({error}): {install_command('plot')}") from error

# Told apart by colour-blind readers, too, after Okabe & Ito 2008, and by their dashes.
_LINES: tuple[dict[str, Any], ...] = (
    {"color": "#B2182B", "linestyle": "-"},
    {"color": "#0072B2", "linestyle": (0, (4, 1.5))},
    {"color": "#009E73", "linestyle": (0, (1, 1))},
)
_VALUES: dict[str, Any] = {"facecolor": "#d4d4d4", "edgecolor": "#8a8a8a", "linewidth": 0.6}
_COLUMNS = 4


def require_picture(png: Path) -> None:
    """Says before minutes of work what would be said after them.

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
    figure = Figure(figsize=(3.3 * n_columns + 0.4, 2.15 * n_rows + 1.3), layout="constrained")
    FigureCanvasAgg(figure)
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
    axis.yaxis.set_major_locator(LogLocator(numticks=5))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(labelsize=8.5)
    axis.set_title(span.product, loc="left", fontsize=10, fontweight="bold")
    axis.grid(which="major", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
