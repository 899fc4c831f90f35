"""A graph of a device bundle open in a runtime that is there; TensorRT gets its engine from the cache on the board."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

from edgese.device.content import ENGINES, Content
from export import ExportError
from export.bundle import Graph
from export.engine import BuildOptions
from export.engine_cache import cached_engine
from runtimes.base import Runtime, RuntimeUnavailable
from runtimes.registry import RUNTIMES, load_runtime, open_runtime, require_known

TENSORRT = "tensorrt"
CANDIDATES = (TENSORRT, "onnxruntime", "openvino")  # those that open what a device bundle holds, the favourite first

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Engines:
    """Where TensorRT's engines are kept, and for how many streams they are built."""

    folder: Path
    streams: int = 16  # at most, in one call; they are fastest at one

    @classmethod
    def of(cls, content: Content, folder: Path | None, streams: int) -> Engines:
        return cls(folder or content.root / ENGINES, streams)

    def engine(self, content: Content, graph: Graph, tell: Tell, *, rebuild: bool = False) -> Path:
        """The engine of a graph for this machine, built unless it is there.

        Raises:
            ExportError: no TensorRT, or the engine cannot be built or is damaged.
        """
        if graph.precision == "int8-cpu":
            raise ExportError(f"{graph.file}: rounds as CPUs do, TensorRT takes symmetric int8 only: choose int8")
        axes = {axis: (1, 1, self.streams) for spec in graph.inputs for axis in spec.shape if isinstance(axis, str)}
        return cached_engine(
            content.bundle.path / graph.file,
            self.folder,
            BuildOptions(axes, timing_cache=self.folder / "timing.cache"),
            tell,
            precision=graph.precision,
            rebuild=rebuild,
        )


def fits(graph: Graph, runtime: str) -> bool:
    """Whether a graph is for that runtime at all."""
    return not (runtime == TENSORRT and graph.precision == "int8-cpu")


def find_runtimes(wanted: Collection[str] = ()) -> tuple[tuple[str, ...], dict[str, str]]:
    """The runtimes that open here, and of the others why not.

    Args:
        wanted: these and no others.

    Raises:
        RuntimeUnavailable: one that is wanted is unknown or does not open.
    """
    found, left_out = [], {}
    for name in wanted or [name for name in CANDIDATES if name in RUNTIMES]:
        try:
            _require(name)
        except RuntimeUnavailable as error:
            if wanted:
                raise
            left_out[name] = str(error)
        else:
            found.append(name)
    return tuple(dict.fromkeys(found)), left_out


def open_graph(content: Content, graph: Graph, runtime: str, engines: Engines, tell: Tell) -> Runtime:
    """The graph in the runtime of that name, on one thread; close it.

    Raises:
        ExportError: the engine cannot be built, or is damaged.
        RuntimeUnavailable: the runtime cannot open the graph.
        ArtefactError: the graph is not the one that the manifest names.
    """
    path = content.bundle.path / graph.file
    if runtime == TENSORRT:
        path = engines.engine(content, graph, tell)
    return open_runtime(runtime, path, metadata=content.metadata(graph))


def _require(name: str) -> None:
    require_known(name)
    if name not in CANDIDATES:
        raise RuntimeUnavailable(f"{name}: opens nothing of a device bundle, wanted {', '.join(CANDIDATES)}")
    load_runtime(name)
