"""Each fault that a graph can have is found where it is: at its node, in its layer, with its cause."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgese.graphs.write
import edgese.verify.side_by_side
from edgese.audio import Wave
from edgese.errors import VerificationError
from edgese.model.enhancer import WaveformEnhancer
from edgese.networks import MbsConfig
from edgese.verify.first_divergence import Divergence, first_divergence
from edgese.verify.truth import pytorch_truth
from export.bundle import Bundle, Graph
from export.graph import write_onnx
from runtimes.ort import OnnxRuntime
from runtimes.registry import RUNTIMES

from ..helpers.tiny_bundle import HOP, Change, scale_weight

N_HOPS = 30
NETWORK = MbsConfig(
    channels=8, layers=2, states=4, dt_rank=2, chunk=5, decoder_hidden=8, decay_heads=4, expand=2, fusion="each"
)
pytestmark = pytest.mark.parametrize("tiny_config", [NETWORK], indirect=True, ids=["decay-per-head"])
Search = Callable[..., Divergence]

_exported: dict[tuple[Any, ...], Path] = {}


@pytest.fixture
def graph(bundle: Bundle) -> Graph:
    """The largest block."""
    return bundle.graphs[-1]


@pytest.fixture(autouse=True)
def exported_once(
    tiny_enhancer: WaveformEnhancer, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each graph is exported anew but once a session: PyTorch takes seconds for it."""

    def write(module: Any, inputs: Any, outputs: Any, path: Path, **options: Any) -> None:
        key = (tiny_enhancer.network.config, inputs["wave"].shape)
        if key not in _exported:
            _exported[key] = tmp_path_factory.mktemp("anew") / "fresh.onnx"
            write_onnx(module, inputs, outputs, _exported[key], **options)
        shutil.copyfile(_exported[key], path)

    monkeypatch.setattr(edgese.graphs.write, "write_onnx", write)


@pytest.fixture
def search(bundle: Bundle, graph: Graph, tmp_path: Path, speech_like) -> Search:
    """`search(change)`: where the graph first differs after a change to its model."""

    def changed(
        change: Change = lambda model: None,
        runtime: str = "onnxruntime",
        wave: Wave | None = None,
        broken_file: str = "",
        on_progress: Callable[[str], None] | None = None,
        **entries: Any,
    ) -> Divergence:
        folder = tmp_path / "changed"
        shutil.copytree(bundle.path, folder)
        model = onnx.load(folder / graph.file)
        change(model)
        onnx.save(model, folder / graph.file)
        if broken_file:
            (folder / broken_file).write_bytes(b"broken")
        suspect = dataclasses.replace(graph, **entries)
        sound = speech_like(N_HOPS * HOP, seed=2) if wave is None else wave
        opened = Bundle(folder, bundle.manifest, bundle.graphs)
        return first_divergence(opened, suspect, runtime, sound, on_progress)

    return changed


def weight_of(model: onnx.ModelProto, enhancer: WaveformEnhancer, module: str) -> onnx.TensorProto:
    """The initializer that holds a linear layer's weight, found by its values."""
    wanted = enhancer.get_submodule(module).weight.detach().numpy().T
    (tensor,) = (t for t in model.graph.initializer if np.array_equal(numpy_helper.to_array(t), wanted))
    return tensor


def readers(model: onnx.ModelProto, tensor: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if tensor in node.input]


# What a graph can be wrong in


@pytest.mark.parametrize("layer", ["blocks.0.in_proj", "blocks.1.x_proj", "fusions.0.channels", "phase_head"])
def test_a_weight_is_named_with_its_layer(layer: str, search: Search, tiny_enhancer: WaveformEnhancer) -> None:
    """One value of it is off by a hundredth of the largest."""
    names = []

    def change(model: onnx.ModelProto) -> None:
        tensor = weight_of(model, tiny_enhancer, f"network.{layer}")
        array = numpy_helper.to_array(tensor).copy()
        array.flat[3] += 0.01 * np.abs(array).max()
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        names.append(tensor.name)

    found = search(change)
    assert (found.module, found.operator) == (f"network.{layer}", "MatMul")
    assert names[0] in found.inputs
    assert f"weight {names[0]} differs from the bundle's in 1 of " in found.why
    assert "up to" in found.why
    assert "0.01 of the largest value" in found.why
    assert found.error is not None
    assert 0 < found.error.relative < 0.1
    assert found.structure == ""


@pytest.mark.parametrize("layer", ["blocks.0.in_proj", "magnitude_head"])
def test_a_weight_that_is_off_by_less_than_the_rounding_of_its_product_is_named_too(
    layer: str, search: Search, tiny_enhancer: WaveformEnhancer
) -> None:
    """One value by a millionth of itself: the products are less off than another order of sums may make them."""

    def change(model: onnx.ModelProto) -> None:
        tensor = weight_of(model, tiny_enhancer, f"network.{layer}")
        array = numpy_helper.to_array(tensor).copy()
        array.flat[3] *= 1.000001
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    found = search(change)
    assert (found.module, found.operator) == (f"network.{layer}", "MatMul")
    assert re.search(r"weight \w+ differs from the bundle's in 1 of ", found.why)
    assert "no more than another order of sums would give" in found.why


def test_the_hop_is_the_first_at_which_it_shows(
    search: Search, graph: Graph, tiny_enhancer: WaveformEnhancer, speech_like
) -> None:
    """A window does nothing to silence."""
    window = tiny_enhancer.transform.dft.window.numpy()
    sound = speech_like(48 * HOP, seed=2)
    sound[: 12 * HOP] = 0
    call = np.flatnonzero(sound)[0] // HOP // graph.block

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if np.array_equal(numpy_helper.to_array(t), window))
        tensor.CopyFrom(numpy_helper.from_array(np.float32(1.01) * window, tensor.name))

    found = search(change, wave=sound)
    assert (found.module, found.operator, found.hop) == ("transform.dft", "Mul", call * graph.block)
    assert found.hop >= 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_named(value: float, search: Search, tiny_enhancer: WaveformEnhancer) -> None:
    def change(model: onnx.ModelProto) -> None:
        tensor = weight_of(model, tiny_enhancer, "network.magnitude_head")
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    found = search(change)
    assert found.module == "network.magnitude_head"
    assert re.search(r"weight \w+ differs from the bundle's in 1 of .*: 1 values are NaN or Inf", found.why)
    assert found.error is not None
    assert found.error.n_bad > 0


def test_a_flipped_sign_is_found_at_its_node(search: Search, tiny_enhancer: WaveformEnhancer) -> None:
    """The first block is subtracted from its input."""
    outputs = []

    def change(model: onnx.ModelProto) -> None:
        weight = weight_of(model, tiny_enhancer, "network.blocks.0.out_proj")
        (residual,) = readers(model, readers(model, weight.name)[0].output[0])
        assert residual.op_type == "Add"
        residual.op_type = "Sub"
        outputs.append(residual.output[0])

    found = search(change)
    assert (found.module, found.operator, found.tensor) == ("network.blocks.0", "Sub", outputs[0])
    assert re.match(rf"{outputs[0]}: found Sub .*, wanted Add ", found.why)


def test_another_operator_is_found_at_its_node(search: Search, tiny_enhancer: WaveformEnhancer) -> None:
    outputs = []

    def change(model: onnx.ModelProto) -> None:
        weight = weight_of(model, tiny_enhancer, "network.magnitude_head")
        (biased,) = readers(model, readers(model, weight.name)[0].output[0])
        (sigmoid,) = readers(model, biased.output[0])
        assert sigmoid.op_type == "Sigmoid"
        sigmoid.op_type = "HardSigmoid"
        outputs.append(sigmoid.output[0])

    found = search(change)
    assert (found.module, found.operator, found.tensor) == ("network", "HardSigmoid", outputs[0])
    assert re.match(rf"{outputs[0]}: found HardSigmoid .*, wanted Sigmoid ", found.why)


def test_another_attribute_is_found_at_its_node(search: Search) -> None:
    def change(model: onnx.ModelProto) -> None:
        norm = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
        (epsilon,) = (attribute for attribute in norm.attribute if attribute.name == "epsilon")
        epsilon.f = 0.5

    found = search(change)
    assert (found.module, found.operator) == ("network.norm", "LayerNormalization")
    assert "epsilon = 0.5" in found.why


def test_a_recurrence_in_fp16_is_found_where_its_state_is_read(search: Search) -> None:
    def change(model: onnx.ModelProto) -> None:
        for node in readers(model, "ssm_1"):
            node.input[:] = ["ssm_1_again" if name == "ssm_1" else name for name in node.input]
        to_half = helper.make_node("Cast", ["ssm_1"], ["ssm_1_half"], to=TensorProto.FLOAT16)
        back = helper.make_node("Cast", ["ssm_1_half"], ["ssm_1_again"], to=TensorProto.FLOAT)
        for at, node in enumerate((to_half, back)):
            model.graph.node.insert(at, node)

    found = search(change)
    assert found.module == "network.blocks.1"
    assert "ssm_1_again" in found.inputs
    assert "ssm_1_again is Cast(ssm_1_half)" in found.why
    assert found.error is not None
    assert 1e-6 < found.error.relative < 1e-3  # 11 bits of mantissa


@pytest.mark.parametrize("kind", ["conv", "ssm"])
def test_states_that_the_graph_swaps_are_found_as_such(kind: str, search: Search) -> None:
    first, second = f"{kind}_0_next", f"{kind}_1_next"
    swapped = {first: second, second: first}

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = [swapped.get(name, name) for name in node.output]
            node.input[:] = [swapped.get(name, name) for name in node.input]

    found = search(change)
    assert (found.module, found.tensor, found.hop) == ("network.blocks.0", first, 0)
    assert found.why.startswith(f"it holds what belongs to {second}: states are swapped")


@pytest.mark.parametrize("kind", ["conv", "ssm"])
def test_states_that_the_manifest_swaps_are_found_as_such(kind: str, search: Search, graph: Graph) -> None:
    """Each call is right by itself: only from the second on is it fed what it should not be."""
    first, second = f"{kind}_0", f"{kind}_1"
    found = search(states={**graph.states, first: f"{second}_next", second: f"{first}_next"})
    assert (found.module, found.tensor, found.operator) == ("network.blocks.0", first, "")
    assert found.hop == graph.block
    assert found.why.startswith(f"the manifest feeds it from {second}_next, wanted {first}_next; it holds what belongs")
    assert f"  input: {first}" in found.lines


def test_an_output_that_is_missing_is_found_with_the_node_that_gave_it(search: Search) -> None:
    def change(model: onnx.ModelProto) -> None:
        (dropped,) = (value for value in model.graph.output if value.name == "ssm_1_next")
        model.graph.output.remove(dropped)

    found = search(change)
    assert (found.module, found.tensor, found.error) == ("network.blocks.1", "ssm_1_next", None)
    assert found.why == "output ssm_1_next: found none, wanted float32; it is computed, but not given"


def test_an_output_of_another_length_is_found(search: Search, graph: Graph) -> None:
    size = graph.block * HOP

    def change(model: onnx.ModelProto) -> None:
        (node,) = (node for node in model.graph.node if "enhanced" in node.output)
        node.output[:] = ["whole"]
        for name, value in (("from", 0), ("to", size - 1), ("axis", 1)):
            model.graph.initializer.append(numpy_helper.from_array(np.array([value]), f"cut_{name}"))
        model.graph.node.add(op_type="Slice", input=["whole", "cut_from", "cut_to", "cut_axis"], output=["enhanced"])
        (value,) = (value for value in model.graph.output if value.name == "enhanced")
        value.type.tensor_type.shape.dim[1].dim_value -= 1

    found = search(change)
    assert (found.module, found.tensor, found.error) == ("", "enhanced", None)
    assert found.why.startswith(f"found shape (1, {size - 1}), wanted (1, {size})")


def test_a_graph_of_another_form_is_compared_by_its_outputs(search: Search, tiny_enhancer: WaveformEnhancer) -> None:
    """All inner names are others, as another version of the exporter gives them: no name is trusted."""

    def change(model: onnx.ModelProto) -> None:
        scale_weight(model, weight_of(model, tiny_enhancer, "network.blocks.1.in_proj").name, 1.01)
        kept = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
        inner = [name for node in model.graph.node for name in node.output if name not in kept]
        others = dict(zip(inner, [*inner[1:], "last"], strict=True))
        del model.graph.value_info[:]
        for node in model.graph.node:
            node.input[:] = [others.get(name, name) for name in node.input]
            node.output[:] = [others.get(name, name) for name in node.output]

    found = search(change)
    assert (found.module, found.tensor) == ("network.blocks.1", "conv_1_next")
    assert "nodes are as exported anew: of another form, only outputs and states compared" in found.why


# What is not the graph's fault


class PoorSigmoid(OnnxRuntime):
    """A runtime whose last sigmoid is rounded, but only where it has few outputs to give: as if it fused it then."""

    few = 1000

    def __init__(self, artefact: Path, *, threads: int = 1) -> None:
        model = onnx.load(artefact)
        if len(model.graph.output) < self.few:
            [node for node in model.graph.node if node.op_type == "Sigmoid"][-1].op_type = "HardSigmoid"
        path = artefact.with_suffix(".poor.onnx")
        onnx.save(model, path)
        super().__init__(path, threads=threads)


@pytest.fixture
def poor(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(RUNTIMES, "poor", lambda: PoorSigmoid)
    return "poor"


def test_another_arithmetic_is_the_runtime_s(search: Search, poor: str) -> None:
    found = search(runtime=poor)
    assert (found.module, found.operator, found.runtime) == ("network.phase_decoder", "Sigmoid", "poor")
    assert found.why == "as exported anew, but poor gives other values than float64: its arithmetic differs"
    assert found.structure == ""
    assert found.error is not None
    assert 0.01 < found.error.max_abs < 0.1  # a hard sigmoid is that far from one


def test_a_fault_of_the_graph_is_told_from_the_runtime_s_arithmetic(
    search: Search, poor: str, tiny_enhancer: WaveformEnhancer
) -> None:
    def change(model: onnx.ModelProto) -> None:
        scale_weight(model, weight_of(model, tiny_enhancer, "network.phase_head").name, 1.01)

    found = search(change, runtime=poor)
    assert found.module == "network.phase_head"
    assert "differs from the bundle's" in found.why


@pytest.mark.parametrize(("few", "inner"), [(60, True), (10, False)])
def test_what_hides_when_tensors_are_outputs_is_said_to(
    few: int, inner: bool, search: Search, graph: Graph, poor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tensors between layers as outputs it shows still, or with none."""
    monkeypatch.setattr(PoorSigmoid, "few", few)
    found = search(runtime=poor)
    assert "with all tensors as outputs it agrees: poor errs where it fuses" in found.why
    if inner:
        assert found.module == "network.phase_decoder"
    assert (found.tensor in {spec.name for spec in graph.outputs}) != inner


# What cannot be told


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_was_not_changed_differs_nowhere(runtime: str, search: Search, graph: Graph) -> None:
    """Not in OpenVINO either, whose rounding is another."""
    with pytest.raises(VerificationError) as refused:
        search(runtime=runtime)
    message = str(refused.value)
    assert message.startswith(f"{graph.file} in {runtime}: no tensor differs: ")
    assert f"compared over {N_HOPS} hops" in message
    assert message.endswith(
        "the graph is as exported anew; what failed lies outside of it, or shows in other sound only"
    )
    assert int(message.split(" compared")[0].split()[-1]) > 150


def test_what_is_known_of_a_graph_that_differs_nowhere_is_told(search: Search) -> None:
    def change(model: onnx.ModelProto) -> None:
        (entry,) = (entry for entry in model.metadata_props if entry.key == "edgese.block")
        entry.value = "9"

    with pytest.raises(VerificationError, match=r"no tensor differs.*its metadata says edgese\.block is 9, wanted 3"):
        search(change)


def test_what_shows_in_several_streams_only_is_told_by_its_structure(search: Search) -> None:
    """Each stream hears the mean of all, which is itself where there is only one."""

    def change(model: onnx.ModelProto) -> None:
        for node in readers(model, "wave"):
            node.input[:] = ["mixed" if name == "wave" else name for name in node.input]
        model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
        nodes = [
            helper.make_node("ReduceMean", ["wave", "axes"], ["mean"], keepdims=1),
            helper.make_node("Shape", ["wave"], ["size"]),
            helper.make_node("Expand", ["mean", "size"], ["mixed"]),
        ]
        for at, node in enumerate(nodes):
            model.graph.node.insert(at, node)

    with pytest.raises(VerificationError, match=r"no tensor differs: .*; mixed is Expand\(mean, size\)"):
        search(change)


def test_the_loudest_part_of_a_long_sound_is_searched(
    search: Search, speech_like, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgese.verify.side_by_side, "SEARCH_HOPS", 12)
    sound = np.pad(speech_like(12 * HOP, seed=2), (24 * HOP, 5 * HOP))
    steps: list[str] = []
    with pytest.raises(VerificationError, match="compared over 12 hops"):
        search(wave=sound, on_progress=steps.append)
    told = [re.sub(r"\d+ tensors", "N tensors", step.partition(": ")[2]) for step in steps]
    assert told == ["exported anew", "N tensors compared", "without inner tensors as outputs"]


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"runtime": "pytorch"}, "PyTorch runs no file of the bundle"),
        ({"runtime": "abacus"}, "cannot be searched: runtime abacus: unknown"),
        ({"precision": "int4"}, "does not say how its int4 graphs were made"),
        ({"states": {"conv_0": "conv_0_next"}}, "the manifest lists the states conv_0, wanted analysis, synthesis"),
    ],
)
def test_what_cannot_be_searched_is_refused(entries: dict[str, Any], reason: str, search: Search) -> None:
    with pytest.raises(VerificationError, match=reason):
        search(**entries)


@pytest.mark.parametrize(
    ("file", "reason"),
    [("block3.fp32.onnx", "cannot be read as ONNX"), ("model.safetensors", "not a readable safetensors file")],
)
def test_a_file_that_cannot_be_read_is_refused(file: str, reason: str, search: Search) -> None:
    with pytest.raises(VerificationError, match=rf"cannot be searched: .*{file}: {reason}"):
        search(broken_file=file)


def test_silence_is_refused(search: Search) -> None:
    with pytest.raises(VerificationError, match="found silence, wanted sound"):
        search(wave=np.zeros(N_HOPS * HOP, np.float32))


def test_a_graph_that_does_not_open_is_refused(search: Search) -> None:
    with pytest.raises(VerificationError, match=r"cannot be searched: .* onnxruntime cannot open it"):
        search(lambda model: model.graph.node.pop(20))


def test_an_export_that_is_itself_at_fault_is_said_to_be(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any, **options: Any) -> Any:
        truth = pytorch_truth(*arguments, **options)
        return dataclasses.replace(truth, enhanced=truth.enhanced * np.float32(1.01))

    monkeypatch.setattr(edgese.verify.side_by_side, "pytorch_truth", wrong)
    with pytest.raises(
        VerificationError, match=r"exported anew .* does not agree with PyTorch either \(output: differs"
    ):
        search()


def test_the_lines_say_where_and_why(search: Search, tiny_enhancer: WaveformEnhancer) -> None:
    def change(model: onnx.ModelProto) -> None:
        scale_weight(model, weight_of(model, tiny_enhancer, "network.blocks.0.in_proj").name, 1.1)

    text = str(search(change))
    assert re.fullmatch(
        r"first differs in network\.blocks\.0\.in_proj, at hop 0\n"
        r"  node: MatMul \w+\(\w+, \w+\) -> \w+\n"
        r"  error: up to \S+, 0\.1 of the largest value \(mean \S+, cosine 1\.000000\)\n"
        r"  why: weight \w+ differs from the bundle's in \d+ of \d+ values: up to .*",
        text,
    )
