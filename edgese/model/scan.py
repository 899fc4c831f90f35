"""The selective scan (Gu & Dao 2023, Mamba, eq. 2 with zero-order hold on A and Euler on B) in every form edgese uses.

    h_t = exp(dt_t * a) * h_{t-1} + b_t (dt_t * u_t)          y_t = c_t . h_t

Letters: S sequences (one or more axes), T frames, D channels, N states, H decay heads, P = D / H channels of a head.

    u   (S, T, D)   input                     b, c  (S, T, N)   input and output projections
    dt  (S, T, H)   step size, positive       h     (S, N, D)   state; D innermost: 3 times faster on a CPU
    a   (M, H)      decay rate, negative      y     (S, T, D)   output

One signature covers two parametrisations. Mamba: H = D, M = N, a decay per channel and state. Mamba-2 (Dao & Gu 2024):
H < D and M = 1, one decay for the P channels of a head; channel d belongs to head d // P. Sequences of several blocks
can be scanned in one call: `a` may have axes in front, which broadcast against S.

All forms return (y, state after the last frame) and agree with `reference_scan` in values and gradients:

    reference_scan   float64 loop: obvious and slow
    full_scan        the whole sequence at once, as in published training code: kept to measure what chunking saves
    chunked_scan     training: memory bounded by the chunk
    unrolled_scan    export: a static graph of T frames without control flow; T = 1 is the streaming step
    looped_scan      export: one ONNX Scan, whose body is one frame: the graph does not grow with T
    prefix_scan      export: log2 T stages over all frames at once, for long sequences on a GPU
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as scan_operator
from torch.autograd.function import once_differentiable

GPU_CHUNK = 8  # frames between two states that the GPU's kernels keep, with a decay per head

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def reference_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan by the definition, frame by frame in float64; shapes in the module docstring."""
    u, dt, a, b, c, h = (tensor.double() for tensor in (u, dt, a, b, c, h))
    dt, a = _per_channel(dt, u.shape[-1]), _per_channel(a, u.shape[-1])
    outputs = []
    for t in range(u.shape[-2]):
        decay = torch.exp(dt[..., t, None, :] * a)  # (S, M, D)
        h = decay * h + b[..., t, :, None] * (dt[..., t, :] * u[..., t, :])[..., None, :]  # (S, N, D)
        outputs.append((c[..., t, :, None] * h).sum(dim=-2))  # (S, D)
    return torch.stack(outputs, dim=-2), h


def full_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan that discretises all frames first: O(T N D) memory, several times over once gradients are kept.

    In the state's precision where autocast is on, as `chunked_scan`.
    """
    u, dt, b, c = (tensor.to(h.dtype) for tensor in (u, dt, b, c))
    with torch.autocast(u.device.type, enabled=False):
        decay, inputs = _discretised(u, dt, a, b)
        states = []
        for decay_t, input_t in zip(decay.unbind(-3), inputs.unbind(-3), strict=True):
            h = torch.addcmul(input_t, decay_t, h)
            states.append(h)
        return torch.einsum("...tn,...tnd->...td", c, torch.stack(states, dim=-3)), h


def unrolled_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan as a static graph of T frames: frame by frame or, with one decay per head, as products of a whole block.

    A frame makes its own decays and inputs just before it uses them: they are still in the cache then, which those of
    all frames, (S, T, N, D), would not be (benchmarks/RESULTS.md).
    """
    frames, channels, heads = u.shape[-2], u.shape[-1], dt.shape[-1]
    if heads < channels:
        if frames > 1 and a.shape[0] == 1:
            return _block_by_head(u, dt, a, b, c, h)
        spread = _spread(heads, u)
        dt, a = dt @ spread, a @ spread
    outputs = []
    for x_t, dt_t, b_t, c_t in zip(*(tensor.split(1, dim=-2) for tensor in (dt * u, dt, b, c)), strict=True):
        h = torch.exp(dt_t * a) * h + b_t.transpose(-1, -2) * x_t  # (S, N, D): the one frame's axis is taken for N
        outputs.append(c_t @ h)
    return torch.cat(outputs, dim=-2), h


def _block_by_head(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan of all frames at once (Dao & Gu 2024, section 6): frame r's part in frame t is a product, without steps.

    The log of a decay is the sum of the rates between its frames, by a table of ones: never positive, where the
    difference of two long sums would have to be kept from it.
    """
    frames, heads = dt.shape[-2:]
    spread = _spread(heads, u)
    x = u * (dt @ spread)  # (S, T, D)
    rates = dt * a  # (S, T, H), log of each frame's decay
    by = torch.ones(frames, frames, dtype=torch.bool, device=u.device).tril()  # [t, s]: frame s is over by frame t
    until, after, between = (table.to(u.dtype) for table in (by, ~by, by[:, None] & ~by))  # between: [t, r, s], r < s
    decay = (rates.transpose(-1, -2) @ between.flatten(0, 1).T).exp().unflatten(-1, (frames, frames))  # (S, H, T, T)
    weight = ((c @ b.transpose(-1, -2)) * until).unsqueeze(-3) * decay  # [t, r]: what t sees of r's input
    within = weight @ x.unflatten(-1, (heads, -1)).transpose(-2, -3)  # (S, H, T, P)
    kept, left = (torch.exp(table @ rates) @ spread for table in (until, after))  # (S, T, D) each
    y = within.transpose(-2, -3).flatten(-2) + (c @ h) * kept
    return y, kept[..., -1:, :] * h + b.transpose(-1, -2) @ (x * left)


def _spread(heads: int, per_channel: Tensor) -> Tensor:
    """Matrix of zeros and ones, (H, D), that copies a head's value to each of its channels.

    A product where `_per_channel` would do: runtimes gather single floats ten times slower.
    """
    one_each = torch.eye(heads, dtype=per_channel.dtype, device=per_channel.device)
    return one_each.repeat_interleave(per_channel.shape[-1] // heads, dim=1)


def prefix_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan in log2 T stages (Hillis & Steele 1986): after stage k each frame holds the sum over its last 2^k frames.

    T times as parallel as a loop, for log2 T times the arithmetic and all states in memory.
    """
    frames = u.shape[-2]
    decay, state = _discretised(u, dt, a, b)
    state = torch.cat([state[..., :1, :, :] + decay[..., :1, :, :] * h[..., None, :, :], state[..., 1:, :, :]], dim=-3)
    reach = 1
    while reach < frames:
        late = decay[..., reach:, :, :]
        summed = state[..., reach:, :, :] + late * state[..., : frames - reach, :, :]
        state = torch.cat([state[..., :reach, :, :], summed], dim=-3)
        decay = torch.cat([decay[..., :reach, :, :], late * decay[..., : frames - reach, :, :]], dim=-3)
        reach *= 2
    return (c[..., None, :] @ state).squeeze(-2), state[..., -1, :, :]


def _discretised(u: Tensor, dt: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Decay of the state, (S, T, M, D), and what is added to it, (S, T, N, D), of all frames."""
    dt, a = _per_channel(dt, u.shape[-1]), _per_channel(a, u.shape[-1])
    return torch.exp(dt[..., None, :] * a[..., None, :, :]), b[..., None] * (dt * u)[..., None, :]


def looped_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Scan as one ONNX Scan over the frames (PyTorch's `scan` operator, which its exporter translates to that).

    Where nothing is exported the same frames are stepped through by Python: the operator would compile itself first.
    """
    sequences, channels = h.shape[:-2], u.shape[-1]
    dt, a = _per_channel(dt, channels), _per_channel(a, channels)
    if not torch.compiler.is_exporting():
        return unrolled_scan(u, dt, a, b, c, h)
    if a.ndim > 2:
        a = a.expand(*sequences, *a.shape[-2:]).flatten(0, -3)  # (S, M, D)

    def step(h: Tensor, frame: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        x_t, dt_t, b_t, c_t = frame
        h = torch.exp(dt_t * a) * h + b_t * x_t
        return h, torch.bmm(c_t, h)

    x, dt, b, c = (tensor.flatten(0, -3).transpose(0, 1) for tensor in (dt * u, dt, b, c))  # (T, S, D or N)
    frames = (x[..., None, :], dt[..., None, :], b[..., None], c[..., None, :])
    h, y = scan_operator(step, h.flatten(0, -3), frames, dim=0)  # y: (T, S, 1, D)
    return y.squeeze(-2).transpose(0, 1).unflatten(0, sequences), h.unflatten(0, sequences)


def chunked_scan(chunk: int) -> Scan:
    """Scan for training: keeps one state per `chunk` frames and recomputes what lies between for the gradients.

    With a decay per head the frames of a chunk are matrix products (Dao & Gu 2024, section 6); with a decay per
    channel and state they are a short loop. Both run in float32 (or float64) where autocast is on: a decay rounded to
    half precision is a wrong one after some hundred frames.
    """

    def scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        u, dt, b, c = (tensor.to(h.dtype) for tensor in (u, dt, b, c))
        with torch.autocast(u.device.type, enabled=False):
            return chunked(u, dt, a, b, c, h)

    def chunked(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        sequences = h.shape[:-2]
        if a.ndim > 2:
            a = a.expand(*sequences, *a.shape[-2:]).flatten(0, -3)  # (S, M, H)
        u, dt, b, c, h = (tensor.flatten(0, -3) for tensor in (u, dt, b, c, h))  # (S, ...) with one axis for S
        kernel = _by_channel(u)
        by_head = a.shape[-2] == 1 and dt.shape[-1] < u.shape[-1]
        if by_head and kernel is _ChunkedByChannel:
            y, h = _chunked_by_head(chunk, u, dt, a, b, c, h)
        else:  # the kernels take heads too, spread over their channels: 1,870 s of sound a second on an H200
            dt, a = _per_channel(dt, u.shape[-1]), _per_channel(a, u.shape[-1])
            kept = min(chunk, GPU_CHUNK) if by_head else chunk
            y, h = kernel.apply(kept, u, dt, a.expand(*a.shape[:-2], b.shape[-1], -1), b, c, h)
        return y.unflatten(0, sequences), h.unflatten(0, sequences)

    return scan


def _per_channel(per_head: Tensor, channels: int) -> Tensor:
    """Values of each head for each of its channels: (..., H) -> (..., D)."""
    heads = per_head.shape[-1]
    if heads == channels:
        return per_head
    wide = per_head[..., None].expand(*per_head.shape, channels // heads)
    return wide.reshape(*per_head.shape[:-1], channels)


def _chunked_by_head(
    chunk: int, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    frames, channels = u.shape[1], u.shape[2]
    spare = -frames % chunk
    if spare:  # frames with dt = 0 neither decay nor feed the state
        u, dt, b, c = (torch.nn.functional.pad(tensor, (0, 0, 0, spare)) for tensor in (u, dt, b, c))
    heads = dt.shape[-1]
    x = u * _per_channel(dt, channels)
    x, dt, b, c = (tensor.unflatten(1, (-1, chunk)) for tensor in (x, dt, b, c))  # (S, Q, chunk, ...)
    rates = dt * (a if a.ndim == 2 else a[:, None])
    decay = rates.cumsum(dim=2)  # (S, Q, chunk, H), log of the decay since the chunk began
    log_weight = decay.transpose(2, 3)[..., :, None] - decay.transpose(2, 3)[..., None, :]  # (S, Q, H, t, s)
    future = torch.ones(chunk, chunk, dtype=torch.bool, device=u.device).triu(1)
    weight = (c @ b.transpose(2, 3))[:, :, None] * log_weight.masked_fill(future, float("-inf")).exp()
    x_heads = x.unflatten(-1, (heads, -1)).transpose(2, 3)  # (S, Q, H, chunk, P)
    within = (weight @ x_heads).transpose(2, 3).flatten(-2)  # (S, Q, chunk, D)

    to_end = _per_channel((decay[:, :, -1:] - decay).exp(), channels)
    fed = b.transpose(2, 3) @ (x * to_end)  # (S, Q, N, D), what a chunk adds to the state
    kept = _per_channel(decay[:, :, -1].exp(), channels)  # (S, Q, D), what it keeps of the state before
    before = []
    for fed_q, kept_q in zip(fed.unbind(1), kept.unbind(1), strict=True):
        before.append(h)
        h = kept_q[:, None, :] * h + fed_q
    y = within + (c @ torch.stack(before, dim=1)) * _per_channel(decay.exp(), channels)
    return y.flatten(1, 2)[:, :frames], h


def _by_channel(u: Tensor) -> type[torch.autograd.Function]:
    """Function that scans with a decay per channel: two kernels on a GPU that has Triton, else frame by frame."""
    if u.is_cuda and u.dtype == torch.float32 and importlib.util.find_spec("triton") is not None:
        from edgese.model.scan_triton import TritonScan

        return TritonScan
    return _ChunkedByChannel


class _ChunkedByChannel(torch.autograd.Function):
    """Sequential scan whose backward pass rebuilds the states of one chunk at a time from the state before it."""

    @staticmethod
    def forward(
        ctx: Any, chunk: int, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(u)
        before = []
        for start in range(0, u.shape[1], chunk):
            before.append(h)
            for t in range(start, min(start + chunk, u.shape[1])):
                h = torch.exp(dt[:, t, None, :] * a) * h + b[:, t, :, None] * (dt[:, t] * u[:, t])[:, None, :]
                y[:, t] = (c[:, t, None, :] @ h).squeeze(1)
        ctx.chunk = chunk
        ctx.save_for_backward(u, dt, a, b, c, torch.stack(before))
        return y, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_h: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a, b, c, before = ctx.saved_tensors
        grad_u, grad_dt, grad_b, grad_c = (torch.empty_like(tensor) for tensor in (u, dt, b, c))
        grad_a = torch.zeros_like(a)
        starts = range(0, u.shape[1], ctx.chunk)
        for start, h in reversed(list(zip(starts, before, strict=True))):
            frames = range(start, min(start + ctx.chunk, u.shape[1]))
            states = []  # before each frame of the chunk: all that is kept, the rest is made again frame by frame
            for t in frames:
                states.append(h)
                h = torch.exp(dt[:, t, None, :] * a) * h + b[:, t, :, None] * (dt[:, t] * u[:, t])[:, None, :]
            for t in reversed(frames):
                x = dt[:, t] * u[:, t]  # (S, D)
                decay = torch.exp(dt[:, t, None, :] * a)  # (S, N, D)
                grad_h = grad_h + c[:, t, :, None] * grad_y[:, t, None, :]  # of the state after frame t
                kept = decay * states.pop()  # the state after frame t is kept + b x
                grad_c[:, t] = (kept @ grad_y[:, t, :, None]).squeeze(-1)
                grad_c[:, t] += b[:, t] * (grad_y[:, t] * x).sum(-1, keepdim=True)
                grad_b[:, t] = (grad_h @ x[..., None]).squeeze(-1)
                grad_x = (b[:, t, None, :] @ grad_h).squeeze(1)
                grad_log = kept.mul_(grad_h)  # of dt_t * a
                if a.ndim == 2:
                    grad_a += torch.einsum("sd,snd->nd", dt[:, t], grad_log)
                else:
                    grad_a.addcmul_(dt[:, t, None, :], grad_log)
                grad_u[:, t] = grad_x * dt[:, t]
                grad_dt[:, t] = grad_x * u[:, t] + grad_log.mul_(a).sum(1)
                grad_h = decay.mul_(grad_h)
        return None, grad_u, grad_dt, grad_a, grad_b, grad_c, grad_h
