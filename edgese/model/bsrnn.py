"""BSRNN network: band split, LSTMs over time and over bands in turns, a complex mask of three taps.

    X (B, T, F, 2) -> band split -> L x (LSTM over time, weights shared by the bands; LSTM over the bands, both ways)
      -> a two-layer MLP for each band, gated -> complex masks of three neighbouring frames -> their weighted sum

Sources: Luo & Yu 2023, "Music Source Separation with Band-Split RNN" (band split, residual LSTMs over time and bands,
gated MLPs); Yu & Luo 2023, "Efficient Monaural Speech Enhancement with Universal Sample Rate Band-Split RNN"; Yu et al.
2023, "High Fidelity Speech Enhancement with Band-Split RNN". The size (64 channels, 5 layers, 128 hidden units, decoder
256) and the taps are those of github.com/sungwon23/BSRNN (module.py, evaluation.py), which was evaluated on
VoiceBank+DEMAND with the STFT of edgese; its LSTM over time runs one way, and all of its layers over time come first.

Two variants:

    as published   takes a segment as a whole: LSTM over time both ways, norms over all frames, taps t-1, t, t+1
    causal         LSTM over time one way, h and c as states; each norm is one of a single frame, over its bands and
                   channels, which keeps what bands are to each other; taps t-2, t-1, t, two earlier spectra as a state

The input of the causal one has no norm, and it gets the level as a third feature of each bin, the logarithm of the
magnitude. Both get compressed spectra, as all networks here; masks act on X itself.

Letters: B batch (streams), T frames, F bins, K bands, D channels, H hidden units, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from edgese.model.bands import BandDecoder, BandSplit
from edgese.model.compression import compressed
from edgese.model.lstm import Lstm, State
from edgese.model.network import Form, Network
from edgese.model.product import Linear
from edgese.networks import BsrnnConfig

TAPS = 3  # neighbouring frames that are weighted and added to one
_EPSILON = 1e-5  # of norms over all frames, as nn.GroupNorm's


class Bsrnn(Network):
    """Band-split RNN, causal or as published."""

    parts = {  # noqa: RUF012 - a constant
        "split": "band split",
        "time": "LSTMs over time",
        "bands": "LSTMs over bands",
        "norm": "last norm",
        "decoder": "mask decoder",
    }

    def __init__(self, config: BsrnnConfig) -> None:
        super().__init__()
        self.config, self.causal = config, config.causal
        channels = config.channels
        self.input_norm = nn.Identity() if config.causal else BandNorm(config.band_widths)
        self.split = BandSplit(config.band_widths, 3 if config.causal else 2, channels)

        def norm() -> nn.Module:
            return FrameNorm(channels) if config.causal else SequenceNorm(channels)

        self.time = nn.ModuleList(
            ResidualLstm(norm(), "time", config, bidirectional=not config.causal) for _ in range(config.layers)
        )
        self.bands = nn.ModuleList(
            ResidualLstm(norm(), "bands", config, bidirectional=True) for _ in range(config.layers)
        )
        self.norm = FrameNorm(channels) if config.causal else SequenceNorm(channels, each_band=True)
        self.decoder = BandDecoder(
            config.band_widths, channels, config.decoder_hidden, 2 * 2 * TAPS, activation=torch.tanh
        )
        self.here = TAPS - 1 if config.causal else TAPS // 2  # the tap of the frame itself
        with torch.no_grad():
            self.decoder.bias[:, self.here] = 2  # through a gate of sigmoid(0): an untrained mask is nearly 1

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        """Zero states of the causal variant: earlier spectra (B, taps - 1, 2, F), h and c of each layer (B, K, H)."""
        config, weight = self.config, self.split.weight
        if not self.causal:
            return {}
        shapes: dict[str, tuple[int, ...]] = {"spectra": (streams, TAPS - 1, 2, config.n_bins)}
        for layer in range(config.layers):
            for name in ("lstm_h", "lstm_c"):
                shapes[f"{name}_{layer}"] = (streams, config.n_bands, config.hidden)
        return {name: torch.zeros(shape, device=weight.device) for name, shape in shapes.items()}

    def use_form(self, form: Form) -> None:
        for lstm in _lstms(self):
            lstm.form = form

    def uncounted_macs(self) -> dict[str, int]:
        """Multiply-accumulates a frame of the LSTMs, as far as PyTorch's counter misses them, and of the taps."""
        n_bands = self.config.n_bands
        return {
            "time": sum(lstm.uncounted_macs(1, n_bands) for lstm in _lstms(self.time)),
            "bands": sum(lstm.uncounted_macs(n_bands) for lstm in _lstms(self.bands)),
            "decoder": 4 * TAPS * self.config.n_bins,
        }

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        frames = x.shape[1]
        x = x.transpose(-1, -2)  # (B, T, 2, F)
        mask, after = self.estimate(x, state)
        if self.causal:
            spectra = torch.cat([state["spectra"], x], dim=1)  # (B, taps - 1 + T, 2, F)
            after = {"spectra": spectra[:, frames:]} | after
        else:
            spectra = nn.functional.pad(x, (0, 0, 0, 0, self.here, TAPS - 1 - self.here))
        real, imag = (
            torch.cat([part[:, tap : tap + frames] for tap in range(TAPS)], dim=2) for part in spectra.split(1, dim=2)
        )  # (B, T, taps, F)
        by_real, by_imag = mask.split(TAPS, dim=2)
        enhanced = [real * by_real - imag * by_imag, real * by_imag + imag * by_real]
        return torch.cat([part.sum(2, keepdim=True) for part in enhanced], dim=2).transpose(-1, -2), after

    def estimate(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Complex weights of the taps, and the next state of the LSTMs.

        Args:
            x: (B, T, 2, F).

        Returns:
            (B, T, 2 * taps, F), first the real, then the imaginary parts, each from the earliest tap on; the state.
        """
        features = self.input_norm(self._features(x))
        y = self.split(features.transpose(-1, -2)).transpose(1, 2)  # (B, T, K, D)
        after: dict[str, Tensor] = {}
        for layer, (over_time, over_bands) in enumerate(zip(self.time, self.bands, strict=True)):
            if self.causal:
                h, c = f"lstm_h_{layer}", f"lstm_c_{layer}"
                y, after[h], after[c] = _with_state(over_time, y, state[h], state[c])
            else:
                y, _ = over_time(y)
            y, _ = over_bands(y)
        gated = self.decoder(self.norm(y).transpose(1, 2)).transpose(-1, -2)  # (B, T, 4 * taps, F)
        value, gate = gated.split(2 * TAPS, dim=2)
        return value * torch.sigmoid(gate), after

    def _features(self, x: Tensor) -> Tensor:
        """Compressed spectrum and, if causal, the logarithm of the magnitude: (B, T, 2, F) -> (B, T, 2 or 3, F)."""
        spectrum, log_magnitude = compressed(x, self.config.compression)
        return torch.cat([spectrum, log_magnitude], dim=2) if self.causal else spectrum


class ResidualLstm(nn.Module):
    """Residual block: a norm, an LSTM over time or over bands, and a linear layer back to the channels."""

    def __init__(
        self, norm: nn.Module, over: Literal["time", "bands"], config: BsrnnConfig, *, bidirectional: bool
    ) -> None:
        super().__init__()
        self.axis = 1 if over == "time" else 2
        self.norm = norm
        self.lstm = Lstm(config.channels, config.hidden, bidirectional=bidirectional)
        self.linear = Linear((1 + bidirectional) * config.hidden, config.channels)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Output and next state: (B, T, K, D), h and c (1, B * K or B * T, H) -> the same shapes; None means zeros."""
        y = self.norm(x).movedim(self.axis, 0)  # (T, B, K, D) or (K, B, T, D)
        steps, batch, rest, _ = y.shape
        y, state = self.lstm(y.reshape(steps, batch * rest, -1), state)
        y = self.linear(y).reshape(steps, batch, rest, -1).movedim(0, self.axis)
        return x + y, state


def _lstms(module: nn.Module) -> Iterator[Lstm]:
    return (found for found in module.modules() if isinstance(found, Lstm))


def _with_state(block: nn.Module, y: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output and next state of a residual LSTM over time, h and c as (B, K, H)."""
    flat = tuple(tensor.flatten(0, 1)[None] for tensor in (h, c))  # (1, B * K, H)
    y, (after_h, after_c) = block(y, flat)
    return y, after_h.reshape(h.shape), after_c.reshape(c.shape)


class FrameNorm(nn.Module):
    """Norm over the bands and channels of one frame, with a gain and an offset for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised input: (B, T, K, D) -> the same shape; frames do not see each other."""
        shape = x.shape[2:]
        return nn.functional.layer_norm(x, shape, self.weight.expand(shape), self.bias.expand(shape), _EPSILON)


class SequenceNorm(nn.Module):
    """Norm over all frames, bands and channels or, with `each_band`, of each band over all frames: nn.GroupNorm(1).

    What it gives one frame depends on all others: no causal network can have it.
    """

    def __init__(self, channels: int, *, each_band: bool = False) -> None:
        super().__init__()
        self.axes = (3, 1) if each_band else (3, 2, 1)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised input: (B, T, K, D) -> the same shape."""
        centred = x - _mean(x, self.axes)
        variance = _mean(centred * centred, self.axes)
        return centred / torch.sqrt(variance + _EPSILON) * self.weight + self.bias


class BandNorm(nn.Module):
    """Norm of a spectrum: each band over all frames, its bins, real and imaginary part.

    Gains and offsets of bins are left to the band split, which is linear.
    """

    member: Tensor  # (K, F): 1 where a bin belongs to a band
    shares: Tensor  # (K, F): that over the band's width

    def __init__(self, band_widths: tuple[int, ...]) -> None:
        super().__init__()
        widths = torch.tensor(band_widths)
        member = torch.eye(len(band_widths)).repeat_interleave(widths, dim=1)
        self.register_buffer("member", member, persistent=False)
        self.register_buffer("shares", member / widths[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised spectrum: (B, T, 2, F) -> the same shape."""
        centred = x - self._mean(x)
        return centred / torch.sqrt(self._mean(centred * centred) + _EPSILON)

    def _mean(self, x: Tensor) -> Tensor:
        """Mean over each bin's band, (B, 1, 1, F); by sums, not products, which autocast would round."""
        per_bin = _mean(x, (2, 1))[:, 0]  # (B, 1, F)
        per_band = (per_bin * self.shares).sum(-1, keepdim=True)  # (B, K, 1)
        return (per_band * self.member).sum(1)[:, None, None]


def _mean(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Mean over these axes, which stay with size 1, one axis after another.

    ONNX Runtime adds a million values of a whole segment one by one in float32: that cost 34 dB.
    """
    for axis in axes:
        x = x.mean(axis, keepdim=True)
    return x
