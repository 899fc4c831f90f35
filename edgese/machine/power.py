"""Power of a Jetson from its raw rails, integrated over time, and its energy above idle.

    with PowerSampler(find_rails()) as idle: time.sleep(10)
    with PowerSampler(find_rails()) as load: ...
    energy_of(load.trace(), idle=idle.trace(), audio_s=60.0).joules_per_audio_s

Averages that other tools offer are not used: jetson_stats', for one, is (power + old) // 2, which is no mean.
Monitors, and where that was read:

- /sys/class/hwmon/hwmon* of the name ina3221: in<n>_label, in<n>_input (mV) and curr<n>_input (mA), channels 1 to 3;
  in7 is a sum of shunt voltages and no rail (kernel.org, hwmon/ina3221).
- of the name ina238: power1_input (uW), in1_label (kernel.org, hwmon/ina238); Thor's VIN.
- Rails of Orin Nano and NX: VDD_IN, VDD_CPU_GPU_CV, VDD_SOC; of AGX Orin: VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0,
  VDDQ_VDD2_1V8AO (Linux, arch/arm64/boot/dts/nvidia/tegra234-p3767.dtsi, tegra234-p3701.dtsi); of Thor: VDD_GPU,
  VDD_CPU_SOC_MSS, VIN_SYS_5V0, VIN (swsususu/ThorFAN, README). One register takes half a millisecond to read over I2C.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgese.machine.jetson import JetsonError
from edgese.machine.sysfs import numbered, read_integer, read_text

if TYPE_CHECKING:
    from typing_extensions import Self

PERIOD_S = 0.1  # between samples
LARGEST_GAP_S = 1.0  # between two samples for what was drawn in between to be known

_ROOT = Path("/")
_INPUTS = ("VDD_IN", "VIN")  # rails that feed all others: Orin Nano and NX, Thor
_CHANNELS = (1, 2, 3)
_UNUSED = "NC"  # a channel that measures nothing: not connected
_POWER_CHIPS = ("ina238", "ina226")  # that give power themselves


@dataclasses.dataclass(frozen=True)
class Rail:
    """One supply that is measured, and the files from which its power is read."""

    name: str
    chip: str  # ina3221, ina238
    factors: tuple[Path, ...]  # whose product is its power
    scale: float  # of that product, to watts

    def watts(self) -> float:
        """Power of the rail now, watts.

        Raises:
            JetsonError: a file that cannot be read or holds no number.
        """
        power = self.scale
        for path in self.factors:
            value, reason = read_integer(path)
            if value is None:
                raise JetsonError(f"{self.name}: {reason}; its power is not known")
            power *= value
        return power


def find_rails(root: Path = _ROOT) -> tuple[Rail, ...]:
    """Rails of this board that are measured, in the order of their names.

    Raises:
        JetsonError: there is none, two have one name, or one cannot be read.
    """
    rails: list[Rail] = []
    for chip in numbered(root / "sys/class/hwmon", "hwmon"):
        name = read_text(chip / "name")[0] or ""
        if name == "ina3221":
            for channel in _CHANNELS:
                label = read_text(chip / f"in{channel}_label")[0]
                if label and label != _UNUSED:
                    files = (chip / f"in{channel}_input", chip / f"curr{channel}_input")
                    rails.append(Rail(label, name, files, 1e-6))  # mV x mA
        elif name in _POWER_CHIPS:
            label = read_text(chip / "in1_label")[0] or read_text(chip / "label")[0] or "VIN"
            rails.append(Rail(label, name, (chip / "power1_input",), 1e-6))  # uW
    names = [rail.name for rail in rails]
    if not rails:
        raise JetsonError(f"{root / 'sys/class/hwmon'}: no power monitor (ina3221, ina238); power is not known here")
    if len(set(names)) < len(names):
        raise JetsonError(
            f"{root / 'sys/class/hwmon'}: rails of one name among {', '.join(names)}; their sum is not known"
        )
    for rail in rails:
        rail.watts()  # one that is left out would make a sum too small
    return tuple(sorted(rails, key=lambda rail: rail.name))


@dataclasses.dataclass(frozen=True)
class Trace:
    """Power of each rail at moments of one clock."""

    times_s: tuple[float, ...]  # ascending
    watts: Mapping[str, tuple[float, ...]]  # rail -> one value each moment
    lost: int = 0  # samples that could not be read

    def __post_init__(self) -> None:
        if len(self.times_s) < 2:
            raise JetsonError(f"power: found {len(self.times_s)} samples, wanted at least 2; measure for longer")
        gaps = [later - earlier for earlier, later in itertools.pairwise(self.times_s)]
        if min(gaps) <= 0:
            raise JetsonError("power: its samples are not in the order of time")
        if max(gaps) > LARGEST_GAP_S:
            raise JetsonError(
                f"power: {max(gaps):.2f} s without a sample ({self.lost} could not be read), wanted no more than "
                f"{LARGEST_GAP_S:g} s: what was drawn in between is not known; stop what else runs"
            )
        if not self.watts or any(len(values) != len(self.times_s) for values in self.watts.values()):
            raise JetsonError("power: rails and moments are not of one number")

    @property
    def duration_s(self) -> float:
        return self.times_s[-1] - self.times_s[0]

    @property
    def total(self) -> tuple[str, tuple[float, ...]]:
        """Name and power of the rails that stand for the whole board, watts at each moment.

        The rail that feeds all others where it is measured; else the sum of all, which leaves out what none of them
        feeds.
        """
        for name in _INPUTS:
            if name in self.watts:
                return name, self.watts[name]
        names = sorted(self.watts)
        return " + ".join(names), tuple(map(sum, zip(*(self.watts[name] for name in names), strict=True)))

    @property
    def joules(self) -> float:
        """Energy of the whole board by the trapezoid rule: exact where power is linear between samples."""
        return _integral(self.times_s, self.total[1])

    @property
    def mean_w(self) -> float:
        """Mean power of the whole board over time (not over samples), watts."""
        return self.joules / self.duration_s

    def rail_joules(self) -> dict[str, float]:
        """Energy of each rail, joules."""
        return {name: _integral(self.times_s, values) for name, values in self.watts.items()}


@dataclasses.dataclass(frozen=True)
class Energy:
    """Energy of a measurement, beside the power of the same board when idle."""

    rails: str  # whose power is meant
    joules: float
    duration_s: float
    idle_w: float
    audio_s: float

    @property
    def net_joules(self) -> float:
        """Energy above idle; negative where the difference is lost in what the board draws anyhow."""
        return self.joules - self.idle_w * self.duration_s

    @property
    def joules_per_audio_s(self) -> float:
        return self.net_joules / self.audio_s

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        derived = {name: getattr(self, name) for name in ("net_joules", "joules_per_audio_s")}
        return dataclasses.asdict(self) | {"mean_w": self.joules / self.duration_s} | derived


def energy_of(trace: Trace, *, idle: Trace, audio_s: float) -> Energy:
    """Energy of a measurement that made `audio_s` seconds of audio, with the idle power that is to be subtracted.

    Raises:
        JetsonError: the two traces are of other rails, or no audio was made.
    """
    rails, idle_rails = trace.total[0], idle.total[0]
    if rails != idle_rails:
        raise JetsonError(f"power: found {rails} under load and {idle_rails} idle, wanted the same rails")
    if not audio_s > 0:
        raise JetsonError(f"power: found {audio_s:g} s of audio, wanted more than none")
    return Energy(rails, trace.joules, trace.duration_s, idle.mean_w, audio_s)


class PowerSampler:
    """Sampler of all rails in a thread, as long as the `with` block lasts, its begin and end included.

    Raises:
        JetsonError: at the begin or at the end of the block a rail cannot be read.
    """

    def __init__(
        self,
        rails: Sequence[Rail],
        period_s: float = PERIOD_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < period_s <= LARGEST_GAP_S:
            raise JetsonError(f"period_s: found {period_s:g}, wanted more than 0 and at most {LARGEST_GAP_S:g}")
        self._rails = tuple(rails)
        self._period_s = period_s
        self._clock = clock
        self._times_s: list[float] = []
        self._watts: dict[str, list[float]] = {rail.name: [] for rail in self._rails}
        self._lost = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        if kind is None:
            self._sample()

    def trace(self) -> Trace:
        """Trace of all samples so far.

        Raises:
            JetsonError: too few, or too far apart for energy to be known.
        """
        watts = {name: tuple(values) for name, values in self._watts.items()}
        return Trace(tuple(self._times_s), watts, self._lost)

    def _sample(self) -> None:
        began = self._clock()
        watts = {rail.name: rail.watts() for rail in self._rails}
        self._times_s.append((began + self._clock()) / 2)  # reading takes milliseconds
        for name, value in watts.items():
            self._watts[name].append(value)

    def _run(self) -> None:
        while not self._end.wait(self._period_s):
            try:
                self._sample()
            except JetsonError:  # I2C is busy at times; where it is for long, the gap is an error
                self._lost += 1


def _integral(times_s: Sequence[float], values: Sequence[float]) -> float:
    """Area under straight lines from point to point."""
    points = zip(times_s, values, strict=True)
    return sum((t1 - t0) * (v0 + v1) / 2 for (t0, v0), (t1, v1) in itertools.pairwise(points))
