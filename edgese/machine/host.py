"""Description of this machine for a measurement: CPU, board, clocks, load, versions; cores to run on. Linux.

A number of speed means nothing without this. What the system does not say is given as unknown, never guessed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgese import __version__
from edgese.machine.sysfs import read_text

MB = 1e6
UNKNOWN = "not readable"

_ROOT = Path("/")
_LIBRARIES = ("numpy", "onnxruntime", "openvino", "torch", "soundfile", "soxr")
_EXTENSIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


@dataclasses.dataclass(frozen=True)
class Machine:
    """Machine and software that the numbers of a measurement belong to."""

    cpu: str
    board: str | None  # a Jetson, by the name that its device tree gives; None on any other machine
    release: str | None  # of the Jetson's system, such as R36.4.3
    power_mode: str | None  # of the Jetson, such as 15W
    extensions: tuple[str, ...]  # of the instruction set, those that matter here
    cores: int  # that this process may use
    governor: str  # of the clock
    load_before: float  # processes that wanted a core, mean of the minute before
    system: str
    versions: Mapping[str, str]

    def __str__(self) -> str:
        board = [", ".join(filter(None, (self.board, self.release, f"power mode {self.power_mode}")))] * bool(
            self.board
        )
        extensions = f" ({', '.join(self.extensions)})" if self.extensions else ""
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        load = f"load before {self.load_before:.2f}"
        hardware = "; ".join([*board, f"{self.cpu}{extensions}, {cores}, governor {self.governor}, {load}"])
        versions = ", ".join(f"{library} {version}" for library, version in self.versions.items())
        return f"{hardware}\n{self.system}; {versions}"

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"extensions": list(self.extensions), "versions": dict(self.versions)}


def describe(core: int | None = None, root: Path = _ROOT) -> Machine:
    """Description of this machine, as it is now.

    Args:
        core: whose clock's governor is read; None: the first one that this process may use.
        root: what stands for `/`.
    """
    cores = allowed_cores()
    # Containers often hide the device tree; the second place is the kernel's own account of the chip.
    model = read_text(root / "proc/device-tree/model")[0] or read_text(root / "sys/devices/soc0/machine")[0]
    family = (
        f"{read_text(root / 'proc/device-tree/compatible')[0]} {read_text(root / 'sys/devices/soc0/family')[0]}".lower()
    )
    is_jetson = "jetson" in (model or "").lower() or "tegra" in family
    governor = f"sys/devices/system/cpu/cpu{min(cores) if core is None else core}/cpufreq/scaling_governor"
    return Machine(
        cpu=_cpu_field(root, "model name") or model or platform.machine() or UNKNOWN,
        board=(model or "Jetson") if is_jetson else None,
        release=_release(root) if is_jetson else None,
        power_mode=_power_mode(root) if is_jetson else None,
        extensions=tuple(name for name in _EXTENSIONS if name in _cpu_field(root, "flags", "Features").split()),
        cores=len(cores),
        governor=read_text(root / governor)[0] or UNKNOWN,
        load_before=round(os.getloadavg()[0], 2),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions={"edgese": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in _LIBRARIES},
    )


def allowed_cores() -> tuple[int, ...]:
    """Cores that this process may use, in ascending order."""
    return tuple(sorted(os.sched_getaffinity(0)))


@contextlib.contextmanager
def pinned(cores: Collection[int]) -> Iterator[None]:
    """Keep this process on `cores` only, its threads and those that they start included; afterwards as before."""
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    before: dict[int, set[int]] = {}
    try:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, cores)
        yield
    finally:
        for thread, own in before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, own)


def memory_mb(field: str) -> float | None:
    """Memory of this process in 1e6 bytes by its name in /proc/self/status; None where the system does not say.

    `VmRSS` is what is resident now, `VmHWM` the most that was since the process began its program; `ru_maxrss` would
    start at what the parent had.
    """
    for line in (read_text(Path("/proc/self/status"))[0] or "").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / MB
    return None


def _release(root: Path) -> str:
    """Release of a Jetson's system: `# R36 (release), REVISION: 4.3, GCID: ...` is R36.4.3."""
    found = re.search(r"# (R\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release")[0] or "")
    return f"{found[1]}.{found[2]}" if found else f"release {UNKNOWN}"


def _power_mode(root: Path) -> str:
    """Name of a Jetson's power mode from nvpmodel's table, by the number that it keeps (`pmode:0002`)."""
    found = re.search(r"pmode:(\d+)", read_text(root / "var/lib/nvpmodel/status")[0] or "")
    if not found:
        return UNKNOWN
    number = int(found[1])
    name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=(\S+)", read_text(root / "etc/nvpmodel.conf")[0] or "")
    return name[1] if name else str(number)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_field(root: Path, *names: str) -> str:
    """Value of the first line of /proc/cpuinfo with one of these names; "" if there is none."""
    for line in (read_text(root / "proc/cpuinfo")[0] or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def tool_versions() -> dict[str, str]:
    """Versions of the tools that a bundle is made with."""
    versions = {tool: importlib.metadata.version(tool) for tool in _TOOLS}
    return {"edgese": __version__, "python": platform.python_version()} | versions
