"""Time of a training step, part by part, in float32 and with bfloat16 products.

    python -m benchmarks.train_step [--model small] [--batch 8] [--seconds 2] [--compile]

`of it: scans`: only the selective scans of all layers, forward and backward, on the tensors that the network gives
them. `audio/s`: seconds of sound trained on per second. All loss terms are computed. Medians.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import Row, parser, report
from edgese.config import AudioConfig, LossConfig
from edgese.machine.host import describe
from edgese.model import mamba
from edgese.model.registry import build
from edgese.model.scan import Scan
from edgese.networks import MODELS
from edgese.train.loop import keep_freed_memory
from edgese.train.losses import Objective

EVERY_TERM = LossConfig(perceptual=0.1, phase=0.1, multi_resolution=0.1)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", "--size", dest="size", choices=MODELS, default="small")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--seconds", type=float, default=2.0, help="of sound in an example")
    options.add_argument("--steps", type=int, default=9)
    options.add_argument("--compile", action="store_true", help="the network through torch.compile")
    chosen = options.parse_args()
    machine = describe()
    keep_freed_memory()
    rows: list[Row] = []
    for precision in (torch.float32, torch.bfloat16):
        rows += measure(chosen.size, chosen.batch, chosen.seconds, chosen.steps, precision, chosen.compile)
    report("train_step", machine, rows, as_json=chosen.json)


def measure(size: str, batch: int, seconds: float, steps: int, precision: torch.dtype, compiled: bool) -> list[Row]:
    audio, config = AudioConfig(), MODELS[size]
    torch.manual_seed(0)
    enhancer, objective = build(config, audio), Objective(EVERY_TERM, audio, config.compression)
    optimizer = torch.optim.AdamW(enhancer.parameters(), lr=1e-4)
    if compiled:
        enhancer.network.compile()
    length = int(seconds * audio.sample_rate_hz) // audio.hop * audio.hop
    noisy, clean = (0.1 * torch.randn(batch, length) for _ in range(2))
    state = enhancer.initial_state(batch)

    def step() -> dict[str, float]:
        times: dict[str, float] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            result = work()
            times[name] = time.perf_counter() - started
            return result

        def forward() -> Tensor:
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                output: Tensor = enhancer(noisy, state)[0]
            return output.float()

        optimizer.zero_grad(set_to_none=True)
        output = timed("network forward", forward)
        kept = length - audio.overlap
        loss = timed(
            "objective forward", lambda: objective(output[:, -kept:], clean[:, :kept], noisy[:, :kept])["loss"]
        )
        into_output = timed("objective backward", lambda: torch.autograd.grad(loss, output, retain_graph=True)[0])
        timed("network backward", lambda: output.backward(into_output))
        timed("optimizer", optimizer.step)
        return times

    step(), step()
    runs = [step() for _ in range(steps)]
    parts = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    whole = sum(parts.values())
    if not compiled:  # inside the network: the scans alone, forward and backward, at the same shapes
        parts["of it: scans"] = scans(enhancer, noisy, state, steps, precision)
    name = f"{str(precision).removeprefix('torch.')}{', compiled' if compiled else ''}"
    rows: list[Row] = [
        {"precision": name, "part": part, "ms": 1000 * spent, "share %": 100 * spent / whole}
        for part, spent in parts.items()
    ]
    speed = batch * length / audio.sample_rate_hz / whole
    return [
        *rows,
        {"precision": name, "part": f"whole step, {speed:.1f} audio/s", "ms": 1000 * whole, "share %": 100.0},
    ]


def scans(enhancer: nn.Module, noisy: Tensor, state: dict[str, Tensor], steps: int, precision: torch.dtype) -> float:
    """Seconds that all scans of one step take, forward and backward, on the tensors that the network gives them."""
    seen: list[tuple[Scan, tuple[Tensor, ...]]] = []
    original = mamba.MambaBlock._scan

    def recorded(block: mamba.MambaBlock) -> Scan:
        scan = original(block)

        def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            seen.append((scan, tensors))
            return scan(*tensors)

        return run

    mamba.MambaBlock._scan = recorded  # type: ignore[method-assign, assignment]
    try:
        with torch.no_grad(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            enhancer(noisy, state)
    finally:
        mamba.MambaBlock._scan = original  # type: ignore[method-assign]
    spent: dict[int, list[float]] = defaultdict(list)
    for number, (scan, tensors) in enumerate(seen):
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        for _ in range(steps):
            started = time.perf_counter()
            y, h = scan(*leaves)
            torch.autograd.grad(y.sum() + h.sum(), leaves)
            spent[number].append(time.perf_counter() - started)
    return sum(statistics.median(times) for times in spent.values())


if __name__ == "__main__":
    main()
