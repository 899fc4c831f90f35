"""Verification passes what agrees with PyTorch, and fails whatever else could come of an export."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgese.enhance.denoiser import Denoiser
from edgese.errors import VerificationError
from edgese.model.enhancer import WaveformEnhancer
from edgese.verify.agreement import Result, judge, verify_graph
from edgese.verify.limits import LIMITS
from edgese.verify.truth import Truth, pytorch_truth
from export.bundle import Bundle, Graph, seal_bundle
from runtimes.base import ArtefactError, FeedError, RuntimeUnavailable

from ..helpers.tiny_bundle import HOP, scale_weight

N_HOPS = 96
MANY = 8  # elements; smaller initializers are shapes, axes and bounds


@pytest.fixture
def graph(bundle: Bundle) -> Graph:
    """The largest block."""
    return bundle.graphs[-1]


@pytest.fixture
def truth(tiny_enhancer: WaveformEnhancer, speech_like) -> Truth:
    return pytorch_truth(tiny_enhancer, speech_like(N_HOPS * HOP, seed=2), 1)


@pytest.fixture
def verify_changed(bundle: Bundle, graph: Graph, truth: Truth, tmp_path: Path) -> Callable[..., Result]:
    """`verify_changed(change)`: the verdict on the graph after a change to its model."""

    def verify(change: Callable[[onnx.ModelProto], None]) -> Result:
        model = onnx.load(bundle.path / graph.file)
        change(model)
        onnx.save(model, tmp_path / graph.file)
        return verify_graph(tmp_path, graph, truth)

    return verify


def weights_of(bundle: Bundle, graph: Graph) -> list[str]:
    """Names of the float initializers that are more than a bound or a factor."""
    tensors = onnx.load(bundle.path / graph.file, load_external_data=False).graph.initializer
    return [
        tensor.name
        for tensor in tensors
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) >= MANY
    ]


# What passes


@pytest.mark.both_networks
def test_every_graph_that_was_exported_passes(bundle: Bundle, truth: Truth) -> None:
    for graph in bundle.graphs:
        result = verify_graph(bundle.path, graph, truth)
        assert result.failures == ()
        assert result.passed
        assert (result.graph, result.block, result.precision) == (graph.file, graph.block, "fp32")
        assert (result.runtime, result.n_hops) == ("onnxruntime", N_HOPS)
        assert 0 < result.max_abs <= 1e-5
        assert result.snr_db >= 100
        assert result.state_relative.keys() == truth.states.keys()


@pytest.mark.both_networks
def test_a_graph_written_again_unchanged_passes(verify_changed: Callable[..., Result]) -> None:
    """The control of all that follow: it is the change that fails, not the way it is made."""
    assert verify_changed(lambda model: None).passed


def test_the_limits_are_the_project_s_bars() -> None:
    assert (LIMITS["fp32"].max_abs, LIMITS["fp32"].snr_db) == (1e-5, 100.0)
    assert (LIMITS["fp16"].snr_db, LIMITS["fp16"].pesq_loss) == (40.0, 0.01)
    assert all(limits.reason for limits in LIMITS.values())


# What must fail


@pytest.mark.both_networks
def test_every_weight_counts(bundle: Bundle, graph: Graph, verify_changed: Callable[..., Result]) -> None:
    """Any one tensor of the network or of the transform is off, here up and there down, by a hundredth at most."""

    def blur(name: str) -> Callable[[onnx.ModelProto], None]:
        def change(model: onnx.ModelProto) -> None:
            (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
            array = numpy_helper.to_array(tensor)
            largest = np.abs(array).max() or 0.1  # untrained biases are zero
            wave = np.cos(np.arange(array.size, dtype=np.float32)).reshape(array.shape)
            tensor.CopyFrom(numpy_helper.from_array(array + 0.01 * largest * wave, name))

        return change

    names = weights_of(bundle, graph)
    assert len(names) > 30
    assert [name for name in names if verify_changed(blur(name)).passed] == []


@pytest.mark.both_networks
def test_one_element_of_one_weight_counts(bundle: Bundle, graph: Graph, verify_changed: Callable[..., Result]) -> None:
    (largest, *_) = sorted(
        (
            tensor
            for tensor in onnx.load(bundle.path / graph.file).graph.initializer
            if tensor.name in weights_of(bundle, graph)
        ),
        key=lambda tensor: -len(tensor.raw_data),
    )

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == largest.name)
        array = numpy_helper.to_array(tensor).copy()
        array[np.unravel_index(np.abs(array).argmax(), array.shape)] *= 1.1
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    result = verify_changed(change)
    assert not result.passed
    assert "output: differs by up to" in result.failures[0]


@pytest.mark.both_networks
@pytest.mark.parametrize("kind", ["conv", "ssm"])
def test_two_states_swapped_fail(kind: str, bundle: Bundle, graph: Graph, truth: Truth) -> None:
    """Both have the same shape: only their values can tell."""
    first, second = f"{kind}_0", f"{kind}_1"
    swapped = dict(graph.states) | {first: f"{second}_next", second: f"{first}_next"}
    result = verify_graph(bundle.path, dataclasses.replace(graph, states=swapped), truth)
    assert not result.passed
    assert {f"state {first}", f"state {second}"} <= {failure.partition(":")[0] for failure in result.failures}


@pytest.mark.both_networks
def test_a_state_that_is_not_carried_fails(bundle: Bundle, graph: Graph, verify_changed: Callable[..., Result]) -> None:
    """Each state in turn is answered with zeros."""
    for state, successor in graph.states.items():

        def forget(model: onnx.ModelProto, state: str = state, successor: str = successor) -> None:
            (node,) = (node for node in model.graph.node if successor in node.output)
            node.output[list(node.output).index(successor)] = "forgotten"
            for other in model.graph.node:
                other.input[:] = ["forgotten" if name == successor else name for name in other.input]
            model.graph.node.add(op_type="Sub", input=[state, state], output=[successor])

        result = verify_changed(forget)
        assert not result.passed, state
        assert any(failure.startswith(f"state {state}: differs") for failure in result.failures), state


@pytest.mark.parametrize("output", ["enhanced", "analysis_next", "ssm_1_next"])
def test_a_graph_that_lacks_an_output_is_refused(output: str, verify_changed: Callable[..., Result]) -> None:
    def drop(model: onnx.ModelProto) -> None:
        (value,) = (value for value in model.graph.output if value.name == output)
        model.graph.output.remove(value)

    with pytest.raises((RuntimeUnavailable, VerificationError), match=output):
        verify_changed(drop)


def test_an_output_that_is_shorter_fails(verify_changed: Callable[..., Result], graph: Graph) -> None:
    """The last sample of every call is cut off."""

    def cut(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if "enhanced" in node.output)
        node.output[list(node.output).index("enhanced")] = "whole"
        for name, value in (("from", 0), ("to", graph.block * HOP - 1), ("axis", 1)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([value]), f"cut_{name}"))
        model.graph.node.add(op_type="Slice", input=["whole", "cut_from", "cut_to", "cut_axis"], output=["enhanced"])
        (value,) = (value for value in model.graph.output if value.name == "enhanced")
        value.type.tensor_type.shape.dim[1].dim_value -= 1

    result = verify_changed(cut)
    found = (graph.block * HOP - 1) * (N_HOPS // graph.block)
    assert result.failures[0] == f"output: found shape ({found},), wanted ({N_HOPS * HOP},)"
    assert math.isnan(result.max_abs)


def test_nan_fails(bundle: Bundle, graph: Graph, verify_changed: Callable[..., Result]) -> None:
    name = weights_of(bundle, graph)[0]
    result = verify_changed(lambda model: scale_weight(model, name, math.nan))
    assert "output: NaN or Inf" in result.failures
    assert not result.passed


def test_sound_that_is_no_whole_number_of_blocks_is_refused(bundle: Bundle, graph: Graph, truth: Truth) -> None:
    """Rather than verified up to the last whole block, in silence."""
    cut = dataclasses.replace(truth, wave=truth.wave[:-1], enhanced=truth.enhanced[:-1])
    with pytest.raises(FeedError, match="wave"):
        verify_graph(bundle.path, graph, cut)


def test_a_precision_without_limits_is_refused(bundle: Bundle, graph: Graph, truth: Truth) -> None:
    with pytest.raises(VerificationError, match=r"no limits are set for precision int4"):
        verify_graph(bundle.path, dataclasses.replace(graph, precision="int4"), truth)


def test_a_graph_that_is_not_there_is_refused(graph: Graph, truth: Truth, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=graph.file):
        verify_graph(tmp_path, graph, truth)


# The truth


def test_the_truth_is_the_enhancer_in_one_call(tiny_enhancer: WaveformEnhancer, speech_like) -> None:
    wave = speech_like(10 * HOP + 77)
    truth = pytorch_truth(tiny_enhancer, wave, 4)
    assert len(truth.wave) == len(truth.enhanced) == 8 * HOP
    np.testing.assert_array_equal(truth.wave, wave[: 8 * HOP])
    assert truth.states.keys() == tiny_enhancer.initial_state().keys()
    np.testing.assert_array_equal(truth.states["analysis"][0], wave[8 * HOP - 384 : 8 * HOP])


def test_a_truth_of_nothing_is_refused(tiny_enhancer: WaveformEnhancer, speech_like) -> None:
    with pytest.raises(VerificationError, match="found 500 samples, wanted at least 512"):
        pytorch_truth(tiny_enhancer, speech_like(500), 4)


def test_a_truth_that_is_not_finite_is_refused(tiny_enhancer: WaveformEnhancer, speech_like) -> None:
    wave = speech_like(8 * HOP)
    wave[700] = np.inf
    with pytest.raises(VerificationError, match="NaN or Inf"):
        pytorch_truth(tiny_enhancer, wave, 1)


# The verdict

WAVE = 0.1 * np.sin(np.arange(8 * HOP, dtype=np.float32))
STATE = np.linspace(-2, 2, 50, dtype=np.float32)[None]


@pytest.fixture
def verdict(graph: Graph) -> Callable[..., Result]:
    """`verdict(enhanced, states, truth)` on made-up results; what is not given is perfect."""
    perfect = Truth(WAVE, WAVE, {"ssm": STATE})

    def on(enhanced: np.ndarray = WAVE, states: dict[str, np.ndarray] | None = None, truth: Truth = perfect) -> Result:
        return judge(graph, "abacus", truth, enhanced, {"ssm": STATE} if states is None else states)

    return on


def test_equal_samples_pass_with_an_infinite_snr_that_json_can_hold(verdict: Callable[..., Result]) -> None:
    result = verdict()
    assert (result.failures, result.max_abs, result.snr_db, result.state_relative) == ((), 0.0, math.inf, {"ssm": 0.0})
    entry = json.loads(json.dumps(result.entry(), allow_nan=False))
    assert (entry["snr_db"], entry["passed"], entry["failures"]) == ("inf", True, [])


@pytest.mark.parametrize(
    ("enhanced", "reason"),
    [
        (WAVE[:-1], r"output: found shape \(1023,\), wanted \(1024,\)"),
        (np.append(WAVE, 0), r"output: found shape \(1025,\)"),
        (WAVE[:0], r"output: found shape \(0,\)"),
        (WAVE[None], r"output: found shape \(1, 1024\)"),
        (np.append(WAVE[1:], np.nan), "output: NaN or Inf"),
        (np.append(WAVE[1:], -np.inf), "output: NaN or Inf"),
        (0 * WAVE, "output: differs by up to 0.1, limit 1e-05"),
        (-WAVE, "output: differs by up to 0.2, limit 1e-05"),
        (WAVE + np.float32(2e-5), "output: differs by up to 2e-05, limit 1e-05"),
        (np.roll(WAVE, 1), "output: differs by up to"),
        (WAVE + np.float32(2e-6) * np.sign(WAVE), r"output: SNR 9\d\.\d dB, limit 100 dB"),
    ],
)
def test_an_output_fails_with_its_reason(enhanced: np.ndarray, reason: str, verdict: Callable[..., Result]) -> None:
    result = verdict(enhanced)
    assert not result.passed
    assert re.search(reason, "; ".join(result.failures))
    json.dumps(result.entry(), allow_nan=False)


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ({}, "state ssm: missing or of another shape"),
        ({"conv": STATE}, "state ssm: missing or of another shape"),
        ({"ssm": STATE[0]}, "state ssm: missing or of another shape"),
        ({"ssm": STATE + np.float32(0.01)}, "state ssm: differs by 0.005 of its range"),
        ({"ssm": STATE * np.float32(np.nan)}, "state ssm: differs by inf of its range"),
        ({"ssm": STATE * np.float32(np.inf)}, "state ssm: differs by"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_state_fails_with_its_reason(
    states: dict[str, np.ndarray], reason: str, verdict: Callable[..., Result]
) -> None:
    result = verdict(states=states)
    assert len(result.failures) == 1
    assert result.failures[0].startswith(reason)
    json.dumps(result.entry(), allow_nan=False)


def test_silence_proves_nothing(verdict: Callable[..., Result]) -> None:
    silent = Truth(WAVE, 0 * WAVE, {"ssm": STATE})
    result = verdict(0 * WAVE, truth=silent)
    assert result.failures == ("output: PyTorch's is silent, nothing was compared",)


def test_all_reasons_are_reported_together(verdict: Callable[..., Result]) -> None:
    result = verdict(0.9 * WAVE, {"ssm": 0.9 * STATE})
    assert [failure.split()[1] for failure in result.failures] == ["differs", "SNR", "ssm:"]


# Another bundle's graph


def resealed(bundle: Bundle, folder: Path, **changes: object) -> Bundle:
    """A copy of a bundle whose manifest says something else; all digests are right."""
    folder.mkdir()
    for file in bundle.manifest["files"]:
        (folder / file).write_bytes((bundle.path / file).read_bytes())
    seal_bundle(folder, {**bundle.manifest, **changes})
    return Bundle.open(folder)


def test_a_graph_of_the_bundle_s_own_is_opened(bundle: Bundle, tmp_path: Path) -> None:
    with Denoiser(resealed(bundle, tmp_path / "copy"), block=1) as denoiser:
        assert denoiser.block_samples == HOP


def test_a_graph_of_another_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    foreign = resealed(bundle, tmp_path / "foreign", name="another")
    with pytest.raises(ArtefactError, match=r"edgese\.bundle is tiny, wanted another"):
        Denoiser(foreign)


def test_a_graph_of_another_block_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    first, second = bundle.graphs[:2]
    mixed = [dataclasses.replace(first, file=second.file), dataclasses.replace(second, file=first.file)]
    with pytest.raises(ArtefactError, match=rf"edgese\.block is {second.block}, wanted {first.block}"):
        Denoiser(resealed(bundle, tmp_path / "mixed", graphs=mixed), block=first.block)
