"""Opening of a bundle's graph in any runtime: the artefact that it takes, the metadata that this must carry."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from edgese.graphs.engines import EngineFolder, OnMessage, open_exported
from export.bundle import WEIGHTS, Bundle, Graph
from export.staging import temporary_folder
from runtimes.base import Runtime
from runtimes.registry import open_runtime

logger = logging.getLogger(__name__)

ENGINE_STREAMS = 256  # at most, in one call of an engine; engines are fastest at one


@contextlib.contextmanager
def open_graph(
    bundle: Bundle,
    graph: Graph,
    runtime: str = "onnxruntime",
    *,
    threads: int = 1,
    on_message: OnMessage = logger.warning,
) -> Iterator[Runtime]:
    """Open a graph in the runtime of that name; a context manager that gives the runtime.

    PyTorch runs the graph's own form, made anew from the bundle's weights; TensorRT its engine, from the cache or built
    now; native the C library, compiled unless it was, with the bundle's weights.

    Args:
        on_message: gets one line before an engine is built.

    Raises:
        RuntimeUnavailable: the runtime is missing, or cannot open the graph.
        ArtefactError: the graph is not the one that the manifest names.
        EdgeseError: the weights that PyTorch or native would run are missing or broken.
        ExportError: an engine cannot be built, or the cache holds a damaged one.
    """
    wanted = wanted_metadata(bundle, graph)
    if runtime == "native":
        from edgese.native.artefact import native_artefact

        with (
            native_artefact(bundle, graph, wanted) as artefact,
            open_runtime(runtime, artefact, threads=threads, metadata=wanted) as opened,
        ):
            yield opened
        return
    if runtime != "pytorch":
        engines = engine_folder(bundle)
        with open_exported(
            bundle, graph, runtime, engines, metadata=wanted, threads=threads, on_message=on_message
        ) as opened:
            yield opened
        return
    from edgese.graphs.form import write_program

    with temporary_folder() as folder:
        program = folder / "graph.pt2"
        write_program(bundle, graph, program, wanted)
        with open_runtime(runtime, program, threads=threads, metadata=wanted) as opened:
            yield opened


def engine_cache() -> Path:
    """Folder that keeps TensorRT's engines in this user's cache: they fit this machine only, so not beside a bundle."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgese" / "engines"


def engine_folder(bundle: Bundle) -> EngineFolder:
    """Folder of one bundle's engines in this user's cache."""
    return EngineFolder(engine_cache() / bundle.file_name, ENGINE_STREAMS)


def wanted_metadata(bundle: Bundle, graph: Graph) -> dict[str, str]:
    """Metadata that a graph of this bundle must carry, by the manifest."""
    plan = bundle.manifest.get("precisions", {}).get(graph.precision, {})
    return graph_metadata(
        bundle.manifest["name"], bundle.manifest["files"].get(WEIGHTS), graph, plan.get("calibration")
    )


def graph_metadata(name: str, weights: str | None, graph: Graph, calibration: str | None) -> dict[str, str]:
    """Metadata of a graph, by which no other is taken for it.

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
