"""A graph that rounds something else than its bundle says is found by what it is made of, whatever it sounds like."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from torch import Tensor

from edgese.audio import Wave
from edgese.errors import VerificationError
from edgese.graphs.plan import plan_of
from edgese.graphs.precision import Precision
from edgese.graphs.write import product_nodes, quantize_graph
from edgese.metrics.pairs import Recording, read_recordings
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import Linear
from edgese.networks import MbsConfig
from edgese.verify.as_planned import rounded_as_planned
from edgese.verify.findings import Check, Verification
from edgese.verify.first_divergence import Divergence, first_divergence
from edgese.verify.prove import prove
from export.bundle import Bundle
from export.inspection import read_anatomy

from ..helpers.precision_bundle import (
    compute_in_half,
    forget_types,
    held,
    maker,
    node_of,
    planned,
    put,
    resealed,
    round_input,
)
from ..helpers.tiny_bundle import HOP, TINY, Change

BLOCK = 3
N_HOPS = 30
CHANGED = "blocks.1.in_proj"
PRECISION = "precision of products"
Reseal = Callable[..., Bundle]


@pytest.fixture
def tiny_config() -> MbsConfig:
    return TINY


@pytest.fixture
def reseal(quantized: Bundle, tmp_path: Path) -> Reseal:
    """`reseal(precision, change, manifest)`: see `resealed`."""

    def sealed(*arguments: Any, **options: Any) -> Bundle:
        return resealed(quantized, tmp_path / "changed", *arguments, **options)

    return sealed


@pytest.fixture
def check(tiny_enhancer: WaveformEnhancer) -> Callable[[Bundle, str], Check]:
    def checked(bundle: Bundle, precision: str) -> Check:
        return rounded_as_planned(bundle, bundle.graph(block=BLOCK, precision=precision), tiny_enhancer)

    return checked


Checked = Callable[[Bundle, str], Check]


# What is as planned


def test_every_graph_of_an_export_is_as_planned(quantized: Bundle, tiny_enhancer: WaveformEnhancer) -> None:
    found = {}
    for graph in quantized.graphs:
        check = rounded_as_planned(quantized, graph, tiny_enhancer)
        assert (check.name, check.passed) == (PRECISION, True), check
        found[graph.precision] = check.found.removesuffix(", all else in float32")
        assert check.wanted == (
            "nothing but float32" if graph.precision == "fp32" else "what the manifest says, and no more"
        )
    assert found == {
        "fp32": "0 products in half precision, 0 in INT8",
        "fp16": "17 products in half precision, 0 in INT8",
        "int8": "5 products in half precision, 12 in INT8",
        "int8-cpu": "0 products in half precision, 14 in INT8",
    }


def test_a_graph_that_was_only_sealed_again_is_as_planned(reseal: Reseal, check: Checked) -> None:
    assert check(reseal("int8"), "int8").passed


# What is not


def exp_in_half(model: onnx.ModelProto) -> None:
    compute_in_half(model, node_of(model, "blocks.0", "Exp"))


def norm_in_half(model: onnx.ModelProto) -> None:
    """With its scale and bias."""
    norm = node_of(model, "norm", "LayerNormalization")
    for place in (1, 2):
        put(model, f"half_{place}", held(model, norm.input[place]).astype(np.float16))
        norm.input[place] = f"half_{place}"
    compute_in_half(model, norm)


def scan_in_half(model: onnx.ModelProto) -> None:
    """The scan's own product: no weights in it."""
    product = node_of(model, "blocks.1")
    down = helper.make_node("Cast", [product.input[1]], ["other_half"], name="down", to=TensorProto.FLOAT16)
    product.input[1] = "other_half"
    compute_in_half(model, product)
    model.graph.node.insert(list(model.graph.node).index(product), down)


def add_in_half(model: onnx.ModelProto) -> None:
    """What a product in half gives is added to before it is cast back."""
    product = node_of(model, "phase_head")
    (cast,) = (node for node in model.graph.node if product.output[0] in node.input)
    put(model, "two", np.array(2, np.float16))
    at = list(model.graph.node).index(cast)
    model.graph.node.insert(at, helper.make_node("Mul", [cast.input[0], "two"], ["doubled"], name="twice"))
    cast.input[0] = "doubled"


def state_in_half(model: onnx.ModelProto) -> None:
    """Only Casts: no other node has float16."""
    round_input(model, "ssm_1")


def state_in_bfloat16(model: onnx.ModelProto) -> None:
    round_input(model, "ssm_1")
    maker(model, "ssm_1_half").attribute[0].i = TensorProto.BFLOAT16


def rounding_that_leaks(model: onnx.ModelProto) -> None:
    """What a product reads in half, another node reads as well, cast back: the residual beside a block's norm."""
    cast = maker(model, node_of(model, "blocks.0.in_proj").input[0])
    up = helper.make_node("Cast", [cast.output[0]], ["leaked"], name="leak", to=TensorProto.FLOAT)
    others = [n for n in model.graph.node if cast.input[0] in n.input and n.name != cast.name]
    assert others == []
    model.graph.node.insert(list(model.graph.node).index(cast) + 1, up)


def product_in_float32(model: onnx.ModelProto) -> None:
    product = node_of(model, CHANGED)
    put(model, product.input[1], held(model, product.input[1]).astype(np.float32))
    product.input[0] = maker(model, product.input[0]).input[0]  # what is noted of its output stays: it is not believed


def half_weight_changed(model: onnx.ModelProto) -> None:
    """One value, by a hundredth of itself: too little to be heard."""
    name = node_of(model, CHANGED).input[1]
    weight = held(model, name)
    weight.flat[3] *= np.float16(1.01)
    put(model, name, weight)


def left_weight_changed(model: onnx.ModelProto) -> None:
    name = node_of(model, "fusions.0.mix").input[0]
    weight = held(model, name)
    weight.flat[3] *= np.float16(1.01)
    put(model, name, weight)


def double_both_scales(model: onnx.ModelProto) -> None:
    """Q and DQ have one scale in common."""
    (name,) = {maker(model, node_of(model, CHANGED).input[0]).input[1]}
    put(model, name, 2 * held(model, name))


def double_the_dequantizer_s_scale(model: onnx.ModelProto) -> None:
    dequantize = maker(model, node_of(model, CHANGED).input[0])
    put(model, "doubled", 2 * held(model, dequantize.input[1]))
    dequantize.input[1] = "doubled"


def activation(model: onnx.ModelProto) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Q and DQ before the product."""
    dequantize = maker(model, node_of(model, CHANGED).input[0])
    return maker(model, dequantize.input[0]), dequantize


def shift_the_zero_point(model: onnx.ModelProto) -> None:
    """By 20 steps, for both: one end of the range is cut off."""
    name = activation(model)[0].input[2]
    put(model, name, (held(model, name) + 20).astype(np.uint8))


def unsigned_activations(model: onnx.ModelProto) -> None:
    """The same steps, counted from 128: TensorRT takes none of that."""
    quantize, dequantize = activation(model)
    put(model, "zero_of_unsigned", np.array(128, np.uint8))
    quantize.input[2] = dequantize.input[2] = "zero_of_unsigned"
    forget_types(model, quantize.output[0])


def weights_in_fewer_bits(model: onnx.ModelProto) -> None:
    """Each the nearest number, but with steps three times as wide."""
    dequantize = maker(model, node_of(model, CHANGED).input[1])
    weight, scale = held(model, dequantize.input[0]), held(model, dequantize.input[1])
    put(model, dequantize.input[0], np.round(weight / 3).astype(np.int8))
    put(model, dequantize.input[1], 3 * scale)


def weight_of(model: onnx.ModelProto) -> str:
    return str(maker(model, node_of(model, CHANGED).input[1]).input[0])


def change_a_weight(model: onnx.ModelProto) -> None:
    """By 3 of its 127 steps."""
    name = weight_of(model)
    weight = held(model, name)
    weight.flat[5] += 3 if weight.flat[5] < 0 else -3
    put(model, name, weight)


def cut_the_weight(model: onnx.ModelProto) -> None:
    name = weight_of(model)
    put(model, name, held(model, name)[:4])


def double_a_weight_s_scale(model: onnx.ModelProto) -> None:
    name = maker(model, node_of(model, CHANGED).input[1]).input[1]
    scale = held(model, name)
    scale[0] *= 2
    put(model, name, scale)


def weight_beside_its_zero(model: onnx.ModelProto) -> None:
    name = maker(model, node_of(model, CHANGED).input[1]).input[2]
    zero = held(model, name)
    zero[0] = 1
    put(model, name, zero)


@pytest.mark.parametrize(
    ("precision", "change", "found"),
    [
        ("fp32", exp_in_half, r"Exp \S+ of enhancer\.network\.blocks\.0 in half precision"),
        ("fp16", exp_in_half, r"Exp \S+ of enhancer\.network\.blocks\.0 in half precision"),
        ("int8", exp_in_half, r"Exp \S+ of enhancer\.network\.blocks\.0 in half precision"),
        ("fp16", norm_in_half, r"LayerNormalization \S+ of enhancer\.network\.norm in half precision"),
        ("fp16", scan_in_half, r"MatMul \S+ of enhancer\.network\.blocks\.1 in half precision"),
        ("fp16", add_in_half, "Mul twice of the graph in half precision"),
        ("fp16", state_in_half, "Cast ssm_1_down of the graph in half precision; Cast ssm_1_up of the graph in half"),
        ("fp32", state_in_half, "Cast ssm_1_down of the graph in half precision"),
        ("int8", state_in_half, "Cast ssm_1_down of the graph in half precision"),
        ("int8-cpu", state_in_half, "Cast ssm_1_down of the graph in half precision"),
        ("fp16", state_in_bfloat16, "Cast ssm_1_down of the graph in half precision"),
        ("fp16", rounding_that_leaks, "^Cast leak of the graph in half precision$"),
        ("fp16", half_weight_changed, r"^blocks\.1\.in_proj: weights that are not those in float32, rounded$"),
        ("int8", left_weight_changed, r"^fusions\.0\.mix: weights that are not those in float32, rounded$"),
        (
            "int8-cpu",
            shift_the_zero_point,
            r"^blocks\.1\.in_proj: the zero point 1\d\d, but the manifest's .* it 1\d\d$",
        ),
        ("int8", unsigned_activations, r"^blocks\.1\.in_proj: activations in uint8, not int8$"),
        ("int8", weights_in_fewer_bits, r"^blocks\.1\.in_proj: weights in steps 3\.00 times as wide as 8 bits have$"),
        (
            "int8-cpu",
            weights_in_fewer_bits,
            r"^blocks\.1\.in_proj: weights in steps 3\.00 times as wide as 8 bits have$",
        ),
        ("fp16", product_in_float32, r"blocks\.1\.in_proj not in half precision"),
        ("int8", double_both_scales, r"blocks\.1\.in_proj: a step of 0\.0\d+, but the manifest's range makes it 0\.0"),
        ("int8-cpu", double_both_scales, r"blocks\.1\.in_proj: a step of 0\.0\d+, but the manifest's range makes it"),
        (
            "int8",
            double_the_dequantizer_s_scale,
            r"block3\.int8\.onnx: DequantizeLinear \S+: has the scale 0\.0\d+, but QuantizeLinear \S+ has 0\.0\d+; "
            "wanted one for both",
        ),
        ("int8", change_a_weight, r"blocks\.1\.in_proj: weights [23]\.\d\d steps from those in float32, not half a st"),
        ("int8-cpu", change_a_weight, r"blocks\.1\.in_proj: weights [23]\.\d\d steps from those in float32, not half"),
        ("int8", cut_the_weight, r"has scales|blocks\.1\.in_proj: weights of shape \(4, 32\), not \(8, 32\)"),
        ("int8", double_a_weight_s_scale, r"blocks\.1\.in_proj: weights \d+\.\d\d steps from those in float32"),
        ("int8", weight_beside_its_zero, "has the zero point .* on a weight, wanted 0"),
    ],
    ids=lambda value: getattr(value, "__name__", "" if " " in str(value) or "\\" in str(value) else str(value)),
)
def test_what_is_rounded_otherwise_is_named(
    precision: str, change: Change, found: str, reseal: Reseal, check: Checked
) -> None:
    failed = check(reseal(precision, change), precision)
    assert not failed.passed
    assert re.search(found, failed.found), failed.found


def test_a_product_in_8_bits_that_is_not_planned_is_named(
    quantized: Bundle, reseal: Reseal, check: Checked, tiny_enhancer: WaveformEnhancer, tmp_path: Path
) -> None:
    """`split.product` is left in float32 by the plan."""
    plan = plan_of(quantized, "int8-cpu")
    ranges = {**plan.ranges, "split.product": plan.ranges[CHANGED]}
    path = tmp_path / "more.onnx"
    quantize_graph(tiny_enhancer, quantized.path / quantized.graph(block=BLOCK).file, path, ranges, Precision.INT8_CPU)

    def change(model: onnx.ModelProto) -> None:
        metadata = list(model.metadata_props)
        model.CopyFrom(onnx.load(path))
        del model.metadata_props[:]
        model.metadata_props.extend(metadata)

    assert check(reseal("int8-cpu", change), "int8-cpu").found == "split.product in INT8"


def test_8_bits_in_a_graph_that_claims_float32_are_named(
    quantized: Bundle, reseal: Reseal, check: Checked, tiny_enhancer: WaveformEnhancer, tmp_path: Path
) -> None:
    ranges = {CHANGED: plan_of(quantized, "int8").ranges[CHANGED]}
    quantize_graph(
        tiny_enhancer, quantized.path / quantized.graph(block=BLOCK).file, tmp_path / "q.onnx", ranges, Precision.INT8
    )
    bundle = reseal("fp32", lambda model: model.CopyFrom(onnx.load(tmp_path / "q.onnx")))
    assert check(bundle, "fp32").found == f"{CHANGED} in INT8"


def without(ranges: Any, name: str) -> dict[str, Any]:
    return {product: found for product, found in ranges.items() if product != name}


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_what_the_plan_lacks_or_has_besides_is_named(
    precision: str, quantized: Bundle, reseal: Reseal, check: Checked
) -> None:
    ranges = dict(plan_of(quantized, precision).ranges)
    less = planned(quantized, precision, ranges=without(ranges, CHANGED))
    assert check(reseal(precision, None, less), precision).found == f"{CHANGED} in INT8"
    more = planned(quantized, precision, ranges={**ranges, "fusions.0.mix": ranges[CHANGED]})
    bundle = Bundle(quantized.path, {**quantized.manifest, **more}, quantized.graphs)
    assert check(bundle, precision).found == "fusions.0.mix not in INT8"


def test_half_precision_that_the_plan_lacks_or_has_besides_is_named(quantized: Bundle, check: Checked) -> None:
    half = plan_of(quantized, "fp16").half

    def found(*products: str) -> str:
        manifest = {**quantized.manifest, **planned(quantized, "fp16", half=products)}
        return check(Bundle(quantized.path, manifest, quantized.graphs), "fp16").found

    assert found(*half[1:]) == f"{half[0]} in half precision"
    assert found(*half, "blocks.2.in_proj") == "blocks.2.in_proj not in half precision"


def test_a_manifest_without_precisions_is_no_plan(quantized: Bundle, check: Checked) -> None:
    manifest = {key: value for key, value in quantized.manifest.items() if key != "precisions"}
    bundle = Bundle(quantized.path, manifest, quantized.graphs)
    for precision in ("fp16", "int8", "int8-cpu"):
        failed = check(bundle, precision)
        assert not failed.passed
        assert re.search(rf"does not say how its {precision} graphs were made .*; export it again", failed.found)
    assert check(bundle, "fp32").passed


def test_a_file_that_is_no_graph_fails_the_check(reseal: Reseal, check: Checked) -> None:
    bundle = reseal("fp16")
    (bundle.path / bundle.graph(block=BLOCK, precision="fp16").file).write_bytes(b"no graph")
    failed = check(bundle, "fp16")
    assert not failed.passed
    assert "cannot be read as ONNX" in failed.found


def test_weights_in_8_bits_are_compared_with_the_float32_graph_s(quantized: Bundle, check: Checked) -> None:
    """Without it nothing can be said."""
    graphs = tuple(graph for graph in quantized.graphs if graph.precision == "int8")
    failed = check(Bundle(quantized.path, quantized.manifest, graphs), "int8")
    assert not failed.passed
    assert "fp32" in failed.found


def test_nodes_are_known_by_the_modules_that_they_came_from(quantized: Bundle, tiny_enhancer: WaveformEnhancer) -> None:
    """In every graph: the products of the network, and neither the DFT nor the scan."""
    every = set(plan_of(quantized, "fp16").half)
    for graph in quantized.graphs:
        anatomy = read_anatomy(quantized.path / graph.file)
        found = product_nodes(anatomy, tiny_enhancer)
        assert set(found.values()) == every
        assert len(found) == len(every) < sum(node.operator == "MatMul" for node in anatomy.nodes)


# The whole proof


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return read_recordings(None)


@pytest.fixture
def proven(recordings: list[Recording], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verification]:
    monkeypatch.setattr("edgese.verify.reference.VERIFICATION_HOPS", 300)

    def proof(bundle: Bundle, *precisions: str) -> Verification:
        return prove(bundle, precisions=precisions, recordings=recordings, minutes=0)

    return proof


def failed_checks(verification: Verification) -> dict[str, str]:
    checks = [*verification.checks, *(check for proof in verification.proofs for check in proof.checks)]
    return {check.name.partition(" of ")[0]: check.found for check in checks if not check.passed}


def test_the_quantized_graphs_prove_themselves(quantized: Bundle, proven: Callable[..., Verification]) -> None:
    tried = ("fp16", "int8")  # int8-cpu: below
    verification = proven(quantized, *tried)
    assert verification.failures == ()
    assert verification.passed
    assert [proof.graph for proof in verification.proofs] == [g for g in quantized.graphs if g.precision in tried]
    assert [check.name for check in verification.checks] == [
        *(f"random blocks of {name} in onnxruntime" for name in tried),
        *(f"half precision of {name} in PyTorch" for name in tried),
    ]


def test_what_float16_cannot_hold_is_found_though_the_cpu_s_runtimes_do_not_round(
    reseal: Reseal, proven: Callable[..., Verification], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime drops the casts around float16 products; PyTorch does not."""
    usual = Linear.forward

    def loud(self: Linear, x: Tensor) -> Tensor:
        return usual(self, 1e6 * x) / 1e6 if self.in_half else usual(self, x)

    monkeypatch.setattr(Linear, "forward", loud)
    failed = failed_checks(proven(reseal("fp16"), "fp16"))
    assert list(failed) == ["half precision"]
    assert failed["half precision"].startswith("SNR nan dB over ")


def test_only_the_precisions_that_are_asked_for_are_tried(reseal: Reseal, proven: Callable[..., Verification]) -> None:
    bundle = reseal("fp16")
    verification = proven(bundle, "fp16")
    assert [proof.graph.precision for proof in verification.proofs] == ["fp16"]
    assert verification.passed
    with pytest.raises(VerificationError, match=r"no graph in int8, fp8; this bundle has fp32, fp16$"):
        proven(bundle, "int8", "fp16", "fp8")


@pytest.mark.parametrize(
    ("precision", "change", "found"),
    [
        ("fp16", exp_in_half, r"; Exp \S+ of enhancer\.network\.blocks\.0 in half precision; "),
        ("fp16", state_in_half, "^Cast ssm_1_down of the graph in half precision; Cast ssm_1_up of the graph in half"),
        ("int8-cpu", double_both_scales, r"^blocks\.1\.in_proj: a step of .*range makes it 0\.\d+$"),
    ],
)
def test_a_bundle_that_only_its_structure_gives_away_is_not_proven(
    precision: str, change: Change, found: str, reseal: Reseal, proven: Callable[..., Verification]
) -> None:
    """Everything that can be heard or measured in its sound stays inside the limits."""
    verification = proven(reseal(precision, change), precision)
    assert not verification.passed
    checks = failed_checks(verification)
    assert re.search(found, checks.pop("precision")), checks
    assert checks == {}


def test_a_bundle_that_does_not_say_what_is_rounded_is_not_proven(
    quantized: Bundle, reseal: Reseal, proven: Callable[..., Verification]
) -> None:
    checks = failed_checks(proven(reseal("int8", None, {"precisions": {}, "calibration": None}), "int8"))
    # nor does the graph carry the digest that such a manifest would want: none, which is not looked at
    for check in ("precision", "half precision"):
        assert re.search("does not say how its int8 graphs were made", checks.pop(check))
    assert checks == {}


def test_a_graph_of_another_calibration_does_not_run(
    quantized: Bundle, reseal: Reseal, proven: Callable[..., Verification]
) -> None:
    checks = failed_checks(proven(reseal("int8", None, planned(quantized, "int8", calibration="0" * 64)), "int8"))
    assert checks.keys() == {"runs", "random blocks"}
    assert all(re.search(r"edgese\.calibration.*0000", found) for found in checks.values()), checks


# Where it parts


@pytest.fixture
def search(speech_like: Callable[..., Wave]) -> Callable[[Bundle, str], Divergence]:
    def searched(bundle: Bundle, precision: str) -> Divergence:
        graph = bundle.graph(block=BLOCK, precision=precision)
        return first_divergence(bundle, graph, "onnxruntime", speech_like(N_HOPS * HOP, seed=2))

    return searched


def scale_the_weight(model: onnx.ModelProto) -> None:
    name = node_of(model, CHANGED).input[1]
    weight = held(model, name)
    put(model, name, (weight * 1.05).astype(weight.dtype))


def test_a_weight_in_half_precision_is_found_with_its_layer(
    reseal: Reseal, search: Callable[[Bundle, str], Divergence]
) -> None:
    found = search(reseal("fp16", scale_the_weight), "fp16")
    assert (found.module, found.operator) == (f"network.{CHANGED}", "MatMul")
    assert re.search(r"weight \S+ differs from the bundle's in 256 of 256 values: up to \S+, 0\.05 of the", found.why)


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_a_weight_in_8_bits_is_found_with_its_layer(
    precision: str, reseal: Reseal, search: Callable[[Bundle, str], Divergence]
) -> None:
    """Though it is a DequantizeLinear that reads it."""
    found = search(reseal(precision, halve_weights), precision)
    assert (found.module, found.operator) == (f"network.{CHANGED}", "MatMul")
    assert re.search(r"weight \S+_quantized differs from the bundle's in \d+ of 256 values: up to 6\d, ", found.why)


@pytest.mark.parametrize("precision", ["int8", "int8-cpu"])
def test_a_scale_is_found_with_its_layer(
    precision: str, reseal: Reseal, search: Callable[[Bundle, str], Divergence]
) -> None:
    found = search(reseal(precision, double_both_scales), precision)
    assert (found.module, found.operator) == (f"network.{CHANGED}", "DequantizeLinear")
    assert re.search(r"weight \S+_scale differs from the bundle's in 1 of 1 values: up to \S+, 1 of the", found.why)


def halve_weights(model: onnx.ModelProto) -> None:
    name = weight_of(model)
    put(model, name, held(model, name) // 2)


def test_half_precision_where_none_should_be_is_found(
    reseal: Reseal, search: Callable[[Bundle, str], Divergence]
) -> None:
    """ONNX Runtime drops such Casts on CPUs and computes in float32: no number differs, and the structure is told."""
    with pytest.raises(VerificationError, match=r"no tensor differs: .* found Cast \S+_up\(\S+_out\), wanted Exp \S+"):
        search(reseal("fp16", exp_in_half), "fp16")


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-cpu"])
def test_a_quantized_graph_that_was_not_changed_differs_nowhere(
    precision: str, quantized: Bundle, search: Callable[[Bundle, str], Divergence]
) -> None:
    message = rf"block3\.{precision}\.onnx in onnxruntime: no tensor differs: 3\d\d compared"
    with pytest.raises(VerificationError, match=message):
        search(quantized, precision)
