"""Teacher: another network's enhanced sound of the same noisy batch; its part in the objective stands in losses.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from edgese.config import AudioConfig
from edgese.errors import TrainingError
from edgese.model.checkpoint import load_enhancer
from edgese.model.enhancer import WaveformEnhancer
from edgese.train.aligned import aligned


class Teacher:
    """Network of a weights file, in its form for training, without gradients."""

    def __init__(self, weights: Path, audio: AudioConfig, device: str, *, bfloat16: bool) -> None:
        """Open the weights.

        Raises:
            CheckpointError: not a file of weights.
            TrainingError: weights for another signal.
        """
        enhancer = load_enhancer(weights)
        if enhancer.audio != audio:
            raise TrainingError(f"{weights}: a teacher for another signal: found {enhancer.audio}, wanted {audio}")
        self.digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        self.enhancer: WaveformEnhancer = enhancer.to(device).requires_grad_(False)
        self.enhancer.network.use_form("train")
        self._bfloat16 = bfloat16

    @torch.no_grad()
    def enhance(self, noisy: Tensor) -> Tensor:
        """Enhanced sound of (B, n_samples), as `aligned` gives it."""
        return aligned(self.enhancer, self.enhancer, noisy, bfloat16=self._bfloat16)
