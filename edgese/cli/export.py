"""`edgese export`: weights made into a verified bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgese.cli.terminal import Json, Quiet, print_table, progress_bar, require

if TYPE_CHECKING:
    from export.bundle import Bundle


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
    require("torch", "onnx", "onnxscript", extra="export")
    from edgese.artefact import export_bundle, require_passed
    from edgese.enhance import SAMPLE, shipped_bundle

    source = weights or shipped_bundle() / "model.safetensors"
    folder = output or Path(f"{source.parent.name if weights is None else source.stem}.bundle")
    try:
        sizes = [int(size) for size in blocks.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--blocks: found {blocks!r}, wanted numbers such as 1,4,16") from None
    with progress_bar(quiet or as_json) as bar:
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
        print_table(
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


def _megabytes(bundle: Bundle) -> str:
    return f"{sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6:.1f} MB"
