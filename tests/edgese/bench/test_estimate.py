"""Estimates: costs against a graph counted by hand and against PyTorch, bounds that behave, a label on all of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgese.bench.capacity import MAX_STREAMS
from edgese.bench.estimate import GPU, Range, call_ms, estimate_cases, estimate_graph, predict_cpu_ms
from edgese.bench.jetson_modules import BOARDS, GPU_SPARSE_TOPS, Peak
from edgese.bench.measure import Settings, choose
from edgese.bench.probe import MeasurementError
from edgese.bench.workload import Workload, read_workload
from edgese.graphs.bundles import shipped_bundle
from export import ExportError
from export.bundle import Bundle

from ..helpers.command_line import edgese, one_error, parsed

PEAK = Peak("toy", 100.0, {"fp32": 1.0, "fp16": 8.0, "int8": 16.0})
HOP_S = 0.008


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[str],
    *,
    half: bool = False,
    axes: tuple[str | int, ...] = ("streams", 4, 8),
) -> Path:
    """A graph from `wave` (streams, 4, 8), with weights `w` (8, 16), `v` (16, 8), `bias` (16) and others."""
    random = np.random.default_rng(0)
    dtype = np.float16 if half else np.float32
    weights = {
        "w": random.standard_normal((8, 16)).astype(dtype),
        "v": random.standard_normal((16, 8)).astype(dtype),
        "bias": np.ones(16, dtype),
        "scale": np.ones(8, np.float32),
        "flat": np.array([-1, 32], np.int64),
        "w8": np.ones((8, 16), np.int8),
        "step": np.array(0.5, np.float32),
        "zero": np.array(0, np.int8),
    }
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("wave", kind, axes)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), output.split(), name=f"node_{output.split()[0]}", **attributes)


HAND = [
    node("LayerNormalization", "wave scale", "n"),
    node("MatMul", "n w", "p"),
    node("Add", "p bias", "a"),
    node("Sigmoid", "a", "s"),
    node("Mul", "a s", "m"),
    node("MatMul", "m v", "q"),
    node("Add", "q wave", "enhanced"),
    node("Exp", "wave", "e"),
    node("Reshape", "e flat", "state_next"),
]


def test_a_graph_counted_by_hand(tmp_path: Path) -> None:
    workload = read_workload(write_graph(tmp_path / "g.onnx", HAND, ["enhanced", "state_next"]))
    frame, wide = 4 * 8, 4 * 16  # elements of wave, and of what the first product gives
    assert workload.macs == {"fp32": wide * 8 + frame * 16}
    assert workload.operations == 8 * frame + wide + wide + wide + frame + frame
    assert sum(kernel.slow_operations for kernel in workload.separate) == wide + frame  # Sigmoid, Exp
    assert workload.weight_bytes == 4 * (8 * 16 + 16 * 8 + 16 + 8)
    # a kernel for the norm, one for each product with what follows it, one for Exp; Reshape is a view
    assert [len(kernel.nodes) for kernel in workload.fused] == [1, 4, 2, 1]
    assert [kernel.nodes[0].split()[0] for kernel in workload.fused] == [
        "LayerNormalization",
        "MatMul",
        "MatMul",
        "Exp",
    ]
    assert len(workload.separate) == 8
    # wave is read by norm, Add and Exp; enhanced and state_next are written
    assert workload.outer_bytes == 4 * (3 * frame + 2 * frame)
    assert [kernel.inner_bytes for kernel in workload.fused] == [4 * frame, 4 * (frame + wide), 4 * wide, 0]
    separate = 4 * (frame + (frame + wide) + 2 * wide + 2 * wide + 3 * wide + (wide + frame) + frame)
    assert sum(kernel.inner_bytes for kernel in workload.separate) == separate


def test_the_bounds_of_a_graph_computed_by_hand(tmp_path: Path) -> None:
    nodes = [node("MatMul", "wave w", "p"), node("Sigmoid", "p", "enhanced")]
    workload = read_workload(write_graph(tmp_path / "g.onnx", nodes, ["enhanced"]))
    slow = Peak("slow", 1e-3, {"fp32": 1e-6})  # 1 byte a microsecond, 1 operation a microsecond
    streams, macs, moved = 3, 4 * 16 * 8, 4 * (4 * 8 + 4 * 16)
    low, high = call_ms(workload, slow, GPU, streams=streams)
    assert low == pytest.approx(1e-3 * (5 + streams * max(2 * macs + 4 * 16, moved)))
    product = max(streams * 2 * macs / 0.05, (streams * 4 * (4 * 8 + 4 * 16) + 4 * 8 * 16) / 0.5)
    sigmoid = max(streams * 16 * 4 * 16 / 0.05, streams * 4 * 2 * 4 * 16 / 0.5)
    assert high == pytest.approx(1e-3 * (100 + 2 * 5 + product + sigmoid))
    narrow = Peak(
        "narrow", 1e-3, {"fp32": 1e9}
    )  # nothing but bytes takes time, each weight's once whatever the streams
    product, sigmoid = 4 * 8 * 16 + streams * 4 * (4 * 8 + 4 * 16), streams * 4 * 2 * 4 * 16
    assert call_ms(workload, narrow, GPU, streams=streams).high == pytest.approx(
        1e-3 * (100 + 2 * 5 + (product + sigmoid) / 0.5), rel=1e-6
    )
    fast = Peak("fast", 1e9, {"fp32": 1e9})
    assert call_ms(workload, fast, GPU) == (
        pytest.approx(1e-3 * (5 + 1)),
        pytest.approx(1e-3 * (100 + 2 * 5), rel=1e-3),
    )
    launched = call_ms(workload, fast, GPU, launches=True)
    assert launched == (pytest.approx(1e-3 * (5 + 2)), pytest.approx(1e-3 * (100 + 2 * 11.5), rel=1e-3))


def test_no_kernel_waits_for_what_waits_for_it(tmp_path: Path) -> None:
    """The first and the last node are connected, and cannot be one kernel: two products stand between them."""
    nodes = [
        node("Exp", "wave", "e"),
        node("MatMul", "e w", "p"),
        node("MatMul", "p v", "q"),
        node("Add", "q e", "enhanced"),
    ]
    workload = read_workload(write_graph(tmp_path / "g.onnx", nodes, ["enhanced"]))
    operators = [[each.split()[0] for each in kernel.nodes] for kernel in workload.fused]
    assert operators == [["Exp"], ["MatMul"], ["MatMul", "Add"]]


def test_precision_is_that_of_the_factors(tmp_path: Path) -> None:
    half = [node("MatMul", "wave w", "enhanced")]
    workload = read_workload(write_graph(tmp_path / "h.onnx", half, ["enhanced"], half=True))
    assert workload.macs == {"fp16": 4 * 16 * 8}
    assert workload.weight_bytes == 2 * 8 * 16
    rounded = [
        node("QuantizeLinear", "wave step zero", "q"),
        node("DequantizeLinear", "q step zero", "d"),
        node("DequantizeLinear", "w8 step zero", "dw"),
        node("MatMul", "d dw", "p"),
        node("MatMul", "d w", "r"),
        node("Add", "p r", "enhanced"),
    ]
    workload = read_workload(write_graph(tmp_path / "q.onnx", rounded, ["enhanced"]))
    assert workload.macs == {"fp32": 4 * 16 * 8, "int8": 4 * 16 * 8}
    assert len(workload.separate) == 5  # the weight is dequantized when the engine is built
    assert workload.weight_bytes == 8 * 16 + 4 * 8 * 16 + 4 + 1


@pytest.mark.parametrize(
    ("operator", "inputs", "axes", "message"),
    [
        (
            "Softmax",
            "wave",
            ("streams", 4, 8),
            r"Softmax node_enhanced: what it costs is not known; counted are Abs, Add",
        ),
        ("MatMul", "wave v", ("streams", 4, 8), "its shapes cannot be inferred"),
        ("Exp", "wave", ("streams", "frames", 8), "enhanced: its shape cannot be inferred, wanted one for each number"),
        ("Exp", "wave", (1, 4, 8), r"found shape \(1, 4, 8\) for one stream and \(1, 4, 8\) for two, wanted twice"),
    ],
    ids=["operator", "shapes that do not fit", "another axis that is open", "no streams"],
)
def test_what_cannot_be_counted_is_refused(
    operator: str, inputs: str, axes: tuple[str | int, ...], message: str, tmp_path: Path
) -> None:
    path = write_graph(tmp_path / "g.onnx", [node(operator, inputs, "enhanced")], ["enhanced"], axes=axes)
    with pytest.raises(ExportError, match=message):
        read_workload(path)


def test_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot be read as ONNX"):
        read_workload(tmp_path / "g.onnx")


@pytest.fixture(scope="module")
def shipped() -> Bundle:
    return Bundle.open(shipped_bundle("small"))


@pytest.fixture(scope="module")
def hop(shipped: Bundle) -> Workload:
    return read_workload(shipped.path / shipped.graph(block=1).file)


def test_the_shipped_hop_has_the_products_that_its_manifest_counts(shipped: Bundle, hop: Workload) -> None:
    """The manifest's count (edgese/model/cost.py): products, padding included, and the scan and taps by definition."""
    model = shipped.manifest["model"]
    n_bands, heads, inner = len(model["band_widths"]), model["decay_heads"], model["channels"] * model["expand"]
    elementwise = n_bands * inner * (2 * model["states"] + model["conv_width"])
    copies = n_bands * heads * inner  # dt of each band to its channels, a product; that of `a` follows from constants
    counted = sum(shipped.manifest["macs_per_frame"].values())
    assert hop.macs == {"fp32": counted - model["layers"] * (elementwise - copies)}


@pytest.mark.slow
def test_each_product_of_the_shipped_network_is_counted_as_pytorch_counts_it(shipped: Bundle) -> None:
    pytest.importorskip("torch", reason="the [train] extra is not installed")
    from edgese.model.checkpoint import load_enhancer
    from edgese.model.cost import product_macs
    from export.bundle import WEIGHTS
    from export.inspection import read_anatomy

    wanted = product_macs(load_enhancer(shipped.path / WEIGHTS))
    file = shipped.path / shipped.graph(block=1).file
    modules = {str(each): each.module.removeprefix("enhancer.network.") for each in read_anatomy(file).nodes}
    found = dict.fromkeys(wanted, 0)
    for kernel in read_workload(file).separate:
        (module,) = (modules[each] for each in kernel.nodes)
        if module in wanted:
            found[module] += sum(kernel.macs.values())
    assert found == wanted


@pytest.mark.parametrize("block", [4, 8, 16])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_blocks_multiply_what_a_hop_costs(shipped: Bundle, hop: Workload, block: int, precision: str) -> None:
    workload = read_workload(shipped.path / shipped.graph(block=block, precision=precision).file)
    ratio = sum(workload.macs.values()) / sum(hop.macs.values())
    assert block <= ratio < 1.2 * block  # a block's scan takes more products than its hops do
    assert workload.outer_bytes < block * hop.outer_bytes / 2  # states move once a call
    assert {"fp32": {"fp32"}, "fp16": {"fp16", "fp32"}, "int8": {"int8", "fp16", "fp32"}}[precision] == set(
        workload.macs
    )
    assert sum(len(kernel.nodes) for kernel in workload.fused) == len(workload.separate)
    assert {each for kernel in workload.fused for each in kernel.nodes} == {
        each for kernel in workload.separate for each in kernel.nodes
    }


def test_weights_of_lower_precision_are_fewer_bytes(shipped: Bundle) -> None:
    sizes = [
        read_workload(shipped.path / shipped.graph(block=1, precision=precision).file).weight_bytes
        for precision in ("fp32", "fp16", "int8")
    ]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[2]


@pytest.mark.parametrize("streams", [1, 16, 400])
@pytest.mark.parametrize("launches", [False, True])
def test_a_better_board_is_never_slower(hop: Workload, streams: int, launches: bool) -> None:
    def bounds(bandwidth: float, factor: float) -> Range:
        peak = Peak("", bandwidth, {name: factor * value for name, value in PEAK.tflops.items()})
        return call_ms(hop, peak, GPU, streams=streams, launches=launches)

    by_bandwidth = [bounds(bandwidth, 1.0) for bandwidth in (1.0, 10.0, 34.0, 68.0, 273.0)]
    by_peak = [bounds(68.0, factor) for factor in (0.01, 0.1, 1.0, 10.0)]
    for each in (by_bandwidth, by_peak):
        for worse, better in itertools.pairwise(each):
            assert better.low <= worse.low
            assert better.high <= worse.high
    assert by_bandwidth[0].high > by_bandwidth[-1].high
    assert all(low <= high for low, high in (*by_bandwidth, *by_peak))


def test_streams_cost_and_launches_cost(hop: Workload) -> None:
    times = [call_ms(hop, PEAK, GPU, streams=streams) for streams in (1, 8, 64, 512)]
    assert all(fewer.low <= more.low and fewer.high < more.high for fewer, more in itertools.pairwise(times))
    launched = call_ms(hop, PEAK, GPU, launches=True)
    assert launched.low > times[0].low
    assert launched.high > times[0].high
    dear = dataclasses.replace(GPU, kernel_us=Range(2.0, 10.0))
    assert call_ms(hop, PEAK, dear).low > times[0].low


def test_the_streams_that_fit_are_the_most_that_do(hop: Workload) -> None:
    found = estimate_graph(hop, PEAK, period_s=HOP_S)
    for bound, streams in zip((1, 0), found.streams, strict=True):
        assert 0 < streams < MAX_STREAMS
        assert call_ms(hop, PEAK, GPU, streams=int(streams))[bound] <= 1e3 * HOP_S
        assert call_ms(hop, PEAK, GPU, streams=int(streams) + 1)[bound] > 1e3 * HOP_S
    assert estimate_graph(hop, PEAK, period_s=1e-5).streams == (0, 0)
    assert estimate_graph(hop, PEAK, period_s=60.0).streams.high == MAX_STREAMS
    assert found.rtf == (found.graph_ms.low / 8, found.graph_ms.high / 8)


def test_the_cpu_is_predicted_by_the_same_functions(hop: Workload) -> None:
    low, high = predict_cpu_ms(hop, sgemm_gflops=100.0, copy_gbs=20.0, node_us=0.2)
    assert 1e-3 * 0.2 * len(hop.fused) < low < high
    assert 2 * sum(hop.macs.values()) / 100e9 * 1e3 < low  # no faster than its products at the best rate
    assert predict_cpu_ms(hop, sgemm_gflops=200.0, copy_gbs=20.0, node_us=0.2) < (low, high)
    assert predict_cpu_ms(hop, sgemm_gflops=100.0, copy_gbs=20.0, node_us=0.4) > (low, high)


@pytest.mark.parametrize("name", GPU_SPARSE_TOPS)
def test_derived_peaks_agree_with_published_ones(name: str) -> None:
    assert BOARDS[name].peak.tflops["int8"] == pytest.approx(GPU_SPARSE_TOPS[name] / 2, rel=0.03)


def test_boards_have_the_peaks_that_are_published() -> None:
    assert BOARDS["agx-orin-64gb"].peak.tflops["fp32"] == pytest.approx(5.3, rel=0.01)
    assert BOARDS["orin-nx-16gb"].peak.tflops["fp32"] == pytest.approx(1.9, rel=0.02)
    assert BOARDS["agx-thor"].peak.tflops["fp32"] == pytest.approx(20 * 128 * 2 * 1.575 / 1e3)
    bandwidths = {name: board.peak.bandwidth_gbs for name, board in BOARDS.items()}
    assert (bandwidths["orin-nano"], bandwidths["orin-nano-super"], bandwidths["agx-thor"]) == (68, 102, 273)
    assert all(board.source and board.mode and set(board.peak.tflops) == set(PEAK.tflops) for board in BOARDS.values())


def test_every_set_of_estimates_says_so_and_what_it_assumes(shipped: Bundle) -> None:
    cases = choose(shipped, Settings(("onnxruntime",), ("fp16",), (1, 8)))
    entry = json.loads(json.dumps(estimate_cases(cases, BOARDS["orin-nano"], streams=2).entry(), allow_nan=False))
    assert (entry["kind"], entry["measured"]) == ("estimate", False)
    assert [result["kind"] for result in entry["results"]] == ["estimate", "estimate"]
    assert entry["assumptions"]["words"] == GPU.lines()
    assert entry["assumptions"]["kernel_us"] == [1.0, 5.0]
    assert entry["board"]["source"]
    assert [(result["block"], result["streams_in_a_call"]) for result in entry["results"]] == [(1, 2), (8, 2)]


def test_precisions_that_tensorrt_does_not_take_are_left_out_and_told(shipped: Bundle) -> None:
    (case,) = choose(shipped, Settings(("onnxruntime",), ("fp32",), (1,)))
    other = dataclasses.replace(case, graph=dataclasses.replace(case.graph, precision="int8-cpu"))
    found = estimate_cases([case, other], BOARDS["agx-thor"])
    assert found.left_out == ("block1.fp32.onnx: TensorRT does not take int8-cpu",)
    assert len(found.results) == 1
    with pytest.raises(MeasurementError, match=r"nothing to estimate: block1\.fp32\.onnx: TensorRT does not take"):
        estimate_cases([other], BOARDS["agx-thor"])


@pytest.mark.slow
def test_the_command_prints_an_estimate_and_calls_it_so(tmp_path: Path) -> None:
    arguments = (
        "bench",
        "small",
        "--device",
        "jetson",
        "--estimate",
        "orin-nano",
        "--precision",
        "fp16",
        "--block",
        "1",
    )
    lines = edgese(*arguments, cwd=tmp_path).stdout.decode().splitlines()
    assert lines[0] == "ESTIMATE, nothing was measured: mbs-net-small on Jetson Orin Nano 8GB, power mode 15W"
    assert "68 GB/s" in lines[1]
    title = next(index for index, line in enumerate(lines) if line.startswith("estimate, low and high bound"))
    assert lines[title + 1].split()[:2] == ["estimate", "block"]
    assert lines[title + 2].split()[:2] == ["fp16", "1"]
    assert [line.strip() for line in lines[lines.index("this estimate assumes:") + 1 :]] == GPU.lines()
    entry = parsed(edgese(*arguments, "--streams", "4", "--json", cwd=tmp_path).stdout)
    (result,) = entry["results"]
    assert (entry["kind"], result["kind"], result["streams_in_a_call"]) == ("estimate", "estimate", 4)
    assert result["graph_ms"]["low"] < result["graph_ms"]["high"]
    assert math.isclose(result["rtf"]["low"], result["graph_ms"]["low"] / 8)
    assert not {"back", "paced", "latency_ms"} & set(result)  # the names of measurements


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "jetson", "--estimate", "xavier"], ["'xavier'", *BOARDS]),
        (["--estimate", "orin-nano"], ["found --device cpu, wanted --device jetson"]),
        (
            ["--device", "jetson", "--estimate", "orin-nano", "--plot", "x"],
            ["--estimate measures nothing: found --plot"],
        ),
        (["--device", "jetson", "--estimate", "orin-nano", "--runtime", "openvino"], ["found --runtime beside it"]),
    ],
    ids=["unknown board", "another device", "a plot", "a runtime"],
)
def test_a_wrong_estimate_is_wrong_usage(arguments: list[str], said: list[str], tmp_path: Path) -> None:
    done = edgese("bench", *arguments, cwd=tmp_path, code=2)
    assert done.stdout == b""
    assert not list(tmp_path.iterdir())
    words = " ".join(done.stderr.decode().replace("│", " ").split())
    assert all(each in words for each in said)


def test_a_block_that_the_bundle_lacks_is_one_line(tmp_path: Path) -> None:
    done = edgese("bench", "--device", "jetson", "--estimate", "agx-thor", "--block", "3", cwd=tmp_path, code=1)
    assert "no graph of block 3" in one_error(done)
