"""Streaming of a graph over recordings and its PESQ, in a process of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgese.errors import VerificationError
from edgese.graphs.streaming import aligned
from edgese.metrics.pairs import Recording
from edgese.metrics.scores import pesq_wb
from export.bundle import Graph
from runtimes.registry import open_runtime


@dataclasses.dataclass(frozen=True)
class ScoringTask:
    """Task of scoring one graph: its file, inputs and outputs, the delay of its output (samples), and recordings."""

    path: Path
    graph: Graph
    overlap: int
    recordings: tuple[Recording, ...]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Output of a graph for one recording, aligned with it, and its PESQ-WB against the clean one."""

    wave: NDArray[np.float32]
    pesq: float


def score_graph(task: ScoringTask) -> tuple[Scored, ...]:
    """Output and PESQ-WB of a graph for each recording, in ONNX Runtime.

    Raises:
        EdgeseError: a recording that PESQ cannot score.
        RuntimeUnavailable: the graph cannot be opened or run.
    """
    with open_runtime("onnxruntime", task.path) as opened:
        waves = [aligned(opened, task.graph, recording.noisy, task.overlap) for recording in task.recordings]
    return tuple(Scored(wave, pesq_wb(r.clean, wave)) for wave, r in zip(waves, task.recordings, strict=True))


def died(task: ScoringTask) -> tuple[Scored, ...]:
    """Raise for a task that ended its process, for `in_processes`."""
    raise VerificationError(f"{task.path.name}: the process that scored it died (no memory left, or PESQ's C program)")
