"""Building of networks by name, from the code that `edgese.networks` names."""

from __future__ import annotations

import importlib

from edgese.config import AudioConfig
from edgese.errors import ConfigError
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.network import Network
from edgese.networks import NETWORKS, ModelConfig, config_class


def build(model: ModelConfig, audio: AudioConfig) -> WaveformEnhancer:
    """Untrained enhancer of a network with these settings.

    Raises:
        ConfigError: no network has that name, its code cannot be loaded, or is no network.
    """
    config_class(model.name)
    module, _, name = NETWORKS[model.name].code.partition(":")
    try:
        network = getattr(importlib.import_module(module), name)(model)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"network {model.name}: {module}:{name} cannot be loaded ({error})") from error
    if not isinstance(network, Network):
        raise ConfigError(f"network {model.name}: {module}:{name} is no edgese.model.network.Network")
    return WaveformEnhancer(network, audio)
