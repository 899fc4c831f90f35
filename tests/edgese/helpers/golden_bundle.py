"""Bundles that a device can test itself with, without a network: hand-written graphs and what they must give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calib.batches import write_batches
from export.bundle import Bundle, seal_bundle

from .identity_bundle import LAG, write_identity_bundle

N_SAMPLES = 40 * 128
LIMITS = {"fp32": {"snr_db": 100.0, "max_abs": 1e-5}, "fp16": {"snr_db": 40.0, "max_abs": None}}


def write_golden_bundle(
    path: Path, *, gain: float = 1.0, golden_gain: float = 1.0, blocks: Sequence[int] = (1, 16), **manifest: Any
) -> Bundle:
    """Graphs that delay by 384 samples and multiply by `gain`, and golden vectors that want `golden_gain`."""
    whole = dict(Bundle.open(write_identity_bundle(path, gain=gain, blocks=blocks)).manifest)
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (1, N_SAMPLES)).astype(np.float32)
    delayed = np.pad(wave, ((0, 0), (LAG, 0)))[:, :N_SAMPLES]
    digest = write_batches(path / "reference.npz", [{"wave": wave, "enhanced": delayed * np.float32(golden_gain)}], {})
    whole["verification"] = {"passed": True, "limits": LIMITS, "results": []}
    whole["reference"] = {"file": "reference.npz", "digest": digest}
    seal_bundle(path, whole | manifest)
    return Bundle.open(path)
