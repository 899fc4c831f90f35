"""`edgese bench`: speed of a bundle on this machine or a board, and a recommendation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgese.cli.board import (
    Host,
    NoKeep,
    Timeout,
    board_session,
    check_options,
    check_runtimes,
    print_bench,
    print_state,
)
from edgese.cli.terminal import BundleArgument, Json, Precisions, Quiet, print_table, progress_bar, require, say

if TYPE_CHECKING:
    from edgese.bench.capacity import Capacity
    from edgese.bench.estimate import Estimates
    from edgese.bench.measure import Report, Result

_NAMES = ("runtime", "", "block")
_COLD = ("start", "import", "load", "first call", "total")


def bench_command(
    path: BundleArgument = None,
    model: Annotated[Path | None, typer.Option("--model", "-m", hidden=True)] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, or jetson if this machine is one.")] = "cpu",
    runtimes: Annotated[
        list[str] | None,
        typer.Option("--runtime", metavar="NAME", help="May be repeated. Default: all that open here."),
    ] = None,
    precisions: Precisions = None,
    blocks: Annotated[
        list[int] | None,
        typer.Option("--block", min=1, help="Hops in a call. May be repeated. Default: all that the bundle has."),
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams in a call.")] = 1,
    seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Length of the sound for each turn of each case.")
    ] = 5.0,
    repeat: Annotated[
        int | None, typer.Option(min=1, help="Turns: how often everything is measured.", show_default="3")
    ] = None,
    core: Annotated[int | None, typer.Option(min=0, help="The core to measure on. Default: the last one.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write latency.png and streams.png; needs the extra plot."),
    ] = None,
    estimate: Annotated[
        str | None,
        typer.Option(metavar="BOARD", help="Measure nothing: estimate a Jetson, as orin-nano; needs the extra export."),
    ] = None,
    host: Host = None,
    timeout: Timeout = None,
    no_keep: NoKeep = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure a bundle on this machine: latency, streams, cold start and memory, by runtime, precision and block.

    With --device jetson --host user@board (or EDGESE_JETSON), the board builds its TensorRT engines or reuses those it
    has, tests itself, and measures latency, temperatures, throttling and energy. EDGESE_SSH names another ssh command.
    """
    from edgese.bench.advice import recommend, warnings
    from edgese.bench.measure import DEVICES, Settings, bench, choose, require_device
    from edgese.graphs.audio_facts import open_bundle
    from edgese.graphs.bundles import bundle_path
    from edgese.machine.host import describe

    if path is not None and model is not None:
        raise typer.BadParameter(f"--model {model}: found {path} beside it, wanted one bundle")
    path = bundle_path(path or model)
    if device not in DEVICES:
        raise typer.BadParameter(f"--device: found {device!r}, wanted one of {', '.join(DEVICES)}")
    if estimate is not None:
        measuring = {"--runtime": runtimes, "--core": core, "--plot": plot}
        needless = [name for name, value in measuring.items() if value is not None]
        if needless:
            raise typer.BadParameter(f"--estimate measures nothing: found {', '.join(needless)} beside it, wanted none")
        check_options(None, {}, {"--host": host, "--timeout": timeout, "--no-keep": no_keep})
        _estimate(path, device, estimate, precisions or [], blocks or [], streams, as_json)
        return
    here = describe()
    if device == "jetson" and host is None and here.board is None:
        from edgese.board.link import environment_host

        host = environment_host()
    check_options(
        host,
        {"--core": core, "--plot": plot, "--repeat": repeat},
        {"--timeout": timeout, "--no-keep": no_keep},
    )
    if host is not None:
        if device != "jetson":
            raise typer.BadParameter(
                f"--host: found --device {device}, wanted --device jetson: it is made for no other"
            )
        _bench_there(
            *(path, host, runtimes or [], precisions or [], blocks or [], streams, seconds),
            *(timeout, no_keep, quiet, as_json),
        )
        return
    require_device(device, here)
    if plot is not None:
        from edgese.bench.plot import prepare_folder, write_plots

        prepare_folder(plot)  # said now, not after minutes of work
    settings = Settings(
        runtimes=tuple(runtimes or ()),
        precisions=tuple(precisions or ()),
        blocks=tuple(blocks or ()),
        streams=streams,
        seconds=seconds,
        repeats=repeat or 3,
        core=core,
        device=device,
    )
    bundle = open_bundle(path)
    watched = None
    if device == "jetson":
        from edgese.machine.watch import watch

        watched = watch(Path("/"), seconds)
    with progress_bar(quiet or as_json, _step_columns) as bar:
        task = bar.add_task("measuring")
        tells = bar.disable and not (quiet or as_json)

        def on_progress(done: int, total: int, what: str) -> None:
            nonlocal tells
            bar.update(task, completed=done, total=total, description=what)
            if tells and done:  # one is measured: now it is known that it can be
                tells = False
                n_cases = len(choose(bundle, settings))
                turns = f"{settings.repeats} turn{'s' if settings.repeats > 1 else ''}"
                least_s = n_cases * settings.repeats * seconds  # each turn is paced in real time
                say(f"measuring: {n_cases} cases in {turns}, then their streams: {least_s:.0f} s at least", err=True)

        report = bench(bundle, settings, on_progress)
    advice, found = recommend(report), warnings(report)
    board = {} if watched is None else watched.entry()
    if as_json:
        said = {"recommendation": [item.entry() for item in advice], "warnings": found}
        say(json.dumps({"device": device} | report.entry() | said | board, indent=2))
    else:
        _print_report(report)
        if board:
            print_state(board)
        for item in advice:
            say(item)
    for warning in found:
        say(f"warning: {warning}", err=True)
    if plot is not None:
        for picture in write_plots(report, plot):
            say(f"picture: {picture}", err=as_json)


def _bench_there(
    path: Path,
    host: str,
    runtimes: list[str],
    precisions: list[str],
    blocks: list[int],
    streams: int,
    seconds: float,
    timeout: float | None,
    no_keep: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure a bundle on a board and print what it found; exit code 1 if a graph could not be measured."""
    from edgese.board.commands import Chosen, bench_there
    from edgese.device.content import choose
    from edgese.graphs.audio_facts import open_bundle

    chosen = Chosen(check_runtimes(runtimes), precisions, blocks)
    bundle = open_bundle(path)
    choose(bundle, precisions, blocks)  # said now, not after copying
    with progress_bar(quiet or as_json) as bar, board_session(host, bar, timeout, no_keep, quiet) as session:
        found = bench_there(session, bundle, chosen, streams=streams, seconds=seconds)
    if as_json:
        say(json.dumps({"device": "jetson", "host": host} | found, indent=2))
    else:
        print_bench(found, bundle.manifest["name"], host)
    if found["bench"]["failures"] or not found["bench"]["results"]:
        raise typer.Exit(code=1)


def _estimate(
    path: Path, device: str, name: str, precisions: list[str], blocks: list[int], streams: int, as_json: bool
) -> None:
    """Print estimated times of calls on a board that is not here; every table and object says so."""
    from edgese.bench.jetson_modules import BOARDS
    from edgese.bench.measure import Settings, choose

    if device != "jetson":
        raise typer.BadParameter(
            f"--estimate: found --device {device}, wanted --device jetson: it is made for no other"
        )
    if name not in BOARDS:
        raise typer.BadParameter(f"--estimate: found {name!r}, wanted one of {', '.join(BOARDS)}")
    require("onnx", extra="export")
    from edgese.bench.estimate import estimate_cases
    from edgese.graphs.audio_facts import open_bundle

    bundle = open_bundle(path)
    # Graphs are chosen as for measuring; the runtime only stands in for TensorRT, and none is opened.
    cases = choose(bundle, Settings(("onnxruntime",), tuple(precisions), tuple(blocks)))
    found = estimate_cases(cases, BOARDS[name], streams=streams)
    if as_json:
        about = {"bundle": {"name": bundle.manifest["name"], "path": str(bundle.path)}}
        say(json.dumps(about | found.entry(), indent=2))
    else:
        _print_estimates(found, bundle.manifest["name"])


def _print_estimates(found: Estimates, name: str) -> None:
    from edgese.bench.capacity import MAX_STREAMS
    from edgese.bench.estimate import GPU

    board, peak = found.board, found.board.peak
    say(f"ESTIMATE, nothing was measured: {name} on {peak.name}, power mode {board.mode}")
    clock = f"{board.multiprocessors} SMs at {board.clock_mhz:g} MHz"
    tflops = ", ".join(f"{precision} {value:.3g}" for precision, value in peak.tflops.items())
    say(f"published: {peak.bandwidth_gbs:g} GB/s, {clock} ({board.source}); peak TFLOPS taken: {tflops}")
    if board.differs:
        say(f"published elsewhere: {board.differs}")
    say("")
    rows = []
    for case, result in zip(found.cases, found.results, strict=True):
        times = [_number(value) for value in (*result.graph_ms, *result.launches_ms)]
        factors = [_number(value, 4) for value in result.rtf]
        most = [f"{value}{'+' if value == MAX_STREAMS else ''}" for value in result.streams]
        kernels = [str(value) for value in result.kernels]
        rows.append([case.precision, str(case.block), *kernels, *times, *factors, *most])
    streams = f"{found.streams} stream{'s' if found.streams != 1 else ''}"
    columns = ("kernels", "graph ms", "launches ms", "RTF", "streams")
    print_table(
        f"estimate, low and high bound of each: a call of {streams} as one CUDA graph and launched kernel by kernel; "
        "RTF and streams within the block as a graph",
        ["estimate", "block", *(part for column in columns for part in (column, ""))],
        rows,
    )
    say("")
    say("this estimate assumes:")
    for line in GPU.lines():
        say(f"  {line}")
    for line in found.left_out:
        say(f"left out: {line}")


def _step_columns() -> list[Any]:
    from rich.progress import TextColumn, TimeRemainingColumn

    return [TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn()]


def _print_report(report: Report) -> None:
    settings = report.settings
    say(f"{report.bundle.manifest['name']} on core {report.core}: {report.machine}")
    if report.gpu is not None:
        say(f"GPU: {report.gpu}; calls come from that core")
    for runtime, reason in report.left_out.items():
        say(f"left out: {runtime}: {reason}")
    streams = f"{settings.streams} stream{'s' if settings.streams != 1 else ''}"
    turns = f"{settings.repeats} turn{'s' if settings.repeats != 1 else ''} of {settings.seconds:g} s"
    say("")
    print_table(
        f"a call of {streams} on one core, ms; {turns}; spread: of p50 and p99 between turns",
        [*_NAMES, "calls", "n", "p50", "p90", "p95", "p99", "p99.9", "max", "RTF", "missed", "spread"],
        [row for result in report.results for row in _call_rows(result)],
    )
    say("")
    live = report.results[0].case.live  # all of a bundle are alike
    if live:
        print_table(
            "latency, ms: output behind input (algorithmic), block gathered (buffering), paced call (processing)",
            [*_NAMES, "algorithmic", "buffering", "processing p50", "p99", "sum p50", "p99"],
            [
                [*_names(result), *(_number(value, 2) for value in result.latency_ms.values())]
                for result in report.results
            ],
        )
    else:
        from edgese.graphs.segments import network_name, segments_in_words

        say(
            f"not live: {network_name(report.bundle.manifest)} looks ahead; a call takes one of its "
            f"{segments_in_words(report.bundle)}, which advance {report.results[0].case.period_s:.2f} s: "
            "RTF is a call's share of it"
        )
    say("")
    n_cores, slow = report.machine.cores, "p99 ms" if live else "slowest ms"
    until = "p99 of a call back to back exceeds the block" if live else "the slowest of a few calls exceeds the advance"
    print_table(
        f"streams until {until}, on one core and on all; cold start, seconds",
        [*_NAMES, "1 core", slow, f"{n_cores} cores", slow, *_COLD, "peak MB"],
        [_throughput_row(result) for result in report.results],
    )
    if any(result.case.runtime == "pytorch" for result in report.results):
        say("  pytorch's load makes the program from the bundle's weights first")
    say("")


def _names(result: Result) -> list[str]:
    return [result.case.runtime, result.case.precision, str(result.case.block)]


def _call_rows(result: Result) -> list[list[str]]:
    """Rows of one case: calls back to back, then paced."""
    rows = []
    for way in result.ways:
        timing, spread = getattr(result, way), result.spread(way)
        found = " ".join("-" if value is None else f"{value:.0%}" for value in spread.values())
        numbers = [_number(value) for value in timing.percentiles_ms().values()]
        names = _names(result) if way == "back" else ["", "", ""]
        rows.append([*names, way, str(len(timing.took_s)), *numbers, f"{timing.rtf:.3f}", str(timing.missed), found])
    return rows


def _throughput_row(result: Result) -> list[str]:
    """Row of one case: streams on one core and on all, and the cold start of the median turn."""
    colds = sorted((turn.cold for turn in result.turns), key=lambda cold: cold.total_s)
    cold = colds[len(colds) // 2]
    seconds = (cold.start_s, cold.import_s, cold.load_s, cold.first_call_s, cold.total_s)
    peak = "-" if cold.peak_mb is None else f"{cold.peak_mb:.0f}"
    streams = [*_streams(result.one_core), *_streams(result.all_cores)]
    return [*_names(result), *streams, *(f"{value:.3f}" for value in seconds), peak]


def _streams(capacity: Capacity | None) -> list[str]:
    if capacity is None:
        return ["-", "-"]
    slow_ms = None if capacity.slow_s is None else capacity.slow_s * 1e3
    return [f"{capacity.streams}{'+' if capacity.at_least else ''}", _number(slow_ms, 1)]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
