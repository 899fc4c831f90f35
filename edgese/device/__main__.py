"""Command line of an unpacked device bundle: self-test, runtimes, build, bench, enhance.

Results go to stdout (`--json` for machines), all else to stderr. Exit code 0: done; 1: failed or not passed; 2: usage.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from calib import CalibrationError
from edgese.bench.timing import Timing
from edgese.device.candidates import CANDIDATES, find_runtimes
from edgese.device.content import Content
from edgese.device.enhancing import enhance_wav
from edgese.device.latency import measure
from edgese.device.selftest import self_test
from edgese.device.tuning import Verdict, tune
from edgese.errors import EdgeseError, printable
from edgese.graphs.engines import TENSORRT, EngineFolder, is_for
from edgese.graphs.segments import require_streaming_form
from edgese.machine import host as machine
from export import ExportError
from export.bundle import Graph
from runtimes.base import RuntimeUnavailable
from runtimes.gpu import read_device
from runtimes.tensorrt_package import library_name, tensorrt_library

_TUNE_S = 0.5  # of sound in real time beside the calls back to back that count
ROOT = Path(__file__).resolve().parents[2]  # of the unpacked bundle


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run one command; returns its exit code. A user's error is one line on stderr.

    Args:
        root: where the bundle was unpacked to.
    """
    options = _parser().parse_args(arguments)
    try:
        content = Content.open(root)
        done: int = options.command(content, EngineFolder(options.cache or content.engines, options.most), options)
    except (EdgeseError, ExportError, CalibrationError, RuntimeUnavailable) as error:
        _log(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        _log("stopped")
        return 130
    return done


def _self_test(content: Content, engines: EngineFolder, options: argparse.Namespace) -> int:
    if not options.json:
        _say(f"{content.n_files} files: as they were packed")
    found = self_test(
        content,
        engines,
        runtimes=options.runtime,
        precisions=options.precision,
        blocks=options.block,
        on_trial=_log if options.json else _say,
        on_message=_log,
    )
    _say(json.dumps(found.entry(), indent=2) if options.json else found)
    return 0 if found.passed else 1


def _build(content: Content, engines: EngineFolder, options: argparse.Namespace) -> int:
    library = tensorrt_library()
    graphs = content.choose(options.precision, options.block)
    _log(f"{library_name(library)}, {read_device() or 'no GPU'}; engines go to {engines.folder}")
    built, failed = [], 0
    for graph in (graph for graph in graphs if is_for(graph, TENSORRT)):
        began, lines = time.perf_counter(), list[str]()

        def on_message(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            _log(line)  # now: it takes minutes

        try:
            path = engines.engine(content.bundle, graph, on_message, rebuild=options.force)
        except ExportError as error:
            failed += 1
            _log(f"{graph.file}: FAILED: {error}")
            continue
        n_bytes, seconds = path.stat().st_size, round(time.perf_counter() - began, 1)
        why = f"built in {seconds} s, as {lines[-1].rpartition(': ')[2]}" if lines else "there already"
        (_log if options.json else _say)(f"{graph.file}: {why}; {path.name}, {n_bytes / 1e6:.1f} MB")
        built.append({"graph": graph.file, "engine": str(path), "bytes": n_bytes, "told": lines, "seconds": seconds})
    verdicts = []
    if options.tune and built and not failed:
        verdicts = _tune(content, engines, graphs, _log if options.json else _say)
    if options.json:
        tuned = {"tuned": [verdict.entry() for verdict in verdicts]} if options.tune else {}
        _say(json.dumps({"engines": built, "failed": failed} | tuned, indent=2))
    if failed or not built:
        _log(f"build: {failed} graphs FAILED" if failed else "build: FAILED: no graph here is for TensorRT")
        return 1
    return 0


def _tune(
    content: Content, engines: EngineFolder, graphs: Sequence[Graph], tell: Callable[[object], None]
) -> list[Verdict]:
    """Verdicts on precisions, a line each."""

    def time_graph(graph: Graph) -> Timing:
        report = measure(
            content,
            engines,
            runtimes=[TENSORRT],
            precisions=[graph.precision],
            blocks=[graph.block],
            seconds=_TUNE_S,
            on_message=_log,
        )
        if not report.results:
            raise ExportError(next(iter(report.failures.values()), f"{graph.file}: could not be timed"))
        return report.results[0].back

    plain = [graph for graph in graphs if is_for(graph, TENSORRT) and not graph.variant]  # others cost the same
    return tune(plain, lambda graph: engines.engine(content.bundle, graph, _log), time_graph, tell)


def _bench(content: Content, engines: EngineFolder, options: argparse.Namespace) -> int:
    report = measure(
        content,
        engines,
        runtimes=options.runtime,
        precisions=options.precision,
        blocks=options.block,
        streams=options.streams,
        seconds=options.seconds,
        on_result=_log if options.json else _say,
        on_message=_log,
        root=options.root,
    )
    _say(json.dumps(report.entry(), indent=2) if options.json else report.here)
    return 0 if report.results and not report.failures else 1


def _runtimes(content: Content, engines: EngineFolder, options: argparse.Namespace) -> int:
    found, left_out = find_runtimes(options.runtime)
    if options.json:
        here = machine.describe(root=options.root)
        _say(json.dumps({"found": list(found), "left_out": left_out, "machine": here.entry()}, indent=2))
        return 0 if found else 1
    for name in found:
        _say(f"{name}: opens here")
    for name, reason in left_out.items():
        _say(f"{name}: left out: {reason}")
    return 0 if found else 1


def _enhance(content: Content, engines: EngineFolder, options: argparse.Namespace) -> int:
    graph = _one_graph(content, options)
    found, left_out = find_runtimes([options.runtime] if options.runtime else ())
    usable = [name for name in found if is_for(graph, name)]
    if not usable:
        reasons = "; ".join(left_out.values()) or f"{graph.file} is not for {', '.join(found)}"
        raise RuntimeUnavailable(f"no runtime for {graph.file} opens here: {reasons}")
    for name, reason in left_out.items():
        if CANDIDATES.index(name) < CANDIDATES.index(usable[0]):
            _log(f"{name} is left out: {reason}")
    done = enhance_wav(
        *(content, graph, usable[0], options.input, options.output, engines),
        narrow=options.narrow,
        replace=options.force,
        on_message=_log,
    )
    if done.n_clipped:
        _log(f"warning: {done.n_clipped} samples were clipped at full scale: lower the input's level")
    if done.silent:
        _log("warning: the input is silent, nothing but zeros, and so is the output: check the recording")
    channels = f", {done.n_channels} channels" if done.n_channels > 1 else ""
    _say(
        f"{options.output}: {done.duration_s:.1f} s{channels}, {graph.file} in {usable[0]}, "
        f"real-time factor {done.rtf:.3f}"
    )
    return 0


def _one_graph(content: Content, options: argparse.Namespace) -> Graph:
    variant = "pcs" if options.pcs else ""
    offered = [graph for graph in content.bundle.graphs if graph.variant == variant]
    precision = options.precision or (offered[0].precision if offered else "fp32")
    largest = max((graph.block for graph in offered if graph.precision == precision), default=1)
    block = largest if options.block is None else options.block
    require_streaming_form(content.bundle, [block])
    return content.bundle.graph(block=block, precision=precision, variant=variant)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="run", description="A speech enhancer on this device; see README.txt.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cache", type=Path, metavar="DIR", help="where engines are kept; default: engines/")
    common.add_argument(
        "--most", type=_count, default=16, metavar="N", help="streams that engines are built for, at most; default: 16"
    )
    several = argparse.ArgumentParser(add_help=False)
    several.add_argument("--precision", action="append", default=[], help="these graphs only; may be repeated")
    several.add_argument("--block", action="append", type=_count, default=[], help="these graphs only; may be repeated")
    several.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    anywhere = argparse.ArgumentParser(add_help=False)
    anywhere.add_argument(
        "--runtime", action="append", default=[], choices=CANDIDATES, help="default: each that opens here"
    )
    rooted = argparse.ArgumentParser(add_help=False)
    rooted.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)  # a recorded board, in tests

    one = commands.add_parser("self-test", parents=[common, several, anywhere], help="does it compute what it should?")
    one.set_defaults(command=_self_test)
    one = commands.add_parser("runtimes", parents=[common, anywhere, rooted], help="what opens here, and what does not")
    one.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    one.set_defaults(command=_runtimes)
    one = commands.add_parser("build", parents=[common, several], help="build TensorRT engines now, not at first use")
    one.add_argument("--force", action="store_true", help="build those anew that are there")
    one.add_argument("--tune", action="store_true", help="time the precisions too: which one is worth it here?")
    one.set_defaults(command=_build)
    one = commands.add_parser("bench", parents=[common, several, anywhere, rooted], help="how long do calls take?")
    one.add_argument("--streams", type=_count, default=1, metavar="N", help="in each call; default: 1")
    one.add_argument("--seconds", type=_seconds, default=5.0, help="of sound in real time, each graph; default: 5")
    one.set_defaults(command=_bench)
    one = commands.add_parser("enhance", parents=[common], help="make a noisy WAV clean")
    one.add_argument("input", type=Path, help="WAV of any rate: PCM of 16, 24, 32 bits or floats; any channels")
    one.add_argument("output", type=Path, help="WAV of the same format")
    one.add_argument("--runtime", choices=CANDIDATES, help="default: the first of these that opens here")
    one.add_argument("--precision", help="default: the first that the archive has, fp32 before fp16")
    one.add_argument("--block", type=_count, help="hops a call; default: the largest")
    one.add_argument("--pcs", action="store_true", help="with perceptual contrast stretching")
    one.add_argument("--narrow", action="store_true", help="leave out what lies above the network's band")
    one.add_argument("--force", "-f", action="store_true", help="replace an existing output")
    one.set_defaults(command=_enhance)
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted seconds, such as 5")
    return seconds


def _say(result: object) -> None:
    sys.stdout.write(f"{printable(str(result))}\n")
    sys.stdout.flush()


def _log(line: object) -> None:
    sys.stderr.write(f"{printable(str(line))}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
