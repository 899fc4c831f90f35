"""Enhancement of a WAV on the board, by the way that sound takes on a desk (edgese/enhance/signal_path.py).

Any rate; same length and format, aligned, in constant memory; channels as streams.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from edgese.atomic_file import shown
from edgese.audio import Samples
from edgese.device.content import Content
from edgese.device.wav import WavReader, WavWriter
from edgese.enhance.signal_path import RESAMPLER_TAIL, denoise
from edgese.errors import AudioError, OutputError
from edgese.graphs.audio_facts import AudioFacts
from edgese.graphs.engines import TENSORRT, EngineFolder, OnMessage, open_exported
from edgese.graphs.streaming import aligned_blocks
from export.bundle import Graph
from runtimes.base import Runtime


@dataclasses.dataclass(frozen=True)
class Enhanced:
    """Facts of an enhanced file: duration, processing time, channels, clipped samples."""

    duration_s: float
    processing_s: float  # reading, network and writing together; opening the graph is not in it
    n_channels: int
    n_clipped: int
    silent: bool  # nothing but zeros came in, and went out

    @property
    def rtf(self) -> float:
        """Seconds of processing for a second of sound."""
        return self.processing_s / self.duration_s


def enhance_wav(
    content: Content,
    graph: Graph,
    runtime: str,
    source: Path,
    target: Path,
    engines: EngineFolder,
    *,
    narrow: bool = False,
    replace: bool = False,
    on_message: OnMessage = lambda line: None,
) -> Enhanced:
    """Enhance `source`; `target` appears whole or not at all.

    Args:
        narrow: leave out what lies above the network's band.

    Raises:
        AudioError: what `WavReader` refuses, an output that exists or cannot be written, sound that makes the network
            give NaN.
        ExportError, RuntimeUnavailable: the graph cannot be opened or run.
    """
    with WavReader(source) as reader:
        info = reader.info
        if runtime == TENSORRT and info.n_channels > engines.streams:
            raise AudioError(
                f"{shown(source)}: found {info.n_channels} channels, the engines take {engines.streams}: "
                f"build them for more (--most {info.n_channels})"
            )
        if os.path.lexists(target) and not replace:
            raise OutputError(
                f"{shown(target)}: exists already; choose another name or allow it to be replaced (--force)"
            )
        with open_exported(
            content.bundle, graph, runtime, engines, metadata=content.metadata(graph), on_message=on_message
        ) as opened:
            began = time.perf_counter()
            enhancer = _Opened(content, graph, opened)
            with WavWriter(target, info, mode=stat.S_IMODE(source.stat().st_mode)) as writer:
                for block in denoise(reader.blocks(), info.sample_rate_hz, info.n_channels, enhancer, narrow=narrow):
                    if not np.isfinite(block).all():
                        raise AudioError(f"{shown(source)}: the network gave NaN or Inf: lower the input's level")
                    writer.write(block)
                writer.publish(replace=replace)
                seconds = time.perf_counter() - began
    return Enhanced(info.duration_s, seconds, info.n_channels, writer.n_clipped, reader.silent)


class _Opened:
    """A graph that is open in a runtime, as the enhancer of blocks at its rate."""

    def __init__(self, content: Content, graph: Graph, runtime: Runtime) -> None:
        self.config: AudioFacts = content.audio
        self._segments, self._graph, self._runtime = content.segments, graph, runtime

    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]:
        stream = self._runtime.stream(self._graph.states, streams=n_channels)
        if self._segments is None:
            overlap = self.config.overlap_samples
            yield from aligned_blocks(blocks, stream, self._graph, n_channels, overlap, RESAMPLER_TAIL)
            return
        yield from self._segments.joined(blocks, n_channels, lambda segment: stream({"wave": segment})["enhanced"])
        yield np.zeros((RESAMPLER_TAIL, n_channels), np.float32)
