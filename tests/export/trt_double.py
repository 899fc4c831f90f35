"""Doubles of TensorRT's Python packages: what the builder uses of them and nothing more, with a record of its calls.

`USED` less `ABSENT` is what each version's real package has of it, as read from the packages themselves: of tensorrt
its bindings from the package index (tensorrt_cu12_bindings 10.3.0 and 10.16.1.11, tensorrt_cu13_bindings 11.4.0.106)
over empty libraries, see `load_bindings`.
"""

from __future__ import annotations

import ctypes
import enum
import importlib.util
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

USED = (
    "Builder.build_serialized_network",
    "Builder.create_builder_config",
    "Builder.create_network",
    "Builder.create_optimization_profile",
    "BuilderFlag.TF32",
    "ComputeCapability.CURRENT",
    "ComputeCapability.NONE",
    "ComputeCapability.SM86",
    "IBuilderConfig.add_optimization_profile",
    "IBuilderConfig.clear_flag",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.progress_monitor",
    "IBuilderConfig.set_compute_capability",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.set_timing_cache",
    "ILogger.Severity",
    "ILogger.log",
    "INetworkDefinition.get_input",
    "INetworkDefinition.num_inputs",
    "INetworkDefinition.num_layers",
    "INetworkDefinition.num_outputs",
    "IOptimizationProfile.set_shape",
    "IProgressMonitor.phase_finish",
    "IProgressMonitor.phase_start",
    "IProgressMonitor.step_complete",
    "ITensor.get_dimension_name",
    "ITensor.name",
    "ITensor.shape",
    "ITimingCache.serialize",
    "MemoryPoolType.WORKSPACE",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "OnnxParser.get_error",
    "OnnxParser.num_errors",
    "OnnxParser.parse_from_file",
    "ParserError.code",
    "ParserError.desc",
    "ParserError.func",
    "ParserError.node",
    "ParserError.node_name",
    "ParserError.node_operator",
)

_OTHER_GPUS = {name for name in USED if "ompute" in name}
ABSENT = {
    ("tensorrt", "10.3.0"): _OTHER_GPUS,
    ("tensorrt", "10.16.1.11"): _OTHER_GPUS,
    ("tensorrt", "11.4.0.106"): _OTHER_GPUS,
    ("tensorrt_rtx", "1.7.1.116"): set[str](),
}
VERSIONS = tuple(ABSENT)


def surface(library: ModuleType) -> set[str]:
    """What a package, real or not, has of what is used."""
    pairs = [(name, *name.split(".")) for name in USED]
    return {name for name, kind, member in pairs if hasattr(getattr(library, kind, None), member)}


def tensorrt_double(
    name: str = "tensorrt",
    version: str = "10.3.0",
    *,
    absent: Sequence[str] = (),
    inputs: Sequence[tuple[str, Sequence[int], Sequence[str]]] = (("x", (-1, 4), ("n", "")),),
    errors: Sequence[tuple[str, int, str, str, str, str]] = (),
    plan: bytes | None = b"plan",
    outputs: int = 1,
    log: Sequence[tuple[int, str]] = (),
    starts: bool = True,
    timings_fit: bool = True,
) -> Any:
    """A package of that name and version; `seen` holds what was asked of it.

    Args:
        absent: names that it lacks beyond those of its version.
        inputs: (name, shape, names of the axes).
        errors: of its parser: (operator, index of the node, name of the node, code, reason, function).
        log: (severity, message) while it builds.
        timings_fit: whether it takes the timings that it is given.
    """
    seen: dict[str, Any] = {}
    library: Any = ModuleType(name)
    library.__version__, library.seen = version, seen
    severities = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

    class ILogger:
        Severity = severities

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    class IProgressMonitor:
        def phase_start(self, phase: str, parent: str | None, n_steps: int) -> None: ...
        def phase_finish(self, phase: str) -> None: ...
        def step_complete(self, phase: str, step: int) -> bool:
            return True

    class ITensor:
        name, shape = "", ()

        def __init__(self, name: str, shape: Sequence[int], axes: Sequence[str]) -> None:
            self.name, self.shape, self._axes = name, tuple(shape), axes

        def get_dimension_name(self, index: int) -> str:
            return self._axes[index]

    class INetworkDefinition:
        num_inputs, num_layers, num_outputs = len(inputs), 7, outputs

        def get_input(self, index: int) -> ITensor:
            return ITensor(*inputs[index])

    class IOptimizationProfile:
        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            seen.setdefault("shapes", {})[name] = shapes

    class ITimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> bytes:
            return self._content + b"+measured"

    class IBuilderConfig:
        progress_monitor: Any = None
        num_compute_capabilities = 0

        def clear_flag(self, flag: object) -> None:
            seen["cleared"] = flag

        def set_memory_pool_limit(self, pool: object, size: int) -> None:
            seen["workspace"] = (pool, size)

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            seen["profile"] = profile
            return 0

        def set_compute_capability(self, capability: object, index: int) -> bool:
            assert self.num_compute_capabilities == index + 1
            seen["capability"] = capability
            return True

        def create_timing_cache(self, content: bytes) -> ITimingCache:
            return ITimingCache(content)

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            if not timings_fit and cache._content:
                return False
            self._timings = cache
            return True

        def get_timing_cache(self) -> ITimingCache:
            return self._timings

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            if not starts:
                logger.log(severities.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            seen["logger"] = self._logger = logger

        def create_network(self, flags: int) -> INetworkDefinition:
            seen["flags"] = flags
            return INetworkDefinition()

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
            seen["builds"] = seen.get("builds", 0) + 1
            for severity, message in log:
                self._logger.log(severity, message)
            monitor = config.progress_monitor
            if monitor:
                monitor.phase_start("Building", None, 2)
                if not all(monitor.step_complete("Building", step) for step in range(2)):
                    return None
                monitor.phase_finish("Building")
            return plan

    class ParserError:
        def __init__(self, operator: str, node: int, node_name: str, code: str, desc: str, func: str) -> None:
            self._values = {"node_operator": operator, "node": node, "node_name": node_name}
            self._values |= {"code": f"ErrorCode.{code}", "desc": desc, "func": func}

        def node_operator(self) -> Any:
            return self._values["node_operator"]

        def node(self) -> Any:
            return self._values["node"]

        def node_name(self) -> Any:
            return self._values["node_name"]

        def code(self) -> Any:
            return self._values["code"]

        def desc(self) -> Any:
            return self._values["desc"]

        def func(self) -> Any:
            return self._values["func"]

    class OnnxParser:
        num_errors = len(errors)

        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
            self._logger = logger

        def parse_from_file(self, path: str) -> bool:
            assert isinstance(path, str)
            seen["parsed"] = path
            for error in errors:
                self._logger.log(severities.ERROR, f"ModelImporter.cpp:140: While parsing node number {error[1]}")
            return not errors

        def get_error(self, index: int) -> ParserError:
            return ParserError(*errors[index])

    for kind in (ILogger, IProgressMonitor, ITensor, INetworkDefinition, IOptimizationProfile, ITimingCache):
        setattr(library, kind.__name__, kind)
    for kind in (IBuilderConfig, Builder, ParserError, OnnxParser):
        setattr(library, kind.__name__, kind)
    library.BuilderFlag = enum.IntEnum("BuilderFlag", ["TF32"], start=7)
    library.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ["STRONGLY_TYPED"], start=1)
    library.MemoryPoolType = enum.IntEnum("MemoryPoolType", ["WORKSPACE"], start=0)
    library.ComputeCapability = enum.IntEnum("ComputeCapability", ["NONE", "CURRENT", "SM86"], start=0)
    if name == "tensorrt":
        del library.ComputeCapability, IBuilderConfig.set_compute_capability, IBuilderConfig.num_compute_capabilities
    for path in absent:
        kind, member = path.split(".")
        if issubclass(getattr(library, kind), enum.Enum):
            setattr(library, kind, enum.IntEnum(kind, []))
        else:
            delattr(getattr(library, kind), member)
    return library


def load_bindings(folder: Path) -> ModuleType:
    """The real tensorrt_bindings, over libraries without content made by the C compiler in `folder`: names, no work."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    assert spec is not None
    assert spec.origin is not None
    wanted = subprocess.run(["ldd", Path(spec.origin).with_name("tensorrt.so")], capture_output=True, text=True)
    missing = [line.split()[0] for line in wanted.stdout.splitlines() if "not found" in line]
    functions = {
        "libnvinfer.": "createInferBuilder_INTERNAL createInferRuntime_INTERNAL createInferRefitter_INTERNAL "
        "getPluginRegistry getBuilderPluginRegistry getInferLibVersion",
        "libnvonnxparser.": "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion",
        "libnvinfer_plugin.": "initLibNvInferPlugins",
    }
    for file in missing:
        names = next(names for start, names in functions.items() if file.startswith(start))
        source = folder / f"{file}.c"
        source.write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in names.split()))
        library = folder / file
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", library, source], check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_bindings")
