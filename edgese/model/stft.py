"""Short-time Fourier transform with causal framing: one definition for NumPy, PyTorch and the exported graph.

A frame holds `n_fft` samples and ends with the hop it is named after: frame t covers samples
(t + 1) * hop - n_fft ... (t + 1) * hop - 1, and the stream starts from zeros. Analysis and synthesis both use the
periodic square-root Hann window, whose squares add up to n_fft / (2 * hop) at every sample (Allen & Rabiner 1977,
weighted overlap-add). Overlap-add completes a hop only n_fft - hop samples later: the output runs that far behind.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgese.config import AudioConfig

FloatArray = NDArray[np.float64]


def window(config: AudioConfig) -> FloatArray:
    """Periodic square-root Hann window, (n_fft,) float64 in [0, 1]."""
    half_sine: FloatArray = np.sin(np.pi * np.arange(config.n_fft) / config.n_fft)
    return half_sine


def synthesis_scale(config: AudioConfig) -> float:
    """Factor that gives overlap-added frames, windowed twice, unit gain."""
    return 2.0 * config.hop / config.n_fft


def stft(wave: NDArray[np.floating], config: AudioConfig) -> NDArray[np.complexfloating]:
    """Complex spectrum of a waveform.

    Args:
        wave: (n_samples,) in [-1, 1]; the last hop is filled up with zeros.

    Returns:
        (T, F) complex, T = ceil(n_samples / hop), of the precision that wave has.
    """
    n_frames = -(-len(wave) // config.hop)
    padded = np.zeros(config.overlap + n_frames * config.hop, dtype=wave.dtype)
    padded[config.overlap : config.overlap + len(wave)] = wave
    frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop]
    return np.fft.rfft(frames * window(config).astype(wave.dtype), axis=-1)


def istft(spectrum: NDArray[np.complexfloating], config: AudioConfig) -> NDArray[np.floating]:
    """Waveform of a spectrum, aligned with the waveform that `stft` was given.

    Args:
        spectrum: (T, F) complex.

    Returns:
        (T * hop - overlap,) samples: the last `overlap` samples would need frames that are not there.
    """
    frames = np.fft.irfft(spectrum, config.n_fft, axis=-1)
    frames = frames * (window(config) * synthesis_scale(config)).astype(frames.dtype)
    wave = np.zeros((len(frames) - 1) * config.hop + config.n_fft, dtype=frames.dtype)
    for index, frame in enumerate(frames):
        wave[index * config.hop : index * config.hop + config.n_fft] += frame
    return wave[config.overlap : len(frames) * config.hop]
