"""Checkpoints, each one file with all that a run needs to go on, written whole or not at all; weights to ship."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgese.atomic_file import write_output
from edgese.config import AudioConfig, from_dict, to_dict
from edgese.errors import CheckpointError, ConfigError
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.registry import build
from edgese.networks import ModelConfig
from export.schema import SchemaError, parse_json

_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full, torch.arange, torch.eye)
_ROOM = 100_000_000  # elements that a network may make besides its weights, such as a DFT's matrix


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; the file appears under its name when it is complete.

    Raises:
        OutputError: it cannot be written; an older one is as it was.
    """
    packed = io.BytesIO()  # PyTorch's writer says of a full disk no more than "unexpected pos"
    torch.save(content, packed)
    write_output(path, packed.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint that `save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is missing, unreadable or holds anything but plain data.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such checkpoint") from error
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__})") from error
    return content


def save_weights(path: Path, enhancer: WaveformEnhancer, weights: dict[str, Tensor]) -> None:
    """Write weights as safetensors, with both configs in the file's metadata; whole or not at all.

    Raises:
        OutputError: they cannot be written; older ones are as they were.
    """
    write_output(path, packed_weights(enhancer, weights))


def packed_weights(enhancer: WaveformEnhancer, weights: dict[str, Tensor]) -> bytes:
    """Content of a weights file; equal weights and configs give equal bytes."""
    settings = {"audio": to_dict(enhancer.audio), "model": to_dict(enhancer.network.config)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(weights.items())}
    return safetensors.torch.save(tensors, metadata={"edgese": json.dumps(settings, sort_keys=True)})


def load_enhancer(path: Path) -> WaveformEnhancer:
    """Enhancer with the weights of a `.safetensors` file or of a training checkpoint (`.pt`, its averaged weights).

    Raises:
        CheckpointError: the file is missing, broken, or its weights do not fit the config it holds.
    """
    if path.suffix == ".pt":
        content = load_checkpoint(path)
        try:
            settings, weights = content["config"], content["ema"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of `edgese train`: {error} is missing") from error
    else:
        settings, weights = _read_safetensors(path)
    try:
        with _Budget(_ROOM + 4 * sum(tensor.numel() for tensor in weights.values())):
            enhancer = build(from_dict(ModelConfig, settings["model"]), from_dict(AudioConfig, settings["audio"]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
        raise CheckpointError(f"{path}: the config it holds is none of edgese ({error})") from error
    try:
        enhancer.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its weights do not fit its own config: {error}") from error
    return enhancer.eval()


class _Budget(TorchFunctionMode):
    """Context in which no more elements of tensors are made than a network of the weights at hand can need.

    Raises:
        ValueError: settings, which come from a file, would make a larger one: before its memory is touched.
    """

    def __init__(self, most_elements: int) -> None:
        super().__init__()
        self._left = most_elements

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function in _FACTORIES:
            self._left -= made.numel()
            if self._left < 0:
                raise ValueError("its network is far larger than its weights")
        return made


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such weights file") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    if "edgese" not in metadata:
        raise CheckpointError(f"{path}: found no edgese config in its metadata; wanted weights saved by `edgese train`")
    try:
        return parse_json(metadata["edgese"]), weights
    except SchemaError as error:
        raise CheckpointError(f"{path}: the config in its metadata cannot be read ({error})") from error
