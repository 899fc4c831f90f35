"""A bundle's graph open in any runtime: the artefact that the runtime takes, and the metadata that it must carry."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from export.bundle import WEIGHTS, Bundle, Graph
from runtimes.base import Runtime
from runtimes.registry import open_runtime


@contextlib.contextmanager
def open_graph(bundle: Bundle, graph: Graph, runtime: str = "onnxruntime", *, threads: int = 1) -> Iterator[Runtime]:
    """The graph in the runtime of that name; PyTorch runs the graph's own form, made anew from the bundle's weights.

    Raises:
        RuntimeUnavailable: the runtime is missing, or cannot open the graph.
        ArtefactError: the graph is not the one that the manifest names.
        EdgeseError: the weights that PyTorch would run are missing or broken.
    """
    wanted = wanted_metadata(bundle, graph)
    if runtime != "pytorch":
        with open_runtime(runtime, bundle.path / graph.file, threads=threads, metadata=wanted) as opened:
            yield opened
        return
    from edgese.exported import write_program

    with tempfile.TemporaryDirectory(prefix="edgese-") as folder:
        program = Path(folder) / "graph.pt2"
        write_program(bundle, graph, program, wanted)
        with open_runtime(runtime, program, threads=threads, metadata=wanted) as opened:
            yield opened


def wanted_metadata(bundle: Bundle, graph: Graph) -> dict[str, str]:
    """What a graph of this bundle carries, by the manifest."""
    plan = bundle.manifest.get("precisions", {}).get(graph.precision, {})
    return graph_metadata(
        bundle.manifest["name"], bundle.manifest["files"].get(WEIGHTS), graph, plan.get("calibration")
    )


def graph_metadata(name: str, weights: str | None, graph: Graph, calibration: str | None) -> dict[str, str]:
    """What a graph carries so that no other is taken for it.

    Args:
        name: the bundle's.
        weights: SHA-256 of the weights file; None where a bundle holds none.
        calibration: digest of the batches that it was quantized with; None where it was not.
    """
    return {
        "edgese.bundle": name,
        "edgese.precision": graph.precision,
        "edgese.block": str(graph.block),
        **({"edgese.weights": weights} if weights else {}),
        **({"edgese.variant": graph.variant} if graph.variant else {}),
        **({"edgese.calibration": calibration} if calibration else {}),
    }
