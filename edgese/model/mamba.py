"""Mamba block over time, the same for every band: projections, short convolution, selective scan, gate.

After Gu & Dao 2023 (Mamba, figure 3); with `decay_heads` the step size and the decay are per head as in Mamba-2
(Dao & Gu 2024). Letters: B batch, K bands, T frames, D channels, E = expand * D inner channels, N states, H heads.
"""

from __future__ import annotations

import math
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from edgese.model.product import Linear
from edgese.model.scan import (
    Scan,
    chunked_scan,
    full_scan,
    looped_scan,
    prefix_scan,
    reference_scan,
    unrolled_scan,
)

ScanForm = Literal["full", "chunked", "unrolled", "looped", "prefix", "reference"]

DT_RANGE = (0.001, 0.1)  # step sizes at the start of training, log-uniform (Gu & Dao 2023, appendix E)


class BlockConfig(Protocol):
    """Settings of a network that a block needs; `edgese.networks.MbsConfig` says what each is."""

    @property
    def channels(self) -> int: ...
    @property
    def inner(self) -> int: ...
    @property
    def states(self) -> int: ...
    @property
    def dt_rank(self) -> int: ...
    @property
    def decay_heads(self) -> int: ...
    @property
    def conv_width(self) -> int: ...
    @property
    def chunk(self) -> int: ...


def scan_in_form(form: ScanForm, chunk: int) -> Scan:
    """Form of the scan by its name; `chunk` frames at a time where it is chunked."""
    forms: dict[ScanForm, Scan] = {
        "full": full_scan,
        "chunked": chunked_scan(chunk),
        "unrolled": unrolled_scan,
        "looped": looped_scan,
        "prefix": prefix_scan,
        "reference": reference_scan,  # float64, whatever the network's own precision is
    }
    return forms[form]


class MambaBlock(nn.Module):
    """Residual Mamba block with its state as an argument and a result.

    It can be run in parts, `before_scan`, `scan` and `after_scan`, by a network that compiles what lies between the
    scans, or by a layer that scans for several blocks at once.
    """

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.heads = config.decay_heads or config.inner
        self.states = config.states
        self.norm = nn.LayerNorm(config.channels)
        self.in_proj = Linear(config.channels, 2 * config.inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(config.conv_width, config.inner).uniform_(-1, 1) * 0.5)
        self.conv_bias = nn.Parameter(torch.zeros(config.inner))
        self.dt_rank = 0 if config.decay_heads else config.dt_rank
        self.x_proj = Linear(config.inner, (self.dt_rank or self.heads) + 2 * config.states, bias=False)
        self.dt_proj = Linear(self.dt_rank, self.heads, bias=False) if self.dt_rank else nn.Identity()
        low, high = (math.log(value) for value in DT_RANGE)
        dt = torch.exp(torch.rand(self.heads) * (high - low) + low)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus(dt_bias) = dt
        if config.decay_heads:
            rates = torch.empty(1, self.heads).uniform_(1, 16)  # Dao & Gu 2024, reference initialisation
        else:
            rates = torch.arange(1.0, config.states + 1)[:, None].repeat(1, self.heads)  # S4D-real
        self.a_log = nn.Parameter(rates.log())  # float32 in every precision: FP16 exp overflows
        self.skip = nn.Parameter(torch.ones(config.inner))
        self.out_proj = Linear(config.inner, config.channels, bias=False)
        self.chunk = config.chunk
        self.scan_form: ScanForm = "chunked"

    def forward(self, x: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One stretch of frames.

        Args:
            x: (B, K, T, D).
            conv: (B, K, conv_width - 1, E), the last inputs of the convolution.
            ssm: (B, K, N, E), the state of the scan.

        Returns:
            (B, K, T, D), and both states after the last frame.
        """
        inputs, gate, conv = self.before_scan(x, conv)
        y, ssm = self.scan(inputs, ssm)
        return self.after_scan(x, y, inputs[0], gate), conv, ssm

    def before_scan(self, x: Tensor, conv: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """Inputs of the scan (u, dt, a, b, c) as in scan.py; the gate, (B, K, T, E); the convolution's next state."""
        u, gate = self.in_proj(self.norm(x)).chunk(2, dim=-1)  # (B, K, T, E) each
        u, conv = self._convolve(u, conv)
        dt, b, c = self.x_proj(u).split([self.dt_rank or self.heads, self.states, self.states], dim=-1)
        dt = _softplus(self.dt_proj(dt) + self.dt_bias)  # (B, K, T, H)
        return (u, dt, -torch.exp(self.a_log), b, c), gate, conv

    def scan(self, inputs: tuple[Tensor, ...], ssm: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the scan, (B, K, T, E), and its state after the last frame, of the type of the inputs."""
        u, dt, a, b, c = inputs
        y, ssm = self._scan()(u, dt, a, b, c, ssm)
        return y, ssm.to(u.dtype)

    def after_scan(self, x: Tensor, y: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        """Output of the block, (B, K, T, D), from its input and the scan's y and u."""
        y = (y.to(u.dtype) + u * self.skip) * nn.functional.silu(gate)
        result: Tensor = x + self.out_proj(y)
        return result

    def _scan(self) -> Scan:
        return scan_in_form(self.scan_form, self.chunk)

    def _convolve(self, u: Tensor, conv: Tensor) -> tuple[Tensor, Tensor]:
        """Depthwise convolution over time and its next state, by one product per tap: no layout change at any T."""
        frames = u.shape[2]
        padded = torch.cat([conv, u], dim=2)  # (B, K, conv_width - 1 + T, E)
        y: Tensor = self.conv_bias
        for tap, weight in enumerate(self.conv_weight.unbind(0)):
            y = y + padded[:, :, tap : tap + frames] * weight
        return nn.functional.silu(y), padded[:, :, frames:]


def _softplus(x: Tensor) -> Tensor:
    """Softplus, log(1 + exp(x)), safe at both ends and exact in PyTorch; in a graph, Log of Sigmoid.

    ONNX Runtime's Softplus is 30 times slower (20 ns an element, Exp and Sigmoid less than 1 ns), and OpenVINO's, which
    it also makes of log(1 + exp), has an error of 1e-6: step sizes are as small as 1e-3.
    """
    return x.clamp_min(0) - nn.functional.logsigmoid(x.abs())
