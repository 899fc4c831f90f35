"""Selective scan with a decay per channel and state as two GPU kernels (Triton), for training.

In eager PyTorch each frame is a handful of launches that a GPU waits for. Here one program takes a sequence
and up to 128 of its channels, holds their states in registers and goes through all frames. Memory is that of the
chunked form: forward keeps the state before each chunk, backward makes the states of one chunk at a time again.

Letters and equations: scan.py; T frames, C frames of a chunk, D channels, N states (padded to a power of two), S
sequences. Everything is float32, and no sum is taken in an order that changes from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_MOST_CHANNELS = 128  # of a program


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    u, dt, a, b, c, h, y, before, after,
    a_step, n_frames, n_channels, n_states, CHUNK: tl.constexpr, NP: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    s, channels, states = tl.program_id(0).to(tl.int64), tl.program_id(1) * DP + tl.arange(0, DP), tl.arange(0, NP)
    in_d, in_n = channels < n_channels, states < n_states
    place = states[:, None] * n_channels + channels[None, :]  # in (N, D)
    inside = in_n[:, None] & in_d[None, :]
    rate = tl.load(a + s * a_step + place, inside, 0.0)
    state = tl.load(h + s * n_states * n_channels + place, inside, 0.0)
    n_chunks = tl.cdiv(n_frames, CHUNK)
    for t in range(0, n_frames):
        if t % CHUNK == 0:
            tl.store(before + (s * n_chunks + t // CHUNK) * n_states * n_channels + place, state, inside)
        wide, narrow = (s * n_frames + t) * n_channels + channels, (s * n_frames + t) * n_states + states
        step = tl.load(dt + wide, in_d, 0.0)
        x = step * tl.load(u + wide, in_d, 0.0)
        state = tl.exp(step[None, :] * rate) * state + tl.load(b + narrow, in_n, 0.0)[:, None] * x[None, :]
        tl.store(y + wide, tl.sum(tl.load(c + narrow, in_n, 0.0)[:, None] * state, 0), in_d)
    tl.store(after + s * n_states * n_channels + place, state, inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    u, dt, a, b, c, before, grad_y, grad_after, states_of_chunk,
    grad_u, grad_dt, grad_a, grad_b, grad_c, grad_h,
    n_sequences, a_step, n_frames, n_channels, n_states, CHUNK: tl.constexpr, NP: tl.constexpr, DP: tl.constexpr
):  # fmt: skip
    s, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channels, states = part * DP + tl.arange(0, DP), tl.arange(0, NP)
    in_d, in_n = channels < n_channels, states < n_states
    place = states[:, None] * n_channels + channels[None, :]
    inside = in_n[:, None] & in_d[None, :]
    rate = tl.load(a + s * a_step + place, inside, 0.0)
    size = n_states * n_channels
    grad = tl.load(grad_after + s * size + place, inside, 0.0)  # of the state after the frame
    grad_rate = tl.zeros((NP, DP), tl.float32)
    n_chunks = tl.cdiv(n_frames, CHUNK)
    for back in range(0, n_chunks):
        chunk = n_chunks - 1 - back
        first = chunk * CHUNK
        n = tl.minimum(CHUNK, n_frames - first)
        state = tl.load(before + (s * n_chunks + chunk) * size + place, inside, 0.0)
        for i in range(0, n):
            tl.store(states_of_chunk + (s * CHUNK + i) * size + place, state, inside)
            wide = (s * n_frames + first + i) * n_channels + channels
            narrow = (s * n_frames + first + i) * n_states + states
            step = tl.load(dt + wide, in_d, 0.0)
            x = step * tl.load(u + wide, in_d, 0.0)
            state = tl.exp(step[None, :] * rate) * state + tl.load(b + narrow, in_n, 0.0)[:, None] * x[None, :]
        tl.debug_barrier()
        for j in range(0, n):
            i = n - 1 - j
            wide = (s * n_frames + first + i) * n_channels + channels
            narrow = (s * n_frames + first + i) * n_states + states
            step, value = tl.load(dt + wide, in_d, 0.0), tl.load(u + wide, in_d, 0.0)
            x = step * value
            b_t, c_t = tl.load(b + narrow, in_n, 0.0), tl.load(c + narrow, in_n, 0.0)
            of_y = tl.load(grad_y + wide, in_d, 0.0)
            decay = tl.exp(step[None, :] * rate)
            kept = decay * tl.load(states_of_chunk + (s * CHUNK + i) * size + place, inside, 0.0)
            grad += c_t[:, None] * of_y[None, :]
            sums = (part * n_sequences + s) * n_frames * n_states + (first + i) * n_states + states  # a part's share
            tl.store(grad_c + sums, tl.sum(of_y[None, :] * (kept + b_t[:, None] * x[None, :]), 1), in_n)
            tl.store(grad_b + sums, tl.sum(grad * x[None, :], 1), in_n)
            of_x = tl.sum(b_t[:, None] * grad, 0)
            of_log = kept * grad  # of dt * a
            grad_rate += step[None, :] * of_log
            tl.store(grad_u + wide, of_x * step, in_d)
            tl.store(grad_dt + wide, of_x * value + tl.sum(of_log * rate, 0), in_d)
            grad = decay * grad
        tl.debug_barrier()
    tl.store(grad_a + s * size + place, grad_rate, inside)
    tl.store(grad_h + s * size + place, grad, inside)


class TritonScan(torch.autograd.Function):
    """Scan in Triton kernels: `TritonScan.apply(chunk, u, dt, a, b, c, h)` -> (y, state after the last frame).

    Shapes as in scan.py, H = D, M = N. S is one axis; rates are (N, D), or (S, N, D) for sequences with their own. All
    float32, on one GPU.
    """

    @staticmethod
    def forward(
        ctx: Any, chunk: int, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, dt, a, b, c, h = (tensor.contiguous() for tensor in (u, dt, a, b, c, h))
        sizes, grid, blocks = _launch(u, a, b)
        y, after = torch.empty_like(u), torch.empty_like(h)
        before = h.new_empty(u.shape[0], -(-u.shape[1] // chunk), *h.shape[1:])
        _forward[grid](u, dt, a, b, c, h, y, before, after, *sizes, CHUNK=chunk, **blocks)
        ctx.chunk = chunk
        ctx.save_for_backward(u, dt, a, b, c, before)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_after: Tensor) -> tuple[Tensor | None, ...]:
        u, dt, a, b, c, before = ctx.saved_tensors
        sizes, grid, blocks = _launch(u, a, b)
        grad_u, grad_dt = torch.empty_like(u), torch.empty_like(dt)
        grad_b, grad_c = (b.new_empty(grid[1], *b.shape) for _ in range(2))
        grad_a, grad_h = (u.new_empty(u.shape[0], *a.shape[-2:]) for _ in range(2))
        states_of_chunk = u.new_empty(u.shape[0], ctx.chunk, *a.shape[-2:])
        _backward[grid](
            *(u, dt, a, b, c, before, grad_y.contiguous(), grad_after.contiguous(), states_of_chunk),
            *(grad_u, grad_dt, grad_a, grad_b, grad_c, grad_h, u.shape[0], *sizes),
            CHUNK=ctx.chunk,
            **blocks,
        )
        return None, grad_u, grad_dt, grad_a if a.ndim > 2 else grad_a.sum(0), grad_b.sum(0), grad_c.sum(0), grad_h


def _launch(u: Tensor, a: Tensor, b: Tensor) -> tuple[tuple[int, ...], tuple[int, int], dict[str, int]]:
    """Arguments of a launch: step from one sequence's rates to the next, T, D and N; grid of programs; block sizes."""
    n_channels, n_states = u.shape[2], b.shape[2]
    width = min(triton.next_power_of_2(n_channels), _MOST_CHANNELS)
    grid = (u.shape[0], triton.cdiv(n_channels, width))
    a_step = n_states * n_channels if a.ndim > 2 else 0
    return (a_step, u.shape[1], n_channels, n_states), grid, {"NP": triton.next_power_of_2(n_states), "DP": width}
