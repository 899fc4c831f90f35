"""The folded DFT against NumPy's, bin by bin, and what it saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgese.model.dft import FoldedDft

SIZES = [4, 8, 12, 64, 400, 512]


def _dft(n_fft: int, seed: int = 0) -> tuple[FoldedDft, np.ndarray, np.ndarray]:
    windows = np.random.default_rng(seed).uniform(0.5, 1, (2, n_fft))  # of no symmetry: none may be relied on
    return FoldedDft(*windows), *windows


@pytest.mark.parametrize("n_fft", SIZES)
def test_forward_is_the_dft_of_windowed_frames(n_fft: int) -> None:
    dft, window, _ = _dft(n_fft)
    frames = np.random.default_rng(1).standard_normal((2, 3, n_fft))
    expected = np.fft.rfft(frames * window)
    found = dft(torch.from_numpy(frames).float()).numpy()
    assert found.shape == (2, 3, n_fft // 2 + 1, 2)
    np.testing.assert_allclose(found[..., 0], expected.real, atol=3e-6 * n_fft**0.5)
    np.testing.assert_allclose(found[..., 1], expected.imag, atol=3e-6 * n_fft**0.5)


@pytest.mark.parametrize("n_fft", SIZES)
def test_each_sample_reaches_each_bin_as_it_must(n_fft: int) -> None:
    """One unit sample at a time: no place of the folding may be mixed up with another."""
    dft, window, _ = _dft(n_fft)
    found = dft(torch.eye(n_fft)[None]).numpy()[0]
    expected = np.fft.rfft(np.eye(n_fft) * window)
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], expected, atol=1e-6)


@pytest.mark.parametrize("n_fft", SIZES)
def test_inverse_is_that_of_numpy(n_fft: int) -> None:
    dft, _, window = _dft(n_fft)
    rng = np.random.default_rng(2)
    spectrum = rng.standard_normal((2, 3, n_fft // 2 + 1, 2))
    expected = np.fft.irfft(spectrum[..., 0] + 1j * spectrum[..., 1], n_fft) * window  # imaginary ends do not count
    found = dft.inverse(torch.from_numpy(spectrum).float()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_takes_about_a_quarter_of_the_operations_of_the_plain_matrix() -> None:
    dft, *_ = _dft(512)
    with FlopCounterMode(display=False) as counter:
        dft(torch.zeros(1, 1, 512))
    assert 0 < counter.get_total_flops() / 2 < 512 * 514 / 3.8
