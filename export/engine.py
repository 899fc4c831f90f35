"""TensorRT engines built from ONNX files, by one path for tensorrt 10.3 and later, 11 and TensorRT for RTX.

    built = build_engine(onnx_path, BuildOptions(axes={"streams": (1, 1, 8)}))
    Path("block8.engine").write_bytes(built.serialized)

Networks are strongly typed: FP16 and INT8 are what the graph's casts and Q/DQ say, never a switch of the builder, and
products of float32 are made in float32, not in TF32. An engine belongs to one TensorRT version and one GPU: build it
where it runs, see engine_cache.py. This file needs Python, ONNX files and TensorRT's own Python package, nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from export import ExportError
from export.staging import write_whole
from runtimes.errors import RuntimeUnavailable
from runtimes.gpu import read_device
from runtimes.onnx_file import read_onnx_file
from runtimes.tensorrt_package import TensorRtLog, library_name, shown_lines, tensorrt_library, tensorrt_log

Progress = Callable[[str, int, int], None]  # a phase of the builder's, steps done, steps in all

_BUILDING = threading.Lock()  # all builds of a process share TensorRT's log
# Lines that repeat the parser's errors, or say that a machine without a GPU has none.
_REPEATED = ("ModelImporter.cpp:", "[checkMacros.cpp::catchCudaError")


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Sizes, memory and GPU that an engine is built for; its precision is the graph's own.

    Raises:
        ExportError: bounds of an axis that are not 1 <= least <= best <= most, or a workspace without a byte.
    """

    axes: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)
    """Dynamic axis -> least, best and most; the engine is fastest at the second."""
    workspace_bytes: int | None = None  # the most that a layer may use for itself; None: what the GPU has
    compute_capability: str | None = None  # of TensorRT for RTX, such as "SM86"; None: that of the GPU here, if any
    timing_cache: Path | None = None  # of tensorrt: measurements of kernels, read and written; RTX makes none

    def __post_init__(self) -> None:
        for axis, bounds in self.axes.items():
            if len(bounds) != 3 or not 1 <= bounds[0] <= bounds[1] <= bounds[2]:
                raise ExportError(f"axis {axis}: found {tuple(bounds)}, wanted 1 <= least <= best <= most")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ExportError(f"workspace: found {self.workspace_bytes} bytes, wanted at least 1")


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """An engine as it goes to disk, with the time and the warnings of its building."""

    serialized: bytes
    n_layers: int  # of the network as parsed; the builder fuses them
    seconds: float  # parsing included
    log: tuple[str, ...]  # TensorRT's own warnings


def build_engine(
    onnx_path: Path,
    options: BuildOptions,
    *,
    library: ModuleType | None = None,
    on_progress: Progress | None = None,
) -> BuiltEngine:
    """An engine for the graph in a file, its weights read from the files beside it.

    One build at a time in a process. What `on_progress` raises, Ctrl-C too, ends the build.

    Args:
        library: TensorRT; None: `tensorrt_library()`.

    Raises:
        ExportError: the graph, named by its node, or the options are not what this TensorRT can build; no GPU.
    """
    with as_export_error():
        library = library or tensorrt_library()
        unsigned = read_onnx_file(onnx_path).unsigned
    if unsigned:  # TensorRT would take it for int8, with no more than a warning
        raise ExportError(
            f"{onnx_path}: {unsigned[0]}: rounds to uint8, wanted int8 with zero point 0; "
            "TensorRT takes symmetric int8 only, quantize for it"
        )
    with _BUILDING:
        log = tensorrt_log(library)
        log_start = log.n_lines
        try:
            builder = library.Builder(log.logger)
        except (TypeError, RuntimeError) as error:
            reason = _log_tail(log, log_start) or f" ({error})"
            raise ExportError(
                f"{library_name(library)} cannot start; does it find a GPU and its driver?{reason}"
            ) from error
        network = builder.create_network(_network_flags(library))  # lives longer than the parser in the next function
        started = time.perf_counter()
        serialized = _serialize(library, builder, network, onnx_path, options, on_progress, log)
        seconds = time.perf_counter() - started
        return BuiltEngine(serialized, network.num_layers, seconds, tuple(log.since(log_start)))


def _serialize(
    library: ModuleType,
    builder: Any,
    network: Any,
    onnx_path: Path,
    options: BuildOptions,
    on_progress: Progress | None,
    log: TensorRtLog,
) -> bytes:
    log_start = log.n_lines
    parser = library.OnnxParser(network, log.logger)  # owns weights that the builder reads
    try:
        if not parser.parse_from_file(os.fspath(onnx_path)) or network.num_outputs == 0:
            errors = [_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
            reason = "\n  ".join(errors or ["it gave no network and no reason"])
            tail = _log_tail(log, log_start, reason)
            raise ExportError(f"{onnx_path}: {library_name(library)} cannot parse it: {reason}{tail}")
        config = _config(library, builder, network, onnx_path, options)
        monitor = _progress_monitor(library, on_progress) if on_progress else None
        if monitor:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor and monitor.raised:
            raise monitor.raised
        if plan is None:
            raise ExportError(f"{onnx_path}: {library_name(library)} cannot build it{_log_tail(log, log_start)}")
        if _keeps_timings(library, options):
            assert options.timing_cache is not None
            write_engine_file(options.timing_cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)
    finally:
        del parser


def _config(library: ModuleType, builder: Any, network: Any, onnx_path: Path, options: BuildOptions) -> Any:
    config = builder.create_builder_config()
    if hasattr(library.BuilderFlag, "TF32"):  # on by default
        config.clear_flag(library.BuilderFlag.TF32)
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    profile = _profile(builder, network, onnx_path, options)
    if profile is not None:
        config.add_optimization_profile(profile)
    _set_capability(library, config, options)
    if _keeps_timings(library, options):
        _load_timings(config, options)
    return config


def _profile(builder: Any, network: Any, onnx_path: Path, options: BuildOptions) -> Any:
    """Bounds of all inputs with a dynamic axis; None where there is no such input."""
    profile, found = None, set()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        names = [(tensor.get_dimension_name(axis) or f"{tensor.name}_{axis}") for axis in range(len(shape))]
        found |= {name for name, size in zip(names, shape, strict=True) if size == -1}
        for name, size in zip(names, shape, strict=True):
            if size == -1 and name not in options.axes:
                raise ExportError(
                    f"{onnx_path}: axis {name} of {tensor.name} is dynamic and has no bounds; "
                    f"give its least, best and most, as in axes={{{name!r}: (1, 1, 4)}}"
                )
        profile = profile or builder.create_optimization_profile()
        sizes = (
            [options.axes[name][at] if size == -1 else size for name, size in zip(names, shape, strict=True)]
            for at in range(3)
        )
        profile.set_shape(tensor.name, *map(tuple, sizes))
    unknown = sorted(set(options.axes) - found)
    if unknown:
        raise ExportError(
            f"{onnx_path}: axis {', '.join(unknown)}: not among its dynamic axes: {', '.join(sorted(found)) or 'none'}"
        )
    return profile


def _set_capability(library: ModuleType, config: Any, options: BuildOptions) -> None:
    wanted = options.compute_capability
    if not hasattr(library, "ComputeCapability"):
        if wanted is not None:
            raise ExportError(
                f"compute capability {wanted}: {library_name(library)} builds for the GPU that it runs on only; "
                "leave it out, or build with tensorrt_rtx"
            )
        return
    if wanted is None:
        wanted = "CURRENT" if read_device() else None
    if wanted is None:
        return  # an engine for all that it knows
    known = library.ComputeCapability.__members__
    if wanted not in known or wanted == "NONE":
        offered = ", ".join(name for name in known if name not in ("NONE", "CURRENT"))
        raise ExportError(f"compute capability {wanted}: {library_name(library)} has {offered}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(known[wanted], 0):
        raise ExportError(f"compute capability {wanted}: refused by {library_name(library)}; does it find a GPU?")


def _keeps_timings(library: ModuleType, options: BuildOptions) -> bool:
    return options.timing_cache is not None and not hasattr(library, "ComputeCapability")


def _load_timings(config: Any, options: BuildOptions) -> None:
    """Start the builder from the timings of the file, or from none where they are another machine's or damaged."""
    path = options.timing_cache
    assert path is not None
    try:
        known = path.read_bytes()
    except FileNotFoundError:
        known = b""
    except OSError as error:
        raise ExportError(f"{path}: the timing cache cannot be read ({error.strerror}); choose another") from error
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def write_engine_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also if two processes write it at once.

    Raises:
        ExportError: it cannot be written.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error.strerror}); choose another place") from error


def _progress_monitor(library: ModuleType, on_progress: Progress) -> Any:
    """A monitor that calls `on_progress` at each of the builder's steps; `raised` holds what that raised."""

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


def _parser_error(error: Any) -> str:
    """A parser's error in one line: node, reason, and where the parser says so."""
    code = str(error.code()).rpartition(".")[2].partition(":")[0]
    said = [line.strip() for line in error.desc().splitlines() if not line.startswith(_REPEATED)]
    reason = " ".join(line for line in said if line)
    if reason in ("", "false"):
        reason = "not supported"
    node = f"{error.node_operator()} {error.node_name() or f'node {error.node()}'}: " if error.node_operator() else ""
    return f"{node}{reason} ({code}, {error.func()})"


def _log_tail(log: TensorRtLog, start: int, reason: str = "") -> str:
    """The last lines of the log since `start`, but for those that repeat the parser or `reason`."""
    lines = [line for line in log.since(start) if not line.startswith(_REPEATED)]
    return shown_lines(line for line in lines if line not in reason)


@contextlib.contextmanager
def as_export_error() -> Iterator[None]:
    """Raise what `runtimes` raises as ExportError, its message unchanged."""
    try:
        yield
    except RuntimeUnavailable as error:
        raise ExportError(str(error)) from error


def _network_flags(library: ModuleType) -> int:
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # without it, all networks are
    return 0 if flag is None else 1 << int(flag)
