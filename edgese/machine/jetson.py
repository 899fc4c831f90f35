"""State of a Jetson: model, software, clocks, temperatures and throttling. Files only, no commands.

    board = read_jetson()                       # does not change while a measurement runs
    before = read_state()
    ...
    throttled(before, read_state())

What a board does not report is None, and `missing` says why: no file, or what was found in it; nothing is guessed. All
readers take what stands for `/`; numbers of hwmon, zones and devices change from start to start, so all are found by
name. Where things lie, and where that was read:

- /proc/device-tree/model, /etc/nv_tegra_release, /var/lib/nvpmodel/status, /etc/nvpmodel.conf: edgese/machine/host.py.
- /var/lib/dpkg/status for nvidia-jetpack, tensorrt or libnvinfer10; /usr/local/cuda/version.json, written by CUDA.
- /sys/devices/system/cpu/cpufreq/policy*/scaling_*: kHz (kernel.org, admin-guide/pm/cpufreq).
- /sys/class/devfreq/<device>/{governor,cur_freq,min_freq,max_freq}: Hz; the GPU is 17000000.gpu on Orin with
  JetPack 6, 17000000.ga10b with JetPack 5, gpu-gpc-0 on Thor (rbonghi/jetson_stats, jtop/core/gpu.py, thor_power.py).
- /sys/class/thermal/thermal_zone*/{type,temp}: millidegrees. A zone whose part is powered down gives EAGAIN, such as
  cv0-thermal on Orin and gpu-thermal on an idle Thor (swsususu/ThorFAN, README), or -256000.
- /sys/class/thermal/cooling_device*/{type,cur_state}: *-throttle-alert and hot-surface-alert are above 0 while a part
  is throttled, cpufreq-* and devfreq-* while its clock is capped; pwm-fan is the fan (ThorFAN).
- /sys/class/hwmon/hwmon* of the name soctherm_oc: oc1_event_cnt to oc3_event_cnt count throttling by undervoltage and
  overcurrent since the start (NVIDIA Jetson Linux Developer Guide, Platform Power and Performance).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgese.errors import EdgeseError
from edgese.machine.host import UNKNOWN, Machine, describe
from edgese.machine.sysfs import numbered, read_integer, read_text

_ROOT = Path("/")
_RELEASE = "etc/nv_tegra_release"
_STATUS = "var/lib/nvpmodel/status"
_CPU, _GPU = "cpu", "gpu"
_GPU_DEVICE = re.compile(r"\.(gpu|ga10b|gv11b|gp10b)$|^gpu-")
_FAN = "fan"
_OFF_MC = -256_000  # what a sensor of a part without power gives
_TENSORRT = ("tensorrt", "libnvinfer10", "libnvinfer11", "libnvinfer8")


class JetsonError(EdgeseError):
    """Error where this machine is no Jetson, or its power cannot be measured."""


@dataclasses.dataclass(frozen=True)
class Jetson:
    """Facts of a Jetson that do not change while a measurement runs."""

    machine: Machine
    model: str
    l4t: str | None  # release, such as R36.4.3
    jetpack: str | None
    tensorrt: str | None
    cuda: str | None
    missing: Mapping[str, str]  # what is None -> why

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"machine": self.machine.entry(), "missing": dict(self.missing)}


@dataclasses.dataclass(frozen=True)
class Clock:
    """One clock and the bounds that it may move in, MHz."""

    governor: str | None
    current_mhz: float | None
    lowest_mhz: float | None
    highest_mhz: float | None

    @property
    def locked(self) -> bool | None:
        """True if the clock cannot move, which is what jetson_clocks does; None where its bounds are not known."""
        return None if None in (self.lowest_mhz, self.highest_mhz) else self.lowest_mhz == self.highest_mhz


@dataclasses.dataclass(frozen=True)
class State:
    """State of a Jetson that changes while a measurement runs: clocks, temperatures, throttling."""

    power_mode: str | None
    clocks: Mapping[str, Clock]  # cpu policies, GPU
    temperatures_c: Mapping[str, float | None]  # every thermal zone
    throttling: Mapping[str, int]  # cooling device that is no fan -> its state, 0: none
    overcurrents: Mapping[str, int]  # events since the board's start
    missing: Mapping[str, str]  # what is None or empty -> why

    @property
    def jetson_clocks(self) -> bool | None:
        """True if all clocks of CPU and GPU are locked; None where one is not known."""
        locked = [clock.locked for clock in self.clocks.values()]
        parts = {name.split()[0] for name in self.clocks}
        return all(locked) if parts == {_CPU, _GPU} and None not in locked else None

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"jetson_clocks": self.jetson_clocks}


def read_jetson(root: Path = _ROOT) -> Jetson:
    """Facts of this board: model, release, JetPack, TensorRT, CUDA.

    Raises:
        JetsonError: this machine is no Jetson.
    """
    machine = describe(root=root)
    if machine.board is None:
        raise JetsonError(f"{root}: found {machine.cpu}, {machine.system}, wanted a Jetson: run this on the board")
    missing: dict[str, str] = {}
    packages = _packages(root, missing)
    jetpack = packages.get("nvidia-jetpack")
    tensorrt = next((packages[name] for name in _TENSORRT if name in packages), None)
    if packages:
        _note(missing, "jetpack", jetpack, "the package nvidia-jetpack is not installed: flashed images lack it")
        _note(missing, "tensorrt", tensorrt, f"none of the packages {', '.join(_TENSORRT)} is installed")
    l4t = None if UNKNOWN in (machine.release or UNKNOWN) else machine.release
    _note(missing, "l4t", l4t, f"{root / _RELEASE}: not there, or without release and revision")
    return Jetson(machine, machine.board, l4t, jetpack, tensorrt, _cuda(root, missing), missing)


def read_state(root: Path = _ROOT) -> State:
    """State of this board at this moment."""
    missing: dict[str, str] = {}
    machine = describe(root=root)
    mode = None if machine.power_mode in (None, UNKNOWN) else machine.power_mode
    _note(missing, "power_mode", mode, f"{root / _STATUS}: not there, or without a mode's number")
    return State(
        power_mode=mode,
        clocks=_cpu_clocks(root, missing) | _gpu_clocks(root, missing),
        temperatures_c=_temperatures(root, missing),
        throttling=_throttling(root, missing),
        overcurrents=_overcurrents(root, missing),
        missing=missing,
    )


def throttled(before: State, after: State) -> list[str]:
    """Throttling and other events that held this board back between two states, a line each; empty if none is known.

    A part that was throttled and recovered in between shows only where its events are counted.
    """
    lines = [
        f"{name}: {moment} at state {states[name]}"
        for moment, states in (("before", before.throttling), ("after", after.throttling))
        for name in states
        if states[name] > 0
    ]
    for name, count in after.overcurrents.items():
        grown = count - before.overcurrents.get(name, count)
        if grown:
            lines.append(f"{name}: {grown} event{'s' if grown != 1 else ''} in between")
    if before.power_mode != after.power_mode:
        lines.append(f"power mode: {before.power_mode} before, {after.power_mode} after")
    return lines


def _packages(root: Path, missing: dict[str, str]) -> dict[str, str]:
    """Versions of the installed packages by name, from dpkg's list: paragraphs of `Field: value`."""
    path = root / "var/lib/dpkg/status"
    text, reason = read_text(path)
    found: dict[str, str] = {}
    for paragraph in (text or "").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= set(fields):
            found[fields["Package"]] = fields["Version"]
    if not found:
        for name in ("jetpack", "tensorrt"):
            missing[name] = reason or f"{path}: found no installed package, wanted dpkg's list"
    return found


def _cuda(root: Path, missing: dict[str, str]) -> str | None:
    path = root / "usr/local/cuda/version.json"
    text, reason = read_text(path)
    if text is None:
        missing["cuda"] = reason
        return None
    try:
        version = json.loads(text)["cuda"]["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        missing["cuda"] = f"{path}: found no version of CUDA ({type(error).__name__})"
        return None
    return str(version)


def _cpu_clocks(root: Path, missing: dict[str, str]) -> dict[str, Clock]:
    folder = root / "sys/devices/system/cpu/cpufreq"
    names = ("scaling_governor", "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq")
    policies = sorted(folder.glob("policy*"), key=lambda path: int(path.name.removeprefix("policy")))
    clocks = {f"{_CPU} {policy.name}": _clock(policy, names, 1e3, missing) for policy in policies}
    if not clocks:
        missing[_CPU] = f"{folder}: no policy there"
    return clocks


def _gpu_clocks(root: Path, missing: dict[str, str]) -> dict[str, Clock]:
    folder = root / "sys/class/devfreq"
    names = ("governor", "cur_freq", "min_freq", "max_freq")
    devices = [device for device in sorted(folder.glob("*")) if _GPU_DEVICE.search(device.name)]
    clocks = {f"{_GPU} {device.name}": _clock(device, names, 1e6, missing) for device in devices}
    if not clocks:
        missing[_GPU] = f"{folder}: no GPU there (*.gpu, *.ga10b, gpu-*)"
    return clocks


def _clock(folder: Path, names: Sequence[str], per_mhz: float, missing: dict[str, str]) -> Clock:
    """Clock read from a folder's files: governor, then current, lowest and highest frequency."""
    governor, reason = read_text(folder / names[0])
    _note(missing, f"{folder.name} {names[0]}", governor, reason)
    values: list[float | None] = []
    for name in names[1:]:
        value, reason = read_integer(folder / name)
        _note(missing, f"{folder.name} {name}", value, reason)
        values.append(None if value is None else value / per_mhz)
    return Clock(governor, *values)


def _temperatures(root: Path, missing: dict[str, str]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for zone in numbered(root / "sys/class/thermal", "thermal_zone"):
        name = read_text(zone / "type")[0] or zone.name
        value, reason = read_integer(zone / "temp")
        if value == _OFF_MC:
            value, reason = None, f"{zone / 'temp'}: found {_OFF_MC}: the part has no power"
        _note(missing, name, value, reason)
        found[name] = None if value is None else value / 1e3
    if not found:
        missing["temperatures"] = f"{root / 'sys/class/thermal'}: no thermal zone there"
    return found


def _throttling(root: Path, missing: dict[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for device in numbered(root / "sys/class/thermal", "cooling_device"):
        name = read_text(device / "type")[0] or device.name
        if _FAN in name:
            continue
        state, reason = read_integer(device / "cur_state")
        if state is None:
            missing[name] = reason
        else:
            found[name] = max(state, found.get(name, 0))  # several devices may have one name
    if not found:
        missing["throttling"] = f"{root / 'sys/class/thermal'}: no cooling device but a fan there"
    return found


def _overcurrents(root: Path, missing: dict[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for chip in numbered(root / "sys/class/hwmon", "hwmon"):
        if read_text(chip / "name")[0] != "soctherm_oc":
            continue
        for path in sorted(chip.glob("oc*_event_cnt")):
            count, reason = read_integer(path)
            name = path.name.removesuffix("_event_cnt")
            if count is None:
                missing[name] = reason
            else:
                found[name] = count
    if not found:
        missing["overcurrents"] = f"{root / 'sys/class/hwmon'}: no soctherm_oc with counters there"
    return found


def _note(missing: dict[str, str], name: str, value: object, reason: str) -> None:
    if value is None:
        missing[name] = reason
