"""`edgese verify`: a check of every graph of a bundle against PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgese.cli.board import (
    Host,
    NoKeep,
    Timeout,
    board_session,
    check_options,
    check_runtimes,
    print_self_test,
)
from edgese.cli.terminal import BundleArgument, Json, Precisions, Quiet, print_table, progress_bar, require, say

if TYPE_CHECKING:
    from edgese.verify.findings import Proof, Verification
    from export.bundle import Bundle


def verify_command(
    bundle: BundleArgument = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option("--runtime", metavar="NAME", help="May be repeated. Default: onnxruntime."),
    ] = None,
    precisions: Precisions = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder with clean/ and noisy/. Default: the shipped sample."),
    ] = None,
    files: Annotated[
        int | None,
        typer.Option(min=1, help="The most pairs to use, evenly spread.", show_default="10"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Length of the long stream; at least 3,000 hops (24 s).", show_default="10"),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.html and report.json; needs the extra report."),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Find the first layer that differs, of each graph that fails.")
    ] = False,
    host: Host = None,
    timeout: Timeout = None,
    no_keep: NoKeep = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check every graph of a bundle against PyTorch: samples, states, drift, PESQ. Needs the extras export, metrics.

    With --host, a board streams the bundle's reference vectors through every graph, in every runtime that opens there,
    and compares its output with PyTorch's, which the bundle holds; the limits are those of the bundle.
    """
    check_options(
        host,
        {"--data": data, "--files": files, "--minutes": minutes, "--report": report, "--bisect": bisect},
        {"--timeout": timeout, "--no-keep": no_keep},
    )
    if host is not None:
        _verify_there(bundle, host, runtimes or [], precisions or [], timeout, no_keep, quiet, as_json)
        return
    require("torch", "safetensors", extra="export")
    require("pesq", "pystoi", extra="metrics")
    if report is not None:
        require("jinja2", "PIL", extra="report")
    from edgese.errors import VerificationError
    from edgese.graphs.audio_facts import open_bundle
    from edgese.graphs.bundles import bundle_path
    from edgese.graphs.segments import Segments, network_name, segments_in_words
    from edgese.metrics.pairs import read_recordings
    from edgese.verify.prove import prove

    opened = open_bundle(bundle_path(bundle))
    if bisect and Segments.of(opened.manifest) is not None:
        raise VerificationError(
            f"--bisect: {network_name(opened.manifest)} looks ahead: the search compares streams hop by hop, and it "
            f"has {segments_in_words(opened)} only: leave it out, the checks tell which graph is wrong and by how much"
        )
    with progress_bar(quiet or as_json, _no_columns) as bar:
        task = bar.add_task("verify")

        def show(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        verification = prove(
            opened,
            runtimes=list(dict.fromkeys(runtimes or ["onnxruntime"])),
            precisions=list(dict.fromkeys(precisions or [])),
            recordings=read_recordings(data, files or 10, opened.manifest["audio"]["sample_rate_hz"]),
            minutes=10.0 if minutes is None else minutes,
            on_progress=show,
        )
        divergences = _divergences(verification, lambda what: bar.update(task, description=what)) if bisect else {}
    if as_json:
        say(json.dumps(verification.entry() | {"divergences": divergences}, indent=2, allow_nan=False))
    else:
        _print_verification(verification)
        for label, text in divergences.items():
            say(f"{label}: {text}")
    if report is not None:
        from edgese.verify.report.page import write_report

        say(f"report: {write_report(verification, report)}", err=as_json)
    if not verification.passed:
        raise typer.Exit(code=1)


def _verify_there(
    path: Path | None,
    host: str,
    runtimes: list[str],
    precisions: list[str],
    timeout: float | None,
    no_keep: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the self-test of a board and print it; exit code 1 if a graph does not pass."""
    from edgese.board.commands import Chosen, self_test_there
    from edgese.device.content import choose
    from edgese.graphs.audio_facts import open_bundle
    from edgese.graphs.bundles import bundle_path

    chosen = Chosen(check_runtimes(runtimes), precisions)
    opened = open_bundle(bundle_path(path))
    choose(opened, precisions)  # said now, not after copying
    with progress_bar(quiet or as_json) as bar, board_session(host, bar, timeout, no_keep, quiet) as session:
        tested = self_test_there(session, opened, chosen)
    if as_json:
        say(json.dumps({"host": host} | tested, indent=2))
    else:
        print_self_test(tested, opened.manifest["name"], host)
    if not tested["passed"]:
        raise typer.Exit(code=1)


def _divergences(verification: Verification, tell: Callable[[str], None]) -> dict[str, str]:
    """The first layer that differs, or the reason why it is not known, for each graph that failed, by its label."""
    from edgese.errors import VerificationError
    from edgese.verify.first_divergence import first_divergence

    def found(proof: Proof) -> str:
        try:
            wave = verification.recordings[0].noisy
            return str(first_divergence(verification.bundle, proof.graph, proof.runtime, wave, tell))
        except VerificationError as error:
            return str(error).removeprefix(f"{proof.label}: ")

    return {proof.label: found(proof) for proof in verification.proofs if not proof.passed}


def _no_columns() -> list[object]:
    return []


def _print_verification(verification: Verification) -> None:
    n_hops = max((proof.streamed.n_hops for proof in verification.proofs if proof.streamed), default=0)
    _print_row_table(verification.bundle, verification.proofs, n_hops)
    for check in verification.checks:
        say(f"  {check.name}: {check.found}: {_verdict(check.passed)}")
    for failure in verification.failures:
        say(f"FAILED: {failure}")
    if verification.not_tried:
        say(f"  not tried, the network is not causal: {', '.join(verification.not_tried)}")
    n_checks = len(verification.checks) + sum(len(proof.checks) for proof in verification.proofs)
    if verification.passed:
        n_graphs = len(verification.proofs)
        say(f"passed: all {n_checks} checks of {n_graphs} graph{'s' if n_graphs != 1 else ''}")
    else:
        say(f"FAILED: {len(verification.failures)} of {n_checks} checks")


def _print_row_table(bundle: Bundle, proofs: tuple[Proof, ...], n_hops: int) -> None:
    from edgese.graphs.segments import Segments, segments_in_words

    heard = "streamed with carried state" if Segments.of(bundle.manifest) is None else f"in {segments_in_words(bundle)}"
    print_table(
        f"{bundle.path}: against PyTorch, {n_hops:,} hops {heard}",
        ["graph", "runtime", "SNR dB", "first, last tenth dB", "float64 dB", "PESQ", "lost", "checks", ""],
        [_row(proof) for proof in proofs],
    )


def _row(proof: Proof) -> list[str]:
    numbers = ["-"] * 5
    if proof.streamed is not None:
        first_db, last_db = proof.streamed.tenths_db[0], proof.streamed.tenths_db[-1]
        numbers[:3] = [
            f"{proof.streamed.wave.snr_db:.1f}",
            f"{first_db:.1f}, {last_db:.1f}",
            f"{proof.streamed.wave_float64.snr_db:.1f}",
        ]
    if proof.listeners:
        n = len(proof.listeners)
        quality = sum(listener.pesq for listener in proof.listeners) / n
        lost = sum(listener.pesq_pytorch - listener.pesq for listener in proof.listeners) / n
        numbers[3:] = [f"{quality:.3f}", f"{lost:+.4f}"]
    n_passed = sum(check.passed for check in proof.checks)
    return [
        *(proof.graph.file, proof.runtime, *numbers),
        f"{n_passed}/{len(proof.checks)}",
        _verdict(proof.passed),
    ]


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"
