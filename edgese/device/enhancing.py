"""Enhancement of a WAV on the board: same length and format, aligned, in constant memory; channels as streams."""

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
from edgese.errors import AudioError, OutputError
from edgese.graphs.engines import TENSORRT, EngineFolder, OnMessage, open_exported
from edgese.graphs.streaming import aligned_blocks
from export.bundle import Graph
from runtimes.base import Stream


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
    replace: bool = False,
    on_message: OnMessage = lambda line: None,
) -> Enhanced:
    """Enhance `source`; `target` appears whole or not at all.

    Raises:
        AudioError: what `WavReader` refuses, another rate than the network's, an output that exists or cannot be
            written, sound that makes the network give NaN.
        ExportError, RuntimeUnavailable: the graph cannot be opened or run.
    """
    rate_hz = content.audio.sample_rate_hz
    with WavReader(source) as reader:
        info = reader.info
        if info.sample_rate_hz != rate_hz:
            raise AudioError(
                f"{shown(source)}: found {info.sample_rate_hz} Hz, wanted {rate_hz}: resample it, "
                f"as in: ffmpeg -i INPUT -ar {rate_hz} OUTPUT.wav"
            )
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
            began, left = time.perf_counter(), info.n_frames
            stream = opened.stream(graph.states, streams=info.n_channels)
            with WavWriter(target, info, mode=stat.S_IMODE(source.stat().st_mode)) as writer:
                for block in _enhanced(content, reader.blocks(), stream, graph, info.n_channels):
                    if not np.isfinite(block).all():
                        raise AudioError(f"{shown(source)}: the network gave NaN or Inf: lower the input's level")
                    writer.write(block[:left])
                    left -= len(block[:left])
                assert left == 0, "the output is shorter than the input"
                writer.publish(replace=replace)
                seconds = time.perf_counter() - began
    return Enhanced(info.duration_s, seconds, info.n_channels, writer.n_clipped, reader.silent)


def _enhanced(
    content: Content, blocks: Iterable[Samples], stream: Stream, graph: Graph, n_channels: int
) -> Iterator[Samples]:
    """Enhanced blocks aligned with those that come in, and some silence after their end."""
    segments = content.segments
    if segments is None:
        return aligned_blocks(blocks, stream, graph, n_channels, content.audio.overlap_samples)
    return segments.joined(blocks, n_channels, lambda segment: stream({"wave": segment})["enhanced"])
