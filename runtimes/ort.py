"""ONNX Runtime: runs an ONNX file; its streams keep the states in bound buffers and copy none of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Arrays, ArtefactError, Runtime, RuntimeUnavailable, Stream, TensorSpec, zeros

# On Linux, onnxruntime 1.32 tells Microsoft of every session, and leaves a number in the home, from its import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

try:
    import onnxruntime
except ImportError as error:
    raise RuntimeUnavailable(f"onnxruntime cannot be loaded ({error}): pip install onnxruntime") from error

CPU = "CPUExecutionProvider"

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

    name = "onnxruntime"

    def __init__(self, artefact: Path, *, threads: int = 1, provider: str = CPU) -> None:
        """Open `artefact`, with its external data beside it.

        Raises:
            RuntimeUnavailable: the provider is not in this build of onnxruntime, or it did not start.
            ArtefactError: the file is missing or broken.
        """
        offered = onnxruntime.get_available_providers()
        if provider not in offered:
            raise RuntimeUnavailable(f"{provider}: not in this onnxruntime, which offers {', '.join(offered)}")
        try:
            session = onnxruntime.InferenceSession(artefact, _options(threads), providers=[provider])
        except Exception as error:  # its own classes share no base but Exception
            raise ArtefactError(
                f"{artefact}: onnxruntime cannot open it ({_first_line(error)}); export or fetch it again"
            ) from error
        started = session.get_providers()
        if started[0] != provider:  # onnxruntime would go on with the CPU and say so in a log line only
            raise RuntimeUnavailable(f"{provider}: did not start, found {', '.join(started)}; check its driver")
        self.inputs = tuple(_spec(node, artefact) for node in session.get_inputs())
        self.outputs = tuple(_spec(node, artefact) for node in session.get_outputs())
        self.metadata = dict(session.get_modelmeta().custom_metadata_map)
        self._session: Any = session
        self._output_names = [spec.name for spec in self.outputs]

    def stream(self, states: Mapping[str, str], **axes: int) -> Stream:
        """See `Runtime.stream`; states stay in bound buffers if `axes` leaves no shape of the graph open."""
        if all(spec.bind(axes).sizes is not None for spec in (*self.inputs, *self.outputs)):
            return _BoundStream(self, states, axes)
        return super().stream(states, **axes)

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


def _options(threads: int) -> Any:
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
