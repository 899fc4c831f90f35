"""How far arrays are from what they should be: tensors by difference and direction, waveforms by what remains.

Absence of a difference is not assumed: other shapes raise; NaN and Inf are counted and make every figure NaN, so that
no comparison with a limit holds.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import EdgeseError, VerificationError
from edgese.metrics.scores import log_spectral_distance, si_sdr, snr_db


@dataclasses.dataclass(frozen=True)
class TensorError:
    """One tensor against the one that was wanted."""

    tensor: str
    max_abs: float
    mean_abs: float
    relative: float  # largest difference over the largest value that was wanted
    cosine: float  # of the angle between both as vectors; 1 where both are zero
    n_bad: int  # values that are NaN or Inf


@dataclasses.dataclass(frozen=True)
class WaveError:
    """One waveform against the one that was wanted."""

    max_abs: float
    snr_db: float  # infinite where they are equal
    si_sdr_db: float
    lsd_db: float  # log-spectral distance, see metrics.py


def tensor_error(tensor: str, wanted: NDArray[Any], found: NDArray[Any]) -> TensorError:
    """Compares in float64.

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


def wave_error(wanted: Wave, found: Wave) -> WaveError:
    """Compares waveforms of one length at 16 kHz.

    Raises:
        VerificationError: other lengths, or the wanted one is silent or shorter than 32 ms.
    """
    error = tensor_error("waveform", wanted, found)
    if error.n_bad:
        return WaveError(math.nan, math.nan, math.nan, math.nan)
    try:
        distance_db = log_spectral_distance(wanted, found)
    except EdgeseError as reason:
        raise VerificationError(f"waveform: nothing to compare with: {reason}") from reason
    return WaveError(error.max_abs, snr_db(wanted, found), si_sdr(wanted, found), distance_db)
