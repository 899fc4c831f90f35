"""TensorRT engines of a bundle where there is a GPU; where there is none, the archive that builds them on one.

Plans are not portable: an engine runs on the kind of GPU, and in the version of TensorRT, that built it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgese.board.archive import Packed, archive_name, write_archive
from edgese.graphs.engines import TENSORRT, is_for
from edgese.graphs.opening import engine_folder
from export import ExportError
from export.bundle import Bundle
from runtimes.base import RuntimeUnavailable
from runtimes.registry import load_runtime


@dataclasses.dataclass(frozen=True)
class BuiltEngines:
    """Engines in this machine's cache, by the graph that each was built from."""

    paths: dict[str, Path]

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"engines": {graph: str(path) for graph, path in self.paths.items()}}


@dataclasses.dataclass(frozen=True)
class Kit:
    """Archive that builds the engines on the device that will run them."""

    packed: Packed
    reason: str  # why they were not built here

    @property
    def next_step(self) -> str:
        """Shell command for the next step on the device."""
        name = self.packed.path.name
        return f"tar xf {name} && cd {name.removesuffix('.tar.gz')} && ./run build && ./run self-test"

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kit": self.packed.entry(), "reason": self.reason, "next": self.next_step}


def for_tensorrt(
    bundle: Bundle, *, replace: bool = False, on_message: Callable[[str], None] = lambda line: None
) -> BuiltEngines | Kit:
    """Build an engine of every graph that is for TensorRT, or write `NAME.device.tar.gz` beside the bundle.

    Args:
        replace: an archive that lies there may be replaced.
        on_message: gets one line before an engine is built.

    Raises:
        ExportError: an engine cannot be built, or no graph is for TensorRT.
        VerificationError, OutputError: as `edgese.board.archive.write_archive`.
    """
    graphs = [graph for graph in bundle.graphs if is_for(graph, TENSORRT)]
    if not graphs:
        raise ExportError(f"{bundle.path}: found no graph that TensorRT takes, wanted fp32, fp16 or int8")
    try:
        load_runtime(TENSORRT)
    except RuntimeUnavailable as error:
        archive = bundle.path.with_name(archive_name(bundle))
        return Kit(write_archive(bundle, archive, replace=replace), str(error))
    folder = engine_folder(bundle)
    return BuiltEngines({graph.file: folder.engine(bundle, graph, on_message) for graph in graphs})
