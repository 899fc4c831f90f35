"""The tiny network's bundle, exported once for each parametrisation: PyTorch takes seconds for a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from edgese.export_bundle import export_bundle, require_passed
from edgese.model.checkpoint import save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.networks import MbsConfig
from export.bundle import Bundle

from .made_once import made_once

NAME = "tiny"
HOP = 128

# Hops a call, by the number of decay heads: sizes that are offered by default, and an odd one.
BLOCKS = {0: (1, 4, 8), 4: (1, 3)}

TINY = MbsConfig(  # the second of conftest's
    channels=8, layers=2, states=4, dt_rank=2, chunk=5, decoder_hidden=8, decay_heads=4, expand=2, fusion="each"
)
ONE_NETWORK = pytest.mark.parametrize(
    "tiny_config",
    [TINY],
    indirect=True,
    ids=["decay-per-head"],
)

Change = Callable[[onnx.ModelProto], None]

_bundles: dict[MbsConfig, Bundle] = {}


def tiny_bundle(enhancer: WaveformEnhancer, folders: pytest.TempPathFactory) -> Bundle:
    """The bundle of the fixture `tiny_enhancer`, its weights file beside it; shared, so never to be changed."""
    config = enhancer.network.config

    def make(folder: Path) -> None:
        weights = folder / "tiny.safetensors"
        save_weights(weights, enhancer, enhancer.state_dict())
        require_passed(export_bundle(weights, folder / "tiny.bundle", name=NAME, blocks=BLOCKS[config.decay_heads]))

    if config not in _bundles:
        folder = made_once(f"tiny-{config.decay_heads}", make, folders)
        _bundles[config] = Bundle.open(folder / "tiny.bundle")
    return _bundles[config]


def rewriting(bundle: Bundle, change: Change | None = None) -> Callable[..., None]:
    """Stands in for `write_onnx`: what that wrote for this bundle, written again at once, changed if asked to."""

    def write_onnx(module: Any, inputs: Any, outputs: Any, path: Path, *, dynamic_axes: Any, metadata: Any) -> None:
        model = onnx.load(bundle.path / path.name)
        if change is not None:
            change(model)
        del model.metadata_props[:]
        helper.set_model_props(model, dict(metadata))
        onnx.save(model, path)

    return write_onnx


def scale_weight(model: onnx.ModelProto, name: str, factor: float) -> None:
    """Multiplies one initializer of floats, in place."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(factor * onnx.numpy_helper.to_array(tensor), name))
