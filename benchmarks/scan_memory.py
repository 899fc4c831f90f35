"""Memory of forward and backward: the chunked scan against the full-sequence form, at the size of `base`.

    python -m benchmarks.scan_memory

K = 30 bands, D = 128 channels, N = 12 states, T = 250 frames (2 s). `scan` is one selective scan, `step` a whole
training step of the network with its four layers, loss and optimizer. Columns:

    discretised_mb  by arithmetic: the float32 tensors of exp(dt a) and b dt u that exist at a time, (S, T, N, D) each
                    in the full form, in every layer until its gradients are done; in the chunked form one layer's
                    decays of one chunk and the inputs of one frame
    kept_mb         measured: what autograd keeps between forward and backward, each storage once
    peak_mb         measured: growth of the resident memory over inputs, weights and gradients, in a process of its own
                    that gives freed tensors back at once, so that it counts what is in use

The claim that the project began with: 33 times less for the discretisation tensors. The bar: a peak of at most 1/8.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.machine import Row, parser, peak_growth_mb, report, verdict
from edgese.config import AudioConfig, LossConfig
from edgese.machine.host import MB, describe
from edgese.model import mamba
from edgese.model.registry import build
from edgese.model.scan import Scan, chunked_scan, full_scan
from edgese.networks import MODELS
from edgese.train.losses import Objective

CONFIG = dataclasses.replace(MODELS["base"], decay_heads=0)  # a decay per channel and state: the most memory
FORMS: dict[str, Callable[[int], Scan]] = {"full": lambda chunk: full_scan, "chunked": chunked_scan}
CLAIM, BAR = 33.0, 8.0
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # glibc: blocks from 1 MB on never stay in the process once freed


def main() -> None:
    options = arguments().parse_args()
    if options.child:
        what, form = options.child
        print(json.dumps(measure(what, form, options.batch[0], options.frames)))
        return
    machine = describe()
    rows: list[Row] = []
    notes: list[str] = []
    for what in ("scan", "step"):
        for batch in options.batch:
            full, chunked = (measured_apart(what, form, batch, options.frames) for form in FORMS)
            ratio = {key: full[key] / chunked[key] for key in full}
            for form, numbers in (("full", full), ("chunked", chunked), ("full / chunked", ratio)):
                rows.append({"what": what, "batch": batch, "form": form} | numbers)
            name, times = f"{what}, batch {batch}", ratio["peak_mb"]
            notes.append(verdict(f"{name}: chunked peak at most 1/{BAR:g} of full", f"1/{times:.1f}", times >= BAR))
            times = ratio["discretised_mb"]
            notes.append(f"claim of {CLAIM:g} times less for the discretisation tensors, {name}: {times:.1f} times")
    report("scan_memory", machine, rows, notes, as_json=options.json)


def arguments() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--batch", type=int, nargs="+", default=[1, 2])
    made.add_argument("--frames", type=int, default=250)
    made.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return made


def measured_apart(what: str, form: str, batch: int, frames: int) -> dict[str, float]:
    """Memory and time of one form, measured in a process of its own."""
    command = (sys.executable, "-m", "benchmarks.scan_memory", "--child", what, form)
    sizes = ("--batch", str(batch), "--frames", str(frames))
    environment = os.environ | GIVE_BACK
    answer = subprocess.run((*command, *sizes), env=environment, stdout=subprocess.PIPE, text=True, check=True)
    numbers: dict[str, float] = json.loads(answer.stdout)
    return numbers


def measure(what: str, form: str, batch: int, frames: int) -> dict[str, float]:
    """Memory and time of one form, in this process; a tiny run comes first, for what torch loads only once."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    make = {"scan": scan_work, "step": step_work}[what]
    work = make(form)
    work(1, 60)()  # the objective's perceptual term needs at least so many frames
    measured = work(batch, frames)
    kept = Kept()
    started = time.perf_counter()
    with kept:
        peak_mb = peak_growth_mb(measured)
    seconds = time.perf_counter() - started
    discretised_mb = layers_discretised_mb(form, batch, frames, CONFIG.layers if what == "step" else 1)
    return {"discretised_mb": discretised_mb, "kept_mb": kept.n_bytes / MB, "peak_mb": peak_mb, "wall_s": seconds}


def layers_discretised_mb(form: str, batch: int, frames: int, layers: int) -> float:
    """Size of the discretised tensors that exist at a time, by arithmetic, MB; see the module docstring."""
    frame_mb = batch * CONFIG.n_bands * CONFIG.states * CONFIG.inner * 4 / MB
    return (2 * frames * layers if form == "full" else min(CONFIG.chunk, frames) + 1) * frame_mb


Work = Callable[[int, int], Callable[[], None]]  # (batch, frames) -> what is to be measured, its inputs made


def scan_work(form: str) -> Work:
    scan = FORMS[form](CONFIG.chunk)

    def prepare(batch: int, frames: int) -> Callable[[], None]:
        sequences, channels, states = batch * CONFIG.n_bands, CONFIG.inner, CONFIG.states
        u, b, c = (torch.randn(sequences, frames, size) for size in (channels, states, states))
        dt = torch.rand(sequences, frames, channels) * 0.1
        a = -torch.arange(1.0, states + 1)[:, None].repeat(1, channels)
        h = torch.zeros(sequences, states, channels)
        tensors = [tensor.requires_grad_() for tensor in (u, dt, a, b, c, h)]
        for tensor in tensors:
            tensor.grad = torch.zeros_like(tensor)

        def run() -> None:
            y, last = scan(*tensors)
            torch.autograd.backward([y, last], [torch.ones_like(y), torch.ones_like(last)])

        return run

    return prepare


def step_work(form: str) -> Work:
    audio = AudioConfig()
    enhancer = build(CONFIG, audio)
    objective = Objective(LossConfig(), audio, CONFIG.compression)
    optimizer = torch.optim.AdamW(enhancer.parameters())

    def prepare(batch: int, frames: int) -> Callable[[], None]:
        noisy, clean = (0.1 * torch.randn(batch, frames * audio.hop) for _ in range(2))
        state = enhancer.initial_state(batch)

        def run() -> None:
            output, _ = enhancer(noisy, state)
            length = noisy.shape[1] - audio.overlap  # the output runs behind the input
            parts = (output[:, audio.overlap :], clean[:, :length], noisy[:, :length])
            terms = objective(*parts)
            terms["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

        def patched() -> None:
            with patch.object(mamba, "chunked_scan", FORMS[form]):
                run()

        return patched

    return prepare


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counter of what autograd saves for the backward pass, each storage once; views and repeats add nothing."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        super().__init__(self._pack, self._unpack)

    @property
    def n_bytes(self) -> int:
        return sum(self._sizes.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @staticmethod
    def _unpack(tensor: Any) -> Any:
        return tensor


if __name__ == "__main__":
    main()
