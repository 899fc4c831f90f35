"""Doubles of TensorRT's Python packages: what builds engines, and over the double of the GPU what runs them.

`USED` less `ABSENT` is what each version's real package has of it, with these arguments, as read from the packages
themselves: of tensorrt its bindings from the package index (tensorrt_cu12_bindings 10.3.0 and 10.16.1.11,
tensorrt_cu13_bindings 11.4.0.106) over empty libraries, see `load_bindings`. What the builder's double gives is no
engine; one for the runtime's double is an ONNX file after a line that says how it was built (`write_engine`). ONNX
Runtime computes it, in the double's own order and memory.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import functools
import hashlib
import importlib.util
import inspect
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from runtimes.tensor_spec import TensorSpec

from .cuda_double import CudaDouble

USED = (
    "Builder.build_serialized_network",
    "Builder.create_builder_config",
    "Builder.create_network",
    "Builder.create_optimization_profile",
    "BuilderFlag.TF32",
    "ComputeCapability.CURRENT",
    "ComputeCapability.NONE",
    "ComputeCapability.SM86",
    "CudaGraphStrategy.DISABLED",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
    "DataType.BOOL",
    "DataType.FLOAT",
    "DataType.HALF",
    "DataType.INT32",
    "DataType.INT64",
    "DataType.INT8",
    "DataType.UINT8",
    "IBuilderConfig.add_optimization_profile",
    "IBuilderConfig.clear_flag",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.progress_monitor",
    "IBuilderConfig.set_compute_capability",
    "IBuilderConfig.set_memory_pool_limit",
    "IBuilderConfig.set_timing_cache",
    "ICudaEngine.create_execution_context",
    "ICudaEngine.create_runtime_config",
    "ICudaEngine.get_tensor_dtype",
    "ICudaEngine.get_tensor_location",
    "ICudaEngine.get_tensor_mode",
    "ICudaEngine.get_tensor_name",
    "ICudaEngine.get_tensor_profile_shape",
    "ICudaEngine.get_tensor_shape",
    "ICudaEngine.num_io_tensors",
    "IExecutionContext.active_optimization_profile",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.get_tensor_shape",
    "IExecutionContext.infer_shapes",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_optimization_profile_async",
    "IExecutionContext.set_tensor_address",
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
    "IRuntimeConfig.cuda_graph_strategy",
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
    "Runtime.deserialize_cuda_engine",
    "TensorIOMode.INPUT",
    "TensorIOMode.OUTPUT",
    "TensorLocation.DEVICE",
)

_OF_RTX = {name for name in USED if "ompute" in name or "trategy" in name}
ABSENT = {
    ("tensorrt", "10.3.0"): _OF_RTX | {"ICudaEngine.create_runtime_config"},
    ("tensorrt", "10.16.1.11"): _OF_RTX,
    ("tensorrt", "11.4.0.106"): _OF_RTX,
    ("tensorrt_rtx", "1.7.1.116"): set[str](),
}
VERSIONS = tuple(ABSENT)

ORIN = "Orin (SM87, 8 multiprocessors)"
_NAMES = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "uint8": "UINT8", "int32": "INT32", "int64": "INT64"}


def surface(library: ModuleType) -> dict[str, list[list[str]]]:
    """The names of `USED` that a package has, real or not, with the names of arguments in each form of the call."""
    found: dict[str, list[list[str]]] = {}
    for name in USED:
        kind, member = name.split(".")
        holder = getattr(library, kind, None)
        if hasattr(holder, member):
            found[name] = _arguments(member, getattr(holder, member))
    return found


def _arguments(name: str, thing: Any) -> list[list[str]]:
    if inspect.isfunction(thing):
        return [list(inspect.signature(thing).parameters)]
    if not callable(thing) or isinstance(thing, type):
        return []
    forms = re.findall(rf"\b{name}\((self: [^\n]*)\) ->", thing.__doc__ or "")
    return [re.findall(r"(?:^|, )(\w+):", form) for form in forms]


def write_engine(
    onnx_path: Path,
    engine_path: Path,
    axes: Mapping[str, tuple[int, int, int]],
    *,
    built_by: str = "tensorrt 10.3.0",
    device: str = ORIN,
) -> Path:
    """An engine for a double, of an ONNX file without weights beside it, and its sidecar."""
    header = json.dumps({"built_by": built_by, "axes": dict(axes)}).encode()
    write_sidecar(onnx_path, engine_path, header + b"\n" + onnx_path.read_bytes(), built_by=built_by, device=device)
    return engine_path


def write_sidecar(onnx_path: Path, engine_path: Path, content: bytes, *, built_by: str, device: str) -> None:
    """An engine and what the cache of engines writes beside it."""
    from runtimes.onnx_file import read_onnx_header

    header = read_onnx_header(onnx_path)
    record = {
        "schema_version": 1,
        "key": {"tensorrt": built_by, "device": device},
        "engine": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)},
        "graph": dataclasses.asdict(header),
    }
    engine_path.write_bytes(content)
    engine_path.with_name(f"{engine_path.name}.json").write_text(json.dumps(record))


def _enum(name: str, members: Sequence[str]) -> Any:
    return enum.IntEnum(name, members, start=0)


@functools.lru_cache(maxsize=8)
def _open_onnx(graph: bytes) -> tuple[Any, dict[str, TensorSpec], dict[str, TensorSpec]]:
    """A session that computes the graph, its inputs, its outputs."""
    import onnxruntime

    from runtimes.ort import _spec

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return session, *({node.name: _spec(node, Path()) for node in nodes} for nodes in (inputs, outputs))


def tensorrt_double(
    name: str = "tensorrt",
    version: str = "10.3.0",
    *,
    absent: Sequence[str] = (),
    starts: bool = True,
    cuda: CudaDouble | None = None,
    **options: Any,
) -> Any:
    """A package of that name and version; `seen` holds what was asked of it, `gone` what it lost, in order.

    Args:
        absent: names that it lacks beyond those of its version.
        starts: whether builders and runtimes can be made.
        cuda: the GPU that it runs engines on; None: it only builds them.
        options: of `_builder_kinds`, or of `_runtime_kinds` where there is a GPU.
    """
    library: Any = ModuleType(name)
    library.__version__, library.gone = version, []
    library.seen = {"contexts": 0, "strategies": [], "runs": 0, "made": 0}
    severities = _enum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])

    class ILogger:
        Severity = severities

        def log(self, severity: int, msg: str) -> None:
            raise NotImplementedError

    library.ILogger = ILogger
    gpu = cuda or CudaDouble()
    building, running = ({}, options) if cuda else (options, {})
    for kind in (*_builder_kinds(library, starts, **building), *_runtime_kinds(library, starts, gpu, **running)):
        setattr(library, kind.__name__, kind)
    lacking = ABSENT.get((name, version), ABSENT[VERSIONS[0]] if name == "tensorrt" else set[str]())
    for kind, member in (path.split(".") for path in (*lacking, *absent)):
        thing = getattr(library, kind, None)
        if thing is None:
            continue
        if not issubclass(thing, enum.Enum):
            delattr(thing, member)
        elif f"{kind}.{member}" in lacking:  # these have no such type at all
            delattr(library, kind)
        else:
            setattr(library, kind, _enum(kind, []))
    return library


def _builder_kinds(
    library: Any,
    starts: bool,
    *,
    inputs: Sequence[tuple[str, Sequence[int], Sequence[str]]] = (("x", (-1, 4), ("n", "")),),
    errors: Sequence[tuple[str, int, str, str, str, str]] = (),
    plan: bytes | None = b"plan",
    outputs: int = 1,
    log: Sequence[tuple[int, str]] = (),
    timings_fit: bool = True,
) -> Sequence[Any]:
    """The types that parse graphs and build engines.

    Args:
        inputs: (name, shape, names of the axes).
        errors: of its parser: (operator, index of the node, name of the node, code, reason, function).
        log: (severity, message) while it builds.
        timings_fit: whether it takes the timings that it is given.
    """
    seen, severities, ILogger = library.seen, library.ILogger.Severity, library.ILogger

    class IProgressMonitor:
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
        def phase_finish(self, phase_name: str) -> None: ...
        def step_complete(self, phase_name: str, step: int) -> bool:
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
        def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
            seen.setdefault("shapes", {})[input] = (min, opt, max)

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

        def set_memory_pool_limit(self, pool: object, pool_size: int) -> None:
            seen["workspace"] = (pool, pool_size)

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            seen["profile"] = profile
            return 0

        def set_compute_capability(self, compute_capability: object, index: int) -> bool:
            assert self.num_compute_capabilities == index + 1
            seen["capability"] = compute_capability
            return True

        def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
            return ITimingCache(serialized_timing_cache)

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

        def parse_from_file(self, model: str) -> bool:
            assert isinstance(model, str)
            seen["parsed"] = model
            for error in errors:
                self._logger.log(severities.ERROR, f"ModelImporter.cpp:140: While parsing node number {error[1]}")
            return not errors

        def get_error(self, index: int) -> ParserError:
            return ParserError(*errors[index])

    BuilderFlag = enum.IntEnum("BuilderFlag", ["TF32"], start=7)
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", ["STRONGLY_TYPED"], start=1)
    MemoryPoolType = _enum("MemoryPoolType", ["WORKSPACE"])
    ComputeCapability = _enum("ComputeCapability", ["NONE", "CURRENT", "SM86"])
    enums = (BuilderFlag, NetworkDefinitionCreationFlag, MemoryPoolType, ComputeCapability)
    network = (INetworkDefinition, ITensor, IOptimizationProfile, IBuilderConfig, ITimingCache)
    return (Builder, OnnxParser, ParserError, IProgressMonitor, *network, *enums)


def _runtime_kinds(
    library: Any,
    starts: bool,
    cuda: CudaDouble,
    *,
    contexts: int = 1_000_000,
    capturable: bool = True,
    runs: Sequence[bool] = (),
    on_host: Sequence[str] = (),
    shape_fails: bool = False,
) -> Sequence[Any]:
    """The types that run engines.

    Args:
        contexts: how many it gives before it has no memory left.
        capturable: whether a run can be captured.
        runs: whether each run works, those after the last do.
        on_host: tensors that it wants in the host's memory.
        shape_fails: whether the shapes of outputs cannot be found.
    """
    seen, outcomes, severities, ILogger = library.seen, list(runs), library.ILogger.Severity, library.ILogger
    TensorIOMode = modes = _enum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"])
    TensorLocation = places = _enum("TensorLocation", ["DEVICE", "HOST"])
    DataType = kinds = _enum("DataType", ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64"])
    CudaGraphStrategy = strategies = _enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])

    class Gone:
        """An object that must not outlive the GPU's context."""

        def __new__(cls, *arguments: object) -> Any:
            seen["made"] += 1
            return object.__new__(cls)

        def __del__(self) -> None:
            library.gone.append((type(self).__name__, "context" in cuda.live.values()))

    class Runtime(Gone):
        def __init__(self, logger: ILogger) -> None:
            assert cuda.contexts
            if not starts:
                logger.log(severities.ERROR, "CUDA initialization failure with error: 35")
                del self
                raise TypeError("pybind11::init(): factory function returned nullptr")
            logger.log(severities.WARNING, "WARNING The logger passed into createInferRuntime differs from one")
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
            assert cuda.contexts
            header, _, graph = serialized_engine.partition(b"\n")
            self._logger.log(severities.INFO, "Loaded engine size: 0 MiB")
            try:
                built = json.loads(header)
            except ValueError:
                self._logger.log(severities.ERROR, "Error Code 1: Serialization (magicTag\n does not match)")
                return None
            return ICudaEngine(self._logger, graph, built["axes"])

    class IRuntimeConfig:
        cuda_graph_strategy: Any = strategies.DISABLED

    class ICudaEngine(Gone):
        num_io_tensors = 0

        def __init__(self, logger: ILogger, graph: bytes, axes: Mapping[str, Sequence[int]]) -> None:
            self.logger, self.axes = logger, axes
            self.session, self.inputs, self.outputs = _open_onnx(graph)
            self.specs = self.outputs | self.inputs  # in another order than the file's
            self.num_io_tensors = len(self.specs)

        def get_tensor_name(self, index: int) -> str:
            return list(self.specs)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return modes.INPUT if name in self.inputs else modes.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return kinds[_NAMES[self.specs[name].dtype]]

        def get_tensor_location(self, name: str) -> Any:
            return places.HOST if name in on_host else places.DEVICE

        def get_tensor_shape(self, name: str) -> Sequence[int]:
            return [-1 if isinstance(size, str) else size for size in self.specs[name].shape]

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
            assert profile_index == 0
            shape = self.specs[name].shape
            return [[self.axes[size][at] if isinstance(size, str) else size for size in shape] for at in range(3)]

        def create_runtime_config(self) -> IRuntimeConfig:
            return IRuntimeConfig()

        def create_execution_context(self, strategy: int = 0) -> IExecutionContext | None:
            return self._context(None)

        def _context(self, runtime_config: IRuntimeConfig | None) -> IExecutionContext | None:
            assert cuda.contexts
            seen["contexts"] += 1
            if seen["contexts"] > contexts:
                self.logger.log(severities.ERROR, "IExecutionContext: out of memory")
                return None
            if runtime_config is not None:
                seen["strategies"].append(runtime_config.cuda_graph_strategy)
            return IExecutionContext(self, 0 if seen["contexts"] == 1 else -1)

    class IExecutionContext(Gone):
        active_optimization_profile = -1

        def __init__(self, engine: ICudaEngine, profile: int) -> None:
            self._engine, self.active_optimization_profile = engine, profile
            self._sizes: dict[str, int] = {}
            self._addresses: dict[str, int] = {}
            self._set: set[str] = set()
            self._warm = False

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            assert cuda.live[stream_handle] == "stream"
            self.active_optimization_profile = profile_index
            return True

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            assert isinstance(shape, tuple)
            assert self.active_optimization_profile == 0
            self._set.add(name)
            for axis, size in zip(self._engine.inputs[name].shape, shape, strict=True):
                if isinstance(axis, str):
                    least, _, most = self._engine.axes[axis]
                    if not least <= size <= most or self._sizes.setdefault(axis, size) != size:
                        self._engine.logger.log(severities.ERROR, f"{name}: {size} is out of the profile")
                        return False
            return True

        def infer_shapes(self) -> list[str]:
            if shape_fails:
                del self  # in C++, no traceback keeps it
                raise RuntimeError("shape inference failed")
            return [name for name in self._engine.inputs if name not in self._set]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            shape = self._engine.specs[name].shape
            return tuple(self._sizes.get(size, -1) if isinstance(size, str) else size for size in shape)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert name in self._engine.specs
            assert not self._warm, "an address that a graph was captured with has changed"
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert cuda.contexts
            seen["runs"] += 1
            if outcomes and not outcomes.pop(0):
                self._engine.logger.log(severities.ERROR, "enqueueV3: Cask convolution execution")
                return False
            if stream_handle in cuda.capturing:
                assert self._warm, "captured before it ran"
                if not capturable:
                    self._engine.logger.log(severities.ERROR, "operation not permitted when stream is capturing")
                    return False
            self._warm = True
            memory = {}
            for name, spec in self._engine.specs.items():
                shape, dtype = self.get_tensor_shape(name), np.dtype(spec.dtype)
                n_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
                memory[name] = cuda.at(self._addresses[name], n_bytes).view(dtype).reshape(shape)
            engine, outputs = self._engine.session, list(self._engine.outputs)
            fed = {name: memory[name] for name in self._engine.inputs}

            def work() -> None:
                for name, result in zip(outputs, engine.run(outputs, fed), strict=True):
                    np.copyto(memory[name], result)

            cuda.put(stream_handle, work)
            return True

    def create_execution_context(self: ICudaEngine, runtime_config: IRuntimeConfig) -> IExecutionContext | None:
        return self._context(runtime_config)

    if library.__name__ == "tensorrt_rtx":
        ICudaEngine.create_execution_context = create_execution_context  # type: ignore[assignment, method-assign]
    enums = (TensorIOMode, TensorLocation, DataType, CudaGraphStrategy)
    return (Runtime, IRuntimeConfig, ICudaEngine, IExecutionContext, *enums)


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
