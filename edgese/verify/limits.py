"""Limits that a graph of each precision must meet to be shipped, with the measurement behind each."""

from __future__ import annotations

import dataclasses

VERIFICATION_HOPS = 3000  # 24 s: what an export is verified over, and what PyTorch takes at a time


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits that a graph of one precision must meet to be shipped; None: no limit is set."""

    max_abs: float | None  # largest difference of a sample
    snr_db: float  # of PyTorch's output over the difference: of all, of each tenth, and after ten hours
    state_relative: float | None  # largest difference of a state over the state's largest value
    pesq_loss: float  # of PESQ-WB against PyTorch's, mean over recordings
    stoi_loss: float
    reason: str


_INT8 = Limits(
    max_abs=None,
    snr_db=20.0,
    state_relative=None,
    pesq_loss=0.05,
    stoi_loss=0.005,
    reason="0.05 PESQ is what INT8 may cost. 8 bits in all products gave 30 to 34 dB on the shipped network; what is "
    "below 20 dB is no rounding. A wrong scale may stay above: scales are also compared with the manifest's ranges",
)

LIMITS = {
    "fp32": Limits(
        max_abs=1e-5,
        snr_db=100.0,
        state_relative=1e-3,
        pesq_loss=0.002,
        stoi_loss=0.0005,
        reason="Another order of sums, no more: the shipped network gave 2e-6, 116 dB, no drift "
        "over ten minutes, a PESQ that differs by less than 0.0005 (benchmarks/RESULTS.md); 16 dB are left for others",
    ),
    "fp16": Limits(
        max_abs=None,
        snr_db=40.0,
        state_relative=None,
        pesq_loss=0.01,
        stoi_loss=0.002,
        reason="40 dB and 0.01 PESQ are what FP16 may cost. 11 bits of mantissa in the products give 60 to 90 dB; a "
        "recurrence in FP16 falls to 22 to 58 dB within 3,000 hops, which the drift shows",
    ),
    "int8": _INT8,
    "int8-cpu": _INT8,
}
