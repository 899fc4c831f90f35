"""Parts of the network in forms that speed_steps.py measures against the shipped ones: each with one choice undone.

Letters as in edgese/model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from edgese.model.bands import BandDecoder
from edgese.model.compression import POWER_FLOOR
from edgese.model.dft import FoldedDft
from edgese.model.mbs_net import MbsNet
from edgese.model.scan import _spread

# The scan in other forms; arguments and shapes as in edgese/model/scan.py.


def frame_by_frame(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    dt, a = per_channel(u, dt, a)
    outputs = []
    for x_t, dt_t, b_t, c_t in zip(*(tensor.split(1, dim=-2) for tensor in (dt * u, dt, b, c)), strict=True):
        h = torch.exp(dt_t * a) * h + b_t.transpose(-1, -2) * x_t
        outputs.append(c_t @ h)
    return torch.cat(outputs, dim=-2), h


def heads_gathered(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan frame by frame; a head's value is gathered for each of its channels, where the product multiplies."""
    index = torch.arange(u.shape[-1]) // (u.shape[-1] // dt.shape[-1])
    return frame_by_frame(u, dt.index_select(-1, index), a.index_select(-1, index), b, c, h)


def decays_first(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    dt, a = per_channel(u, dt, a)
    decay = torch.exp(dt[..., None, :] * a)  # (S, T, M, D)
    inputs = b[..., None] * (dt * u)[..., None, :]  # (S, T, N, D)
    states, h = [], h.unsqueeze(-3)
    for decay_t, inputs_t in zip(decay.split(1, -3), inputs.split(1, -3), strict=True):
        h = decay_t * h + inputs_t
        states.append(h)
    return (c[..., None, :] @ torch.cat(states, dim=-3)).squeeze(-2), h.squeeze(-3)


def states_last(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan frame by frame with a state of (S, D, N)."""
    dt, a = per_channel(u, dt, a)
    outputs = []
    for x_t, dt_t, b_t, c_t in zip(*(tensor.split(1, dim=-2) for tensor in (dt * u, dt, b, c)), strict=True):
        h = torch.exp(dt_t.transpose(-1, -2) * a.T) * h + x_t.transpose(-1, -2) * b_t
        outputs.append((h @ c_t.transpose(-1, -2)).transpose(-1, -2))
    return torch.cat(outputs, dim=-2), h


def onnx_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan as one ONNX Scan, whose body is one frame."""
    dt, a = per_channel(u, dt, a)

    def step(h: Tensor, frame: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x_t, dt_t, b_t, c_t = frame
        h = torch.exp(dt_t * a) * h + b_t.transpose(-1, -2) * x_t
        return h.clone(), torch.bmm(c_t, h)

    sequences = h.shape[:-2]
    frames = tuple(tensor.flatten(0, -3).transpose(0, 1).unsqueeze(-2) for tensor in (dt * u, dt, b, c))
    h, y = scan(step, h.flatten(0, -3), frames, dim=0)
    return y.squeeze(-2).transpose(0, 1).unflatten(0, sequences), h.unflatten(0, sequences)


def per_channel(u: Tensor, dt: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    spread = _spread(dt.shape[-1], u)
    return (dt, a) if dt.shape[-1] == u.shape[-1] else (dt @ spread, a @ spread)


def with_states_last(initial_state: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Function that gives a network's initial states, with those of the scan as (B, K, D, N)."""

    def states(network: MbsNet, streams: int = 1) -> dict[str, Tensor]:
        found = initial_state(network, streams)
        return {name: state.transpose(-1, -2) if name[:3] == "ssm" else state for name, state in found.items()}

    return states


# Other parts in other forms: each is the method of the same name with one thing undone.


class FullDft(nn.Module):
    """DFT and its inverse as one product with a whole matrix each."""

    def __init__(self, folded: FoldedDft) -> None:
        super().__init__()
        self.window = folded.window
        ends = torch.eye(len(folded.window))
        self.analysis = folded(ends[None])[0].flatten(1)  # (n_fft, 2 F)
        bins = torch.eye(self.analysis.shape[1]).unflatten(1, (-1, 2))
        self.synthesis = folded.inverse(bins[None])[0]  # (2 F, n_fft)

    def forward(self, frames: Tensor) -> Tensor:
        spectrum: Tensor = (frames @ self.analysis).unflatten(-1, (-1, 2))
        return spectrum

    def inverse(self, spectrum: Tensor) -> Tensor:
        return spectrum.flatten(-2) @ self.synthesis


class SideBySide(MbsNet):
    """Network that works on the two values of a bin as they come, side by side: (B, T, F, 2)."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mask, rotation, state = self.estimate(x, state)
        real, imag = (x * mask ** (1 / self.config.compression)).split(1, -1)
        cos, sin = rotation.split(1, -1)
        return torch.cat([real * cos - imag * sin, real * sin + imag * cos], dim=-1), state


def features_side_by_side(x: Tensor, exponent: float) -> Tensor:
    """Features of `edgese.model.compression`, worked on as they come: (B, T, F, 2) -> (B, T, F, 3)."""
    log_magnitude = 0.5 * torch.log((x * x).sum(-1, keepdim=True) + POWER_FLOOR)
    return torch.cat([x * torch.exp((exponent - 1) * log_magnitude), 0.25 * log_magnitude], dim=-1)


def products_per_band(self: BandDecoder, x: Tensor) -> Tensor:
    """Decoder's output by 30 products of a layer, each band as wide as it is: (B, K, T, D) -> (B, T, F, features)."""
    widths, pieces = (self.layout.to_bands < self.weight.shape[0]).sum(1).tolist(), []
    for band, weight in enumerate(self.weight.split(widths)):
        hidden = nn.functional.silu(x[:, band] @ self.hidden_weight[band] + self.hidden_bias[band])  # (B, T, hidden)
        pieces.append((hidden @ weight.flatten(0, 1).T).unflatten(-1, (-1, self.features)))
    return torch.cat(pieces, dim=2) + self.bias
