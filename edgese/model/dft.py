"""DFT of real frames as matrix products that every runtime has, a quarter of the plain matrix in all.

A cosine is even and a sine odd, about n_fft / 2 and, with a sign that depends on the bin being even or odd, about
n_fft / 4 too. So the four samples that lie symmetrically to these points are first added and subtracted (a butterfly
of +-1), and each of the four sums feeds one quarter of the outputs only:

    + + + +   real parts of even bins        + - - +   real parts of odd bins
    + - + -   imaginary parts of even bins   + + - -   imaginary parts of odd bins

Four products of Q + 1 = n_fft / 4 + 1 points take the place of one of n_fft by n_fft + 2. The inverse is the same
backwards. (The symmetries that the fast Fourier transform begins with; two stages of them are enough here, and more
would only cost nodes: Sorensen et al. 1987, "Real-valued fast Fourier transform algorithms".)

Letters: B streams, T frames, F = n_fft / 2 + 1 bins, Q = n_fft / 4.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BUTTERFLY = np.array([[1, 1, 1, 1], [1, -1, -1, 1], [1, -1, 1, -1], [1, 1, -1, -1]], dtype=float)


class FoldedDft(nn.Module):
    """Windowed DFT of real frames, and its inverse with a window of its own."""

    butterfly: Tensor  # (4, 4)
    folds: Tensor  # (4 * (Q + 1),) sample that each place of the four quarters takes
    unfolds: Tensor  # (n_fft,) place that each sample comes from
    analysis: Tensor  # (4, Q + 1 samples, Q + 1 bins)
    synthesis: Tensor  # (4, Q + 1 bins, Q + 1 samples)
    to_bins: Tensor  # (2 F,) output of the quarters that each real part is, then each imaginary part
    from_bins: Tensor  # (4 * (Q + 1),) and back
    window: Tensor  # (n_fft,)
    synthesis_window: Tensor  # (n_fft,)

    def __init__(self, window: NDArray[np.float64], synthesis_window: NDArray[np.float64]) -> None:
        """Make the tables. Args: both windows (n_fft,), n_fft a multiple of 4."""
        super().__init__()
        n_fft = len(window)
        quarter = n_fft // 4
        self.points = quarter + 1
        samples = np.arange(self.points)
        folds = np.stack([samples, n_fft // 2 - samples, n_fft // 2 + samples, (n_fft - samples) % n_fft])
        unfolds = np.empty(n_fft, dtype=int)
        unfolds[folds] = np.arange(folds.size).reshape(folds.shape)
        # what the outputs of each quarter are: even bins 0, 2 ... 2 Q, odd bins 1, 3 ... (one less, filled up)
        even, odd = 2 * samples, np.minimum(2 * samples + 1, 2 * quarter - 1)
        angles = [2 * np.pi * np.outer(samples, bins) / n_fft for bins in (even, odd, even, odd)]
        basis = np.stack([np.cos(angles[0]), np.cos(angles[1]), -np.sin(angles[2]), -np.sin(angles[3])])
        # samples 0 and Q are their own mirror images: the butterfly counts them twice
        once = np.where((samples == 0) | (samples == quarter), 0.5, 1.0)
        # each bin but the first and the last stands for itself and its conjugate; places that are filled up for nothing
        twice = np.full((4, self.points), 2.0)
        twice[0, [0, -1]] = twice[2, [0, -1]] = 1.0
        twice[[1, 3], -1] = 0.0
        bins = np.arange(n_fft // 2 + 1)
        places = np.stack([bins % 2, bins % 2 + 2]) * self.points + bins // 2  # (real and imaginary, F)
        from_bins = np.zeros(4 * self.points, dtype=int)
        from_bins[places] = np.arange(places.size).reshape(places.shape)
        tables = {
            "butterfly": BUTTERFLY,
            "analysis": basis * once[:, None],
            "synthesis": (basis * twice[:, None, :] / n_fft).transpose(0, 2, 1),
            "window": window,
            "synthesis_window": synthesis_window,
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(table)).float(), persistent=False)
        indices = {"folds": folds, "unfolds": unfolds, "to_bins": places, "from_bins": from_bins}
        for name, index in indices.items():
            self.register_buffer(name, torch.from_numpy(index.reshape(-1)), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Spectra of windowed frames: (B, T, n_fft) -> (B, T, F, 2), last axis real and imaginary."""
        quarters = (frames * self.window).index_select(-1, self.folds).unflatten(-1, (4, -1))  # (B, T, 4, Q + 1)
        sums = (self.butterfly @ quarters).movedim(2, 0).flatten(1, 2)  # (4, B T, Q + 1)
        parts = (sums @ self.analysis).unflatten(1, frames.shape[:2]).movedim(0, 2)  # (B, T, 4, Q + 1)
        spectrum: Tensor = parts.flatten(-2).index_select(-1, self.to_bins).unflatten(-1, (2, -1))
        return spectrum.transpose(-1, -2)

    def inverse(self, spectrum: Tensor) -> Tensor:
        """Windowed frames of spectra: (B, T, F, 2) -> (B, T, n_fft); imaginary parts of the outer bins do not count."""
        parts = spectrum.transpose(-1, -2).flatten(-2)  # (B, T, 2 F)
        parts = parts.index_select(-1, self.from_bins).unflatten(-1, (4, -1))  # (B, T, 4, Q + 1)
        sums = (parts.movedim(2, 0).flatten(1, 2) @ self.synthesis).unflatten(1, spectrum.shape[:2]).movedim(0, 2)
        samples: Tensor = (self.butterfly.T @ sums).flatten(-2).index_select(-1, self.unfolds)  # (B, T, n_fft)
        return samples * self.synthesis_window
