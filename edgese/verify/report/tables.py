"""Words and numbers of a report: failures, a row for each graph, margins to the limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from edgese.verify.limits import LIMITS
from edgese.verify.report.drawing import MINUS

if TYPE_CHECKING:
    from edgese.verify.findings import Listener, Proof, Verification


# Numbers


def fixed(value: float | None, digits: int = 1, unit: str = "") -> str:
    """Number with `digits` decimals; a missing one as a dash, one that is not finite in words."""
    if value is None:
        return "\N{EN DASH}"
    if not math.isfinite(value):
        return _word(value)
    return f"{round(value, digits) + 0.0:.{digits}f}{unit and f' {unit}'}".replace("-", MINUS)


def signed(value: float | None, digits: int = 4) -> str:
    """Number with `digits` decimals and its sign; a missing one as a dash, zero without a sign."""
    text = fixed(value, digits)
    return f"+{text}" if value is not None and math.isfinite(value) and round(value, digits) > 0 else text


def scientific(value: float) -> str:
    """Number with two digits and an exponent, as the checks write it: 8.3e-07."""
    return (f"{value:.1e}" if value else "0") if math.isfinite(value) else _word(value)


def from_one(cosine: float) -> str:
    """Distance of a cosine from one; 0 where it is less than rounding makes."""
    return scientific(1 - cosine if not abs(1 - cosine) < 1e-15 else 0.0)


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite" if value > 0 else f"{MINUS}infinite"


# Tables

# What has a limit: its name, the limit's, whether it is a least value, how a value is written, its unit.
LIMITED: tuple[tuple[str, str, bool, Callable[[float], str], str], ...] = (
    ("SNR against PyTorch", "snr_db", True, fixed, " dB"),
    ("SNR against float64", "snr_db", True, fixed, " dB"),
    ("Difference of a sample", "max_abs", False, scientific, ""),
    ("Difference of a state, of its range", "state_relative", False, scientific, ""),
    ("SNR after hours, projected", "snr_db", True, fixed, " dB"),
    ("PESQ-WB lost, mean", "pesq_loss", False, signed, ""),
    ("STOI lost, mean", "stoi_loss", False, signed, ""),
)


@dataclasses.dataclass(frozen=True)
class Failure:
    """Check that does not hold, and the anchor where the page says more."""

    anchor: str
    where: str
    what: str
    found: str
    wanted: str


@dataclasses.dataclass(frozen=True)
class Row:
    """Table row of one graph in one runtime, and the anchor of its details."""

    anchor: str
    proof: Proof

    @property
    def n_passed(self) -> int:
        return sum(check.passed for check in self.proof.checks)

    @property
    def pesq_lost(self) -> float | None:
        return _lost(self.proof.listeners, "pesq") if self.proof.listeners else None

    @property
    def reason(self) -> str:
        """Reason why the graph was not streamed."""
        return "; ".join(check.found for check in self.proof.checks if not check.passed) or "nothing was tried"


@dataclasses.dataclass(frozen=True)
class Margin:
    """Nearness of the worst graph to a limit."""

    what: str
    limit: str
    worst: str
    where: str


def failures(verification: Verification) -> Iterator[Failure]:
    """Failures of a verification: every check that does not hold, and every absence of checks."""
    for check in verification.checks:
        if not check.passed:
            yield Failure("together", "Graphs together", check.name, check.found, check.wanted)
    for at, proof in enumerate(verification.proofs, 1):
        for check in proof.checks:
            if not check.passed:
                yield Failure(f"graph-{at}", proof.label, check.name, check.found, check.wanted)
        if not proof.checks:
            yield Failure(f"graph-{at}", proof.label, "checks", "none", "at least one")
    if not verification.proofs:
        yield Failure("summary", "The bundle", "graphs that were tried", "none", "at least one")


def margins(precision: str, proofs: Sequence[Proof]) -> list[Margin]:
    """Margins of one precision's worst graph to each limit; NaN is the worst of all."""
    measured = {proof.label: _measured(proof) for proof in proofs if proof.graph.precision == precision}
    rows = []
    for what, field, is_least, show, unit in LIMITED:
        limit = getattr(LIMITS[precision], field)
        shown = "none" if limit is None else f"{'≥' if is_least else '≤'} {limit:g}{unit}"
        badness = {
            label: math.inf if math.isnan(values[what]) else -values[what] if is_least else values[what]
            for label, values in measured.items()
            if what in values
        }
        if badness:
            where = max(badness, key=lambda label: badness[label])
            worst = measured[where][what]
            rows.append(Margin(what, shown, show(worst) + unit * math.isfinite(worst), where))
        else:
            rows.append(Margin(what, shown, "not measured", ""))
    return rows


def _measured(proof: Proof) -> dict[str, float]:
    """Measured values of one graph, by the names of `LIMITED`."""
    found: dict[str, float] = {}
    streamed = proof.streamed
    if streamed is not None:
        found |= {
            "SNR against PyTorch": streamed.wave.snr_db,
            "SNR against float64": streamed.wave_float64.snr_db,
            "Difference of a sample": streamed.wave.max_abs,
            "Difference of a state, of its range": _largest([error.relative for error in streamed.tensors[1:]]),
            "SNR after hours, projected": streamed.after_hours_db,
        }
    if proof.listeners:
        found |= {
            "PESQ-WB lost, mean": _lost(proof.listeners, "pesq"),
            "STOI lost, mean": _lost(proof.listeners, "stoi"),
        }
    return found


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def _lost(listeners: Sequence[Listener], score: str) -> float:
    """Mean loss of a score against PyTorch over the recordings."""
    lost: list[float] = [getattr(listener, f"{score}_pytorch") - getattr(listener, score) for listener in listeners]
    return sum(lost) / len(lost)


def scope(verification: Verification) -> str:
    """Sentence that says what was tried."""
    proofs, audio = verification.proofs, verification.bundle.manifest["audio"]
    runtimes = list(dict.fromkeys(proof.runtime for proof in proofs))
    n_graphs = len({proof.graph.file for proof in proofs})
    n_hops = max((proof.streamed.n_hops for proof in proofs if proof.streamed), default=0)
    seconds = n_hops * audio["hop"] / audio["sample_rate_hz"]
    length = f"{seconds / 60:.1f} min" if seconds > 3 * 60 else f"{seconds:.0f} s"
    n_scored = max((len(proof.listeners) for proof in proofs), default=0)
    way, tried = "streamed with carried state", "reset, several streams, causality, delay and extremes"
    if verification.not_tried:
        way, tried = "in segments", "seams, several streams and extremes"
    left_out = f" Not tried, as the network is not causal: {', '.join(verification.not_tried)}."
    return (
        f"{_several(n_graphs, 'graph')} in {' and '.join(runtimes) or 'no runtime'}, each against PyTorch in float32 "
        f"and in float64: {f'{length} ({n_hops:,} hops)' if n_hops else 'nothing'} {way}, "
        f"{_several(n_scored, 'recording')} scored by PESQ and STOI, and trials of {tried}."
        f"{left_out if verification.not_tried else ''}"
    )


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"
