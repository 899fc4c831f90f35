"""Where a measurement is made: boards told from what lies in /proc, /sys and /etc, cores pinned and given back."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest

from edgese.machine.host import allowed_cores, describe, memory_mb, pinned

ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm-not\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
    "var/lib/nvpmodel/status": "pmode:0002\n",
}


def root(folder: Path, files: dict[str, str]) -> Path:
    """A folder that stands for `/`."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_jetson_is_known_with_its_system_and_power_mode(tmp_path: Path) -> None:
    machine = describe(root=root(tmp_path, ORIN))
    assert machine.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (machine.release, machine.power_mode) == ("R36.4.3", "MAXN_SUPER")
    assert machine.extensions == ("asimd", "asimddp")
    assert str(machine).startswith("NVIDIA Jetson Orin Nano Developer Kit, R36.4.3, power mode MAXN_SUPER; ")


@pytest.mark.parametrize(
    "files",
    [
        {"proc/device-tree/model": "Acme Carrier\0", "proc/device-tree/compatible": "acme,x\0nvidia,tegra234\0"},
        {"sys/devices/soc0/machine": "Acme Carrier\n", "sys/devices/soc0/family": "Tegra\n"},
    ],
    ids=["another maker's carrier", "a container without device tree"],
)
def test_a_jetson_is_known_by_its_chip(files: dict[str, str], tmp_path: Path) -> None:
    machine = describe(root=root(tmp_path, files))
    assert machine.board == "Acme Carrier"
    assert (machine.release, machine.power_mode) == ("release not readable", "not readable")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"etc/nv_tegra_release": ORIN["etc/nv_tegra_release"]},  # images for Jetsons carry it wherever they run
        {"proc/device-tree/model": "Raspberry Pi 5 Model B\0", "etc/nv_tegra_release": ORIN["etc/nv_tegra_release"]},
    ],
    ids=["nothing", "a server", "a Raspberry Pi"],
)
def test_another_machine_is_no_jetson(files: dict[str, str], tmp_path: Path) -> None:
    machine = describe(root=root(tmp_path, files))
    assert (machine.board, machine.release, machine.power_mode) == (None, None, None)
    assert "power mode" not in str(machine)


def test_a_power_mode_without_a_name_keeps_its_number(tmp_path: Path) -> None:
    files = {name: text for name, text in ORIN.items() if name != "etc/nvpmodel.conf"}
    assert describe(root=root(tmp_path, files)).power_mode == "2"


def test_cpu_extensions_and_the_governor_of_the_core_are_told(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f_not avx512_vnni\n",
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor": "powersave\n",
    }
    machine = describe(3, root(tmp_path, files))
    assert (machine.cpu, machine.extensions, machine.governor) == ("Some CPU", ("avx2", "avx512_vnni"), "powersave")
    assert describe(2, tmp_path).governor == "not readable"


def test_this_machine_can_be_described_in_plain_values() -> None:
    entry = json.loads(json.dumps(describe().entry(), allow_nan=False))
    assert entry["cores"] == len(os.sched_getaffinity(0)) == len(allowed_cores())
    assert {"edgese", "python", "numpy", "onnxruntime"} <= set(entry["versions"])


def test_all_threads_are_pinned_and_given_back() -> None:
    before, core = os.sched_getaffinity(0), max(os.sched_getaffinity(0))
    told, go, seen = threading.Event(), threading.Event(), []

    def wait() -> None:
        told.set()
        go.wait(10)
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=wait)
    thread.start()
    assert told.wait(10)
    with pinned({core}):
        assert os.sched_getaffinity(0) == {core}
        go.set()
        thread.join(10)
    assert seen == [{core}]
    assert os.sched_getaffinity(0) == before


def test_cores_are_given_back_after_an_error() -> None:
    before = os.sched_getaffinity(0)
    with contextlib.suppress(KeyError), pinned({min(before)}):
        raise KeyError
    assert os.sched_getaffinity(0) == before


def test_memory_is_read_by_its_name() -> None:
    resident_mb, peak_mb = memory_mb("VmRSS"), memory_mb("VmHWM")
    assert resident_mb is not None
    assert peak_mb is not None
    assert 1 < resident_mb <= peak_mb
    assert memory_mb("VmNonsense") is None
