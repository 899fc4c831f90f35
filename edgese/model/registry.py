"""Networks by name. A network is a module with `causal`, `initial_state(streams)` and `forward(x, state)`."""

from __future__ import annotations

from collections.abc import Callable

from edgese.config import AudioConfig, ModelConfig
from edgese.errors import ConfigError
from edgese.model.enhancer import MbsNet
from edgese.model.waveform import WaveformEnhancer

NETWORKS: dict[str, Callable[[ModelConfig], MbsNet]] = {"mbs-net": MbsNet}


def build(model: ModelConfig, audio: AudioConfig) -> WaveformEnhancer:
    """An untrained enhancer.

    Raises:
        ConfigError: no network has that name.
    """
    if model.name not in NETWORKS:
        raise ConfigError(f"model.name: found {model.name!r}, wanted one of {', '.join(NETWORKS)}")
    return WaveformEnhancer(NETWORKS[model.name](model), audio)
