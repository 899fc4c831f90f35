"""A tiny network that looks ahead, registered for tests and exported once a session; and one that denies it.

Each bin's mask comes from the log magnitudes of frames before and after it, up to `REACH` frames away: enough to need
an overlap, little enough that a segment's middle is what one whole pass gives.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.export_bundle import export_bundle, require_passed
from edgese.model.checkpoint import save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.network import Network
from edgese.model.product import Linear
from edgese.model.registry import build
from edgese.networks import ModelConfig, register
from export.bundle import Bundle

from .made_once import made_once

NAME = "looks-ahead"
HOP = 128
HOPS = 128  # of a segment: the least there may be

OFFSETS = (-16, -8, -3, -1, 0, 1, 3, 8, 16)  # frames that one frame hears
REACH = max(OFFSETS)


@dataclasses.dataclass(frozen=True)
class LookAheadConfig(ModelConfig):
    """Settings of the network."""

    name: str = NAME
    hidden: int = 8


@dataclasses.dataclass(frozen=True)
class ClairvoyantConfig(LookAheadConfig):
    """The same, of the network that says it were causal."""

    name: str = "clairvoyant"


class LookAhead(Network):
    """Taps on both sides of each frame."""

    causal = False
    parts: ClassVar[dict[str, str]] = {"taps": "taps", "mask": "mask"}

    def __init__(self, config: LookAheadConfig) -> None:
        super().__init__()
        self.config = config
        self.taps = Linear(len(OFFSETS), config.hidden)
        self.mask = Linear(config.hidden, 1)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        n_frames = x.shape[1]
        level = torch.log(x.square().sum(dim=-1) + 1e-4)  # (B, T, F)
        padded = nn.functional.pad(level, (0, 0, REACH, REACH))
        heard = torch.stack([padded[:, REACH + at : REACH + at + n_frames] for at in OFFSETS], dim=-1)
        mask = torch.sigmoid(self.mask(torch.tanh(self.taps(heard))))  # (B, T, F, 1)
        return x * mask, {}


class Clairvoyant(LookAhead):
    """The same network, that claims to be causal."""

    causal = True


register(NAME, LookAheadConfig, f"{__name__}:LookAhead", {NAME: LookAheadConfig()})
register("clairvoyant", ClairvoyantConfig, f"{__name__}:Clairvoyant", {"clairvoyant": ClairvoyantConfig()})

_bundles: list[Bundle] = []


def look_ahead(config: LookAheadConfig | None = None) -> WaveformEnhancer:
    """The seeded network, whose mask moves."""
    torch.manual_seed(3)
    enhancer = build(config or LookAheadConfig(), AudioConfig()).eval()
    with torch.no_grad():
        enhancer.network.taps.weight.mul_(0.5)
        enhancer.network.mask.weight.mul_(8)
    return enhancer


def ahead_bundle(folders: pytest.TempPathFactory) -> Bundle:
    """Its bundle in fp32, its weights file beside it; shared, so never to be changed."""
    if not _bundles:
        _bundles.append(Bundle.open(made_once("ahead", _export, folders) / "ahead.bundle"))
    return _bundles[0]


def _export(folder: Path) -> None:
    enhancer, weights = look_ahead(), folder / "ahead.safetensors"
    save_weights(weights, enhancer, enhancer.state_dict())
    require_passed(export_bundle(weights, folder / "ahead.bundle", name="ahead", segment_hops=HOPS))
