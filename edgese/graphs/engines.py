"""TensorRT engines of a bundle's graphs, the folder that keeps them, and the opening of an engine or ONNX file.

On a board and at the desk alike; neither PyTorch nor the onnx package is needed (opening.py adds PyTorch).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from export import ExportError
from export.bundle import Bundle, Graph
from export.engine import BuildOptions
from export.engine_cache import cached_engine
from runtimes.base import ArtefactError, Runtime, TensorSpec
from runtimes.registry import load_runtime, open_runtime
from runtimes.tensor_spec import shape_text

TENSORRT = "tensorrt"
CPU_ONLY = "int8-cpu"  # asymmetric 8 bits: TensorRT takes symmetric ones only

OnMessage = Callable[[str], None]  # gets one line of progress


@dataclasses.dataclass(frozen=True)
class EngineFolder:
    """Folder that keeps TensorRT's engines, and the number of streams that they are built for."""

    folder: Path
    streams: int  # at most, in one call; engines are fastest at one

    def engine(self, bundle: Bundle, graph: Graph, on_message: OnMessage, *, rebuild: bool = False) -> Path:
        """Path of a graph's engine for this machine, built unless it is there.

        Args:
            on_message: gets one line before an engine is built.

        Raises:
            ExportError: no TensorRT, or the engine cannot be built or is damaged.
        """
        if graph.precision == CPU_ONLY:
            raise ExportError(f"{graph.file}: rounds as CPUs do, TensorRT takes symmetric int8 only: choose int8")
        axes = {axis: (1, 1, self.streams) for spec in graph.inputs for axis in spec.shape if isinstance(axis, str)}
        return cached_engine(
            bundle.graph_file(graph),
            self.folder,
            BuildOptions(axes, timing_cache=self.folder / "timing.cache"),
            on_message,
            precision=graph.precision,
            rebuild=rebuild,
        )


def is_for(graph: Graph, runtime: str) -> bool:
    """True if a runtime takes graphs of this precision."""
    return not (runtime == TENSORRT and graph.precision == CPU_ONLY)


def open_exported(
    bundle: Bundle,
    graph: Graph,
    runtime: str,
    engines: EngineFolder,
    *,
    metadata: Mapping[str, str],
    threads: int = 1,
    on_message: OnMessage,
) -> Runtime:
    """Open a graph in the runtime of that name; close it.

    Args:
        metadata: what the graph must carry; another graph is refused.
        on_message: gets one line before an engine is built.

    Raises:
        RuntimeUnavailable: the runtime is missing, or cannot open the graph.
        ArtefactError: the graph is not the one that the manifest names.
        ExportError: an engine cannot be built, or the folder holds a damaged one.
    """
    path = bundle.graph_file(graph)
    if runtime == TENSORRT:
        load_runtime(runtime)  # raises for what is missing before anything is built
        path = engines.engine(bundle, graph, on_message)
    opened = open_runtime(runtime, path, threads=threads, metadata=metadata)
    for listed, found in ((graph.inputs, opened.inputs), (graph.outputs, opened.outputs)):
        if sorted(map(_form, listed)) != sorted(map(_form, found)):
            opened.close()
            raise ArtefactError(
                f"{path}: takes or gives other tensors than the manifest lists: found {', '.join(map(str, found))}, "
                f"wanted {', '.join(map(str, listed))}; export the bundle again"
            )
    return opened


def _form(spec: TensorSpec) -> tuple[str, str, str]:
    """What must be equal of two specs of the same tensor; runtimes may name a dynamic axis otherwise."""
    return spec.name, spec.dtype, shape_text([axis if isinstance(axis, int) else "any" for axis in spec.shape])
