"""A bundle proves itself; and whatever was changed in one of its graphs, some check finds."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper

from edgese.audio import Wave
from edgese.errors import AudioError, VerificationError
from edgese.graphs.audio_facts import audio_facts
from edgese.metrics.pairs import Recording, read_recordings
from edgese.verify.findings import Listener, Proof, Verification
from edgese.verify.limits import LIMITS
from edgese.verify.prove import prove
from export import ExportError
from export.bundle import Bundle, Graph, seal_bundle
from runtimes.base import RuntimeUnavailable

from ..helpers.tiny_bundle import HOP, ONE_NETWORK, Change, scale_weight

BLOCK = 3
Reseal = Callable[..., Bundle]


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return read_recordings(None)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that shows in 24 s shows in 6."""
    monkeypatch.setattr("edgese.verify.reference.VERIFICATION_HOPS", 750)


@pytest.fixture
def reseal(bundle: Bundle, tmp_path: Path) -> Reseal:
    """`reseal(change, manifest={...})`: the bundle with one graph, changed and sealed again as if it were right."""

    def sealed(change: Change | None = None, manifest: dict[str, Any] | None = None, **fields: Any) -> Bundle:
        folder = tmp_path / "changed"
        shutil.copytree(bundle.path, folder)
        graph = bundle.graph(block=BLOCK)
        model = onnx.load(folder / graph.file)
        if change is not None:
            change(model)
        onnx.save(model, folder / graph.file)
        written = {**bundle.manifest, **(manifest or {}), "graphs": [dataclasses.replace(graph, **fields)]}
        seal_bundle(folder, written)
        return Bundle.open(folder)

    return sealed


def failed(verification: Verification) -> set[str]:
    """Names of the checks that do not hold."""
    checks = [*verification.checks, *(check for proof in verification.proofs for check in proof.checks)]
    return {check.name for check in checks if not check.passed}


def proven(bundle: Bundle, recordings: list[Recording]) -> Verification:
    return prove(bundle, recordings=recordings, minutes=0)


# What passes


@pytest.mark.both_networks
def test_every_graph_of_an_export_proves_itself(bundle: Bundle, recordings: list[Recording]) -> None:
    told: list[tuple[int, int, str]] = []
    verification = prove(bundle, recordings=recordings, minutes=0, on_progress=lambda *step: told.append(step))
    assert verification.failures == ()
    assert verification.passed
    assert [proof.graph for proof in verification.proofs] == list(bundle.graphs)
    assert [proof.runtime for proof in verification.proofs] == ["onnxruntime"] * len(bundle.graphs)
    assert [check.name for check in verification.checks] == ["random blocks of fp32 in onnxruntime"]
    assert [done for done, _, _ in told] == list(range(len(bundle.graphs) + 1))
    for proof in verification.proofs:
        assert len({check.name for check in proof.checks}) == len(proof.checks) == 14
        assert all(check.found and check.wanted for check in proof.checks)
        streamed = proof.streamed
        assert streamed is not None
        assert streamed.n_hops >= 3000
        assert len(streamed.call_s) == streamed.n_hops // proof.graph.block
        assert len(streamed.difference_dbfs) == streamed.n_hops * HOP // 16_000
        assert {error.tensor for error in streamed.tensors} == {"enhanced", *proof.graph.states}
        assert {error.tensor for error in streamed.tensors_float64} == {"enhanced", *proof.graph.states}
        assert 100 < streamed.wave.snr_db < 200
        assert 100 < streamed.wave_float64.snr_db < 200
        assert streamed.pytorch_float64.snr_db > 100
        assert [listener.file for listener in proof.listeners] == ["noisy"]
        assert proof.excerpt is not None
        np.testing.assert_allclose(proof.excerpt, verification.pytorch[""], rtol=0, atol=1e-5)


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_the_verdict_is_plain_json_with_its_provenance(reseal: Reseal, recordings: list[Recording]) -> None:
    verification = proven(reseal(), recordings)
    entry = json.loads(json.dumps(verification.entry(), allow_nan=False))
    assert entry["passed"] is True
    (graph,) = entry["graphs"]
    assert graph["passed"] is True
    assert len(graph["checks"]) == 14
    assert entry["limits"]["fp32"]["snr_db"] == 100.0
    assert entry["provenance"]["recordings"] == {"noisy": recordings[0].sha256}
    assert {"torch", "onnxruntime", "pesq"} <= entry["provenance"]["verified_with"].keys()
    assert "model.safetensors" in entry["provenance"]["files"]


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_pytorch_runs_a_graph_s_own_form_by_the_same_contract(reseal: Reseal, recordings: list[Recording]) -> None:
    verification = prove(reseal(), runtimes=["pytorch"], recordings=recordings, minutes=0)
    assert verification.failures == ()
    assert [proof.runtime for proof in verification.proofs] == ["pytorch"]


# What must fail


def perturb_a_weight(model: onnx.ModelProto) -> None:
    tensors = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and math.prod(t.dims) >= 64]
    scale_weight(model, tensors[len(tensors) // 2].name, 1.001)


def swap_two_states(model: onnx.ModelProto) -> None:
    outputs = {output.name: output for output in model.graph.output}
    outputs["conv_0_next"].name, outputs["conv_1_next"].name = "conv_1_next", "conv_0_next"
    swapped = {"conv_0_next": "conv_1_next", "conv_1_next": "conv_0_next"}
    for node in model.graph.node:
        node.output[:] = [swapped.get(name, name) for name in node.output]
        node.input[:] = [swapped.get(name, name) for name in node.input]


def drop_an_output(model: onnx.ModelProto) -> None:
    (dropped,) = (output for output in model.graph.output if output.name == "ssm_1_next")
    model.graph.output.remove(dropped)


def rename_input(model: onnx.ModelProto, name: str, nodes: list[onnx.NodeProto], tensors: dict[str, Any]) -> None:
    """What read the input `name` reads `name`_changed, which these nodes make."""
    for node in model.graph.node:
        node.input[:] = [f"{name}_changed" if entry == name else entry for entry in node.input]
    for at, node in enumerate(nodes):
        model.graph.node.insert(at, node)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), key) for key, value in tensors.items())


def look_ahead(model: onnx.ModelProto) -> None:
    """Every hop but a block's last hears a little of the next."""
    nodes = [
        helper.make_node("Slice", ["wave", "la_start", "la_end", "la_axis"], ["la_next"]),
        helper.make_node("Pad", ["la_next", "la_pads"], ["la_padded"]),
        helper.make_node("Mul", ["la_padded", "la_gain"], ["la_quiet"]),
        helper.make_node("Add", ["wave", "la_quiet"], ["wave_changed"]),
    ]
    size = BLOCK * HOP
    numbers = {"la_start": [HOP], "la_end": [size], "la_axis": [1], "la_pads": [0, 0, 0, HOP]}
    rename_input(
        *(model, "wave", nodes),
        {name: np.array(value, np.int64) for name, value in numbers.items()} | {"la_gain": np.float32(0.01)},
    )


def mix_streams(model: onnx.ModelProto) -> None:
    """Each stream hears the mean of all, which is itself where there is only one."""
    rename_input(model, "wave", [helper.make_node("ReduceMean", ["wave", "axes"], ["mean"], keepdims=1)], {})
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "axes"))
    model.graph.node.insert(1, helper.make_node("Shape", ["wave"], ["wave_shape"]))
    model.graph.node.insert(2, helper.make_node("Expand", ["mean", "wave_shape"], ["wave_changed"]))


def half_precision_recurrence(model: onnx.ModelProto) -> None:
    """The states of the scans are kept in FP16."""
    for layer in (0, 1):
        state = f"ssm_{layer}"
        nodes = [
            helper.make_node("Cast", [state], [f"{state}_half"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", [f"{state}_half"], [f"{state}_changed"], to=TensorProto.FLOAT),
        ]
        rename_input(model, state, nodes, {})


def metadata_of_another_model(model: onnx.ModelProto) -> None:
    (entry,) = (entry for entry in model.metadata_props if entry.key == "edgese.weights")
    entry.value = "0" * 64


def not_a_number(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Mul", ["ssm_0", "nan"], ["ssm_0_changed"])]
    rename_input(model, "ssm_0", nodes, {"nan": np.float32(np.nan)})


def silence(model: onnx.ModelProto) -> None:
    rename_input(model, "wave", [helper.make_node("Mul", ["wave", "gain"], ["wave_changed"])], {"gain": np.float32(0)})


def truncated(model: onnx.ModelProto) -> None:
    del model.graph.node[10:]


@ONE_NETWORK
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("change", "found_by"),
    [
        (
            perturb_a_weight,
            {"agrees with PyTorch", "agrees with float64", "drift", "random blocks", "reference vectors"},
        ),
        (
            swap_two_states,
            {"agrees with PyTorch", "agrees with float64", "drift", "random blocks", "reference vectors"},
        ),
        (drop_an_output, {"runs", "random blocks"}),
        (look_ahead, {"agrees with PyTorch", "causality"}),
        (mix_streams, {"3 streams at once"}),
        (half_precision_recurrence, {"drift"}),
        (metadata_of_another_model, {"runs", "random blocks"}),
        (not_a_number, {"agrees with PyTorch", "NaN and Inf", "PESQ-WB against clean", "STOI against clean"}),
        (silence, {"agrees with PyTorch", "silence and full scale", "3 streams at once", "causality"}),
        (truncated, {"runs", "random blocks"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_was_changed_is_found(
    change: Change, found_by: set[str], reseal: Reseal, recordings: list[Recording]
) -> None:
    verification = proven(reseal(change), recordings)
    assert not verification.passed
    assert verification.failures
    found = {name.partition(" of ")[0] for name in failed(verification)}
    assert found >= found_by
    json.dumps(verification.entry(), allow_nan=False)


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_streams_that_mix_are_found_by_nothing_else(reseal: Reseal, recordings: list[Recording]) -> None:
    """A control: the trials do not fail all together."""
    assert failed(proven(reseal(mix_streams), recordings)) == {"3 streams at once"}


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_a_delay_that_the_manifest_does_not_know_is_found(
    reseal: Reseal, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its facts agree with each other in any manifest that is opened: here they are made to lie together."""
    monkeypatch.setattr(
        "edgese.verify.prove.audio_facts", lambda bundle: dataclasses.replace(audio_facts(bundle), overlap_samples=128)
    )
    assert failed(proven(reseal(manifest={}), recordings)) == {"delay"}


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_reference_vectors_of_another_network_are_found(
    reseal: Reseal, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = recordings[0].noisy[: 12 * BLOCK * HOP]
    monkeypatch.setattr("edgese.verify.prove._reference_vectors", lambda bundle, variant: (wave, 0.5 * wave))
    assert failed(proven(reseal(), recordings)) == {"reference vectors"}


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_a_precision_without_limits_fails(reseal: Reseal, recordings: list[Recording]) -> None:
    verification = proven(reseal(precision="fp8"), recordings)
    assert failed(verification) == {"precision"}
    assert not verification.passed


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_pytorch_has_no_int8_to_offer(reseal: Reseal, recordings: list[Recording]) -> None:
    def as_int8(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "edgese.precision":
                entry.value = "int8"

    bundle = reseal(as_int8, precision="int8")
    with pytest.raises(ExportError, match="found int8, which PyTorch does not run; choose another runtime"):
        prove(bundle, runtimes=["pytorch"], recordings=recordings, minutes=0)


@ONE_NETWORK
@pytest.mark.usefixtures("short")
def test_a_file_that_is_gone_or_changed_is_refused_before_anything_runs(reseal: Reseal) -> None:
    bundle = reseal()
    (bundle.path / bundle.graphs[0].file).unlink()
    with pytest.raises(ExportError, match="cannot be read"):
        Bundle.open(bundle.path)


def test_nothing_proven_is_not_passed(identity_bundle: Path) -> None:
    bundle = Bundle.open(identity_bundle)
    graph: Graph = bundle.graphs[0]
    nothing = Verification(bundle, 10.0, (), (), (), {}, {})
    assert not nothing.passed
    assert not Proof(graph, "onnxruntime", ()).passed


# What is asked wrongly


def test_a_runtime_that_is_not_there_is_told_at_once(bundle: Bundle, recordings: list[Recording]) -> None:
    with pytest.raises(RuntimeUnavailable, match="runtime nope: unknown; known here: "):
        prove(bundle, runtimes=["nope"], recordings=recordings)


def test_nothing_to_verify_with_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(VerificationError, match="found no recordings or no runtimes"):
        prove(bundle, recordings=[])


def test_recordings_are_spread_evenly_over_a_folder(tmp_path: Path, speech_like: Callable[..., Wave]) -> None:
    for kind in ("clean", "noisy"):
        (tmp_path / kind).mkdir()
        for name in "abcdef":
            soundfile.write(tmp_path / kind / f"{name}.wav", speech_like(8_000), 16_000)
    assert [recording.name for recording in read_recordings(tmp_path, 100)] == list("abcdef")
    assert [recording.name for recording in read_recordings(tmp_path, 4)] == ["a", "b", "d", "e"]
    soundfile.write(tmp_path / "noisy" / "a.wav", speech_like(7_999), 16_000)
    with pytest.raises(VerificationError, match="a: found 7999 noisy and 8000 clean samples, wanted as many"):
        read_recordings(tmp_path)


def test_a_folder_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such folder"):
        read_recordings(tmp_path)


def test_the_limits_hold_what_the_design_asks() -> None:
    assert {name: limits.pesq_loss for name, limits in LIMITS.items()} == {
        "fp32": 0.002,
        "fp16": 0.01,
        "int8": 0.05,
        "int8-cpu": 0.05,
    }


def test_a_listener_s_loss_counts_in_the_mean() -> None:
    from edgese.verify.prove import _score_checks

    lost = [Listener("a", 2.0, 1.998, 0.9, 0.9), Listener("b", 2.0, 1.997, 0.9, 0.9)]
    quality, clearness = _score_checks(lost, LIMITS["fp32"])
    assert not quality.passed
    assert clearness.passed
