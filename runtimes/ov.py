"""OpenVINO on a CPU: runs an ONNX file; its streams keep the states in shared buffers and copy none of them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Arrays, ArtefactError, Runtime, RuntimeUnavailable, Stream, zeros
from runtimes.onnx_file import read_onnx_header


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Hide openvino_telemetry, by which `import openvino` reports to Google and leaves a number in the home."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment] # it cannot be imported; OpenVINO has a stub for that case
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


try:
    with _without_telemetry():
        import openvino
except ImportError as error:
    raise RuntimeUnavailable(
        f"openvino cannot be loaded ({error}): {sys.executable} -m pip install openvino"
    ) from error


FORMS_KEPT = 8  # of sizes that a graph was compiled for

# One, for as long as the process lives. Each Core has a CPU plugin of its own, which puts an alternate signal stack
# under the thread that loads it and unmaps it when freed. Two freed in the order they were loaded, or one freed by
# another thread, leave the thread an unmapped stack: the next signal that Python handles, Ctrl-C, ends it in SIGSEGV.
_CORE = openvino.Core()


class OpenVino(Runtime):
    """An ONNX file open in OpenVINO, compiled anew for each size of its dynamic axes, which takes tenths of a second.

    With an axis left open, graphs run half as fast, and OpenVINO does not check: two arrays of unequal sizes in a
    product give what lies in memory after the shorter one. So shapes that depend on values are refused, too.
    """

    name = "openvino"

    def __init__(self, artefact: Path, *, threads: int = 1) -> None:
        """Open `artefact`, with its external data beside it.

        Raises:
            ArtefactError: the file is missing or broken, or computes in float64.
        """
        header = read_onnx_header(artefact)  # first: of what is not ONNX, OpenVINO's readers print what they think
        self.inputs, self.outputs, self.metadata = header.inputs, header.outputs, header.metadata
        for spec in (*self.inputs, *self.outputs):
            if spec.dtype == "float64":
                raise ArtefactError(f"{artefact}: {spec.name} is float64, which openvino rounds; use onnxruntime")
        try:
            self._model: Any = _CORE.read_model(artefact)
        except Exception as error:  # the library promises no kinds of error
            raise ArtefactError(
                f"{artefact}: openvino cannot open it ({_last_line(error)}); export or fetch it again"
            ) from error
        self._options = _options(threads)
        self._compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def stream(self, states: Mapping[str, str], **axes: int) -> Stream:
        """See `Runtime.stream`; states stay in shared buffers if `axes` leaves no shape of the graph open."""
        if all(spec.bind(axes).sizes is not None for spec in (*self.inputs, *self.outputs)):
            return _BoundStream(self, states, axes)
        return super().stream(states, **axes)

    def compiled(self, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        """The graph compiled for inputs of these shapes; the last few are kept.

        Raises:
            RuntimeUnavailable: the shapes do not fit each other, do not settle all others, or cannot be compiled for.
        """
        key = tuple(shapes[spec.name] for spec in self.inputs)
        found = self._compiled.pop(key, None)
        if found is None:
            try:
                model = self._model.clone()
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                if model.is_dynamic():
                    raise ValueError("it has shapes that depend on values, which would go unchecked; use onnxruntime")
                found = _CORE.compile_model(model, "CPU", self._options)
            except Exception as error:
                raise RuntimeUnavailable(f"openvino: cannot compile the graph ({_last_line(error)})") from error
        self._compiled[key] = found  # at the end: the last one used is the last one dropped
        for old in list(self._compiled)[:-FORMS_KEPT]:
            del self._compiled[old]
        return found

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        compiled = self.compiled({spec.name: feeds[spec.name].shape for spec in self.inputs})
        request = compiled.create_infer_request()  # of its own: a request cannot run twice at a time
        try:
            results = request.infer(dict(feeds))
        except Exception as error:
            raise _failed(error) from error
        return {spec.name: results[index] for index, spec in enumerate(self.outputs)}

    def _free(self) -> None:
        self._model = None
        self._compiled.clear()


class _BoundStream(Stream):
    """A stream over two banks of state buffers: each call reads one and writes the other, then they change places.

    All memory is bound once, to one request for each direction. A call copies the feeds in and the outputs out, and no
    state.
    """

    def __init__(self, runtime: OpenVino, states: Mapping[str, str], axes: Mapping[str, int]) -> None:
        super().__init__(runtime, states, axes)
        self._fed = {spec.name: zeros(spec) for spec in self.inputs}
        self._results = {spec.name: zeros(spec) for spec in self.outputs}
        self._spare = {spec.name: zeros(spec) for spec in self._state_specs}
        compiled = runtime.compiled({name: array.shape for name, array in (self._fed | self._states).items()})
        self._request = self._bind(compiled, self._states, self._spare)
        self._next_request = self._bind(compiled, self._spare, self._states)

    def _bind(self, compiled: Any, before: Arrays, after: Arrays) -> Any:
        """A request that reads the states `before` and writes their successors over `after`."""
        request = compiled.create_infer_request()
        for name, array in (*self._fed.items(), *before.items()):
            request.set_tensor(compiled.input(name), _shared(array))
        successors = {self._successors[name]: array for name, array in after.items()}
        for name, array in (*self._results.items(), *successors.items()):
            request.set_tensor(compiled.output(name), _shared(array))
        return request

    def _step(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        for name, array in self._fed.items():
            np.copyto(array, feeds[name])
        try:
            self._request.infer(share_outputs=True)  # else it copies all outputs, the states too
        except Exception as error:
            raise _failed(error) from error
        self._states, self._spare = self._spare, self._states
        self._request, self._next_request = self._next_request, self._request
        return {name: array.copy() for name, array in self._results.items()}


def _options(threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the CPU has it
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_HYPER_THREADING": True,  # else it takes fewer threads than asked for
        "ENABLE_CPU_PINNING": False,  # the caller decides which cores it runs on
        **({"LP_TRANSFORMS_MODE": False} if saturates_8_bits() else {}),
    }


def saturates_8_bits(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """True on an x86 CPU whose 8-bit products are summed in pairs of 16 bits, which overflow: one without VNNI or AMX.

    OpenVINO uses them all the same: an INT8 graph that ONNX Runtime gives at 58 dB came out at 22 dB (AVX2, release
    2026.4). Such a CPU takes Q/DQ in float32 instead.
    """
    try:
        flags = next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):  # no Linux, or no x86: dot products there do not overflow
        return False
    return not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(flags)


def _shared(array: NDArray[Any]) -> Any:
    """A tensor over the array's own memory."""
    return openvino.Tensor(array, shared_memory=True)


def _failed(error: Exception) -> RuntimeUnavailable:
    return RuntimeUnavailable(f"openvino: the run failed ({_last_line(error)})")


def _last_line(error: Exception) -> str:
    """The last line of an error, where OpenVINO gives the reason; the lines before are places in its source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
