"""Figures without a window, and the colours of all pictures; without matplotlib the import raises `EdgeseError`."""

from __future__ import annotations

import threading
from pathlib import Path

from edgese.atomic_file import PartialFile
from edgese.errors import OutputError, install_command

try:
    from matplotlib import ticker as ticker
    from matplotlib.axes import Axes as Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Figure
    from matplotlib.lines import Line2D as Line2D
    from matplotlib.patches import Patch as Patch
except ImportError as error:
    raise OutputError(f"matplotlib is missing ({error}): {install_command('plot')}") from error

# Distinct for colour-blind readers, too, after Okabe & Ito 2008; dark enough for words in them.
BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN, GREY = (
    "#0072B2",
    "#C98500",
    "#009E73",
    "#AA4499",
    "#56B4E9",
    "#8C564B",
    "#666666",
)
RED = "#B2182B"  # limits and deadlines

drawing = threading.Lock()  # matplotlib's caches are not made for threads


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """Empty figure whose parts are laid out automatically."""
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: Figure, png: Path) -> None:
    """Write a figure whole or not at all; an earlier picture is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    with PartialFile(png) as partial:
        try:
            figure.savefig(partial.path, format="png", dpi=130)
        except OSError as error:
            raise partial.error(error) from error
        partial.publish(replace=True)
