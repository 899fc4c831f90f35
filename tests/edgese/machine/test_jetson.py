"""A Jetson's state and power, read from trees like those of four boards; what is not there is None with a reason."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgese.machine.jetson import JetsonError, State, read_jetson, read_state, throttled
from edgese.machine.power import LARGEST_GAP_S, PowerSampler, Rail, Trace, energy_of, find_rails

from ..helpers.board_trees import NO_ANSWER, TREES, monitor, put, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: write_tree(tmp_path, name)


def trace(watts: list[float], times_s: list[float], rail: str = "VDD_IN") -> Trace:
    return Trace(tuple(times_s), {rail: tuple(watts)})


@pytest.mark.parametrize(
    ("name", "l4t", "jetpack", "tensorrt"),
    [
        ("orin-nano", "R36.4.4", "6.2.1+b38", "10.3.0.30-1+cuda12.5"),
        ("orin-nx", "R35.4.1", None, "8.5.2-1+cuda11.4"),
        ("agx-orin", "R36.4.3", "6.2.1+b38", "10.3.0.30-1+cuda12.5"),
        ("thor", "R38.4.0", None, "10.13.3.9-1+cuda13.0"),
    ],
)
def test_each_board_tells_its_model_and_software(
    tree: Callable[[str], Path], name: str, l4t: str, jetpack: str | None, tensorrt: str
) -> None:
    board = read_jetson(tree(name))
    assert (board.model, board.cuda) == (TREES[name].model, TREES[name].cuda)
    assert (board.l4t, board.jetpack, board.tensorrt) == (l4t, jetpack, tensorrt)
    assert set(board.missing) == ({"jetpack"} if jetpack is None else set())
    assert json.loads(json.dumps(board.entry()))["machine"]["board"] == board.model


@pytest.mark.parametrize(
    ("name", "mode", "locked"),
    [
        ("orin-nano", "MAXN_SUPER", True),
        ("orin-nx", "25W", False),
        ("agx-orin", "MAXN", False),
        ("thor", "120W", False),
    ],
)
def test_each_board_tells_its_mode_and_clocks(tree: Callable[[str], Path], name: str, mode: str, locked: bool) -> None:
    state = read_state(tree(name))
    assert (state.power_mode, state.jetson_clocks) == (mode, locked)
    gpus = [f"gpu {device}" for device in sorted(TREES[name].gpus)]
    assert list(state.clocks) == [*(f"cpu policy{number}" for number in TREES[name].policies), *gpus]
    governor, *frequencies = TREES[name].gpus[gpus[0].removeprefix("gpu ")]
    gpu = state.clocks[gpus[0]]
    assert gpu.governor == governor == "nvhost_podgov"
    assert [gpu.current_mhz, gpu.lowest_mhz, gpu.highest_mhz] == [value / 1e6 for value in frequencies]
    policy = state.clocks["cpu policy0"]
    assert policy.highest_mhz == TREES[name].policies[0][3] / 1e3
    json.dumps(state.entry(), allow_nan=False)


def test_all_zones_are_named_and_those_without_power_are_none(tree: Callable[[str], Path]) -> None:
    state = read_state(tree("orin-nano"))
    assert list(state.temperatures_c) == list(TREES["orin-nano"].zones)
    assert state.temperatures_c["tj-thermal"] == 51.687
    off = [name for name, value in state.temperatures_c.items() if value is None]
    assert off == ["cv0-thermal", "cv1-thermal", "cv2-thermal"]
    assert all("cannot be read" in state.missing[name] for name in off)


def test_a_sensor_that_is_off_is_no_temperature(tree: Callable[[str], Path]) -> None:
    state = read_state(tree("orin-nx"))
    assert state.temperatures_c["gpu-thermal"] is None
    assert "found -256000" in state.missing["gpu-thermal"]


def test_throttling_is_told_and_the_fan_is_none(tree: Callable[[str], Path]) -> None:
    root = tree("agx-orin")
    before = read_state(root)
    assert before.throttling == {"cpu-throttle-alert": 0, "gpu-throttle-alert": 1}
    put(root, "sys/class/thermal/cooling_device2/cur_state", 0)
    put(root, "sys/class/thermal/cooling_device0/cur_state", 4)  # the fan
    assert throttled(before, read_state(root)) == ["gpu-throttle-alert: before at state 1"]
    assert throttled(read_state(root), read_state(root)) == []


def test_events_in_between_count_and_older_ones_do_not(tree: Callable[[str], Path]) -> None:
    root = tree("thor")
    before = read_state(root)
    assert before.overcurrents == {"oc1": 0, "oc2": 8, "oc3": 813}
    assert throttled(before, before) == [f"devfreq-gpu-gpc-0: {moment} at state 18" for moment in ("before", "after")]
    (counter,) = (root / "sys/devices/platform/soctherm-oc-event/hwmon").glob("hwmon*/oc3_event_cnt")
    counter.write_text("815\n")
    put(root, "var/lib/nvpmodel/status", "pmode:0000\n")
    lines = throttled(before, read_state(root))
    assert lines[-2:] == ["oc3: 2 events in between", "power mode: 120W before, MAXN after"]


def test_the_tenth_device_does_not_stand_before_the_second(tree: Callable[[str], Path]) -> None:
    names = list(read_state(tree("thor")).throttling)
    assert names[:3] == ["cpufreq-cpu0", "cpufreq-cpu1", "cpufreq-cpu2"]
    assert names[-1] == "devfreq-gpu-gpc-0"


@pytest.mark.parametrize("name", ["orin-nano", "thor"])
def test_what_is_gone_is_none_with_the_reason(tree: Callable[[str], Path], name: str) -> None:
    root = tree(name)
    for gone in ("var/lib/dpkg", "usr/local/cuda", "etc/nv_tegra_release", "var/lib/nvpmodel", "sys"):
        shutil.rmtree(root / gone) if (root / gone).is_dir() else (root / gone).unlink()
    board, state = read_jetson(root), read_state(root)
    assert (board.l4t, board.jetpack, board.tensorrt, board.cuda) == (None, None, None, None)
    assert set(board.missing) == {"l4t", "jetpack", "tensorrt", "cuda"}
    assert state == State(None, {}, {}, {}, {}, state.missing)
    assert state.jetson_clocks is None
    assert set(state.missing) == {"power_mode", "cpu", "gpu", "temperatures", "throttling", "overcurrents"}
    assert all(str(root) in reason for reason in (*board.missing.values(), *state.missing.values()))
    with pytest.raises(JetsonError, match="no power monitor"):
        find_rails(root)


@pytest.mark.parametrize(
    ("file", "text", "what", "reason"),
    [
        ("usr/local/cuda/version.json", "{", "cuda", "found no version of CUDA (JSONDecodeError)"),
        ("usr/local/cuda/version.json", "[]", "cuda", "found no version of CUDA (TypeError)"),
        ("usr/local/cuda/version.json", "{}", "cuda", "found no version of CUDA (KeyError)"),
        ("usr/local/cuda/version.json", "", "cuda", "version.json: empty"),
        ("var/lib/dpkg/status", "\x00\xff nonsense", "tensorrt", "found no installed package"),
        ("var/lib/dpkg/status", "Package: x\nStatus: install ok installed\nVersion: 1\n", "tensorrt", "none of the"),
        ("etc/nv_tegra_release", "# R36 without a revision", "l4t", "without release and revision"),
    ],
)
def test_malformed_software_is_none_with_the_reason(
    tree: Callable[[str], Path], file: str, text: str, what: str, reason: str
) -> None:
    root = tree("orin-nano")
    put(root, file, text)
    board = read_jetson(root)
    assert getattr(board, what) is None
    assert reason in board.missing[what]


@pytest.mark.parametrize(
    ("file", "text", "what", "reason"),
    [
        ("sys/class/thermal/thermal_zone0/temp", "hot\n", "cpu-thermal", "found 'hot', wanted an integer"),
        ("sys/class/thermal/thermal_zone0/temp", "51.6\n", "cpu-thermal", "found '51.6', wanted an integer"),
        ("sys/class/thermal/cooling_device1/cur_state", "", "cpu-throttle-alert", "cur_state: empty"),
        ("sys/class/devfreq/17000000.gpu/min_freq", "x" * 100, "17000000.gpu min_freq", f"found '{'x' * 40}', wanted"),
        ("sys/devices/system/cpu/cpufreq/policy4/scaling_governor", "", "policy4 scaling_governor", "empty"),
        ("var/lib/nvpmodel/status", "pmode:\n", "power_mode", "without a mode's number"),
    ],
)
def test_malformed_state_is_none_with_the_reason(
    tree: Callable[[str], Path], file: str, text: str, what: str, reason: str
) -> None:
    root = tree("orin-nano")
    put(root, file, text)
    state = read_state(root)
    assert reason in state.missing[what]
    if "min_freq" in what:  # whether it is locked is then not known
        assert state.clocks["gpu 17000000.gpu"].locked is None
        assert state.jetson_clocks is None


def test_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JetsonError, match=r"wanted a Jetson: run this on the board"):
        read_jetson(tmp_path)


@pytest.mark.parametrize(
    ("name", "rails", "watts"),
    [
        ("orin-nano", "VDD_IN", 5.056 * 1.2),
        ("orin-nx", "VDD_IN", 19.6 * 0.42),
        (
            "agx-orin",
            "VDDQ_VDD2_1V8AO + VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0",
            19.848 * 0.25 + 19.848 * 0.06 + 4.968 * 0.953 + 4.968 * 0.08,
        ),
        ("thor", "VIN", 23.1),
    ],
)
def test_the_power_of_each_board_is_that_of_its_input_or_of_all_rails(
    tree: Callable[[str], Path], name: str, rails: str, watts: float
) -> None:
    found = find_rails(tree(name))
    assert len(found) == {"orin-nano": 3, "orin-nx": 3, "agx-orin": 4, "thor": 4}[name]
    assert not any("shunt" in rail.name or rail.name == "NC" for rail in found)
    with PowerSampler(found, 0.01) as sampler:
        given_up = time.monotonic() + 60
        while len(sampler._times_s) < 2 and time.monotonic() < given_up:  # the thread's first, however busy
            time.sleep(0.01)
    total_rails, total = sampler.trace().total
    assert total_rails == rails
    assert total == pytest.approx([watts] * len(total))
    assert len(total) >= 3  # begin, thread, end
    assert sampler.trace().mean_w == pytest.approx(watts)


@pytest.mark.parametrize(
    ("value", "reason"), [("much", "found 'much', wanted an integer"), (NO_ANSWER, "cannot be read")]
)
def test_a_rail_that_cannot_be_read_is_refused_and_not_left_out(
    tree: Callable[[str], Path], value: object, reason: str
) -> None:
    root = tree("agx-orin")
    file = monitor(root, "1-0041") / "curr2_input"
    file.unlink()
    put(file.parent, file.name, value)
    with pytest.raises(JetsonError, match=f"VDDQ_VDD2_1V8AO: .*{reason}.*its power is not known"):
        find_rails(root)


def test_rails_of_one_name_are_refused(tree: Callable[[str], Path]) -> None:
    root = tree("agx-orin")
    (monitor(root, "1-0041") / "in1_label").write_text("VDD_CPU_CV\n")
    with pytest.raises(JetsonError, match="rails of one name"):
        find_rails(root)


def test_integration_is_exact_where_power_is_linear() -> None:
    # 2 W for 0.5 s, then rising to 6 W in 0.75 s, then falling to 3 W in 0.25 s
    energy = 2 * 0.5 + (2 + 6) / 2 * 0.75 + (6 + 3) / 2 * 0.25
    curve = trace([2, 2, 6, 3], [10.0, 10.5, 11.25, 11.5])
    assert curve.joules == pytest.approx(energy, rel=1e-12)
    finer = trace([2, 2, 2, 4, 6, 3], [10.0, 10.1, 10.5, 10.875, 11.25, 11.5])  # uneven steps on the same curve
    assert finer.joules == pytest.approx(energy, rel=1e-12)
    assert curve.mean_w == pytest.approx(energy / 1.5)
    assert curve.mean_w != pytest.approx(sum(curve.total[1]) / 4)  # the mean of samples is another one


def test_idle_power_is_told_apart() -> None:
    load, idle = trace([9, 11, 10], [0.0, 0.5, 1.0]), trace([4, 6], [50.0, 50.8])
    energy = energy_of(load, idle=idle, audio_s=20.0)
    assert energy.joules == pytest.approx(10.25)
    assert energy.idle_w == pytest.approx(5.0)
    assert energy.net_joules == pytest.approx(10.25 - 5.0)
    assert energy.joules_per_audio_s == pytest.approx(5.25 / 20)
    assert energy.entry()["joules_per_audio_s"] == energy.joules_per_audio_s
    assert energy_of(idle, idle=idle, audio_s=1.0).net_joules == pytest.approx(0.0)


def test_rails_sum_to_the_total_where_none_feeds_all() -> None:
    both = Trace((0.0, 1.0), {"VDD_GPU_SOC": (1.0, 3.0), "VDD_CPU_CV": (2.0, 2.0)})
    assert both.total == ("VDD_CPU_CV + VDD_GPU_SOC", (3.0, 5.0))
    assert both.joules == pytest.approx(sum(both.rail_joules().values())) == pytest.approx(4.0)
    with_input = dataclasses.replace(both, watts={**both.watts, "VIN": (7.0, 7.0)})
    assert with_input.joules == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trace([1], [0.0]), "found 1 samples, wanted at least 2"),
        (lambda: trace([1, 1], [0.0, 1.5 * LARGEST_GAP_S]), "1.50 s without a sample"),
        (lambda: trace([1, 1], [0.5, 0.5]), "not in the order of time"),
        (lambda: trace([1, 1, 1], [0.0, 0.5]), "not of one number"),
        (
            lambda: energy_of(trace([1, 1], [0, 1]), idle=trace([1, 1], [0, 1], "VIN"), audio_s=1),
            "wanted the same rails",
        ),
        (lambda: energy_of(trace([1, 1], [0, 1]), idle=trace([1, 1], [0, 1]), audio_s=0.0), "wanted more than none"),
        (lambda: PowerSampler((), period_s=0.0), "period_s: found 0"),
    ],
)
def test_energy_that_is_not_known_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(JetsonError, match=message):
        make()


def test_lost_samples_are_counted_and_long_gaps_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "power", 2_000_000)
    rail = Rail("VIN", "ina238", (tmp_path / "power",), 1e-6)
    ticks = itertools.count()
    with PowerSampler((rail,), 0.005, clock=lambda: 0.001 * next(ticks)) as sampler:
        (tmp_path / "power").rename(tmp_path / "away")
        while sampler._lost < 2:
            time.sleep(0.005)
        (tmp_path / "away").rename(tmp_path / "power")
    assert sampler.trace().lost >= 2
    assert sampler.trace().mean_w == pytest.approx(2.0)
    slow = PowerSampler((rail,), clock=lambda: 10.0 * next(ticks))
    with slow:
        pass
    with pytest.raises(JetsonError, match="without a sample"):
        slow.trace()


def test_a_block_whose_end_cannot_be_sampled_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "power", 2_000_000)
    rail = Rail("VIN", "ina238", (tmp_path / "power",), 1e-6)
    with pytest.raises(JetsonError, match="its power is not known"), PowerSampler((rail,)):
        (tmp_path / "power").unlink()
    with pytest.raises(JetsonError, match="its power is not known"), PowerSampler((rail,)):
        pass
