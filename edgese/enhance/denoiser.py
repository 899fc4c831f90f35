"""Enhancement of recordings: waveform -> runtime -> waveform, one path for every runtime, in constant memory.

The network runs at 16 kHz: what it gives back at higher rates holds nothing above 8 kHz, unless an attenuation limit
lets a part of the input through. Each channel is enhanced by itself, as one stream of the graph. Output and input have
the same length and are aligned to a fraction of a sample, at any rate. No PyTorch and no onnx are needed. A network
that is not causal takes overlapped segments (edgese/graphs/segments.py); all else is the same. Quiet recordings are
lifted for the network and lowered again, offsets taken out (lift.py).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgese.audio import Samples
from edgese.audio.reader import resampled
from edgese.config import AudioConfig
from edgese.enhance.lift import Lift
from edgese.graphs.bundles import audio_config, choose_graph, is_trained
from edgese.graphs.opening import open_graph
from edgese.graphs.precision import Precision
from edgese.graphs.segments import Segments
from edgese.graphs.streaming import aligned_blocks
from export.bundle import Bundle

if TYPE_CHECKING:
    from typing_extensions import Self


_TAIL = 64  # samples beyond the end that the resampler may ask for


class Enhancer(Protocol):
    """Enhancer of a recording's blocks: a runtime here (`Denoiser`) or a board (edgese.board.denoiser)."""

    config: AudioConfig
    trained: bool

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def prepare(self, source: Path, name: str, stop: threading.Event) -> None: ...
    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]: ...


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
            yield np.zeros((_TAIL, n_channels), np.float32)
            return
        yield from aligned_blocks(blocks, stream, self._graph, n_channels, self.config.overlap, _TAIL)


def denoise(
    blocks: Iterable[Samples],
    rate_hz: int,
    n_channels: int,
    denoiser: Enhancer,
    atten_limit_db: float | None = None,
) -> Iterator[Samples]:
    """Enhanced sound of a stream of blocks at any rate: same length in all, aligned, cut into other blocks.

    Args:
        blocks: (n, n_channels) float32 in [-1, 1] at `rate_hz`.
        atten_limit_db: mix so much of the input in that nothing is attenuated by more: enhanced +
            10^(-limit / 20) * (input - enhanced). The input comes with all its frequencies.
    """
    dry_gain = 0.0 if atten_limit_db is None else 10.0 ** (-atten_limit_db / 20)
    dry = _Queue()
    model_hz = denoiser.config.sample_rate_hz
    noisy = resampled(dry.keep(blocks), rate_hz, model_hz, n_channels)
    lift = Lift(model_hz, n_channels)
    enhanced_blocks = lift.taken_back(denoiser.blocks(lift.raised(noisy), n_channels))
    for wet in resampled(enhanced_blocks, model_hz, rate_hz, n_channels):
        enhanced = wet[: dry.n_frames]  # behind the end, the network only answers the silence that drove it out
        if len(enhanced):
            clean = dry.take(len(enhanced))
            yield enhanced + np.float32(dry_gain) * (clean - enhanced) if dry_gain else enhanced
    assert dry.n_frames == 0, "the output is shorter than the input"


class _Queue:
    """Queue of input frames that wait for their enhanced ones."""

    def __init__(self) -> None:
        self._blocks: deque[Samples] = deque()
        self.n_frames = 0

    def keep(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self._blocks.append(block)
            self.n_frames += len(block)
            yield block

    def take(self, n_frames: int) -> Samples:
        """Remove and return the oldest frames, (n_frames, n_channels); at most `self.n_frames`."""
        self.n_frames -= n_frames
        taken = []
        while n_frames:
            block = self._blocks.popleft()
            taken.append(block[:n_frames])
            if len(block) > n_frames:
                self._blocks.appendleft(block[n_frames:])
            n_frames -= len(taken[-1])
        return np.concatenate(taken)
