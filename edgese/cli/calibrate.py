"""`edgese calibrate`: calibration batches for INT8, with the states of real streams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgese.cli.terminal import CACHE, Cache, Json, Quiet, Weights, counter, print_table, progress_bar, require, say

if TYPE_CHECKING:
    from edgese.quantize.calibration import Span


def calibrate_command(
    weights: Weights = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Training data, as for `edgese train`; the validation part is not used."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file of batches.")] = Path(
        "calibration.npz"
    ),
    batches: Annotated[int, typer.Option(min=1, help="Number of batches.")] = 16,
    streams: Annotated[int, typer.Option(min=1, help="Streams in a batch.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choice.")] = 0,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a picture of the value ranges.")] = None,
    cache: Cache = CACHE,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write calibration batches for INT8: speech in noise at many SNRs and levels, with the states of real streams."""
    if data is None:
        raise typer.BadParameter(
            "--data: found none, wanted a folder of training data: clean/ and noisy/, or speech/ and noise/; "
            "ranges of sound that the network will never meet would be worse than none"
        )
    require("torch", "scipy", "safetensors", extra="train")
    require("onnx", "onnxscript", extra="export")
    from edgese.graphs.bundles import shipped_bundle
    from edgese.model.checkpoint import load_enhancer
    from edgese.quantize.calibration import Drawing, compare_ranges, draw_batches, require_target, write_calibration

    require_target(output, replace=force)
    if plot is not None:
        from edgese.quantize.plots import require_picture, write_ranges_plot

        require_picture(plot)
    drawing = Drawing(n_streams=streams, n_batches=batches, seed=seed)
    enhancer = load_enhancer(weights or shipped_bundle() / "model.safetensors")
    with progress_bar(quiet or as_json) as bar:
        drawn, provenance = draw_batches(
            enhancer,
            data,
            drawing,
            cache.expanduser(),
            counter(bar, "drawing", "streams"),
            counter(bar, "decoding", "files"),
        )
        spans = compare_ranges(enhancer, drawn, counter(bar, "ranges", "passes"))
    digest = write_calibration(output, drawn, provenance, replace=force)
    if as_json:
        ranges = {span.product: span.entry() for span in spans}
        told = {"path": str(output), "digest": digest, "provenance": provenance, "ranges": ranges}
        say(json.dumps(told, indent=2, allow_nan=False))
    else:
        _print_batches(output, digest, provenance)
        _print_ranges(spans)
    if plot is not None:
        what = f"{weights.name if weights else 'shipped weights'}, {provenance['hops']:,} hops of noisy speech"
        write_ranges_plot(spans, f"What enters the products that INT8 can take: {what}", plot)
        say(f"picture: {plot}", err=as_json)


def _print_batches(path: Path, digest: str, provenance: Mapping[str, Any]) -> None:
    columns = {
        "batches": f"{provenance['batches']:,}",
        "streams": f"{provenance['streams']:,}",
        "hops": f"{provenance['hops']:,}",
        "heard s": f"{provenance['heard_s']:,.0f}",
        "warm-up s": _span_words(provenance["warm_up_s"], 1),
        "peak dBFS": _span_words(provenance["peak_dbfs"], 0),
        "SNR dB": _span_words(provenance["snr_db"], 0),
        "MB": f"{path.stat().st_size / 1e6:.1f}",
    }
    title = f"{path}: drawn from the training split of {provenance['data']['folder']}"
    print_table(title, list(columns), [list(columns.values())])
    say(f"  digest: {digest}")
    say("")


def _span_words(values: Sequence[float], digits: int) -> str:
    """`-40 to -3`."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}" if values else "-"


def _print_ranges(spans: Sequence[Span]) -> None:
    methods = list(spans[0].chosen)
    print_table(
        "the input of each product that INT8 can take: its values, and the largest that each method keeps, +-",
        ["product", "lowest", "highest", *methods],
        [
            [
                span.product,
                f"{span.extent.low:.3f}",
                f"{span.extent.high:.3f}",
                *(f"{span.chosen[method].high:.3f}" for method in methods),
            ]
            for span in spans
        ],
    )
