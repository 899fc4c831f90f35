"""A bundle's graph in the C library: the artefact that `runtimes/native.py` opens."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgese.errors import CheckpointError
from edgese.native.build import library
from edgese.native.weights import SUFFIX, native_weights
from export.bundle import WEIGHTS, Bundle, Graph
from runtimes.base import ArtefactError
from runtimes.native import PASS, PCS, write_artefact

# How the library holds the weights for a graph of this precision; what it multiplies stays float32 in all of them.
STORED = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int8-cpu": "int8"}


@contextlib.contextmanager
def native_artefact(bundle: Bundle, graph: Graph, metadata: Mapping[str, str]) -> Iterator[Path]:
    """Path of a graph's artefact; it and what was made for it are gone afterwards.

    The weights come from the bundle's own file for the library, or are made from those that its graphs were made of.

    Args:
        metadata: what the artefact is to carry.

    Raises:
        RuntimeUnavailable: the library cannot be built.
        ArtefactError: the bundle holds no weights, broken ones, or those of another network than MBS-Net.
    """
    stored = STORED[graph.precision]
    file = _own_file(bundle, stored)
    with contextlib.ExitStack() as stack:
        if file is not None:
            weights = bundle.path / file
        else:
            weights = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgese-"))) / "weights.edgese"
            source, digest = _source(bundle), bundle.manifest["files"][WEIGHTS]
            try:
                write_weights(weights, source, bundle.manifest["name"], digest, stored)
            except CheckpointError as error:
                raise ArtefactError(str(error)) from error
        yield stack.enter_context(graph_artefact(weights, graph, metadata))


@contextlib.contextmanager
def graph_artefact(weights: Path, graph: Graph, metadata: Mapping[str, str]) -> Iterator[Path]:
    """Path of the artefact of a graph with these weights, as `native_artefact`.

    Raises:
        RuntimeUnavailable: the library cannot be built.
    """
    options = PASS | (PCS if graph.variant == "pcs" else 0)
    with tempfile.TemporaryDirectory(prefix="edgese-") as folder:
        artefact = Path(folder) / "graph.native"
        sides = graph.inputs, graph.outputs, graph.states
        write_artefact(artefact, library(), weights, *sides, options=options, metadata=metadata)
        yield artefact


def write_weights(target: Path, source: Path, name: str, digest: str, stored: str) -> None:
    """Write the library's weights file of a bundle, which carries its name and the digest of the weights it came from.

    Raises:
        CheckpointError: see `native_weights`.
    """
    metadata = {"edgese.bundle": name, "edgese.weights": digest}
    target.write_bytes(native_weights(source, stored=stored, metadata=metadata))


def weights_file(stored: str) -> str:
    """Name of the library's weights file in a bundle."""
    return f"model{'' if stored == 'fp32' else f'.{stored}'}{SUFFIX}"


def _own_file(bundle: Bundle, stored: str) -> str | None:
    """Name of the bundle's own weights file for the library; None where it has none."""
    own = bundle.manifest.get("native", {})
    file = own.get(stored) if isinstance(own, dict) else own
    if file is not None and file not in list(bundle.manifest["files"]):
        raise ArtefactError(f"{bundle.path}: native: found {own!r}, wanted names of its own files; export it again")
    return file


def _source(bundle: Bundle) -> Path:
    if WEIGHTS not in bundle.manifest["files"]:
        raise ArtefactError(
            f"{bundle.path}: holds no {WEIGHTS}, of which the C library's weights are made; export it again"
        )
    return bundle.path / WEIGHTS
