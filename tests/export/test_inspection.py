"""Graphs taken apart, compared and shown from inside, on a small hand-made one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import ExportError
from export.inspection import (
    Anatomy,
    Node,
    first_difference,
    half_nodes,
    n_nodes_alike,
    node_difference,
    read_anatomy,
    read_onnx,
    write_exposed,
    write_float64,
)
from runtimes.registry import open_runtime

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
FEEDS = {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}


def small_model() -> onnx.ModelProto:
    """Softmax of a product with a weight: which of three is largest, and which is above a half."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["scores"], name="product"),
        helper.make_node("Softmax", ["scores"], ["shares"], name="shares", axis=-1),
        helper.make_node("ArgMax", ["shares"], ["place"], name="place", axis=-1),
        helper.make_node("Greater", ["shares", "half"], ["above"], name="above"),
        helper.make_node("Cast", ["above"], ["y"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["place"], ["z"], name="float", to=TensorProto.FLOAT),
    ]
    for node in nodes[:2]:
        helper.set_model_props(node, {"module": f"net.{node.name}"})
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["streams", 4])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["streams", 3]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["streams", 1]),
        ],
        [numpy_helper.from_array(WEIGHT, "weight"), numpy_helper.from_array(np.float32(0.5), "half")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"block": "1"})
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    onnx.save(small_model(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


@pytest.fixture
def anatomy(small: Path) -> Anatomy:
    return read_anatomy(small)


# Anatomy


def test_a_graph_is_its_nodes_weights_inputs_and_outputs(anatomy: Anatomy) -> None:
    assert anatomy.inputs == {"x": "float32"}
    assert anatomy.outputs == {"y": "float32", "z": "float32"}
    assert anatomy.metadata == {"block": "1"}
    assert anatomy.nodes[:2] == (
        Node("product", "MatMul", ("x", "weight"), ("scores",), (), "net.product"),
        Node("shares", "Softmax", ("scores",), ("shares",), ("axis = -1",), "net.shares"),
    )
    assert [node.operator for node in anatomy.nodes] == ["MatMul", "Softmax", "ArgMax", "Greater", "Cast", "Cast"]
    assert anatomy.nodes[2].module == ""
    assert anatomy.weights.keys() == {"weight", "half"}
    np.testing.assert_array_equal(anatomy.weights["weight"], WEIGHT)
    assert anatomy.makers["shares"] is anatomy.nodes[1]
    assert "x" not in anatomy.makers
    assert "weight" not in anatomy.makers


def test_weights_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    path = tmp_path / "external.onnx"
    onnx.save(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").is_file()
    np.testing.assert_array_equal(read_anatomy(path).weights["weight"], WEIGHT)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ExportError, match=r"external\.onnx: cannot be read as ONNX \(.*weights\.bin"):
        read_anatomy(path)


@pytest.mark.parametrize("content", [b"no graph", None])
def test_what_is_no_graph_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "none.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"none\.onnx: cannot be read as ONNX"):
        read_anatomy(path)


# Copies


def test_a_copy_gives_its_inner_tensors_after_its_outputs(small: Path, tmp_path: Path) -> None:
    """Those of floats: places and truths are no measure."""
    write_exposed(small, tmp_path / "copy.onnx")
    with open_runtime("onnxruntime", tmp_path / "copy.onnx", metadata={"block": "1"}) as opened:
        assert [str(spec) for spec in opened.outputs] == [
            "y (streams, 3) float32",
            "z (streams, 1) float32",
            "scores (streams, 3) float32",
            "shares (streams, 3) float32",
        ]
        found = opened.run(FEEDS)
    with open_runtime("onnxruntime", small) as opened:
        wanted = opened.run(FEEDS)
    np.testing.assert_array_equal(found["y"], wanted["y"])
    np.testing.assert_allclose(found["scores"], FEEDS["x"] @ WEIGHT, rtol=1e-6)
    np.testing.assert_allclose(found["shares"].sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(("tensors", "inner"), [([], []), (["shares", "x", "place", "unknown", "y"], ["shares"])])
def test_a_copy_gives_the_chosen_tensors_only(
    tensors: list[str], inner: list[str], small: Path, tmp_path: Path
) -> None:
    write_exposed(small, tmp_path / "copy.onnx", tensors)
    assert list(read_anatomy(tmp_path / "copy.onnx").outputs) == ["y", "z", *inner]


def test_a_copy_leaves_out_what_onnx_cannot_infer(tmp_path: Path) -> None:
    model = small_model()
    model.opset_import.append(helper.make_opsetid("unheard.of", 1))
    node = model.graph.node[1]
    node.op_type, node.domain = "Guess", "unheard.of"
    onnx.save(model, tmp_path / "guess.onnx")
    write_exposed(tmp_path / "guess.onnx", tmp_path / "copy.onnx")
    assert list(read_anatomy(tmp_path / "copy.onnx").outputs) == ["y", "z", "scores"]


def test_a_copy_in_float64_is_exact(small: Path, tmp_path: Path) -> None:
    write_float64(small, tmp_path / "float64.onnx")
    write_exposed(tmp_path / "float64.onnx", tmp_path / "copy.onnx")
    with open_runtime("onnxruntime", tmp_path / "copy.onnx") as opened:
        found = opened.run({"x": FEEDS["x"].astype(np.float64)})
    assert {array.dtype for array in found.values()} == {np.dtype("float64")}
    scores = FEEDS["x"].astype(np.float64) @ WEIGHT.astype(np.float64)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(found["shares"], shares, rtol=1e-14)
    np.testing.assert_array_equal(found["y"], shares > 0.5)


def test_a_copy_in_float64_reaches_into_subgraphs_and_constants(tmp_path: Path) -> None:
    """If(large, x + 0.1, x) * 3."""
    tenth = numpy_helper.from_array(np.float32(0.1), "tenth")
    value = helper.make_tensor_value_info
    add = helper.make_graph(
        [helper.make_node("Add", ["x", "tenth"], ["more"])],
        *("add", [], [value("more", TensorProto.FLOAT, [1])], [tenth]),
    )
    keep = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["same"])], "keep", [], [value("same", TensorProto.FLOAT, [1])]
    )
    three = numpy_helper.from_array(np.float32(3))
    nodes = [
        helper.make_node("If", ["large"], ["chosen"], then_branch=add, else_branch=keep),
        helper.make_node("Constant", [], ["three"], value=three),
        helper.make_node("Mul", ["chosen", "three"], ["y"]),
    ]
    inputs = [value("x", TensorProto.FLOAT, [1]), value("large", TensorProto.BOOL, [])]
    graph = helper.make_graph(nodes, "branches", inputs, [value("y", TensorProto.FLOAT, [1])])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "if.onnx"
    )
    write_float64(tmp_path / "if.onnx", tmp_path / "float64.onnx")
    with open_runtime("onnxruntime", tmp_path / "float64.onnx") as opened:
        for large, wanted in ((True, (1 + float(np.float32(0.1))) * 3), (False, 3.0)):
            (found,) = opened.run({"x": np.ones(1), "large": np.array(large)}).values()
            assert found[0] == pytest.approx(wanted, rel=1e-15)


# Graphs of lower precision


def quantized_model() -> onnx.ModelProto:
    """A product in 8 bits, and behind it one in half precision: y = cast(half(q(x) @ q(weight)) @ half)."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["number"], name="round"),
        helper.make_node("DequantizeLinear", ["number", "step", "zero"], ["rounded"], name="back"),
        helper.make_node("DequantizeLinear", ["weight", "steps", "zeros"], ["w"], name="weight", axis=1),
        helper.make_node("MatMul", ["rounded", "w"], ["scores"], name="product"),
        helper.make_node("Cast", ["scores"], ["low"], name="down", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["low", "half"], ["lower"], name="narrow"),
        helper.make_node("Cast", ["lower"], ["y"], name="up", to=TensorProto.FLOAT),
    ]
    tensors = {
        "step": np.float32(0.1),
        "zero": np.int8(0),
        "weight": np.arange(-6, 6, dtype=np.int8).reshape(4, 3),
        "steps": np.array([0.1, 0.2, 0.3], np.float32),
        "zeros": np.zeros(3, np.int8),
        "half": np.eye(3, dtype=np.float16),
    }
    graph = helper.make_graph(
        *(nodes, "quantized"),
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["streams", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["streams", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    onnx.save(quantized_model(), tmp_path / "quantized.onnx")
    return tmp_path / "quantized.onnx"


def test_a_copy_in_float64_rounds_to_8_bits_as_the_graph_does(quantized: Path, tmp_path: Path) -> None:
    """Q and DQ are of float32: the values that they round are too, and all tensors keep their names."""
    write_float64(quantized, tmp_path / "float64.onnx")
    write_exposed(tmp_path / "float64.onnx", tmp_path / "copy.onnx")
    with open_runtime("onnxruntime", tmp_path / "copy.onnx") as opened:
        found = opened.run({"x": FEEDS["x"].astype(np.float64)})
    step, steps = float(np.float32(0.1)), np.array([0.1, 0.2, 0.3], np.float32).astype(np.float64)
    rounded = np.round(FEEDS["x"] / np.float32(0.1)) * step
    weight = np.arange(-6.0, 6).reshape(4, 3) * steps
    assert (found["y"].dtype, found["scores"].dtype, found["rounded"].dtype) == ("float64",) * 3
    np.testing.assert_allclose(found["rounded"], rounded, rtol=1e-7)
    np.testing.assert_allclose(found["scores"], rounded @ weight, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["y"], rounded @ weight, rtol=1e-2, atol=1e-2)  # by float16
    assert {value.dtype for value in read_anatomy(tmp_path / "float64.onnx").weights.values()} == {
        np.dtype(name) for name in ("float32", "int8", "float16")
    }


def test_a_weight_that_is_dequantized_is_not_shown(quantized: Path, tmp_path: Path) -> None:
    """ONNX Runtime fails to open a graph that gives it."""
    write_exposed(quantized, tmp_path / "copy.onnx")
    assert list(read_anatomy(tmp_path / "copy.onnx").outputs) == ["y", "rounded", "scores", "low", "lower"]
    with open_runtime("onnxruntime", tmp_path / "copy.onnx") as opened:
        assert opened.run(FEEDS)["rounded"].shape == (2, 4)


def test_nodes_of_half_precision_are_found(quantized: Path, small: Path, tmp_path: Path) -> None:
    assert [node.name for node in half_nodes(quantized)] == ["down", "narrow", "up"]
    assert half_nodes(small) == ()
    model = quantized_model()
    for place in (4, 6):
        model.graph.node[place].attribute[0].i = TensorProto.BFLOAT16 if place == 4 else TensorProto.FLOAT
    model.graph.node[5].CopyFrom(helper.make_node("Cast", ["low"], ["lower"], name="again", to=TensorProto.FLOAT))
    onnx.save(model, tmp_path / "brain.onnx")
    assert [node.name for node in half_nodes(tmp_path / "brain.onnx")] == ["down", "again"]


def test_what_a_graph_notes_of_its_tensors_is_not_believed(quantized: Path) -> None:
    model = quantized_model()
    for name in ("low", "lower"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(model, quantized)
    assert [node.name for node in half_nodes(quantized)] == ["down", "narrow", "up"]


# Differences

Change = Callable[[onnx.ModelProto], None]


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "z2"
    model.graph.node[5].output[0] = "z2"


def retype_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE


def replace_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "LogSoftmax"


def change_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute[0].i = 0


def insert_cast(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "half_scores"
    model.graph.node.insert(1, helper.make_node("Cast", ["scores"], ["half_scores"], to=TensorProto.FLOAT16))


def drop_node(model: onnx.ModelProto) -> None:
    del model.graph.node[2]


def add_node(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Neg", ["scores"], ["unread"], name="neg"))


@pytest.mark.parametrize(
    ("change", "difference", "n_alike"),
    [
        (lambda model: None, "", 6),
        (rename_output, "output z: found none, wanted float32", 5),
        (retype_input, "input x: found float64, wanted float32", 6),
        (replace_operator, "shares: found LogSoftmax shares(scores), wanted Softmax shares(scores)", 5),
        (change_attribute, "Softmax shares: found axis = 0, wanted axis = -1", 5),
        (
            insert_cast,
            "shares: found Softmax shares(half_scores), wanted Softmax shares(scores); half_scores is Cast(scores)",
            5,
        ),
        (drop_node, "place: found no node that gives it, wanted ArgMax place(shares)", 5),
        (add_node, "Neg neg: gives unread, which is not wanted", 6),
    ],
)
def test_the_first_difference_is_told(
    change: Change, difference: str, n_alike: int, anatomy: Anatomy, tmp_path: Path
) -> None:
    model = small_model()
    change(model)
    onnx.save(model, tmp_path / "changed.onnx")
    changed = read_anatomy(tmp_path / "changed.onnx")
    assert first_difference(anatomy, changed) == difference
    assert n_nodes_alike(anatomy, changed) == n_alike


def test_names_of_nodes_and_values_of_weights_are_no_structure(anatomy: Anatomy) -> None:
    renamed = tuple(dataclasses.replace(node, name=f"other {node.name}", module="") for node in anatomy.nodes)
    other = dataclasses.replace(anatomy, nodes=renamed, weights={"weight": 2 * WEIGHT, "half": np.float32(0.1)})
    assert first_difference(anatomy, other) == ""


def test_tensors_that_no_node_gives_do_not_differ(anatomy: Anatomy) -> None:
    assert node_difference(anatomy, anatomy, "x") == node_difference(anatomy, anatomy, "unknown") == ""


def outside(folder: Path, length: int | None = None) -> Path:
    """A graph whose one weight lies in a file beside it."""
    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [weight],
    )
    model = helper.make_model(graph)
    onnx.save(model, folder / "toy.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    if length is not None:
        (folder / "w.bin").write_bytes((folder / "w.bin").read_bytes()[:length])
    return folder / "toy.onnx"


def test_weights_with_hard_links_are_read(tmp_path: Path) -> None:
    """As uv and conda install them; onnx itself refuses them."""
    path = outside(tmp_path)
    (tmp_path / "cache").hardlink_to(tmp_path / "w.bin")
    (weight,) = read_onnx(path).graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(weight), np.arange(6).reshape(2, 3))


def test_weights_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"toy\.onnx: cannot be read as ONNX \(w ends at 24, w\.bin at 20\)"):
        read_onnx(outside(tmp_path, length=20))
