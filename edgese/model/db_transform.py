"""DB-Transform network: differential attention across bands, multi-scale convolutions over time, harmonic graph.

    X (B, T, F, 2) -> band split
      -> L x [ differential attention across the K bands of a frame -> convolutions of several widths over time, mixed
               for each band -> graph convolution over harmonically related bands -> feed-forward ]
      -> decoder of each band: a complex mask with a tap on each of three frames -> taps * X

The network of band attention that MBS-Net came to replace. No paper or code of that name was found: what is known of
it are its parts and its size, 4.1 million parameters. Each part is therefore built as the literature has it, cited
where it stands; what no source says, their order and the split of the parameters included, is our reading. Norms are
over the channels of one band in one frame, nothing is normalised over time, and the input's level is a feature (its
logarithm, as in MBS-Net).

Not causal, as that line of work has it, the convolutions are centred and the taps are on frames t - 1, t, t + 1. Set
`causal`, the same weights look back only: taps t - 2, t - 1, t, and the frames that both need are explicit states.

Letters: B batch (streams), T frames, F bins, K bands, D channels, H heads, P = D / 2H channels of a query, S scales,
W frames of the widest scale, L layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgese.model.bands import BandDecoder, BandSplit
from edgese.model.compression import features
from edgese.model.network import Network
from edgese.model.product import Linear, Product
from edgese.networks import DbTransformConfig

TAPS = 3  # frames that the mask of a bin takes together


class BandAttention(nn.Module):
    """Differential attention across the bands of a frame, with residual (Ye et al. 2024, section 2.1).

        head = (softmax(Q1 K1' / sqrt P) - lambda softmax(Q2 K2' / sqrt P)) V
        lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_init,   lambda_init = 0.8 - 0.6 exp(-0.3 (l - 1))
        out = Concat((1 - lambda_init) RMSNorm(head)) W_O

    What both maps attend to alike is noise, and is taken away. One lambda for all heads of layer l = 1 ... L; Q and K
    of a head are 2 P wide, two queries and keys, and so is V. Layout and constants checked against the authors' code
    (github.com/microsoft/unilm, Diff-Transformer/multihead_diffattn.py). Our reading: bands are no sequence in which
    distance counts, so their attention has neither the rotary position nor the causal mask of a language model; a
    band differs from another by its own weights and bias in the band split.
    """

    def __init__(self, config: DbTransformConfig, layer: int) -> None:
        super().__init__()
        self.heads, width = config.heads, config.channels // (2 * config.heads)
        self.norm = nn.LayerNorm(config.channels)
        self.in_proj = Linear(config.channels, 3 * config.channels, bias=False)  # Q, K and V
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer)  # the first layer is 0 here and 1 in the paper
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.randn(width) * 0.1) for _ in range(4)
        )
        self.head_scale = nn.Parameter(torch.ones(2 * width))
        self.out_proj = Linear(config.channels, config.channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Input with attention across bands added: (B, T, K, D) -> the same shape; frames do not see each other."""
        q, k, v = self.in_proj(self.norm(x)).chunk(3, dim=-1)
        q, k = (t.unflatten(-1, (2 * self.heads, -1)).transpose(2, 3) for t in (q, k))  # (B, T, 2 H, K, P)
        v = v.unflatten(-1, (self.heads, -1)).transpose(2, 3)  # (B, T, H, K, 2 P)
        maps = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1)  # (B, T, 2 H, K, K)
        first, second = maps.unflatten(2, (self.heads, 2)).unbind(3)  # (B, T, H, K, K)
        heads = (first - self.weight_of_second() * second) @ v
        heads = _rms_norm(heads) * (self.head_scale * (1 - self.lambda_init))
        change: Tensor = self.out_proj(heads.transpose(2, 3).flatten(3))
        return x + change

    def weight_of_second(self) -> Tensor:
        """Weight of the second attention map, the paper's lambda, a scalar."""
        first, second = (self.lambda_q1 * self.lambda_k1).sum(), (self.lambda_q2 * self.lambda_k2).sum()
        return torch.exp(first) - torch.exp(second) + self.lambda_init


class ScaleFusion(nn.Module):
    """Depthwise convolutions of several widths over time, mixed anew for each band and frame, with residual.

        y = sum over s of g_s (w_s * x),   g = softmax(MLP(x) + b_k)

    Kernels combined by weights that depend on the frequency and on the input: frequency dynamic convolution (Nam et
    al. 2022, Interspeech), its basis kernels here of several widths, of which a softmax selects (selective kernels, Li
    et al. 2019, section 3.1). Both average their gate's input over the whole stretch, which no stream can do. Our
    reading: the gate sees the band's own frame, and a bias of each band lets the mix differ by frequency itself.
    """

    def __init__(self, config: DbTransformConfig) -> None:
        super().__init__()
        self.causal, self.scales, self.widest = config.causal, config.scales, max(config.scales)
        self.norm = nn.LayerNorm(config.channels)
        self.kernels = nn.ParameterList(
            torch.empty(scale, config.channels).uniform_(-1, 1) * scale**-0.5 for scale in config.scales
        )
        self.bias = nn.Parameter(torch.zeros(config.channels))
        self.gate_hidden = Linear(config.channels, config.gate_hidden)
        self.gate = Linear(config.gate_hidden, len(config.scales), bias=False)
        self.gate_bias = nn.Parameter(torch.zeros(config.n_bands, len(config.scales)))
        self.out_proj = Linear(config.channels, config.channels)

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Output of one stretch of frames, and the next state of the convolutions.

        Args:
            x: (B, T, K, D).
            before: (B, W - 1, K, D), the last inputs of the convolutions; None where they are centred.

        Returns:
            (B, T, K, D), and the last inputs for the next stretch, or None.
        """
        normed = self.norm(x)
        if before is None:
            padded = nn.functional.pad(normed, (0, 0, 0, 0, self.widest // 2, self.widest // 2))
        else:
            padded = torch.cat([before, normed], dim=1)  # (B, W - 1 + T, K, D)
        gates = torch.softmax(self.gate(nn.functional.silu(self.gate_hidden(normed))) + self.gate_bias, dim=-1)
        y = self.bias
        for kernel, gate in zip(self.kernels, gates.split(1, dim=-1), strict=True):
            y = y + gate * self._convolve(padded, kernel, x.shape[1])
        change: Tensor = self.out_proj(nn.functional.silu(y))
        return x + change, None if before is None else padded[:, x.shape[1] :]

    def _convolve(self, padded: Tensor, kernel: Tensor, frames: int) -> Tensor:
        """Depthwise convolution over time: (B, W - 1 + T, K, D) and a kernel (w, D) -> (B, T, K, D).

        Frame t lies under the kernel's last place if causal, else under its middle.

        Channels innermost are a layout that PyTorch's convolutions know, and copy nothing for. As one product for each
        tap a graph had 902 nodes in place of 596, took twice as long to export, and was no faster in ONNX Runtime.
        """
        wide = len(kernel)
        start = self.widest - wide if self.causal else (self.widest - wide) // 2
        taken = padded[:, start : start + frames + wide - 1].permute(0, 3, 1, 2)  # (B, D, T + w - 1, K)
        weight = kernel.T[:, None, :, None]  # (D, 1, w, 1)
        return nn.functional.conv2d(taken, weight, groups=taken.shape[1]).permute(0, 2, 3, 1)


class HarmonicGraph(nn.Module):
    """Graph convolution over the bands, whose edges begin as harmonic relations and are learnt, with residual.

        y = SiLU(A x W)

    A graph convolution as of Kipf & Welling 2017 (eq. 2), its adjacency a free parameter of each layer as in Shi et
    al. 2019 (2s-AGCN, eq. 3, B_k), begun at `harmonic_adjacency`. That a matrix over the frequencies helps, as it
    holds correlations of harmonics, was shown by Yin et al. 2020 (PHASEN, frequency transformation block), which
    learnt one from scratch.
    """

    def __init__(self, config: DbTransformConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.channels)
        self.adjacency = nn.Parameter(harmonic_adjacency(config.band_widths))
        self.mix = Product()
        self.channels = Linear(config.channels, config.channels)

    def forward(self, x: Tensor) -> Tensor:
        """Input with the graph convolution added: (B, T, K, D) -> the same shape; frames do not see each other."""
        change: Tensor = nn.functional.silu(self.channels(self.mix(self.adjacency, self.norm(x))))
        return x + change


def harmonic_adjacency(band_widths: tuple[int, ...]) -> Tensor:
    """Adjacency of bands by the nearness of one's centre to a harmonic of another's: (K, K), symmetric, normalised.

        a_ij = exp(-((c_j - m c_i) / s_j)^2 / 2) / sqrt(m),   m = round(c_j / c_i), for c_i <= c_j
        A = d^(-1/2) a d^(-1/2),   d_i = sum over j of a_ij

    with centres c and half widths s of the bands in bins. A band is its own first harmonic: a_ii = 1, and neighbours
    are its first harmonic somewhat off. The m-th harmonic counts 1 / sqrt(m) as in the harmonic integral of HGCN (Wang
    et al. 2022, checked against github.com/wangtianrui/HGCN, harmonic_integral/make_integral_matrix.py); the degrees
    are those of Kipf & Welling 2017. The Gaussian over the band's width is our reading.
    """
    widths = torch.tensor(band_widths, dtype=torch.float64)
    centres = (widths.cumsum(0) - widths / 2 - 0.5).clamp_min(0.5)  # a band of only the bin at 0 Hz has no harmonics
    low, high = torch.minimum(centres[:, None], centres), torch.maximum(centres[:, None], centres)
    half = torch.where(centres[:, None] > centres, widths[:, None], widths) / 2  # of the band that lies higher
    harmonic = torch.round(high / low)
    edges = torch.exp(-0.5 * ((high - harmonic * low) / half) ** 2) / harmonic.sqrt()
    degrees = edges.sum(0)
    return (edges / (degrees[:, None] * degrees).sqrt()).float()


class FeedForward(nn.Module):
    """Gated MLP with residual: SwiGLU (Shazeer 2020), as Ye et al. 2024 have it after their attention (section 2.2)."""

    def __init__(self, config: DbTransformConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.channels)
        self.in_proj = Linear(config.channels, 2 * config.feedforward, bias=False)
        self.out_proj = Linear(config.feedforward, config.channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Input with the MLP's output added: (B, T, K, D) -> the same shape; frames and bands do not see each other."""
        gate, values = self.in_proj(self.norm(x)).chunk(2, dim=-1)
        change: Tensor = self.out_proj(nn.functional.silu(gate) * values)
        return x + change


class DbTransform(Network):
    """Band attention with a mask of three taps; causal or not, as its settings say."""

    parts = {  # noqa: RUF012 - a constant
        "split": "band split",
        "attentions": "differential band attention",
        "fusions": "multi-scale fusion",
        "graphs": "harmonic graph",
        "feedforwards": "feed-forward",
        "norm": "last norm",
        "decoder": "mask decoder",
    }
    middle: Tensor  # (2 * TAPS, 1), real and imaginary of each tap: the filter that changes nothing

    def __init__(self, config: DbTransformConfig) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        layers = range(config.layers)
        self.split = BandSplit(config.band_widths, 3, config.channels)
        self.attentions = nn.ModuleList(BandAttention(config, layer) for layer in layers)
        self.fusions = nn.ModuleList(ScaleFusion(config) for _ in layers)
        self.graphs = nn.ModuleList(HarmonicGraph(config) for _ in layers)
        self.feedforwards = nn.ModuleList(FeedForward(config) for _ in layers)
        self.norm = nn.LayerNorm(config.channels)
        self.decoder = BandDecoder(config.band_widths, config.channels, config.decoder_hidden, 1 + 2 * TAPS)
        middle = torch.zeros(2 * TAPS, 1)
        middle[2 * (TAPS - 1 if config.causal else TAPS // 2)] = 1
        self.register_buffer("middle", middle, persistent=False)

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        config = self.config
        if not self.causal:
            return {}
        shapes: dict[str, tuple[int, ...]] = {
            f"conv_{layer}": (streams, max(config.scales) - 1, config.n_bands, config.channels)
            for layer in range(config.layers)
        }
        shapes["taps"] = (streams, TAPS - 1, 2, config.n_bins)
        return {name: torch.zeros(shape, device=self.norm.weight.device) for name, shape in shapes.items()}

    def uncounted_macs(self) -> dict[str, int]:
        """Multiply-accumulates a frame of the mask's taps: four for a complex product."""
        return {"decoder": 4 * TAPS * self.config.n_bins}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        frames = x.shape[1]
        mask, after = self.estimate(x, state)
        x, mask = x.transpose(-1, -2), mask.transpose(-1, -2)  # (B, T, 2 or 2 * TAPS, F)
        if self.causal:
            spectra = torch.cat([state["taps"], x], dim=1)  # (B, TAPS - 1 + T, 2, F)
            after["taps"] = spectra[:, frames:]
        else:
            spectra = nn.functional.pad(x, (0, 0, 0, 0, TAPS // 2, TAPS // 2))
        real, imag = spectra.split(1, dim=-2)
        parts = mask.split(1, dim=-2)
        y_real, y_imag = torch.zeros_like(x[:, :, :1]), torch.zeros_like(x[:, :, :1])
        for tap in range(TAPS):
            x_real, x_imag = real[:, tap : tap + frames], imag[:, tap : tap + frames]
            m_real, m_imag = parts[2 * tap], parts[2 * tap + 1]
            y_real = y_real + (m_real * x_real - m_imag * x_imag)
            y_imag = y_imag + (m_real * x_imag + m_imag * x_real)
        return torch.cat([y_real, y_imag], dim=-2).transpose(-1, -2), after

    def estimate(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mask of each bin, and the next state but for the taps.

        Y_t = sum over i of C_t,i X_t+i: a filter whose coefficients the network gives anew for each bin and frame (Mack
        & Habets 2020, deep filtering; over time only as in Schroeter et al. 2022, DeepFilterNet). Our reading: its taps
        share one gain in [0, 2] on the compressed magnitude, as the mask of MBS-Net. Without it they would have to be
        0.001 to silence a bin by 60 dB, which a linear layer meets badly; the gain has to be 0.13.

        Returns:
            (B, T, F, 2 * TAPS), real and imaginary part of the oldest frame's tap first; and the state.
        """
        y = self.split(features(x, self.config.compression)).transpose(1, 2)  # (B, T, K, D)
        after: dict[str, Tensor] = {}
        for layer, fusion in enumerate(self.fusions):
            y = self.attentions[layer](y)
            name = f"conv_{layer}"
            y, last = fusion(y, state[name] if self.causal else None)
            if last is not None:
                after[name] = last
            y = self.feedforwards[layer](self.graphs[layer](y))
        decoded = self.decoder(self.norm(y).transpose(1, 2)).transpose(-1, -2)  # (B, T, 1 + 2 * TAPS, F)
        gain, taps = decoded.split([1, 2 * TAPS], dim=-2)
        gain = (2 * torch.sigmoid(gain)) ** (1 / self.config.compression)
        return (gain * (taps + self.middle)).transpose(-1, -2), after


def _rms_norm(x: Tensor) -> Tensor:
    """Input divided by its root mean square along the last axis (Zhang & Sennrich 2019)."""
    return nn.functional.rms_norm(x, x.shape[-1:], eps=1e-5)
