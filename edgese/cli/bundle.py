"""`edgese bundle`: one archive for a board that has Python, NumPy and TensorRT, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgese.cli.terminal import BundleArgument, Json, say
from edgese.graphs.precision import Precision


def bundle_command(
    bundle: BundleArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The archive. Default: NAME.device.tar.gz.")
    ] = None,
    precisions: Annotated[
        list[Precision] | None, typer.Option("--precision", help="Pack graphs of this precision only. May be repeated.")
    ] = None,
    blocks: Annotated[
        list[int] | None,
        typer.Option("--block", min=1, help="Pack graphs of this block only. May be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing archive.")] = False,
    as_json: Json = False,
) -> None:
    """Write one archive for a board, which tests itself, builds TensorRT engines, measures and enhances there."""
    from edgese.board.archive import archive_name, write_archive
    from edgese.graphs.audio_facts import open_bundle
    from edgese.graphs.bundles import bundle_path

    opened = open_bundle(bundle_path(bundle))
    packed = write_archive(
        opened,
        output or Path(archive_name(opened)),
        precisions=[precision.value for precision in precisions or []],
        blocks=blocks or [],
        replace=force,
    )
    if as_json:
        say(json.dumps(packed.entry(), indent=2))
        return
    say(f"{packed.path}: {len(packed.graphs)} graphs, {packed.n_bytes / 1e6:.1f} MB, SHA-256 {packed.sha256}")
    folder = archive_name(opened).removesuffix(".tar.gz")
    say(f"on the board: tar xf {packed.path.name} && cd {folder} && ./run self-test")
