"""Layers on frequency bands: from bins to one vector of channels per band, back to bins, and mixing of bands.

Letters: B batch, T frames, F bins, K bands, D channels, W bins of the widest band.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgese.model.product import Linear, Product


class BandLayout(nn.Module):
    """Layout of bins in bands, as the two index tables that gather them.

    Bands have unequal widths; padding each to the widest one, W, makes all of them one batched product.
    """

    to_bands: Tensor  # (K, W) bin of each place; places past a band's width point at one extra bin, F
    to_bins: Tensor  # (F,) place of each bin in the flattened (K, W) grid

    def __init__(self, band_widths: tuple[int, ...]) -> None:
        super().__init__()
        n_bins, widest = sum(band_widths), max(band_widths)
        to_bands = torch.full((len(band_widths), widest), n_bins)
        start = 0
        for band, width in enumerate(band_widths):
            to_bands[band, :width] = torch.arange(start, start + width)
            start += width
        self.register_buffer("to_bands", to_bands, persistent=False)
        self.register_buffer("to_bins", (to_bands.flatten() < n_bins).nonzero().squeeze(1), persistent=False)

    def spread(self, per_bin: Tensor) -> Tensor:
        """Table with one row per bin, (F, ...), laid out per band, (K, W, ...), zero where there is no bin."""
        padded = nn.functional.pad(per_bin, (0, 0) * (per_bin.ndim - 1) + (0, 1))
        spread: Tensor = padded.index_select(0, self.to_bands.flatten()).unflatten(0, self.to_bands.shape)
        return spread


class BandSplit(nn.Module):
    """Map of each band's bins to D channels by a linear layer of its own (Luo & Yu 2023, BSRNN, section II-A)."""

    def __init__(self, band_widths: tuple[int, ...], features: int, channels: int) -> None:
        super().__init__()
        self.layout = BandLayout(band_widths)
        per_bin = torch.empty(sum(band_widths), features, channels)
        bounds = [(width * features) ** -0.5 for width in band_widths for _ in range(width)]
        self.weight = nn.Parameter(per_bin.uniform_(-1, 1) * torch.tensor(bounds)[:, None, None])
        self.bias = nn.Parameter(torch.zeros(len(band_widths), channels))
        self.product = Product()

    def forward(self, x: Tensor) -> Tensor:
        """Channels of each band: (B, T, F, features) -> (B, K, T, D)."""
        batch, frames = x.shape[:2]
        padded = nn.functional.pad(x, (0, 0, 0, 1))
        bands = padded.index_select(2, self.layout.to_bands.flatten())  # (B, T, K * W, features)
        bands = bands.reshape(batch, frames, self.bias.shape[0], -1).transpose(1, 2)  # (B, K, T, W * features)
        weight = self.layout.spread(self.weight).flatten(1, 2)  # (K, W * features, D)
        split: Tensor = self.product(bands, weight) + self.bias[:, None]
        return split


class BandDecoder(nn.Module):
    """Map of each band's D channels to `features` values per bin: a two-layer MLP a band (BSRNN, section II-C)."""

    def __init__(
        self,
        band_widths: tuple[int, ...],
        channels: int,
        hidden: int,
        features: int,
        activation: Callable[[Tensor], Tensor] = nn.functional.silu,
    ) -> None:
        super().__init__()
        self.activation = activation
        n_bands, n_bins = len(band_widths), sum(band_widths)
        self.layout = BandLayout(band_widths)
        self.features = features
        self.hidden_weight = nn.Parameter(torch.empty(n_bands, channels, hidden).uniform_(-1, 1) * channels**-0.5)
        self.hidden_bias = nn.Parameter(torch.zeros(n_bands, hidden))
        # a small last layer: an untrained decoder gives nearly zeros, which means "leave the signal as it is"
        self.weight = nn.Parameter(torch.empty(n_bins, features, hidden).uniform_(-1, 1) * 0.1 * hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_bins, features))
        self.first, self.last = Product(), Product()

    def forward(self, x: Tensor) -> Tensor:
        """Values of each bin: (B, K, T, D) -> (B, T, F, features)."""
        hidden = self.activation(self.first(x, self.hidden_weight) + self.hidden_bias[:, None])  # (B, K, T, hidden)
        weight = self.layout.spread(self.weight).flatten(1, 2).transpose(1, 2)  # (K, hidden, W * features)
        bands = self.last(hidden, weight)  # (B, K, T, W * features)
        bins: Tensor = bands.transpose(1, 2).unflatten(-1, (-1, self.features)).flatten(2, 3)  # (B, T, K * W, features)
        return bins.index_select(2, self.layout.to_bins) + self.bias


class BandAttention(nn.Module):
    """Residual attention over the bands of one frame: what a band takes from the others follows the sound.

    Four heads (Vaswani et al. 2017), each with D / 16 channels of query and key and D / 8 of value, so that the first
    product maps D channels to D. Each band has its own bias in query and key, and each pair of bands one in the scores:
    what bands are to each other does not follow from what they hold alone. That one begins as a slope over their
    distance, steeper or flatter by head (Press et al. 2022).
    """

    heads = 4

    def __init__(self, n_bands: int, channels: int) -> None:
        super().__init__()
        self.narrow, self.wide = channels // 16, channels // 8  # of a head: query or key, value
        self.norm = nn.LayerNorm(channels)
        self.in_proj = Linear(channels, self.heads * (2 * self.narrow + self.wide), bias=False)
        self.query_bias, self.key_bias = (
            nn.Parameter(0.5 * torch.randn(self.heads, n_bands, self.narrow)) for _ in range(2)
        )
        distance = (torch.arange(n_bands)[:, None] - torch.arange(n_bands)).abs()
        slopes = torch.tensor([1.0, 0.3, 0.1, 0.0])
        self.score_bias = nn.Parameter(-slopes[:, None, None] * distance)  # (H, K, K)
        self.out_proj = Linear(self.heads * self.wide, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Input with bands and channels mixed: (B, K, T, D) -> the same shape; frames do not see each other."""
        sizes = [self.heads * size for size in (self.narrow, self.narrow, self.wide)]
        parts = self.in_proj(self.norm(x)).split(sizes, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1, 4) for part in parts)
        scores = (query + self.query_bias) @ (key + self.key_bias).transpose(-1, -2)  # (B, T, H, K, K)
        weights = torch.softmax(scores * self.narrow**-0.5 + self.score_bias, dim=-1)
        mixed = weights.to(value.dtype) @ value  # (B, T, H, K, wide)
        change: Tensor = self.out_proj(mixed.permute(0, 3, 1, 2, 4).flatten(-2))  # (B, K, T, D)
        return x + change


class BandFusion(nn.Module):
    """Residual MLP whose first layer mixes bands and whose second mixes channels.

    Without it no band would know of another: the layers over time share their weights but not their signal.
    """

    def __init__(self, n_bands: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.bands = nn.Parameter(torch.eye(n_bands) + torch.randn(n_bands, n_bands) * n_bands**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_bands, 1))
        self.channels = Linear(channels, channels)
        self.mix = Product()

    def forward(self, x: Tensor) -> Tensor:
        """Input with bands and channels mixed: (B, K, T, D) -> the same shape; frames do not see each other."""
        batch, n_bands, frames, channels = x.shape
        normed = self.norm(x).reshape(batch, n_bands, frames * channels)
        mixed = self.mix(self.bands, normed) + self.bias
        change: Tensor = self.channels(nn.functional.silu(mixed).reshape(batch, n_bands, frames, channels))
        return x + change
