"""Graphs of lower precision: what is in half precision and in INT8, that nothing else is, and that the sound stays.

What a graph is made of is read from its file, and what it computes is compared with the network in PyTorch, whose
products are rounded there by a few lines of this file.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from calib import CalibrationError
from calib.qdq import SYMMETRIC, candidates, write_quantized
from calib.ranges import Range
from edgese.audio import Wave
from edgese.errors import ConfigError
from edgese.export_bundle import export_bundle
from edgese.graphs.form import exported_form, write_program
from edgese.graphs.opening import open_graph, wanted_metadata
from edgese.graphs.plan import Plan, plan_of
from edgese.graphs.precision import Precision
from edgese.graphs.streaming import run
from edgese.graphs.write import graph_of, quantize_graph, write_graph
from edgese.metrics.difference import snr_db
from edgese.model.bands import BandAttention, BandFusion
from edgese.model.checkpoint import load_enhancer
from edgese.model.cost import macs_per_frame, product_macs
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import Linear, Product, products, use_half
from export import ExportError
from export.bundle import Bundle
from export.graph import write_onnx
from export.inspection import half_nodes
from runtimes.base import ArtefactError

from ..helpers.precision_bundle import BLOCKS, IN_FLOAT, IN_HALF
from ..helpers.tiny_bundle import HOP, ONE_NETWORK

MODULE = "enhancer.network."
N_HOPS = 120
LOWER = ("fp16", "int8", "int8-cpu")

# Measured, ONNX Runtime's kernels against PyTorch's over 240 hops: weights in half 125 dB; with 8 bits 71 dB in `int8`
# and 69 dB in `int8-cpu`: there the last bit of a float decides now and then between two steps of a number of 8 bits.
HALF_WEIGHTS_DB = 110.0
FAKE_QUANTIZATION_DB = 60.0


@pytest.fixture
def wave(speech_like: Callable[..., Wave]) -> Wave:
    return speech_like(N_HOPS * HOP, seed=9)


# Products


@ONE_NETWORK
def test_products_are_named_by_their_modules_in_the_network_s_order(tiny_enhancer: WaveformEnhancer) -> None:
    blocks = [f"blocks.{layer}.{part}" for layer in (0, 1) for part in ("in_proj", "x_proj", "out_proj")]
    fusions = [f"fusions.{layer}.{part}" for layer in (0, 1) for part in ("channels", "mix")]
    heads = ["magnitude_head", "phase_head"]
    decoders = [f"{which}_decoder.{part}" for which in ("magnitude", "phase") for part in ("first", "last")]
    assert list(products(tiny_enhancer.network)) == ["split.product", *blocks, *fusions, *heads, *decoders]


def test_no_linear_layer_is_forgotten(tiny_enhancer: WaveformEnhancer) -> None:
    linear = {name for name, module in tiny_enhancer.network.named_modules() if isinstance(module, nn.Linear)}
    assert linear
    assert linear < products(tiny_enhancer.network).keys()


def test_products_are_all_of_a_frame_s_arithmetic_but_the_transform_and_the_scan(
    tiny_enhancer: WaveformEnhancer,
) -> None:
    config, found = tiny_enhancer.network.config, product_macs(tiny_enhancer)
    with exported_form(tiny_enhancer):
        wanted = macs_per_frame(tiny_enhancer)
        assert product_macs(tiny_enhancer) == found
    assert found.keys() == products(tiny_enhancer.network).keys()
    sums: Counter[str] = Counter()
    for product, macs in found.items():
        sums[tiny_enhancer.network.parts[product.split(".")[0]]] += macs
    # of the scan and the taps: decay * h, b * x and c . h for each state, and the convolution
    elementwise = config.layers * config.n_bands * config.inner * (3 * config.states + config.conv_width)
    assert sums.pop("Mamba blocks") + elementwise == wanted.pop("Mamba blocks")
    del wanted["STFT and inverse"]
    assert sums == wanted


def test_the_macs_of_one_product_are_its_size(tiny_enhancer: WaveformEnhancer) -> None:
    config, found = tiny_enhancer.network.config, product_macs(tiny_enhancer)
    assert found["magnitude_head"] == config.n_bands * config.channels**2
    assert found["blocks.1.in_proj"] == config.n_bands * config.channels * 2 * config.inner
    assert found["fusions.0.mix"] == config.n_bands**2 * config.channels


@ONE_NETWORK
def test_half_precision_is_used_for_the_chosen_products_only(tiny_enhancer: WaveformEnhancer) -> None:
    network = tiny_enhancer.network

    def in_half() -> list[str]:
        return [name for name, product in products(network).items() if product.in_half]

    assert in_half() == []
    use_half(network, ["phase_head", "blocks.0.x_proj"])
    assert in_half() == ["blocks.0.x_proj", "phase_head"]
    use_half(network, ["fusions.1.mix"])
    assert in_half() == ["fusions.1.mix"]
    use_half(network, ())
    assert in_half() == []


class HalfOperations(TorchDispatchMode):
    """The operations of PyTorch that read or give float16."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        tensors = [tensor for tensor in (*args, given) if isinstance(tensor, Tensor)]
        if any(tensor.dtype == torch.float16 for tensor in tensors):
            self.found[func.overloadpacket.__name__] += 1
        return given


@torch.no_grad()
def test_in_half_precision_pytorch_multiplies_and_casts_and_does_nothing_else(
    tiny_enhancer: WaveformEnhancer, wave: Wave
) -> None:
    """In both parametrisations; views change no number."""
    every = products(tiny_enhancer.network)
    with exported_form(tiny_enhancer, every), HalfOperations() as operations:
        _, states = tiny_enhancer(torch.from_numpy(wave[None, : 3 * HOP]), tiny_enhancer.initial_state())
    views = {"view", "_unsafe_view", "expand", "t", "transpose", "reshape", "clone", "permute"}
    assert operations.found.keys() - views <= {"_to_copy", "mm", "bmm", "matmul"}
    assert operations.found["mm"] + operations.found["bmm"] == len(every)
    assert {state.dtype for state in states.values()} == {torch.float32}


def test_a_product_rounds_its_operands_and_its_result_and_adds_the_bias_in_float32() -> None:
    torch.manual_seed(0)
    linear, x = Linear(24, 8), torch.randn(5, 24)
    with torch.no_grad():
        linear.bias.fill_(1 + 2.0**-20)  # float16 has no such number
    plain = linear(x)
    assert torch.equal(plain, nn.functional.linear(x, linear.weight, linear.bias))
    linear.in_half = True
    halves = x.half().double() @ linear.weight.half().double().T
    found = linear(x) - linear.bias
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), halves, rtol=2.0**-10, atol=2.0**-10)
    assert not torch.allclose(found, plain - linear.bias, rtol=0, atol=1e-6)
    assert torch.equal(linear(torch.zeros(5, 24)), linear.bias.expand(5, 8))
    product = Product()
    assert torch.equal(product(x, linear.weight.T), x @ linear.weight.T)
    product.in_half = True
    without = Linear(24, 8, bias=False)
    without.load_state_dict({"weight": linear.weight})
    without.in_half = True
    assert torch.equal(product(x, linear.weight.T), without(x))


def test_what_float16_cannot_hold_becomes_infinite() -> None:
    """Nothing is clipped in secret: whoever has such activations is told by the proof."""
    product = Product()
    product.in_half = True
    assert torch.isinf(product(torch.full((1, 2), 70_000.0), torch.ones(2, 1))).all()


# The network stays what it was


def forms(enhancer: WaveformEnhancer) -> list[tuple[str, ...]]:
    """All that the exported form changes."""
    settings = ("in_half", "scan_form", "form")
    return [
        (name, *(str(getattr(module, setting, None)) for setting in settings))
        for name, module in enhancer.named_modules()
    ]


@torch.no_grad()
def test_the_exported_form_leaves_the_network_as_it_was(tiny_enhancer: WaveformEnhancer, wave: Wave) -> None:
    """Even where something breaks in it."""
    sound, start = torch.from_numpy(wave)[None, : 20 * HOP], tiny_enhancer.initial_state()
    before, keys = forms(tiny_enhancer), list(tiny_enhancer.state_dict())
    wanted, _ = tiny_enhancer(sound, start)
    every = products(tiny_enhancer.network)
    found = []

    def broken() -> None:
        with exported_form(tiny_enhancer, every):
            assert all(product.in_half for product in every.values())
            found.append(tiny_enhancer(sound, start)[0])
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert forms(tiny_enhancer) == before
    assert torch.equal(tiny_enhancer(sound, start)[0], wanted)
    assert 50 < snr_db(wanted.numpy(), found[0].numpy()) < 95  # 11 bits of mantissa
    assert list(tiny_enhancer.state_dict()) == keys


def test_products_add_nothing_to_the_weights(tiny_enhancer: WaveformEnhancer) -> None:
    network = tiny_enhancer.network
    use_half(network, products(network))
    assert list(Product().state_dict()) == []
    assert list(Linear(3, 2).state_dict()) == list(nn.Linear(3, 2).state_dict())
    assert list(network.state_dict()) == [name for name, _ in network.named_parameters()]


@ONE_NETWORK
def test_a_network_can_still_be_brought_to_half_precision_as_a_whole(tiny_enhancer: WaveformEnhancer) -> None:
    """`half` is a method of every module of PyTorch: no setting may hide it."""
    network = copy.deepcopy(tiny_enhancer.network).half()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float16}
    linear = network.magnitude_head
    assert linear(torch.ones(1, linear.in_features).half()).dtype == torch.float16
    assert {parameter.dtype for parameter in network.float().parameters()} == {torch.float32}


@ONE_NETWORK
def test_gradients_are_those_of_before(tiny_enhancer: WaveformEnhancer, wave: Wave) -> None:
    sound = torch.from_numpy(wave)[None, : 10 * HOP]

    def gradients() -> list[Tensor]:
        tiny_enhancer.zero_grad()
        enhanced, _ = tiny_enhancer(sound, tiny_enhancer.initial_state())
        enhanced.square().sum().backward()
        return [parameter.grad.clone() for parameter in tiny_enhancer.parameters() if parameter.grad is not None]

    before = gradients()
    with exported_form(tiny_enhancer, products(tiny_enhancer.network)):
        pass
    after = gradients()
    assert len(before) == len(list(tiny_enhancer.parameters()))
    assert {gradient.dtype for gradient in before} == {torch.float32}
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(before, after, strict=True))
    linear, x = tiny_enhancer.network.phase_head, torch.randn(4, 8)
    (ours,) = torch.autograd.grad(linear(x).square().sum(), linear.weight)
    (theirs,) = torch.autograd.grad(nn.functional.linear(x, linear.weight, linear.bias).square().sum(), linear.weight)
    assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_a_graph_in_float32_is_the_same_bytes_after_half_precision(tmp_path: Path) -> None:
    """A fusion of bands has both kinds of products."""
    torch.manual_seed(0)
    fusion = BandFusion(5, 4).eval()

    def written(name: str) -> tuple[bytes, int]:
        path = tmp_path / name
        write_onnx(fusion, {"x": torch.zeros(1, 5, 2, 4)}, ["y"], path, dynamic_axes={}, metadata={})
        return path.read_bytes(), len(half_nodes(path))

    before, n_before = written("before.onnx")
    use_half(fusion, products(fusion))
    _, n_half = written("half.onnx")
    use_half(fusion, ())
    assert (n_before, n_half) == (0, 6)  # two products, a Cast before and behind each
    assert written("after.onnx") == (before, 0)


@pytest.mark.slow
def test_attention_over_bands_gives_its_values_in_each_precision(tmp_path: Path) -> None:
    """Its two products with weights go to float16 and are offered for INT8; scores and sums stay float32."""
    torch.manual_seed(0)
    fusion, x = BandAttention(5, 16).eval(), torch.randn(1, 5, 2, 16)
    with torch.no_grad():
        wanted = fusion(x).numpy()

    def result(path: Path) -> np.ndarray:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x.numpy()})[0]

    paths = [tmp_path / name for name in ("single.onnx", "half.onnx", "eight.onnx")]
    for path, half in zip(paths, ((), products(fusion)), strict=False):
        use_half(fusion, half)
        write_onnx(fusion, {"x": x}, ["y"], path, dynamic_axes={}, metadata={})
    assert [len(half_nodes(path)) for path in paths[:2]] == [0, 6]
    offered = candidates(paths[0])
    assert len(offered) == 2
    ranges = {product.activation: Range(-4.0, 4.0) for product in offered}
    write_quantized(paths[0], paths[2], [product.node for product in offered], ranges, SYMMETRIC)
    errors = [float(np.abs(result(path) - wanted).max()) for path in paths]
    assert errors[0] < 1e-6
    assert 1e-6 < errors[1] < 5e-3
    assert 1e-4 < errors[2] < 0.1


# What is float16, by the graph itself


class Traced:
    """A graph of lower precision as it is written, and the type that each of its tensors has when it runs."""

    def __init__(self, bundle: Bundle, precision: str, block: int) -> None:
        graph = bundle.graph(block=block, precision=precision)
        self.model = onnx.load(bundle.path / graph.file)
        shown = onnx.ModelProto.FromString(self.model.SerializeToString())
        outputs = {value.name for value in shown.graph.output}
        inner = [name for node in shown.graph.node for name in node.output if name not in outputs]
        shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in inner)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        feeds = {
            value.name: rng.standard_normal([1, *value.shape[1:]]).astype(np.float32) for value in session.get_inputs()
        }
        names = [value.name for value in session.get_outputs()]
        self.dtypes = {name: array.dtype.name for name, array in zip(names, session.run(None, feeds), strict=True)}
        self.dtypes |= {
            value.name: {"tensor(float)": "float32"}.get(value.type, value.type) for value in session.get_inputs()
        }
        self.dtypes |= {
            tensor.name: onnx.numpy_helper.to_array(tensor).dtype.name for tensor in self.model.graph.initializer
        }

    def types(self, node: onnx.NodeProto) -> set[str]:
        """Of all that a node reads and gives."""
        return {self.dtypes[name] for name in (*node.input, *node.output) if name}

    @property
    def in_half(self) -> list[onnx.NodeProto]:
        return [node for node in self.model.graph.node if "float16" in self.types(node)]


def module(node: onnx.NodeProto) -> str:
    """Of the network; what belongs to none of its modules gives nothing."""
    (path,) = [entry.value for entry in node.metadata_props if entry.key == "module"] or [""]
    return path.removeprefix(MODULE)


@ONE_NETWORK
@pytest.mark.parametrize("block", BLOCKS)
def test_the_islands_of_float32_are_all_but_the_products(
    block: int, quantized: Bundle, tiny_enhancer: WaveformEnhancer
) -> None:
    traced = Traced(quantized, "fp16", block)
    assert {node.op_type for node in traced.in_half} == {"Cast", "MatMul"}
    every = list(products(tiny_enhancer.network))
    assert sorted(module(node) for node in traced.in_half if node.op_type == "MatMul") == sorted(every)
    for node in traced.model.graph.node:
        if node.op_type == "MatMul":
            assert traced.types(node) == {"float16" if module(node) in every else "float32"}, node.name
    islands = {"LayerNormalization", "Exp", "Log", "Sigmoid", "Tanh", "Sqrt", "Pow", "Div", "Add", "Mul", "Sub"}
    here = {node.op_type for node in traced.model.graph.node}
    assert islands <= here
    for node in traced.model.graph.node:
        assert node.op_type not in islands or traced.types(node) == {"float32"}, node.name
    others = {module(node) for node in traced.model.graph.node if node.op_type == "MatMul"} - set(every)
    assert others == {"blocks.0", "blocks.1", "enhancer.transform.dft", "enhancer"}  # the scans, the DFT, its inverse


@ONE_NETWORK
@pytest.mark.parametrize("precision", LOWER)
def test_inputs_outputs_and_states_are_float32(precision: str, quantized: Bundle) -> None:
    for block in BLOCKS:
        graph = quantized.graph(block=block, precision=precision)
        with open_graph(quantized, graph) as opened:
            for specs in (opened.inputs, opened.outputs):
                assert {spec.dtype for spec in specs} == {"float32"}
            assert [spec.name for spec in opened.inputs] == ["wave", *graph.states]


@ONE_NETWORK
def test_casts_stand_before_and_behind_products_only(quantized: Bundle) -> None:
    traced = Traced(quantized, "fp16", 3)
    read = {name for node in traced.in_half if node.op_type == "MatMul" for name in node.input}
    given = {name for node in traced.in_half if node.op_type == "MatMul" for name in node.output}
    casts = [node for node in traced.in_half if node.op_type == "Cast"]
    assert casts
    for cast in casts:
        types = traced.dtypes[cast.input[0]], traced.dtypes[cast.output[0]]
        assert (cast.output[0] in read and types == ("float32", "float16")) or (
            cast.input[0] in given and types == ("float16", "float32")
        ), cast.name


@ONE_NETWORK
def test_half_nodes_are_those_whose_tensors_are_float16_when_the_graph_runs(quantized: Bundle) -> None:
    for precision in ("fp32", *LOWER):
        traced = Traced(quantized, precision, 3)
        found = half_nodes(quantized.path / quantized.graph(block=3, precision=precision).file)
        assert [node.name for node in found] == [node.name for node in traced.in_half]
        assert bool(found) == (precision in ("fp16", "int8"))


# What is in 8 bits


@ONE_NETWORK
@pytest.mark.parametrize(("precision", "others"), [("int8", IN_HALF), ("int8-cpu", IN_FLOAT)])
def test_the_planned_products_are_in_8_bits_and_no_others(
    precision: str, others: tuple[str, ...], quantized: Bundle, tiny_enhancer: WaveformEnhancer
) -> None:
    every = set(products(tiny_enhancer.network))
    for block in BLOCKS:
        traced = Traced(quantized, precision, block)
        makers = {name: node for node in traced.model.graph.node for name in node.output}
        in_int8, plain = set(), {}
        for node in traced.model.graph.node:
            if node.op_type == "MatMul":
                sources = [makers[name].op_type if name in makers else "weight" for name in node.input]
                if sources == ["DequantizeLinear"] * 2:
                    in_int8.add(module(node))
                    continue
                assert "DequantizeLinear" not in sources, node.name
                plain[module(node)] = traced.types(node)
            elif node.op_type != "DequantizeLinear":  # no other node reads what is rounded
                assert "DequantizeLinear" not in {makers[name].op_type for name in node.input if name in makers}
        assert in_int8 == every - set(others) == plan_of(quantized, precision).ranges.keys()
        assert set(plan_of(quantized, precision).half) == (set(others) if precision == "int8" else set())
        half = {"float16"} if precision == "int8" else {"float32"}
        assert {name: plain[name] for name in others} == dict.fromkeys(others, half)


@ONE_NETWORK
def test_int8_is_what_tensorrt_takes(quantized: Bundle) -> None:
    """Zero points of 0, int8, no biases in INT32; a weight has no zero point in either."""
    found = {}
    for precision in ("int8", "int8-cpu"):
        traced = Traced(quantized, precision, 1)
        assert "int32" not in traced.dtypes.values()
        held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in traced.model.graph.initializer}
        weights = [n for n in traced.model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
        assert len(weights) == len(plan_of(quantized, precision).ranges)
        assert {held[node.input[0]].dtype.name for node in weights} == {"int8"}
        assert not any(held[node.input[2]].any() for node in weights)
        zeros = [held[n.input[2]] for n in traced.model.graph.node if n.op_type == "QuantizeLinear"]
        found[precision] = {zero.dtype.name for zero in zeros}, {int(zero) for zero in zeros}
    assert found["int8"] == ({"int8"}, {0})
    types, zeros = found["int8-cpu"]
    assert types == {"uint8"}
    assert len(zeros) > 3


@ONE_NETWORK
def test_quantized_weights_take_less_room(quantized: Bundle) -> None:
    sizes = {name: (quantized.path / f"weights.{name}.bin").stat().st_size for name in ("fp32", *LOWER)}
    n_weights = sum(parameter.numel() for parameter in load_enhancer(quantized.path / "model.safetensors").parameters())
    assert sizes["fp32"] - sizes["fp16"] > 1.9 * n_weights  # narrow bands are filled up: more than there are
    assert sizes["int8"] < sizes["fp16"]
    assert sizes["int8-cpu"] < sizes["fp32"]


# What comes out


def in_half_weights(x: Tensor, weight: Tensor) -> Tensor:
    """A product in half precision as ONNX Runtime has it on CPUs: it drops both Casts, float32 but for the weight."""
    return x.half().float() @ weight if isinstance(x, nn.Parameter) else x @ weight.half().float()


def in_8_bits(x: Tensor, wanted: Range, symmetric: bool) -> Tensor:
    """The nearest numbers of 8 bits, by the definition of QuantizeLinear."""
    low, high = min(wanted.low, 0.0), max(wanted.high, 0.0)
    if symmetric:
        scale, zero, least, most = np.float32(max(-low, high) / 127), 0, -128, 127
    else:
        scale = np.float32((high - low) / 255)
        zero, least, most = round(-low / float(scale)), 0, 255
    return (torch.clamp(torch.round(x / scale) + zero, least, most) - zero) * scale


def quantized_weight(weight: Tensor) -> Tensor:
    """Of rank 2: a scale for each column; else one for all."""
    largest = weight.abs().amax(0, keepdim=True) if weight.ndim == 2 else weight.abs().max()
    return torch.round(weight / (largest / 127)) * (largest / 127)


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A product's forward, as a plan has it."""

    layer: Product | Linear
    wanted: Range | None
    symmetric: bool

    def __call__(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        right = self.layer.weight.T if isinstance(self.layer, Linear) else weight
        assert right is not None
        if self.wanted is None:
            y = in_half_weights(x, right)
        else:
            y = in_8_bits(x, self.wanted, self.symmetric) @ quantized_weight(right)
        bias = self.layer.bias if isinstance(self.layer, Linear) else None
        return y if bias is None else y + bias


@torch.no_grad()
def in_pytorch(enhancer: WaveformEnhancer, wave: Wave, block: int, plan: Plan, *, symmetric: bool) -> Wave:
    """Streamed in PyTorch with carried states, the plan's products rounded here."""
    ours = copy.deepcopy(enhancer)
    for name, product in products(ours.network).items():
        if name in plan.half or name in plan.ranges:
            product.forward = Rounding(product, plan.ranges.get(name), symmetric)  # type: ignore[method-assign]
    states, pieces = ours.initial_state(), []
    with exported_form(ours):
        for start in range(0, len(wave), block * HOP):
            enhanced, states = ours(torch.from_numpy(wave[None, start : start + block * HOP]), states)
            pieces.append(enhanced[0])
    return torch.cat(pieces).numpy()


def streamed(bundle: Bundle, precision: str, block: int, wave: Wave) -> Wave:
    graph = bundle.graph(block=block, precision=precision)
    with open_graph(bundle, graph) as opened:
        return run(opened.stream(graph.states, streams=1), graph, wave)


@ONE_NETWORK
@pytest.mark.parametrize(
    ("precision", "least_db"),
    [("fp16", HALF_WEIGHTS_DB), ("int8", FAKE_QUANTIZATION_DB), ("int8-cpu", FAKE_QUANTIZATION_DB)],
)
def test_a_quantized_graph_gives_what_the_network_gives_with_these_products_rounded(
    precision: str, least_db: float, quantized: Bundle, tiny_enhancer: WaveformEnhancer, wave: Wave
) -> None:
    plan, symmetric = plan_of(quantized, precision), precision == "int8"
    found = {block: streamed(quantized, precision, block, wave) for block in BLOCKS}
    for block, enhanced in found.items():
        wanted = in_pytorch(tiny_enhancer, wave, block, plan, symmetric=symmetric)
        assert snr_db(wanted, enhanced) > least_db
    assert snr_db(found[1], found[3]) > least_db - 5  # each carries its own roundings on
    # and it is another sound than without rounding, or with other ranges
    plain = in_pytorch(tiny_enhancer, wave, 3, Plan(), symmetric=symmetric)
    assert 40 < snr_db(plain, found[3]) < (85 if precision == "fp16" else 55)
    if plan.ranges:
        name = "blocks.0.in_proj"
        wider = Range(1.1 * plan.ranges[name].low, 1.1 * plan.ranges[name].high)
        other = dataclasses.replace(plan, ranges={**plan.ranges, name: wider})
        assert snr_db(in_pytorch(tiny_enhancer, wave, 3, other, symmetric=symmetric), found[3]) < least_db


@ONE_NETWORK
@torch.no_grad()
def test_half_precision_in_pytorch_is_the_graph_s_within_its_rounding(
    quantized: Bundle, tiny_enhancer: WaveformEnhancer, wave: Wave
) -> None:
    with exported_form(tiny_enhancer, plan_of(quantized, "fp16").half):
        wanted, _ = tiny_enhancer(torch.from_numpy(wave)[None], tiny_enhancer.initial_state())
    found = streamed(quantized, "fp16", 3, wave)
    assert 60 < snr_db(wanted[0].numpy(), found) < 110


# Plans, and what a bundle says


@ONE_NETWORK
def test_a_plan_survives_the_manifest(quantized: Bundle) -> None:
    plan = Plan(("a", "b"), {"c": Range(-1.5, 0.1), "d": Range(0.0, 3e-7)}, "digest", {"method": "minmax", "n": [1]})
    assert Plan.from_entry(json.loads(json.dumps(plan.entry(), allow_nan=False))) == plan
    assert Plan.from_entry(json.loads(json.dumps(Plan().entry()))) == Plan()
    assert plan_of(quantized, "fp32") == Plan()
    written = json.loads((quantized.path / "manifest.json").read_text(encoding="utf-8"))["precisions"]
    assert written.keys() == {"fp32", *LOWER}
    assert list(plan_of(quantized, "fp16").half) == written["fp16"]["half"]


@ONE_NETWORK
@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"precisions": {}},
        {"precisions": {"int8": {"half": []}}},
        {"precisions": {"int8": {"half": [], "int8": {"a": [1]}, "calibration": None, "facts": {}}}},
        {"precisions": {"int8": {"half": [], "int8": {"a": ["x", 1]}, "calibration": None, "facts": {}}}},
        {"precisions": {"int8": None}},
    ],
)
def test_a_manifest_that_does_not_say_how_a_graph_was_made_is_refused(
    manifest: dict[str, Any], quantized: Bundle
) -> None:
    others = {key: value for key, value in quantized.manifest.items() if key != "precisions"}
    bundle = Bundle(quantized.path, {**others, **manifest}, quantized.graphs)
    with pytest.raises(ExportError, match=r"does not say how its int8 graphs were made \(.*\); export it again"):
        plan_of(bundle, "int8")
    assert plan_of(bundle, "fp32") == Plan()


@ONE_NETWORK
def test_a_graph_in_8_bits_names_its_calibration(quantized: Bundle) -> None:
    digest = quantized.manifest["calibration"]["digest"]
    assert len(digest) == 64
    for graph in quantized.graphs:
        wanted = wanted_metadata(quantized, graph)
        assert wanted["edgese.precision"] == graph.precision
        assert wanted.get("edgese.calibration") == (digest if "int8" in graph.precision else None)
        with open_graph(quantized, graph) as opened:
            assert opened.metadata == wanted
    assert quantized.manifest["calibration"]["provenance"]["block"] == 3


@ONE_NETWORK
def test_a_graph_of_another_calibration_is_refused(quantized: Bundle) -> None:
    plans = json.loads(json.dumps(quantized.manifest["precisions"]))
    plans["int8"]["calibration"] = "0" * 64
    bundle = Bundle(quantized.path, {**quantized.manifest, "precisions": plans}, quantized.graphs)
    with (
        pytest.raises(ArtefactError, match=r"block1\.int8\.onnx: .*edgese\.calibration.*0000"),
        open_graph(bundle, bundle.graph(block=1, precision="int8")),
    ):
        pass
    with open_graph(bundle, bundle.graph(block=1, precision="int8-cpu")):
        pass


@ONE_NETWORK
def test_pytorch_refuses_8_bits(quantized: Bundle, tmp_path: Path) -> None:
    for precision in ("int8", "int8-cpu"):
        graph = quantized.graph(block=1, precision=precision)
        with pytest.raises(ExportError, match=f"found {precision}, which PyTorch does not run; choose another runtime"):
            write_program(quantized, graph, tmp_path / "graph.pt2", {})
    assert list(tmp_path.iterdir()) == []


# What cannot be written


@ONE_NETWORK
@pytest.mark.parametrize(
    ("half", "named", "reason"),
    [
        ((), "fusions.0.mix", r"has no product fusions\.0\.mix to quantize, only split\.product, blocks\.0\.in_proj"),
        ((), "blocks.2.in_proj", r"has no product blocks\.2\.in_proj to quantize"),
        (tuple(IN_HALF), "magnitude_head", "has no product magnitude_head to quantize, only "),
    ],
)
def test_what_int8_cannot_take_is_refused(
    half: tuple[str, ...],
    named: str,
    reason: str,
    quantized: Bundle,
    tiny_enhancer: WaveformEnhancer,
    tmp_path: Path,
) -> None:
    """A weight on the left, a product that is not there, one that is in half precision already."""
    ordered = tuple(name for name in products(tiny_enhancer.network) if name in half)
    graph = graph_of(tiny_enhancer, 3, "int8")
    with pytest.raises(ExportError, match=reason):
        write_graph(tiny_enhancer, graph, tmp_path / graph.file, Plan(ordered, {named: Range(-1, 1)}))


@ONE_NETWORK
def test_half_precision_in_no_product_of_the_network_is_refused(
    tiny_enhancer: WaveformEnhancer, tmp_path: Path
) -> None:
    plan = Plan(half=("magnitude_head", "split.prodct", "blocks.0"))
    graph = graph_of(tiny_enhancer, 3, "fp16")
    with pytest.raises(ExportError, match=r"has no product blocks\.0, split\.prodct to take in half precision"):
        write_graph(tiny_enhancer, graph, tmp_path / graph.file, plan)
    assert list(tmp_path.iterdir()) == []


@ONE_NETWORK
def test_an_empty_range_is_refused(quantized: Bundle, tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    source = quantized.path / quantized.graph(block=3).file
    with pytest.raises(CalibrationError, match=r"the range of .* is 0\.5 to 0\.5, wanted one that is not empty"):
        quantize_graph(tiny_enhancer, source, tmp_path / "q.onnx", {"magnitude_head": Range(0.5, 0.5)}, Precision.INT8)
    assert list(tmp_path.iterdir()) == []


@ONE_NETWORK
@pytest.mark.parametrize("calibrated", [True, False])
def test_ranges_of_other_batches_than_the_bundle_s_are_refused(
    calibrated: bool, quantized: Bundle, tmp_path: Path
) -> None:
    plan = dataclasses.replace(plan_of(quantized, "int8"), calibration="1" * 64)
    if not calibrated:
        plan = dataclasses.replace(plan, ranges={})
    with pytest.raises(ConfigError, match=r"int8: found the ranges of \d+ products, from the batches 1111.*wanted"):
        export_bundle(quantized.path / "model.safetensors", tmp_path / "b", name="b", plans={Precision.INT8: plan})
    assert list(tmp_path.iterdir()) == []
