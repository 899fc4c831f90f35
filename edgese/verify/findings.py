"""Findings of a verification: checks, long streams, scores, and the verdict with all that is needed to repeat it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.metrics.difference import TensorError
from edgese.metrics.pairs import Recording
from edgese.metrics.scores import WaveError
from edgese.verify.limits import LIMITS
from export.bundle import Bundle, Graph


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of one check: what was found, what was wanted, and whether it holds."""

    name: str
    passed: bool
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.name}: found {self.found}, wanted {self.wanted}"


@dataclasses.dataclass(frozen=True)
class Listener:
    """PESQ and STOI of PyTorch's output and of the graph's for one recording, both against the clean one."""

    file: str
    pesq_pytorch: float
    pesq: float
    stoi_pytorch: float
    stoi: float


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Differences of the long stream from PyTorch's output for the same sound, and the duration of its calls."""

    n_hops: int
    tensors: tuple[TensorError, ...]  # output and states against PyTorch in float32, after all hops
    tensors_float64: tuple[TensorError, ...]  # the same against float64, after the first 3,000
    wave: WaveError
    wave_float64: WaveError
    pytorch_float64: WaveError  # PyTorch's own distance from float64
    tenths_db: tuple[float, ...]  # SNR against PyTorch in each tenth; all tenths are of the same sound
    after_hours_db: float  # SNR that these let expect after ten hours at most (drift.py)
    difference_dbfs: NDArray[np.float64]  # level of the difference from PyTorch, second by second
    call_s: NDArray[np.float64]  # what each call took; not measured with care, that is what `bench` is for


@dataclasses.dataclass(frozen=True)
class Proof:
    """Findings about one graph in one runtime; what could not be run is None, and a check says why."""

    graph: Graph
    runtime: str
    checks: tuple[Check, ...]
    streamed: Streamed | None = None
    listeners: tuple[Listener, ...] = ()
    excerpt: Wave | None = None  # what it made of the first recording, aligned with it

    @property
    def label(self) -> str:
        return f"{self.graph.file} in {self.runtime}"

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


@dataclasses.dataclass(frozen=True)
class Verification:
    """Verdict on a bundle, with all that is needed to judge or repeat it."""

    bundle: Bundle
    minutes: float
    checks: tuple[Check, ...]  # of graphs together
    proofs: tuple[Proof, ...]
    recordings: tuple[Recording, ...]
    pytorch: Mapping[str, Wave]  # a graph's variant -> PyTorch's version of the first recording
    provenance: Mapping[str, Any]
    not_tried: tuple[str, ...] = ()  # checks that mean nothing for this network, which is not causal

    @property
    def passed(self) -> bool:
        return bool(self.proofs) and all(check.passed for check in self.checks) and all(p.passed for p in self.proofs)

    @property
    def failures(self) -> tuple[str, ...]:
        """Lines for the checks that do not hold, one each, and for graphs that were not checked."""
        checks = [("", check) for check in self.checks] + [(f"{p.label}: ", c) for p in self.proofs for c in p.checks]
        unchecked = [f"{proof.label}: nothing was checked" for proof in self.proofs if not proof.checks]
        failed = (*(f"{where}{check}" for where, check in checks if not check.passed), *unchecked)
        return failed if self.proofs else (*failed, "no graph was tried")

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON: no samples, and what is not finite as a string."""
        entry: dict[str, Any] = _plain(
            {
                "bundle": self.bundle.path.name,
                "passed": self.passed,
                "failures": self.failures,
                "minutes": self.minutes,
                "checks": [dataclasses.asdict(check) for check in self.checks],
                "not_tried": list(self.not_tried),
                "graphs": [_proof_entry(proof) for proof in self.proofs],
                "limits": {name: dataclasses.asdict(limits) for name, limits in LIMITS.items()},
                "provenance": dict(self.provenance),
            }
        )
        return entry


def _proof_entry(proof: Proof) -> dict[str, Any]:
    streamed = proof.streamed
    entry: dict[str, Any] = {
        "graph": proof.graph.file,
        "runtime": proof.runtime,
        "passed": proof.passed,
        "checks": [dataclasses.asdict(check) for check in proof.checks],
        "listeners": [dataclasses.asdict(listener) for listener in proof.listeners],
    }
    if streamed is not None:
        fields = ("n_hops", "tenths_db", "after_hours_db")
        entry |= {name: getattr(streamed, name) for name in fields}
        entry |= {
            name: dataclasses.asdict(getattr(streamed, name)) for name in ("wave", "wave_float64", "pytorch_float64")
        }
        entry |= {
            name: [dataclasses.asdict(error) for error in getattr(streamed, name)]
            for name in ("tensors", "tensors_float64")
        }
    return entry


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
