"""Network that MBS-Net came from, to compare: two branches, bidirectional in time, Mamba across bands. Not causal.

    X (B, T, F, 2) -> band split -> magnitude branch -> head and decoder: mask in [0, 1]
                                 -> phase branch     -> head and decoder: offset in [-pi, pi]
    a branch: L x bidirectional Mamba over time (weights shared by the bands) -> one across the bands of each frame

Its shape is that of the public code which the claims about it speak of (github.com/Fazazl2020/BSRNN, mbs_net.py and
real_mamba.py in Modified/, with an analysis of its memory beside them): one split into 31 bands for both branches, D
128, expand 2, 16 states, step sizes of rank 16; four layers over time and one across bands, each of two blocks and a
linear layer that joins them; heads D -> 2D -> D, decoders with 4D hidden channels. Added up, that code has 7.33 M
parameters, and this 7.34 M. Where it differs, or that code is silent:

- A layer adds what it has joined to its input, as SEMamba's do (Chao et al. 2024); there it goes through a norm.
- Nothing is normalised over time or over a band's input (there: GroupNorm over both, in split and decoders): what
  comes out would depend on how a recording was cut, and the level, by which speech differs from noise, would be lost. A
  norm over the channels of each frame ends a branch.
- The split sees compressed real and imaginary part and the logarithm of the magnitude, as MBS-Net does, and the mask is
  one of the compressed magnitude. An untrained network masks by 0.88 and turns nothing.
- Decoders have SiLU (bands.py) where that code has tanh.

A layer's four scans, of both directions and both branches, are one call: a GPU is idle while frames are launched one by
one. In training it is the full scan, which is what the original did and what its memory is measured with; with
`chunk` > 0 the chunked one, which gives the same values.

Letters: B batch, T frames, F bins, K bands, D channels, E inner channels, N states, L layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgese.model.bands import BandDecoder, BandSplit
from edgese.model.compression import features
from edgese.model.mamba import MambaBlock, ScanForm, scan_in_form
from edgese.model.network import Form, Network
from edgese.model.product import Linear
from edgese.networks import OriginalConfig

UNTRAINED_MASK = 2.0  # bias before the sigmoid: 0.88 of the compressed magnitude


class BidirectionalLayer(nn.Module):
    """Layer of both branches: each a forward and a backward Mamba block whose results a linear layer joins."""

    def __init__(self, config: OriginalConfig) -> None:
        super().__init__()
        self.conv_width, self.inner, self.states = config.conv_width, config.inner, config.states
        self.blocks = nn.ModuleList(MambaBlock(config) for _ in range(4))  # of each branch: forward, backward
        self.joins = nn.ModuleList(Linear(2 * config.channels, config.channels) for _ in range(2))
        self.chunk = config.chunk
        self.scan_form: ScanForm = "full"

    def forward(self, magnitude: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of both branches: (B, K, T, D) each -> the same shapes; the third axis is scanned, whatever it is."""
        inputs = (magnitude, magnitude.flip(2), phase, phase.flip(2))
        sequences = magnitude.shape[:2]
        nothing = magnitude.new_zeros(*sequences, self.conv_width - 1, self.inner)
        to_scan, kept = [], []
        for block, x in zip(self.blocks, inputs, strict=True):
            arguments, gate, _ = block.before_scan(x, nothing)  # type: ignore[operator]
            to_scan.append(arguments)
            kept.append((x, arguments[0], gate))
        u, dt, a, b, c = (torch.stack(tensors) for tensors in zip(*to_scan, strict=True))  # (4, B, K, T, E or N)
        h = a.new_zeros(4, *sequences, self.states, self.inner)
        y, _ = scan_in_form(self.scan_form, self.chunk)(u, dt, a[:, None, None], b, c, h)
        outputs = [
            block.after_scan(x, y_block, u_block, gate)  # type: ignore[operator]
            for block, y_block, (x, u_block, gate) in zip(self.blocks, y.unbind(0), kept, strict=True)
        ]
        joined = [
            join(torch.cat([forward, backward.flip(2)], dim=-1))
            for join, forward, backward in zip(self.joins, outputs[::2], outputs[1::2], strict=True)
        ]
        return magnitude + joined[0], phase + joined[1]


class Head(nn.Module):
    """End of a branch: a norm of each frame's channels, and two linear layers with tanh between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first, self.last = Linear(channels, hidden), Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the head: (B, K, T, D) -> the same shape."""
        y: Tensor = self.last(torch.tanh(self.first(self.norm(x))))
        return y


class MbsNetOriginal(Network):
    """Bidirectional MBS-Net; takes a segment as a whole."""

    causal = False
    parts = {  # noqa: RUF012 - a constant
        "split": "band split",
        "layers": "Mamba over time",
        "across": "Mamba across bands",
        "magnitude_head": "magnitude head",
        "phase_head": "phase head",
        "magnitude_decoder": "magnitude decoder",
        "phase_decoder": "phase decoder",
    }

    def __init__(self, config: OriginalConfig) -> None:
        super().__init__()
        self.config = config
        self.split = BandSplit(config.band_widths, 3, config.channels)
        self.layers = nn.ModuleList(BidirectionalLayer(config) for _ in range(config.layers))
        self.across = BidirectionalLayer(config)
        self.magnitude_head = Head(config.channels, config.head_hidden)
        self.phase_head = Head(config.channels, config.head_hidden)
        self.magnitude_decoder = BandDecoder(config.band_widths, config.channels, config.decoder_hidden, 1)
        self.phase_decoder = BandDecoder(config.band_widths, config.channels, config.decoder_hidden, 1)
        nn.init.constant_(self.magnitude_decoder.bias, UNTRAINED_MASK)
        self.use_form("train")

    def use_scan(self, form: ScanForm) -> MbsNetOriginal:
        """Choose the form of the selective scan."""
        for layer in (*self.layers, self.across):
            layer.scan_form = form
        return self

    def use_form(self, form: Form) -> None:
        forms: dict[Form, ScanForm] = {
            "train": "chunked" if self.config.chunk else "full",
            "export": "looped",
            "exact": "reference",
        }
        self.use_scan(forms[form])

    def uncounted_macs(self) -> dict[str, int]:
        """Multiply-accumulates a frame of scans and convolutions: decay * h and b * x for each state; the taps."""
        config = self.config
        layer = 4 * config.n_bands * config.inner * (2 * config.states + config.conv_width)
        return {"layers": config.layers * layer, "across": layer}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mask, offset = self.estimate(x)
        x, mask, offset = (tensor.transpose(-1, -2) for tensor in (x, mask, offset))  # (B, T, 1 or 2, F)
        gain = mask ** (1 / self.config.compression)  # the mask is one of compressed magnitudes
        real, imag = (x * gain).split(1, -2)
        cos, sin = torch.cos(offset), torch.sin(offset)
        return torch.cat([real * cos - imag * sin, real * sin + imag * cos], dim=-2).transpose(-1, -2), {}

    def estimate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and phase offset of each bin of a spectrum (B, T, F, 2).

        Returns:
            (B, T, F, 1) mask in [0, 1] on the compressed magnitude, (B, T, F, 1) offset of the phase in [-pi, pi].
        """
        magnitude = phase = self.split(features(x, self.config.compression))  # (B, K, T, D)
        for layer in self.layers:
            magnitude, phase = layer(magnitude, phase)
        magnitude, phase = self.across(magnitude.transpose(1, 2), phase.transpose(1, 2))  # (B, T, K, D)
        magnitude = torch.sigmoid(self.magnitude_head(magnitude.transpose(1, 2)))
        phase = torch.tanh(self.phase_head(phase.transpose(1, 2)))
        mask = torch.sigmoid(self.magnitude_decoder(magnitude))
        return mask, math.pi * torch.tanh(self.phase_decoder(phase))
