"""`edgese evaluate`: scores of a model and of other systems on the same files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgese.cli.terminal import Jobs, Json, Quiet, counter, print_table, progress_bar, say
from edgese.graphs.precision import Precision

if TYPE_CHECKING:
    from edgese.evaluate import Evaluation, Which


def evaluate_command(
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Folder with clean/ and noisy/, files of the same names; without clean/: DNSMOS alone."
        ),
    ],
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
            help="A folder of files that another system enhanced, or another bundle, also of the Hub (hf:owner/name). "
            "May be repeated.",
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
    from edgese.graphs import HUB
    from edgese.graphs.bundles import bundle_path

    if csv and os.path.lexists(csv) and not force:  # said now, not after minutes of work
        raise AudioError(f"{csv}: exists already; replace it with --force, or choose another --csv")
    others = [bundle_path(system) if str(system).startswith(HUB) else system for system in systems or []]
    named = [*([bundle_path(model)] if model or not systems else []), *others]
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
    """Table of the scores, and one of levels by band where there is a clean recording to compare with."""
    from edgese.evaluate import CONFIDENCE, RESAMPLES
    from edgese.metrics.scores import METRICS, packages

    scored = next(result.metrics for result in results if result.pairs)
    names = [name for name in scored if METRICS[name].higher_is_better is not None]
    levels = [name for name in scored if METRICS[name].higher_is_better is None]
    versions = packages()
    lower = ", ".join(METRICS[name].title for name in names if METRICS[name].higher_is_better is False)
    title = [
        f"{data}: means over files, {CONFIDENCE:.0%} intervals by bootstrap ({RESAMPLES:,} resamples of the files)",
        "gain: system - noisy, file by file; higher is better" + (f", but lower in {lower}" if lower else ""),
    ]
    if levels:
        title.append(
            f"PESQ: pesq {versions['pesq']}, MOS-LQO; WB: P.862.2, NB: P.862.1 at 16 kHz; CSIG, CBAK, COVL from "
            f"PESQ-WB; STOI, ESTOI: pystoi {versions['pystoi']}"
        )
    title.append(f"SIG, BAK, OVRL: DNSMOS P.835, speechmos {versions['speechmos']}, without the clean recording")
    _print_scores("\n".join(title), names, results, ("enhanced", "gain"))
    if levels:
        heading = "level of speech over that of the clean recording by octave band, dB; 0 is best"
        _print_scores(f"\n{heading}", levels, results, ("enhanced",))


def _print_scores(title: str, names: list[str], results: list[Evaluation], rows_of: Sequence[Which]) -> None:
    """One table; systems that were scored on the same files stand together under the noisy input of these files."""
    from edgese.metrics.scores import METRICS

    groups: dict[tuple[str, ...], list[Evaluation]] = {}
    for result in results:
        groups.setdefault(tuple(pair.name for pair in result.pairs), []).append(result)
    unique = len({Path(result.system).name for result in results}) == len(results)
    rows: list[list[str]] = []
    for files, group in sorted(groups.items(), key=lambda item: -len(item[0])):
        rows += _score_rows("noisy", f"{len(files)}/{group[0].n_files}", group[0], "noisy", names)
        for result in group:
            for which in rows_of:
                label = "  gain" if which == "gain" else Path(result.system).name if unique else result.system
                count = "" if which == "gain" else f"{len(files)}/{group[0].n_files}"
                rows += _score_rows(label, count, result, which, names)
    print_table(title, ["", "files", *(METRICS[name].title for name in names)], rows)


def _score_rows(label: str, files: str, result: Evaluation, which: Which, names: list[str]) -> list[list[str]]:
    """Means, and below them their intervals where there are any."""
    from edgese.metrics.scores import METRICS

    signed = which == "gain" or any(METRICS[name].higher_is_better is None for name in names)
    means, intervals, sign = result.mean(which), result.interval(which), "+" if signed else ""
    form = {name: f"{{:{sign}.{METRICS[name].digits}f}}" for name in names}
    rows = [[label, files, *(form[name].format(means[name]) if means else "-" for name in names)]]
    if intervals:
        rows.append(["", "", *("..".join(map(form[name].format, intervals[name])) for name in names)])
    return rows
