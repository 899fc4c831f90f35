"""Engines from ONNX: the real parser and builder of TensorRT for RTX where installed, doubles for all the rest."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import ExportError
from export.engine import BuildOptions, build_engine
from export.operators import MAX_OPSET, refused_by_tensorrt_10_3
from runtimes.onnx_file import read_onnx_file

from ..runtimes.tensorrt_double import VERSIONS, tensorrt_double

onnx = pytest.importorskip("onnx", reason="the toy graphs are made with onnx")
helper, numpy_helper, FLOAT = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "edgese" / "weights" / "mbs-net-small"
W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
N = BuildOptions({"n": (1, 2, 4)})

rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX: pip install tensorrt_rtx"
)


def write(path: Path, nodes: Sequence[Any], outside: str | None = None, **weights: Any) -> Path:
    """A graph from x (n, 4) to y (n, 4), its weights inside, or outside in a file beside it."""
    graph = helper.make_graph(
        list(nodes),
        "toy",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=outside is not None, location=outside, size_threshold=0)
    return path


def node(operator: str, inputs: str, output: str, name: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], name, **attributes)


PRODUCT = node("MatMul", "x w", "y", "product")


def quantized(path: Path, dtype: type, zero_point: int) -> Path:
    pair = [node("QuantizeLinear", "x s z", "q", "quant"), node("DequantizeLinear", "q s z", "d", "dequant")]
    return write(path, [*pair, node("MatMul", "d w", "y", "product")], w=W, s=np.float32(0.1), z=dtype(zero_point))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write(tmp_path / "toy.onnx", [PRODUCT], w=W)


def refusal(onnx_path: Path, options: BuildOptions = N, **arguments: Any) -> str:
    with pytest.raises(ExportError) as caught:
        build_engine(onnx_path, options, **arguments)
    return str(caught.value)


# The real builder


@pytest.mark.slow
@rtx
@pytest.mark.parametrize("name", ["block1.fp32", "block8.fp32"])
def test_shipped_graphs_build(name: str) -> None:
    seen: list[tuple[str, int, int]] = []
    options = BuildOptions({"streams": (1, 1, 4)}, compute_capability="SM86", workspace_bytes=1 << 28)
    built = build_engine(SHIPPED / f"{name}.onnx", options, on_progress=lambda *step: seen.append(step))
    assert len(built.serialized) > 2_000_000  # the weights are in it
    assert built.n_layers > 500
    assert built.seconds > 0.1
    assert all(1 <= done <= total for _, done, total in seen)
    assert len(seen) > 10


@rtx
def test_half_precision_comes_from_the_casts(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "h", "half", to=10),
        node("MatMul", "h w", "r", "product"),
        node("Cast", "r", "y", "back", to=1),
    ]
    assert build_engine(write(tmp_path / "fp16.onnx", nodes, w=W.astype(np.float16)), N).serialized


@rtx
def test_eight_bits_come_from_our_own_quantizer(tmp_path: Path, toy: Path) -> None:
    pytest.importorskip("onnxruntime", reason="quantizes")
    from calib.qdq import ASYMMETRIC, SYMMETRIC, write_quantized
    from calib.ranges import Range

    for scheme in (SYMMETRIC, ASYMMETRIC):
        write_quantized(toy, tmp_path / f"{scheme.name}.onnx", ["product"], {"x": Range(-1, 2)}, scheme)
    assert build_engine(tmp_path / "symmetric.onnx", N).n_layers > build_engine(toy, N).n_layers
    assert "rounds to uint8, wanted int8 with zero point 0" in refusal(tmp_path / "asymmetric.onnx")


@rtx
def test_weights_beside_the_graph_are_read(tmp_path: Path) -> None:
    onnx_path = write(tmp_path / "outside.onnx", [PRODUCT], "w.bin", w=W)
    assert build_engine(onnx_path, N).serialized
    (tmp_path / "w.bin").write_bytes(b"short")
    said = refusal(onnx_path)
    assert "cannot parse it" in said
    assert "out of range" in said  # from the log: the parser's error itself does not say


@rtx
def test_all_errors_of_the_parser_are_told_the_first_one_first(tmp_path: Path) -> None:
    nodes = [node("Det", "x", "a", "first"), node("BitwiseNot", "a", "y", "second")]
    first, second = refusal(write(tmp_path / "toy.onnx", nodes)).splitlines()
    assert "cannot parse it: Det first: not supported (UNSUPPORTED_NODE, checkDet)" in first
    assert second == "  BitwiseNot second: not supported (UNSUPPORTED_NODE, checkBitwiseNot)"


@rtx
def test_a_zero_point_is_refused_by_the_node_s_name(tmp_path: Path) -> None:
    said = refusal(quantized(tmp_path / "toy.onnx", np.int8, 3))
    assert "QuantizeLinear quant: " in said
    assert "Non-zero zero point is not supported" in said


@rtx
def test_mixed_types_are_refused_as_the_network_is_strongly_typed(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "h", "half", to=10), node("MatMul", "h w", "y", "product")]
    said = refusal(write(tmp_path / "toy.onnx", nodes, w=W))
    assert "MatMul product: " in said
    assert "must have same input types" in said
    assert "cudaError" not in said  # a machine without a GPU is not what is wrong


@rtx
def test_integers_of_32_bits_are_not_dequantized(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", "q s", "w", "bias"), PRODUCT]
    said = refusal(write(tmp_path / "toy.onnx", nodes, q=np.ones((4, 4), np.int32), s=np.float32(1)))
    assert "DequantizeLinear bias: " in said
    assert "Int32" in said


@rtx
def test_capability_that_rtx_does_not_know_is_refused(toy: Path) -> None:
    said = refusal(toy, BuildOptions(N.axes, compute_capability="SM87"))
    assert said.startswith("compute capability SM87: tensorrt_rtx ")
    assert "SM86" in said


@rtx
def test_failed_build_shows_the_log(toy: Path) -> None:
    said = refusal(toy, BuildOptions(N.axes, compute_capability="SM75"))
    first, *log = said.splitlines()
    assert "cannot build it" in first
    assert any("'product'" in line and "FP32 GEMM is not supported" in line for line in log)


@rtx
def test_what_progress_raises_ends_the_build_and_the_next_one_works(toy: Path) -> None:
    def interrupt(*step: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(toy, N, on_progress=interrupt)
    assert build_engine(toy, N).log == ()


# What is refused before TensorRT sees it


@pytest.mark.parametrize("content", [b"", b"\x08\x0anonsense" * 20, b"\x00" * 40])
def test_what_is_no_graph_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    assert "bad.onnx: cannot be read as ONNX" in refusal(tmp_path / "bad.onnx", library=tensorrt_double())


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert "gone.onnx: cannot be read (No such file" in refusal(tmp_path / "gone.onnx", library=tensorrt_double())
    onnx_path = write(tmp_path / "outside.onnx", [PRODUCT], "w.bin", w=W)
    (tmp_path / "w.bin").unlink()
    assert "its weights' file w.bin is missing" in refusal(onnx_path, library=tensorrt_double())


def test_weights_outside_of_the_directory_are_refused(tmp_path: Path) -> None:
    onnx_path = write(tmp_path / "toy.onnx", [PRODUCT], "w.bin", w=W)
    onnx_path.write_bytes(onnx_path.read_bytes().replace(b"w.bin", b"../wb"))
    assert "said to be in '../wb'" in refusal(onnx_path, library=tensorrt_double())


@pytest.mark.parametrize("zero_point", [0, 128])
def test_unsigned_numbers_are_refused_which_the_parser_would_take_for_signed_ones(
    zero_point: int, tmp_path: Path
) -> None:
    said = refusal(quantized(tmp_path / "toy.onnx", np.uint8, zero_point), library=tensorrt_double())
    assert "QuantizeLinear quant: rounds to uint8" in said


def test_quantizer_without_a_zero_point_is_refused_as_onnx_says_that_it_is_unsigned(tmp_path: Path) -> None:
    nodes = [node("QuantizeLinear", "x s", "q", "quant"), node("DequantizeLinear", "q s", "y", "dequant")]
    onnx_path = write(tmp_path / "toy.onnx", nodes, s=np.float32(0.1))
    assert read_onnx_file(onnx_path).unsigned == ("QuantizeLinear quant",)
    assert read_onnx_file(quantized(tmp_path / "signed.onnx", np.int8, 0)).unsigned == ()


def test_operators_inside_of_others_are_seen(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [node("Neg", "x", "b", "inner")], "b", [], [helper.make_tensor_value_info("b", FLOAT, None)]
    )
    nodes = [node("If", "c", "y", "choose", then_branch=branch, else_branch=branch)]
    found = read_onnx_file(write(tmp_path / "toy.onnx", nodes, c=np.array(True)))
    assert (found.operators, found.opset) == (("If", "Neg"), 20)


@pytest.mark.parametrize("bounds", [(0, 1, 1), (2, 1, 4), (1, 5, 4), (1, 2)])
def test_bounds_out_of_order_are_refused(bounds: Any) -> None:
    with pytest.raises(ExportError, match=r"axis n: found .* wanted 1 <= least <= best <= most"):
        BuildOptions({"n": bounds})


def test_workspace_of_nothing_is_refused() -> None:
    with pytest.raises(ExportError, match="workspace: found 0 bytes"):
        BuildOptions(workspace_bytes=0)


# All versions, by doubles


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_builds_by_one_path(version: tuple[str, str], toy: Path) -> None:
    library = tensorrt_double(*version)
    built = build_engine(toy, BuildOptions(N.axes, workspace_bytes=1000), library=library)
    assert (built.serialized, built.n_layers, built.log) == (b"plan", 7, ())
    assert library.seen["flags"] == 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert library.seen["cleared"] == library.BuilderFlag.TF32
    assert library.seen["shapes"] == {"x": ((1, 4), (2, 4), (4, 4))}
    assert library.seen["workspace"] == (library.MemoryPoolType.WORKSPACE, 1000)
    assert library.seen["parsed"] == str(toy)


def test_flags_that_do_not_exist_are_not_set(toy: Path) -> None:
    library = tensorrt_double(absent=["BuilderFlag.TF32", "NetworkDefinitionCreationFlag.STRONGLY_TYPED"])
    build_engine(toy, N, library=library)
    assert library.seen["flags"] == 0
    assert "cleared" not in library.seen


def test_static_graph_needs_no_profile(toy: Path) -> None:
    library = tensorrt_double(inputs=[("x", (2, 4), ("", ""))])
    build_engine(toy, BuildOptions(), library=library)
    assert "profile" not in library.seen


def test_axes_must_be_those_of_the_graph(toy: Path) -> None:
    said = refusal(toy, BuildOptions(), library=tensorrt_double())
    assert "axis n of x is dynamic and has no bounds" in said
    assert "axes={'n': (1, 1, 4)}" in said
    wrong = BuildOptions({"n": (1, 1, 1), "m": (1, 1, 1)})
    assert "axis m: not among its dynamic axes: n" in refusal(toy, wrong, library=tensorrt_double())
    nameless = tensorrt_double(inputs=[("x", (4, -1), ("", ""))])
    assert "axis x_1 of x is dynamic" in refusal(toy, library=nameless)


def test_one_axis_has_the_same_bounds_in_all_inputs(toy: Path) -> None:
    library = tensorrt_double(inputs=[("x", (-1, 4), ("n", "")), ("h", (3, -1), ("", "n")), ("c", (1,), ("",))])
    build_engine(toy, N, library=library)
    assert library.seen["shapes"] == {"x": ((1, 4), (2, 4), (4, 4)), "h": ((3, 1), (3, 2), (3, 4))}


def test_parser_s_errors_become_one_error(toy: Path) -> None:
    errors = [
        ("MatMul", 3, "", "INVALID_NODE", "one\n\ntwo\n[checkMacros.cpp::catchCudaError::250] no GPU", "parseNode"),
        ("", -1, "", "INTERNAL_ERROR", "", "parse"),
    ]
    said = refusal(toy, library=tensorrt_double(errors=errors)).splitlines()
    assert said[0] == f"{toy}: tensorrt 10.3.0 cannot parse it: MatMul node 3: one two (INVALID_NODE, parseNode)"
    assert said[1:] == ["  not supported (INTERNAL_ERROR, parse)"]


def test_graph_without_an_output_is_not_parsed(toy: Path) -> None:
    assert "cannot parse it: it gave no network and no reason" in refusal(toy, library=tensorrt_double(outputs=0))


def test_log_is_shown_from_warnings_on_and_its_end_only(toy: Path) -> None:
    log = [(3, "information"), (4, "details"), *((2, f"warning {index}") for index in range(20)), (1, "an\nerror")]
    said = refusal(toy, library=tensorrt_double(plan=None, log=log)).splitlines()
    assert said[0] == f"{toy}: tensorrt 10.3.0 cannot build it"
    assert said[1:] == [*(f"  log: warning {index}" for index in range(13, 20)), "  log: an error"]
    assert build_engine(toy, N, library=tensorrt_double(log=log[:3])).log == ("warning 0",)


def test_log_of_one_build_is_not_shown_in_the_next(toy: Path) -> None:
    library = tensorrt_double(log=[(2, "warning")])
    assert [build_engine(toy, N, library=library).log for _ in range(2)] == [("warning",)] * 2


def test_builder_that_cannot_start_says_what_it_needs(toy: Path) -> None:
    said = refusal(toy, library=tensorrt_double(starts=False))
    assert "tensorrt 10.3.0 cannot start; does it find a GPU" in said
    assert "log: CUDA initialization failure with error: 35" in said


def test_progress_is_told_and_may_stop_the_build(toy: Path) -> None:
    seen: list[object] = []
    build_engine(toy, N, library=tensorrt_double(), on_progress=lambda *step: seen.append(step))
    assert seen == [("Building", 1, 2), ("Building", 2, 2)]

    def stop(*step: object) -> None:
        seen.append("stopped")
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        build_engine(toy, N, library=tensorrt_double(), on_progress=stop)
    assert seen.count("stopped") == 1


@pytest.mark.parametrize("fit", [True, False])
def test_timings_are_kept_and_those_of_another_machine_dropped(fit: bool, toy: Path) -> None:
    options = BuildOptions(N.axes, timing_cache=toy.with_name("timings"))
    build_engine(toy, options, library=tensorrt_double(timings_fit=fit))
    build_engine(toy, options, library=tensorrt_double(timings_fit=fit))
    assert toy.with_name("timings").read_bytes() == (b"+measured+measured" if fit else b"+measured")
    assert [path.name for path in toy.parent.glob("*timings*")] == ["timings"]


def test_rtx_keeps_no_timings(toy: Path) -> None:
    options = BuildOptions(N.axes, timing_cache=toy.with_name("timings"))
    build_engine(toy, options, library=tensorrt_double(*VERSIONS[-1]))
    assert not toy.with_name("timings").exists()


def test_timings_that_cannot_be_read_or_written_are_an_error(toy: Path) -> None:
    options = BuildOptions(N.axes, timing_cache=toy.parent)
    assert "timing cache cannot be read (Is a directory)" in refusal(toy, options, library=tensorrt_double())
    options = BuildOptions(N.axes, timing_cache=toy / "timings")
    assert "timing cache cannot be read (Not a directory)" in refusal(toy, options, library=tensorrt_double())


def test_tensorrt_builds_for_no_other_gpu(toy: Path) -> None:
    options = BuildOptions(N.axes, compute_capability="SM86")
    said = refusal(toy, options, library=tensorrt_double())
    assert "compute capability SM86: tensorrt 10.3.0 builds for the GPU that it runs on only" in said
    library = tensorrt_double(*VERSIONS[-1])
    build_engine(toy, options, library=library)
    assert library.seen["capability"] == library.ComputeCapability.SM86


@pytest.mark.parametrize("device", ["a GPU", None])
def test_rtx_builds_for_the_gpu_here_if_there_is_one(device: Any, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.engine.read_device", lambda: device)
    library = tensorrt_double(*VERSIONS[-1])
    build_engine(toy, N, library=library)
    assert library.seen.get("capability") == (library.ComputeCapability.CURRENT if device else None)


# The library


def test_a_library_that_is_missing_or_too_old_is_an_error_of_the_export(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "-m pip install tensorrt_rtx" in refusal(toy)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double(version="8.6.2"))
    assert "found 8.6.2, wanted 10.3 or later" in refusal(toy)


def test_building_needs_no_more_than_python_and_tensorrt() -> None:
    """In an interpreter that sees nothing but the standard library."""
    source = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import export.engine, export.engine_cache, export.operators\n"
        "assert not {'numpy', 'onnx', 'torch', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", source], check=True)


# The operators of TensorRT 10.3


@pytest.mark.slow
def test_shipped_graphs_keep_to_what_tensorrt_10_3_takes() -> None:
    found = sorted(SHIPPED.glob("*.onnx"))
    assert len(found) > 3
    for onnx_path in found:
        assert read_onnx_file(onnx_path).opset <= MAX_OPSET
        assert refused_by_tensorrt_10_3(first_types(onnx_path)) == ()


def first_types(onnx_path: Path) -> dict[str, set[str]]:
    """Operator -> types of its nodes' first inputs."""
    model = onnx.shape_inference.infer_shapes(onnx.load(onnx_path))
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[str, set[str]] = {}
    for item in model.graph.node:
        dtype = helper.tensor_dtype_to_np_dtype(types[item.input[0]])
        found.setdefault(item.op_type, set()).add(dtype.name)
    assert set(found) == set(read_onnx_file(onnx_path).operators)
    return found


def test_what_tensorrt_10_3_does_not_take_is_told() -> None:
    assert refused_by_tensorrt_10_3(
        {"MatMul": ["float32", "int32"], "STFT": [], "Add": ["float16"], "Or": ["int8"]}
    ) == (
        "MatMul: found int32, wanted float32 or float16",
        "Or: found int8, wanted bool",
        "STFT: not among the operators of TensorRT 10.3",
    )
