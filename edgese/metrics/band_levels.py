"""Level of speech by octave band, against the clean recording: the equaliser that an enhancer is without meaning to be.

Neither PESQ, which compensates linear filters, nor a ratio of energies, which the low bands decide, shows that an
enhancer makes speech dull. Bands are the octaves of IEC 61260-1:2014 (base ten) that a rate of 16 kHz holds; the
highest ends at 8 kHz instead of 11.2.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import EdgeseError

SAMPLE_RATE_HZ = 16_000
CENTRES_HZ = (125, 250, 500, 1000, 2000, 4000, 8000)  # nominal ones
_FRAME, _HOP = 1024, 256  # 64 ms: of the lowest octave, 88 to 177 Hz, six bins
_SPEAKS = 10**-2.5  # a frame holds speech in a band whose clean energy lies within 25 dB of the band's loudest frame
_FLOOR = 1e-8  # of the clean recording's energy in all bands: where a band is empty in both, its level is right


def band_levels_db(clean: Wave, enhanced: Wave) -> tuple[float, ...]:
    """Level of the enhanced speech over that of the clean, in dB, in the octaves around `CENTRES_HZ`; 0 is best.

    Energies are summed over the frames in which the clean recording speaks in that band. Both waves are at 16 kHz, in
    time with each other and equally long; a change of level by g dB is g dB in every band.

    Raises:
        EdgeseError: shorter than a frame of 64 ms, or the clean recording is silent.
    """
    if len(clean) < _FRAME:
        raise EdgeseError(f"band levels: found {len(clean)} samples, wanted at least {_FRAME}")
    wanted, found = _energies(clean), _energies(enhanced)
    speaks = wanted > _SPEAKS * wanted.max(axis=0)
    wanted, found = (np.sum(energies * speaks, axis=0) for energies in (wanted, found))
    if not wanted.any():
        raise EdgeseError("band levels: found a clean recording that is silent, wanted speech")
    floor = _FLOOR * wanted.sum()
    return tuple((10 * np.log10((found + floor) / (wanted + floor))).tolist())


def _energies(wave: Wave) -> NDArray[np.float64]:
    """Energy by frame and octave, (n_frames, len(CENTRES_HZ))."""
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), _FRAME)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_FRAME + 1)[:-1])) ** 2
    exact = 1000 * 10 ** (0.3 * np.arange(-3, 4))  # the centres that the nominal ones stand for
    edges = np.append(exact * 10**-0.15, SAMPLE_RATE_HZ / 2)
    first = np.round(edges * _FRAME / SAMPLE_RATE_HZ).astype(int)
    return np.stack([power[:, low:high].sum(axis=1) for low, high in itertools.pairwise(first)], axis=1)
