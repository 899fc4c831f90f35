"""The bundle that comes with the package: whole, proven, described by what it scores, and audibly at work."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from calib.batches import read_batches
from edgese.audio import Wave
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.signal_path import denoise
from edgese.graphs.bundles import SHIPPED, shipped_bundle
from edgese.metrics.difference import snr_db
from edgese.metrics.scores import METRICS as KNOWN
from edgese.metrics.scores import NAMES, si_sdr
from export.bundle import Bundle
from scripts.attribution import sources_of

ROOT = Path(__file__).parents[3]
SAMPLES = shipped_bundle().parents[1] / "samples"
EVAL_PAIRS = ROOT.parent / "shared" / "data" / "eval"
RATE_HZ = 16_000
FRAME = 320  # 20 ms

METRICS = {"PESQ-WB": "pesq_wb", "STOI": "stoi", "SI-SDR dB": "si_sdr_db"}  # as the card calls them
RECORDS = {  # of how a bundle was made and judged
    "base": {"evaluation.json", "train.toml", "training_log.csv"},
    "small": {
        *("evaluation.json", "curves.png"),
        *("train.toml", "training_log.csv", "train.first.toml", "training_log.first.csv"),
    },
}


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> str:
    """Name of a shipped bundle."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def bundle(shipped: str) -> Bundle:
    return Bundle.open(shipped_bundle(shipped))


@pytest.fixture(scope="module")
def noisy() -> Wave:
    return read(SAMPLES / "noisy.flac")


@pytest.fixture(scope="module")
def enhanced(bundle: Bundle, noisy: Wave) -> dict[int, Wave]:
    """The sample made clean by each plain graph, by its block."""
    return {graph.block: run(bundle, noisy, graph.block) for graph in bundle.graphs if not graph.variant}


@pytest.fixture(scope="module")
def evaluation(bundle: Bundle) -> dict[str, Any]:
    """What `edgese evaluate --json` said of this bundle, and of nothing else."""
    (result,) = json.loads((bundle.path / "evaluation.json").read_text(encoding="utf-8"))["systems"]
    assert isinstance(result, dict)
    return result


def read(path: Path) -> Wave:
    wave, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == RATE_HZ
    return np.asarray(wave)


def run(bundle: Bundle, wave: Wave, block: int, variant: str = "") -> Wave:
    with Denoiser(bundle, block=block, pcs=variant == "pcs") as denoiser:
        return np.concatenate(list(denoise([wave[:, None]], RATE_HZ, 1, denoiser)))[:, 0]


def frame_powers(wave: Wave) -> Wave:
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    return np.asarray((frames**2).mean(axis=1))


# Whole and proven


def test_the_bundle_opens_verified(bundle: Bundle, shipped: str) -> None:
    """Opening compares every file with its digest."""
    assert bundle.verified
    assert bundle.manifest["name"] == f"mbs-net-{shipped}"
    expected = list(itertools.product(("fp32", "fp16", "int8"), ("", "pcs"), (1, 4, 8, 16)))
    assert [(graph.precision, graph.variant, graph.block) for graph in bundle.graphs] == expected
    assert {result["passed"] for result in bundle.manifest["verification"]["results"]} == {True}
    assert len(bundle.manifest["verification"]["results"]) == len(bundle.graphs)


def test_the_graphs_are_of_the_weights_beside_them(bundle: Bundle) -> None:
    onnx = pytest.importorskip("onnx", reason="the [export] extra is not installed")
    weights = hashlib.sha256((bundle.path / "model.safetensors").read_bytes()).hexdigest()
    for graph in bundle.graphs:
        entries = onnx.load(bundle.path / graph.file, load_external_data=False).metadata_props
        found = {entry.key: entry.value for entry in entries}
        expected = {
            "edgese.bundle": bundle.manifest["name"],
            "edgese.weights": weights,
            "edgese.precision": graph.precision,
        }
        variant = {"edgese.variant": graph.variant} if graph.variant else {}
        digest = bundle.manifest["calibration"]["digest"]
        calibration = {"edgese.calibration": digest} if graph.precision == "int8" else {}
        assert found == expected | {"edgese.block": str(graph.block)} | variant | calibration


def test_nothing_lies_in_the_folder_that_nobody_asked_for(bundle: Bundle, shipped: str) -> None:
    found = {path.name for path in bundle.path.iterdir()}
    assert found == {"manifest.json", *RECORDS[shipped], *bundle.manifest["files"]}
    assert {"MODEL_CARD.md", "ATTRIBUTION.md"} <= found


def test_the_attribution_names_every_source_of_the_card_and_cuts_nothing_short(bundle: Bundle) -> None:
    card, text = ((bundle.path / name).read_text(encoding="utf-8") for name in ("MODEL_CARD.md", "ATTRIBUTION.md"))
    sources = sources_of(bundle.path / "MODEL_CARD.md")
    assert len(sources) > 40
    assert [repo for _, repo in sources if f"{repo}: " not in text] == []
    assert "..." not in card + text
    assert "CC BY-SA" in text


def test_reference_vectors_come_out_of_every_graph(bundle: Bundle) -> None:
    reference = bundle.manifest["reference"]
    (batch,) = read_batches(bundle.path / reference["file"], reference["digest"]).batches
    wave = batch["wave"][0]
    for graph in bundle.graphs:
        expected = batch["enhanced_pcs" if graph.variant else "enhanced"][0]
        found = run(bundle, wave, graph.block, graph.variant)
        assert np.abs(found[: len(wave) - 384] - expected[384:]).max() <= 1e-5


def test_pytorch_and_every_graph_give_the_same_sound(bundle: Bundle, noisy: Wave, enhanced: dict[int, Wave]) -> None:
    torch = pytest.importorskip("torch", reason="the [export] extra is not installed")
    from edgese.model.checkpoint import load_enhancer

    enhancer = load_enhancer(bundle.path / "model.safetensors")
    assert sum(p.numel() for p in enhancer.parameters()) == sum(bundle.manifest["parameters"].values())
    expected = enhancer.enhance(torch.from_numpy(noisy)[None])[0].numpy()
    for wave in enhanced.values():
        assert wave.shape == expected.shape == noisy.shape
        assert np.abs(wave - expected).max() <= 1e-5
        assert snr_db(expected, wave) >= 100


# At work on the sample


def test_noise_is_taken_from_the_pauses_and_speech_is_left(noisy: Wave, enhanced: dict[int, Wave]) -> None:
    """Pauses and speech are told apart by the sample's own clean voices."""
    clean = read(SAMPLES / "clean.flac")
    wave = enhanced[16]
    levels_db = 10 * np.log10(frame_powers(clean) + 1e-12)
    pauses, speech = levels_db < levels_db.max() - 50, levels_db > levels_db.max() - 25
    assert min(pauses.sum(), speech.sum()) > 50  # a second of each

    def change_db(frames: NDArray[np.bool_]) -> float:
        return float(10 * np.log10(frame_powers(wave)[frames].mean() / frame_powers(noisy)[frames].mean()))

    assert change_db(pauses) < -10
    assert change_db(speech) > -6
    assert si_sdr(clean, wave) > si_sdr(clean, noisy) + 1


# The card, and the scores it states


@pytest.fixture(scope="module")
def card(bundle: Bundle) -> str:
    return (bundle.path / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def stated(card: str) -> dict[str, dict[str, str]]:
    """The card's table of scores as it is written: metric -> column -> text."""
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in card.splitlines()]
    header = next(row for row in rows if row[0] == "metric")
    return {METRICS[row[0]]: dict(zip(header, row, strict=True)) for row in rows if row[0] in METRICS}


def test_the_evaluation_is_of_all_pairs_and_beats_the_noisy_input(evaluation: dict[str, Any]) -> None:
    assert evaluation["failed"] == {}
    assert len(evaluation["pairs"]) == 40
    for which in ("noisy", "enhanced"):
        for name in NAMES:
            values = [pair[which][name] for pair in evaluation["pairs"]]
            assert evaluation["mean"][which][name] == pytest.approx(np.mean(values))
    gain = {name: evaluation["mean"]["enhanced"][name] - evaluation["mean"]["noisy"][name] for name in NAMES}
    assert gain["pesq_wb"] >= 2.3 - 1.616  # the bar for weights that a CPU trained
    assert all(gain[name] > 0 for name in NAMES if KNOWN[name].higher_is_better)  # none was paid for another
    assert gain["lsd_db"] < 0
    assert evaluation["mean"]["noisy"]["pesq_wb"] == pytest.approx(1.616, abs=5e-3)  # known of these 40 files


def test_the_evaluation_names_no_place_on_one_machine(evaluation: dict[str, Any]) -> None:
    assert not Path(evaluation["system"]).is_absolute()


@pytest.mark.parametrize("name", METRICS.values())
def test_the_card_states_the_scores_that_were_measured(
    name: str, stated: dict[str, dict[str, str]], evaluation: dict[str, Any]
) -> None:
    mean = {which: scores[name] for which, scores in evaluation["mean"].items()}
    mean["gain"] = mean["enhanced"] - mean["noisy"]
    for which, value in mean.items():
        text = stated[name][which]
        n_digits = len(text.partition(".")[2])
        assert n_digits >= 2
        assert float(text) == pytest.approx(value, abs=0.51 * 10**-n_digits), which


def test_the_card_says_what_the_network_is_and_where_it_came_from(card: str, bundle: Bundle) -> None:
    assert f"{sum(bundle.manifest['parameters'].values()):,}" in card
    assert f"{sum(bundle.manifest['macs_per_frame'].values()) / 1e6:.1f} M multiply-accumulates" in card
    for what in ("32 ms", "16 kHz", "licence", "VoiceBank+DEMAND", "## Data", "## Known limits"):
        assert what in card, what


def test_three_pairs_gain_as_much_as_the_evaluation_says(
    evaluation: dict[str, Any], bundle: Bundle, tmp_path: Path
) -> None:
    """The scores are of these weights: some of them are measured again."""
    if not EVAL_PAIRS.is_dir():
        pytest.skip("the evaluation pairs are not on this machine (../shared/data/eval)")
    pytest.importorskip("pesq", reason="the [metrics] extra is not installed")
    from edgese.evaluate import evaluate

    recorded = {pair["name"]: pair for pair in evaluation["pairs"]}
    for kind in ("clean", "noisy"):
        (tmp_path / kind).mkdir()
        for name in sorted(recorded)[::15]:
            (source,) = (EVAL_PAIRS / kind).glob(f"{name}.*")
            (tmp_path / kind / source.name).symlink_to(source)
    result = evaluate(tmp_path, bundle.path, jobs=1)
    assert len(result.pairs) == 3
    assert result.mean("enhanced")["pesq_wb"] >= result.mean("noisy")["pesq_wb"] + 0.2
    for pair in result.pairs:
        assert pair.noisy == pytest.approx(recorded[pair.name]["noisy"], abs=1e-3)
        assert pair.enhanced == pytest.approx(recorded[pair.name]["enhanced"], abs=1e-2)
