"""Trees of files as Jetsons have them, made by us: `/` in the tests of edgese/machine/jetson.py and machine/power.py.

No tree was recorded by us. Names, units and forms are those that the docstrings of the two modules cite; values are
like those that these public records show:

- Orin Nano: policies 0 and 4, thermal zones with cv0 to cv2 off, soctherm-oc-event, INA3221 at 1-0040 with VDD_IN,
  VDD_CPU_GPU_CV, VDD_SOC and "sum of shunt voltages" as in7; MAXN_SUPER is mode 2; locked 1728000 kHz, 1020000000 Hz.
- AGX Orin: INA3221 at 1-0040 and 1-0041, two channels of the latter not connected ("NC"); tboard and tdiode zones.
- Thor: INA3221 with VDD_GPU (0 W while the idle GPU is off), VDD_CPU_SOC_MSS and VIN_SYS_5V0, INA238 with VIN; zones
  tj, cpu, gpu (no answer while off), soc012, soc345; devices gpu-gpc-0 and gpu-nvd-0; R38.4.0.

A zone that gives EAGAIN is a folder here: reading it is refused as well.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

NO_ANSWER = object()  # a file that is there and cannot be read

Rails = Mapping[int, tuple[str, int, int]]  # channel -> label, mV, mA


@dataclasses.dataclass(frozen=True)
class Tree:
    """What one board tells."""

    model: str
    release: str
    packages: Mapping[str, str]
    cuda: str
    modes: Mapping[int, str]
    mode: int
    policies: Mapping[int, tuple[str, int, int, int]]  # number -> governor; current, lowest, highest kHz
    gpus: Mapping[str, tuple[str, int, int, int]]  # device -> governor; current, lowest, highest Hz
    zones: Mapping[str, object]  # name -> millidegrees, or NO_ANSWER
    cooling: tuple[tuple[str, int], ...]  # name, state
    overcurrents: tuple[int, int, int]
    ina3221: Mapping[str, Rails]  # I2C address -> channels
    ina238: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)  # address -> label, uW


_JETPACK_6 = {
    "nvidia-jetpack": "6.2.1+b38",
    "nvidia-l4t-core": "36.4.4-20250616085344",
    "tensorrt": "10.3.0.30-1+cuda12.5",
    "libnvinfer10": "10.3.0.30-1+cuda12.5",
}
_OFF = {f"cv{index}-thermal": NO_ANSWER for index in range(3)}
_ALERTS = ("cpu-throttle-alert", "gpu-throttle-alert", "soc0-throttle-alert", "hot-surface-alert")
_ORIN_ZONES = {"cpu-thermal": 51687, "gpu-thermal": 48500, **_OFF, "soc0-thermal": 49062, "tj-thermal": 51687}

TREES: Mapping[str, Tree] = {
    "orin-nano": Tree(
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        release="# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64",
        packages=_JETPACK_6,
        cuda="12.6.11",
        modes={0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"},
        mode=2,
        policies=dict.fromkeys((0, 4), ("schedutil", 1_728_000, 1_728_000, 1_728_000)),
        gpus={"17000000.gpu": ("nvhost_podgov", 1_020_000_000, 1_020_000_000, 1_020_000_000)},
        zones=_ORIN_ZONES,
        cooling=(("pwm-fan", 3), *((name, 0) for name in _ALERTS), ("cpufreq-cpu0", 0), ("devfreq-17000000.gpu", 0)),
        overcurrents=(0, 0, 4),
        ina3221={"1-0040": {1: ("VDD_IN", 5056, 1200), 2: ("VDD_CPU_GPU_CV", 5048, 320), 3: ("VDD_SOC", 5048, 280)}},
    ),
    "orin-nx": Tree(
        model="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        release="# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64",
        packages={"nvidia-l4t-core": "35.4.1-20230801124926", "libnvinfer8": "8.5.2-1+cuda11.4"},
        cuda="11.4.19",
        modes={0: "MAXN", 1: "10W", 2: "15W", 3: "25W"},
        mode=3,
        policies=dict.fromkeys((0, 4), ("schedutil", 729_600, 115_200, 1_497_600)),
        gpus={"17000000.ga10b": ("nvhost_podgov", 306_000_000, 306_000_000, 408_000_000)},
        zones={**_ORIN_ZONES, "gpu-thermal": -256_000},
        cooling=(("pwm-fan", 1), *((name, 0) for name in _ALERTS)),
        overcurrents=(0, 0, 0),
        ina3221={"1-0040": {1: ("VDD_IN", 19600, 420), 2: ("VDD_CPU_GPU_CV", 19600, 120), 3: ("VDD_SOC", 19600, 110)}},
    ),
    "agx-orin": Tree(
        model="NVIDIA Jetson AGX Orin Developer Kit",
        release="# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
        packages=_JETPACK_6,
        cuda="12.6.68",
        modes={0: "MAXN", 1: "15W", 2: "30W", 3: "50W"},
        mode=0,
        policies=dict.fromkeys((0, 4, 8), ("schedutil", 2_201_600, 729_600, 2_201_600)),
        gpus={"17000000.gpu": ("nvhost_podgov", 1_300_500_000, 306_000_000, 1_300_500_000)},
        zones={**_ORIN_ZONES, "tboard-thermal": 37500, "tdiode-thermal": 39750},
        cooling=(("pwm-fan", 2), ("cpu-throttle-alert", 0), ("gpu-throttle-alert", 1)),
        overcurrents=(0, 0, 0),
        ina3221={
            "1-0040": {1: ("VDD_GPU_SOC", 19848, 250), 2: ("VDD_CPU_CV", 19848, 60), 3: ("VIN_SYS_5V0", 4968, 953)},
            "1-0041": {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 4968, 80), 3: ("NC", 0, 0)},
        },
    ),
    "thor": Tree(
        model="NVIDIA Jetson AGX Thor Developer Kit",
        release="# R38 (release), REVISION: 4.0, GCID: 43443517, BOARD: generic, EABI: aarch64",
        packages={"nvidia-l4t-core": "38.4.0-20251230160601", "libnvinfer10": "10.13.3.9-1+cuda13.0"},
        cuda="13.0.3",
        modes={0: "MAXN", 1: "120W"},
        mode=1,
        policies=dict.fromkeys(range(0, 14, 2), ("schedutil", 972_000, 54_000, 2_601_000)),
        gpus={
            "gpu-gpc-0": ("nvhost_podgov", 0, 306_000_000, 1_386_000_000),
            "gpu-nvd-0": ("nvhost_podgov", 0, 306_000_000, 1_692_000_000),
        },
        zones={
            "cpu-thermal": 53700,
            "tj-thermal": 55100,
            "soc012-thermal": 55100,
            "soc345-thermal": 53700,
            "gpu-thermal": NO_ANSWER,
        },
        cooling=(
            *((f"cpufreq-cpu{index}", 0) for index in range(10)),
            ("pwm-fan", 0),
            ("gpu-throttle-alert", 0),
            ("soc012-throttle-alert", 0),
            ("devfreq-gpu-gpc-0", 18),
        ),
        overcurrents=(0, 8, 813),
        ina3221={
            "2-0040": {1: ("VDD_GPU", 12040, 0), 2: ("VDD_CPU_SOC_MSS", 12040, 540), 3: ("VIN_SYS_5V0", 5088, 1280)}
        },
        ina238={"2-0044": ("VIN", 23_100_000)},
    ),
}


def write_tree(root: Path, name: str) -> Path:
    """The files of a board below `root`, which stands for `/`; devices of a class are links, as the kernel has them."""
    tree = TREES[name]
    soc = "nvidia,tegra264" if name == "thor" else "nvidia,tegra234"
    put(root, "proc/device-tree/model", f"{tree.model}\0")
    put(root, "proc/device-tree/compatible", f"{soc}\0")
    put(root, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    put(root, "etc/nv_tegra_release", f"{tree.release}\n# KERNEL_VARIANT: oot\n")
    put(
        root,
        "etc/nvpmodel.conf",
        "".join(f"< POWER_MODEL ID={key} NAME={mode} >\n" for key, mode in tree.modes.items()),
    )
    put(root, "var/lib/nvpmodel/status", f"pmode:{tree.mode:04}\n")
    put(root, "var/lib/dpkg/status", _dpkg(tree.packages))
    put(root, "usr/local/cuda/version.json", json.dumps({"cuda": {"name": "CUDA SDK", "version": tree.cuda}}, indent=3))
    for number, (governor, *frequencies) in tree.policies.items():
        folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
        put(root, f"{folder}/scaling_governor", f"{governor}\n")
        for field, value in zip(("cur", "min", "max"), frequencies, strict=True):
            put(root, f"{folder}/scaling_{field}_freq", f"{value}\n")
    for device, (governor, *frequencies) in tree.gpus.items():
        folder = f"sys/devices/platform/bus@0/{device}/devfreq/{device}"
        put(root, f"{folder}/governor", f"{governor}\n")
        for field, value in zip(("cur", "min", "max"), frequencies, strict=True):
            put(root, f"{folder}/{field}_freq", f"{value}\n")
        _link(root, f"sys/class/devfreq/{device}", folder)
    put(root, "sys/devices/platform/bus@0/15340000.vic/devfreq/15340000.vic/governor", "simple_ondemand\n")
    _link(root, "sys/class/devfreq/15340000.vic", "sys/devices/platform/bus@0/15340000.vic/devfreq/15340000.vic")
    for index, (zone, temperature) in enumerate(tree.zones.items()):
        put(root, f"sys/class/thermal/thermal_zone{index}/type", f"{zone}\n")
        put(root, f"sys/class/thermal/thermal_zone{index}/temp", temperature)
    for index, (device, state) in enumerate(tree.cooling):
        put(root, f"sys/class/thermal/cooling_device{index}/type", f"{device}\n")
        put(root, f"sys/class/thermal/cooling_device{index}/cur_state", state)
        put(root, f"sys/class/thermal/cooling_device{index}/max_state", 2)
    _write_monitors(root, tree)
    return root


def put(root: Path, name: str, value: object) -> None:
    """One file below `root`; `NO_ANSWER` makes one that cannot be read."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is NO_ANSWER:
        path.mkdir()
    else:
        path.write_text(value if isinstance(value, str) else f"{value}\n")


def _write_monitors(root: Path, tree: Tree) -> None:
    chips: list[tuple[str, dict[str, object]]] = [
        ("sys/devices/virtual/thermal/thermal_zone0", {"name": "cpu_thermal\n"})
    ]
    for address, channels in tree.ina3221.items():
        files: dict[str, object] = {"name": "ina3221\n", "in7_label": "sum of shunt voltages\n", "in7_input": 12}
        for channel, (label, millivolts, milliamperes) in channels.items():
            files |= {f"in{channel}_label": f"{label}\n", f"in{channel}_input": millivolts}
            files |= {f"curr{channel}_input": milliamperes, f"in{channel + 3}_input": 3}  # the shunt's own voltage
        chips.append((f"sys/devices/platform/bus@0/c240000.i2c/i2c-{address[0]}/{address}", files))
    for address, (label, microwatts) in tree.ina238.items():
        files = {"name": "ina238\n", "in1_label": f"{label}\n", "in1_input": 20000, "power1_input": microwatts}
        chips.append((f"sys/devices/platform/bus@0/c240000.i2c/i2c-{address[0]}/{address}", files))
    counters: dict[str, object] = {f"oc{i}_event_cnt": count for i, count in enumerate(tree.overcurrents, start=1)}
    chips.append(("sys/devices/platform/soctherm-oc-event", {"name": "soctherm_oc\n", **counters}))
    for index, (device, files) in enumerate(chips):
        folder = f"{device}/hwmon/hwmon{index}"
        for name, value in files.items():
            put(root, f"{folder}/{name}", value)
        _link(root, f"sys/class/hwmon/hwmon{index}", folder)


def monitor(root: Path, address: str) -> Path:
    """The folder of the power monitor at an I2C address."""
    (folder,) = (root / "sys/devices/platform/bus@0/c240000.i2c").glob(f"i2c-*/{address}/hwmon/hwmon*")
    return folder


def _link(root: Path, name: str, target: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(root / target)


def _dpkg(packages: Mapping[str, str]) -> str:
    removed = "Package: nvidia-jetpack\nStatus: deinstall ok config-files\nVersion: 5.0\n"
    return "\n".join(
        [
            removed,
            *(
                f"Package: {name}\nStatus: install ok installed\nPriority: optional\nVersion: {version}\n"
                f"Description: one line\n and another\n"
                for name, version in packages.items()
            ),
        ]
    )
