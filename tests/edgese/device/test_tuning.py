"""The verdict on precisions: by times that are given, and by the board's command with TensorRT doubled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgese.bench.timing import Timing
from edgese.device.tuning import TURNS, judge, tune
from export import ExportError
from export.bundle import Graph


@pytest.mark.parametrize(
    ("median_ms", "chosen"),
    [
        ({"fp32": 1.0}, "fp32"),
        ({"fp32": 1.0, "fp16": 0.981}, "fp32"),  # 1.019 times as fast: it buys nothing
        ({"fp32": 1.0, "fp16": 0.98}, "fp16"),
        ({"fp32": 1.0, "fp16": 0.5, "int8": 0.495}, "fp16"),
        ({"fp32": 1.0, "fp16": 0.5, "int8": 0.49}, "int8"),
        ({"fp32": 1.0, "fp16": 1.2, "int8": 0.9}, "int8"),  # against what was taken, not against what was slower
        ({"fp32": 1.0, "fp16": 0.985, "int8": 0.981}, "fp32"),
        ({"fp16": 0.5, "int8": 0.6}, "fp16"),
    ],
)
def test_what_is_less_exact_must_pay(median_ms: dict[str, float], chosen: str) -> None:
    assert judge(median_ms) == chosen


def graph(precision: str, block: int) -> Graph:
    return Graph(f"block{block}.{precision}.onnx", precision, block, (), (), {})


def timing(call_ms: float, slowest_ms: float) -> Timing:
    took = np.full(500, call_ms * 1e-3)
    took[7] = slowest_ms * 1e-3
    return Timing(8e-3, took, took)


def test_the_verdict_is_timed_in_turns_and_stands_in_every_sidecar(tmp_path: Path) -> None:
    """A stall that only one turn met shows as the slowest call, and decides nothing."""
    graphs = [graph(precision, block) for block in (1, 8) for precision in ("fp32", "fp16", "int8")]
    graphs += [graph("int8-cpu", 1), graph("fp32", 4)]
    call_ms = {"fp32": 1.0, "fp16": 0.6, "int8": 0.595}
    timed: list[str] = []
    told: list[str] = []

    def engine_of(one: Graph) -> Path:
        engine = tmp_path / f"{one.file}.engine"
        engine.with_name(f"{engine.name}.json").write_text(json.dumps({"key": {"tensorrt": "tensorrt 10.3.0"}}))
        return engine

    def time_graph(one: Graph) -> Timing:
        timed.append(one.precision)
        return timing(call_ms[one.precision], 20.0 if len(timed) == 2 else 1.5)

    one, eight = tune(graphs, engine_of, time_graph, lambda verdict: told.append(str(verdict)))
    assert timed == ["fp32", "fp16", "int8"] * TURNS * 2
    assert (one.block, eight.block, one.chosen, eight.chosen) == (1, 8, "fp16", "fp16")
    assert one.times_ms["fp16"]["max"] == pytest.approx(20.0)
    assert one.times_ms["fp16"]["p50"] == pytest.approx(0.6)
    assert told[0].startswith("block 1: use fp16: fp32 1.000 ms (p99.9 ")
    assert "slowest 20.000" in told[0]
    record = json.loads((tmp_path / "block1.int8.onnx.engine.json").read_text())
    assert record["key"] == {"tensorrt": "tensorrt 10.3.0"}
    assert record["tuned"] == json.loads(json.dumps(one.entry()))
    assert (record["tuned"]["chosen"], record["tuned"]["gain"], record["tuned"]["calls"]) == ("fp16", 1.02, 1500)
    assert not (tmp_path / "block4.fp32.onnx.engine.json").exists()  # nothing to choose from


def test_nothing_to_choose_from_and_a_lost_sidecar_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="found no block in two precisions"):
        tune([graph("fp32", 1), graph("fp32", 8)], lambda one: tmp_path, lambda one: timing(1, 1), print)
    with pytest.raises(ExportError, match="cannot be read"):
        tune([graph("fp32", 1), graph("fp16", 1)], lambda one: tmp_path / "x", lambda one: timing(1, 1), print)
