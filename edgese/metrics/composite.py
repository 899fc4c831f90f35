"""CSIG, CBAK and COVL: predicted ratings, 1 to 5, of signal distortion, background and overall quality.

Regressions on three distances and PESQ, by Hu & Loizou (2008), "Evaluation of objective quality measures for speech
enhancement", IEEE TASLP 16(1). Coefficients and details are those of the authors' program `composite.m` (Loizou,
"Speech enhancement: theory and practice", its CD), with which the field's figures were made; the paper's own table has
other predictors. The authors fitted raw narrowband PESQ at 8 kHz; at 16 kHz, and in every figure published on
VoiceBank+DEMAND, wideband PESQ (MOS-LQO) stands in its place, and so it does here.

All distances are means over frames of 30 ms, a quarter apart, under a Hann window; of LLR and WSS the worst 5 % of the
frames are left out. Waves are float at 16 kHz, in time with each other and equally long.

Letters: n frames, K = 25 critical bands, P = 16 prediction order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import EdgeseError

Frames = NDArray[np.float64]

SAMPLE_RATE_HZ = 16_000
_WINDOW = np.hanning(480 + 2)[1:-1]  # 30 ms, without the two zeros at its ends
_HOP = len(_WINDOW) // 4
_KEPT = 0.95  # share of the frames that LLR and WSS are averaged over, the best ones
_ORDER = 16
_N_FFT = 1024
_SNR_RANGE_DB = (-10.0, 35.0)

# Centres and widths of the critical bands of `composite.m`; they end at 3.8 kHz, at 16 kHz, too.
_CENTRES_HZ = (
    *(50.0, 120.0, 190.0, 260.0, 330.0, 400.0, 470.0, 540.0, 617.372, 703.378, 798.717, 904.128, 1020.38),
    *(1148.30, 1288.72, 1442.54, 1610.70, 1794.16, 1993.93, 2211.08, 2446.71, 2701.97, 2978.04, 3276.17, 3597.63),
)
_WIDTHS_HZ = (
    *(70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 70.0, 77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914),
    *(140.423, 153.823, 168.154, 183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136),
)


class Ratings(NamedTuple):
    """Predicted opinion scores, each from 1 (bad) to 5 (excellent)."""

    csig: float
    cbak: float
    covl: float


def composite(clean: Wave, enhanced: Wave, pesq: float) -> Ratings:
    """Ratings of one recording whose PESQ is known.

    Raises:
        EdgeseError: shorter than two frames, or the clean recording is silent.
    """
    return ratings(
        pesq=pesq,
        llr=log_likelihood_ratio(clean, enhanced),
        wss=weighted_spectral_slope(clean, enhanced),
        snr_db=segmental_snr(clean, enhanced),
    )


def ratings(*, pesq: float, llr: float, wss: float, snr_db: float) -> Ratings:
    """Ratings by Hu & Loizou's regressions, as in `composite.m`."""
    csig = 3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss
    cbak = 1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * snr_db
    covl = 1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss
    return Ratings(*(min(max(rating, 1.0), 5.0) for rating in (csig, cbak, covl)))


def segmental_snr(clean: Wave, enhanced: Wave) -> float:
    """Mean over frames of the SNR in dB, each limited to [-10, 35] (Hansen & Pellom 1998); silence counts -10."""
    reference, error = _frames(clean), _frames(clean) - _frames(enhanced)
    tiny = np.finfo(np.float64).eps
    ratio = np.sum(reference**2, axis=1) / (np.sum(error**2, axis=1) + tiny)
    return float(np.clip(10 * np.log10(ratio + tiny), *_SNR_RANGE_DB).mean())


def log_likelihood_ratio(clean: Wave, enhanced: Wave) -> float:
    """LLR: misfit of the enhanced recording's linear prediction to the clean one, against its own; 0 is best.

    Quackenbush, Barnwell & Clements (1988), eq. 2.18: log(a_e' R a_e / a_c' R a_c), R the clean autocorrelation.
    Frames in which the clean recording is digitally silent have no envelope and are left out.
    """
    lags, enhanced_lags = _autocorrelation(_frames(clean)), _autocorrelation(_frames(enhanced))
    loud = lags[:, 0] > 0
    if not loud.any():
        raise EdgeseError("LLR cannot score this pair (the clean recording is silent)")
    lags, enhanced_lags = lags[loud], enhanced_lags[loud]
    own, other = (_prediction_error(lags, _predictor(of)) for of in (lags, enhanced_lags))
    return _mean_of_best(np.log(other / own))


def weighted_spectral_slope(clean: Wave, enhanced: Wave) -> float:
    """WSS: weighted squared difference of the slopes between critical bands, dB^2; 0 is best (Klatt 1982)."""
    levels, enhanced_levels = _band_levels(_frames(clean)), _band_levels(_frames(enhanced))
    weights = (_slope_weights(levels) + _slope_weights(enhanced_levels)) / 2
    difference = np.diff(levels, axis=1) - np.diff(enhanced_levels, axis=1)
    return _mean_of_best(np.sum(weights * difference**2, axis=1) / np.sum(weights, axis=1))


def _frames(wave: Wave) -> Frames:
    """Windowed frames, (n, 480); like `composite.m`, without the last one where it would end with the recording."""
    n_frames = (len(wave) - len(_WINDOW)) // _HOP
    if n_frames < 1:
        raise EdgeseError(f"found {len(wave)} samples, wanted at least {len(_WINDOW) + _HOP} to rate them")
    framed = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), len(_WINDOW))
    return np.asarray(framed[::_HOP][:n_frames] * _WINDOW)


def _mean_of_best(distances: Frames) -> float:
    n_kept = math.floor(len(distances) * _KEPT + 0.5)
    return float(np.sort(distances)[:n_kept].mean())


def _autocorrelation(frames: Frames) -> Frames:
    """Autocorrelation of each frame at lags 0 to P, (n, P + 1)."""
    size = frames.shape[1]
    return np.stack(
        [np.einsum("ns,ns->n", frames[:, : size - lag], frames[:, lag:]) for lag in range(_ORDER + 1)], axis=1
    )


def _predictor(lags: Frames) -> Frames:
    """Coefficients 1, -a_1, ... of the prediction error filter, (n, P + 1); of a silent frame: 1, 0, ..."""
    filters = np.zeros_like(lags)
    filters[:, 0] = 1
    loud = lags[:, 0] > 0
    normal = _toeplitz(lags[loud, :_ORDER])
    filters[loud, 1:] = -np.linalg.solve(normal, lags[loud, 1:, None])[..., 0]
    return filters


def _prediction_error(lags: Frames, filters: Frames) -> Frames:
    """Energy that these filters leave of frames with this autocorrelation, (n,)."""
    return np.asarray(np.einsum("ni,nij,nj->n", filters, _toeplitz(lags), filters))


def _toeplitz(lags: Frames) -> Frames:
    steps = np.arange(lags.shape[1])
    return np.asarray(lags[:, np.abs(steps[:, None] - steps)])


def _band_levels(frames: Frames) -> Frames:
    """Energy in critical bands, (n, K) dB, at least -100."""
    power = np.abs(np.fft.rfft(frames, _N_FFT)[:, :-1]) ** 2
    return np.asarray(10 * np.log10(np.maximum(power @ _band_filters().T, 1e-10)))


def _band_filters() -> Frames:
    """Gaussian filters of equal area, (K, n_fft / 2), cut off at -30 dB."""
    bins_per_hz = _N_FFT / SAMPLE_RATE_HZ
    centres = np.floor(np.array(_CENTRES_HZ) * bins_per_hz)[:, None]
    widths = np.array(_WIDTHS_HZ)[:, None]
    filters = np.exp(-11 * ((np.arange(_N_FFT // 2) - centres) / (widths * bins_per_hz)) ** 2) * widths[0] / widths
    return np.asarray(np.where(filters > math.exp(-30 / (2 * 2.303)), filters, 0))


def _slope_weights(levels: Frames) -> Frames:
    """Klatt's weights, (n, K - 1): large near the largest level of the frame and near a local peak."""
    slopes, lower = np.diff(levels, axis=1), levels[:, :-1]
    bands = np.arange(slopes.shape[1])
    rising = slopes > 0
    # Where it rises, the peak lies at the first later band from which it falls; `composite.m` takes the band before it.
    summit = np.minimum.accumulate(np.where(rising, len(bands), bands)[:, ::-1], axis=1)[:, ::-1]
    foot = np.maximum.accumulate(np.where(rising, bands, -1), axis=1)
    peaks = np.take_along_axis(levels, np.where(rising, summit - 1, foot + 1), axis=1)
    near_largest = 20 / (20 + levels.max(axis=1, keepdims=True) - lower)
    near_peak = 1 / (1 + peaks - lower)
    return np.asarray(near_largest * near_peak)
