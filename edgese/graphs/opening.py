"""A bundle's graph open in any runtime: the artefact that the runtime takes, and the metadata that it must carry."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from export.bundle import WEIGHTS, Bundle, Graph
from runtimes.base import Runtime
from runtimes.registry import load_runtime, open_runtime

logger = logging.getLogger(__name__)

ENGINE_STREAMS = (1, 1, 256)  # least, best and most streams of an engine


@contextlib.contextmanager
def open_graph(
    bundle: Bundle,
    graph: Graph,
    runtime: str = "onnxruntime",
    *,
    threads: int = 1,
    tell: Callable[[str], None] = logger.warning,
) -> Iterator[Runtime]:
    """The graph in the runtime of that name; PyTorch runs the graph's own form, made anew from the bundle's weights.

    TensorRT runs its engine, from the cache or built now.

    Args:
        tell: gets one line before an engine is built.

    Raises:
        RuntimeUnavailable: the runtime is missing, or cannot open the graph.
        ArtefactError: the graph is not the one that the manifest names.
        EdgeseError: the weights that PyTorch would run are missing or broken.
        ExportError: an engine cannot be built, or the cache holds a damaged one.
    """
    wanted = wanted_metadata(bundle, graph)
    if runtime != "pytorch":
        artefact = bundle.path / graph.file
        if runtime == "tensorrt":
            load_runtime(runtime)  # tells what is missing before anything is built
            artefact = engine_of(bundle, graph, tell)
        with open_runtime(runtime, artefact, threads=threads, metadata=wanted) as opened:
            yield opened
        return
    from edgese.graphs.form import write_program

    with tempfile.TemporaryDirectory(prefix="edgese-") as folder:
        program = Path(folder) / "graph.pt2"
        write_program(bundle, graph, program, wanted)
        with open_runtime(runtime, program, threads=threads, metadata=wanted) as opened:
            yield opened


def engine_cache() -> Path:
    """Where engines are kept: they are worth nothing on another machine, so nowhere near the bundle."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgese" / "engines"


def engine_of(bundle: Bundle, graph: Graph, tell: Callable[[str], None]) -> Path:
    """The engine of a graph for the GPU here, from the cache or built now.

    Raises:
        ExportError: it cannot be built, or the cache holds a damaged one.
    """
    from export.engine import BuildOptions
    from export.engine_cache import cached_engine

    options = BuildOptions({"streams": ENGINE_STREAMS}, timing_cache=engine_cache() / "timings")
    folder = engine_cache() / bundle.manifest["name"]
    return cached_engine(bundle.path / graph.file, folder, options, tell, precision=graph.precision)


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
