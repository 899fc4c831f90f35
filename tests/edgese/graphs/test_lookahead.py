"""A network that looks ahead through every command: proven, measured, packed, heard; and never streamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from edgese.audio import Samples
from edgese.bench.advice import recommend
from edgese.bench.measure import Settings, bench, choose
from edgese.board.archive import unpack_archive, write_archive
from edgese.device.__main__ import main as board
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.signal_path import denoise
from edgese.errors import ConfigError, VerificationError
from edgese.evaluate import evaluate_all
from edgese.export_bundle import export_bundle, require_passed, untrained
from edgese.graphs.facts import network_facts
from edgese.graphs.opening import open_graph
from edgese.graphs.plan import Plan
from edgese.graphs.precision import Precision
from edgese.graphs.segments import MAX_SEGMENT_HOPS, MIN_SEGMENT_HOPS, SEGMENT_HOPS, Segments
from edgese.metrics.difference import snr_db
from edgese.metrics.pairs import Recording, read_recordings
from edgese.quantize.calibration import Drawing, draw_batches
from edgese.quantize.search import make_plans
from edgese.samples import NOISY
from edgese.verify.checks import seam_samples, seams
from edgese.verify.findings import Verification
from edgese.verify.prove import NOT_OF_SEGMENTS, prove
from export import ExportError
from export.bundle import Bundle, seal_bundle

from ..helpers.command_line import edgese, one_error, parsed
from ..helpers.fake_probe import FakeLab
from ..helpers.lookahead import HOP, HOPS, ClairvoyantConfig, look_ahead
from ..helpers.tiny_bundle import scale_weight

SIZE = HOPS * HOP
SpeechLike = Callable[..., NDArray[np.float32]]


@pytest.fixture(scope="module")
def heard() -> list[Recording]:
    return read_recordings(None)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that shows in 24 s shows in 6."""
    monkeypatch.setattr("edgese.verify.reference.VERIFICATION_HOPS", 750)


def failed(verification: Verification) -> set[str]:
    checks = [*verification.checks, *(check for proof in verification.proofs for check in proof.checks)]
    return {check.name for check in checks if not check.passed}


def resealed(bundle: Bundle, folder: Path, **manifest: Any) -> Bundle:
    """The same files under a manifest that says something else."""
    shutil.copytree(bundle.path, folder)
    seal_bundle(folder, {**bundle.manifest, **manifest})
    return Bundle.open(folder)


# Export


def test_its_bundle_has_one_graph_of_a_segment_without_states(ahead: Bundle) -> None:
    (graph,) = ahead.graphs
    assert (graph.file, graph.block, graph.states) == (f"segment{HOPS}.fp32.onnx", HOPS, {})
    assert [(spec.name, spec.shape) for spec in graph.inputs] == [("wave", ("streams", SIZE))]
    assert [(spec.name, spec.shape) for spec in graph.outputs] == [("enhanced", ("streams", SIZE))]
    manifest = ahead.manifest
    assert ahead.verified
    assert manifest["causal"] is False
    assert manifest["latency"] == {"samples": SIZE, "ms": 1000 * SIZE / 16_000, "overlap_samples": 0}
    assert "trained" not in manifest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (1,)}, "--block: looks-ahead looks ahead: no streaming form.*--segment-hops"),
        ({"segment_hops": MIN_SEGMENT_HOPS - 1}, f"--segment-hops: found {MIN_SEGMENT_HOPS - 1}, wanted"),
        ({"segment_hops": MAX_SEGMENT_HOPS + 1}, f"--segment-hops: found {MAX_SEGMENT_HOPS + 1}, wanted"),
    ],
)
def test_what_it_cannot_be_exported_as_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export_bundle(look_ahead(), tmp_path / "b", name="b", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_causal_network_has_no_segments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--segment-hops: mbs-net is causal and streams.*--block"):
        export_bundle(untrained("small"), tmp_path / "b", name="b", segment_hops=512)


def test_int8_and_its_calibration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"int8: looks-ahead looks ahead.*fp16"):
        make_plans(look_ahead(), [Precision.INT8])
    with pytest.raises(Exception, match="looks-ahead looks ahead: it has no streams"):
        draw_batches(look_ahead(), tmp_path, Drawing(), tmp_path)


@pytest.mark.slow
def test_fp16_and_pcs_work_as_for_streams(tmp_path: Path, heard: list[Recording], short: None) -> None:
    enhancer = look_ahead()
    plans = make_plans(enhancer, [Precision.FP16])
    assert plans == {Precision.FP16: Plan(half=("taps", "mask"))}
    exported = export_bundle(
        enhancer, tmp_path / "b", name="b", trained=False, segment_hops=HOPS, plans=plans, pcs=True
    )
    bundle = require_passed(exported)
    files = [f"segment{HOPS}.{kind}.onnx" for kind in ("fp32", "fp32.pcs", "fp16", "fp16.pcs")]
    assert [graph.file for graph in bundle.graphs] == files
    assert bundle.manifest["trained"] is False
    assert "UNTRAINED" in (bundle.path / "MODEL_CARD.md").read_text()
    verification = prove(bundle, recordings=heard, minutes=0)
    assert verification.failures == ()
    half = [check.name for check in verification.checks if check.name.startswith("half precision")]
    assert half == ["half precision of fp16 in PyTorch", "half precision of fp16 pcs in PyTorch"]


def test_what_it_costs_is_counted_over_a_segment() -> None:
    facts = network_facts(look_ahead())
    assert facts["macs_per_frame"]["taps"] == 257 * 9 * 8
    assert facts["macs_per_frame"]["mask"] == 257 * 8
    assert facts["segments"] == Segments.of_hops(HOP, SEGMENT_HOPS).entry()
    assert network_facts(untrained("small"))["causal"] is True


# Verification


def test_it_proves_itself_and_says_what_was_not_tried(ahead: Bundle, heard: list[Recording]) -> None:
    verification = prove(ahead, recordings=heard, minutes=0)
    assert verification.failures == ()
    assert verification.passed
    assert verification.not_tried == NOT_OF_SEGMENTS
    assert verification.entry()["not_tried"] == list(NOT_OF_SEGMENTS)
    (proof,) = verification.proofs
    names = {check.name for check in (*verification.checks, *proof.checks)}
    assert {"seams", "causal or not", "agrees with float64", "reference vectors", "3 streams at once"} <= names
    assert names.isdisjoint(NOT_OF_SEGMENTS)
    assert proof.streamed is not None
    assert proof.streamed.n_hops >= 3000
    assert proof.streamed.wave.snr_db > 100
    assert proof.excerpt is not None
    assert proof.excerpt.shape == heard[0].noisy.shape


@pytest.mark.usefixtures("short")
def test_pytorch_and_openvino_run_segments_too(ahead: Bundle, heard: list[Recording]) -> None:
    pytest.importorskip("openvino", reason="the [openvino] extra is not installed")
    verification = prove(ahead, runtimes=["pytorch", "openvino"], recordings=heard, minutes=0)
    assert verification.failures == ()


@pytest.mark.usefixtures("short")
def test_segments_without_an_overlap_fail(ahead: Bundle, tmp_path: Path, heard: list[Recording]) -> None:
    butted = Segments(SIZE, 0, 0, HOP)
    verification = prove(resealed(ahead, tmp_path / "b", segments=butted.entry()), recordings=heard, minutes=0)
    assert failed(verification) == {"seams"}


@pytest.mark.parametrize("fault", ["equal power", "backwards", "two per cent"])
def test_a_fade_that_does_not_add_up_fails(
    fault: str, ahead: Bundle, heard: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph is right; what joins its segments is not."""
    segments = Segments.of(ahead.manifest)
    assert segments is not None
    leaves, enters = segments.gains()
    wrong = {
        "equal power": (np.sqrt(leaves), np.sqrt(enters)),
        "backwards": (enters, enters),
        "two per cent": (1.02 * leaves, 1.02 * enters),
    }[fault]
    with open_graph(ahead, ahead.graphs[0]) as opened:
        wave = np.tile(heard[0].noisy, 2)
        whole = look_ahead().enhance(torch.from_numpy(wave[: seam_samples(segments)])[None])[0].numpy()
        assert seams(opened, ahead.graphs[0], segments, wave, whole).passed
        monkeypatch.setattr("edgese.graphs.segments.Segments.gains", lambda self: wrong)
        assert not seams(opened, ahead.graphs[0], segments, wave, whole).passed


@pytest.mark.usefixtures("short")
def test_a_changed_weight_fails(ahead: Bundle, tmp_path: Path, heard: list[Recording]) -> None:
    folder = tmp_path / "b"
    shutil.copytree(ahead.path, folder)
    path = folder / ahead.graphs[0].file
    model = onnx.load(path)
    name = next(
        tensor.name for tensor in model.graph.initializer if "taps" in tensor.name or list(tensor.dims) == [9, 8]
    )
    scale_weight(model, name, 1.01)
    onnx.save(model, path)
    seal_bundle(folder, ahead.manifest)
    wrong = failed(prove(Bundle.open(folder), recordings=heard, minutes=0))
    assert {"agrees with PyTorch", "agrees with float64", "reference vectors"} <= wrong


@pytest.mark.usefixtures("short")
def test_a_manifest_that_says_causal_of_a_network_that_is_not_fails(
    ahead: Bundle, tmp_path: Path, heard: list[Recording]
) -> None:
    latency = {"samples": 512, "ms": 32.0, "overlap_samples": 384}  # as of a causal one: else it is not even opened
    lying = resealed(ahead, tmp_path / "b", causal=True, latency=latency)
    assert {"causal or not", "causality"} <= failed(prove(lying, recordings=heard, minutes=0))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_network_that_says_it_were_causal_and_looks_ahead_fails(
    tmp_path: Path, heard: list[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgese.export_bundle.VERIFICATION_HOPS", 300)
    enhancer = look_ahead(ClairvoyantConfig())
    with pytest.raises(VerificationError, match="network clairvoyant: looks ahead"):
        export_bundle(enhancer, tmp_path / "b", name="b", blocks=(4,))
    for module in ("export_bundle", "verify.prove"):  # the graphs are found out as well
        monkeypatch.setattr(f"edgese.{module}.require_contract", lambda enhancer: None)
    exported = export_bundle(enhancer, tmp_path / "b", name="b", blocks=(4,))
    assert exported.bundle is None
    assert exported.path.name == "b.unverified"
    wrong = failed(prove(Bundle.open(exported.path), recordings=heard, minutes=0))
    assert {"causality", "agrees with PyTorch"} <= wrong


def test_the_search_for_a_layer_is_refused(ahead: Bundle, tmp_path: Path) -> None:
    done = edgese("verify", ahead.path, "--bisect", cwd=tmp_path, code=1)
    assert "--bisect: looks-ahead looks ahead" in one_error(done)


# Bench


def test_bench_has_calls_and_streams_and_no_live_figures(ahead: Bundle) -> None:
    report = bench(ahead, Settings(runtimes=("onnxruntime",), seconds=1, repeats=2), start=FakeLab().start)
    (result,) = report.results
    assert not result.case.live
    advance_s = Segments.of_hops(HOP, HOPS).advance / 16_000
    assert result.case.period_s == advance_s
    entry = result.entry()
    assert (entry["live"], entry["paced"], entry["latency_ms"]) == (False, None, None)
    assert entry["back"]["calls"] == 2 * 5
    cost_s = 0.0005 + 0.0001 * HOPS  # of the fake
    assert entry["back"]["rtf"] == pytest.approx(cost_s / advance_s)
    most = int((advance_s - 0.0005) / (0.0001 * HOPS))
    assert most * 15 / 16 <= result.one_core.streams <= most
    assert entry["one_core"]["points"][0]["calls"] == [3]
    advice = recommend(report)
    assert [item.purpose for item in advice] == ["lowest latency", "most sound"]
    assert "looks-ahead looks ahead: no live form, segments of 128 hops (1.0 s) only" in advice[0].words
    assert advice[1].words.startswith("use ONNX Runtime, fp32, segments of 128: ")


def test_bench_measures_a_segment_in_a_process_of_its_own(ahead: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    options = ("--runtime", "onnxruntime", "--seconds", "0.1", "--repeat", "1", "--plot", "pictures")
    lines = edgese("bench", "-m", ahead.path, *options, cwd=tmp_path).stdout.decode().splitlines()
    told = [line for line in lines if line.startswith("not live: looks-ahead looks ahead")]
    assert len(told) == 1
    assert not any("paced" in line for line in lines)
    assert any(line.startswith("most sound: use ONNX Runtime") for line in lines)
    assert (tmp_path / "pictures" / "latency.png").stat().st_size > 10_000


@pytest.mark.parametrize("command", [("bench",), ("bench", "--device", "jetson", "--estimate", "orin-nano")])
def test_bench_of_a_streaming_form_is_one_error(command: tuple[str, ...], ahead: Bundle, tmp_path: Path) -> None:
    done = edgese(*command, "-m", ahead.path, "--block", "1", cwd=tmp_path, code=1)
    wanted = "looks-ahead looks ahead: no streaming form; it has segments of 128 hops (1.0 s) only"
    assert wanted in one_error(done)


def test_its_own_segment_may_be_named(ahead: Bundle) -> None:
    (case,) = choose(ahead, Settings(runtimes=("onnxruntime",), blocks=(HOPS,)))
    assert str(case) == "onnxruntime fp32 segment 128"


# Enhance and evaluate


def through(bundle: Bundle, wave: Samples, cut: int, rate_hz: int = 16_000) -> Samples:
    """(n, channels) enhanced, fed in pieces."""
    pieces = [wave[at : at + cut] for at in range(0, len(wave), cut)]
    with Denoiser(bundle) as denoiser:
        return np.concatenate(list(denoise(pieces, rate_hz, wave.shape[1], denoiser)))


@pytest.mark.parametrize("n_samples", [SIZE, SIZE + 1, 2 * SIZE + 777, 5 * SIZE])
def test_a_long_recording_is_as_in_one_whole_pass(n_samples: int, ahead: Bundle, speech_like: SpeechLike) -> None:
    wave = speech_like(n_samples, seed=4)
    with torch.no_grad():
        whole = look_ahead().enhance(torch.from_numpy(wave)[None])[0].numpy()
    found = through(ahead, wave[:, None], 3000)
    assert found.shape == (n_samples, 1)
    assert snr_db(whole, found[:, 0]) > 100


@pytest.mark.parametrize("n_samples", [1, 127, 512, SIZE - 1])
def test_a_short_recording_is_one_segment_with_silence_after_it(
    n_samples: int, ahead: Bundle, speech_like: SpeechLike
) -> None:
    wave = speech_like(SIZE, seed=4)[:n_samples]
    with torch.no_grad():
        padded = torch.from_numpy(np.pad(wave, (0, SIZE - n_samples)))[None]
        wanted = look_ahead().enhance(padded)[0, :n_samples].numpy()
    found = through(ahead, wave[:, None], 100)
    assert found.shape == (n_samples, 1)
    assert np.abs(found[:, 0] - wanted).max() <= 1e-5


def test_channels_and_other_rates_keep_length_and_do_not_mix(ahead: Bundle, speech_like: SpeechLike) -> None:
    left, right = (speech_like(100_001, seed=seed, sample_rate_hz=44_100) for seed in (1, 2))
    both = through(ahead, np.stack([left, right], axis=1), 7000, 44_100)
    assert both.shape == (100_001, 2)
    alone = through(ahead, left[:, None], 7000, 44_100)
    assert np.abs(both[:, :1] - alone).max() <= 1e-6


def test_enhance_and_info_from_the_command_line(ahead: Bundle, tmp_path: Path, speech_like: SpeechLike) -> None:
    soundfile.write(tmp_path / "a.wav", speech_like(3 * SIZE + 5), 16_000, subtype="FLOAT")
    edgese("enhance", "a.wav", "-m", ahead.path, cwd=tmp_path)
    assert soundfile.info(tmp_path / "a.enhanced.wav").frames == 3 * SIZE + 5
    done = edgese("enhance", "a.wav", "-m", ahead.path, "--block", "1", "--force", cwd=tmp_path, code=1)
    assert "no streaming form" in one_error(done)
    told = edgese("info", ahead.path, cwd=tmp_path).stdout.decode()
    assert "not causal: hears a whole segment at a time, 1024 ms (16384 samples), that shares 0.51 s" in told
    assert "fp32: a segment of 128 hops a call" in told
    assert parsed(edgese("info", ahead.path, "--json", cwd=tmp_path).stdout)["causal"] is False


def test_its_scores_are_those_of_the_whole_pass(ahead: Bundle, tmp_path: Path, heard: list[Recording]) -> None:
    noisy, clean = heard[0].noisy, heard[0].clean
    for kind, wave in (("noisy", noisy), ("clean", clean)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        soundfile.write(tmp_path / "data" / kind / "a.wav", wave, 16_000, subtype="FLOAT")
    (tmp_path / "whole").mkdir()
    whole = look_ahead().enhance(torch.from_numpy(noisy)[None])[0].numpy()
    soundfile.write(tmp_path / "whole" / "a.wav", whole, 16_000, subtype="FLOAT")
    segments, one_pass = evaluate_all(tmp_path / "data", [ahead.path, tmp_path / "whole"], jobs=1)
    assert not segments.failed
    assert segments.mean("enhanced") == pytest.approx(one_pass.mean("enhanced"), abs=1e-3)


# The archive for a board


def test_a_board_tests_measures_and_enhances(
    ahead: Bundle, tmp_path: Path, speech_like: SpeechLike, capsys: pytest.CaptureFixture[str]
) -> None:
    write_archive(ahead, tmp_path / "a.tar.gz")
    root = unpack_archive(tmp_path / "a.tar.gz", tmp_path / "board")
    assert "not live" in (root / "README.txt").read_text()
    assert board(["self-test", "--runtime", "onnxruntime"], root) == 0
    assert board(["bench", "--runtime", "onnxruntime", "--seconds", "0.1"], root) == 0
    assert "not live: the network looks ahead" in capsys.readouterr().out
    wave = speech_like(3 * SIZE + 5)
    soundfile.write(tmp_path / "a.wav", wave, 16_000, subtype="FLOAT")
    arguments = [str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--runtime", "onnxruntime"]
    assert board(["enhance", *arguments], root) == 0
    enhanced, _ = soundfile.read(tmp_path / "b.wav", dtype="float32")
    np.testing.assert_allclose(enhanced, through(ahead, wave[:, None], 5000)[:, 0], rtol=0, atol=1e-6)
    capsys.readouterr()
    for command in (["bench"], ["self-test"], ["enhance", *arguments]):
        assert board([*command, "--block", "1"], root) == 1
        assert "no streaming form" in capsys.readouterr().err
    with pytest.raises(ExportError, match="no streaming form"):
        write_archive(ahead, tmp_path / "b.tar.gz", blocks=[1])


# Before training


def test_an_untrained_network_is_always_the_same_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    first, second = untrained("small"), untrained("small")
    assert torch.equal(torch.rand(1), wanted)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
    with pytest.raises(ConfigError, match=r"model: found 'huge', wanted one of .*small"):
        untrained("huge")


@pytest.mark.slow
def test_an_untrained_network_is_exported_and_says_so(tmp_path: Path) -> None:
    done = edgese("export", "--model", "small", "--block", "1", "--quiet", cwd=tmp_path)
    assert "UNTRAINED" in done.stderr.decode()
    bundle = Bundle.open(tmp_path / "small-untrained.bundle")
    assert bundle.manifest["trained"] is False
    assert "untrained" in bundle.manifest["name"]
    assert "UNTRAINED" in (bundle.path / "MODEL_CARD.md").read_text()
    assert "UNTRAINED" in edgese("info", bundle.path, cwd=tmp_path).stdout.decode()
    done = edgese("enhance", NOISY, "-m", bundle.path, "-o", "a.wav", cwd=tmp_path)
    assert "the network is UNTRAINED" in done.stderr.decode()


def test_weights_and_a_model_exclude_each_other(tmp_path: Path) -> None:
    done = edgese("export", "some.safetensors", "--model", "small", cwd=tmp_path, code=2)
    assert "found weights beside it" in done.stderr.decode()
