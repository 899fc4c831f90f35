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
from edgese.model.checkpoint import load_enhancer, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.native import build
from edgese.native.artefact import native_artefact
from edgese.verify.agreement import judge
from edgese.verify.truth import Truth, pytorch_truth
from export.bundle import WEIGHTS, Bundle
from runtimes.base import ArtefactError, FeedError
from runtimes.native import NativeRuntime, load_library
from runtimes.registry import open_runtime

from ..helpers.tiny_bundle import HOP

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler: apt-get install gcc"
)

N_HOPS = 240  # of a whole number of blocks of 1, 3, 4 and 16


@pytest.fixture
def truth(tiny_enhancer: WaveformEnhancer, speech_like: Callable[..., Wave]) -> Truth:
    return pytorch_truth(tiny_enhancer, speech_like(N_HOPS * HOP, seed=2), 48)


def bare_bundle(bundle: Bundle, folder: Path, weights: Callable[[Path], object] = lambda _: None) -> Bundle:
    """The bundle with its manifest and weights only, which `weights` may change; the digests are not looked at."""
    folder.mkdir()
    shutil.copy(bundle.path / WEIGHTS, folder)
    weights(folder / WEIGHTS)
    return dataclasses.replace(bundle, path=folder)


@pytest.mark.both_networks
def test_every_graph_in_c_agrees_with_pytorch(bundle: Bundle, truth: Truth, tmp_path: Path) -> None:
    bare = bare_bundle(bundle, tmp_path / "bare")  # no ONNX file is needed
    for graph in bundle.graphs:
        with open_graph(bare, graph, "native") as opened:
            stream = opened.stream(graph.states, streams=1)
            result = judge(graph, "native", truth, run(stream, graph, truth.wave), stream.states)
        assert result.failures == ()
        assert result.snr_db >= 110  # measured: 124 and more


def test_a_weight_that_is_off_by_a_thousandth_fails(bundle: Bundle, truth: Truth, tmp_path: Path) -> None:
    def change(path: Path) -> None:
        enhancer = load_enhancer(path)
        weights = enhancer.state_dict()
        weights["network.split.weight"] *= 1.001
        save_weights(path, enhancer, weights)

    graph = bundle.graphs[0]
    with open_graph(bare_bundle(bundle, tmp_path / "off", change), graph, "native") as opened:
        stream = opened.stream(graph.states, streams=1)
        result = judge(graph, "native", truth, run(stream, graph, truth.wave), stream.states)
    assert any(failure.startswith("output: ") for failure in result.failures)


def test_two_states_that_are_swapped_fail(bundle: Bundle, truth: Truth) -> None:
    graph, middle = bundle.graphs[0], N_HOPS // 2 * HOP
    with open_graph(bundle, graph, "native") as opened:
        stream = opened.stream(graph.states, streams=1)
        first = run(stream, graph, truth.wave[:middle])
        states = stream.states
        states["ssm_0"], states["ssm_1"] = states["ssm_1"], states["ssm_0"]
        stream.load(states)
        enhanced = np.concatenate([first, run(stream, graph, truth.wave[middle:])])
        result = judge(graph, "native", truth, enhanced, stream.states)
    assert any(failure.startswith("output: ") for failure in result.failures)


def test_states_go_over_from_onnx_runtime(bundle: Bundle, truth: Truth) -> None:
    graph, middle = bundle.graphs[0], N_HOPS // 2 * HOP
    with open_graph(bundle, graph) as before, open_graph(bundle, graph, "native") as after:
        first, second = (opened.stream(graph.states, streams=1) for opened in (before, after))
        head = run(first, graph, truth.wave[:middle])
        second.load(first.states)
        enhanced = np.concatenate([head, run(second, graph, truth.wave[middle:])])
        assert judge(graph, "native", truth, enhanced, second.states).failures == ()


def test_a_weights_file_of_another_bundle_is_refused(bundle: Bundle) -> None:
    graph = bundle.graphs[0]
    with (
        native_artefact(bundle, graph, {}) as artefact,
        pytest.raises(ArtefactError, match=r"edgese.weights is .*, wanted 0"),
    ):
        open_runtime("native", artefact, metadata={"edgese.weights": "0"})


def test_a_weights_file_that_is_cut_is_refused(bundle: Bundle) -> None:
    graph = bundle.graphs[0]
    with native_artefact(bundle, graph, {}) as artefact:
        weights = Path(json.loads(artefact.read_text())["weights"])
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(ArtefactError, match=r"weights.edgese: found .* bytes, wanted"):
            open_runtime("native", artefact)


def test_weights_that_do_not_fit_the_graph_are_refused(bundle: Bundle) -> None:
    graph = bundle.graphs[0]
    other = dataclasses.replace(graph, states={name: to for name, to in graph.states.items() if name != "ssm_1"})
    with native_artefact(bundle, other, {}) as artefact, pytest.raises(ArtefactError, match=r"found states .* wanted"):
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


def test_the_instruction_set_can_be_chosen(bundle: Bundle) -> None:
    with open_graph(bundle, bundle.graphs[0], "native") as opened:
        assert isinstance(opened, NativeRuntime)
        opened.use(opened.instructions)
        with pytest.raises(FeedError, match="instructions mmx: not here"):
            opened.use("mmx")
        assert opened.weights_bytes > 0
        assert opened.stream_bytes > 0
