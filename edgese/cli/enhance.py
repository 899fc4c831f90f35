"""`edgese enhance`: noisy recordings, enhanced file by file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgese.cli.board import Host, NoKeep, Timeout, board_session, check_options, check_runtimes
from edgese.cli.terminal import BundleOption, Jobs, Json, Quiet, progress_bar, say
from edgese.graphs.precision import Precision

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgese.enhance.files import Outcome, Preview, Summary
    from edgese.enhance.jobs import EnhanceOptions


def enhance_command(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE", help="Audio files, folders, or - for stdin.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="File, folder, or - for stdout. Default: NAME.enhanced.EXT beside NAME."),
    ] = None,
    atten_limit_db: Annotated[
        float | None, typer.Option("--atten-limit", metavar="DB", min=0, help="Attenuate by no more than this.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Precision of the graphs; the bundle must have it.")
    ] = Precision.FP32,
    pcs: Annotated[
        bool,
        typer.Option("--pcs", help="Perceptual contrast stretching; about 4 dB quieter. The bundle must have it."),
    ] = False,
    narrow: Annotated[
        bool, typer.Option("--narrow", help="Leave out what lies above the network's 8 kHz, noise and speech.")
    ] = False,
    preview_s: Annotated[
        float | None,
        typer.Option(
            "--preview", metavar="SECONDS", help="Write so many seconds before and after, as NAME.preview.wav."
        ),
    ] = None,
    plot: Annotated[
        bool, typer.Option("--plot", help="Also write a picture, before and after; needs the extra plot.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace existing files.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print what would be written, and write nothing.")
    ] = False,
    container: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="WAV, FLAC, OGG, ... Default: the input's.")
    ] = None,
    subtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="PCM_16, PCM_24, FLOAT, ... Default: the input's.")
    ] = None,
    model: BundleOption = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="See `edgese doctor`. Default: onnxruntime; with --host, tensorrt if it opens there.",
        ),
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(min=1, help="Hops in a call; causal networks. Default: the most that the bundle has."),
    ] = None,
    jobs: Jobs = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A Triton server with a bundle's models (`edgese triton`), which --model then names. Extra triton.",
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="On a Ray cluster: local (this machine's cores), auto, or its address. Inputs and -o may be URIs, an "
            "input @FILE lists them; what is there is not done again (docs/ray.md). Extra ray.",
        ),
    ] = None,
    host: Host = None,
    timeout: Timeout = None,
    no_keep: NoKeep = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Enhance noisy recordings; the output has the input's sample rate, channels, length and alignment.

    Files are of any length, in any format that libsndfile reads: WAV, FLAC, OGG, Opus, MP3, AIFF and more; with ffmpeg
    installed also m4a, webm and video, whose sound is replaced. Of what is kept, mended, refused: docs/recordings.md.
    """
    from edgese.enhance.files import denoiser_factory, enhance_files, preview
    from edgese.enhance.jobs import EnhanceOptions, passed_over, plan_jobs
    from edgese.enhance.signal_path import Enhancer
    from edgese.errors import AudioError, ConfigError, OutputError
    from edgese.graphs.bundles import SHIPPED, bundle_path, open_verified, shipped_bundle
    from edgese.machine.processes import stopping_on_signals

    check_options(host, {"--jobs": jobs, "--preview": preview_s}, {"--timeout": timeout, "--no-keep": no_keep})
    if host is not None and runtime is not None:
        check_runtimes([runtime])
    if server is not None and (host is not None or runtime is not None):
        raise typer.BadParameter(f"--server {server}: found --host or --runtime beside it; the server has its own")
    try:
        options = EnhanceOptions(
            output=output,
            force=force,
            atten_limit_db=atten_limit_db,
            container=container.upper() if container else None,
            subtype=subtype.upper() if subtype else None,
            runtime=runtime or "onnxruntime",
            block=block,
            jobs=jobs,
            precision=precision,
            pcs=pcs,
            narrow=narrow,
            preview_s=preview_s,
            plot=plot,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    if ray is not None:
        beside = {"--host": host, "--server": server, "--jobs": jobs, "--plot": plot, "--dry-run": dry_run}
        needless = [name for name, given in beside.items() if given]
        if needless or output in (None, "-"):
            wanted = f"found {', '.join(needless)} beside it" if needless else "wanted -o with a folder or its URI"
            raise typer.BadParameter(f"--ray {ray}: {wanted}")
        _enhance_on_ray(ray, inputs, model, options, quiet, as_json)
        return
    try:
        planned = plan_jobs(inputs, options)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    left_out = passed_over(inputs)
    if dry_run:
        entries: list[dict[str, Any]] = []
        promised: dict[int, int] = {}
        for job in planned:
            try:
                seen = preview(job, promised)
                entries.append(_preview_entry(seen))
                if not as_json:
                    say(_preview_line(seen))
            except (AudioError, OutputError) as error:
                entries.append({"source": job.source_name, "error": str(error)})
                say(f"error: {error}", err=True)
        if as_json:
            say(json.dumps({"files": entries} | _left_out_entry(left_out), indent=2))
        _print_left_out(left_out)
        raise typer.Exit(code=1 if any("error" in entry for entry in entries) else 0)

    results_on_stderr = any(job.target is None for job in planned)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping_on_signals())
        bar = stack.enter_context(progress_bar(quiet or as_json))
        meter = _EnhanceMeter(bar, len(planned))
        open_denoiser: Callable[[], Enhancer]
        if server is not None:
            from edgese.triton.client import TritonDenoiser

            named = shipped_bundle(str(model)).name if str(model) in SHIPPED else str(model) if model else None
            open_denoiser = partial(TritonDenoiser, server, named, block=block, precision=precision, pcs=pcs)
        elif host is None:
            open_denoiser = denoiser_factory(bundle_path(model), options)
        else:
            from edgese.board.denoiser import RemoteDenoiser

            bundle = open_verified(bundle_path(model))
            session = stack.enter_context(board_session(host, bar, timeout, no_keep, quiet, stop))
            graph: dict[str, Any] = {"runtime": runtime, "block": block, "precision": precision, "pcs": pcs}
            open_denoiser = partial(RemoteDenoiser, session, bundle, **graph)
        outcomes = enhance_files(
            planned,
            open_denoiser,
            n_workers=jobs if host is None else 1,
            progress=lambda job, done_s, total_s: meter.advance(job.source_name, done_s, total_s),
            done=lambda outcome: meter.finish(),
            stop=stop,
        )
    if as_json:
        files = [_outcome_entry(outcome) for outcome in outcomes]
        say(json.dumps({"files": files} | _left_out_entry(left_out), indent=2), err=results_on_stderr)
    else:
        for outcome in outcomes:
            _print_outcome(outcome, results_on_stderr)
    _print_left_out(left_out)
    if any(outcome.error for outcome in outcomes):
        raise typer.Exit(code=1)


def _enhance_on_ray(
    address: str, inputs: list[str], model: Path | None, options: EnhanceOptions, quiet: bool, as_json: bool
) -> None:
    """Enhance recordings by URI on a cluster; exit code 1 if one failed, failures listed at the end."""
    from edgese.bulk.cluster import Result, enhance_items, ray_cluster
    from edgese.bulk.places import list_items
    from edgese.errors import AudioError
    from edgese.graphs.bundles import bundle_path, open_verified
    from edgese.machine.processes import stopping_on_signals

    bundle = open_verified(bundle_path(model))
    items = list_items(inputs, str(options.output), options)
    with (
        ray_cluster(address) as cores,
        stopping_on_signals() as stop,
        progress_bar(quiet or as_json) as bar,
    ):
        task = bar.add_task(f"enhancing on {cores} cores", total=len(items), unit="files")

        def done(result: Result) -> None:
            bar.advance(task)

        results = enhance_items(items, bundle, options, cores=cores, done=done, stop=stop)
    failed = [result for result in results if result.error]
    if as_json:
        files = [
            dataclasses.asdict(result.item)
            | ({"error": result.error} if result.error else {"was_there": result.was_there})
            | (dataclasses.asdict(result.summary) if result.summary else {})
            for result in results
        ]
        say(json.dumps({"files": files}, indent=2))
    else:
        for result in results:
            if result.summary:
                say(_summary_line(result.summary))
        n_there = sum(result.was_there for result in results)
        say(f"{len(results) - n_there - len(failed)} enhanced, {n_there} there already, {len(failed)} failed", err=True)
    for result in failed:
        say(f"error: {result.error}", err=True)
    if len(results) < len(items):
        raise AudioError(f"stopped: {len(items) - len(results)} of {len(items)} are left; start it again to go on")
    if failed:
        raise typer.Exit(code=1)


class _EnhanceMeter:
    """A bar that counts seconds of sound for a single file, files for several."""

    def __init__(self, bar: Progress, n_jobs: int) -> None:
        self.bar, self.n_jobs = bar, n_jobs
        self.task = bar.add_task("enhancing", total=None if n_jobs == 1 else n_jobs, unit="files")

    def advance(self, name: str, done_s: float, total_s: float | None) -> None:
        if self.n_jobs == 1:
            self.bar.update(self.task, completed=done_s, total=total_s, unit="s", description=name)

    def finish(self) -> None:
        if self.n_jobs > 1:
            self.bar.advance(self.task)


def _preview_entry(preview: Preview) -> dict[str, Any]:
    infos = {"from": dataclasses.asdict(preview.source), "to": dataclasses.asdict(preview.target)}
    return {"source": preview.job.source_name, "target": preview.job.target_name} | infos


def _preview_line(preview: Preview) -> str:
    target = preview.target
    length = f"{preview.source.duration_s:.1f} s" if preview.source.duration_s else "unknown length"
    form = f"{target.container} {target.subtype}, {target.sample_rate_hz} Hz, {_channels(target.n_channels)}"
    return f"would write {preview.job.target_name} from {preview.job.source_name}: {length}, {form}"


def _left_out_entry(files: list[Path]) -> dict[str, list[str]]:
    return {"passed_over": [str(file) for file in files]} if files else {}


def _print_left_out(files: list[Path]) -> None:
    from edgese.atomic_file import shown

    if files:
        say(
            f"warning: passed over, in formats that are not read: {', '.join(map(shown, files))}; convert them, as in: "
            "ffmpeg -i INPUT OUTPUT.wav",
            err=True,
        )


def _print_outcome(outcome: Outcome, on_stderr: bool) -> None:
    if outcome.error:
        say(f"error: {outcome.error}", err=True)
    if outcome.summary:
        say(_summary_line(outcome.summary), err=on_stderr)
        for warning in outcome.summary.warnings:
            say(f"warning: {outcome.job.source_name}: {warning}", err=True)


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


def _channels(count: int) -> str:
    return f"{count} channel{'s' if count != 1 else ''}"
