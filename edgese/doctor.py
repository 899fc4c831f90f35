"""Examination of this installation: packages, runtimes, TensorRT and JetPack, and the mend of each fault.

    findings = examine()
    all(finding.state != "wrong" for finding in findings)

An optional part that is absent is "absent", not wrong: its mend says how to get it. "wrong" is what was installed and
does not work, and what edgese cannot do without.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from edgese.errors import EdgeseError, clone, install_command, pip_command
from edgese.graphs.audio_facts import open_bundle
from edgese.graphs.bundles import SHIPPED, shipped_bundle
from edgese.graphs.opening import open_graph
from edgese.machine.host import describe
from edgese.machine.jetson import read_jetson, read_state
from export import ExportError
from runtimes.base import RuntimeUnavailable
from runtimes.registry import RUNTIMES, load_runtime

State = Literal["ok", "absent", "wrong"]

WHOLE = ("all", "dev")  # extras that are made of others
MENDS = {  # of runtimes
    "onnxruntime": pip_command("install", "--force-reinstall", "onnxruntime"),
    "onnxruntime-cuda": f"{pip_command('uninstall', 'onnxruntime')}, then "
    f"{pip_command('install', 'onnxruntime-gpu[cuda,cudnn]')}; an NVIDIA GPU",
    "onnxruntime-tensorrt": "as onnxruntime-cuda, and TensorRT; --runtime tensorrt needs neither",
    "native": "a C compiler: apt-get install gcc, or another one named in CC",
    "openvino": install_command("openvino"),
    "pytorch": install_command("export"),
    "tensorrt": f"an NVIDIA GPU with its driver; JetPack brings TensorRT, elsewhere {install_command('tensorrt')}",
}

# Two packages that bring the same module overwrite each other: whichever was installed last is imported.
RIVALS = (("onnxruntime", "onnxruntime-gpu"), ("onnxruntime", "onnxruntime-openvino"))

# Least release of a Jetson's system -> JetPack, and the versions of TensorRT that go with it, after NVIDIA's
# release notes and download pages: JetPack 6.1 is R36.4, 7.0 R38.2, 7.1 R38.4; TensorRT 11.0 to 11.4.0 support none.
JETPACK = (
    (Version("36.4"), "JetPack 6.1 or 6.2", SpecifierSet("==10.3.*")),
    (Version("38.2"), "JetPack 7", SpecifierSet(">=10.4,!=11.0.*,!=11.1.*,!=11.2.*,!=11.3.*,!=11.4.0.*")),
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """State of one part of the installation, and its mend."""

    part: str
    state: State
    found: str
    mend: str = ""  # what to do; "" where there is nothing to mend


def examine(installed: Callable[[str], str | None] | None = None) -> tuple[Finding, ...]:
    """Findings of all parts, the base install first.

    Args:
        installed: version of a distribution by its name, None where there is none; for tests.
    """
    version_of = installed or _installed
    return (
        _python(),
        *_packages(version_of),
        *_rivals(version_of),
        *_bundles(),
        *(_runtime(name) for name in RUNTIMES),
        _tensorrt(version_of),
        *board_findings(),
        _gpu(),
        _ssh(),
    )


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


# Packages


def _packages(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    """Findings of the base install, and of each extra that is not made of others."""
    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires("edgese") or []]
        extras = importlib.metadata.metadata("edgese").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("base install", "wrong", "edgese runs from its folder, not installed", install_command())
        return
    base = [wanted for wanted in requirements if _applies(wanted, "")]
    yield _group("base install", base, version_of, install_command(), needed=True)
    for extra in extras:
        own = [wanted for wanted in requirements if wanted not in base and _applies(wanted, extra)]
        if own and extra not in WHOLE:
            yield _group(f"[{extra}]", own, version_of, install_command(extra), needed=False)


def _applies(wanted: Requirement, extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def _group(
    part: str, wanted: list[Requirement], version_of: Callable[[str], str | None], mend: str, *, needed: bool
) -> Finding:
    found, missing, unfit = [], [], []
    for requirement in wanted:
        version = version_of(requirement.name)
        if version is None:
            missing.append(str(requirement.name))
        elif not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} {version}, wanted {requirement.specifier}")
        else:
            found.append(f"{requirement.name} {version}")
    parts = [", ".join(found), f"missing: {', '.join(missing)}" * bool(missing), "; ".join(unfit)]
    state: State = "wrong" if unfit or (missing and needed) else "absent" if missing else "ok"
    return Finding(part, state, "; ".join(filter(None, parts)), mend if state != "ok" else "")


def _rivals(version_of: Callable[[str], str | None]) -> Iterator[Finding]:
    for ours, theirs in RIVALS:
        versions = version_of(ours), version_of(theirs)
        if None not in versions:
            mend = f"{pip_command('uninstall', ours, theirs)}, then install the one that you want"
            found = f"{ours} {versions[0]} and {theirs} {versions[1]} bring the same module"
            yield Finding(f"{ours} and {theirs}", "wrong", found, mend)


# What opens


def _bundles() -> Iterator[Finding]:
    for name in SHIPPED:
        part = f"shipped bundle {name}"
        try:
            bundle = open_bundle(shipped_bundle(name))
        except (ExportError, OSError) as error:
            again = f"{install_command()} --force-reinstall --no-deps"
            folder = clone()  # whose files no installation replaces
            mend = again if folder is None else f"git -C {shlex.quote(str(folder))} checkout -- edgese/weights"
            yield Finding(part, "wrong", str(error), mend)
            continue
        found = f"{bundle.manifest['name']}, {len(bundle.graphs)} graphs, every file as its digest says"
        yield Finding(part, "ok", found)


def _runtime(name: str) -> Finding:
    """Finding of a runtime: it opens a shipped model, and one hop of silence stays silent."""
    part, mend = f"runtime {name}", MENDS[name]
    try:
        load_runtime(name)
    except RuntimeUnavailable as error:  # only the first is needed
        return Finding(part, "wrong" if name == "onnxruntime" else "absent", str(error), mend)
    try:
        bundle = open_bundle(shipped_bundle("small"))
        graph = bundle.graph(block=1)
        with open_graph(bundle, graph, name) as opened:
            size = int(bundle.manifest["audio"]["hop"])
            enhanced = opened.stream(graph.states, streams=1)({"wave": np.zeros((1, size), np.float32)})["enhanced"]
    except (RuntimeUnavailable, ExportError, EdgeseError, ImportError) as error:
        # Every onnxruntime-gpu offers TensorRT, which is a separate installation; native asks for a compiler then.
        return Finding(part, "absent" if name in ("onnxruntime-tensorrt", "native") else "wrong", str(error), mend)
    fine = enhanced.shape == (1, size) and not enhanced.any()
    found = "opens a shipped model; silence stays silence" if fine else "gives sound where there was none"
    return Finding(part, "ok" if fine else "wrong", found, "" if fine else mend)


# TensorRT and the GPU


def _tensorrt(version_of: Callable[[str], str | None]) -> Finding:
    """Finding of TensorRT beside a Jetson's system; "ok" on other machines."""
    version = version_of("tensorrt")
    machine = describe()
    if machine.board is None:
        return Finding("TensorRT and JetPack", "ok", f"no Jetson; tensorrt {version or 'is not installed'}")
    return judge_jetpack(machine.release, version)


def judge_jetpack(release: str | None, tensorrt: str | None) -> Finding:
    """Finding that says whether a Jetson's TensorRT goes with its system.

    Args:
        release: of the system, such as "R36.4.3"; None: it cannot be read.
        tensorrt: version of its Python package; None: there is none.
    """
    part = "TensorRT and JetPack"
    number = re.search(r"\d+(\.\d+)*", release or "")
    known = [entry for entry in JETPACK if number and Version(number[0]) >= entry[0]]
    if not known:
        mend = "install JetPack 6.1 or later (sdkmanager, or NVIDIA's image for the board)"
        return Finding(part, "wrong", f"found system {release or 'unknown'}, wanted R36.4 or later", mend)
    _, jetpack, wanted = known[-1]
    if tensorrt is None:
        mend = "sudo apt install python3-libnvinfer; a virtual environment needs --system-site-packages"
        return Finding(part, "wrong", f"{jetpack} ({release}) without TensorRT's Python package", mend)
    if not wanted.contains(tensorrt):
        mend = "sudo apt install --reinstall tensorrt python3-libnvinfer (JetPack's own)"
        return Finding(part, "wrong", f"{jetpack} ({release}) with tensorrt {tensorrt}, wanted {wanted}", mend)
    return Finding(part, "ok", f"{jetpack} ({release}) with tensorrt {tensorrt}")


def board_findings(root: Path = Path("/")) -> Iterator[Finding]:
    """Findings of a Jetson: what JetPack brought, and the clocks that a measurement would run at; none elsewhere.

    Args:
        root: what stands for `/`.
    """
    if describe(root=root).board is None:
        return
    board, state = read_jetson(root), read_state(root)
    told = {"L4T": board.l4t, "JetPack": board.jetpack, "TensorRT": board.tensorrt, "CUDA": board.cuda}
    unknown = [f"{name}: {board.missing[name.lower()]}" for name, version in told.items() if version is None]
    found = ", ".join([board.model, *(f"{name} {version}" for name, version in told.items() if version)])
    mend = "sudo apt install nvidia-jetpack, which brings TensorRT and CUDA" if unknown else ""
    yield Finding("board", "absent" if unknown else "ok", "; ".join([found, *unknown]), mend)
    clocks = [
        f"{name} {_mhz(clock.current_mhz)} of {_mhz(clock.lowest_mhz)} to {_mhz(clock.highest_mhz)} MHz"
        for name, clock in state.clocks.items()
    ]
    hot = [f"{name} is throttled" for name, level in state.throttling.items() if level > 0]
    locked = {True: "clocks locked", False: "clocks not locked", None: "not known whether clocks are locked"}
    found = "; ".join([f"power mode {state.power_mode or 'not known'}", locked[state.jetson_clocks], *clocks, *hot])
    mends = ["before measurements: sudo jetson_clocks"] * (not state.jetson_clocks) + ["let the board cool"] * bool(hot)
    yield Finding("board's clocks", "absent" if mends else "ok", found, "; ".join(mends))


def _mhz(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _gpu() -> Finding:
    from runtimes.gpu import read_device

    device: Any = read_device()
    if device is None:
        mend = "nothing, if there is no NVIDIA GPU; else its driver (nvidia-smi must work)"
        return Finding("NVIDIA GPU", "absent", "none that a driver reports", mend)
    return Finding("NVIDIA GPU", "ok", str(device))


# Boards


def _ssh() -> Finding:
    """Finding of the ssh client, which `--host` needs."""
    path = shutil.which("ssh")
    if path is None:
        return Finding("ssh", "absent", "not found; only --host needs it", "apt install openssh-client")
    return Finding("ssh", "ok", path)
