"""`edgese evaluate`: scores of a model and of other systems on the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgese.cli.terminal import Jobs, Json, Quiet, counter, print_table, progress_bar, say
from edgese.graphs.precision import Precision

if TYPE_CHECKING:
    from edgese.evaluate import Evaluation, Which


def evaluate_command(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder with clean/ and noisy/, files of the same names.")],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", "-m", metavar="BUNDLE", help="A bundle. Default: the shipped one, if no --system is named."
        ),
    ] = None,
    systems: Annotated[
        list[Path] | None,
        typer.Option(
            "--system",
            "-s",
            metavar="DIR",
            help="A folder of files that another system enhanced, or another bundle. May be repeated.",
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write all scores, file by file.")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing CSV file.")] = False,
    runtime: Annotated[
        str, typer.Option(metavar="NAME", help="Runtime of bundles; see `edgese doctor`.")
    ] = "onnxruntime",
    precision: Annotated[Precision, typer.Option(help="Precision of the graphs of bundles.")] = Precision.FP32,
    pcs: Annotated[
        bool, typer.Option("--pcs", help="Perceptual contrast stretching, as in `edgese enhance --pcs`.")
    ] = False,
    jobs: Jobs = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score a model and other systems on the same files, beside the noisy input; needs the extra metrics."""
    from edgese.errors import AudioError
    from edgese.evaluate import evaluate_all, report, write_csv
    from edgese.graphs.bundles import shipped_bundle

    if csv and csv.exists() and not force:  # said now, not after minutes of work
        raise AudioError(f"{csv}: exists already; replace it with --force, or choose another --csv")
    named = [*([model] if model else []), *(systems or [])] or [shipped_bundle()]
    with progress_bar(quiet or as_json) as bar:
        scored = counter(bar, "scoring", "files")
        results = evaluate_all(
            *(data, named), runtime=runtime, precision=precision, pcs=pcs, jobs=jobs, on_progress=scored
        )
    if as_json:
        say(json.dumps(report(data, results), indent=2))
    else:
        _print_evaluations(data, results)
    if csv:
        write_csv(csv, results, replace=force)
    failed = dict.fromkeys((name, reason) for result in results for name, reason in result.failed.items())
    for name, reason in failed:
        say(f"error: {name}: not scored: {reason}", err=True)
    if failed:
        raise typer.Exit(code=1)


def _print_evaluations(data: Path, results: list[Evaluation]) -> None:
    """One table; systems that were scored on the same files stand together under the noisy input of these files."""
    from edgese.evaluate import CONFIDENCE, RESAMPLES
    from edgese.metrics.scores import METRICS, packages

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
    print_table("\n".join(title), ["", "files", *(metric.title for metric in METRICS.values())], rows)


def _score_rows(label: str, files: str, result: Evaluation, which: Which) -> list[list[str]]:
    """Means, and below them their intervals where there are any."""
    from edgese.metrics.scores import METRICS

    means, intervals, sign = result.mean(which), result.interval(which), "+" if which == "gain" else ""
    form = {name: f"{{:{sign}.{metric.digits}f}}" for name, metric in METRICS.items()}
    rows = [[label, files, *(form[name].format(means[name]) if means else "-" for name in METRICS)]]
    if intervals:
        rows.append(["", "", *("..".join(map(form[name].format, intervals[name])) for name in METRICS)])
    return rows
