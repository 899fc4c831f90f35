"""MBS-Net network: band split, Mamba over time, fusion across bands, magnitude and phase heads. Causal.

    X (B, T, F, 2) -> band split -> L x Mamba block (weights shared by the bands) -> cross-band fusion
      -> magnitude head and decoder: mask; phase head and decoder: rotation as a unit vector -> mask * rotation * X

Sources: band split, Luo & Yu 2023 (BSRNN); Mamba, Gu & Dao 2023; parallel magnitude and phase, Lu et al. 2023
(MP-SENet); Mamba for enhancement, Chao et al. 2024 (SEMamba). Nothing looks at another frame except through the
states of the blocks, and the input is not normalised over a band: that would erase the level.

Spectra come and go as (B, T, F, 2), but are worked on as (B, T, 2, F): a last axis of 1 or 2 makes runtimes slow, which
drop transposes that meet.

Letters: B batch (streams), T frames, F bins, K bands, D channels, E inner channels, N states, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgese.model.bands import BandAttention, BandDecoder, BandFusion, BandSplit
from edgese.model.compression import features
from edgese.model.mamba import MambaBlock, ScanForm
from edgese.model.network import Form, Network
from edgese.model.product import Linear
from edgese.networks import MbsConfig

_SCANS: dict[Form, ScanForm] = {"train": "chunked", "export": "unrolled", "exact": "reference"}


class MbsNet(Network):
    """MBS-Net, the default network of edgese."""

    parts = {  # noqa: RUF012 - a constant
        "split": "band split",
        "blocks": "Mamba blocks",
        "fusions": "cross-band fusion",
        "norm": "last norm",
        "magnitude_head": "magnitude head",
        "phase_head": "phase head",
        "magnitude_decoder": "magnitude decoder",
        "phase_decoder": "phase decoder",
    }
    upright: Tensor  # (2, 1), the rotation by nothing

    def __init__(self, config: MbsConfig) -> None:
        super().__init__()
        self.config = config
        self.split = BandSplit(config.band_widths, 3, config.channels)
        self.blocks = nn.ModuleList(MambaBlock(config) for _ in range(config.layers))
        fusion = BandAttention if config.fusion == "attention" else BandFusion
        n_fusions = 1 if config.fusion == "once" else config.layers
        self.fusions = nn.ModuleList(fusion(config.n_bands, config.channels) for _ in range(n_fusions))
        self.register_buffer("upright", torch.tensor([[1.0], [0.0]]), persistent=False)
        self.norm = nn.LayerNorm(config.channels)
        self.magnitude_head = Linear(config.channels, config.channels)
        self.phase_head = Linear(config.channels, config.channels)
        self.magnitude_decoder = BandDecoder(config.band_widths, config.channels, config.decoder_hidden, 1)
        self.phase_decoder = BandDecoder(config.band_widths, config.channels, config.decoder_hidden, 2)
        self.regions: Regions | None = None

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        config = self.config
        device = self.norm.weight.device
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(config.layers):
            shapes[f"conv_{layer}"] = (streams, config.n_bands, config.conv_width - 1, config.inner)
            shapes[f"ssm_{layer}"] = (streams, config.n_bands, config.states, config.inner)
        return {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}

    def use_scan(self, form: ScanForm) -> MbsNet:
        """Choose the form of the selective scan: chunked to train, unrolled to export."""
        for block in self.blocks:
            block.scan_form = form  # type: ignore[assignment]
        return self

    def use_form(self, form: Form) -> None:
        self.use_scan(_SCANS[form])

    def compile_parts(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile what lies between the scans, with one of PyTorch's compilers: one graph serves all layers."""

        def compiled(part: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(part, dynamic=False, fullgraph=True, backend=backend)

        parts: tuple[Callable[..., Any], ...] = (_before, _between, _ended, MbsNet.decoded)
        self.regions = Regions(*map(compiled, parts))

    def uncounted_macs(self) -> dict[str, int]:
        """Multiply-accumulates a frame of the scans and the convolutions, by their definition."""
        config = self.config
        # per band and channel: decay * h and b * x for each state (c . h is a product); the taps
        elementwise = config.n_bands * config.inner * (2 * config.states + config.conv_width)
        # a head's values are copied to its channels by a product with zeros and ones: dt for each band, and a once
        copies = (config.n_bands + 1) * config.decay_heads * config.inner if config.decay_heads < config.inner else 0
        return {"blocks": config.layers * (elementwise - copies)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mask, rotation, state = self.estimate(x, state)
        x, mask, rotation = (tensor.transpose(-1, -2) for tensor in (x, mask, rotation))  # (B, T, 1 or 2, F)
        gain = mask ** (1 / self.config.compression)  # the mask is one of compressed magnitudes
        real, imag = (x * gain).split(1, -2)  # (B, T, 1, F)
        cos, sin = rotation.split(1, -2)
        return torch.cat([real * cos - imag * sin, real * sin + imag * cos], dim=-2).transpose(-1, -2), state

    def estimate(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mask and phase rotation of each bin, and the next state.

        Returns:
            (B, T, F, 1) mask in [0, 2] on the compressed magnitude, (B, T, F, 2) rotation as unit vectors, state.
        """
        after: dict[str, Tensor] = {}
        if self.regions:
            y = self._through_regions(self.regions, x, state, after)
            return *self.regions.decoded(self, y), after
        y = self.banded(x)
        for layer, (block, fusion) in enumerate(self.layers()):
            conv, ssm = f"conv_{layer}", f"ssm_{layer}"
            y, after[conv], after[ssm] = block(y, state[conv], state[ssm])
            y = fusion(y)
        return *self.decoded(y), after

    def banded(self, x: Tensor) -> Tensor:
        """Channels of each band, (B, K, T, D), of a spectrum."""
        y: Tensor = self.split(features(x, self.config.compression))
        return y

    def layers(self) -> list[tuple[MambaBlock, nn.Module]]:
        """Blocks, each with the mixing of bands that follows it, which may be none."""
        fusions = [*[nn.Identity()] * (len(self.blocks) - len(self.fusions)), *self.fusions]  # once: after the last
        return list(zip(self.blocks, fusions, strict=True))  # type: ignore[arg-type]

    def decoded(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mask (B, T, F, 1) and rotation (B, T, F, 2) of what the last layer gives."""
        y = self.norm(y)
        mask = self.magnitude_decoder(torch.sigmoid(self.magnitude_head(y))).transpose(-1, -2)  # (B, T, 1, F)
        mask = 2 * torch.sigmoid(mask)
        rotation = self.phase_decoder(torch.tanh(self.phase_head(y))).transpose(-1, -2)  # (B, T, 2, F)
        rotation = rotation + self.upright  # an untrained one turns nothing
        length = torch.sqrt((rotation * rotation).sum(-2, keepdim=True) + 1e-8)
        return mask.transpose(-1, -2), (rotation / length).transpose(-1, -2)

    def _through_regions(
        self, regions: Regions, x: Tensor, state: dict[str, Tensor], after: dict[str, Tensor]
    ) -> Tensor:
        """What the last layer gives, (B, K, T, D), by compiled regions with the scans between them."""
        layers = self.layers()
        y, (inputs, gate, after["conv_0"]) = regions.before(self, x, state["conv_0"])
        for layer, (block, fusion) in enumerate(layers):
            scanned, after[f"ssm_{layer}"] = block.scan(inputs, state[f"ssm_{layer}"])
            done = (block, fusion, y, scanned, inputs[0], gate)
            if layer + 1 == len(layers):
                break
            conv = f"conv_{layer + 1}"
            y, (inputs, gate, after[conv]) = regions.between(layers[layer + 1][0], state[conv], *done)
        return regions.ended(*done)


class Regions(NamedTuple):
    """Functions for what is computed before the first scan, between two and behind the last, each one graph.

    They take modules as arguments: the graph between two scans serves all layers.
    """

    before: Callable[..., tuple[Tensor, Half]]
    between: Callable[..., tuple[Tensor, Half]]
    ended: Callable[..., Tensor]
    decoded: Callable[[MbsNet, Tensor], tuple[Tensor, Tensor]]


Half = tuple[tuple[Tensor, ...], Tensor, Tensor]  # first half of a block: inputs of its scan, gate, next state


def _before(network: MbsNet, x: Tensor, conv: Tensor) -> tuple[Tensor, Half]:
    y = network.banded(x)
    return y, network.layers()[0][0].before_scan(y, conv)


def _between(block: MambaBlock, conv: Tensor, *done: Any) -> tuple[Tensor, Half]:
    """End of the layer before, whose parts `done` are, and the first half of a block."""
    y = _ended(*done)
    return y, block.before_scan(y, conv)


def _ended(block: MambaBlock, fusion: nn.Module, x: Tensor, scanned: Tensor, u: Tensor, gate: Tensor) -> Tensor:
    """Second half of a block, and the mixing of bands after it: (B, K, T, D)."""
    mixed: Tensor = fusion(block.after_scan(x, scanned, u, gate))
    return mixed
