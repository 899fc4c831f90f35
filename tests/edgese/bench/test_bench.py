"""Measuring with clocks and processes that are made up, so that all numbers are known; real ones only as to form."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgese.bench import advice, measure
from edgese.bench.capacity import Point, most_streams
from edgese.bench.measure import Report, Settings, bench, choose, require_device, sound_file
from edgese.bench.probe import Case, MeasurementError, Probe, measure_point
from edgese.bench.timing import Timing, back_to_back, calls_for, paced, percentile, pooled, spread
from edgese.machine.host import allowed_cores, describe
from export import ExportError
from export.bundle import Bundle
from runtimes.base import RuntimeUnavailable
from runtimes.registry import RUNTIMES

from ..helpers.fake_probe import FakeLab, plain_cost
from ..helpers.identity_bundle import write_identity_bundle

ROOT = Path(__file__).parents[3]
PERIOD_S = 0.008
EMPTY: dict[str, Any] = {}


class Clock:
    """Stands still until it is told how much passes."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


def timing(*milliseconds: float, period_s: float = PERIOD_S) -> Timing:
    took = np.array(milliseconds) / 1e3
    return Timing(period_s, took, took)


# Calls


def test_back_to_back_counts_the_calls_and_not_what_they_are_fed() -> None:
    clock, fed = Clock(), []
    durations = iter([0.001, 0.009, 0.002])

    def feed(index: int) -> dict[str, Any]:
        fed.append(index)
        clock.advance(5.0)
        return EMPTY

    found = back_to_back(lambda feeds: clock.advance(next(durations)), feed, 3, PERIOD_S, clock=clock)
    np.testing.assert_allclose(found.took_s, [0.001, 0.009, 0.002])
    assert fed == [0, 1, 2]
    assert found.missed == 1
    assert found.rtf == pytest.approx(0.004 / PERIOD_S)


def test_back_to_back_tells_what_share_of_the_core_this_process_had() -> None:
    clock, cpu_clock = Clock(), Clock()

    def call(feeds: object) -> None:
        clock.advance(0.004)
        cpu_clock.advance(0.003)

    found = back_to_back(call, lambda index: EMPTY, 10, PERIOD_S, clock=clock, cpu_clock=cpu_clock)
    assert found.core_share == pytest.approx(0.75)


def test_calls_stop_when_more_have_missed_than_are_allowed() -> None:
    clock = Clock()
    durations = iter([0.001, 0.009, 0.001, 0.009, 0.001])
    found = back_to_back(
        lambda feeds: clock.advance(next(durations)), lambda index: EMPTY, 5, PERIOD_S, allowed_misses=1, clock=clock
    )
    np.testing.assert_allclose(found.took_s, [0.001, 0.009, 0.001, 0.009])


def test_paced_calls_wait_for_their_block_and_a_late_one_delays_the_next() -> None:
    clock = Clock()
    durations = iter([0.001, 0.012, 0.001, 0.001])
    found = paced(
        lambda feeds: clock.advance(next(durations)),
        lambda index: EMPTY,
        4,
        PERIOD_S,
        clock=clock,
        sleep=clock.advance,
    )
    np.testing.assert_allclose(found.took_s, [0.001, 0.012, 0.001, 0.001])
    np.testing.assert_allclose(found.ended_s, [0.001, 0.012, 0.005, 0.001], atol=1e-9)
    assert found.missed == 1
    assert clock.now_s == pytest.approx(100 + 4 * PERIOD_S + 0.001)


def test_a_late_wake_up_counts_against_the_deadline_and_not_as_the_call_s_time() -> None:
    clock = Clock()
    found = paced(
        lambda feeds: clock.advance(0.002),
        lambda index: EMPTY,
        1,
        PERIOD_S,
        clock=clock,
        sleep=lambda seconds: clock.advance(seconds + 0.007),
    )
    np.testing.assert_allclose((found.took_s, found.ended_s), [[0.002], [0.009]])
    assert found.missed == 1


@pytest.mark.parametrize("measure", [back_to_back, paced])
def test_the_garbage_collector_rests_during_calls_only(measure: Callable[..., Timing]) -> None:
    seen: list[bool] = []
    measure(lambda feeds: seen.append(gc.isenabled()), lambda index: EMPTY, 2, 1e-6)
    assert seen == [False, False]
    assert gc.isenabled()


# Percentiles


@pytest.mark.parametrize(("percent", "needed"), [(50.0, 2), (90.0, 10), (95.0, 20), (99.0, 100), (99.9, 1000)])
def test_a_percentile_is_known_from_enough_calls_on(percent: float, needed: int) -> None:
    values = np.linspace(0, 1, needed)
    assert calls_for(percent) == needed
    assert percentile(values[1:], percent) is None
    assert percentile(values, percent) == pytest.approx(percent / 100)


def test_percentiles_of_several_turns_are_of_all_their_calls() -> None:
    both = pooled([timing(*[1.0] * 60), timing(*[3.0] * 60)])
    found = both.percentiles_ms()
    assert list(found) == ["p50", "p90", "p95", "p99", "p99_9", "max"]
    assert (found["p50"], found["p99"], found["p99_9"], found["max"]) == pytest.approx((2.0, 3.0, None, 3.0))


def test_the_spread_is_the_largest_over_the_smallest() -> None:
    assert spread([2.0, 3.0, 2.5]) == pytest.approx(0.5)
    assert spread([2.0]) is None


# Streams until the deadline


def point(streams: int, milliseconds: float, n_calls: int = 100) -> Point:
    return Point(streams, (timing(*[milliseconds] * n_calls),), complete=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 15, 16, 17, 40, 63, 64, 100, 511, 700])
def test_the_search_finds_the_most_streams_within_a_sixteenth(limit: int) -> None:
    found = most_streams(lambda streams: point(streams, 8.0 * streams / limit))
    assert limit - max(1, limit // 16) < found.streams <= limit
    assert not found.at_least
    assert found.p99_s == pytest.approx(PERIOD_S * found.streams / limit)
    assert len(found.points) < 30


def test_none_fits() -> None:
    found = most_streams(lambda streams: point(streams, 9.0))
    assert (found.streams, found.p99_s, found.at_least) == (0, None, False)


def test_the_search_ends_at_its_ceiling_and_says_so() -> None:
    found = most_streams(lambda streams: point(streams, 0.001), ceiling=100)
    assert (found.streams, found.at_least) == (100, True)
    assert [each.streams for each in found.points] == [1, 2, 4, 8, 16, 32, 64, 100]


def test_one_burst_does_not_end_the_search() -> None:
    bursts = iter([False, True] + [False] * 40)

    def measure(streams: int) -> Point:
        return point(streams, 100.0 if next(bursts) else 8.0 * streams / 10)

    found = most_streams(measure)
    assert found.streams == 10
    assert [each.streams for each in found.points][:3] == [1, 2, 2]


def test_all_cores_begin_with_what_one_carries_and_go_down_from_there() -> None:
    enough = most_streams(lambda streams: point(streams, 8.0), cores=4, start=12, ceiling=12)
    assert (enough.streams, enough.streams_per_core, len(enough.points)) == (48, 12, 1)
    less = most_streams(lambda streams: point(streams, 8.0 * streams / 9), cores=4, start=12, ceiling=12)
    assert (less.streams, less.streams_per_core) == (36, 9)


def test_a_point_is_as_good_as_its_slowest_core_and_needs_a_known_p99() -> None:
    fast, slow = timing(*[1.0] * 100), timing(*[9.0] * 100)
    assert Point(1, (fast, fast), complete=True).fits
    assert not Point(1, (fast, slow), complete=True).fits
    assert not Point(1, (fast, fast), complete=False).fits
    assert not Point(1, (timing(*[1.0] * 99),), complete=True).fits


# Which cases


@pytest.fixture
def bundle(identity_bundle: Path) -> Bundle:
    return Bundle.open(identity_bundle)


def test_without_choice_all_cases_are_measured_by_block(bundle: Bundle) -> None:
    for device, runtimes in (
        ("cpu", ["onnxruntime", "native", "openvino", "pytorch"]),
        ("cuda", ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"]),
        ("jetson", list(RUNTIMES)),
    ):
        found = [str(case) for case in choose(bundle, Settings(device=device))]
        assert found == [f"{runtime} fp32 block {block}" for block in (1, 16) for runtime in runtimes]


def test_a_choice_is_kept_to(bundle: Bundle) -> None:
    (case,) = choose(bundle, Settings(("onnxruntime", "onnxruntime"), ("fp32",), (16,)))
    assert (case.runtime, case.precision, case.block, case.period_s) == ("onnxruntime", "fp32", 16, 0.128)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(blocks=(1, 3)), r"no graph of block 3; this bundle has block 1 \(fp32\), block 16 \(fp32\)"),
        (Settings(precisions=("int8",)), "no graph of int8; this bundle has"),
        (Settings(runtimes=("abacus",)), "runtime abacus: unknown; known here: native, onnxruntime"),
        (Settings(runtimes=("tensorrt",)), "tensorrt: does not compute on --device cpu: see --device cuda"),
        (
            Settings(runtimes=("openvino",), device="cuda"),
            "openvino: does not compute on --device cuda: see",
        ),
    ],
)
def test_what_is_not_there_is_named_with_what_is(settings: Settings, message: str, bundle: Bundle) -> None:
    with pytest.raises((ExportError, RuntimeUnavailable), match=message):
        choose(bundle, settings)


def test_a_manifest_without_frames_is_named(bundle: Bundle) -> None:
    broken = dataclasses.replace(bundle, manifest={**bundle.manifest, "latency": {}})
    with pytest.raises(ExportError, match="lacks 'overlap_samples'; export the bundle again"):
        choose(broken, Settings())


def test_a_core_that_may_not_be_used_is_refused(bundle: Bundle) -> None:
    with pytest.raises(MeasurementError, match=r"--core: found 4096, wanted one that this process may use: "):
        bench(bundle, Settings(core=4096), start=FakeLab().start)


def test_a_device_that_this_machine_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "read_device", lambda: None)
    here = dataclasses.replace(describe(), board=None)
    require_device("cpu", here)
    with pytest.raises(
        MeasurementError, match=r"--device jetson: this machine is no Jetson .* run edgese bench on the bo"
    ):
        require_device("jetson", here)
    with pytest.raises(MeasurementError, match="--device cuda: found no NVIDIA GPU that a driver reports"):
        require_device("cuda", here)
    require_device("jetson", dataclasses.replace(here, board="NVIDIA Jetson Orin Nano Developer Kit"))


# The whole


@pytest.fixture
def two_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is registered: `quick` and `slow`."""
    for name in list(RUNTIMES):
        monkeypatch.delitem(RUNTIMES, name)
    for name in ("quick", "slow"):
        monkeypatch.setitem(RUNTIMES, name, None)


def measured(bundle: Bundle, lab: FakeLab | None = None, **settings: Any) -> Report:
    return bench(bundle, Settings(**settings), start=(lab or FakeLab()).start)


@pytest.mark.usefixtures("two_runtimes")
def test_turns_alternate_and_each_is_a_fresh_process(bundle: Bundle) -> None:
    lab = FakeLab()
    report = measured(bundle, lab, repeats=2, seconds=1.0)
    order = ["quick fp32 block 1", "slow fp32 block 1", "quick fp32 block 16", "slow fp32 block 16"]
    on_core = [name for name, core in lab.started if core == report.core]
    assert on_core == [*order, *order, *order]  # two turns, then the search for streams
    others = len(allowed_cores()) - 1
    assert len(lab.started) == len(on_core) + others * len(order)
    assert lab.open == 0
    assert [str(result.case) for result in report.results] == order
    assert [len(result.turns) for result in report.results] == [2] * 4


@pytest.mark.usefixtures("two_runtimes")
def test_enough_calls_are_made(bundle: Bundle) -> None:
    """One each block for as long as was asked, and back to back as many as p99.9 needs, all turns together."""
    block_1, block_16 = measured(bundle, runtimes=("quick",), repeats=3, seconds=4.0).results
    assert (len(block_1.paced.took_s), len(block_1.back.took_s)) == (1500, 1500)
    assert (len(block_16.paced.took_s), len(block_16.back.took_s)) == (96, 1002)


@pytest.mark.usefixtures("two_runtimes")
def test_latency_is_told_apart(bundle: Bundle) -> None:
    result = measured(bundle, runtimes=("quick",), blocks=(16,), streams=2).results[0]
    assert plain_cost(result.case, 2) == pytest.approx(0.0037)
    found = result.latency_ms
    assert (found["algorithmic"], found["buffering"]) == pytest.approx((24.0, 128.0))
    assert found["processing_p50"] == found["processing_p99"] == pytest.approx(2 * 3.7 + 0.1)  # the wake-up is part
    assert found["sum_p99"] == pytest.approx(24 + 128 + 7.5)


@pytest.mark.usefixtures("two_runtimes")
def test_streams_are_counted_on_one_core_and_on_all(bundle: Bundle) -> None:
    """A call of n streams takes 0.5 + 0.1 n ms of 8: 75 fit."""
    result = measured(bundle, runtimes=("quick",), blocks=(1,), seconds=1.0).results[0]
    assert 75 - 4 < result.one_core.streams <= 75
    n_cores = len(allowed_cores())
    assert (result.capacity.cores, result.capacity.streams) == (n_cores, n_cores * result.one_core.streams)


@pytest.mark.usefixtures("two_runtimes")
def test_a_runtime_that_is_not_installed_is_left_out_unless_it_was_asked_for(bundle: Bundle) -> None:
    lab = FakeLab(missing=("slow",))
    report = measured(bundle, lab, seconds=0.5)
    assert report.left_out == {"slow": "slow cannot be loaded"}
    assert {result.case.runtime for result in report.results} == {"quick"}
    assert sum("slow" in name for name, _ in lab.started) == 1
    with pytest.raises(RuntimeUnavailable, match="slow cannot be loaded"):
        measured(bundle, FakeLab(missing=("slow",)), runtimes=("quick", "slow"))
    with pytest.raises(RuntimeUnavailable, match="quick cannot be loaded; slow cannot be loaded"):
        measured(bundle, FakeLab(missing=("quick", "slow")))


@pytest.mark.usefixtures("two_runtimes")
def test_this_process_keeps_off_the_measured_core_and_comes_back(bundle: Bundle) -> None:
    before, seen = os.sched_getaffinity(0), []
    lab = FakeLab()

    def start(case: Case, core: int, sound: Path, streams: int) -> Any:
        seen.append((core, os.sched_getaffinity(0)))
        return lab.start(case, core, sound, streams)

    bench(bundle, Settings(core=min(before), seconds=0.5, repeats=1), start=start)
    assert seen[0] == (min(before), before - {min(before)} or before)
    assert os.sched_getaffinity(0) == before


@pytest.mark.usefixtures("two_runtimes")
def test_progress_goes_up_to_the_last_step(bundle: Bundle) -> None:
    steps: list[tuple[int, int, str]] = []
    bench(bundle, Settings(repeats=2, seconds=0.5), lambda *step: steps.append(step), FakeLab(missing=("slow",)).start)
    assert [done for done, _, _ in steps] == list(range(12))
    assert {total for _, total, _ in steps} == {12}
    assert (steps[0][2], steps[-1][2]) == ("turn 1, quick fp32 block 1", "streams, slow fp32 block 16")


@pytest.mark.usefixtures("two_runtimes")
def test_the_report_is_json_with_the_numbers_of_every_repeat(bundle: Bundle) -> None:
    lab = FakeLab(paced_factor=lambda turn: 2.0 + turn)
    entry = json.loads(json.dumps(measured(bundle, lab, repeats=2, seconds=8.0).entry(), allow_nan=False))
    assert set(entry) == {"bundle", "machine", "settings", "left_out", "results"}
    assert (entry["bundle"]["name"], entry["bundle"]["verified"]) == ("identity", True)
    assert entry["machine"]["pinned_core"] == allowed_cores()[-1]
    result = entry["results"][0]
    assert (result["runtime"], result["precision"], result["block"], result["block_ms"]) == ("quick", "fp32", 1, 8.0)
    kept = {"calls", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "max_ms", "rtf", "missed", "core_share"}
    for way in ("back", "paced"):
        assert set(result[way]) == kept | {"spread", "repeats"}
        assert [set(turn) for turn in result[way]["repeats"]] == [kept, kept]
    assert [turn["p99_ms"] for turn in result["paced"]["repeats"]] == pytest.approx([1.2, 1.8])
    assert result["paced"]["spread"] == pytest.approx({"p50": 0.5, "p99": 0.5})
    assert [cold["total_s"] for cold in result["cold_start"]] == pytest.approx([0.36, 0.36])
    assert result["one_core"]["points"][0]["streams"] == 1
    assert result["one_core"]["points"][0]["fits"] is True
    stopped = [each for each in result["one_core"]["points"] if not each["fits"]]
    assert {each["p99_ms"] for each in stopped} == {None}


# What to use, in words


def latency_advice(bundle: Bundle, lab: FakeLab, **settings: Any) -> advice.Advice:
    return advice.recommend(measured(bundle, lab, **settings))[0]


def costs(**milliseconds: float) -> Callable[[Case, int], float]:
    """`quick_1=2.0`: back to back, a call of block 1 in `quick` takes 2 ms whatever it holds; paced ones take twice."""
    return lambda case, streams: milliseconds[f"{case.runtime}_{case.block}"] / 1e3


@pytest.mark.usefixtures("two_runtimes")
def test_the_smallest_block_that_fits_is_advised_and_of_it_the_fastest_runtime(bundle: Bundle) -> None:
    lab = FakeLab(costs(quick_1=0.5, slow_1=1.0, quick_16=0.6, slow_16=1.1))
    found = latency_advice(bundle, lab)
    assert found.result is not None
    assert (found.result.case.runtime, found.result.case.block) == ("quick", 1)
    assert str(found) == (
        "lowest latency: use quick, fp32, block 1: 33.1 ms in all at p99 (24.0 algorithmic, 8.0 buffering, "
        "1.10 processing), no deadline missed in 1,875 paced calls"
    )
    assert found.entry() == {
        "purpose": "lowest latency",
        "runtime": "quick",
        "precision": "fp32",
        "block": 1,
        "words": found.words,
    }


@pytest.mark.usefixtures("two_runtimes")
@pytest.mark.parametrize(
    ("paced_ms", "reason"),
    [(4.1, "p99 4.10 ms is more than half of 8 ms"), (7.95, "1,875 of 1,875 deadlines missed")],
)
def test_a_block_without_margin_or_with_misses_is_passed_over(paced_ms: float, reason: str, bundle: Bundle) -> None:
    lab = FakeLab(costs(quick_1=paced_ms / 2, slow_1=8.0, quick_16=5.0, slow_16=6.0))
    found = latency_advice(bundle, lab)
    assert found.result is not None
    assert (found.result.case.runtime, found.result.case.block) == ("quick", 16)
    assert found.words.endswith(f"; not quick, fp32, block 1: {reason}")


@pytest.mark.usefixtures("two_runtimes")
def test_a_block_whose_p99_is_unknown_is_not_advised(bundle: Bundle) -> None:
    lab = FakeLab(costs(quick_1=3.0, slow_1=3.0, quick_16=5.0, slow_16=6.0))
    found = latency_advice(bundle, lab, repeats=2, seconds=5.0)
    assert found.result is None
    assert found.words == (
        "nothing that was measured keeps real time with half the block to spare: "
        "quick, fp32, block 1: p99 6.00 ms is more than half of 8 ms; "
        "quick, fp32, block 16: 80 paced calls are too few for p99; use --seconds 7"
    )
    assert found.entry()["runtime"] is None


@pytest.mark.usefixtures("two_runtimes")
def test_what_repeats_do_not_tell_apart_is_not_told_apart(bundle: Bundle) -> None:
    """`slow` is faster by a tenth, but its own turns differ by more: the first in order is advised, both are named."""

    def factor(turn: int) -> float:
        return 2.0 + 0.3 * turn

    lab = FakeLab(costs(quick_1=0.50, slow_1=0.45), paced_factor=factor)
    found = latency_advice(bundle, lab, blocks=(1,))
    assert found.result is not None
    assert found.result.case.runtime == "quick"
    assert found.words.endswith("; not distinguishable from slow, fp32, block 1")
    lab = FakeLab(costs(quick_1=0.50, slow_1=0.20), paced_factor=factor)
    found = latency_advice(bundle, lab, blocks=(1,))
    assert found.result is not None
    assert found.result.case.runtime == "slow"
    assert "distinguishable" not in found.words


@pytest.mark.usefixtures("two_runtimes")
def test_most_streams_prefers_the_small_block_where_the_search_cannot_tell(bundle: Bundle) -> None:
    def cost(case: Case, streams: int) -> float:
        """Block 16 carries 64 streams; block 1 carries 64 in `slow`, and 40 in `quick`."""
        return case.period_s * streams / (40 if (case.runtime, case.block) == ("quick", 1) else 64)

    found = advice.recommend(measured(bundle, FakeLab(cost)))[1]
    assert found.result is not None
    assert (found.result.case.runtime, found.result.case.block) == ("slow", 1)
    n_cores = len(allowed_cores())
    assert f"{64 * n_cores} streams on {n_cores} core" in found.words
    assert "64 in a call, p99 8.0 of 8 ms; output runs 32 ms and the call behind input" in found.words


@pytest.mark.usefixtures("two_runtimes")
def test_nothing_is_advised_for_streams_where_none_fits(bundle: Bundle) -> None:
    found = advice.recommend(measured(bundle, FakeLab(lambda case, streams: 1.0), seconds=1.0))[1]
    assert (found.result, found.words) == (None, "nothing that was measured carries a stream within its deadline")


# Warnings


@pytest.mark.usefixtures("two_runtimes")
def test_a_quiet_machine_is_not_warned_of(bundle: Bundle) -> None:
    assert advice.warnings(measured(bundle)) == []


@pytest.mark.usefixtures("two_runtimes")
def test_a_noisy_machine_is_warned_of_with_its_load(bundle: Bundle) -> None:
    report = measured(bundle, FakeLab(paced_factor=lambda turn: 1.0 + turn, core_share=0.6), blocks=(1,))
    (warning,) = advice.warnings(report)
    assert warning.startswith("the machine is noisy: medians differ by up to 200% between turns (")
    assert "p99s differ by up to 200% between turns" in warning
    assert "others had up to 40% of a measured core" in warning
    assert f"The load before was {report.machine.load_before:.2f} on {report.machine.cores} core" in warning


@pytest.mark.usefixtures("two_runtimes")
def test_one_turn_and_a_bundle_that_failed_are_warned_of(tmp_path: Path) -> None:
    failed = Bundle.open(write_identity_bundle(tmp_path / "failed", verified=False))
    first, second = advice.warnings(measured(failed, repeats=1))
    assert "did not pass its verification" in first
    assert "measured in one turn: how far the numbers repeat is not known" in second


# Pictures


@pytest.mark.slow
@pytest.mark.usefixtures("two_runtimes")
def test_pictures_show_every_block_with_its_deadline(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    from matplotlib.figure import Figure

    from edgese.bench.plot import prepare_folder, write_plots

    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    folder = tmp_path / "deep" / "pictures"
    prepare_folder(folder)
    written = write_plots(measured(bundle), folder)
    assert written == [folder / "latency.png", folder / "streams.png"]
    assert all(png.read_bytes().startswith(b"\x89PNG\r\n") for png in written)
    for figure in figures:
        assert [axis.get_title(loc="left") for axis in figure.axes] == ["block 1: 8 ms", "block 16: 128 ms"]
    deadlines = [np.unique(line.get_xdata()).tolist() for line in figures[0].axes[1].lines]
    assert [128.0] in deadlines
    assert [64.0] in deadlines
    ticks = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert ticks == ["all", "1 in 10 (p90)", "1 in 100 (p99)", "1 in 1,000 (p99.9)"]
    curve = next(line for line in figures[1].axes[0].lines if line.get_marker() == "o")
    assert np.asarray(curve.get_xdata())[:4].tolist() == [1, 2, 4, 8]


def test_a_folder_for_pictures_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    from edgese.bench.plot import prepare_folder
    from edgese.errors import EdgeseError

    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeseError, match=r"file: cannot be made \(File exists\); choose another --plot folder"):
        prepare_folder(tmp_path / "file")


# Real processes: what takes how long is not asked


@pytest.fixture(scope="module")
def sound() -> Iterator[Path]:
    with sound_file(16_000) as path:
        yield path


@pytest.fixture
def case(bundle: Bundle) -> Case:
    return choose(bundle, Settings(("onnxruntime",), blocks=(16,)))[0]


def test_a_process_measures_on_its_core_until_it_is_closed(case: Case, sound: Path) -> None:
    core = allowed_cores()[0]
    with Probe(case, core, sound, streams=2) as probe:
        process = probe._process
        assert os.sched_getaffinity(process.pid) == {core}
        cold = probe.cold
        parts = (cold.start_s, cold.import_s, cold.load_s, cold.first_call_s)
        assert min(parts) > 0
        assert cold.total_s == pytest.approx(sum(parts))
        assert cold.peak_mb is not None
        assert 10 < cold.peak_mb < 2000
        back, slow = probe.back(20), probe.paced(2)
        assert (len(back.took_s), len(slow.took_s)) == (20, 2)
        assert back.took_s.min() > 0
        assert back.core_share is not None
        assert back.core_share > 0
        assert (slow.ended_s > slow.took_s).all()
        assert process.poll() is None
    assert process.poll() == 0
    probe.close()


def test_a_point_is_measured_in_several_processes(case: Case, sound: Path) -> None:
    with Probe(case, allowed_cores()[0], sound) as first, Probe(case, allowed_cores()[-1], sound) as second:
        found = measure_point([first, second], 3)
    assert (found.streams, found.complete) == (3, all(len(each.took_s) == 100 for each in found.timings))
    assert len(found.timings) == 2


def test_a_library_that_cannot_be_loaded_is_a_missing_runtime(
    case: Case, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('taken away')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeUnavailable, match="onnxruntime cannot be loaded"):
        Probe(case, allowed_cores()[0], sound)


def test_a_graph_that_cannot_be_opened_is_a_failed_measurement(sound: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(write_identity_bundle(tmp_path / "bundle", name="another"))
    case = choose(bundle, Settings(("onnxruntime",)))[0]
    with pytest.raises(MeasurementError, match=r"edgese\.bundle is identity, wanted another"):
        Probe(case, allowed_cores()[0], sound)


def test_a_process_that_is_killed_is_a_failed_measurement(case: Case, sound: Path) -> None:
    with Probe(case, allowed_cores()[0], sound) as probe:
        os.kill(probe._process.pid, signal.SIGKILL)
        with pytest.raises(MeasurementError, match="fp32 block 16: the measuring process was ended by SIGKILL"):
            probe.back(10)


def test_a_bug_in_a_process_keeps_its_traceback(case: Case, sound: Path) -> None:
    with Probe(case, allowed_cores()[0], sound) as probe:
        probe.begin(do="nonsense")
        with pytest.raises(RuntimeError, match=r"Traceback[\s\S]*no attribute 'nonsense'"):
            probe.answer()


@pytest.mark.slow
def test_giving_up_ends_a_process_in_the_middle_of_its_calls(case: Case, sound: Path) -> None:
    probe = Probe(case, allowed_cores()[0], sound)
    probe.begin(do="paced", calls=1_000_000)
    assert probe._process.poll() is None
    probe.close(give_up=True)
    assert probe._process.poll() is not None


def test_a_measuring_process_imports_nothing_heavy_before_its_clock_runs() -> None:
    program = "import sys, edgese.bench.coldstart; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "edgese" in loaded
    assert loaded & {"numpy", "onnxruntime", "torch", "soundfile", "typer", "rich"} == set()
