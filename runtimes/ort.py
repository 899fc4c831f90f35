"""ONNX Runtime: runs an ONNX file, on the CPU or on a GPU; its streams keep the states in bound buffers and copy none.

On a GPU the buffers are the GPU's, and a graph runs there as a whole or not at all: a provider that does not start, and
a node that would be left to the CPU, are errors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import (
    Arrays,
    ArtefactError,
    Runtime,
    RuntimeUnavailable,
    Stream,
    TensorSpec,
    check_feeds,
    zeros,
)

# On Linux, onnxruntime 1.32 reports every session to Microsoft, and leaves a number in the home, from its import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime
except ImportError as error:
    raise RuntimeUnavailable(
        f"onnxruntime cannot be loaded ({error}): {sys.executable} -m pip install onnxruntime"
    ) from error


@dataclasses.dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime, by its name there and the name of the runtime over it here."""

    runtime: str
    name: str
    device: str = "cpu"  # where its streams keep their buffers
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


CPU = Provider("onnxruntime", "CPUExecutionProvider")
CUDA = Provider("onnxruntime-cuda", "CUDAExecutionProvider", "cuda", {"use_tf32": "0"})  # FP32 is to be FP32
TENSORRT = Provider("onnxruntime-tensorrt", "TensorrtExecutionProvider", "cuda")

_PIP = f"{sys.executable} -m pip"
_MEND = (
    f"{_PIP} uninstall onnxruntime, then {_PIP} install 'onnxruntime-gpu[cuda,cudnn]'; "
    "a Jetson takes NVIDIA's own build"
)

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntime(Runtime):
    """An ONNX file open in ONNX Runtime."""

    def __init__(self, artefact: Path, *, threads: int = 1, provider: Provider = CPU) -> None:
        """Open `artefact`, with its external data beside it.

        Raises:
            RuntimeUnavailable: the provider is not in this build of onnxruntime, it did not start, or it leaves a part
                of the graph to the CPU.
            ArtefactError: the file is missing or broken.
        """
        _require_offered(provider)
        said = _load_libraries() if provider.device != "cpu" else ""
        options, asked = _options(threads, provider), [(provider.name, dict(provider.options))]
        try:
            session = onnxruntime.InferenceSession(artefact, options, providers=asked)
        except Exception as error:  # its own classes share no base but Exception
            if "fallback to CPU EP" in str(error):
                raise RuntimeUnavailable(
                    f"{provider.name}: leaves a part of {artefact.name} to the CPU; choose --runtime onnxruntime"
                ) from error
            raise ArtefactError(
                f"{artefact}: onnxruntime cannot open it ({_first_line(error)}); export or fetch it again"
            ) from error
        started = session.get_providers()
        if started[0] != provider.name:  # onnxruntime would go on with the CPU and say so in a log line only
            why = f" ({said})" if said else ""
            raise RuntimeUnavailable(
                f"{provider.name}: did not start, found {', '.join(started)}{why}; see to the driver, and: {_MEND}"
            )
        self.name = provider.runtime
        self.device = provider.device
        self.inputs = tuple(_spec(node, artefact) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, artefact) for node in session.get_outputs())
        self.metadata = dict(session.get_modelmeta().custom_metadata_map)
        self._session: Any = session
        self._output_names = [spec.name for spec in self.outputs]

    def stream(self, states: Mapping[str, str], **axes: int) -> Stream:
        """See `Runtime.stream`; states stay in bound buffers if `axes` leaves no shape of the graph open."""
        if any(spec.bind(axes).sizes is None for spec in (*self.inputs, *self.outputs)):
            return super().stream(states, **axes)
        return (_BoundStream if self.device == "cpu" else _DeviceStream)(self, states, axes)

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        try:
            results = self._session.run(self._output_names, dict(feeds))
        except Exception as error:
            raise _failed(error) from error
        return dict(zip(self._output_names, results, strict=True))

    def _free(self) -> None:
        self._session = None


class _BoundStream(Stream):
    """A stream over two banks of state buffers: each call reads one and writes the other, then they change places.

    All memory is bound once. A call copies the feeds in and the outputs out, and no state.
    """

    def __init__(self, runtime: OnnxRuntime, states: Mapping[str, str], axes: Mapping[str, int]) -> None:
        super().__init__(runtime, states, axes)
        self._session = runtime._session
        self._fed = {spec.name: zeros(spec) for spec in self.inputs}
        self._results = {spec.name: zeros(spec) for spec in self.outputs}
        self._spare = {spec.name: zeros(spec) for spec in self._state_specs}
        self._binding = self._bind(self._states, self._spare)
        self._next_binding = self._bind(self._spare, self._states)

    def _bind(self, before: Arrays, after: Arrays) -> Any:
        """A binding that reads the states `before` and writes their successors over `after`."""
        binding = self._session.io_binding()
        for name, array in (*self._fed.items(), *before.items()):
            binding.bind_ortvalue_input(name, _shared(array))
        successors = {self._successors[name]: array for name, array in after.items()}
        for name, array in (*self._results.items(), *successors.items()):
            binding.bind_ortvalue_output(name, _shared(array))
        return binding

    def _step(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        for name, array in self._fed.items():
            np.copyto(array, feeds[name])
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise _failed(error) from error
        self._states, self._spare = self._spare, self._states
        self._binding, self._next_binding = self._next_binding, self._binding
        return {name: array.copy() for name, array in self._results.items()}


class _DeviceStream(Stream):
    """A stream over two banks of state buffers on a GPU: feeds go up, outputs come down, states stay where they are.

    ONNX Runtime copies a bound array of the host when it is bound, once: so nothing of the host is bound.
    """

    def __init__(self, runtime: OnnxRuntime, states: Mapping[str, str], axes: Mapping[str, int]) -> None:
        super().__init__(runtime, states, axes)
        self._states = {}
        self._session, self._device = runtime._session, runtime.device
        self._fed = {spec.name: self._buffer(spec) for spec in self.inputs}
        self._results = {spec.name: self._buffer(spec) for spec in self.outputs}
        self._banks = [{spec.name: self._buffer(spec) for spec in self._state_specs} for _ in range(2)]
        self._bindings = [self._bind(*self._banks), self._bind(*self._banks[::-1])]

    @property
    def states(self) -> dict[str, NDArray[Any]]:
        """See `Stream.states`."""
        return {name: np.array(value.numpy()) for name, value in self._banks[0].items()}

    def load(self, states: Arrays) -> None:
        """See `Stream.load`."""
        check_feeds(states, self._state_specs)
        for name, value in self._banks[0].items():
            value.update_inplace(np.ascontiguousarray(states[name]))

    def reset(self) -> None:
        """See `Stream.reset`."""
        self.load({spec.name: zeros(spec) for spec in self._state_specs})

    def _buffer(self, spec: TensorSpec) -> Any:
        return onnxruntime.OrtValue.ortvalue_from_numpy(zeros(spec), self._device)

    def _bind(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> Any:
        """A binding that reads the states `before` and writes their successors over `after`."""
        binding = self._session.io_binding()
        for name, value in (*self._fed.items(), *before.items()):
            binding.bind_ortvalue_input(name, value)
        successors = {self._successors[name]: value for name, value in after.items()}
        for name, value in (*self._results.items(), *successors.items()):
            binding.bind_ortvalue_output(name, value)
        return binding

    def _step(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        try:
            for name, value in self._fed.items():
                value.update_inplace(np.ascontiguousarray(feeds[name]))
            self._session.run_with_iobinding(self._bindings[0])
            results = {name: np.array(value.numpy()) for name, value in self._results.items()}
        except Exception as error:
            raise _failed(error) from error
        self._banks.reverse()
        self._bindings.reverse()
        return results


def opener(provider: Provider) -> Callable[..., OnnxRuntime]:
    """A function that opens artefacts on this provider.

    Raises:
        RuntimeUnavailable: this build of onnxruntime does not have it.
    """
    _require_offered(provider)
    return functools.partial(OnnxRuntime, provider=provider)


def _require_offered(provider: Provider) -> None:
    offered = onnxruntime.get_available_providers()
    if provider.name not in offered:
        raise RuntimeUnavailable(
            f"{provider.name}: not in this onnxruntime, which offers {', '.join(offered)}: {_MEND}"
        )


def _load_libraries() -> str:
    """Load CUDA's libraries from NVIDIA's Python packages, if installed; return what onnxruntime prints of failures."""
    said = io.StringIO()
    if hasattr(onnxruntime, "preload_dlls"):  # 1.21
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def _options(threads: int, provider: Provider) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters is raised as well; nothing is printed
    # Waiting threads sleep: a hop every 8 ms must not keep a core busy in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Without VNNI the fused INT8 product saturates and loses up to 20 dB; this keeps it exact.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if provider.device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return options


def _shared(array: NDArray[Any]) -> Any:
    """An OrtValue over the array's own memory."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _spec(node: Any, artefact: Path) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ArtefactError(f"{artefact}: {node.name} is a {node.type}, wanted one of {', '.join(_DTYPES)}")
    shape = tuple(d if isinstance(d, int | str) else f"{node.name}_{axis}" for axis, d in enumerate(node.shape))
    return TensorSpec(node.name, shape, _DTYPES[node.type])


def _failed(error: Exception) -> RuntimeUnavailable:
    return RuntimeUnavailable(f"onnxruntime: the run failed ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
