"""TensorRT's Python package as all its versions offer it: which one is here, its log, its errors, its progress.

tensorrt (JetPack brings it) and tensorrt_rtx (TensorRT for RTX, from the package index) differ by a few names only;
what exists is asked of the package, never concluded from its version.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from export import ExportError

LIBRARIES = ("tensorrt", "tensorrt_rtx")  # the first one that can be imported is taken
LEAST_VERSION = (10, 3)  # of tensorrt: JetPack 6; before 10, networks were not strongly typed

Progress = Callable[[str, int, int], None]  # a phase of the builder's, steps done, steps in all

_LOG_LINES = 8  # of the log's last, shown on failure
# Lines that repeat the parser's errors, or tell that a machine without a GPU has none.
_NARRATION = ("ModelImporter.cpp:", "[checkMacros.cpp::catchCudaError")


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU, as far as an engine depends on it."""

    name: str
    compute_capability: str  # "SM87"
    multiprocessors: int

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability}, {self.multiprocessors} multiprocessors)"


def tensorrt_library(name: str | None = None) -> ModuleType:
    """TensorRT's Python package: `name`, or tensorrt, else tensorrt_rtx.

    Raises:
        ExportError: not installed, not loadable, or too old; the message says how to get it.
    """
    if name not in (None, *LIBRARIES):
        raise ExportError(f"{name}: not a TensorRT, wanted one of {', '.join(LIBRARIES)}")
    failures = []
    for candidate in [name] if name else LIBRARIES:
        try:
            library = importlib.import_module(candidate)
        except (ImportError, OSError) as error:  # OSError: one of its shared libraries
            failures.append(f"{candidate} cannot be loaded ({error})")
            continue
        if candidate == "tensorrt" and _version(library) < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            raise ExportError(f"tensorrt: found {library.__version__}, wanted {least} or later; JetPack 6.1 brings it")
        return library
    raise ExportError(
        f"{'; '.join(failures)}: JetPack brings tensorrt (apt install python3-libnvinfer); "
        f"on x86-64 machines: {sys.executable} -m pip install tensorrt_rtx"
    )


def library_name(library: ModuleType) -> str:
    """The package's name and version: "tensorrt 10.3.0"."""
    return f"{library.__name__} {library.__version__}"


def read_device() -> Device | None:
    """The first GPU, told by the driver; None where there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    cuda.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (75, 76, 16):  # cuda.h, CUdevice_attribute: capability's two parts, count of multiprocessors
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != 0:
            return None
        numbers.append(number.value)
    return Device(name.value.decode(errors="replace"), f"SM{numbers[0]}{numbers[1]}", numbers[2])


def _version(library: ModuleType) -> tuple[int, ...]:
    return tuple(int(part) for part in str(library.__version__).split(".")[:2])


# TensorRT keeps the first logger that it is given, by its bare address, for as long as it has any object. So there is
# one for each library, for as long as the process lives.
_LOGGERS: dict[ModuleType, Any] = {}


def collecting_logger(library: ModuleType) -> Any:
    """The process's logger for a library, an ILogger; its `lines` hold TensorRT's warnings and errors from now on."""
    if library not in _LOGGERS:

        class Logger(library.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                library.ILogger.__init__(self)
                self.lines: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(library.ILogger.Severity.WARNING):
                    self.lines.append(message)

        _LOGGERS[library] = Logger()
    _LOGGERS[library].lines = []
    return _LOGGERS[library]


def progress_monitor(library: ModuleType, on_progress: Progress) -> Any:
    """What tells the caller how far the builder is; `raised` holds what the caller then raised."""

    class Monitor(library.IProgressMonitor):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.raised: BaseException | None = None
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, n_steps: int) -> None:
            self.steps[phase] = n_steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                on_progress(phase, step + 1, max(self.steps.get(phase, 0), step + 1))
            except BaseException as error:  # noqa: BLE001 # must not pass through the library; raised after the build
                self.raised = self.raised or error
            return self.raised is None

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Monitor()


def describe_error(error: Any) -> str:
    """A parser's error in one line: node, reason, and where the parser says so."""
    code = str(error.code()).rpartition(".")[2].partition(":")[0]
    said = [line.strip() for line in error.desc().splitlines() if not line.startswith(_NARRATION)]
    reason = " ".join(line for line in said if line)
    if reason in ("", "false"):
        reason = "not supported"
    node = f"{error.node_operator()} {error.node_name() or f'node {error.node()}'}: " if error.node_operator() else ""
    return f"{node}{reason} ({code}, {error.func()})"


def log_tail(lines: Sequence[str], told: str = "") -> str:
    """The last of TensorRT's warnings and errors, each on a line of its own, but for those that `told` holds."""
    said = [" ".join(line.split()) for line in lines if not line.startswith(_NARRATION)]
    return "".join(f"\n  log: {line}" for line in said[-_LOG_LINES:] if line not in told)
