"""Pictures of a bench report: distribution of call times, and p99 over the number of streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.bench.advice import TITLES
from edgese.bench.capacity import Capacity
from edgese.bench.measure import Report, Result
from edgese.bench.timing import Seconds
from edgese.errors import EdgeseError
from edgese.pictures.figure import (
    BLUE,
    BROWN,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Axes,
    Figure,
    Line2D,
    new_figure,
    ticker,
    write_png,
)

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, BROWN, GREY)
_DEADLINE = RED
_FAINT = "#9a9a9a"
_PACED: dict[str, Any] = {"linewidth": 2.0}
_BACK: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (3, 1.5))}

Panel = Callable[[Axes, "Sequence[Result]", "dict[tuple[str, str], str]"], None]


def prepare_folder(folder: Path) -> None:
    """Make the folder, with those above it.

    Raises:
        EdgeseError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeseError(f"{folder}: cannot be made ({error.strerror}); choose another --plot folder") from error


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Write `latency.png` and `streams.png`; earlier ones are replaced.

    Raises:
        EdgeseError: they cannot be written.
    """
    name, cpu = report.bundle.manifest["name"], report.machine.board or report.machine.cpu
    streams = f"{report.settings.streams} streams" if report.settings.streams > 1 else "one stream"
    where = f"{name} on {cpu}"
    latency = _figure(report, f"How long a call takes: {where}, one core, {streams}", _latency_panel, _latency_keys())
    load = _figure(report, f"What more streams do to the slowest calls: {where}", _streams_panel, _streams_keys())
    pictures = {folder / "latency.png": latency, folder / "streams.png": load}
    for png, figure in pictures.items():
        write_png(figure, png)
    return list(pictures)


def _figure(report: Report, title: str, panel: Panel, keys: Sequence[Line2D]) -> Figure:
    """Figure with one panel for each block size, all runtimes and precisions in it."""
    blocks = sorted({result.case.block for result in report.results})
    kinds = list(dict.fromkeys((result.case.runtime, result.case.precision) for result in report.results))
    colours = {kind: _COLOURS[index % len(_COLOURS)] for index, kind in enumerate(kinds)}
    n_columns = min(2, len(blocks))
    n_rows = -(-len(blocks) // n_columns)
    figure = new_figure(5.6 * n_columns + 0.4, 3.9 * n_rows + 1.1)
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axis, block in zip(panels, blocks, strict=False):
        results = [result for result in report.results if result.case.block == block]
        panel(axis, results, colours)
        duration_ms = results[0].case.period_s * 1e3
        kind = "block" if results[0].case.live else "segments of"
        axis.set_title(f"{kind} {block}: {duration_ms:g} ms", loc="left", fontsize=11, fontweight="bold")
        axis.grid(which="major", color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in panels[len(blocks) :]:
        axis.set_axis_off()
    names = [Line2D([], [], color=colours[kind], linewidth=2.5, label=_label(*kind)) for kind in kinds]
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5)
    figure.legend(handles=[*names, *keys], loc="outside lower left", ncols=4, frameon=False, fontsize=9.5)
    return figure


def _latency_panel(axis: Axes, results: Sequence[Result], colours: dict[tuple[str, str], str]) -> None:
    """Draw the share of calls that took longer over the time, both logarithmic: percentiles are heights."""
    for result in results:
        colour = colours[result.case.runtime, result.case.precision]
        axis.step(*_slower_share(result.back.took_s), where="post", color=colour, **_BACK)
        if result.case.live:
            axis.step(*_slower_share(result.paced.took_s), where="post", color=colour, **_PACED)
    n_calls = max(len(getattr(result, way).took_s) for result in results for way in result.ways)
    axis.set_yscale("log")
    axis.set_ylim(0.7 / n_calls, 1.4)
    axis.yaxis.set_major_locator(ticker.FixedLocator([10.0**-power for power in range(int(np.log10(n_calls)) + 1)]))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(_share_name))
    axis.yaxis.set_minor_locator(ticker.NullLocator())
    axis.set_ylabel("calls that take longer")
    period_ms = results[0].case.period_s * 1e3
    axis.axvline(period_ms, color=_DEADLINE, linewidth=1.4)
    axis.axvline(period_ms / 2, color=_DEADLINE, linewidth=1.0, linestyle=":")
    axis.set_xscale("log")
    left_ms, right_ms = axis.get_xlim()
    axis.set_xlim(left_ms, max(right_ms, 1.35 * period_ms))
    _plain_ticks(axis.xaxis)
    axis.set_xlabel("ms")


def _share_name(share: float, position: object = None) -> str:
    """Tick label of a share of calls: `1 in 100 (p99)`."""
    return "all" if share > 0.5 else f"1 in {1 / share:,.0f} (p{100 * (1 - share):.10g})"


def _streams_panel(axis: Axes, results: Sequence[Result], colours: dict[tuple[str, str], str]) -> None:
    """Draw p99 over the streams on the device; where calls were stopped early, a lower bound of p99."""
    for result in results:
        colour = colours[result.case.runtime, result.case.precision]
        _draw_capacity(axis, result.one_core, colour, marker="o", linestyle="-")
        if result.all_cores is not None:
            _draw_capacity(axis, result.all_cores, colour, marker="s", linestyle="--")
    for height, result in enumerate(reversed(results)):  # below the curves, which rise to the right
        case, words = result.case, _capacity_words(result)
        colour = colours[case.runtime, case.precision]
        axis.text(0.985, 0.035 + 0.065 * height, words, transform=axis.transAxes, ha="right", color=colour, fontsize=9)
    axis.axhline(results[0].case.period_s * 1e3, color=_DEADLINE, linewidth=1.4)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    _plain_ticks(axis.yaxis)
    axis.set_ylabel("p99 of a call, ms" if results[0].case.live else "slowest of a few calls, ms")
    axis.set_xlabel("streams on the device")


def _draw_capacity(axis: Axes, capacity: Capacity, colour: str, marker: str, linestyle: str) -> None:
    measured = {point.streams: point.slow_s for point in capacity.points if point.slow_s is not None}
    stopped = {
        point.streams: max(_p99_at_least_s(timing.took_s, timing.period_s) for timing in point.timings)
        for point in capacity.points
        if not point.complete and point.streams not in measured
    }
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5}
    axis.plot(*_curve(measured, capacity.cores), linestyle=linestyle, linewidth=1.6, **style)
    axis.plot(*_curve(stopped, capacity.cores), color=colour, marker="x", markersize=5, alpha=0.55, linestyle="none")


def _capacity_words(result: Result) -> str:
    """Capacity in words: `ONNX Runtime, fp32: 72 on one core, 144 on 2`."""
    one, every = result.one_core, result.all_cores
    words = f"{_label(result.case.runtime, result.case.precision)}: {one.streams}{'+' * one.at_least} on one core"
    return words if every is None else f"{words}, {every.streams}{'+' * every.at_least} on {every.cores}"


def _curve(points: dict[int, float], cores: int) -> tuple[list[int], list[float]]:
    return [streams * cores for streams in sorted(points)], [points[streams] * 1e3 for streams in sorted(points)]


def _p99_at_least_s(took_s: Seconds, period_s: float) -> float:
    """Lower bound of p99 where calls were stopped, as over one in a hundred had missed: the fastest late call."""
    late = took_s[took_s > period_s]
    return float(late.min()) if len(late) else 0.0


def _slower_share(took_s: Seconds) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Call times in ascending order, ms, and at each the share of calls that took longer; 1 / n at the slowest."""
    values = np.sort(took_s) * 1e3
    n_slower = np.maximum(len(values) - 1 - np.arange(len(values)), 1)
    return np.concatenate([values[:1], values]), np.append(1.0, n_slower / len(values))


def _plain_ticks(axis: Any) -> None:
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


def _label(runtime: str, precision: str) -> str:
    return f"{TITLES.get(runtime, runtime)}, {precision}"


def _latency_keys() -> list[Line2D]:
    return [
        Line2D([], [], color=_FAINT, label="paced in real time", **_PACED),
        Line2D([], [], color=_FAINT, label="back to back", **_BACK),
        Line2D([], [], color=_DEADLINE, linewidth=1.4, label="deadline: the block's duration"),
        Line2D([], [], color=_DEADLINE, linewidth=1.0, linestyle=":", label="half of it"),
    ]


def _streams_keys() -> list[Line2D]:
    return [
        Line2D([], [], color=_FAINT, marker="o", markersize=4.5, label="one core"),
        Line2D([], [], color=_FAINT, marker="s", markersize=4.5, linestyle="--", label="all cores at once"),
        Line2D([], [], color=_FAINT, marker="x", linestyle="none", label="stopped: p99 is above this"),
        Line2D([], [], color=_DEADLINE, linewidth=1.4, label="deadline: the block's duration"),
    ]
