"""`edgese triton`: a bundle as a model repository of NVIDIA Triton Inference Server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgese.cli.terminal import BundleArgument, Json, say
from edgese.graphs.precision import Precision
from edgese.triton.serving import Backend, Device, Serving


def triton_command(
    bundle: BundleArgument = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The repository; models of others in it stay.")
    ] = Path("models"),
    precisions: Annotated[
        list[Precision] | None, typer.Option("--precision", help="Models of this precision only. May be repeated.")
    ] = None,
    blocks: Annotated[
        list[int] | None, typer.Option("--block", min=1, help="Models of this block only. May be repeated.")
    ] = None,
    pcs: Annotated[bool, typer.Option("--pcs", help="The graphs with perceptual contrast stretching.")] = False,
    backend: Annotated[
        Backend, typer.Option(help="tensorrt: engines built here, for servers with this TensorRT and GPU.")
    ] = Backend.ONNXRUNTIME,
    device: Annotated[
        Device, typer.Option(help="Where the server runs them; auto: a GPU if it has one.")
    ] = Device.AUTO,
    streams: Annotated[int, typer.Option(min=1, help="Streams at a time in one instance of a model.")] = 64,
    instances: Annotated[int, typer.Option(min=1, help="Instances of each model; on a CPU, one a core.")] = 1,
    delay_ms: Annotated[
        float, typer.Option(min=0, help="Time a hop may wait to be joined with those of other streams.")
    ] = 2.0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace models that edgese wrote there.")] = False,
    as_json: Json = False,
) -> None:
    """Lay a bundle out as a model repository of NVIDIA Triton, each stream's states kept by the server.

    Then: tritonserver --model-repository DIR, and edgese enhance --server HOST:8001 (docs/triton.md).
    """
    from edgese.graphs.bundles import bundle_path, open_verified
    from edgese.triton.repository import choose_graphs, write_repository

    opened = open_verified(bundle_path(bundle))
    graphs = choose_graphs(opened, [precision.value for precision in precisions or []], blocks or [], pcs=pcs)
    serving = Serving(backend, device, streams, instances, delay_ms)
    written = write_repository(
        opened, output, graphs, serving, replace=force, on_message=lambda line: say(line, err=True)
    )
    if as_json:
        say(json.dumps({"path": str(output), "models": [path.name for path in written]}, indent=2))
        return
    for path in written:
        say(path)
    say(f"then: tritonserver --model-repository {output}")
