"""The contract of every registered runtime, shown with one small module that has two states."""

import dataclasses
import functools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import edgese
from export.graph import write_onnx
from runtimes import cuda, ort
from runtimes.base import ArtefactError, FeedError, Runtime, RuntimeUnavailable, TensorSpec
from runtimes.native import write_artefact
from runtimes.pytorch import PytorchRuntime, write_program
from runtimes.registry import RUNTIMES, open_runtime

from .cuda_double import CudaDouble
from .tensorrt_double import tensorrt_double, write_engine

SHORT, LONG = 4, 12  # frames a call
STATES = {"past": "past_next", "level": "level_next"}
METADATA = {"toy.name": "leaky", "toy.weights": "0" * 64}
TOLERANCE = 1e-6  # measured: 2.4e-7 between PyTorch and ONNX Runtime


class Leaky(nn.Module):
    """Three channels in, three out: a look at the previous frame and a leaky sum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 3)
        self.decay = nn.Parameter(torch.tensor([0.5, 0.8, 0.9]))

    def forward(self, x: Tensor, past: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        frames = torch.cat([past, x], 1)  # (streams, 1 + frames, 3)
        mixed = torch.tanh(self.mix(torch.cat([frames[:, 1:], frames[:, :-1]], -1)))
        levels = []
        for t in range(x.shape[1]):
            level = self.decay * level + mixed[:, t]
            levels.append(level)
        return torch.stack(levels, 1), frames[:, -1:], level


def make_leaky() -> Leaky:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Leaky().eval()


def specs(frames: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    shapes: dict[str, tuple[int | str, ...]] = {
        "x": ("streams", frames, 3),
        "past": ("streams", 1, 3),
        "level": ("streams", 3),
    }
    outputs = {"y": shapes["x"], "past_next": shapes["past"], "level_next": shapes["level"]}
    return (
        tuple(TensorSpec(name, shape, "float32") for name, shape in shapes.items()),
        tuple(TensorSpec(name, shape, "float32") for name, shape in outputs.items()),
    )


@functools.cache
def leaky_onnx(frames: int) -> bytes:
    """The module's graph, exported once for all runtimes that take it."""
    inputs, outputs = specs(frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "leaky.onnx"
        write_onnx(
            make_leaky(),
            {spec.name: torch.zeros(2, *spec.shape[1:]) for spec in inputs},  # type: ignore[arg-type]
            [spec.name for spec in outputs],
            path,
            dynamic_axes={spec.name: {0: "streams"} for spec in inputs},
            metadata=METADATA,
        )
        return path.read_bytes()


def write_leaky_onnx(path: Path, frames: int) -> None:
    path.write_bytes(leaky_onnx(frames))


def write_leaky_program(path: Path, frames: int) -> None:
    write_program(make_leaky(), *specs(frames), path, METADATA)


def write_leaky_engine(path: Path, frames: int) -> None:
    onnx_path = path.with_suffix(".onnx")
    write_leaky_onnx(onnx_path, frames)
    write_engine(onnx_path, path, {"streams": (1, 2, 8)})


def write_leaky_native(path: Path, frames: int) -> None:
    """The module in C, with the interface of edgese.h; its weights are plain floats."""
    library, weights = path.with_suffix(".so"), path.with_suffix(".weights")
    header = Path(edgese.__file__).parent / "native"
    source = Path(__file__).with_name("leaky.c")
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", f"-I{header}"]
    subprocess.run(["cc", *flags, source, "-o", library, "-lm"], check=True)
    leaky = make_leaky()
    values = (leaky.mix.weight, leaky.mix.bias, leaky.decay)
    weights.write_bytes(b"".join(value.detach().numpy().tobytes() for value in values))
    write_artefact(path, library, weights, *specs(frames), STATES, metadata=METADATA)


# A runtime that joins the registry gets its line here, or all of these tests fail for it.
WRITERS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "onnxruntime": (".onnx", write_leaky_onnx),
    "onnxruntime-cuda": (".onnx", write_leaky_onnx),
    "onnxruntime-tensorrt": (".onnx", write_leaky_onnx),
    "native": (".native", write_leaky_native),
    "openvino": (".onnx", write_leaky_onnx),
    "pytorch": (".pt2", write_leaky_program),
    "tensorrt": (".engine", write_leaky_engine),  # for the double of TensorRT
}


@pytest.fixture(scope="module", params=list(RUNTIMES))
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and shutil.which("cc") is None:
        pytest.skip("needs a C compiler: apt-get install gcc")
    return str(request.param)


@pytest.fixture(scope="module")
def artefacts(name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    suffix, write = WRITERS[name]
    folder = tmp_path_factory.mktemp(name)
    paths = {frames: folder / f"leaky_{frames}{suffix}" for frames in (SHORT, LONG)}
    for frames, path in paths.items():
        write(path, frames)
    return paths


@pytest.fixture(autouse=True)
def doubles(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """TensorRT runs on doubles of itself and of the GPU, of which nothing is held after a test.

    Where ONNX Runtime has no provider for a GPU, the buffers of its streams lie on the CPU.
    """
    gpu = CudaDouble()
    for attribute in ("CUDA", "TENSORRT"):
        provider = getattr(ort, attribute)
        if name == provider.runtime and provider.name not in ort.onnxruntime.get_available_providers():
            monkeypatch.setattr(ort, attribute, dataclasses.replace(ort.CPU, runtime=name))
            monkeypatch.setattr(ort, "_BoundStream", ort._DeviceStream)
    if name == "tensorrt":
        monkeypatch.setattr(cuda, "load_driver", lambda: gpu)
        monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double(cuda=gpu))
    yield
    assert gpu.live == {}


@pytest.fixture
def runtime(name: str, artefacts: dict[int, Path]) -> Iterator[Runtime]:
    with open_runtime(name, artefacts[SHORT]) as opened:
        yield opened


@pytest.fixture
def long_runtime(name: str, artefacts: dict[int, Path]) -> Iterator[Runtime]:
    with open_runtime(name, artefacts[LONG]) as opened:
        yield opened


def frames_of(streams: int, frames: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((streams, frames, 3), dtype=np.float32)


def feeds_of(streams: int, frames: int = SHORT) -> dict[str, NDArray[Any]]:
    return {
        "x": frames_of(streams, frames),
        "past": frames_of(streams, 1, seed=2),
        "level": frames_of(streams, 1, seed=3)[:, 0],
    }


def stream_all(runtime: Runtime, x: NDArray[np.float32]) -> NDArray[np.float32]:
    stream = runtime.stream(STATES, streams=x.shape[0])
    return np.concatenate([stream({"x": part})["y"] for part in np.split(x, x.shape[1] // SHORT, axis=1)], 1)


def test_a_runtime_names_itself_and_what_it_takes_and_gives(name: str, runtime: Runtime) -> None:
    assert runtime.name == name
    assert (runtime.inputs, runtime.outputs) == specs(SHORT)
    assert dict(runtime.metadata) == METADATA


def test_a_run_agrees_with_the_module(runtime: Runtime) -> None:
    feeds = feeds_of(streams=2)
    with torch.no_grad():
        wanted = make_leaky()(*(torch.from_numpy(array) for array in feeds.values()))
    found = runtime.run(feeds)
    assert list(found) == ["y", "past_next", "level_next"]
    for array, tensor in zip(found.values(), wanted, strict=True):
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, tensor.numpy(), rtol=0, atol=TOLERANCE)


def test_a_missing_feed_is_refused_by_name(runtime: Runtime) -> None:
    feeds = feeds_of(2)
    del feeds["level"]
    with pytest.raises(FeedError, match=r"missing level \(streams, 3\) float32"):
        runtime.run(feeds)


def test_an_unknown_feed_is_refused_by_name(runtime: Runtime) -> None:
    with pytest.raises(FeedError, match="unknown wave; wanted level, past, x"):
        runtime.run({**feeds_of(2), "wave": frames_of(2, 1)})


def test_a_wrong_name_says_what_is_missing_and_what_is_unknown(runtime: Runtime) -> None:
    feeds = feeds_of(2)
    feeds["wave"] = feeds.pop("x")
    with pytest.raises(FeedError, match=r"missing x .*; unknown wave"):
        runtime.run(feeds)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", ">f4"])
def test_a_wrong_dtype_is_refused(runtime: Runtime, dtype: str) -> None:
    feeds = feeds_of(2)
    feeds["x"] = feeds["x"].astype(dtype)
    with pytest.raises(FeedError, match=rf"x: found {dtype}, wanted float32"):
        runtime.run(feeds)


def test_what_is_not_an_array_is_refused(runtime: Runtime) -> None:
    feeds: dict[str, Any] = feeds_of(2)
    feeds["x"] = feeds["x"].tolist()
    with pytest.raises(FeedError, match="x: found list, wanted a NumPy array of float32"):
        runtime.run(feeds)


@pytest.mark.parametrize("shape", [(2, SHORT + 1, 3), (2, SHORT), (2, SHORT, 3, 1), ()])
def test_a_wrong_shape_is_refused(runtime: Runtime, shape: tuple[int, ...]) -> None:
    with pytest.raises(FeedError, match=r"x: found shape \(.*\), wanted \(streams, 4, 3\)"):
        runtime.run({**feeds_of(2), "x": np.zeros(shape, np.float32)})


def test_inputs_that_disagree_on_a_dynamic_axis_are_refused(runtime: Runtime) -> None:
    feeds = {**feeds_of(2), "past": frames_of(3, 1)}
    with pytest.raises(FeedError, match="past: axis streams has size 3, but size 2 in x"):
        runtime.run(feeds)


def test_an_empty_dynamic_axis_is_refused(runtime: Runtime) -> None:
    with pytest.raises(FeedError, match="x: axis streams is empty"):
        runtime.run(feeds_of(0))


def test_arrays_that_are_strided_or_read_only_are_welcome(runtime: Runtime) -> None:
    feeds = feeds_of(2)
    wanted = runtime.run(feeds)["y"]
    feeds["x"] = np.repeat(feeds["x"], 2, axis=2)[:, :, ::2]
    feeds["level"] = feeds["level"][::-1].copy()[::-1]
    feeds["past"].flags.writeable = False
    np.testing.assert_array_equal(runtime.run(feeds)["y"], wanted)


def test_nan_passes_through_to_its_own_stream_only(runtime: Runtime) -> None:
    feeds = feeds_of(2)
    feeds["x"][0, 1, 0] = np.nan
    found = runtime.run(feeds)
    assert np.isfinite(found["y"][0, :1]).all()
    assert np.isnan(found["y"][0, 1:]).all()
    assert np.isnan(found["level_next"][0]).all()
    assert np.isfinite(found["y"][1]).all()


def test_results_are_fresh_writable_arrays(runtime: Runtime) -> None:
    feeds = feeds_of(2)
    untouched = {name: array.copy() for name, array in feeds.items()}
    first = runtime.run(feeds)
    kept = {name: array.copy() for name, array in first.items()}
    second = runtime.run({**feeds, "x": -feeds["x"]})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        assert array.flags.writeable
        assert not any(np.shares_memory(array, other) for other in (*second.values(), *feeds.values()))
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, untouched[name])


def test_the_streams_axis_is_dynamic_and_streams_do_not_meet(runtime: Runtime) -> None:
    for streams in (1, 2, 5):
        feeds = feeds_of(streams)
        together = runtime.run(feeds)
        for index in range(streams):
            alone = runtime.run({name: array[index : index + 1] for name, array in feeds.items()})
            for output, array in alone.items():
                np.testing.assert_allclose(together[output][index], array[0], rtol=0, atol=TOLERANCE)


def test_streaming_with_carried_state_equals_one_long_run(runtime: Runtime, long_runtime: Runtime) -> None:
    x = frames_of(2, LONG)
    whole = long_runtime.stream(STATES, streams=2)({"x": x})["y"]
    np.testing.assert_allclose(stream_all(runtime, x), whole, rtol=0, atol=TOLERANCE)


def test_calls_without_carried_state_differ_from_one_long_run(runtime: Runtime, long_runtime: Runtime) -> None:
    x = frames_of(2, LONG)
    whole = long_runtime.stream(STATES, streams=2)({"x": x})["y"]
    stream = runtime.stream(STATES, streams=2)
    parts = []
    for part in np.split(x, LONG // SHORT, axis=1):
        stream.reset()
        parts.append(stream({"x": part})["y"])
    assert np.abs(np.concatenate(parts, 1) - whole).max() > 0.1


def test_a_stream_shows_only_what_is_not_state(runtime: Runtime) -> None:
    stream = runtime.stream(STATES, streams=2)
    assert stream.inputs == (TensorSpec("x", (2, SHORT, 3), "float32"),)
    assert stream.outputs == (TensorSpec("y", (2, SHORT, 3), "float32"),)
    assert list(stream({"x": frames_of(2, SHORT)})) == ["y"]


def test_states_after_a_call_are_the_outputs_of_a_run(runtime: Runtime) -> None:
    x = frames_of(2, SHORT)
    stream = runtime.stream(STATES, streams=2)
    assert all(not array.any() for array in stream.states.values())
    zero = stream.states
    stream({"x": x})
    found, wanted = stream.states, runtime.run({"x": x, **zero})
    assert set(found) == set(STATES)
    for state, successor in STATES.items():
        np.testing.assert_array_equal(found[state], wanted[successor])


def test_reset_starts_anew(runtime: Runtime) -> None:
    x = frames_of(2, SHORT)
    stream = runtime.stream(STATES, streams=2)
    first = stream({"x": x})["y"]
    second = stream({"x": x})["y"]
    stream.reset()
    np.testing.assert_array_equal(stream({"x": x})["y"], first)
    np.testing.assert_array_equal(stream({"x": x})["y"], second)
    assert np.abs(second - first).max() > 0.1


def test_loaded_states_continue_where_they_were_taken(runtime: Runtime) -> None:
    x = frames_of(2, LONG)
    first, second, third = np.split(x, 3, axis=1)
    stream = runtime.stream(STATES, streams=2)
    stream({"x": first})
    taken = stream.states
    wanted = [stream({"x": part})["y"] for part in (second, third)]
    stream.load(taken)
    np.testing.assert_array_equal(stream({"x": second})["y"], wanted[0])
    np.testing.assert_array_equal(stream({"x": third})["y"], wanted[1])


def test_states_that_are_read_or_loaded_are_copies(runtime: Runtime) -> None:
    x = frames_of(2, SHORT)
    stream = runtime.stream(STATES, streams=2)
    wanted = stream({"x": x})["y"]
    stream.reset()
    states = stream.states
    stream.load(states)
    for array in (*states.values(), *stream.states.values()):
        array.fill(7)
    np.testing.assert_array_equal(stream({"x": x})["y"], wanted)


def test_states_that_do_not_fit_are_not_loaded(runtime: Runtime) -> None:
    stream = runtime.stream(STATES, streams=2)
    with pytest.raises(FeedError, match=r"level: found shape \(3, 3\), wanted \(2, 3\)"):
        stream.load({**stream.states, "level": np.zeros((3, 3), np.float32)})
    with pytest.raises(FeedError, match="missing past"):
        stream.load({"level": np.zeros((2, 3), np.float32)})


def test_results_of_a_stream_are_fresh_arrays(runtime: Runtime) -> None:
    x = frames_of(2, SHORT)
    stream = runtime.stream(STATES, streams=2)
    first = stream({"x": x})["y"]
    kept = first.copy()
    second = stream({"x": -x})["y"]
    np.testing.assert_array_equal(first, kept)
    assert not np.shares_memory(first, second)
    assert first.flags.writeable


def test_two_streams_of_one_runtime_do_not_meet(runtime: Runtime) -> None:
    x, other = frames_of(1, LONG), frames_of(1, LONG, seed=9)
    wanted = stream_all(runtime, x)
    left, right = runtime.stream(STATES, streams=1), runtime.stream(STATES, streams=1)
    found = []
    for part, other_part in zip(np.split(x, 3, axis=1), np.split(other, 3, axis=1), strict=True):
        found.append(left({"x": part})["y"])
        right({"x": other_part})
    np.testing.assert_array_equal(np.concatenate(found, 1), wanted)


def test_a_refused_call_leaves_the_state_as_it_was(runtime: Runtime) -> None:
    stream = runtime.stream(STATES, streams=2)
    stream({"x": frames_of(2, SHORT)})
    before = stream.states
    for wrong in (frames_of(3, SHORT), frames_of(2, SHORT + 1), frames_of(2, SHORT).astype(np.float64)):
        with pytest.raises(FeedError, match="x: found"):
            stream({"x": wrong})
    with pytest.raises(FeedError, match="unknown past"):
        stream({"x": frames_of(2, SHORT), "past": frames_of(2, 1)})
    for state, array in stream.states.items():
        np.testing.assert_array_equal(array, before[state])


def test_nan_stays_in_a_stream_until_it_is_reset(runtime: Runtime) -> None:
    x = frames_of(1, SHORT)
    stream = runtime.stream(STATES, streams=1)
    stream({"x": x * np.float32(np.nan)})
    assert np.isnan(stream({"x": x})["y"]).all()
    stream.reset()
    assert np.isfinite(stream({"x": x})["y"]).all()


@pytest.mark.parametrize(
    ("states", "axes", "message"),
    [
        ({"wave": "past_next"}, {"streams": 1}, "state wave: not an input; inputs: x, past, level"),
        ({"past": "wave"}, {"streams": 1}, "successor wave is not an output; outputs: y, past_next, level_next"),
        ({"past": "level_next"}, {"streams": 1}, "state past: its successor differs"),
        ({"past": "past_next", "level": "past_next"}, {"streams": 1}, "share a successor"),
        (STATES, {}, "past: the size of axis streams is not given"),
        (STATES, {"streams": 0}, "axis streams: found size 0, wanted at least 1"),
        (STATES, {"streams": 1, "frames": 4}, "axis frames: not in this graph; its dynamic axes: streams"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(
    runtime: Runtime, states: dict[str, str], axes: dict[str, int], message: str
) -> None:
    with pytest.raises(FeedError, match=message):
        runtime.stream(states, **axes)


def test_a_closed_runtime_refuses_to_run(name: str, artefacts: dict[int, Path]) -> None:
    with open_runtime(name, artefacts[SHORT]) as runtime:
        stream = runtime.stream(STATES, streams=2)
    runtime.close()
    with pytest.raises(RuntimeUnavailable, match="closed"):
        runtime.run(feeds_of(2))
    with pytest.raises(RuntimeUnavailable, match="closed"):
        stream({"x": frames_of(2, SHORT)})
    with pytest.raises(RuntimeUnavailable, match="closed"):
        runtime.stream(STATES, streams=2)


def test_metadata_that_matches_opens_the_artefact(name: str, artefacts: dict[int, Path]) -> None:
    with open_runtime(name, artefacts[SHORT], metadata={"toy.name": "leaky"}) as runtime:
        assert runtime.metadata["toy.name"] == "leaky"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"toy.name": "other"}, "toy.name is leaky, wanted other"),
        ({"toy.block": "4"}, "toy.block is missing, wanted 4"),
    ],
)
def test_metadata_that_differs_is_refused(
    name: str, artefacts: dict[int, Path], wanted: dict[str, str], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        open_runtime(name, artefacts[SHORT], metadata=wanted)


@pytest.mark.parametrize("damage", ["empty", "noise", "head", "half", "without its end"])
def test_a_corrupted_file_is_refused_in_silence(
    name: str, artefacts: dict[int, Path], damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = artefacts[SHORT].read_bytes()
    noise = np.random.default_rng(0).bytes(1000)
    content = {"empty": b"", "noise": noise, "head": whole[:16], "half": whole[: len(whole) // 2]}
    broken = tmp_path / artefacts[SHORT].name
    broken.write_bytes(content.get(damage, whole[:-40]))
    with pytest.raises(ArtefactError, match=broken.name):
        open_runtime(name, broken)
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_or_a_directory_is_refused(name: str, tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ArtefactError, match="not a file"):
            open_runtime(name, path)


def test_opening_and_running_print_nothing(
    name: str, artefacts: dict[int, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with open_runtime(name, artefacts[SHORT], threads=2) as runtime:
        runtime.run(feeds_of(2))
        stream_all(runtime, frames_of(2, LONG))
    assert capfd.readouterr() == ("", "")


def test_a_live_module_streams_like_its_artefact(runtime: Runtime) -> None:
    x = frames_of(2, LONG)
    with PytorchRuntime.from_module(make_leaky(), *specs(SHORT), METADATA) as live:
        np.testing.assert_allclose(stream_all(runtime, x), stream_all(live, x), rtol=0, atol=TOLERANCE)
