"""Drift of a stream: whether its distance from PyTorch stays bounded, judged from minutes for ten hours.

Rounding enters a state at every hop and leaves it as fast as the state forgets. Where all states forget, the distance
settles once the slowest has been filled (here: in some minutes). Where one does not, or hardly does, the errors add up:
independent ones as a random walk, whose energy grows with time (SNR -10 dB a decade of time), equal ones in a straight
line (-20 dB a decade). Over the logarithm of time, both are straight lines in dB, and so is the one that is fitted here
to the second half of a stream, when the states have been filled. It is followed to ten hours; where the stream is
shorter than six minutes, to a hundred times its length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_HORIZON_H = 10.0
_MOST_TIMES = 100.0  # its length, that a stream vouches for
_STUDENT_T = 2.353  # one-sided 95 % quantile at 3 degrees of freedom: five tenths, a line of two parameters
_EQUAL_DB = 300.0  # stands for tenths that are equal, bit for bit


def horizon_h(seconds: float) -> float:
    """Hours that a stream of this length is followed to."""
    return min(_HORIZON_H, _MOST_TIMES * seconds / 3600)


def projected_db(tenths_db: Sequence[float], seconds: float) -> float:
    """SNR after `horizon_h` hours, if it goes on falling along the logarithm of time as in the last five tenths.

    A fall counts as far as the tenths prove it: the slope is the upper end of its 95 % interval, and a rise counts as
    none. NaN where a tenth is NaN.

    Args:
        tenths_db: SNR in each tenth of a stream in which all tenths are of the same sound; infinite: no difference.
        seconds: length of the stream.
    """
    if any(math.isnan(tenth_db) for tenth_db in tenths_db):
        return math.nan
    n_tenths, first = len(tenths_db), len(tenths_db) // 2
    values = np.minimum(tenths_db[first:], _EQUAL_DB)
    centres = np.log10((np.arange(first, n_tenths) + 0.5) * seconds / n_tenths)
    deviations = centres - centres.mean()
    slope = float(deviations @ values / (deviations @ deviations))  # dB a decade
    rest = values - values.mean() - slope * deviations
    error = math.sqrt(float(rest @ rest) / (len(values) - 2) / float(deviations @ deviations))
    proven = min(0.0, slope + _STUDENT_T * error)
    ahead = max(0.0, math.log10(3600 * horizon_h(seconds)) - float(centres[-1]))  # decades
    return float(values.mean() + slope * deviations[-1] + proven * ahead)
