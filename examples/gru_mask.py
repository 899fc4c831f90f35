"""A causal network from outside edgese: bands that mix, a GRU over time in each of them, a mask on magnitudes.

Shapes: B streams, T frames, F bins, K bands, D channels. How to use it, and what its parts are for: docs/networks.md.
"""

import dataclasses

import torch
from torch import Tensor, nn

from edgese.model.bands import BandDecoder, BandFusion, BandSplit
from edgese.model.network import Network
from edgese.model.product import Linear
from edgese.networks import ModelConfig, register


@dataclasses.dataclass(frozen=True)
class GruConfig(ModelConfig):
    name: str = "gru-mask"
    channels: int = 32
    layers: int = 2


class Gru(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.new = Linear(channels, 3 * channels)  # edgese's: may be taken in half precision or INT8
        self.old = nn.Linear(channels, 3 * channels)  # PyTorch's: what is remembered stays float32

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:  # (B, K, T, D), (B, K, D)
        outputs = []
        for new in self.new(x).unbind(2):  # T times (B, K, 3 D)
            (reset, keep, fresh), (old_reset, old_keep, old) = new.chunk(3, -1), self.old(memory).chunk(3, -1)
            fresh = torch.tanh(fresh + torch.sigmoid(reset + old_reset) * old)
            memory = fresh + torch.sigmoid(keep + old_keep) * (memory - fresh)
            outputs.append(memory)
        return torch.stack(outputs, 2), memory


class GruMask(Network):
    def __init__(self, config: GruConfig) -> None:
        super().__init__()
        self.config = config
        self.split = BandSplit(config.band_widths, 1, config.channels)
        self.grus = nn.ModuleList(Gru(config.channels) for _ in range(config.layers))
        self.fusions = nn.ModuleList(BandFusion(config.n_bands, config.channels) for _ in range(config.layers))
        self.decoder = BandDecoder(config.band_widths, config.channels, 2 * config.channels, 1)

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        return {f"gru_{i}": torch.zeros_like(self.split.bias).repeat(streams, 1, 1) for i in range(len(self.grus))}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = self.split(torch.log(x.square().sum(-1, keepdim=True) + 1e-7) / 8), {}  # (B, K, T, D)
        for i, (gru, fusion) in enumerate(zip(self.grus, self.fusions, strict=True)):
            y, after[f"gru_{i}"] = gru(fusion(y), state[f"gru_{i}"])
        mask = 2 * torch.sigmoid(self.decoder(y))  # (B, T, F, 1) of |X|^compression; untrained: nearly 1
        return x * mask ** (1 / self.config.compression), after


register("gru-mask", GruConfig, f"{__name__}:GruMask", {"gru-mask": GruConfig()})
