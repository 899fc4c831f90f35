"""A bundle's graph as the denoiser of recordings: one path for every runtime, without PyTorch and onnx.

A network that is not causal takes overlapped segments (edgese/graphs/segments.py); all else is the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgese.audio import Samples
from edgese.enhance.signal_path import RESAMPLER_TAIL
from edgese.graphs.bundles import audio_config, choose_graph, is_trained
from edgese.graphs.opening import open_graph
from edgese.graphs.precision import Precision
from edgese.graphs.segments import Segments
from edgese.graphs.streaming import aligned_blocks
from export.bundle import Bundle

if TYPE_CHECKING:
    from typing_extensions import Self


class Denoiser:
    """Denoiser of a bundle's graph open in a runtime, on one thread. A context manager.

    Args:
        runtime: a name that `runtimes.registry` knows.
        block: frames that one call takes; None: the largest graph of the bundle, or its segment.
        precision: of the graph.
        pcs: take the graphs with perceptual contrast stretching (edgese.model.pcs).

    Raises:
        ExportError: the bundle has no such graph, no streaming form, or does not say what a frame is.
        RuntimeUnavailable: the runtime is missing or cannot open the graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: str = "onnxruntime",
        block: int | None = None,
        precision: Precision = Precision.FP32,
        pcs: bool = False,
    ) -> None:
        self.config = audio_config(bundle)
        self.trained = is_trained(bundle)
        self._segments = Segments.of(bundle.manifest)
        graph = choose_graph(bundle, block=block, precision=precision, pcs=pcs)
        self.block_samples = graph.block * self.config.hop
        self._graph = graph
        self._open = contextlib.ExitStack()
        self._runtime = self._open.enter_context(open_graph(bundle, graph, runtime))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def prepare(self, source: Path, name: str, stop: threading.Event) -> None:
        """Do nothing: a recording is enhanced block by block, in `blocks`."""

    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]:
        """Enhanced sound of blocks at the network's rate, aligned with them, and some silence after their end.

        Args:
            blocks: (n, n_channels) float32 of any n.

        Yields:
            (n, n_channels) float32; the first sample belongs to the first that came in.
        """
        stream = self._runtime.stream(self._graph.states, streams=n_channels)
        if self._segments is not None:
            yield from self._segments.joined(blocks, n_channels, lambda segment: stream({"wave": segment})["enhanced"])
            yield np.zeros((RESAMPLER_TAIL, n_channels), np.float32)
            return
        yield from aligned_blocks(blocks, stream, self._graph, n_channels, self.config.overlap, RESAMPLER_TAIL)
