"""The reader of ONNX files against files written by the onnx package, and against damage."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from runtimes.base import ArtefactError, TensorSpec
from runtimes.onnx_file import read_onnx_file, read_onnx_header, read_weight_files
from runtimes.registry import open_runtime

DTYPES = ["float32", "uint8", "int8", "int32", "int64", "bool", "float16", "float64"]


def write_same(path: Path, info: onnx.ValueInfoProto, metadata: dict[str, str] | None = None) -> Path:
    out = onnx.ValueInfoProto(name="y", type=info.type)
    graph = helper.make_graph([helper.make_node("Identity", [info.name], ["y"])], "same", [info], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_names_types_shapes_and_metadata_are_read_as_written(dtype: str, tmp_path: Path) -> None:
    sizes: list[str | int | None] = ["streams", 128, 0, 2**40, None]
    code = helper.np_dtype_to_tensor_dtype(onnx.numpy_helper.np.dtype(dtype))
    info = helper.make_tensor_value_info("wave", code, sizes)
    metadata = {"edgese.block": "8", "empty": "", "näme": "ä wörd\n"}
    header = read_onnx_header(write_same(tmp_path / "a.onnx", info, metadata))
    assert header.inputs == (TensorSpec("wave", ("streams", 128, 0, 2**40, "wave_4"), dtype),)
    assert header.outputs == (TensorSpec("y", ("streams", 128, 0, 2**40, "y_4"), dtype),)
    assert header.metadata == metadata


def test_a_scalar_has_no_axes(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [])
    assert read_onnx_header(write_same(tmp_path / "a.onnx", info)).inputs == (TensorSpec("x", (), "float32"),)


def test_inputs_that_are_no_plain_tensors_are_refused(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    text = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    shapeless = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    reasons = ("x is no tensor of float32", "x has elements of type 8, wanted one of float32", "x has no shape")
    for info, reason in zip((sequence, text, shapeless), reasons, strict=True):
        with pytest.raises(ArtefactError, match=rf"a\.onnx: cannot be read as ONNX \({reason}"):
            read_onnx_header(write_same(tmp_path / "a.onnx", info))


def test_a_file_cut_anywhere_is_refused_or_says_less(tmp_path: Path) -> None:
    """Between two fields of the outermost message a cut cannot be seen: then what is left must be what was written."""
    path = write_same(tmp_path / "a.onnx", helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]), {"a": "b"})
    whole, content = read_onnx_header(path), path.read_bytes()
    refused = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            header = read_onnx_header(path)
        except ArtefactError:
            refused += 1
        else:
            assert (header.inputs, header.outputs) == (whole.inputs, whole.outputs)
    assert refused >= len(content) - 3


@pytest.mark.parametrize("content", [b"\x80" * 20, b"\x0b", b"\x3a\x05ab", b"\x38\x01", b"\x39\x00", bytes(8)])
def test_what_is_no_protobuf_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"a\.onnx: cannot be read as ONNX \(.*\); export or fetch it again"):
        read_onnx_header(path)
    with pytest.raises(ArtefactError, match=r"a\.onnx: cannot be read as ONNX \(.*\); export or fetch it again"):
        read_onnx_file(path)


def nested(depth: int) -> onnx.GraphProto:
    """A graph in a node of a graph, and so on."""
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "inner", [], [])
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph)
        graph = helper.make_graph([node], "outer", [], [])
    return graph


def test_graphs_inside_of_graphs_are_read_as_deep_as_onnx_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(onnx.ModelProto(graph=nested(32)).SerializeToString())
    assert read_onnx_file(path).operators == ("If", "Neg")
    path.write_bytes(onnx.ModelProto(graph=nested(33)).SerializeToString())
    with pytest.raises(ArtefactError, match=r"graphs lie inside of graphs, more than 32 deep"):
        read_onnx_file(path)


def test_a_model_without_a_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    for model in (onnx.ModelProto(ir_version=10), onnx.ModelProto(graph=onnx.GraphProto(name="empty"))):
        path.write_bytes(model.SerializeToString())
        for read in (read_onnx_header, read_onnx_file):
            with pytest.raises(ArtefactError, match=r"cannot be read as ONNX \(it holds no graph\)"):
                read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"none\.onnx: cannot be read"):
        read_onnx_header(tmp_path / "none.onnx")


def kept_in(location: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def hide(tensor: onnx.TensorProto, place: str) -> onnx.ModelProto:
    """A model that holds a tensor in one of the places where ONNX lets tensors stand."""
    node, model = helper.make_node("Constant", [], ["c"], value=tensor), onnx.ModelProto()
    model.graph.node.append(helper.make_node("Neg", ["x"], ["y"]))
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "sparse initializer":
        model.graph.sparse_initializer.add(values=tensor)
    elif place == "attribute":
        model.graph.node.append(node)
    elif place == "branch":
        inner = helper.make_graph([node], "inner", [], [])
        model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner))
    elif place == "function":
        model.functions.add(name="f").node.append(node)
    elif place == "list of tensors":
        model.graph.node.append(helper.make_node("Any", [], ["c"], values=[tensor]))
    return model


PLACES = ("initializer", "sparse initializer", "attribute", "branch", "function", "list of tensors")


@pytest.mark.parametrize("place", PLACES)
def test_weights_files_are_found_wherever_a_tensor_may_stand(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(hide(kept_in("w.bin"), place).SerializeToString())
    with pytest.raises(ArtefactError, match=r"its weights' file w\.bin is missing"):
        read_weight_files(path)
    (tmp_path / "w.bin").write_bytes(bytes(4))
    assert read_weight_files(path) == (tmp_path / "w.bin",)


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/hostname", "", "..", "a/w.bin", "w\0.bin", "*/_ORT_MEM_ADDR_/*"]
)
def test_weights_outside_of_the_directory_are_refused(tmp_path: Path, location: str) -> None:
    path = tmp_path / "inner" / "a.onnx"
    path.parent.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(4))
    path.write_bytes(hide(kept_in(location), "attribute").SerializeToString())
    with pytest.raises(ArtefactError, match=r"its weights are said to be in '.*', wanted a file beside it"):
        read_weight_files(path)


def test_weights_that_a_link_leads_to_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "a.onnx"
    path.parent.mkdir()
    (tmp_path / "w.bin").write_bytes(bytes(4))
    (path.parent / "w.bin").symlink_to(tmp_path / "w.bin")
    path.write_bytes(hide(kept_in("w.bin"), "initializer").SerializeToString())
    with pytest.raises(ArtefactError, match=r"is reached by a link, wanted a file beside it"):
        open_runtime("onnxruntime", path)


def test_tensors_behind_bytes_that_only_look_like_weights_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(hide(TensorProto(name="location", dims=[0], data_type=1), "initializer").SerializeToString())
    assert read_weight_files(path) == ()
