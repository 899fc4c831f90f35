"""The command line: one function a command; it parses, calls one function, prints, and chooses the exit code.

Results go to stdout (`--json` for machines), everything else to stderr. Nothing heavy is imported before a command
needs it: `edgese --help` loads neither NumPy nor a runtime.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgese import __version__

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgese.config import TrainConfig
    from edgese.enhance import Outcome, Preview, Summary
    from edgese.evaluate import Evaluation, Which
    from edgese.train import Progress as Step
    from export.bundle import Bundle

app = typer.Typer(
    help="Speech enhancement from training to real time on the edge, proven at every step.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
BundlePath = Annotated[
    Path | None, typer.Option("--model", "-m", help="A bundle made by `edgese export`. Default: the shipped one.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgese {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell what is going on, on stderr.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(name)s: %(message)s")


@app.command("enhance")
def enhance_command(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE", help="Audio files, folders, or - for stdin.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File, folder, or - for stdout. Default: NAME.enhanced.EXT beside NAME."),
    ] = None,
    atten_limit_db: Annotated[
        float | None, typer.Option("--atten-limit", metavar="DB", min=0, help="Never attenuate by more than this.")
    ] = None,
    pcs: Annotated[
        bool, typer.Option("--pcs", help="Stretch perceptual contrast; needs a bundle made by `edgese export --pcs`.")
    ] = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="Write before/after spectrograms as PNG beside the output.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be written, and write nothing.")
    ] = False,
    container: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="WAV, FLAC, OGG, ... Default: the input's.")
    ] = None,
    subtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="PCM_16, PCM_24, FLOAT, ... Default: the input's.")
    ] = None,
    model: BundlePath = None,
    runtime: Annotated[str, typer.Option(help="What runs the network.")] = "onnxruntime",
    block: Annotated[
        int | None, typer.Option(min=1, help="Hops a call takes. Default: the most the model offers.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Files at a time. Default: one for each core.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make noisy recordings clean: any sample rate, channel count and common format, same length and alignment."""
    from edgese.enhance import (
        EnhanceOptions,
        denoiser_factory,
        enhance_files,
        plan,
        preview,
        shipped_bundle,
        stopping_on_signals,
    )
    from edgese.errors import AudioError, ConfigError

    try:
        options = EnhanceOptions(
            output=output,
            force=force,
            atten_limit_db=atten_limit_db,
            container=container.upper() if container else None,
            subtype=subtype.upper() if subtype else None,
            runtime=runtime,
            block=block,
            jobs=jobs,
            pcs=pcs,
            plot=plot,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    planned = plan(inputs, options)
    if dry_run:
        entries: list[dict[str, Any]] = []
        for job in planned:
            try:
                seen = preview(job)
                entries.append(_preview_entry(seen))
                if not as_json:
                    typer.echo(_preview_line(seen))
            except AudioError as error:
                entries.append({"source": job.source_name, "error": str(error)})
                typer.echo(f"error: {error}", err=True)
        if as_json:
            typer.echo(json.dumps({"files": entries}, indent=2))
        raise typer.Exit(code=1 if any("error" in entry for entry in entries) else 0)

    results_on_stderr = any(job.target is None for job in planned)
    with stopping_on_signals() as stop, _progress_bar(quiet or as_json) as bar:
        meter = _EnhanceMeter(bar, len(planned))
        outcomes = enhance_files(
            planned,
            denoiser_factory(model or shipped_bundle(), options),
            n_workers=jobs,
            progress=lambda job, done_s, total_s: meter.advance(job.source_name, done_s, total_s),
            done=lambda outcome: meter.finish(),
            stop=stop,
        )
    if as_json:
        files = [_outcome_entry(outcome) for outcome in outcomes]
        typer.echo(json.dumps({"files": files}, indent=2), err=results_on_stderr)
    else:
        for outcome in outcomes:
            _print_outcome(outcome, results_on_stderr)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(code=1)


@app.command("evaluate")
def evaluate_command(
    data: Annotated[Path, typer.Option(help="Folder with clean/ and noisy/, files of the same names.")],
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="A bundle. Default: the shipped one, if no system is named.")
    ] = None,
    systems: Annotated[
        list[Path] | None,
        typer.Option(
            "--system",
            "-s",
            metavar="DIR",
            help="A folder of files that any system has enhanced, or a further bundle; may be repeated.",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all scores, file by file.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing CSV file.")] = False,
    runtime: Annotated[str, typer.Option(help="What runs a bundle's network.")] = "onnxruntime",
    pcs: Annotated[
        bool, typer.Option("--pcs", help="Run bundles with perceptual contrast stretching, as `enhance --pcs` does.")
    ] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Processes. Default: one a core.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a model, and files that other systems have enhanced, beside the noisy input of the same files."""
    from edgese.enhance import shipped_bundle
    from edgese.errors import AudioError
    from edgese.evaluate import evaluate_all, report, write_csv

    if csv and csv.exists() and not force:  # said now, not after minutes of work
        raise AudioError(f"{csv}: exists already; replace it with --force, or choose another --csv")
    named = [*([model] if model else []), *(systems or [])] or [shipped_bundle()]
    with _progress_bar(quiet or as_json) as bar:
        counter = _counter(bar, "scoring", "files")
        results = evaluate_all(data, named, runtime=runtime, pcs=pcs, jobs=jobs, on_progress=counter)
    if as_json:
        typer.echo(json.dumps(report(data, results), indent=2))
    else:
        _print_evaluations(data, results)
    if csv:
        write_csv(csv, results, replace=force)
    failed = dict.fromkeys((name, reason) for result in results for name, reason in result.failed.items())
    for name, reason in failed:
        typer.echo(f"error: {name}: not scored: {reason}", err=True)
    if failed:
        raise typer.Exit(code=1)


def _print_evaluations(data: Path, results: list[Evaluation]) -> None:
    """One table; systems that were scored on the same files stand together under the noisy input of these files."""
    from edgese.evaluate import CONFIDENCE, RESAMPLES
    from edgese.metrics import METRICS, packages

    groups: dict[tuple[str, ...], list[Evaluation]] = {}
    for result in results:
        groups.setdefault(tuple(pair.name for pair in result.pairs), []).append(result)
    unique = len({Path(result.system).name for result in results}) == len(results)
    rows: list[list[str]] = []
    for names, group in sorted(groups.items(), key=lambda item: -len(item[0])):
        files = f"{len(names)}/{group[0].n_files}"
        rows += _score_rows("noisy", files, group[0], "noisy")
        for result in group:
            rows += _score_rows(Path(result.system).name if unique else result.system, files, result, "enhanced")
            rows += _score_rows("  gain", "", result, "gain")
    versions = packages()
    lower = ", ".join(metric.title for metric in METRICS.values() if not metric.higher_is_better)
    title = [
        f"{data}: means over files, {CONFIDENCE:.0%} intervals by bootstrap ({RESAMPLES:,} resamples of the files)",
        "gain: system - noisy, file by file; higher is better, but lower in " + lower,
        f"PESQ: pesq {versions['pesq']}, MOS-LQO; WB: P.862.2, NB: P.862.1 at 16 kHz; CSIG, CBAK, COVL from PESQ-WB; "
        f"STOI, ESTOI: pystoi {versions['pystoi']}",
    ]
    _print_table("\n".join(title), ["", "files", *(metric.title for metric in METRICS.values())], rows)


def _score_rows(label: str, files: str, result: Evaluation, which: Which) -> list[list[str]]:
    """Means, and below them their intervals where there are any."""
    from edgese.metrics import METRICS

    means, intervals, sign = result.mean(which), result.interval(which), "+" if which == "gain" else ""
    form = {name: f"{{:{sign}.{metric.digits}f}}" for name, metric in METRICS.items()}
    rows = [[label, files, *(form[name].format(means[name]) if means else "-" for name in METRICS)]]
    if intervals:
        rows.append(["", "", *("..".join(map(form[name].format, intervals[name])) for name in METRICS)])
    return rows


@app.command("export")
def export_command(
    weights: Annotated[
        Path | None, typer.Argument(help=".safetensors, or .pt of `edgese train`. Default: the shipped weights.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The bundle's folder. Default: the model's name.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name. Default: the folder's.")] = None,
    blocks: Annotated[str, typer.Option(help="Hops a call takes; one graph for each.")] = "1,4,8,16",
    pcs: Annotated[
        bool, typer.Option("--pcs", help="Add graphs with perceptual contrast stretching, for `enhance --pcs`.")
    ] = False,
    sound: Annotated[
        Path | None, typer.Option(help="Noisy speech to verify with. Default: the shipped sample.")
    ] = None,
    model_card: Annotated[Path | None, typer.Option(help="A model card to put into the bundle.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing bundle.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a bundle: waveform-in, waveform-out ONNX graphs, each verified against PyTorch before it counts."""
    _require("torch", "onnx", "onnxscript", extra="export")
    from edgese.artefact import SAMPLE, export_bundle, require_passed
    from edgese.enhance import shipped_bundle

    source = weights or shipped_bundle() / "model.safetensors"
    folder = output or Path(f"{source.parent.name if weights is None else source.stem}.bundle")
    try:
        sizes = [int(size) for size in blocks.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--blocks: found {blocks!r}, wanted numbers such as 1,4,16") from None
    with _progress_bar(quiet or as_json) as bar:
        task = bar.add_task("export", total=None)
        exported = export_bundle(
            source,
            folder,
            name=name or folder.name,
            blocks=sizes,
            sound=sound or SAMPLE,
            model_card=model_card,
            pcs=pcs,
            replace=force,
            on_progress=lambda step: bar.update(task, description=step),
        )
    if as_json:
        results = [result.entry() for result in exported.results]
        typer.echo(json.dumps({"path": str(exported.path), "results": results}, indent=2))
    else:
        _print_table(
            f"against PyTorch, {exported.results[0].n_hops} hops streamed",
            ["graph", "largest difference", "SNR dB", "states (relative)", ""],
            [
                [
                    result.graph,
                    f"{result.max_abs:.1e}",
                    f"{result.snr_db:.1f}",
                    f"{max(result.state_relative.values(), default=float('nan')):.1e}",
                    "passed" if result.passed else "FAILED",
                ]
                for result in exported.results
            ],
        )
    bundle = require_passed(exported)
    typer.echo(f"bundle: {bundle.path} ({_megabytes(bundle)})", err=as_json)


@app.command("train")
def train_command(
    data: Annotated[Path, typer.Option(help="Folder with clean/ and noisy/ pairs, or with speech/ and noise/.")],
    out: Annotated[Path, typer.Option(help="The run's folder; a run that is there already is gone on with.")],
    config: Annotated[Path | None, typer.Option(help="Settings in TOML.")] = None,
    size: Annotated[str | None, typer.Option(help="Network size: small or base. Default: small.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the whole run.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data.")] = None,
    stop_at: Annotated[
        int | None, typer.Option(min=1, help="End this slice at this step; the same command goes on later.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="End this slice after this time; the same command goes on later.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    cache: Annotated[Path, typer.Option(help="Where decoded recordings are kept.")] = Path("~/.cache/edgese"),
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a network; resumable to the same result, stopped by NaN, logged as CSV and TensorBoard."""
    _require("torch", "scipy", "safetensors", extra="train")
    from edgese.config import MODEL_SIZES, TrainConfig, read_train_config
    from edgese.data import open_data
    from edgese.ranks import leads
    from edgese.train import train

    settings = read_train_config(config) if config else TrainConfig()
    if size is not None and size not in MODEL_SIZES:
        raise typer.BadParameter(f"--size: found {size!r}, wanted one of {', '.join(MODEL_SIZES)}")
    changes: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "model": MODEL_SIZES[size] if size else None,
    }
    settings = dataclasses.replace(settings, **{key: value for key, value in changes.items() if value is not None})
    with _progress_bar(quiet or as_json or not leads(), _step_columns) as bar:
        sets = open_data(
            data,
            settings.data,
            settings.audio.sample_rate_hz,
            settings.seed,
            cache.expanduser(),
            _counter(bar, "decoding", "files"),
        )
        if not as_json and leads():
            typer.echo(f"data: {', '.join(f'{key} {value}' for key, value in sets.description.items())}", err=True)
        result = train(
            settings,
            sets,
            out,
            device=device,
            on_progress=_train_meter(bar, settings),
            stop_at_step=stop_at,
            stop_after_s=math.inf if minutes is None else 60 * minutes,
        )
    if not leads():
        return
    _draw_curves(out)
    if as_json:
        best = result.best_validation_loss if math.isfinite(result.best_validation_loss) else None  # none was made yet
        entry = {"weights": str(result.weights), "best_validation_loss": best}
        typer.echo(json.dumps(dataclasses.asdict(result) | entry))
    elif result.finished:
        typer.echo(
            f"done: step {result.step}, best validation loss {result.best_validation_loss:.4f}, {result.weights}"
        )
        typer.echo(f"next: edgese export {result.weights} -o BUNDLE")
    else:
        typer.echo(f"stopped at step {result.step} of {settings.steps}; the same command goes on")


@app.command("info")
def info_command(
    what: Annotated[
        str | None,
        typer.Argument(help="A bundle, a weights file, or a size: small, base. Default: shipped bundle."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Parameters, operations and latency of a network, part by part."""
    facts = _bundle_facts(Path(what) if what else None) or _network_facts(str(what))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    counts, macs = facts["parameters"], facts["macs_per_frame"]
    frames_per_second = facts["audio"]["sample_rate_hz"] / facts["audio"]["hop"]
    rows = [[part, f"{counts.get(part, 0):,}", f"{macs.get(part, 0):,}"] for part in dict.fromkeys([*macs, *counts])]
    rows.append(["total", f"{sum(counts.values()):,}", f"{sum(macs.values()):,}"])
    _print_table(facts["name"], ["part", "parameters", "MACs a frame"], rows)
    giga = sum(macs.values()) * frames_per_second / 1e9
    latency = facts["latency"]
    typer.echo(f"{giga:.2f} GMAC a second of sound; latency {latency['ms']:.0f} ms ({latency['samples']} samples)")
    if "graphs" in facts:
        kinds = [" ".join(filter(None, (graph["precision"], graph.get("variant")))) for graph in facts["graphs"]]
        blocks = ", ".join(f"{graph['block']} ({kind})" for graph, kind in zip(facts["graphs"], kinds, strict=True))
        verified = "verified against PyTorch" if facts["verification"]["passed"] else "NOT verified"
        typer.echo(f"blocks: {blocks}; {verified}")


def _bundle_facts(path: Path | None) -> dict[str, Any] | None:
    from edgese.enhance import shipped_bundle
    from export.bundle import Bundle

    if path is not None and not path.is_dir():
        return None
    return dict(Bundle.open(path or shipped_bundle()).manifest)


def _network_facts(what: str) -> dict[str, Any]:
    _require("torch", extra="export")
    from edgese.artefact import network_facts
    from edgese.checkpoint import load_enhancer
    from edgese.config import MODEL_SIZES, AudioConfig
    from edgese.model.registry import build

    if what in MODEL_SIZES:
        return {"name": what, **network_facts(build(MODEL_SIZES[what], AudioConfig()))}
    if not Path(what).exists():
        raise typer.BadParameter(
            f"{what}: found no such bundle or file, wanted one, or a size: {', '.join(MODEL_SIZES)}"
        )
    return {"name": what, **network_facts(load_enhancer(Path(what)))}


class _EnhanceMeter:
    """One bar: seconds of sound for a single file, files for several."""

    def __init__(self, bar: Progress, n_jobs: int) -> None:
        self.bar, self.n_jobs = bar, n_jobs
        self.task = bar.add_task("enhancing", total=None if n_jobs == 1 else n_jobs, unit="files")

    def advance(self, name: str, done_s: float, total_s: float | None) -> None:
        if self.n_jobs == 1:
            self.bar.update(self.task, completed=done_s, total=total_s, unit="s", description=name)

    def finish(self) -> None:
        if self.n_jobs > 1:
            self.bar.advance(self.task)


@contextlib.contextmanager
def _progress_bar(hidden: bool, columns: Callable[[], list[Any]] | None = None) -> Iterator[Progress]:
    """A progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Units a second; seconds of sound a second are times real time."""

        def render(self, task: Any) -> Text:
            if not task.speed:
                return Text("")
            unit = task.fields.get("unit", "")
            return Text(f"{task.speed:.0f}x real time" if unit == "s" else f"{task.speed:.1f} {unit}/s")

    console = Console(stderr=True)
    shown = columns() if columns else [Speed(), TimeRemainingColumn()]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *shown,
        TimeElapsedColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        transient=True,
    ) as bar:
        yield bar


def _step_columns() -> list[Any]:
    from rich.progress import TextColumn

    return [TextColumn("{task.completed}/{task.total} {task.fields[note]}")]


def _counter(bar: Progress, description: str, unit: str) -> Callable[[int, int], None]:
    tasks: list[Any] = []

    def count(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task(description, unit=unit, note=unit))
        bar.update(tasks[0], completed=done, total=total)

    return count


def _draw_curves(run: Path) -> None:
    """The run's learning curves beside its log, where there is something to draw them with."""
    from edgese.errors import EdgeseError

    try:
        from edgese.plot import write_learning_curves

        write_learning_curves(run / "log.csv", run / "curves.png")
    except EdgeseError as error:
        logging.getLogger(__name__).info("no picture of the learning curves: %s", error)


def _train_meter(bar: Progress, settings: TrainConfig) -> Callable[[Step], None]:
    task = bar.add_task("training", total=settings.steps, note="")
    validated = ""

    def meter(step: Step) -> None:
        nonlocal validated
        if step.validation_loss is not None:
            validated = f", validation {step.validation_loss:.4f}"
            if bar.disable:  # no terminal: a line now and then instead of the bar
                typer.echo(f"step {step.step}/{step.steps}: loss {step.loss:.4f}{validated}", err=True)
        left = f"{step.seconds_left // 60:.0f} min left"
        note = f"loss {step.loss:.4f}{validated}, {step.audio_per_second:.1f}x real time, {left}"
        bar.update(task, completed=step.step, note=note)

    return meter


def _preview_entry(preview: Preview) -> dict[str, Any]:
    infos = {"from": dataclasses.asdict(preview.source), "to": dataclasses.asdict(preview.target)}
    return {"source": preview.job.source_name, "target": preview.job.target_name} | infos


def _preview_line(preview: Preview) -> str:
    target = preview.target
    length = f"{preview.source.duration_s:.1f} s" if preview.source.duration_s else "unknown length"
    form = f"{target.container} {target.subtype}, {target.sample_rate_hz} Hz, {_channels(target.n_channels)}"
    return f"would write {preview.job.target_name} from {preview.job.source_name}: {length}, {form}"


def _print_outcome(outcome: Outcome, on_stderr: bool) -> None:
    if outcome.error:
        typer.echo(f"error: {outcome.error}", err=True)
    if outcome.summary:
        typer.echo(_summary_line(outcome.summary), err=on_stderr)
        for warning in outcome.summary.warnings:
            typer.echo(f"warning: {warning}", err=True)


def _summary_line(summary: Summary) -> str:
    sound = f"{summary.duration_s:.1f} s, {summary.sample_rate_hz} Hz, {_channels(summary.channels)}"
    speed = f"{1 / summary.rtf:.0f}x real time (RTF {summary.rtf:.4f})"
    plot = f", picture {summary.plot}" if summary.plot else ""
    return f"{summary.source} -> {summary.target}: {sound}, {speed}, level {summary.level_change_db:+.1f} dB{plot}"


def _outcome_entry(outcome: Outcome) -> dict[str, Any]:
    if outcome.summary is None:
        return {"source": outcome.job.source_name, "error": str(outcome.error)}
    summary = outcome.summary
    return dataclasses.asdict(summary) | {"rtf": summary.rtf, "level_change_db": summary.level_change_db}


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A plain table, aligned: readable in a terminal, a log and a pipe."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    typer.echo(title)
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        typer.echo("  " + "  ".join(cells).rstrip())


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count != 1 else ''}"


def _megabytes(bundle: Bundle) -> str:
    return f"{sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6:.1f} MB"


def _require(*modules: str, extra: str) -> None:
    """One line that says what to install, before anything is begun."""
    import importlib.util

    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        typer.echo(f"error: {', '.join(missing)} missing: pip install 'edgese[{extra}]'", err=True)
        raise typer.Exit(code=1)
