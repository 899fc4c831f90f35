"""One LSTM layer as an operator that torch.export takes as a whole, and as the one node of ONNX that it is.

torch.export follows torch.lstm step by step, to throw the steps away again: half of the time that a streaming graph of
BSRNN takes, and minutes for layers of some hundred steps. Programs of PyTorch, which are opened without this file, keep
torch.lstm: the operator is only for `export.graph.write_onnx`, which says so by `as_one_node`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_one_node: ContextVar[bool] = ContextVar("one_node", default=False)


@contextlib.contextmanager
def as_one_node() -> Iterator[None]:
    """Let modules take `whole_lstm` for torch.lstm: what is captured within becomes ONNX and nothing else."""
    token = _one_node.set(True)
    try:
        yield
    finally:
        _one_node.reset(token)


def wanted_as_one_node() -> bool:
    """True within `as_one_node`."""
    return _one_node.get()


def whole_lstm(x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of torch.lstm for one layer with biases, in both directions if there are eight weights; no gradients.

    Args:
        x: (T, S, I); h, c: (directions, S, H); weights as nn.LSTM orders them.

    Returns:
        (T, S, directions * H), and h and c after it.
    """
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.edgese_export.lstm(x, h, c, list(weights))
    return result


@torch.library.custom_op(
    "edgese_export::lstm",
    mutates_args=(),
    schema="(Tensor x, Tensor h, Tensor c, Tensor[] weights) -> (Tensor, Tensor, Tensor)",
)
def _run(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return torch.lstm(x, (h, c), weights, True, 1, 0.0, False, len(weights) == 8, False)


@_run.register_fake
def _shapes(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape[0], x.shape[1], h.shape[0] * h.shape[2]), torch.empty_like(h), torch.empty_like(c)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The `custom_translation_table` by which torch.onnx.export writes the operator."""
    from onnxscript.function_libs.torch_lib.ops import core

    aten_lstm: Any = core.aten_lstm

    def lstm(x: Any, h: Any, c: Any, weights: Sequence[Any]) -> Any:
        return aten_lstm.func(x, (h, c), weights, True, 1, 0.0, False, len(weights) == 8, False)

    return {torch.ops.edgese_export.lstm.default: lstm}
