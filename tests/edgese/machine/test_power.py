"""What a device's bench tells of the board that it ran on: trees of four Jetsons, and a machine that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgese.board.archive import unpack_archive, write_archive
from edgese.device.__main__ import main
from edgese.device.content import Content
from edgese.device.latency import Report, measure
from edgese.graphs.engines import EngineFolder
from edgese.machine import power
from edgese.machine import watch as readings
from edgese.machine.jetson import JetsonError
from edgese.machine.watch import watch

from ..helpers.board_trees import TREES, monitor, put, write_tree
from ..helpers.golden_bundle import write_golden_bundle


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    folder = tmp_path_factory.mktemp("golden")
    write_archive(write_golden_bundle(folder / "identity"), folder / "a.tar.gz")
    return Content.open(unpack_archive(folder / "a.tar.gz", folder / "device"))


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may read a rail late; what the trees draw does not change meanwhile."""
    monkeypatch.setattr(power, "LARGEST_GAP_S", 60.0)


def measured(content: Content, root: Path, on_result: Callable[[object], None] = lambda result: None) -> dict[str, Any]:
    """The report of one graph in ONNX Runtime, as JSON gives it back."""
    engines = EngineFolder(content.engines, 16)
    chosen = {"runtimes": ["onnxruntime"], "blocks": [16]}
    report: Report = measure(content, engines, **chosen, seconds=0.2, root=root, on_result=on_result)
    entry: dict[str, Any] = json.loads(json.dumps(report.entry(), allow_nan=False))
    return entry


IDLE_W = {  # of the rails in the trees: mV x mA, and what ina238 tells itself
    "orin-nano": ("VDD_IN", 5.056 * 1.200),
    "orin-nx": ("VDD_IN", 19.6 * 0.42),
    "agx-orin": (
        "VDDQ_VDD2_1V8AO + VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0",
        4.968 * 0.08 + 19.848 * 0.06 + 19.848 * 0.25 + 4.968 * 0.953,
    ),
    "thor": ("VIN", 23.1),
}
SOFTWARE = {  # L4T, JetPack, TensorRT, CUDA
    "orin-nano": ("R36.4.4", "6.2.1+b38", "10.3.0.30-1+cuda12.5", "12.6.11"),
    "orin-nx": ("R35.4.1", None, "8.5.2-1+cuda11.4", "11.4.19"),
    "agx-orin": ("R36.4.3", "6.2.1+b38", "10.3.0.30-1+cuda12.5", "12.6.68"),
    "thor": ("R38.4.0", None, "10.13.3.9-1+cuda13.0", "13.0.3"),
}


@pytest.mark.parametrize("name", TREES)
def test_a_bench_tells_what_it_ran_on(name: str, content: Content, tmp_path: Path) -> None:
    tree = TREES[name]
    found = measured(content, write_tree(tmp_path, name))
    board, before, after = found["board"], found["before"], found["after"]
    assert (board["model"], found["machine"]["board"]) == (tree.model, tree.model)
    assert tuple(board[key] for key in ("l4t", "jetpack", "tensorrt", "cuda")) == SOFTWARE[name]
    assert before == after
    assert before["power_mode"] == tree.modes[tree.mode]
    assert before["jetson_clocks"] is (name == "orin-nano")
    governors = {clock: values["governor"] for clock, values in before["clocks"].items()}
    assert governors == {f"cpu policy{number}": "schedutil" for number in tree.policies} | {
        f"gpu {device}": "nvhost_podgov" for device in tree.gpus
    }
    known = {zone: value / 1e3 for zone, value in tree.zones.items() if isinstance(value, int) and value > 0}
    assert {zone: value for zone, value in after["temperatures_c"].items() if value is not None} == known
    assert found["throttled"] == [
        f"{device}: {moment} at state {state}"
        for moment in ("before", "after")
        for device, state in tree.cooling
        if state and "fan" not in device
    ]
    rails, idle_w = IDLE_W[name]
    assert (found["idle"]["rails"], found["idle"]["mean_w"]) == (rails, pytest.approx(idle_w))
    assert found["idle"]["duration_s"] >= 0.2
    (result,) = found["results"]
    energy = result["energy"]
    assert (energy["rails"], energy["audio_s"]) == (rails, pytest.approx(2 * 0.128))
    assert energy["mean_w"] == pytest.approx(energy["idle_w"]) == pytest.approx(idle_w)
    assert energy["joules_per_audio_s"] == pytest.approx(0, abs=1e-6)
    silent = [zone for zone in tree.zones if zone not in known]
    assert all(f"{moment}, {zone}" in found["missing"] for zone in silent for moment in ("before", "after"))
    assert ("board, jetpack" in found["missing"]) is (SOFTWARE[name][1] is None)


def test_what_calls_draw_above_idle_is_told_for_a_second_of_sound(
    content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the current from the moment on at which the energy of calls is measured."""
    root = write_tree(tmp_path, "orin-nano")
    energy = readings.Watched.energy

    def drawing(self: readings.Watched, work: Callable[[], object], audio_s: float) -> object:
        put(monitor(root, "1-0040"), "curr1_input", 2400)
        return energy(self, work, audio_s)

    monkeypatch.setattr(readings.Watched, "energy", drawing)
    (result,) = measured(content, root)["results"]
    found = result["energy"]
    assert (found["idle_w"], found["mean_w"]) == (pytest.approx(6.0672), pytest.approx(12.1344))
    assert found["net_joules"] == pytest.approx(6.0672 * found["duration_s"])
    assert found["joules_per_audio_s"] == pytest.approx(found["net_joules"] / 0.256)


def test_what_changes_in_between_is_told(content: Content, tmp_path: Path) -> None:
    root = write_tree(tmp_path, "orin-nano")

    def warm(result: object) -> None:
        put(root, "sys/class/thermal/thermal_zone0/temp", 61_000)
        put(root, "sys/devices/platform/soctherm-oc-event/hwmon/hwmon2/oc3_event_cnt", 6)

    (counters,) = root.glob("sys/devices/platform/soctherm-oc-event/hwmon/hwmon*")
    assert counters.name == "hwmon2"
    found = measured(content, root, warm)
    assert found["before"]["temperatures_c"]["cpu-thermal"] == 51.687
    assert found["after"]["temperatures_c"]["cpu-thermal"] == 61.0
    assert found["throttled"] == ["oc3: 2 events in between"]


def test_power_that_is_not_known_is_said_to_be_so(content: Content, tmp_path: Path) -> None:
    root = write_tree(tmp_path, "orin-nano")
    (monitor(root, "1-0040") / "curr2_input").unlink()
    found = measured(content, root)
    (result,) = found["results"]
    assert found["idle"] is result["energy"] is None
    assert "VDD_CPU_GPU_CV" in found["missing"]["power"]
    assert found["missing"]["energy of fp32-block16.onnx in onnxruntime"] == found["missing"]["power"]


def test_power_that_is_lost_while_calls_run_is_said_to_be_so(content: Content, tmp_path: Path) -> None:
    root = write_tree(tmp_path, "orin-nano")
    watched = watch(root, 0.2)
    (monitor(root, "1-0040") / "curr1_input").unlink()
    with pytest.raises(JetsonError, match="VDD_IN"):
        watched.energy(lambda: None, 1.0)
    assert watched.entry()["idle"]["rails"] == "VDD_IN"


def test_another_machine_has_no_board_and_says_why(content: Content, tmp_path: Path) -> None:
    found = measured(content, tmp_path)
    assert [found[key] for key in ("board", "before", "after", "throttled", "idle")] == [None] * 5
    assert "wanted a Jetson" in found["missing"]["board"]
    assert found["results"][0]["energy"] is None


def test_a_device_tells_which_runtimes_open(
    content: Content, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_tree(tmp_path, "thor")
    assert main(["runtimes", "--json", "--runtime", "onnxruntime", "--root", str(root)], content.root) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["found"], found["left_out"], found["machine"]["board"]) == (["onnxruntime"], {}, TREES["thor"].model)
    assert main(["runtimes", "--runtime", "onnxruntime"], content.root) == 0
    assert capsys.readouterr().out == "onnxruntime: opens here\n"
