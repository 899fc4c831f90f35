"""Interface of the networks: a spectrum in, a spectrum out, its memory an argument and a result.

Letters: B batch (streams), T frames, F frequency bins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

Form = Literal["train", "export", "exact"]


class Network(nn.Module):
    """Base of all networks; `config` is the `edgese.networks.ModelConfig` that it was built from.

    A causal one looks at earlier frames through its state only, so that any cut of a stream gives the same samples. One
    that is not causal has no state and takes a segment as a whole; it gets no streaming graph.
    """

    causal: bool = True
    parts: ClassVar[Mapping[str, str]] = {}  # name of a submodule -> what tables call it; what is not named: its name
    config: Any

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        """Zero states for `streams` streams, float32 on the network's device, in the order that graphs list them."""
        return {}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced spectrum of a stretch of frames.

        Args:
            x: (B, T, F, 2) spectrum, last axis real and imaginary, linear (not compressed).
            state: at least the tensors of `initial_state`; not changed.

        Returns:
            (B, T, F, 2), and the state after the last frame.
        """
        raise NotImplementedError

    def use_form(self, form: Form) -> None:
        """Compute the same in another way: to train, as graphs are exported, or exactly, for float64."""

    def compile_parts(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Let PyTorch compile the network, or those parts of it that gain by it, for training."""
        self.compile(backend=backend)

    def uncounted_macs(self) -> dict[str, int]:
        """Multiply-accumulates a frame outside PyTorch's matrix products, by submodule; negative: counted too often.

        In the exported form. What is done once for each element (activations, norms) is not counted.
        """
        return {}
