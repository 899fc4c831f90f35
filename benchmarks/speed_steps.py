"""Gain by each choice of the exported form: the shipped form against the same network with one choice undone.

    python -m benchmarks.speed_steps [--weights FILE.safetensors] [--block 1 8] [--only WORD ...]

A choice is undone by patching the product from here (undone.py), so that the product needs no switches for it. Each
form is exported, streamed over the same sound and held to the shipped one; then all are called in turns on one core.
`times` is the median over the turns of a form's median call over the shipped form's in the same turn: above 1, the
choice gains time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

import edgese.model.mamba
import edgese.model.mbs_net
import export.graph
import runtimes.ort
from benchmarks import undone
from benchmarks.machine import Row, parser, report
from benchmarks.sound import sample
from edgese.graphs.bundles import shipped_bundle
from edgese.machine.host import allowed_cores, describe, pinned
from edgese.metrics.difference import snr_db
from edgese.model.bands import BandDecoder
from edgese.model.checkpoint import load_enhancer
from edgese.model.enhancer import StreamStep, WaveformEnhancer
from edgese.model.mbs_net import MbsNet
from export.graph import write_onnx
from runtimes.base import Stream
from runtimes.registry import open_runtime

LEAST_SNR_DB = 80.0  # OpenVINO's Softplus costs 30 dB; what agrees less than this is another network
LEAST_CALLS = 10  # a turn
ANY, SEVERAL = range(1, 33), range(2, 33)  # frames a call

Patch = tuple[object, str, Any]  # owner, name, what stands there instead


@dataclasses.dataclass(frozen=True)
class Step:
    """Step of the comparison: one choice undone, by patches."""

    name: str
    exporting: tuple[Patch, ...] = ()
    opening: tuple[Patch, ...] = ()
    blocks: Collection[int] = ANY
    runtimes: Collection[str] = ("onnxruntime", "openvino")
    threads: int = 1
    bound: bool = True  # states stay where the runtime keeps them


def ort_options(**changes: Any) -> tuple[Patch, ...]:
    """Patch of ONNX Runtime's session options, with some changed."""
    shipped = runtimes.ort._options

    def options(threads: int) -> Any:
        made = shipped(threads)
        made.graph_optimization_level = changes.get("level", made.graph_optimization_level)
        if "spinning" in changes:
            made.add_session_config_entry("session.intra_op.allow_spinning", changes["spinning"])
        return made

    return ((runtimes.ort, "_options", options),)


def steps(enhancer: WaveformEnhancer) -> list[Step]:
    """All steps, the shipped form first."""
    mamba, levels, ort_only = edgese.model.mamba, onnxruntime.GraphOptimizationLevel, ("onnxruntime",)
    state_shapes = undone.with_states_last(MbsNet.initial_state)
    side_by_side = (
        (MbsNet, "forward", undone.SideBySide.forward),
        (edgese.model.mbs_net, "features", undone.features_side_by_side),
    )
    return [
        Step("shipped"),
        Step("frame by frame", ((mamba, "unrolled_scan", undone.frame_by_frame),), blocks=SEVERAL),
        Step("heads gathered", ((mamba, "unrolled_scan", undone.heads_gathered),)),
        Step("all decays first", ((mamba, "unrolled_scan", undone.decays_first),)),
        Step("state [D, N]", ((mamba, "unrolled_scan", undone.states_last), (MbsNet, "initial_state", state_shapes))),
        Step("one ONNX Scan", ((mamba, "unrolled_scan", undone.onnx_scan),)),
        Step("Softplus as operator", ((mamba, "_softplus", nn.functional.softplus),)),
        Step("bins side by side", side_by_side),
        Step("DFT as whole matrix", ((enhancer.transform, "dft", undone.FullDft(enhancer.transform.dft)),)),
        Step("decoders by bands", ((BandDecoder, "forward", undone.products_per_band),)),
        Step("graph not simplified", ((export.graph, "_simplify", lambda *given: None),)),
        Step("states copied", bound=False),
        Step("optimisation basic", opening=ort_options(level=levels.ORT_ENABLE_BASIC), runtimes=ort_only),
        Step("optimisation off", opening=ort_options(level=levels.ORT_DISABLE_ALL), runtimes=ort_only),
        Step("2 threads", threads=2),
        Step("2 threads that spin", opening=ort_options(spinning="1"), runtimes=ort_only, threads=2),
    ]


@dataclasses.dataclass
class Contender:
    """Form of the graph, open in a runtime."""

    step: Step
    stream: Stream
    cores: Collection[int]
    nodes: int
    pieces: list[dict[str, NDArray[np.float32]]]

    def enhanced(self) -> NDArray[np.float32]:
        """Enhanced sound of all pieces, (n_samples,)."""
        return np.concatenate([self.stream(piece)["enhanced"][0] for piece in self.pieces])

    def median_s(self, seconds: float) -> float:
        """Median duration of calls over `seconds`, s, without the first fifth, in which caches and clock come back."""
        took: list[float] = []
        with pinned(self.cores):
            until = time.perf_counter() + seconds
            while time.perf_counter() < until or len(took) < LEAST_CALLS:
                piece = self.pieces[len(took) % len(self.pieces)]
                started = time.perf_counter()
                self.stream(piece)
                took.append(time.perf_counter() - started)
        return float(np.median(took[len(took) // 5 :]))


@contextlib.contextmanager
def patched(patches: Sequence[Patch]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        yield


@torch.no_grad()
def write(enhancer: WaveformEnhancer, step: Step, block: int, folder: Path) -> Path:
    path = folder / f"{step.name} {block}.onnx"
    with patched(step.exporting):
        states = enhancer.initial_state()
        inputs = {"wave": torch.zeros(1, block * enhancer.audio.hop), **states}
        outputs = ["enhanced", *(f"{name}_next" for name in states)]
        dynamic_axes = {name: {0: "streams"} for name in inputs}
        write_onnx(StreamStep(enhancer).eval(), inputs, outputs, path, dynamic_axes=dynamic_axes, metadata={})
    return path


def contend(step: Step, path: Path, runtime: str, core: int) -> Contender:
    cores = {core} if step.threads == 1 else allowed_cores()
    with patched(step.opening), pinned(cores):
        opened = open_runtime(runtime, path, threads=step.threads)
        states = {spec.name: f"{spec.name}_next" for spec in opened.inputs if spec.name != "wave"}
        stream = opened.stream(states, streams=1) if step.bound else Stream(opened, states, {"streams": 1})
    size, wave = stream.inputs[0].shape[1], sample()
    assert isinstance(size, int), "the wave's length is static"
    pieces = [{"wave": wave[None, at : at + size].copy()} for at in range(0, len(wave) - size + 1, size)]
    return Contender(step, stream, cores, len(onnx.load(path, load_external_data=False).graph.node), pieces)


def measured(contenders: list[Contender], runtime: str, block: int, turns: int, seconds: float) -> list[Row]:
    """Table rows of all contenders, called in turns, after a check that they compute the same."""
    wanted = contenders[0].enhanced()
    agreement_db = [math.inf, *(snr_db(wanted, contender.enhanced()) for contender in contenders[1:])]
    for contender, ratio_db in zip(contenders, agreement_db, strict=True):
        if not ratio_db >= LEAST_SNR_DB:
            raise SystemExit(f"{contender.step.name}, {runtime}, block {block}: {ratio_db:.1f} dB: another network")
    medians_s = np.array([[contender.median_s(seconds) for contender in contenders] for _ in range(turns)])
    times = np.median(medians_s / medians_s[:, :1], axis=0)
    return [
        {
            **{"runtime": runtime, "block": block, "step": contender.step.name, "nodes": contender.nodes},
            "ms": float(np.median(medians_s[:, index])) * 1e3,
            "times": float(times[index]),
            "snr_db": agreement_db[index] if math.isfinite(agreement_db[index]) else None,
        }
        for index, contender in enumerate(contenders)
    ]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--weights", type=Path, default=shipped_bundle() / "model.safetensors")
    arguments.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    arguments.add_argument("--block", "--blocks", dest="blocks", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--only", nargs="+", default=[""], help="words in the names of the steps to take")
    arguments.add_argument("--turns", type=int, default=15)
    arguments.add_argument("--seconds", type=float, default=0.2, help="of calls of one form in a turn")
    arguments.add_argument("--core", type=int, default=allowed_cores()[-1], help="the one core to run on")
    options = arguments.parse_args()
    machine, n_cores = describe(options.core), len(allowed_cores())
    enhancer = load_enhancer(options.weights)
    enhancer.network.use_scan("unrolled")
    enhancer.transform.form = "matmul"
    first, *others = (step for step in steps(enhancer) if step.threads <= n_cores)
    chosen = [first, *(step for step in others if any(word in step.name for word in options.only))]
    rows: list[Row] = []
    for block in options.blocks:
        with tempfile.TemporaryDirectory() as folder:
            paths = {step: write(enhancer, step, block, Path(folder)) for step in chosen if block in step.blocks}
            for runtime in options.runtimes:
                taken = [(step, path) for step, path in paths.items() if runtime in step.runtimes]
                contenders = [contend(step, path, runtime, options.core) for step, path in taken]
                rows += measured(contenders, runtime, block, options.turns, options.seconds)
    report("speed_steps", machine, rows, as_json=options.json)


if __name__ == "__main__":
    main()
