"""A graph streamed over recordings and heard by PESQ, in a process of its own."""

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
    """A graph's file, what it takes and gives, by how much its output runs behind, and what it is to enhance."""

    path: Path
    graph: Graph
    overlap: int
    recordings: tuple[Recording, ...]


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a graph made of a recording, in time with it, and its PESQ-WB against the clean one."""

    wave: NDArray[np.float32]
    pesq: float


def score_graph(task: ScoringTask) -> tuple[Scored, ...]:
    """What the graph makes of each recording, in ONNX Runtime.

    Raises:
        EdgeseError: a recording that PESQ cannot score.
        RuntimeUnavailable: the graph cannot be opened or run.
    """
    with open_runtime("onnxruntime", task.path) as opened:
        waves = [aligned(opened, task.graph, recording.noisy, task.overlap) for recording in task.recordings]
    return tuple(Scored(wave, pesq_wb(r.clean, wave)) for wave, r in zip(waves, task.recordings, strict=True))


def died(task: ScoringTask) -> tuple[Scored, ...]:
    """For `in_processes`: what to do where one ended its process."""
    raise VerificationError(f"{task.path.name}: the process that heard it died (no memory left, or PESQ's C program)")
