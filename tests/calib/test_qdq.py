"""Products in 8 bits, on a small hand-made graph, against the same rounding by NumPy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calib import CalibrationError
from calib.qdq import (
    ASYMMETRIC,
    SYMMETRIC,
    Candidate,
    QuantizedProduct,
    Scheme,
    candidates,
    read_quantized,
    write_quantized,
)
from calib.ranges import Range, find_ranges

Array = NDArray[np.float32]
Change = Callable[[onnx.GraphProto], object]

RNG = np.random.default_rng(5)
W_X = (RNG.standard_normal((4, 5)) * [0.1, 1, 10, 1, 1]).astype(np.float32)  # columns of unequal size
W_EACH = RNG.standard_normal((3, 5, 2)).astype(np.float32)
W_LAST = RNG.standard_normal((2, 2)).astype(np.float32)
SQUARE = np.eye(5, dtype=np.float32)
SPARE = np.ones(3, np.float32)  # read by nobody

# Not the extremes: some values lie outside.
RANGES = {"x": Range(-1.5, 1.25), "gate": Range(0, 3), "each": Range(-2, 5)}
CHOSEN = ["left", "each", "last"]


def toy_model() -> onnx.ModelProto:
    """y of three products in a row; each tensor that one of them reads has another reader as well.

    left = x @ w_x; gate = relu(left + bias), by bands; each = gate @ w_each; y = each @ w_last.
    mirror = x @ w_x, the same product once more; energy = gate @ gate, no weight; places = integers.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "w_x"], ["left"], name="left"),
        helper.make_node("Add", ["left", "bias"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["positive"], name="relu"),
        helper.make_node("Transpose", ["positive"], ["gate"], name="bands", perm=[1, 0, 2]),
        helper.make_node("MatMul", ["gate", "w_each"], ["each"], name="each"),
        helper.make_node("MatMul", ["each", "w_last"], ["y"], name="last"),
        helper.make_node("Neg", ["x"], ["negative"], name="negative"),
        helper.make_node("MatMul", ["x", "w_x"], ["mirror"], name="mirror"),
        helper.make_node("Transpose", ["gate"], ["turned"], name="turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["gate", "turned"], ["energy"], name="energy"),
        helper.make_node("MatMul", ["w_square", "turned"], ["mixed"], name="mixed"),
        helper.make_node("ArgMax", ["each"], ["places"], name="places", axis=-1),
    ]
    for node in nodes[:8]:
        helper.set_model_props(node, {"module": f"net.{node.name}"})
    shapes: dict[str, Sequence[str | int]] = {
        "y": (3, "streams", 2),
        "negative": ("streams", 3, 4),
        "mirror": ("streams", 3, 5),
        "energy": (3, "streams", "streams"),
        "mixed": (3, 5, "streams"),
        "gate": (3, "streams", 5),
        "each": (3, "streams", 2),
    }
    weights = {"w_x": W_X, "w_each": W_EACH, "w_last": W_LAST, "bias": W_X[0], "w_square": SQUARE, "spare": SPARE}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["streams", 3, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        + [helper.make_tensor_value_info("places", TensorProto.INT64, [3, "streams", 1])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.producer_name, model.producer_version = "by hand", "7"
    helper.set_model_props(model, {"block": "1", "precision": "float32"})
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    onnx.save(toy_model(), tmp_path / "toy.onnx")
    return tmp_path / "toy.onnx"


@pytest.fixture
def quantized(toy: Path) -> Path:
    return write(toy)


def write(toy: Path, nodes: Sequence[str] = CHOSEN, scheme: Scheme = SYMMETRIC, name: str = "q.onnx") -> Path:
    write_quantized(toy, toy.with_name(name), nodes, RANGES, scheme)
    return toy.with_name(name)


def feeds(streams: int = 6) -> dict[str, Array]:
    return {"x": np.random.default_rng(streams).standard_normal((streams, 3, 4), dtype=np.float32)}


def run(onnx_path: Path, fed: dict[str, Array], *, fused: bool = False) -> dict[str, Any]:
    """All outputs, with the graph's own nodes or with all of onnxruntime's fused ones."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fused else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(onnx_path, options, providers=["CPUExecutionProvider"])
    return dict(zip((node.name for node in session.get_outputs()), session.run(None, fed), strict=True))


def rounded(array: Array, scheme: Scheme, found: Range) -> Array:
    """An activation after Q and DQ."""
    if scheme.symmetric:
        scale, zero, lowest = max(-found.low, found.high) / 127, 0, -128
    else:
        low, high = min(found.low, 0), max(found.high, 0)
        scale = (high - low) / 255
        zero, lowest = round(-low / scale), 0
    numbers = np.clip(np.round(array / np.float32(scale)) + zero, lowest, lowest + 255)
    return np.asarray((numbers - zero) * np.float32(scale), np.float32)


def rounded_weight(weight: Array) -> Array:
    """One scale for each column, or one for all where there are more axes than two."""
    largest = np.abs(weight).max(axis=0, keepdims=True) if weight.ndim == 2 else np.abs(weight).max()
    scale = (largest / 127).astype(np.float32)
    return np.asarray(np.round(weight / scale) * scale, np.float32)


def by_hand(fed: dict[str, Array], scheme: Scheme) -> dict[str, Array]:
    x = fed["x"]
    left = rounded(x, scheme, RANGES["x"]) @ rounded_weight(W_X)
    gate = np.maximum(left + W_X[0], 0).transpose(1, 0, 2)
    each = rounded(gate, scheme, RANGES["gate"]) @ rounded_weight(W_EACH)
    y = rounded(each, scheme, RANGES["each"]) @ rounded_weight(W_LAST)
    return {"y": y, "negative": -x, "mirror": x @ W_X, "gate": gate, "each": each}


# What can be quantized


def test_candidates_are_products_with_a_float32_weight_on_the_right(toy: Path) -> None:
    assert candidates(toy) == (
        Candidate("left", "x", "w_x", (4, 5)),
        Candidate("each", "gate", "w_each", (3, 5, 2)),
        Candidate("last", "each", "w_last", (2, 2)),
        Candidate("mirror", "x", "w_x", (4, 5)),
    )


def altered(path: Path, change: Change, name: str = "altered.onnx") -> Path:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path.with_name(name))
    return path.with_name(name)


def node_of(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    node: onnx.NodeProto = next(node for node in graph.node if node.name == name)
    return node


def tensor_of(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    tensor: onnx.TensorProto = next(tensor for tensor in graph.initializer if tensor.name == name)
    return tensor


def store(graph: onnx.GraphProto, name: str, array: NDArray[Any]) -> None:
    """Put another content into an initializer, or add one."""
    content = numpy_helper.from_array(array, name)
    if any(tensor.name == name for tensor in graph.initializer):
        tensor_of(graph, name).CopyFrom(content)
    else:
        graph.initializer.append(content)


def test_other_weights_make_no_candidate(toy: Path) -> None:
    half = altered(toy, lambda graph: store(graph, "w_each", W_EACH.astype(np.float16)))
    assert [product.node for product in candidates(half)] == ["left", "last", "mirror"]
    vector = altered(toy, lambda graph: store(graph, "w_last", W_LAST[0]))
    assert [product.node for product in candidates(vector)] == ["left", "each", "mirror"]
    fed = altered(
        toy, lambda graph: graph.input.append(helper.make_tensor_value_info("w_x", TensorProto.FLOAT, [4, 5]))
    )
    assert [product.node for product in candidates(fed)] == ["each", "last"]


def test_a_product_of_two_weights_is_no_candidate(toy: Path) -> None:
    constant = altered(toy, lambda graph: store(graph, "gate_", W_EACH[:, :, :1].transpose(0, 2, 1)))
    assert "each" not in [product.node for product in candidates(altered(constant, read_of("each", 0, "gate_")))]


def test_candidates_need_no_weights(toy: Path) -> None:
    outside = toy.with_name("outside.onnx")
    onnx.save(onnx.load(toy), outside, save_as_external_data=True, location="w.bin", size_threshold=0)
    toy.with_name("w.bin").unlink()
    assert candidates(outside) == candidates(toy)


@pytest.mark.parametrize("name", ["left", ""])
def test_products_of_one_name_are_refused(toy: Path, name: str) -> None:
    def rename(graph: onnx.GraphProto) -> None:
        node_of(graph, "mirror").name = name

    with pytest.raises(CalibrationError, match=f"products bear the name '{name}', wanted one each"):
        candidates(altered(toy, rename))


# What is written


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC])
def test_a_quantized_graph_computes_what_numpy_computes(toy: Path, scheme: Scheme, fused: bool) -> None:
    path, fed = write(toy, scheme=scheme), feeds()
    found, exact = run(path, fed, fused=fused), run(toy, fed)
    for name, wanted in by_hand(fed, scheme).items():
        np.testing.assert_allclose(found[name], wanted, atol=1e-5, rtol=1e-5, err_msg=name)
    assert np.abs(found["y"] - exact["y"]).max() > 1e-3  # the rounding is there


def test_other_readers_get_what_is_not_rounded(toy: Path, quantized: Path) -> None:
    fed = feeds()
    found, exact = run(quantized, fed), run(toy, fed)
    np.testing.assert_array_equal(found["negative"], exact["negative"])
    np.testing.assert_array_equal(found["mirror"], exact["mirror"])  # of the same tensor and weight
    np.testing.assert_allclose(found["energy"], found["gate"] @ found["gate"].transpose(0, 2, 1), rtol=1e-6)
    np.testing.assert_array_equal(found["mixed"], found["gate"].transpose(0, 2, 1))
    np.testing.assert_array_equal(found["places"][..., 0], found["each"].argmax(-1))


def test_any_number_of_streams_passes(quantized: Path) -> None:
    for streams in (1, 2, 9):
        np.testing.assert_allclose(
            run(quantized, feeds(streams))["y"], by_hand(feeds(streams), SYMMETRIC)["y"], atol=1e-5, rtol=1e-5
        )


def test_nothing_else_changes(toy: Path, quantized: Path) -> None:
    before, after = onnx.load(toy), onnx.load(quantized)
    old = {node.name: node for node in before.graph.node}
    kept = [node for node in after.graph.node if node.name in old]
    assert [node.name for node in kept] == list(old)
    for node in kept:
        if node.name in CHOSEN:
            assert node.input[0] == old[node.name].input[0] + "_DequantizeLinear_Output"
            del node.input[:]
            node.input.extend(old[node.name].input)
        assert node == old[node.name]  # the metadata included
    new = [node for node in after.graph.node if node.name not in old]
    assert sorted(node.op_type for node in new) == ["DequantizeLinear"] * 6 + ["QuantizeLinear"] * 3
    weights = {tensor.name: tensor for tensor in after.graph.initializer}
    for tensor in before.graph.initializer:
        assert tensor.name in ("w_each", "w_last") or weights[tensor.name] == tensor
    assert not {"w_each", "w_last"} & set(weights)  # no float copy is left; w_x is still read by mirror
    for model in (before, after):
        for field in ("node", "initializer"):
            model.graph.ClearField(field)
    assert before == after  # inputs, outputs, metadata, opset, producer


def test_a_quantized_file_is_valid_and_stands_alone(toy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "in" / "outside.onnx"
    outside.parent.mkdir()
    onnx.save(onnx.load(toy), outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    write_quantized(outside, tmp_path / "alone.onnx", CHOSEN, RANGES, SYMMETRIC)
    (outside.parent / "weights.bin").unlink()
    onnx.checker.check_model(str(tmp_path / "alone.onnx"), full_check=True)
    np.testing.assert_array_equal(run(tmp_path / "alone.onnx", feeds())["y"], run(write(toy), feeds())["y"])
    with pytest.raises(CalibrationError, match=r"outside\.onnx: cannot be read as ONNX"):
        write_quantized(outside, tmp_path / "alone.onnx", CHOSEN, RANGES, SYMMETRIC)


def test_equal_inputs_give_equal_bytes_in_any_order(toy: Path) -> None:
    first = write(toy, name="first.onnx").read_bytes()
    assert write(toy, name="second.onnx").read_bytes() == first
    assert write(toy, ["mirror"], name="third.onnx").read_bytes() != first
    write_quantized(toy, toy, CHOSEN[::-1], dict(reversed(RANGES.items())), SYMMETRIC)  # over the float32 graph
    assert toy.read_bytes() == first


@pytest.mark.parametrize("another", ["output", "inside"])
def test_a_float32_weight_stays_for_another_reader(toy: Path, another: str) -> None:
    change = {"output": leaving("w_last", 2, 2), "inside": inside(helper.make_node("Neg", ["w_last"], ["inner"]))}[
        another
    ]
    weights = {tensor.name for tensor in onnx.load(write(altered(toy, change))).graph.initializer}
    assert {"w_last", "w_last_quantized"} < weights
    assert "w_each" not in weights


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC])
def test_weights_of_rank_2_have_a_scale_for_each_column_and_others_one(toy: Path, scheme: Scheme) -> None:
    products = {product.node: product for product in read_quantized(write(toy, scheme=scheme))}
    left, each = products["left"], products["each"]
    assert (left.weight_axis, left.weight_scale.shape) == (1, (5,))
    np.testing.assert_allclose(left.weight_scale, np.abs(W_X).max(axis=0) / 127, rtol=1e-6)
    assert (each.weight_axis, each.weight_scale.shape) == (None, ())
    np.testing.assert_allclose(each.weight_scale, np.abs(W_EACH).max() / 127, rtol=1e-6)
    for product, weight in ((left, W_X), (each, W_EACH), (products["last"], W_LAST)):
        assert (product.weight.dtype, product.weight.shape) == (np.dtype(np.int8), weight.shape)
        assert product.weight.min() >= -127
        assert product.dequantized.dtype == np.float32
        np.testing.assert_allclose(product.dequantized, rounded_weight(weight), rtol=1e-6)
        half_step = np.broadcast_to(product.weight_scale / 2, weight.shape)
        assert (np.abs(product.dequantized - weight) <= half_step * (1 + 1e-5)).all()


def test_symmetric_files_are_what_tensorrt_takes(quantized: Path) -> None:
    model = onnx.load(quantized)
    dtypes = {tensor.data_type for tensor in model.graph.initializer}
    assert dtypes == {TensorProto.FLOAT, TensorProto.INT8}
    for product in read_quantized(quantized):
        assert (product.zero_point, product.activation_dtype) == (0, "int8")
        bound = max(-RANGES[product.activation].low, RANGES[product.activation].high)
        assert product.activation_scale == pytest.approx(bound / 127, rel=1e-6)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20}


def test_asymmetric_activations_use_all_256_numbers(toy: Path) -> None:
    products = {product.node: product for product in read_quantized(write(toy, scheme=ASYMMETRIC))}
    assert [products[name].zero_point for name in CHOSEN] == [139, 0, 73]
    assert {product.activation_dtype for product in products.values()} == {"uint8"}
    for product in products.values():
        found = RANGES[product.activation]
        assert product.activation_scale == pytest.approx((found.high - found.low) / 255, rel=1e-6)


def test_products_of_one_tensor_share_its_rounding(toy: Path) -> None:
    path = write(toy, ["left", "mirror", "each"])
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("QuantizeLinear") == 2  # x, gate
    assert operators.count("DequantizeLinear") == 4  # and w_x, w_each
    assert [(product.node, product.activation) for product in read_quantized(path)] == [
        ("left", "x"),
        ("each", "gate"),
        ("mirror", "x"),
    ]
    assert "w_x" not in {tensor.name for tensor in onnx.load(path).graph.initializer}
    np.testing.assert_allclose(
        run(path, feeds())["mirror"], rounded(feeds()["x"], SYMMETRIC, RANGES["x"]) @ rounded_weight(W_X), atol=1e-5
    )


def test_ranges_that_are_found_serve(toy: Path) -> None:
    products = candidates(toy)
    batches: list[dict[str, NDArray[Any]]] = [dict(feeds(streams)) for streams in (3, 30)]
    ranges = find_ranges(toy, batches, {product.activation for product in products})
    write_quantized(toy, toy.with_name("q.onnx"), [product.node for product in products], ranges, SYMMETRIC)
    found, exact = run(toy.with_name("q.onnx"), feeds(30))["y"], run(toy, feeds(30))["y"]
    assert 30 < 10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()) < 60
    for product in read_quantized(toy.with_name("q.onnx")):
        assert product.activation_scale == pytest.approx(ranges[product.activation].high / 127, rel=1e-6)


def test_a_column_of_zeros_stays_one(toy: Path) -> None:
    weight = W_X.copy()
    weight[:, 2] = 0
    path = altered(toy, lambda graph: store(graph, "w_x", weight))
    product = read_quantized(write(path))[0]
    np.testing.assert_array_equal(product.dequantized[:, 2], np.zeros(4))
    np.testing.assert_allclose(product.dequantized, np.where(weight == 0, 0, rounded_weight(W_X)), rtol=1e-6)


def test_nothing_is_printed_logged_or_left_behind(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy.parent)
    handlers = list(logging.getLogger().handlers)
    write(toy)
    assert {path.name for path in toy.parent.iterdir()} == {"toy.onnx", "q.onnx"}
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("nodes", "ranges", "message"),
    [
        ([], {}, "no nodes to quantize, wanted at least one"),
        (["left", "right"], {}, "right: no product .* with a weight; this graph has left, each, last, mirror"),
        (["add"], {}, "add: no product"),
        (["energy"], {}, "energy: no product"),
        (["mixed"], {}, "mixed: no product"),
        (CHOSEN, {"gate": None}, "no range for gate, which each reads"),
        (CHOSEN, {"each": Range(0, 0)}, "the range of each is 0 to 0, wanted one that is not empty"),
        (CHOSEN, {"each": Range(2.5, 2.5)}, "the range of each is 2.5 to 2.5, wanted one that is not empty"),
        (CHOSEN, {"each": Range(-1e-37, 1e-37)}, "the range of each is -1e-37 to 1e-37, wanted one that 255 steps"),
        (CHOSEN, {"each": Range(0, 1e39)}, "the range of each is 0 to 1e.39, wanted one that 255 steps"),
    ],
)
def test_what_cannot_be_quantized_is_refused(
    toy: Path, nodes: list[str], ranges: dict[str, Range | None], message: str
) -> None:
    given = {name: found for name, found in (RANGES | ranges).items() if found is not None}
    with pytest.raises(CalibrationError, match=rf"toy\.onnx: .*{message}"):
        write_quantized(toy, toy.with_name("q.onnx"), nodes, given, SYMMETRIC)
    assert not toy.with_name("q.onnx").exists()


def test_a_weight_that_is_not_finite_is_refused(toy: Path) -> None:
    weight = W_LAST.copy()
    weight[0, 1] = np.nan
    path = altered(toy, lambda graph: store(graph, "w_last", weight))
    with pytest.raises(CalibrationError, match="w_last holds NaN or Inf"):
        write(path)


def test_a_quantized_graph_is_not_quantized_again(toy: Path, quantized: Path) -> None:
    with pytest.raises(CalibrationError, match="this graph has mirror"):
        write(quantized, ["left"], name="twice.onnx")
    with pytest.raises(CalibrationError, match=r"the graph has a tensor x_.* already; give the float32 graph"):
        write(quantized, ["mirror"], name="twice.onnx")


def test_an_opset_without_scales_by_channel_is_refused(toy: Path) -> None:
    model = onnx.load(toy)
    model.opset_import[0].version = 11
    onnx.save(model, toy)
    with pytest.raises(CalibrationError, match=r"q\.onnx: would not be valid ONNX"):
        write(toy)
    assert not toy.with_name("q.onnx").exists()


def test_another_suffix_is_refused(toy: Path) -> None:
    with pytest.raises(CalibrationError, match=r"q\.bin: the file name must end in \.onnx"):
        write(toy, name="q.bin")


def test_a_scheme_of_other_numbers_is_refused() -> None:
    with pytest.raises(CalibrationError, match="activations: found 'int4', wanted one of int8, uint8"):
        Scheme("fine", "int4", symmetric=True)


# What is read


def test_a_float_graph_holds_no_products_in_8_bits(toy: Path) -> None:
    assert read_quantized(toy) == ()


def test_products_are_read_as_the_file_holds_them(quantized: Path) -> None:
    products = read_quantized(quantized)
    assert [(product.node, product.activation) for product in products] == [
        ("left", "x"),
        ("each", "gate"),
        ("last", "each"),
    ]
    graph = onnx.load(quantized).graph
    numbers = numpy_helper.to_array(tensor_of(graph, "w_last_quantized"))
    np.testing.assert_array_equal(products[2].weight, numbers)
    # The scale of x is stored once, for Q and DQ.
    others = read_quantized(altered(quantized, both(stored("x_scale", double), stored("w_last_scale", double))))
    assert others[0].activation_scale == 2 * products[0].activation_scale
    np.testing.assert_array_equal(others[2].dequantized, 2 * products[2].dequantized)
    assert_equal(others[1], products[1])


def read_of(node: str, place: int, name: str) -> Change:
    """Let a node read another tensor."""

    def change(graph: onnx.GraphProto) -> None:
        node_of(graph, node).input[place] = name

    return change


def stored(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """Put other numbers into an initializer."""

    def apply(graph: onnx.GraphProto) -> None:
        store(graph, name, change(numpy_helper.to_array(tensor_of(graph, name)).copy()))

    return apply


def double(array: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(array * np.float32(2))


def parting(operator: str, which: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Change:
    """Give Q or DQ of x a scale or zero point of its own."""

    def apply(graph: onnx.GraphProto) -> None:
        store(graph, "own", change(numpy_helper.to_array(tensor_of(graph, f"x_{which}"))))
        node_of(graph, f"x_{operator}").input[1 if which == "scale" else 2] = "own"

    return apply


def both(*changes: Change) -> Change:
    return lambda graph: [change(graph) for change in changes]


def added(operator: str, inputs: list[str], output: str = "new") -> Change:
    return lambda graph: graph.node.append(helper.make_node(operator, inputs, [output], name="new"))


def leaving(name: str, *shape: int) -> Change:
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    return lambda graph: graph.output.append(value)


def inside(*nodes: onnx.NodeProto, returns: str = "inner") -> Change:
    """Put nodes into both branches of an If."""
    value = helper.make_tensor_value_info(returns, TensorProto.FLOAT, None)
    branch = helper.make_graph(nodes, "branch", [], [value])

    def apply(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
        graph.node.append(helper.make_node("If", ["yes"], ["new"], name="if", then_branch=branch, else_branch=branch))

    return apply


def attribute(node: str, name: str, value: int) -> Change:
    def apply(graph: onnx.GraphProto) -> None:
        found = node_of(graph, node)
        kept = [each for each in found.attribute if each.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return apply


Q, DQ = "QuantizeLinear", "DequantizeLinear"
X_Q, X_DQ, LEFT_DQ = f"{Q} x_{Q}", f"{DQ} x_{DQ}", f"{DQ} w_x_{DQ}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (parting(Q, "scale", double), f"{X_DQ}: has the scale .*, but {X_Q} has .*; wanted one"),
        (parting(DQ, "scale", double), f"{X_DQ}: has the scale .*, but {X_Q} has .*; wanted one"),
        (parting(DQ, "zero_point", lambda zero: zero + 1), f"{X_DQ}: has the zero point 1, but {X_Q} has 0"),
        (both(stored("x_zero_point", lambda zero: zero + 1), read_of(f"x_{DQ}", 2, "")), f"{X_DQ}: has .* none, but"),
        (parting(Q, "zero_point", lambda zero: zero.astype(np.uint8)), f"{X_DQ}: has the zero point 0, but {X_Q}"),
        (stored("x_scale", lambda scale: -scale), f"{X_Q}: has the scale -.*, wanted positive float32"),
        (stored("x_scale", lambda scale: scale * 0), f"{X_Q}: has the scale 0.0 .*, wanted positive float32"),
        (stored("x_scale", lambda scale: scale * np.nan), f"{X_Q}: has the scale nan .*, wanted positive float32"),
        (stored("x_scale", lambda scale: scale.astype(np.float16)), "of dtype float16, wanted positive float32"),
        (stored("x_scale", lambda scale: np.full(4, scale)), f"{X_DQ}: has 4 scales on an activation, wanted one"),
        (stored("x_zero_point", lambda zero: zero.astype(np.int16)), f"{X_DQ}: reads int16, wanted one of int8, uint8"),
        (stored("w_x_zero_point", lambda zero: zero + 1), f"{LEFT_DQ}: has the zero point 1 ... 1 on a weight"),
        (stored("w_x_quantized", lambda weight: weight.astype(np.uint8)), f"{LEFT_DQ}: reads a weight of dtype uint8"),
        (attribute(f"w_x_{DQ}", "axis", 0), r"scales of shape \(5,\) on axis 0 of a weight of shape \(4, 5\)"),
        (attribute(f"w_x_{DQ}", "block_size", 2), f"{LEFT_DQ}: has scales for blocks of 2"),
        (read_of(f"x_{Q}", 1, "sum"), f"{X_Q}: computes sum, wanted a scale and a zero point that are stored"),
        (read_of(f"x_{Q}", 0, "w_x"), f"{X_Q}: quantizes the weight w_x in every run"),
        (read_of("negative", 0, f"x_{Q}_Output"), f"{X_Q}: feeds input 0 of Neg negative, wanted input 0 of {DQ} only"),
        (read_of("negative", 0, f"x_{DQ}_Output"), f"{X_DQ}: feeds input 0 of Neg negative, wanted input 0 of MatMul"),
        (read_of("mirror", 1, f"x_{DQ}_Output"), f"{X_DQ}: feeds input 1 of MatMul mirror, wanted input 0"),
        (read_of("mirror", 0, f"w_x_{DQ}_Output"), f"{LEFT_DQ}: feeds input 0 of MatMul mirror, wanted input 1"),
        (
            read_of("mirror", 0, f"x_{DQ}_Output"),
            "MatMul mirror: reads w_x, which is not quantized, beside one that is",
        ),
        (read_of("mirror", 1, f"w_x_{DQ}_Output"), "MatMul mirror: reads x, which is not quantized, beside one that"),
        (both(read_of("left", 0, "x"), read_of("left", 1, "w_x")), f"{X_DQ}: feeds nothing"),
        (added(Q, ["x", "x_scale", "x_zero_point"]), f"{Q} new: feeds nothing, wanted input 0 of {DQ} only"),
        (added(DQ, ["places", "x_scale"]), f"{DQ} new: reads places, wanted what a {Q} gives, or a weight"),
        (leaving(f"x_{Q}_Output"), f"{X_Q}: feeds an output or the inside of another node"),
        (leaving(f"x_{DQ}_Output"), f"{X_DQ}: feeds an output or the inside of another node"),
        (inside(helper.make_node("Neg", [f"x_{DQ}_Output"], ["inner"])), f"{X_DQ}: feeds an output or the inside"),
        (inside(returns=f"x_{Q}_Output"), f"{X_Q}: feeds an output or the inside of another node"),
        (inside(helper.make_node(DQ, ["x", "x_scale"], ["inner"], name="dq")), f"{DQ} dq: stands inside another node"),
    ],
)
def test_q_and_dq_that_make_no_product_are_refused(quantized: Path, change: Change, message: str) -> None:
    with pytest.raises(CalibrationError, match=rf"altered\.onnx: .*{message}"):
        read_quantized(altered(quantized, change))


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC])
def test_forms_that_mean_the_same_are_read_alike(toy: Path, scheme: Scheme) -> None:
    """Zero points left out, scales as vectors of one, axes counted from the end: other tools write these."""
    quantized = write(toy, scheme=scheme)

    def rewrite(graph: onnx.GraphProto) -> None:
        for name in (f"w_x_{DQ}", f"w_each_{DQ}"):
            del node_of(graph, name).input[2]
        node_of(graph, f"gate_{DQ}").input[2] = ""
        if scheme is ASYMMETRIC:
            node_of(graph, f"gate_{Q}").input[2] = ""  # uint8 then
        stored("w_each_scale", lambda scale: scale.reshape(1))(graph)
        stored("x_scale", lambda scale: scale.reshape(1))(graph)
        stored("x_zero_point", lambda zero: zero.reshape(1))(graph)
        attribute(f"w_x_{DQ}", "axis", -1)(graph)

    for found, wanted in zip(read_quantized(altered(quantized, rewrite)), read_quantized(quantized), strict=True):
        assert_equal(found, wanted)


def assert_equal(found: QuantizedProduct, wanted: QuantizedProduct) -> None:
    for name in ("node", "activation", "activation_scale", "zero_point", "activation_dtype", "weight_axis"):
        assert getattr(found, name) == getattr(wanted, name)
    for name in ("weight", "weight_scale", "dequantized"):
        array = getattr(found, name)
        assert array.shape == getattr(wanted, name).shape
        np.testing.assert_array_equal(array, getattr(wanted, name))


@pytest.mark.parametrize("function", [candidates, read_quantized])
def test_what_is_no_graph_is_refused(tmp_path: Path, function: Callable[[Path], object]) -> None:
    (tmp_path / "none.onnx").write_bytes(b"noise" * 50)
    with pytest.raises(CalibrationError, match=r"none\.onnx: cannot be read as ONNX"):
        function(tmp_path / "none.onnx")
    with pytest.raises(CalibrationError, match=r"gone\.onnx: cannot be read as ONNX"):
        function(tmp_path / "gone.onnx")
