"""A bundle from weights: what its graphs take and give, that any split of any block is PyTorch's truth, what fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from calib.batches import read_batches
from edgese import export_bundle as artefact
from edgese.audio import Wave
from edgese.config import TrainConfig, to_dict
from edgese.enhance.files import denoiser_factory
from edgese.enhance.jobs import EnhanceOptions
from edgese.errors import AudioError, CheckpointError, ConfigError, EdgeseError, VerificationError
from edgese.export_bundle import export_bundle, require_passed
from edgese.graphs import write as graphs
from edgese.model.checkpoint import load_enhancer, save_checkpoint, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.samples import NOISY
from export import ExportError
from export.bundle import Bundle, Graph
from export.weights import SHARED_FROM_BYTES
from runtimes.base import Runtime
from runtimes.registry import open_runtime

from .helpers.tiny_bundle import BLOCKS, HOP, NAME, rewriting, scale_weight

STREAMING = 1e-5  # ONNX Runtime in any split against PyTorch in one call; measured 3e-7
N_SAMPLES = 48 * HOP  # whole blocks of every size


class Buffered:
    """A graph that takes any number of samples: what does not fill a block waits for the next call."""

    def __init__(self, runtime: Runtime, graph: Graph) -> None:
        self.stream = runtime.stream(graph.states, streams=1)
        self.size = graph.block * HOP
        self.waiting = np.zeros((1, 0), np.float32)

    def push(self, samples: Wave) -> Wave:
        waiting = np.concatenate([self.waiting, samples], axis=1)
        whole = waiting.shape[1] // self.size * self.size
        self.waiting = waiting[:, whole:]
        blocks = [np.ascontiguousarray(waiting[:, start : start + self.size]) for start in range(0, whole, self.size)]
        return np.concatenate([waiting[:, :0], *(self.stream({"wave": block})["enhanced"] for block in blocks)], axis=1)


@pytest.fixture
def quick_export(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle's weights; PyTorch's part of their export is the bundle's graphs once more, and the proof is short."""
    monkeypatch.setattr(graphs, "write_onnx", rewriting(bundle))
    monkeypatch.setattr(artefact, "VERIFICATION_HOPS", 192)
    return bundle.path.with_name("tiny.safetensors")


@pytest.fixture
def wave(speech_like) -> Wave:
    room = 1e-3 * np.random.default_rng(0).standard_normal(N_SAMPLES, np.float32)  # never silent
    return (speech_like(N_SAMPLES, seed=2) + room)[None]


@torch.no_grad()
def in_one_call(enhancer: WaveformEnhancer, wave: Wave) -> Wave:
    """(B, n_samples) in PyTorch from zero states, 384 samples behind."""
    return enhancer(torch.from_numpy(wave), enhancer.initial_state(len(wave)))[0].numpy()


def opened(bundle: Bundle, graph: Graph) -> Runtime:
    return open_runtime("onnxruntime", bundle.path / graph.file)


def read_graph(bundle: Bundle, graph: Graph) -> onnx.GraphProto:
    return onnx.load(bundle.path / graph.file, load_external_data=False).graph


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def raising(error: BaseException) -> Callable[..., None]:
    def breaks(*_: object, **__: object) -> None:
        raise error

    return breaks


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The contract of the graphs


@pytest.mark.both_networks
def test_every_graph_has_the_names_and_shapes_of_the_contract(tiny_enhancer: WaveformEnhancer, bundle: Bundle) -> None:
    config = tiny_enhancer.network.config
    assert [graph.block for graph in bundle.graphs] == list(BLOCKS[config.decay_heads])
    for graph in bundle.graphs:
        wave = ("streams", graph.block * HOP)
        states: dict[str, tuple[Any, ...]] = {"analysis": ("streams", 384), "synthesis": ("streams", 384)}
        for layer in range(2):
            states[f"conv_{layer}"] = ("streams", 30, 3, config.inner)
            states[f"ssm_{layer}"] = ("streams", 30, 4, config.inner)
        inputs = [("wave", wave, "float32"), *((name, shape, "float32") for name, shape in states.items())]
        successors = ((f"{name}_next", shape, "float32") for name, shape in states.items())
        outputs = [("enhanced", wave, "float32"), *successors]
        with opened(bundle, graph) as runtime:
            for holder in (graph, runtime):
                assert [dataclasses.astuple(spec) for spec in holder.inputs] == inputs
                assert [dataclasses.astuple(spec) for spec in holder.outputs] == outputs
        assert graph.states == {name: f"{name}_next" for name in states}


@pytest.mark.both_networks
def test_graphs_are_plain_onnx_of_opset_20_without_control_flow(bundle: Bundle) -> None:
    for graph in bundle.graphs:
        model = onnx.load(bundle.path / graph.file, load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        used = Counter(node.op_type for node in model.graph.node)
        assert used["MatMul"] > 10
        assert not {"Loop", "If", "Scan", "Softplus", "DFT", "STFT"} & used.keys()
        assert not [node.name for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]


@pytest.mark.both_networks
def test_the_number_of_nodes_is_linear_in_the_block(tiny_enhancer: WaveformEnhancer, bundle: Bundle) -> None:
    """A further frame costs each of the two layers seven nodes, and none where a head has one decay."""
    n_nodes = {graph.block: len(read_graph(bundle, graph).node) for graph in bundle.graphs}
    per_frame = 0 if tiny_enhancer.network.config.decay_heads else 2 * 7
    assert n_nodes[1] < 300
    for block, count in n_nodes.items():
        assert 0 <= count - n_nodes[1] - per_frame * (block - 1) <= 60


def test_graphs_carry_the_metadata_that_runtimes_ask_for(bundle: Bundle) -> None:
    for graph in bundle.graphs:
        expected = {
            "edgese.bundle": NAME,
            "edgese.weights": sha256(bundle.path / "model.safetensors"),
            "edgese.precision": "fp32",
            "edgese.block": str(graph.block),
        }
        with open_runtime("onnxruntime", bundle.path / graph.file, metadata=expected) as runtime:
            assert runtime.metadata == expected


# The same samples


@pytest.mark.both_networks
@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000, N_SAMPLES])
def test_every_block_in_any_split_gives_pytorch_s_samples(
    size: int, tiny_enhancer: WaveformEnhancer, bundle: Bundle, wave: Wave
) -> None:
    expected = in_one_call(tiny_enhancer, wave)
    for graph in bundle.graphs:
        with opened(bundle, graph) as runtime:
            stream = Buffered(runtime, graph)
            pieces = [stream.push(wave[:, start : start + size]) for start in range(0, N_SAMPLES, size)]
        enhanced = np.concatenate(pieces, axis=1)
        assert enhanced.shape == expected.shape
        assert np.abs(enhanced - expected).max() <= STREAMING, graph.file


@pytest.mark.both_networks
def test_a_state_that_is_not_carried_would_be_noticed(
    tiny_enhancer: WaveformEnhancer, bundle: Bundle, wave: Wave
) -> None:
    """The control: each state, set to zero on the way, moves the samples by far more than the tolerance."""
    expected = in_one_call(tiny_enhancer, wave)
    graph = bundle.graphs[-1]
    size = graph.block * HOP
    middle = N_SAMPLES * 2 // 3 // size * size  # amid a syllable
    with opened(bundle, graph) as runtime:
        for name in graph.states:
            stream = Buffered(runtime, graph)
            stream.push(wave[:, :middle])
            states = stream.stream.states
            stream.stream.load(states | {name: np.zeros_like(states[name])})
            assert np.abs(stream.push(wave[:, middle:]) - expected[:, middle:]).max() > 10 * STREAMING, name


@pytest.mark.both_networks
def test_streams_run_together_give_what_each_gives_alone(bundle: Bundle, speech_like) -> None:
    waves = np.stack([speech_like(N_SAMPLES, seed=seed) for seed in (3, 4, 5)])
    for graph in bundle.graphs:
        size = graph.block * HOP
        with opened(bundle, graph) as runtime:
            together = runtime.stream(graph.states, streams=3)
            alone = [runtime.stream(graph.states, streams=1) for _ in waves]
            for start in range(0, N_SAMPLES, size):
                block = np.ascontiguousarray(waves[:, start : start + size])
                expected = [one({"wave": row[None]})["enhanced"] for one, row in zip(alone, block, strict=True)]
                found = together({"wave": block})["enhanced"]
                assert np.abs(found - np.concatenate(expected)).max() <= STREAMING


@pytest.mark.both_networks
def test_reference_vectors_come_out_of_every_graph(bundle: Bundle) -> None:
    reference = bundle.manifest["reference"]
    (batch,) = read_batches(bundle.path / reference["file"], reference["digest"]).batches
    assert batch["wave"].shape == batch["enhanced"].shape == (1, 96 * HOP)
    assert np.abs(batch["enhanced"]).max() > 0.01
    for graph in bundle.graphs:
        with opened(bundle, graph) as runtime:
            enhanced = Buffered(runtime, graph).push(batch["wave"])
        assert np.abs(enhanced - batch["enhanced"]).max() <= STREAMING


# The folder


def test_a_bundle_holds_its_graphs_their_weights_and_nothing_else(bundle: Bundle) -> None:
    graphs = [graph.file for graph in bundle.graphs]
    files = sorted([*graphs, "weights.fp32.bin", "model.safetensors", "reference.npz"])
    assert names(bundle.path) == sorted([*files, "manifest.json"])
    assert sorted(bundle.manifest["files"]) == files
    assert all(sha256(bundle.path / file) == digest for file, digest in bundle.manifest["files"].items())
    assert names(bundle.path.parent) == ["tiny.bundle", "tiny.safetensors"]


def test_all_files_of_a_bundle_may_be_read_by_whoever_may_read_its_manifest(bundle: Bundle) -> None:
    """A service that runs under another user opens the weights, too."""
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in bundle.path.iterdir()}
    assert modes == dict.fromkeys(modes, modes["manifest.json"])


@pytest.mark.both_networks
def test_the_manifest_says_what_the_network_is_and_how_it_was_proven(
    tiny_enhancer: WaveformEnhancer, bundle: Bundle
) -> None:
    manifest = bundle.manifest
    assert manifest["name"] == NAME
    assert manifest["model"] == to_dict(tiny_enhancer.network.config)
    assert manifest["audio"] == {"sample_rate_hz": 16_000, "n_fft": 512, "hop": 128, "n_bins": 257}
    assert manifest["latency"] == {"samples": 512, "ms": 32.0, "overlap_samples": 384}
    assert sum(manifest["parameters"].values()) == sum(p.numel() for p in tiny_enhancer.parameters())
    assert manifest["macs_per_frame"]["STFT and inverse"] == 2 * (4 * 129 * 129 + 16 * 129)
    assert {"edgese", "python", "torch", "onnx", "onnxruntime"} <= manifest["tools"].keys()
    verification = manifest["verification"]
    assert verification["passed"] is bundle.verified is True
    assert [result["graph"] for result in verification["results"]] == [graph.file for graph in bundle.graphs]
    for result in verification["results"]:
        assert result["n_hops"] > 2_900
        assert result["max_abs"] <= STREAMING
        assert result["snr_db"] >= 100
        assert result["state_relative"].keys() == set(bundle.graphs[0].states)


def initializers(bundle: Bundle) -> Iterator[tuple[onnx.TensorProto, NDArray[Any]]]:
    """Those of all graphs, as stored and as they read."""
    for graph in bundle.graphs:
        stored = read_graph(bundle, graph).initializer
        read = onnx.load(bundle.path / graph.file).graph.initializer
        yield from ((tensor, numpy_helper.to_array(value)) for tensor, value in zip(stored, read, strict=True))


@pytest.mark.both_networks
def test_all_graphs_share_one_copy_of_the_weights(tiny_enhancer: WaveformEnhancer, bundle: Bundle) -> None:
    places: dict[int, bytes] = {}
    n_references = 0
    for stored, value in initializers(bundle):
        content = value.tobytes()
        if len(content) < SHARED_FROM_BYTES:
            continue
        entry = {item.key: item.value for item in stored.external_data}
        assert (entry["location"], int(entry["length"])) == ("weights.fp32.bin", len(content))
        assert places.setdefault(int(entry["offset"]), content) == content
        n_references += 1
    assert len(set(places.values())) == len(places)
    assert n_references >= len(bundle.graphs) * len(places) - len(places)
    size = (bundle.path / "weights.fp32.bin").stat().st_size
    assert 0 <= size - sum(map(len, places.values())) < 64 * len(places)
    tables = 4 * 2 * 4 * 129 * 129  # folded DFT and its inverse
    parameters = 4 * sum(p.numel() for p in tiny_enhancer.parameters())
    assert tables + parameters <= size < tables + parameters + 128 * 1024  # narrow bands filled up, indices


@pytest.mark.both_networks
def test_the_weights_inside_are_those_that_were_exported(tiny_enhancer: WaveformEnhancer, bundle: Bundle) -> None:
    inside = load_enhancer(bundle.path / "model.safetensors").state_dict()
    expected = tiny_enhancer.state_dict()
    assert inside.keys() == expected.keys()
    assert all(torch.equal(inside[name], tensor) for name, tensor in expected.items())


@pytest.mark.both_networks
def test_a_bundle_s_own_weights_make_the_same_bundle(bundle: Bundle, quick_export: Path, tmp_path: Path) -> None:
    blocks = BLOCKS[bundle.manifest["model"]["decay_heads"]]
    export = export_bundle(bundle.path / "model.safetensors", tmp_path / "again", name=NAME, blocks=blocks[::-1])
    again = require_passed(export).manifest
    for key in ("model", "audio", "parameters", "macs_per_frame", "graphs", "tools"):
        assert again[key] == bundle.manifest[key]
    for file in ("model.safetensors", "weights.fp32.bin"):
        assert again["files"][file] == bundle.manifest["files"][file]


def test_a_training_checkpoint_is_exported_with_its_averaged_weights(
    tiny_enhancer: WaveformEnhancer, quick_export: Path, tmp_path: Path
) -> None:
    weights = tiny_enhancer.state_dict()
    config = TrainConfig(model=tiny_enhancer.network.config)
    save_checkpoint(tmp_path / "best.pt", {"config": to_dict(config), "model": {}, "ema": weights})
    export = export_bundle(tmp_path / "best.pt", tmp_path / "bundle", name=NAME, blocks=[1])
    assert sha256(require_passed(export).path / "model.safetensors") == sha256(quick_export)


def test_a_model_card_and_the_attribution_travel_with_the_bundle(quick_export: Path, tmp_path: Path) -> None:
    card, sources = tmp_path / "card.md", tmp_path / "sources.md"
    card.write_text("# Made of tones\n", encoding="utf-8")
    sources.write_text("# Tones by me\n", encoding="utf-8")
    export = export_bundle(
        quick_export, tmp_path / "bundle", name=NAME, blocks=[1], model_card=card, attribution=sources
    )
    bundle = require_passed(export)
    for name, given in {"MODEL_CARD.md": card, "ATTRIBUTION.md": sources}.items():
        assert (bundle.path / name).read_bytes() == given.read_bytes()
        assert bundle.manifest["files"][name] == sha256(given)


# What must fail


@pytest.mark.parametrize("blocks", [(), (0,), (-1, 4), (1, 33), (64,)])
def test_blocks_that_cannot_be_are_refused(blocks: tuple[int, ...], tmp_path: Path, quick_export: Path) -> None:
    with pytest.raises(ConfigError, match=r"--block: found .*, wanted numbers of hops from 1 to 32"):
        export_bundle(quick_export, tmp_path / "bundle", name=NAME, blocks=blocks)
    assert names(tmp_path) == []


def test_blocks_that_no_sound_is_a_multiple_of_are_refused_before_any_work(tmp_path: Path, quick_export: Path) -> None:
    """All graphs are compared with one truth, which ends where all of them end."""
    with pytest.raises(ConfigError, match=r"--block: found \[7, 9, 11, 13\].* 9009"):
        export_bundle(quick_export, tmp_path / "bundle", name=NAME, blocks=(7, 9, 11, 13))
    assert names(tmp_path) == []


@pytest.mark.parametrize("step", ["write_graph", "share_weights", "pytorch_truth", "verify_graph", "seal_bundle"])
@pytest.mark.parametrize("error", [ExportError("no"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_export_that_breaks_leaves_nothing(
    step: str, error: BaseException, quick_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artefact, step, raising(error))
    with pytest.raises(type(error)):
        export_bundle(quick_export, tmp_path / "bundle", name=NAME, blocks=[1])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"weights": Path("missing.safetensors")}, CheckpointError),
        ({"weights": NOISY}, CheckpointError),
        ({"sound": Path("missing.flac")}, AudioError),
        ({"sound": Path(__file__)}, AudioError),
        ({"model_card": Path("missing.md")}, (EdgeseError, ExportError)),
    ],
)
def test_what_cannot_be_read_is_named_and_leaves_nothing(
    changes: dict[str, Path], error: type[Exception], quick_export: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"weights": quick_export} | changes
    with pytest.raises(error, match=next(iter(changes.values())).name):
        export_bundle(**options, path=tmp_path / "bundle", name=NAME, blocks=[1])
    assert names(tmp_path) == []


def test_a_place_where_no_folder_can_be_made_is_refused(quick_export: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ExportError, match="file/bundle"):
        export_bundle(quick_export, tmp_path / "file" / "bundle", name=NAME, blocks=[1])
    assert names(tmp_path) == ["file"]


def test_an_existing_bundle_is_replaced_only_when_asked_to(quick_export: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    export_bundle(quick_export, path, name="first", blocks=[1])
    with pytest.raises(ExportError, match="exists already"):
        export_bundle(quick_export, path, name="second", blocks=[1])
    assert Bundle.open(path).manifest["name"] == "first"
    require_passed(export_bundle(quick_export, path, name="second", blocks=[1], replace=True))
    assert Bundle.open(path).manifest["name"] == "second"
    assert names(tmp_path) == ["bundle"]


def test_a_replacement_that_breaks_leaves_the_old_bundle_whole(
    quick_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    export_bundle(quick_export, path, name="first", blocks=[1])
    monkeypatch.setattr(artefact, "share_weights", raising(ExportError("no")))
    with pytest.raises(ExportError, match="no"):
        export_bundle(quick_export, path, name="second", blocks=[1], replace=True)
    assert Bundle.open(path).manifest["name"] == "first"
    assert names(tmp_path) == ["bundle"]


def test_graphs_that_disagree_are_not_published_and_refused(
    bundle: Bundle, quick_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph of two is off by half a per cent: the whole bundle fails, and the one that lay there stays."""
    good, bad = bundle.graphs[:2]
    path = tmp_path / "bundle"
    export_bundle(quick_export, path, name="first", blocks=[good.block])

    def change(model: onnx.ModelProto) -> None:
        if model.graph.input[0].type.tensor_type.shape.dim[1].dim_value == bad.block * HOP:
            largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
            scale_weight(model, largest.name, 1.005)

    monkeypatch.setattr(graphs, "write_onnx", rewriting(bundle, change))
    export = export_bundle(quick_export, path, name=NAME, blocks=[good.block, bad.block], replace=True)
    assert [result.passed for result in export.results] == [True, False]
    assert (export.path, export.bundle) == (tmp_path / "bundle.unverified", None)
    assert names(tmp_path) == ["bundle", "bundle.unverified"]
    with pytest.raises(VerificationError, match=rf"bundle\.unverified: does not.* {bad.file}: output: differs by"):
        require_passed(export)
    kept = Bundle.open(export.path)
    assert not kept.verified
    assert [result["passed"] for result in kept.manifest["verification"]["results"]] == [True, False]
    with pytest.raises(VerificationError, match="did not pass its verification"):
        denoiser_factory(export.path, EnhanceOptions())
    assert Bundle.open(path).manifest["name"] == "first"


def test_the_verdict_on_a_graph_of_nan_is_still_json(
    quick_export: Path, tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_weights(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                scale_weight(model, tensor.name, math.nan)

    monkeypatch.setattr(graphs, "write_onnx", rewriting(bundle, break_weights))
    export = export_bundle(quick_export, tmp_path / "bundle", name=NAME, blocks=[1])

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (export.path / "manifest.json").read_text(encoding="utf-8")
    (result,) = json.loads(text, parse_constant=refuse)["verification"]["results"]
    assert (result["max_abs"], result["snr_db"], result["passed"]) == ("nan", "nan", False)
    assert "output: NaN or Inf" in result["failures"]


def test_training_goes_on_in_its_own_form_after_an_export(tiny_enhancer: WaveformEnhancer) -> None:
    artefact.network_facts(tiny_enhancer)
    assert {block.scan_form for block in tiny_enhancer.network.blocks} == {"chunked"}
    assert tiny_enhancer.transform.form == "fft"


def test_weights_of_a_broken_network_are_refused(
    tiny_enhancer: WaveformEnhancer, quick_export: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        tiny_enhancer.network.norm.weight[0] = float("nan")
    save_weights(tmp_path / "broken.safetensors", tiny_enhancer, tiny_enhancer.state_dict())
    with pytest.raises(VerificationError, match=r"its output: found .*all of it finite"):
        export_bundle(tmp_path / "broken.safetensors", tmp_path / "bundle", name=NAME, blocks=[1])
    assert names(tmp_path) == ["broken.safetensors"]
