"""`edgese train`: weights from recordings."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgese.cli.terminal import CACHE, Cache, Json, Quiet, counter, progress_bar, require, say

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgese.config import TrainConfig
    from edgese.train.data import DataSets
    from edgese.train.loop import Progress as Step


def train_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with clean/ and noisy/, or speech/ and noise/.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The run's folder; a run that is there is continued.")
    ],
    config: Annotated[Path | None, typer.Option(metavar="TOML", help="Settings.")] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The network; `edgese models` lists them. Default: small."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the whole run.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples in a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights and data.")] = None,
    stop_at: Annotated[int | None, typer.Option(min=1, help="Stop at this step; the same command continues.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after this time; the same command continues.")
    ] = None,
    finish_in: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="MINUTES", help="Finish the run in this time, whatever the number of steps: the rate falls."
        ),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights to begin with; a run's trunk.pt: go on from its whole state."),
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="WEIGHTS", help="Weights of a better network, to learn from too.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    changed_data: Annotated[
        bool, typer.Option("--changed-data", help="Continue a run with other data than it has had.")
    ] = False,
    skip_data_check: Annotated[
        bool, typer.Option("--skip-data-check", help="Train without looking at what the data sound like first.")
    ] = False,
    cache: Cache = CACHE,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train a network, or continue a run to the same result; logs as CSV and for TensorBoard. Needs the extra train."""
    begun_s = time.monotonic()
    require("torch", "scipy", "safetensors", extra="train")
    from edgese.config import read_train_config
    from edgese.errors import ConfigError
    from edgese.machine.processes import INTERRUPTED, stopping_on_signals
    from edgese.networks import find_model
    from edgese.train.data import open_data
    from edgese.train.loop import train
    from edgese.train.ranks import leads

    if model is not None:
        try:
            find_model(model, "--model")
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error
    changes: dict[str, Any] = {
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "model": model and {"size": model},
        "start_from": start_from and str(start_from),
        "teacher": teacher and str(teacher),
    }
    settings = read_train_config(config, {key: value for key, value in changes.items() if value is not None})
    with progress_bar(quiet or as_json or not leads(), _step_columns) as bar:
        sets = open_data(
            data,
            settings.data,
            settings.audio.sample_rate_hz,
            settings.seed,
            cache.expanduser(),
            counter(bar, "decoding", "files"),
        )
        if not as_json and leads():
            say(f"data: {', '.join(f'{key} {value}' for key, value in sets.description.items())}", err=True)
        if not skip_data_check and leads():
            _look_at_data(sets, cache.expanduser(), output, quiet=quiet or as_json)
        with stopping_on_signals() as stop:
            result = train(
                settings,
                sets,
                output,
                device=device,
                on_progress=_train_meter(bar, settings),
                stop_at_step=stop_at,
                stop_after_s=math.inf if minutes is None else 60 * minutes,
                stop=stop,
                changed_data=changed_data,
                finish_within_s=math.inf if finish_in is None else 60 * finish_in - (time.monotonic() - begun_s),
            )
    stopped = stop.is_set() and not result.finished
    if not leads():
        raise typer.Exit(INTERRUPTED if stopped else 0)
    _draw_curves(output)
    if as_json:
        best = result.best_validation_loss if math.isfinite(result.best_validation_loss) else None  # none was made yet
        entry = {"weights": str(result.weights), "best_validation_loss": best}
        say(json.dumps(dataclasses.asdict(result) | entry))
    elif result.finished:
        say(f"done: step {result.step}, best validation loss {result.best_validation_loss:.4f}, {result.weights}")
        say(f"next: edgese export {result.weights} -o BUNDLE")
    else:
        of = "" if finish_in else f" of {settings.steps}"
        say(f"stopped at step {result.step}{of}; the same command goes on")
    if stopped:
        raise typer.Exit(INTERRUPTED)


def _look_at_data(sets: DataSets, cache: Path, run: Path, *, quiet: bool) -> None:
    """Report what is fed, source by source, also as data.json in the run's folder; refuse what would spoil the run."""
    from edgese.atomic_file import write_output
    from edgese.train.inventory import require_usable, take_inventory
    from edgese.train.loop import make_run_folder

    reports = take_inventory(sets.materials, cache)
    for report in () if quiet else reports:
        for line in report.lines():
            say(line, err=True)
    require_usable(reports)
    make_run_folder(run)
    write_output(run / "data.json", json.dumps([dataclasses.asdict(report) for report in reports], indent=1).encode())


def _step_columns() -> list[Any]:
    from rich.progress import TextColumn

    return [TextColumn("{task.completed}/{task.total} {task.fields[note]}")]


def _draw_curves(run: Path) -> None:
    """Draw the run's learning curves beside its log, if matplotlib is installed."""
    from edgese.errors import EdgeseError

    try:
        from edgese.train.curves import write_learning_curves

        write_learning_curves(run / "log.csv", run / "curves.png")
    except EdgeseError as error:
        logging.getLogger(__name__).info("no picture of the learning curves: %s", error)


def _train_meter(bar: Progress, settings: TrainConfig) -> Callable[[Step], None]:
    task = bar.add_task("training", total=settings.steps, note="")
    validated, begun = "", False

    def meter(step: Step) -> None:
        nonlocal validated, begun
        if bar.disable and not begun:
            begun = True
            speed, left_min = f"{step.audio_per_second:.1f}x real time", step.seconds_left / 60
            say(
                f"step {step.step}/{step.steps}: loss {step.loss:.4f}, {speed}, about {left_min:.0f} min left", err=True
            )
        if step.validation_s is not None:
            if bar.disable:
                say(f"step {step.step}/{step.steps}: validating, about {step.validation_s:.0f} s", err=True)
            return
        if step.validation_loss is not None:
            validated = f", validation {step.validation_loss:.4f}"
            if bar.disable:  # no terminal: a line now and then instead of the bar
                say(f"step {step.step}/{step.steps}: loss {step.loss:.4f}{validated}", err=True)
        left = f"{step.seconds_left // 60:.0f} min left"
        note = f"loss {step.loss:.4f}{validated}, {step.audio_per_second:.1f}x real time, {left}"
        bar.update(task, completed=step.step, total=step.steps, note=note)

    return meter
