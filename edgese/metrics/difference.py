"""Differences between arrays, for all verdicts: SNR, largest difference, angle, and the limits that are broken.

Absence of a difference is not assumed: other shapes raise or are infinitely far; NaN and Inf are counted and make every
figure NaN, so that no comparison with a limit holds. NumPy alone is needed: boards measure with it too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import VerificationError


@dataclasses.dataclass(frozen=True)
class TensorError:
    """Difference of one tensor from the one that was wanted."""

    tensor: str
    max_abs: float
    mean_abs: float
    relative: float  # largest difference over the largest value that was wanted
    cosine: float  # of the angle between both as vectors; 1 where both are zero
    n_bad: int  # values that are NaN or Inf


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of a wave with the one that was wanted, and the limits that it breaks; NaN: not comparable."""

    snr_db: float  # infinite where they are equal
    max_abs: float  # largest difference of a sample
    failures: tuple[str, ...]


def snr_db(reference: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Energy of `reference` over that of the difference, in dB; infinite where they are equal."""
    difference = reference.astype(np.float64) - other.astype(np.float64)
    energy = float(np.sum(difference**2))
    return float("inf") if energy == 0 else float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / energy))


def largest_value(array: NDArray[Any]) -> float:
    """Largest finite value, without its sign."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def largest_difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Largest difference; infinite for another shape, and where one is not finite and the other is not the same."""
    if wanted.shape != found.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        difference = np.where(wanted == found, 0.0, np.abs(found - wanted))
    most = float(difference.max(initial=0.0))
    return math.inf if math.isnan(most) else most


def relative_difference(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Largest difference over the largest value that was wanted, or over 1 where nothing but zeros was."""
    return largest_difference(wanted, found) / (largest_value(wanted) or 1.0)


def tensor_error(tensor: str, wanted: NDArray[Any], found: NDArray[Any]) -> TensorError:
    """Difference of one tensor from the one that was wanted, taken in float64.

    Raises:
        VerificationError: other shapes, or nothing to compare.
    """
    if wanted.shape != found.shape or not wanted.size:
        raise VerificationError(f"{tensor}: found shape {found.shape}, wanted {wanted.shape} and at least one value")
    n_bad = int(np.count_nonzero(~np.isfinite(found)))
    if n_bad:
        return TensorError(tensor, math.nan, math.nan, math.nan, math.nan, n_bad)
    a, b = wanted.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    difference = np.abs(b - a)
    largest, lengths = float(np.abs(a).max()), float(np.linalg.norm(a) * np.linalg.norm(b))
    max_abs = float(difference.max())
    return TensorError(
        tensor,
        max_abs=max_abs,
        mean_abs=float(difference.mean()),
        relative=max_abs / largest if largest else (math.inf if max_abs else 0.0),
        cosine=float(a @ b) / lengths if lengths else float(not (a.any() or b.any())),
        n_bad=0,
    )


def agreement(wanted: Wave, found: Wave, *, least_snr_db: float, most_abs: float | None) -> Agreement:
    """Agreement of a wave with the one that was wanted; what is missing, silent or not finite is a failure.

    Args:
        wanted: (n_samples,), not silent.
        least_snr_db: limit of the SNR.
        most_abs: limit of a sample's difference; None: any.
    """
    if found.shape != wanted.shape or not len(wanted):
        least = "" if len(wanted) else " and at least one sample"
        return Agreement(math.nan, math.nan, (f"found shape {found.shape}, wanted {wanted.shape}{least}",))
    if not np.isfinite(found).all():
        return Agreement(math.nan, math.nan, ("NaN or Inf",))
    if not wanted.any():
        return Agreement(math.nan, math.nan, ("PyTorch's is silent, nothing was compared",))
    ratio_db, max_abs = snr_db(wanted, found), largest_difference(wanted, found)
    failures = []
    if most_abs is not None and not max_abs <= most_abs:
        failures.append(f"differs by up to {max_abs:.2g}, limit {most_abs:.0e}")
    if not ratio_db >= least_snr_db:
        failures.append(f"SNR {ratio_db:.1f} dB, limit {least_snr_db:.0f} dB")
    return Agreement(ratio_db, max_abs, tuple(failures))
