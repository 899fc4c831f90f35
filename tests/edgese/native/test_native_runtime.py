"""`--runtime native`: a bundle's graphs in the C library, proven as in any other runtime."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgese.audio import Wave
from edgese.graphs.opening import open_graph
from edgese.graphs.streaming import run
from edgese.graphs.write import graph_of
from edgese.model.checkpoint import save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.native import build
from edgese.native.artefact import native_artefact, write_weights
from edgese.verify.agreement import judge
from edgese.verify.truth import Truth, pytorch_truth
from export.bundle import WEIGHTS, Bundle, sha256_of
from runtimes.base import ArtefactError, FeedError
from runtimes.native import NativeRuntime, load_library
from runtimes.registry import open_runtime

from ..helpers.tiny_bundle import HOP, ONE_NETWORK

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler: apt-get install gcc"
)

N_HOPS = 240  # of a whole number of blocks of 1, 3, 4 and 16


@pytest.fixture
def truth(tiny_enhancer: WaveformEnhancer, speech_like: Callable[..., Wave]) -> Truth:
    return pytorch_truth(tiny_enhancer, speech_like(N_HOPS * HOP, seed=2), 48)


def bare_bundle(enhancer: WaveformEnhancer, folder: Path) -> Bundle:
    """A bundle of weights and descriptions of graphs: the library needs no ONNX file."""
    folder.mkdir()
    save_weights(folder / WEIGHTS, enhancer, enhancer.state_dict())
    manifest = {"name": "tiny", "files": {WEIGHTS: sha256_of(folder / WEIGHTS)}}
    return Bundle(folder, manifest, tuple(graph_of(enhancer, block) for block in (1, 3, 16)))


@pytest.fixture
def bare(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> Bundle:
    return bare_bundle(tiny_enhancer, tmp_path / "bare")


def test_every_graph_in_c_agrees_with_pytorch(bare: Bundle, truth: Truth) -> None:
    for graph in bare.graphs:
        with open_graph(bare, graph, "native") as opened:
            stream = opened.stream(graph.states, streams=1)
            result = judge(graph, "native", truth, run(stream, graph, truth.wave), stream.states)
        assert result.failures == ()
        assert result.snr_db >= 105  # measured: 109.5 and more; the weights of this network exaggerate


def test_the_bundle_s_own_file_for_the_library_is_used(bare: Bundle, truth: Truth) -> None:
    graph = bare.graphs[0]
    write_weights(bare.path / "own.edgese", bare.path / WEIGHTS, "another", "digest", "fp32")
    files = {**bare.manifest["files"], "own.edgese": ""}
    own = dataclasses.replace(bare, manifest={**bare.manifest, "files": files, "native": {"fp32": "own.edgese"}})
    with (
        pytest.raises(ArtefactError, match=r"edgese\.bundle is another, wanted tiny"),
        open_graph(own, graph, "native"),
    ):
        pass


@ONE_NETWORK
@pytest.mark.parametrize("wrong", [{"fp32": "../own.edgese"}, "own.edgese", {"fp32": {}}])
def test_a_name_that_is_none_of_the_bundle_s_files_is_refused(bare: Bundle, wrong: object) -> None:
    own = dataclasses.replace(bare, manifest={**bare.manifest, "native": wrong})
    with pytest.raises(ArtefactError, match="native: found"), open_graph(own, bare.graphs[0], "native"):
        pass


@ONE_NETWORK
def test_a_weight_that_is_off_by_a_thousandth_fails(
    tiny_enhancer: WaveformEnhancer, truth: Truth, tmp_path: Path
) -> None:
    tiny_enhancer.state_dict()["network.split.weight"].mul_(1.001)
    off = bare_bundle(tiny_enhancer, tmp_path / "off")
    with open_graph(off, off.graphs[0], "native") as opened:
        stream = opened.stream(off.graphs[0].states, streams=1)
        result = judge(off.graphs[0], "native", truth, run(stream, off.graphs[0], truth.wave), stream.states)
    assert any(failure.startswith("output: ") for failure in result.failures)


@ONE_NETWORK
@pytest.mark.parametrize("swapped", [False, True])
def test_two_states_that_are_swapped_fail(bare: Bundle, truth: Truth, swapped: bool) -> None:
    graph, middle = bare.graphs[0], N_HOPS // 2 * HOP
    with open_graph(bare, graph, "native") as opened:
        stream = opened.stream(graph.states, streams=1)
        first = run(stream, graph, truth.wave[:middle])
        states = stream.states
        if swapped:
            states["ssm_0"], states["ssm_1"] = states["ssm_1"], states["ssm_0"]
        stream.load(states)
        enhanced = np.concatenate([first, run(stream, graph, truth.wave[middle:])])
        result = judge(graph, "native", truth, enhanced, stream.states)
    assert any(failure.startswith("output: ") for failure in result.failures) == swapped


def test_states_go_over_from_onnx_runtime(bundle: Bundle, truth: Truth) -> None:
    graph, middle = bundle.graphs[0], N_HOPS // 2 * HOP
    with open_graph(bundle, graph) as before, open_graph(bundle, graph, "native") as after:
        first, second = (opened.stream(graph.states, streams=1) for opened in (before, after))
        head = run(first, graph, truth.wave[:middle])
        second.load(first.states)
        enhanced = np.concatenate([head, run(second, graph, truth.wave[middle:])])
        assert judge(graph, "native", truth, enhanced, second.states).failures == ()


@ONE_NETWORK
def test_streams_in_a_call_are_each_other_s_strangers(bare: Bundle, truth: Truth) -> None:
    graph = bare.graphs[1]
    wave = truth.wave[: 10 * 3 * HOP].reshape(10, 3 * HOP)
    with open_graph(bare, graph, "native") as opened:
        both, alone = opened.stream(graph.states, streams=2), opened.stream(graph.states, streams=1)
        for one, other in zip(wave, wave[::-1], strict=True):
            found = both({"wave": np.stack([one, other])})["enhanced"]
            np.testing.assert_array_equal(found[:1], alone({"wave": one[None]})["enhanced"])


@ONE_NETWORK
def test_a_weights_file_that_is_cut_is_refused(bare: Bundle) -> None:
    graph = bare.graphs[0]
    with native_artefact(bare, graph, {}) as artefact:
        weights = Path(json.loads(artefact.read_text())["weights"])
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ArtefactError, match=r"weights.edgese: found .* bytes, wanted"):
            open_runtime("native", artefact)


@ONE_NETWORK
def test_weights_that_do_not_fit_the_graph_are_refused(bare: Bundle) -> None:
    graph = bare.graphs[0]
    other = dataclasses.replace(graph, states={name: to for name, to in graph.states.items() if name != "ssm_1"})
    with native_artefact(bare, other, {}) as artefact, pytest.raises(ArtefactError, match=r"found states .* wanted"):
        open_runtime("native", artefact)


def test_a_bundle_without_weights_is_refused(identity_bundle: Path) -> None:
    bundle = Bundle.open(identity_bundle)
    with (
        pytest.raises(ArtefactError, match=r"holds no model\.safetensors"),
        open_graph(bundle, bundle.graphs[0], "native"),
    ):
        pass


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.so").write_bytes(b"no library")
    with pytest.raises(ArtefactError, match="not a library with the interface"):
        load_library(tmp_path / "no.so")


@ONE_NETWORK
def test_the_instruction_set_can_be_chosen(bare: Bundle) -> None:
    with open_graph(bare, bare.graphs[0], "native") as opened:
        assert isinstance(opened, NativeRuntime)
        opened.use(opened.instructions)
        with pytest.raises(FeedError, match="instructions mmx: not here"):
            opened.use("mmx")
        assert opened.weights_bytes > 0
        assert 10_000 < opened.stream_bytes < 1_000_000
