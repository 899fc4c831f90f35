"""ONNX Runtime alone: bound buffers, axes left open, providers."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtimes import ort
from runtimes.base import ArtefactError, RuntimeUnavailable, Stream
from runtimes.ort import CUDA, OnnxRuntime, Provider, opener
from runtimes.registry import load_runtime

from .sum_graph import STATES, write_sum


def test_a_stream_writes_two_banks_of_buffers_in_turn_and_copies_no_state(tmp_path: Path) -> None:
    with OnnxRuntime(write_sum(tmp_path / "sum.onnx")) as runtime:
        stream = runtime.stream(STATES, streams=2)
        seen = [stream._live()["total"]]
        for _ in range(4):
            stream({"x": np.ones((2, 4), np.float32)})
            seen.append(stream._live()["total"])
        assert seen[0] is seen[2] is seen[4]
        assert seen[1] is seen[3]
        assert not np.shares_memory(seen[0], seen[1])
        np.testing.assert_array_equal(seen[0], np.full((2, 1), 16, np.float32))
        np.testing.assert_array_equal(seen[1], np.full((2, 1), 12, np.float32))


def test_the_bound_stream_gives_the_bits_of_the_plain_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with OnnxRuntime(write_sum(tmp_path / "sum.onnx")) as runtime:
        bound, plain = runtime.stream(STATES, streams=3), Stream(runtime, STATES, {"streams": 3})
        assert type(bound) is not Stream
        for index in range(7):
            if index == 3:
                bound.reset()
                plain.reset()
            if index == 5:  # an odd number of calls later: the other bank
                states = {"total": np.full((3, 1), 5, np.float32), "offset": np.array(2, np.float32)}
                bound.load(states)
                plain.load(states)
            x = rng.standard_normal((3, 4), dtype=np.float32)
            np.testing.assert_array_equal(bound({"x": x})["y"], plain({"x": x})["y"])
            for state, array in plain.states.items():
                np.testing.assert_array_equal(bound.states[state], array)


def test_a_stream_over_an_axis_left_open_takes_calls_of_any_length(tmp_path: Path) -> None:
    with OnnxRuntime(write_sum(tmp_path / "sum.onnx", frames="frames")) as runtime:
        stream = runtime.stream(STATES, streams=1)
        x = np.arange(10, dtype=np.float32)[None]
        found = np.concatenate([stream({"x": part})["y"] for part in np.split(x, [1, 4, 9], axis=1)], 1)
    np.testing.assert_array_equal(found, np.cumsum(x, axis=1))


def test_a_provider_that_is_not_there_is_an_error_and_no_fallback(tmp_path: Path) -> None:
    path = write_sum(tmp_path / "sum.onnx")
    with pytest.raises(RuntimeUnavailable, match="NoneExecutionProvider: not in this onnxruntime, which offers"):
        OnnxRuntime(path, provider=Provider("none", "NoneExecutionProvider"))


def test_a_provider_that_does_not_start_is_an_error_and_no_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sum(tmp_path / "sum.onnx")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["LostExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession.get_providers", lambda self: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession._create_inference_session", lambda self, *rest: None)
    with pytest.raises(RuntimeUnavailable, match="LostExecutionProvider: did not start, found CPUExecutionProvider"):
        OnnxRuntime(path, provider=Provider("lost", "LostExecutionProvider"))


def test_a_build_without_the_provider_says_which_package_has_it() -> None:
    if CUDA.name in ort.onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the provider")
    with pytest.raises(RuntimeUnavailable, match=r"CUDAExecutionProvider: not in this .*install 'onnxruntime-gpu\["):
        load_runtime("onnxruntime-cuda")


def test_a_provider_s_failure_to_load_its_libraries_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sum(tmp_path / "sum.onnx")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["LostExecutionProvider"])
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: sys.stdout.write("Failed to load libcublas.so"))
    monkeypatch.setattr("onnxruntime.InferenceSession.get_providers", lambda self: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession._create_inference_session", lambda self, *rest: None)
    with pytest.raises(RuntimeUnavailable, match=r"\(Failed to load libcublas\.so\); see to the driver"):
        OnnxRuntime(path, provider=Provider("lost", "LostExecutionProvider", "cuda"))


def test_a_node_that_would_be_left_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's provider takes no node: all are left to the CPU, and a GPU's session must not have that."""
    if "AzureExecutionProvider" not in ort.onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes no node")
    path = write_sum(tmp_path / "sum.onnx")
    monkeypatch.setattr(ort, "_load_libraries", lambda: "")
    with pytest.raises(
        RuntimeUnavailable, match=r"leaves a part of sum\.onnx to the CPU; choose --runtime onnxruntime"
    ):
        OnnxRuntime(path, provider=Provider("left", "AzureExecutionProvider", "cuda"))


def test_a_stream_of_device_buffers_gives_the_bits_of_the_plain_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with OnnxRuntime(write_sum(tmp_path / "sum.onnx")) as runtime:
        device, plain = ort._DeviceStream(runtime, STATES, {"streams": 3}), Stream(runtime, STATES, {"streams": 3})
        kept = []
        for index in range(7):
            if index == 3:
                device.reset()
                plain.reset()
            if index == 5:
                states = {"total": np.full((3, 1), 5, np.float32), "offset": np.array(2, np.float32)}
                device.load(states)
                plain.load(states)
            x = rng.standard_normal((3, 4), dtype=np.float32)
            kept.append((device({"x": x})["y"], plain({"x": x})["y"]))
            for state, array in plain.states.items():
                np.testing.assert_array_equal(device.states[state], array)
    for found, wanted in kept:  # fresh arrays: later calls have not changed them
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.gpu
def test_cuda_s_buffers_stay_on_the_gpu(tmp_path: Path) -> None:
    try:
        open_on_cuda = opener(CUDA)
    except RuntimeUnavailable as error:
        pytest.skip(f"needs a GPU and onnxruntime-gpu: {error}")
    with open_on_cuda(write_sum(tmp_path / "sum.onnx")) as runtime:
        stream = runtime.stream(STATES, streams=2)
        places = [value.data_ptr() for bank in stream._banks for value in bank.values()]  # type: ignore[attr-defined]
        for _ in range(4):
            stream({"x": np.ones((2, 4), np.float32)})
        assert {value.device_name() for bank in stream._banks for value in bank.values()} == {"cuda"}  # type: ignore[attr-defined]
        assert places == [value.data_ptr() for bank in stream._banks for value in bank.values()]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(stream.states["total"], np.full((2, 1), 16, np.float32))


def test_a_type_that_is_not_known_here_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    info = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    out = helper.make_tensor_value_info("same", TensorProto.STRING, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["text"], ["same"])], "text", [info], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(ArtefactError, match=r"text is a tensor\(string\)"):
        OnnxRuntime(path)


def test_a_run_that_fails_is_one_line_and_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gather.onnx"
    table = helper.make_tensor("table", TensorProto.FLOAT, (2,), [1.0, 2.0])
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ["n"])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["value"])], "g", [index], [value], [table]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with OnnxRuntime(path) as runtime:
        stream = runtime.stream({}, n=1)
        for run in (runtime.run, stream):
            with pytest.raises(RuntimeUnavailable, match="the run failed") as caught:
                run({"index": np.array([7])})
            assert "\n" not in str(caught.value)
            np.testing.assert_array_equal(run({"index": np.array([1])})["value"], [2.0])
    assert capfd.readouterr() == ("", "")


def test_weights_that_are_missing_beside_the_graph_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    big = helper.make_tensor("big", TensorProto.FLOAT, (512,), np.ones(512, np.float32).tobytes(), raw=True)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [512])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [512])
    graph = helper.make_graph([helper.make_node("Add", ["x", "big"], ["y"])], "g", [x], [y], [big])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    weights = tmp_path / "weights.bin"
    with OnnxRuntime(path) as runtime:
        np.testing.assert_array_equal(runtime.run({"x": np.ones(512, np.float32)})["y"], np.full(512, 2))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ArtefactError, match=r"big\.onnx"):
        OnnxRuntime(path)
    weights.unlink()
    with pytest.raises(ArtefactError, match=r"big\.onnx"):
        OnnxRuntime(path)
