"""The search for what INT8 can take: the largest set inside the budget, by numbers that the graphs themselves give."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgese.quantize.search
from calib import CalibrationError
from calib.batches import Batches
from calib.ranges import Range
from edgese.audio import Wave
from edgese.errors import ConfigError, VerificationError
from edgese.graphs.plan import Plan
from edgese.graphs.precision import Precision
from edgese.graphs.write import graph_of, write_graph
from edgese.metrics.difference import snr_db
from edgese.metrics.pairs import Recording
from edgese.metrics.scores import pesq_wb
from edgese.model.checkpoint import load_enhancer
from edgese.model.cost import product_macs
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import products
from edgese.model.registry import build
from edgese.networks import MbsConfig
from edgese.quantize.calibration import read_calibration
from edgese.quantize.scoring import Scored, ScoringTask, died, score_graph
from edgese.quantize.search import Cost, Quantization, make_plans, search_int8
from export.bundle import Bundle

from ..helpers.precision_bundle import CALIBRATED, LEFT_HAND, calibration, make_ranges, write_calibration
from ..helpers.tiny_bundle import HOP, TINY

SpeechLike = Callable[..., Wave]


@pytest.fixture
def tiny_config() -> MbsConfig:
    return TINY


@pytest.fixture
def batches(
    tiny_enhancer: WaveformEnhancer, tmp_path_factory: pytest.TempPathFactory, speech_like: SpeechLike
) -> Batches:
    return calibration(tiny_enhancer, tmp_path_factory, speech_like)


def noisy_recordings(speech_like: SpeechLike, n_samples: int = 10_000) -> list[Recording]:
    found = []
    for name in ("a", "b"):
        rng = np.random.default_rng(ord(name))
        clean = speech_like(n_samples, seed=ord(name)) + 1e-4 * rng.standard_normal(n_samples, np.float32)
        found.append(Recording(name, clean, clean + 0.03 * rng.standard_normal(n_samples, np.float32), name))
    return found


# The choice, with costs that are made up

# SNR of each product alone, and its share of the arithmetic. Noise for its share, in dB: the middle ones change places
# with their SNR (b is noisier than c, but for a hundred times the arithmetic).
ALONE = {"a": (60.0, 0.30), "b": (40.0, 0.50), "c": (42.0, 0.005), "d": (30.0, 0.195)}
CHEAPEST_FIRST = ["a", "b", "d", "c"]  # -54.8, -37.0, -22.9, -19.0


class MadeUp:
    """Stands in for `_Search`: sets cost what a function says."""

    loss: Callable[[frozenset[str]], float] = staticmethod(lambda chosen: 0.0)
    noise_db: Mapping[str, Mapping[str, float]] = {}  # method -> product -> added noise
    heard: list[list[str]]
    made: list[MadeUp]

    def __init__(
        self,
        folder: Path,
        enhancer: WaveformEnhancer,
        calibration: Batches,
        recordings: Sequence[Recording],
        precision: Precision,
        methods: Sequence[str],
        tell: Callable[[str], None],
    ) -> None:
        assert folder.is_dir()
        self.methods, self.heard = methods, []
        self.tensors = {name: f"before_{name}" for name in ALONE} | {"c": "before_b"}
        self.offered = {
            method: {name: Range(-1.0 - at, 1.0 + at) for name in ALONE} for at, method in enumerate(methods)
        }
        type(self).made.append(self)

    def alone(self, method: str) -> list[Cost]:
        added = self.noise_db.get(method, {})
        return [
            Cost((name,), share, snr_db - added.get(name, 0.0), self.loss(frozenset(name)), 0.0, method)
            for name, (snr_db, share) in ALONE.items()
        ]

    def costs(self, sets: Sequence[Mapping[str, Range]]) -> list[Cost]:
        self.heard += [list(ranges) for ranges in sets]
        return [
            Cost(tuple(ranges), sum(ALONE[n][1] for n in ranges), 30.0, self.loss(frozenset(ranges)), 0.1)
            for ranges in sets
        ]


Found = Callable[..., Quantization]


@pytest.fixture
def found(tiny_enhancer: WaveformEnhancer, speech_like: SpeechLike, monkeypatch: pytest.MonkeyPatch) -> Found:
    """`found(loss, noise, **options)`: the search among made-up costs."""
    monkeypatch.setattr(edgese.quantize.search, "_Search", MadeUp)
    monkeypatch.setattr(MadeUp, "made", [], raising=False)

    def searched(
        loss: Callable[[frozenset[str]], float], noise: Mapping[str, Mapping[str, float]] | None = None, **options: Any
    ) -> Quantization:
        monkeypatch.setattr(MadeUp, "loss", staticmethod(loss))
        monkeypatch.setattr(MadeUp, "noise_db", noise or {})
        batches = Batches(({"wave": np.zeros((1, HOP))},), {}, "digest")
        return search_int8(tiny_enhancer, batches, noisy_recordings(speech_like, 1000), **options)

    return searched


def test_all_products_are_taken_if_they_fit(found: Found, tiny_enhancer: WaveformEnhancer) -> None:
    result = found(lambda chosen: 0.02, budget=0.02)
    assert MadeUp.made[0].heard == [CHEAPEST_FIRST]
    assert result.plan.ranges.keys() == set(ALONE)
    assert result.plan.calibration == "digest"
    assert result.plan.half == tuple(products(tiny_enhancer.network))  # none of which is made up
    assert [cost.products for cost in result.steps] == [tuple(CHEAPEST_FIRST)]


def test_the_costliest_noise_for_its_share_goes_first_until_a_set_fits(found: Found) -> None:
    result = found(lambda chosen: 0.01 * len(chosen), budget=0.02, method="minmax")
    assert MadeUp.made[0].heard == [["a", "b", "d", "c"], ["a", "b", "d"], ["a", "b"]]
    assert [cost.products[0] for cost in result.costs] == CHEAPEST_FIRST
    assert list(result.plan.ranges) == ["a", "b"]
    assert [cost.pesq_loss for cost in result.steps] == [0.04, 0.03, 0.02]
    assert result.steps[-1].share == pytest.approx(0.8)


def test_a_single_product_is_a_set_too(found: Found) -> None:
    result = found(lambda chosen: 0.0 if chosen == {"a"} else 1.0)
    assert list(result.plan.ranges) == ["a"]
    assert len(MadeUp.made[0].heard) == 4


def test_a_gain_in_pesq_is_inside_every_budget(found: Found) -> None:
    assert found(lambda chosen: -0.1, budget=1e-6).plan.ranges.keys() == set(ALONE)


def test_a_budget_that_nothing_meets_lists_what_costs_most(found: Found) -> None:
    with pytest.raises(
        VerificationError,
        match=r"^int8: not even the cheapest product is inside the PESQ budget of 0\.01\. What each loses alone, the "
        r"costliest first: c \+0\.030 \(42 dB\), d \+0\.030 \(30 dB\), b \+0\.030 \(40 dB\), a \+0\.030 \(60 dB\)$",
    ):
        found(lambda chosen: 0.03, budget=0.01)


def test_each_tensor_takes_the_range_that_costs_least_noise(found: Found) -> None:
    """b and c read one tensor: what counts is the noise of both, and here that of b."""
    noise = {"minmax": {"a": 3.0, "b": 3.0}, "entropy": {"a": 1.0, "c": 2.0, "d": 9.0}, "percentile": {"d": 20.0}}
    noise["percentile"] |= {"a": 2.0, "b": 9.0}
    result = found(lambda chosen: 0.0, noise)
    assert MadeUp.made[0].methods == ("minmax", "entropy", "percentile")
    chosen = {"a": "entropy", "b": "entropy", "c": "entropy", "d": "minmax"}
    assert result.plan.facts["methods"] == chosen
    highs = {"minmax": 1.0, "entropy": 2.0, "percentile": 3.0}
    assert {name: wanted.high for name, wanted in result.plan.ranges.items()} == {
        name: highs[method] for name, method in chosen.items()
    }
    assert {(cost.products[0], cost.method) for cost in result.costs} == set(chosen.items())
    assert len(result.plan.facts["alone"]) == 12


def test_a_single_method_is_all_that_is_tried(found: Found) -> None:
    result = found(lambda chosen: 0.0, method="entropy")
    assert MadeUp.made[0].methods == ("entropy",)
    assert set(result.plan.facts["methods"].values()) == {"entropy"}


def test_for_cpus_the_others_stay_in_float32(found: Found, tiny_enhancer: WaveformEnhancer) -> None:
    assert found(lambda chosen: 0.0, precision=Precision.INT8_CPU).plan.half == ()


def test_a_search_survives_the_manifest(found: Found) -> None:
    result = found(lambda chosen: 0.01 * len(chosen), budget=0.03)
    entry = json.loads(json.dumps(result.plan.entry(), allow_nan=False))
    again = Quantization.of(Plan.from_entry(entry))
    assert again is not None
    assert (set(again.costs), again.steps) == (set(result.costs), result.steps)
    assert entry["facts"]["recordings"] == ["a", "b"]
    assert entry["facts"]["budget"] == 0.03
    assert Quantization.of(Plan()) is None
    assert str(result).startswith("3 of 4 products, 100% of their arithmetic: +0.0300 PESQ-WB lost (budget 0.03), ")
    assert str(result).endswith("left out: c (+0.0100 alone, 42 dB)")


# What is asked wrongly


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "median"}, "calibrator: found median, wanted one of best, minmax, entropy, percentile"),
        ({"budget": 0.0}, "PESQ budget: found 0.0, wanted more than 0 and at most 0.05"),
        ({"budget": -0.01}, "PESQ budget: found -0.01"),
        ({"budget": 0.051}, "PESQ budget: found 0.051"),
        ({"budget": float("nan")}, "PESQ budget: found nan"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str, found: Found) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        found(lambda chosen: 0.0, **options)
    assert MadeUp.made == []


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_CPU])
def test_without_a_calibration_or_recordings_it_is_said_how_to_get_them(
    precision: Precision, tiny_enhancer: WaveformEnhancer, batches: Batches, speech_like: SpeechLike
) -> None:
    message = (
        rf"^{precision.value}: needs a calibration and recordings .* `edgese calibrate --data DIR`, give it with "
        r"--calibration, and clean/ and noisy/ pairs with --data$"
    )
    for given in ({}, {"calibration": batches}, {"recordings": noisy_recordings(speech_like)}):
        with pytest.raises(ConfigError, match=message):
            make_plans(tiny_enhancer, [Precision.FP16, precision], **given)


def test_fp16_needs_nothing_and_fp32_no_plan(tiny_enhancer: WaveformEnhancer) -> None:
    plans = make_plans(tiny_enhancer, [Precision.FP16, Precision.FP32, Precision.FP16])
    assert plans == {Precision.FP16: Plan(half=tuple(products(tiny_enhancer.network)))}
    assert make_plans(tiny_enhancer, []) == {}


@pytest.mark.usefixtures("quantized")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.pop("wave"), r"calibration: found none for wave, wanted \(streams, hops \* 128\)"),
        (lambda batch: batch.update(wave=batch["wave"][:, 1:]), r"found one of shape \(2, 383\) for wave"),
        (lambda batch: batch.update(ssm_0=batch["ssm_0"][..., :-1]), "ssm_0 has shape .*, wanted "),
        (lambda batch: batch.pop("conv_1"), "found the inputs .*, wanted .*conv_1"),
    ],
)
def test_batches_of_another_network_are_refused(
    change: Callable[[dict[str, Any]], None],
    message: str,
    batches: Batches,
    tiny_enhancer: WaveformEnhancer,
    speech_like: SpeechLike,
) -> None:
    others = [dict(batch) for batch in batches.batches]
    change(others[0])
    other = dataclasses.replace(batches, batches=tuple(others))
    with pytest.raises(CalibrationError, match=message):
        search_int8(tiny_enhancer, other, noisy_recordings(speech_like), method="minmax")


def test_a_calibration_of_other_weights_or_another_network_is_refused(
    tiny_enhancer: WaveformEnhancer, speech_like: SpeechLike, tmp_path: Path
) -> None:
    path = write_calibration(tmp_path / "c.npz", tiny_enhancer, speech_like)
    assert len(read_calibration(path, tiny_enhancer)) == 8
    other = build(dataclasses.replace(TINY, states=6), tiny_enhancer.audio).eval()
    with pytest.raises(CalibrationError, match="made with another network; run `edgese calibrate` with this one"):
        read_calibration(path, other)
    with torch.no_grad():
        tiny_enhancer.network.phase_head.bias += 0.01
    with pytest.raises(CalibrationError, match=r"made with the weights \w{16}, wanted \w{16}"):
        read_calibration(path, tiny_enhancer)


# The numbers, of the graphs themselves


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further processes: each would load PyTorch once more."""
    monkeypatch.setattr(edgese.quantize.search, "in_processes", lambda work, items, jobs, killed: map(work, items))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("precision", [Precision.INT8_CPU])
def test_costs_are_those_of_the_graphs(
    precision: Precision,
    quantized: Bundle,
    tiny_enhancer: WaveformEnhancer,
    batches: Batches,
    speech_like: SpeechLike,
    tmp_path: Path,
) -> None:
    steps: list[str] = []
    recordings = noisy_recordings(speech_like)
    result = search_int8(
        *(tiny_enhancer, batches, recordings),
        precision=precision,
        budget=0.05,
        method="minmax",
        on_progress=steps.append,
    )
    offered = set(products(tiny_enhancer.network)) - set(LEFT_HAND)
    assert {cost.products[0] for cost in result.costs} == offered
    macs = product_macs(tiny_enhancer)
    total = sum(macs[name] for name in offered)
    for cost in result.costs:
        assert cost.share == pytest.approx(macs[cost.products[0]] / total)
        assert 35 < cost.snr_db < 110
        assert cost.worst_loss >= cost.pesq_loss
    noise = [-cost.snr_db - 10 * np.log10(cost.share) for cost in result.costs]
    assert noise == sorted(noise)
    assert result.steps[0].products == tuple(cost.products[0] for cost in result.costs)
    assert result.steps[0].share == pytest.approx(1)
    assert result.steps[-1].pesq_loss <= 0.05
    # the plan's graph is the one that was heard
    float32, rounded = tmp_path / "float32.onnx", tmp_path / "rounded.onnx"
    wanted = make_ranges(tiny_enhancer, batches, float32, symmetric=False)
    assert dict(result.plan.ranges) == {name: wanted[name] for name in result.plan.ranges}
    graph = graph_of(tiny_enhancer, CALIBRATED, precision.value)
    write_graph(tiny_enhancer, graph, rounded, result.plan)
    overlap = tiny_enhancer.audio.overlap
    before, after = (score_graph(ScoringTask(path, graph, overlap, tuple(recordings))) for path in (float32, rounded))
    waves = (np.concatenate([heard.wave for heard in both]) for both in (before, after))
    assert snr_db(*waves) == pytest.approx(result.steps[-1].snr_db, abs=1e-6)
    lost = [one.pesq - other.pesq for one, other in zip(before, after, strict=True)]
    assert np.mean(lost) == pytest.approx(result.steps[-1].pesq_loss, abs=1e-9)
    assert max(lost) == pytest.approx(result.steps[-1].worst_loss, abs=1e-9)
    # what is told
    assert steps[:2] == ["ranges of activations", "float32, for comparison"]
    assert f"INT8 in {result.costs[0].products[0]} (" in "\n".join(steps)
    assert f"INT8 in {len(offered)} products (1 of 1)" in steps


def test_a_recording_is_heard_in_time_with_its_input(
    quantized: Bundle, tiny_enhancer: WaveformEnhancer, speech_like: SpeechLike
) -> None:
    """What PESQ hears is the network's own version of the whole recording."""
    (recording, _) = noisy_recordings(speech_like, 9_001)
    graph = quantized.graph(block=3)
    path = quantized.path / graph.file
    (heard,) = score_graph(ScoringTask(path, graph, tiny_enhancer.audio.overlap, (recording,)))
    assert isinstance(heard, Scored)
    wanted = tiny_enhancer.enhance(torch.from_numpy(recording.noisy)[None])[0].detach().numpy()
    np.testing.assert_allclose(heard.wave, wanted, rtol=0, atol=1e-5)
    assert heard.pesq == pesq_wb(recording.clean, heard.wave)
    assert heard.pesq == pytest.approx(pesq_wb(recording.clean, wanted), abs=1e-3)


def test_a_process_that_dies_is_an_error(quantized: Bundle) -> None:
    task = ScoringTask(Path("3.onnx"), quantized.graphs[0], 384, ())
    with pytest.raises(VerificationError, match=r"3\.onnx: the process that scored it died \(no memory left"):
        died(task)


def test_the_weights_that_a_bundle_holds_make_the_same_products(quantized: Bundle) -> None:
    inside = load_enhancer(quantized.path / "model.safetensors")
    assert make_plans(inside, [Precision.FP16])[Precision.FP16].half == tuple(
        quantized.manifest["precisions"]["fp16"]["half"]
    )
