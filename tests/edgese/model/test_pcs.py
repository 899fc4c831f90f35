"""Perceptual contrast stretching: the published map, exact in float32, causal, streamed, beside the plain graphs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from calib.batches import read_batches
from edgese import export_bundle as artefact
from edgese.audio import Wave
from edgese.config import AudioConfig
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import denoiser_factory
from edgese.enhance.jobs import EnhanceOptions
from edgese.export_bundle import Export, export_bundle, require_passed
from edgese.graphs import write as graphs
from edgese.model.enhancer import StreamStep, WaveformEnhancer
from edgese.model.pcs import ContrastStretching
from edgese.model.pcs_constants import OUTPUT_GAIN, exponents, scale
from edgese.model.stft import stft
from edgese.networks import MbsConfig
from edgese.samples import NOISY
from edgese.verify.agreement import verify_graph
from edgese.verify.truth import pytorch_truth
from export import ExportError
from export.bundle import Bundle, Graph
from export.graph import write_onnx
from runtimes.base import ArtefactError
from runtimes.pytorch import PytorchRuntime
from runtimes.registry import open_runtime

from ..helpers.tiny_bundle import HOP, NAME, rewriting, tiny_bundle

STREAMING = 1e-5  # any split and any runtime against PyTorch in one call: 2e-7
N_SAMPLES = 48 * HOP
BLOCK = 3
KINDS = ("clean", "noisy")

# Gains of the authors' code (github.com/RoyChao19477/PCS, commit 6376d5a, PCS/PCS.py): first bin of 257, exponent.
PUBLISHED = [
    *((0, 1.0), (3, 1.070175439), (6, 1.182456140), (9, 1.287719298), (12, 1.4)),
    *((138, 1.322807018), (166, 1.238596491), (200, 1.161403509), (241, 1.077192982), (256, 1.0)),
]
# The same for 201 bins of 40 Hz (github.com/RoyChao19477/SEMamba, commit 1890475, models/pcs400.py).
PUBLISHED_400 = [
    *((0, 1.0), (3, 1.070175439), (5, 1.182456140), (8, 1.287719298), (10, 1.4)),
    *((110, 1.322807018), (130, 1.238596491), (160, 1.161403509), (190, 1.077192982)),
]


@pytest.fixture
def tiny_config() -> MbsConfig:
    """One network is enough here: what comes after it knows nothing of it."""
    return MbsConfig(
        channels=8, layers=2, states=4, dt_rank=2, chunk=5, decoder_hidden=8, decay_heads=4, expand=2, fusion="each"
    )


@pytest.fixture
def stretched(tiny_enhancer: WaveformEnhancer) -> WaveformEnhancer:
    return WaveformEnhancer(tiny_enhancer.network, tiny_enhancer.audio, pcs=True).eval()


@pytest.fixture
def wave(speech_like) -> Wave:
    room = 1e-3 * np.random.default_rng(0).standard_normal(N_SAMPLES, np.float32)  # never silent
    return (speech_like(N_SAMPLES, seed=2) + room)[None]


def per_bin(table: list[tuple[int, float]], n_bins: int) -> NDArray[np.float64]:
    gains = np.ones(n_bins)
    for first, gain in table:
        gains[first:] = gain
    return gains


def by_formula(spectrum: NDArray[Any], unit: float) -> NDArray[np.complex128]:
    """The paper's map in float64, with expm1 and log1p; `unit` brings (..., 257) magnitudes to the paper's scale."""
    exact = spectrum.astype(np.complex128)
    magnitude = np.expm1(per_bin(PUBLISHED, 257) * np.log1p(unit * np.abs(exact))) / unit
    return OUTPUT_GAIN * magnitude * np.exp(1j * np.angle(exact))


def stretch(spectrum: NDArray[Any], audio: AudioConfig) -> NDArray[np.complex128]:
    """What the module makes of (T, F) complex64."""
    parts = ContrastStretching(audio)(torch.view_as_real(torch.from_numpy(spectrum))[None])[0].numpy()
    return np.asarray(parts[..., 0].astype(np.float64) + 1j * parts[..., 1])


def tone(amplitude: float, audio: AudioConfig, k: int = 32) -> NDArray[np.floating]:
    """A sine at the middle of bin k, 1 kHz; its frames 8 and later hear nothing but it."""
    return amplitude * np.sin(2 * np.pi * k * np.arange(12 * HOP) / audio.n_fft)


@torch.no_grad()
def in_one_call(enhancer: WaveformEnhancer, wave: Wave) -> Wave:
    """(B, n_samples) in PyTorch from zero states, 384 samples behind."""
    return enhancer(torch.from_numpy(wave), enhancer.initial_state(len(wave)))[0].numpy()


# The map


def test_exponents_are_those_that_were_published(audio: AudioConfig) -> None:
    assert np.abs(exponents(audio) - per_bin(PUBLISHED, 257)).max() < 1e-9


def test_exponents_of_another_transform_are_those_published_for_it_but_for_a_few_bins() -> None:
    """The authors rounded the edges of critical bands twice, and not alike: by up to 3 bins of 40 Hz."""
    differences = np.abs(exponents(AudioConfig(n_fft=400, hop=100)) - per_bin(PUBLISHED_400, 201))
    assert np.flatnonzero(differences > 1e-9).tolist() == [108, 109, 157, 158, 159, 189, 200]


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 128), (512, 256), (256, 64), (1024, 256)])
def test_a_tone_has_the_magnitude_that_the_paper_s_transform_gives_it(n_fft: int, hop: int) -> None:
    config = AudioConfig(n_fft=n_fft, hop=hop)
    theirs = np.abs(np.fft.rfft(tone(0.1, AudioConfig())[:512] * np.hamming(512)))[32]
    sine = 0.1 * np.sin(2 * np.pi * 1000 * np.arange(4096) / 16_000)
    ours = scale(config) * np.abs(stft(sine, config))[-1].max()
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours == pytest.approx(13.8, rel=1e-3)


# Relative errors of a bin in float32; 2.5e-4, 1.6e-5, 6e-7 are measured.
@pytest.mark.parametrize(("low", "high", "limit"), [(1e-15, 1e-2, 3e-4), (1e-2, 1, 3e-5), (1, 300, 2e-6)])
def test_every_bin_is_what_the_formula_says(low: float, high: float, limit: float, audio: AudioConfig) -> None:
    rng = np.random.default_rng(0)
    magnitude = np.exp(rng.uniform(np.log(low), np.log(high), (300, 257)))
    spectrum = (magnitude * np.exp(2j * np.pi * rng.random((300, 257)))).astype(np.complex64)
    expected = by_formula(spectrum, unit=(0.54 * 512 - 0.46) / np.sin(np.pi * np.arange(512) / 512).sum())
    error = np.abs(stretch(spectrum, audio) - expected)
    assert (error / np.abs(expected)).max() <= limit
    assert error[magnitude < 1].max(initial=0) <= 2e-7  # a tone at -175 dBFS


def test_silence_stays_silent_and_has_a_gradient(audio: AudioConfig) -> None:
    spectrum = torch.zeros(1, 3, 257, 2, requires_grad=True)
    after = ContrastStretching(audio)(spectrum)
    after.sum().backward()
    assert not after.any()
    assert spectrum.grad is not None
    assert torch.isfinite(spectrum.grad).all()


def test_a_digitally_silent_stretch_gives_no_nan(stretched: WaveformEnhancer, wave: Wave) -> None:
    silent = wave.copy()
    silent[:, 10 * HOP : 30 * HOP] = 0
    for heard in (silent, np.zeros_like(wave), 1e-20 * wave):
        assert np.isfinite(in_one_call(stretched, heard)).all()


def test_a_loud_tone_keeps_its_level_and_a_faint_one_falls_by_9_db(audio: AudioConfig) -> None:
    change_db = {}
    for level_db in (-80, -40, -13.5, 0):
        before = stft(tone(10 ** (level_db / 20), audio).astype(np.float32), audio)[8:]
        change_db[level_db] = 20 * np.log10(np.abs(stretch(before, audio)[:, 32]) / np.abs(before[:, 32])).mean()
    assert change_db[-80] == pytest.approx(20 * np.log10(1.4 / 4), abs=0.05)
    assert change_db == pytest.approx({-80: -9.1, -40: -7.4, -13.5: 0, 0: 5.2}, abs=0.1)


# After a network


def test_without_it_an_enhancer_is_what_it_was(
    tiny_enhancer: WaveformEnhancer, stretched: WaveformEnhancer, wave: Wave
) -> None:
    plain = in_one_call(tiny_enhancer, wave)
    assert np.abs(in_one_call(stretched, wave) - plain).max() > 0.01
    assert np.array_equal(in_one_call(WaveformEnhancer(tiny_enhancer.network, tiny_enhancer.audio), wave), plain)
    assert stretched.state_dict().keys() == tiny_enhancer.state_dict().keys()
    assert list(stretched.initial_state()) == list(tiny_enhancer.initial_state())


def test_it_is_applied_to_the_network_s_spectrum(
    tiny_enhancer: WaveformEnhancer, stretched: WaveformEnhancer, wave: Wave
) -> None:
    state = tiny_enhancer.initial_state()
    with torch.no_grad():
        spectrum, _ = tiny_enhancer.transform(torch.from_numpy(wave), state["analysis"])
        enhanced = torch.view_as_complex(tiny_enhancer.network(spectrum, state)[0][0].contiguous()).numpy()
    unit = (0.54 * 512 - 0.46) / np.sin(np.pi * np.arange(512) / 512).sum()
    frames = np.fft.irfft(by_formula(enhanced, unit)) * np.sin(np.pi * np.arange(512) / 512) / 2
    expected = np.zeros(N_SAMPLES + 512)
    for at, frame in enumerate(frames):
        expected[at * HOP : at * HOP + 512] += frame
    assert np.abs(in_one_call(stretched, wave)[0] - expected[:N_SAMPLES]).max() < 2e-6


@pytest.mark.parametrize("hops", [1, 3, 7, 48])
def test_any_split_gives_the_same_samples(hops: int, stretched: WaveformEnhancer, wave: Wave) -> None:
    state, pieces = stretched.initial_state(), []
    for start in range(0, N_SAMPLES, hops * HOP):
        with torch.no_grad():
            piece, state = stretched(torch.from_numpy(wave[:, start : start + hops * HOP]), state)
        pieces.append(piece.numpy())
    assert np.abs(np.concatenate(pieces, axis=1) - in_one_call(stretched, wave)).max() <= STREAMING


def first_changes(process: Callable[[Wave], Wave], wave: Wave) -> list[bool]:
    """For some places: whether a change from there on alters bits before the hop that holds the place."""
    before, early = process(wave), []
    for place in (1, 128, 1000, 2048, N_SAMPLES - 1):
        changed = wave.copy()
        changed[:, place:] = 0.7 - changed[:, place:]
        after, hop = process(changed), place // HOP * HOP
        assert not np.array_equal(before, after)
        early.append(not np.array_equal(before[:, :hop], after[:, :hop]))
    return early


def test_the_future_changes_no_earlier_bit(stretched: WaveformEnhancer, wave: Wave) -> None:
    assert not any(first_changes(lambda heard: in_one_call(stretched, heard), wave))


def test_dividing_by_the_largest_sample_as_the_authors_do_is_not_causal(
    stretched: WaveformEnhancer, wave: Wave
) -> None:
    """The control; and the reason for a constant gain."""

    def theirs(heard: Wave) -> Wave:
        after = in_one_call(stretched, heard)
        return after / np.abs(after).max()

    assert all(first_changes(theirs, wave)[1:])


# Exported


@pytest.fixture(scope="module")
def exports() -> list[Export]:
    return []


@pytest.fixture
def plain(tiny_enhancer: WaveformEnhancer, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tiny_enhancer, tmp_path_factory)


@pytest.fixture
def bundle(
    plain: Bundle,
    exports: list[Export],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Bundle:
    """The tiny network with PCS graphs; the plain ones, which PyTorch takes seconds for, are those of `plain`."""
    if not exports:
        again = rewriting(plain)
        monkeypatch.setattr(
            graphs,
            "write_onnx",
            lambda module, inputs, outputs, path, **kw: (write_onnx if ".pcs." in path.name else again)(
                module, inputs, outputs, path, **kw
            ),
        )
        monkeypatch.setattr(artefact, "VERIFICATION_HOPS", 192)
        weights = plain.path.with_name("tiny.safetensors")
        path = tmp_path_factory.mktemp("pcs") / "tiny.bundle"
        exports.append(export_bundle(weights, path, name=NAME, blocks=[BLOCK], pcs=True))
    return require_passed(exports[0])


def stream(bundle: Bundle, graph: Graph, wave: Wave) -> Wave:
    with open_runtime("onnxruntime", bundle.path / graph.file) as runtime:
        call = runtime.stream(graph.states, streams=len(wave))
        size = graph.block * HOP
        pieces = [call({"wave": wave[:, at : at + size].copy()})["enhanced"] for at in range(0, wave.shape[1], size)]
    return np.concatenate(pieces, axis=1)


def test_a_bundle_holds_both_kinds_of_graphs_each_verified(bundle: Bundle) -> None:
    files = ["block3.fp32.onnx", "block3.fp32.pcs.onnx"]
    assert [graph.file for graph in bundle.graphs] == files
    assert [graph.variant for graph in bundle.graphs] == ["", "pcs"]
    assert [entry.get("variant") for entry in bundle.manifest["graphs"]] == [None, "pcs"]
    results = bundle.manifest["verification"]["results"]
    assert [result["graph"] for result in results] == files
    for result in results:
        assert result["passed"] is True
        assert result["max_abs"] <= STREAMING
        assert result["snr_db"] >= 100


def test_plain_graphs_and_weights_are_not_touched_by_those_beside_them(plain: Bundle, bundle: Bundle) -> None:
    alone, beside = (onnx.load(one.path / one.graph(block=BLOCK).file).graph for one in (plain, bundle))
    assert alone == beside
    plain_weights, exponent_bytes = (plain.path / "weights.fp32.bin").stat().st_size, 4 * 257
    assert (bundle.path / "weights.fp32.bin").stat().st_size <= plain_weights + exponent_bytes + 64
    assert bundle.manifest["macs_per_frame"] == plain.manifest["macs_per_frame"]


def test_a_bundle_without_it_names_no_variant(plain: Bundle) -> None:
    assert "variant" not in (plain.path / "manifest.json").read_text(encoding="utf-8")
    assert {graph.variant for graph in plain.graphs} == {""}


def test_graphs_differ_by_operators_that_every_runtime_has(bundle: Bundle) -> None:
    without, with_it = (
        Counter(node.op_type for node in onnx.load(bundle.path / graph.file, load_external_data=False).graph.node)
        for graph in (bundle.graph(block=BLOCK), bundle.graph(block=BLOCK, variant="pcs"))
    )
    added = with_it - without
    assert added["Log"] == added["Exp"] == 1
    assert added.keys() <= {"Mul", "Add", "Sub", "Div", "Log", "Exp", "Sqrt", "Clip", "ReduceSum"}
    assert sum(added.values()) <= 16


def test_the_graph_streams_pytorch_s_samples(bundle: Bundle, stretched: WaveformEnhancer, wave: Wave) -> None:
    found = stream(bundle, bundle.graph(block=BLOCK, variant="pcs"), wave)
    assert np.abs(found - in_one_call(stretched, wave)).max() <= STREAMING


def test_pytorch_s_runtime_takes_the_same_step(bundle: Bundle, stretched: WaveformEnhancer, wave: Wave) -> None:
    graph = bundle.graph(block=BLOCK, variant="pcs")
    with PytorchRuntime.from_module(StreamStep(stretched).eval(), graph.inputs, graph.outputs) as runtime:
        call = runtime.stream(graph.states, streams=1)
        pieces = [call({"wave": wave[:, at : at + 384].copy()})["enhanced"] for at in range(0, N_SAMPLES, 384)]
    assert np.abs(np.concatenate(pieces, axis=1) - in_one_call(stretched, wave)).max() <= STREAMING


def test_reference_vectors_come_out_of_every_graph(bundle: Bundle) -> None:
    reference = bundle.manifest["reference"]
    (batch,) = read_batches(bundle.path / reference["file"], reference["digest"]).batches
    assert batch.keys() == {"wave", "enhanced", "enhanced_pcs"}
    for graph in bundle.graphs:
        expected = batch["enhanced_pcs" if graph.variant else "enhanced"]
        assert np.abs(stream(bundle, graph, batch["wave"]) - expected).max() <= STREAMING


def test_a_plain_graph_in_the_place_of_another_fails_its_verification(
    bundle: Bundle, stretched: WaveformEnhancer, wave: Wave
) -> None:
    truth = pytorch_truth(stretched, wave[0], 3)
    assert verify_graph(bundle.path, bundle.graph(block=BLOCK, variant="pcs"), truth).passed
    assert not verify_graph(bundle.path, bundle.graph(block=BLOCK), truth).passed


# At work


def test_enhancing_takes_the_graphs_that_were_asked_for(
    bundle: Bundle, stretched: WaveformEnhancer, wave: Wave
) -> None:
    for pcs in (False, True):
        options = EnhanceOptions(block=BLOCK, pcs=pcs)
        expected = WaveformEnhancer(stretched.network, stretched.audio, pcs=pcs).enhance(torch.from_numpy(wave))
        with denoiser_factory(bundle.path, options)() as denoiser:
            found = np.concatenate(list(denoiser.blocks([wave.T], 1)))[:N_SAMPLES].T
        assert np.abs(found - expected.numpy()).max() <= STREAMING


def test_the_largest_graph_is_taken_of_the_kind_that_was_asked_for(bundle: Bundle) -> None:
    plain = bundle.graph(block=BLOCK)
    specs = [
        tuple(
            dataclasses.replace(spec, shape=(*spec.shape[:-1], 8 * HOP)) if spec.name in ("wave", "enhanced") else spec
            for spec in side
        )
        for side in (plain.inputs, plain.outputs)
    ]
    larger = dataclasses.replace(plain, block=8, file="plain only", inputs=specs[0], outputs=specs[1])
    both = dataclasses.replace(bundle, graphs=(*bundle.graphs, larger))
    with Denoiser(both, pcs=True) as denoiser:
        assert denoiser.block_samples == BLOCK * HOP
    with pytest.raises(ExportError, match="plain only"):
        Denoiser(both)
    with pytest.raises(ExportError, match=r"no graph of block 8 \(fp32 pcs\); this bundle has .*, 3 \(fp32 pcs\), 8 "):
        Denoiser(both, pcs=True, block=8)


def test_a_graph_that_only_claims_to_be_one_is_refused(bundle: Bundle) -> None:
    lying = dataclasses.replace(bundle.graph(block=BLOCK), variant="pcs")
    with pytest.raises(ArtefactError, match=r"edgese\.variant is missing, wanted pcs"):
        Denoiser(dataclasses.replace(bundle, graphs=(lying,)), pcs=True)


def test_a_bundle_without_such_graphs_is_refused_with_the_way_out(plain: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found no graphs in fp32 with PCS.*edgese export --pcs.*--model"):
        Denoiser(plain, pcs=True)
    source = tmp_path / "a.wav"
    source.write_bytes(NOISY.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "edgese", "enhance", source, "--pcs", "-m", plain.path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert line.startswith("error: ")
    assert "edgese export --pcs" in line
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_an_evaluation_scores_what_it_names(bundle: Bundle, stretched: WaveformEnhancer, tmp_path: Path) -> None:
    pytest.importorskip("pesq", reason="the [metrics] extra is not installed")
    pytest.importorskip("pystoi", reason="the [metrics] extra is not installed")
    from edgese.evaluate import evaluate_all
    from edgese.metrics.scores import si_sdr

    clean, noisy = (soundfile.read(NOISY.with_name(f"{kind}.flac"), dtype="float32")[0] for kind in KINDS)
    enhanced = stretched.enhance(torch.from_numpy(noisy)[None])[0].numpy()
    for kind, wave in (("clean", clean), ("noisy", noisy), ("other", enhanced)):
        (tmp_path / kind).mkdir()
        soundfile.write(tmp_path / kind / "a.wav", wave, 16_000, "FLOAT")
    ran, read = evaluate_all(tmp_path, [bundle.path, tmp_path / "other"], pcs=True, jobs=1)
    assert (ran.system, read.system) == (f"{bundle.path} with PCS", str(tmp_path / "other"))
    assert ran.mean("enhanced") == pytest.approx(read.mean("enhanced"), abs=1e-3)
    assert ran.mean("enhanced")["si_sdr_db"] == pytest.approx(si_sdr(clean, enhanced), abs=1e-3)


def test_a_manifest_says_which_graphs_are_which_to_whoever_reads_json(bundle: Bundle) -> None:
    entries = json.loads((bundle.path / "manifest.json").read_text(encoding="utf-8"))["graphs"]
    assert [Graph.from_entry(entry) for entry in entries] == list(bundle.graphs)
    assert json.loads(json.dumps([graph.entry() for graph in bundle.graphs])) == entries
    del entries[1]["variant"]
    assert Graph.from_entry(entries[1]).variant == ""
