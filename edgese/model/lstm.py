"""Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000) in the forms edgese uses.

    i, f, z, o = W x_t + U h_{t-1} + b          i, f, o through a sigmoid, z through tanh
    c_t = f c_{t-1} + i z                       h_t = o tanh(c_t)

Weights are PyTorch's: rows in the order i, f, z, o (there called g), two biases that are added. Letters: T steps, S
sequences, I inputs, H hidden units, R directions (2: the second runs backwards, its output stands after the first's).

    reference_lstm   float64 loop: obvious and slow
    train            torch.lstm, as nn.LSTM calls it (cuDNN on a GPU); float32 where autocast is on
    export           one step forwards as products and plain operators; anything longer as one LSTM node of ONNX (an
                     operator of our own while such a graph is written: export/lstm.py), torch.lstm outside graphs

The choice of the export is measured (ONNX Runtime 1.32, one core; I = 64, H = 128; node against unrolled steps): one
step of 30 sequences 0.10 against 0.04 ms; 8 steps 0.54 against 0.59 ms; both directions over 30 steps of one sequence
0.22 against 0.46 ms, of 8 sequences 1.3 against 6.2 ms. A node may take any number of steps at no cost in size.

The recurrence is float32 in every precision: its products are no `edgese.model.product.Product`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgese.model.network import Form
from export.lstm import wanted_as_one_node, whole_lstm

State = tuple[Tensor, Tensor]  # h and c, (R, S, H) each


def reference_lstm(x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[Tensor, State]:
    """Output and last state by the definition, step by step in float64.

    Args:
        x: (T, S, I).
        state: h and c before the first step, (R, S, H) each.
        weights: for each direction (4H, I), (4H, H), (4H,), (4H,).

    Returns:
        (T, S, R * H), and the state after each direction's last step.
    """
    x, h_all, c_all = (tensor.double() for tensor in (x, *state))
    outputs, last_h, last_c = [], [], []
    for direction in range(len(weights) // 4):
        w, u, w_bias, u_bias = (weight.double() for weight in weights[4 * direction : 4 * direction + 4])
        h, c = h_all[direction], c_all[direction]
        steps: list[Tensor] = []
        for x_t in x.unbind(0) if direction == 0 else x.flip(0).unbind(0):
            i, f, z, o = (x_t @ w.T + w_bias + h @ u.T + u_bias).chunk(4, dim=-1)  # (S, H) each
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
            steps.append(h)
        outputs.append(torch.stack(steps if direction == 0 else steps[::-1]))
        last_h.append(h)
        last_c.append(c)
    return torch.cat(outputs, dim=-1), (torch.stack(last_h), torch.stack(last_c))


class Lstm(nn.LSTM):
    """LSTM layer over the first axis; its parameters have the names and initial values that nn.LSTM gives."""

    def __init__(self, inputs: int, hidden: int, *, bidirectional: bool = False) -> None:
        super().__init__(inputs, hidden, bidirectional=bidirectional)
        self.form: Form = "train"

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute as nn.Module does: nn.LSTM's second list of weights must not change in torch.export."""
        nn.Module.__setattr__(self, name, value)  # type: ignore[arg-type]

    def weights(self) -> list[Tensor]:
        """Weights of each direction: W (4H, I), U (4H, H) and both biases (4H,)."""
        return [getattr(self, name) for name in self._flat_weights_names]

    def forward(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        """Output of one stretch of steps, and the state after it.

        Args:
            input: (T, S, I).
            hx: h and c, (R, S, H) each; None: zeros.

        Returns:
            (T, S, R * H), and the state after it.
        """
        if hx is None:
            zeros = input.new_zeros(2 if self.bidirectional else 1, input.shape[1], self.hidden_size)
            hx = (zeros, zeros)
        if self.form == "exact":
            y, (h, c) = reference_lstm(input, hx, self.weights())
            return y.to(input.dtype), (h.to(input.dtype), c.to(input.dtype))
        if self.form == "train":
            dtype = self.weights()[0].dtype
            with torch.autocast(input.device.type, enabled=False):
                return self._fused(input.to(dtype), (hx[0].to(dtype), hx[1].to(dtype)))
        if input.shape[0] == 1 and not self.bidirectional:
            return self._step(input, hx)
        if wanted_as_one_node():
            y, h, c = whole_lstm(input, *hx, self.weights())
            return y, (h, c)
        return self._fused(input, hx)

    def _fused(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, h, c = torch.lstm(x, state, self.weights(), True, 1, 0.0, self.training, self.bidirectional, False)
        return y, (h, c)

    def _step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        w, u, w_bias, u_bias = self.weights()
        h, c = state
        i, f, z, o = (x @ w.T + h @ u.T + (w_bias + u_bias)).split(self.hidden_size, dim=-1)  # (1, S, H) each
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, (h, c)

    def macs(self, steps: int, sequences: int = 1) -> int:
        """Multiply-accumulates of `steps` steps by definition: 4 H (I + H) for each step, sequence and direction."""
        directions = 2 if self.bidirectional else 1
        return steps * sequences * directions * 4 * self.hidden_size * (self.input_size + self.hidden_size)

    @torch.no_grad()
    def uncounted_macs(self, steps: int, sequences: int = 1) -> int:
        """Multiply-accumulates that PyTorch's counter misses: it sees the products of some kernels only."""
        x = torch.zeros_like(self.weights()[0][:1]).expand(steps, sequences, -1)
        with FlopCounterMode(display=False) as counter:
            self(x)
        seen: int = counter.get_total_flops() // 2
        return self.macs(steps, sequences) - seen
