"""What an enhanced recording is worth: PESQ, STOI and SI-SDR against the clean one.

PESQ: ITU-T P.862.2 (wideband) and P.862.1 (narrowband), package `pesq`. STOI: Taal et al. 2011, extended: Jensen &
Taal 2016, package `pystoi`. SI-SDR: Le Roux et al. 2019, eq. 6. All take float waves at 16 kHz, in time with each
other and equally long.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from edgese.errors import EdgeseError

Wave = NDArray[np.float32]

SAMPLE_RATE_HZ = 16_000
NAMES = ("pesq_wb", "stoi", "si_sdr_db")
_MISSING = "{} is missing: pip install 'edgese[metrics]'"


def pesq_wb(clean: Wave, enhanced: Wave) -> float:
    """Wideband PESQ, a listening quality of 1.04 to 4.64 (MOS-LQO).

    Raises:
        EdgeseError: the package is missing, or PESQ finds no utterance or no sound.
    """
    try:
        import pesq
    except ImportError as error:
        raise EdgeseError(_MISSING.format("pesq")) from error
    if not (clean.any() and enhanced.any()):
        raise EdgeseError("PESQ cannot score this pair (one of them is silent, and it divides by the level)")
    try:
        return float(pesq.pesq(SAMPLE_RATE_HZ, clean, enhanced, "wb"))
    except pesq.PesqError as error:
        raise EdgeseError(f"PESQ cannot score this pair ({type(error).__name__}: {error})") from error


def stoi(clean: Wave, enhanced: Wave) -> float:
    """Short-time objective intelligibility, 0 to 1.

    Raises:
        EdgeseError: the package is missing, or less than 0.4 s is not silent.
    """
    try:
        import pystoi
    except ImportError as error:
        raise EdgeseError(_MISSING.format("pystoi")) from error
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it would go on and answer 1e-5
        try:
            return float(pystoi.stoi(clean, enhanced, SAMPLE_RATE_HZ))
        except RuntimeWarning as error:
            raise EdgeseError(f"STOI cannot score this pair ({error})") from error


def si_sdr(clean: Wave, enhanced: Wave) -> float:
    """Scale-invariant signal-to-distortion ratio in dB; means are removed first."""
    target = clean.astype(np.float64) - clean.mean(dtype=np.float64)
    estimate = enhanced.astype(np.float64) - enhanced.mean(dtype=np.float64)
    projected = target * (estimate @ target) / (target @ target + 1e-12)
    rest = estimate - projected
    return float(10 * np.log10((projected @ projected + 1e-12) / (rest @ rest + 1e-12)))


def snr_db(reference: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Energy of `reference` over that of the difference, in dB; infinite where they are equal."""
    difference = reference.astype(np.float64) - other.astype(np.float64)
    energy = float(np.sum(difference**2))
    return float("inf") if energy == 0 else float(10 * np.log10(np.sum(reference.astype(np.float64) ** 2) / energy))


def all_scores(clean: Wave, enhanced: Wave) -> dict[str, float]:
    """Every metric by its name in `NAMES`."""
    return {
        "pesq_wb": pesq_wb(clean, enhanced),
        "stoi": stoi(clean, enhanced),
        "si_sdr_db": si_sdr(clean, enhanced),
    }
