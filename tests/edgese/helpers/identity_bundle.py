"""Bundles whose graphs are hand-written: what comes in goes out 384 samples later, times a gain. No network, no torch.

They keep the graph contract (names, states, dynamic axis `streams`): `enhance` is tested against a perfect delay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.bundle import Graph, seal_bundle, stage_bundle
from runtimes.base import TensorSpec

NAME = "identity"
HOP = 128
LAG = 384
_STATES = {"analysis": (LAG,), "synthesis": (LAG,), "conv_0": (1, 3, 2), "ssm_0": (1, 4, 2)}


def write_identity_bundle(
    path: Path, *, gain: float = 1.0, blocks: Sequence[int] = (1, 16), verified: bool = True, name: str = NAME
) -> Path:
    """A bundle in folder `path` that delays by 384 samples and multiplies by `gain`."""
    with stage_bundle(path) as staging:
        graphs = []
        for block in blocks:
            file = f"fp32-block{block}.onnx"
            model = _delay_line(block, gain)
            helper.set_model_props(
                model, {"edgese.bundle": NAME, "edgese.block": str(block), "edgese.precision": "fp32"}
            )
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, staging / file)
            states = {state: f"{state}_next" for state in _STATES}
            graphs.append(
                Graph(file, "fp32", block, _specs("wave", block, ""), _specs("enhanced", block, "_next"), states)
            )
        seal_bundle(
            staging,
            {
                "name": name,
                "model": {"name": NAME},
                "audio": {"sample_rate_hz": 16_000, "n_fft": 512, "hop": HOP, "n_bins": 257},
                "latency": {"samples": 512, "ms": 32.0, "overlap_samples": LAG},
                "parameters": {},
                "macs_per_frame": {},
                "graphs": graphs,
                "tools": {},
                "calibration": None,
                "verification": {"passed": verified, "limits": {}, "results": []},
                "reference": {},
            },
        )
    return path if verified else path.with_name(f"{path.name}.unverified")


def _specs(wave: str, block: int, suffix: str) -> tuple[TensorSpec, ...]:
    shapes = {wave: (block * HOP,), **{f"{state}{suffix}": shape for state, shape in _STATES.items()}}
    return tuple(TensorSpec(name, ("streams", *shape), "float32") for name, shape in shapes.items())


def _delay_line(block: int, gain: float) -> onnx.ModelProto:
    def constant(name: str, value: object, dtype: type = np.int64) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(value, dtype), name)

    def values(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape)) for spec in specs]

    nodes = [
        helper.make_node("Concat", ["analysis", "wave"], ["line"], axis=1),
        helper.make_node("Slice", ["line", "zero", "length", "one"], ["delayed"]),
        helper.make_node("Mul", ["delayed", "gain"], ["enhanced"]),
        helper.make_node("Slice", ["line", "length", "end", "one"], ["analysis_next"]),
        *(helper.make_node("Identity", [state], [f"{state}_next"]) for state in _STATES if state != "analysis"),
    ]
    constants = [
        constant("zero", [0]),
        constant("one", [1]),
        constant("length", [block * HOP]),
        constant("end", [block * HOP + LAG]),
        constant("gain", gain, np.float32),
    ]
    graph = helper.make_graph(
        nodes, "delay", values(_specs("wave", block, "")), values(_specs("enhanced", block, "_next")), constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
