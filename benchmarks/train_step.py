"""Time of a training step, part by part, in float32 and with bfloat16 products.

    python -m benchmarks.train_step [--model small] [--batch 8] [--seconds 2] [--compile] [--cpu-time]

Two ways of doing a step take turns: `now`, as `edgese train` does it (AdamW in one pass, averages of all weights in one
call, with --compile the regions between the scans compiled), and `plain` (AdamW and averages tensor by tensor, the loss
read at once, with --compile the network compiled as a whole). `of it: scans`: only the selective scans of all layers,
forward and backward, on the tensors that the network gives them. `audio/s`: seconds of sound trained on per second. All
loss terms are computed. Medians; with --cpu-time of the processor's seconds, for a machine that is shared.
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

now = time.perf_counter
EVERY_TERM = LossConfig(perceptual=0.1, phase=0.1, multi_resolution=0.1, band_level=0.1)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", "--size", dest="size", choices=MODELS, default="small")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--seconds", type=float, default=2.0, help="of sound in an example")
    options.add_argument("--steps", type=int, default=9)
    options.add_argument("--compile", action="store_true", help="the network through torch.compile")
    options.add_argument("--cpu-time", action="store_true", help="seconds of the processor instead of the clock")
    chosen = options.parse_args()
    global now
    now = time.process_time if chosen.cpu_time else time.perf_counter
    machine = describe()
    keep_freed_memory()
    rows: list[Row] = []
    for precision in (torch.float32, torch.bfloat16):
        rows += measure(chosen.size, chosen.batch, chosen.seconds, chosen.steps, precision, chosen.compile)
    report("train_step", machine, rows, as_json=chosen.json)


class Step:
    """A network with what trains it, and one step of it timed part by part."""

    def __init__(self, size: str, batch: int, seconds: float, precision: torch.dtype, *, plain: bool, compiled: bool):
        audio, config = AudioConfig(), MODELS[size]
        torch.manual_seed(0)
        self.enhancer, self.objective = build(config, audio), Objective(EVERY_TERM, audio, config.compression)
        self.precision, self.plain, self.overlap = precision, plain, audio.overlap
        if compiled:
            self.enhancer.network.compile() if plain else self.enhancer.network.compile_parts()
        self.parameters = list(self.enhancer.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=not plain, foreach=False if plain else None)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.length = int(seconds * audio.sample_rate_hz) // audio.hop * audio.hop
        self.noisy, self.clean = (0.1 * torch.randn(batch, self.length) for _ in range(2))
        self.state = self.enhancer.initial_state(batch)

    def forward(self) -> Tensor:
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            output: Tensor = self.enhancer(self.noisy, self.state)[0]
        return output.float()

    def average(self) -> None:
        with torch.no_grad():
            if self.plain:
                for average, parameter in zip(self.averages, self.parameters, strict=True):
                    average.lerp_(parameter, 0.001)
            else:
                torch._foreach_lerp_(self.averages, self.parameters, 0.001)

    def run(self) -> dict[str, float]:
        times: dict[str, float] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            started = now()
            result = work()
            times[name] = now() - started
            return result

        self.optimizer.zero_grad(set_to_none=True)
        output = timed("network forward", self.forward)
        kept = self.length - self.overlap
        waves = output[:, -kept:], self.clean[:, :kept], self.noisy[:, :kept]
        loss = timed("objective forward", lambda: self.objective(*waves)["loss"])
        into_output = timed("objective backward", lambda: torch.autograd.grad(loss, output, retain_graph=True)[0])
        timed("network backward", lambda: output.backward(into_output))
        timed("clipping", lambda: nn.utils.clip_grad_norm_(self.parameters, 1.0))
        timed("optimizer", self.optimizer.step)
        timed("averages", self.average)
        return times


def measure(size: str, batch: int, seconds: float, steps: int, precision: torch.dtype, compiled: bool) -> list[Row]:
    ways = {
        way: Step(size, batch, seconds, precision, plain=way == "plain", compiled=compiled) for way in ("plain", "now")
    }
    for step in ways.values():
        step.run(), step.run()
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(steps):
        for way, step in ways.items():
            runs[way].append(step.run())
    rows: list[Row] = []
    for way, step in ways.items():
        parts = {name: statistics.median(run[name] for run in runs[way]) for name in runs[way][0]}
        whole = sum(parts.values())
        if (
            not compiled and way == "now"
        ):  # inside the network: the scans alone, forward and backward, at the same shapes
            parts["of it: scans"] = scans(step.enhancer, step.noisy, step.state, steps, precision)
        name = f"{str(precision).removeprefix('torch.')}{', compiled' if compiled else ''}, {way}"
        rows += [
            {"precision": name, "part": part, "ms": 1000 * spent, "share %": 100 * spent / whole}
            for part, spent in parts.items()
        ]
        speed = batch * step.length / AudioConfig().sample_rate_hz / whole
        rows.append(
            {"precision": name, "part": f"whole step, {speed:.1f} audio/s", "ms": 1000 * whole, "share %": 100.0}
        )
    return rows


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
            started = now()
            y, h = scan(*leaves)
            torch.autograd.grad(y.sum() + h.sum(), leaves)
            spent[number].append(now() - started)
    return sum(statistics.median(times) for times in spent.values())


if __name__ == "__main__":
    main()
