"""Operations of long segments, drawn through short runs: the numbers of the long run itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.model import cost
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.network import Network
from edgese.model.registry import build
from edgese.networks import BsrnnConfig, OriginalConfig

HOPS = 45


class Attention(Network):
    """Every frame looks at every other: products grow with the square of the number of frames."""

    causal = False

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.config, self.every = None, every
        self.inner = nn.Linear(257, 8)
        self.outer = nn.Linear(8, 257)

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.inner(x[..., 0])
        kept = y[:, :: self.every]
        mask = self.outer(torch.softmax(y @ kept.transpose(1, 2), dim=-1) @ kept)
        return x * mask[..., None], state


def enhancers() -> dict[str, WaveformEnhancer]:
    bands = (17, 80, 160)
    bsrnn = BsrnnConfig(band_widths=bands, channels=4, layers=1, hidden=4, decoder_hidden=4)
    original = OriginalConfig(
        band_widths=bands, channels=4, layers=1, states=2, dt_rank=2, head_hidden=4, decoder_hidden=4
    )
    own = {config.name: build(config, AudioConfig()) for config in (bsrnn, original)}
    return own | {
        "attention": WaveformEnhancer(Attention(), AudioConfig()),
        "no parabola": WaveformEnhancer(Attention(every=7), AudioConfig()),  # of every seventh frame, rounded up
    }


@pytest.mark.parametrize("name", ["bsrnn", "mbs-net-original", "attention", "no parabola"])
def test_a_long_segment_costs_what_it_says_without_being_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    enhancer = enhancers()[name].eval()
    runs: list[int] = []
    run = cost._run
    monkeypatch.setattr(cost, "_run", lambda enhancer, hops: runs.append(hops) or run(enhancer, hops))
    drawn = cost.macs_per_frame(enhancer, HOPS)
    assert runs == [4, 8, 12, 16] + [HOPS] * (name == "no parabola")
    monkeypatch.setattr(cost, "_SHORT", (HOPS,))
    assert drawn == cost.macs_per_frame(enhancer, HOPS)
    assert sum(drawn.values()) > 0
