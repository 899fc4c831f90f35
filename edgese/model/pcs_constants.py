"""Exponents and constants of perceptual contrast stretching (pcs.py says what it is), for PyTorch and for C.

Values and scale were checked against the authors' code (github.com/RoyChao19477/PCS, PCS/PCS.py).
"""

from __future__ import annotations

import numpy as np

from edgese.config import AudioConfig
from edgese.model import stft as features

# Lower edge in Hz of each stretch of bins, and its importance to intelligibility in thousandths: the critical bands of
# ANSI S3.5-1997, table 1 (edges at 100, 200, 300, 400, 4400, 5300, 6400, 7700 Hz; 10.3, 26.1, 41.9, 57.7, 46.0, 34.3,
# 22.6, 11.0), as the authors rounded them to bins of 31.25 Hz. The bin at 8 kHz is not stretched, as in their code.
# The 201-bin table of SEMamba (Chao et al. 2024, models/pcs400.py) has the same exponents from nearly the same edges.
IMPORTANCE = (
    *((0.0, 0), (93.75, 10), (187.5, 26), (281.25, 41), (375.0, 57)),
    *((4312.5, 46), (5187.5, 34), (6250.0, 23), (7531.25, 11), (8000.0, 0)),
)
STRETCH = 0.4  # of the most important bins

HAMMING_SUM = 0.54 * 512 - 0.46  # of the authors' window (symmetric): twice what a sine of amplitude 1 has at its bin

# Lets a tone at -13.5 dBFS keep its level. Without it the map brings speech that peaks at full scale to 3 on average;
# with it, to 0.78, and one of 40 noisy recordings beyond 1 (1.04; the evaluation pairs, each scaled to a peak of 1).
OUTPUT_GAIN = 0.25

# Below this |X| (a tone at -103 dBFS) the gain is held, and the map is linear. FP32 knows 1 + |X| to 6e-8 only, so that
# expm1 and log1p made of exp and log would err by 1e-7 / |X|; held, the gain is within 3e-4 (0.003 dB) everywhere.
FLOOR = 1e-3


def exponents(config: AudioConfig) -> features.FloatArray:
    """Exponent g of each bin, (F,) float64 in [1, 1.4]."""
    bins_hz = np.arange(config.n_bins) * config.sample_rate_hz / config.n_fft
    edges_hz, importance = np.array(IMPORTANCE).T
    share = importance[np.searchsorted(edges_hz, bins_hz, side="right") - 1] / importance.max()
    stretched: features.FloatArray = 1.0 + STRETCH * share
    return stretched


def scale(config: AudioConfig) -> float:
    """Factor that brings a magnitude of `features.stft` to the scale of the authors' transform, by a tone."""
    return float(HAMMING_SUM / features.window(config).sum())
