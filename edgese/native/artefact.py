"""A bundle's graph in the C library: the artefact that `runtimes/native.py` opens."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgese.errors import CheckpointError
from edgese.native.build import library
from edgese.native.weights import native_weights
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
    built = library()
    with tempfile.TemporaryDirectory(prefix="edgese-") as folder:
        file = bundle.manifest.get("native", {}).get(stored)
        if file is not None:
            weights = bundle.path / file
        else:
            weights = Path(folder) / "weights.edgese"
            try:
                weights.write_bytes(native_weights(_source(bundle), stored=stored, metadata=weights_metadata(bundle)))
            except CheckpointError as error:
                raise ArtefactError(str(error)) from error
        artefact = Path(folder) / "graph.native"
        options = PASS | (PCS if graph.variant == "pcs" else 0)
        sides = graph.inputs, graph.outputs, graph.states
        write_artefact(artefact, built, weights, *sides, options=options, metadata=metadata)
        yield artefact


def weights_metadata(bundle: Bundle) -> dict[str, str]:
    """Metadata of a bundle's weights file, by which no other bundle's is taken for it."""
    return {"edgese.bundle": bundle.manifest["name"], "edgese.weights": bundle.manifest["files"][WEIGHTS]}


def _source(bundle: Bundle) -> Path:
    if WEIGHTS not in bundle.manifest["files"]:
        raise ArtefactError(
            f"{bundle.path}: holds no {WEIGHTS}, of which the C library's weights are made; export it again"
        )
    return bundle.path / WEIGHTS
