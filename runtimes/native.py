"""A shared library with the interface of edgese.h, through ctypes: streams live in C and copy no state between calls.

The artefact is a small JSON file that `write_artefact` writes: the paths of the library and of its weights file, the
inputs, outputs and states as a graph has them, and metadata. The library's own names and sizes must fit these.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Arrays, ArtefactError, FeedError, Runtime, Stream, TensorSpec, check_feeds, zeros

PCS, PASS = 1, 2  # options of a stream, as edgese.h has them
_BLOCK = 8  # hops that C works on at a time: more gain nothing and take memory
_ERROR_SIZE = 256

_INTERFACE: dict[str, tuple[Any, list[Any]]] = {
    "edgese_open": (ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_char_p]),
    "edgese_close": (None, [ctypes.c_void_p]),
    "edgese_hop": (ctypes.c_size_t, [ctypes.c_void_p]),
    "edgese_metadata": (ctypes.c_char_p, [ctypes.c_void_p]),
    "edgese_instructions": (ctypes.c_char_p, [ctypes.c_void_p]),
    "edgese_use": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "edgese_weights_bytes": (ctypes.c_size_t, [ctypes.c_void_p]),
    "edgese_start": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_char_p]),
    "edgese_stop": (None, [ctypes.c_void_p]),
    "edgese_process": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
    "edgese_reset": (None, [ctypes.c_void_p]),
    "edgese_stream_bytes": (ctypes.c_size_t, [ctypes.c_void_p]),
    "edgese_state_name": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]),
    "edgese_state_size": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]),
    "edgese_get_state": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]),
    "edgese_set_state": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]),
}


def write_artefact(
    path: Path,
    library: Path,
    weights: Path,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    states: Mapping[str, str],
    *,
    options: int = PASS,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the artefact of a library and its weights.

    Args:
        inputs, outputs: as a graph has them, the sound first, axis `streams` dynamic.
        states: name of each state's input -> name of the output that holds its successor.
        metadata: beside what the weights file carries itself, which counts where both name a key.
    """
    content = {
        "library": str(library.resolve()),
        "weights": str(weights.resolve()),
        "inputs": [dataclasses.asdict(spec) for spec in inputs],
        "outputs": [dataclasses.asdict(spec) for spec in outputs],
        "states": dict(states),
        "options": options,
        "metadata": dict(metadata or {}),
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def load_library(path: Path) -> ctypes.CDLL:
    """The library at `path`, with the types of its functions.

    Raises:
        ArtefactError: it cannot be loaded, or lacks a function.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _INTERFACE.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ArtefactError(
            f"{path}: not a library with the interface of edgese.h ({error}); build it again"
        ) from error
    return library


class NativeRuntime(Runtime):
    """Weights open in a library. One thread computes, whatever `threads` says."""

    name = "native"

    def __init__(self, artefact: Path, *, threads: int = 1) -> None:
        """Open an artefact of `write_artefact`.

        Raises:
            ArtefactError: it is broken, its library cannot be loaded, its weights cannot be opened, or do not fit it.
        """
        try:
            content = json.loads(artefact.read_bytes())
            self.inputs, self.outputs = (
                tuple(map(TensorSpec.from_entry, content[key])) for key in ("inputs", "outputs")
            )
            self._successors = {str(name): str(successor) for name, successor in content["states"].items()}
            paths = Path(content["library"]), Path(content["weights"])
            self._options = int(content["options"])
            metadata = {str(key): str(value) for key, value in content["metadata"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{artefact}: not an artefact of write_artefact ({error}); write it again") from error
        self._library = load_library(paths[0])
        message = ctypes.create_string_buffer(_ERROR_SIZE)
        self._weights = self._library.edgese_open(bytes(paths[1]), message)
        if not self._weights:
            raise ArtefactError(message.value.decode(errors="replace"))
        try:
            self._fit(artefact)
            own = json.loads(self._library.edgese_metadata(self._weights))
        except BaseException:
            self.close()
            raise
        self.metadata = metadata | {key: str(value) for key, value in own.items()}
        self._sound, self._enhanced = self.inputs[0], self.outputs[0]
        self._hops = self._floats(self._sound) // int(self._library.edgese_hop(self._weights))
        self._idle: list[_CStream] = []

    @property
    def instructions(self) -> str:
        """Instruction set that the library uses on this machine."""
        return str(self._library.edgese_instructions(self._weights).decode())

    def use(self, instructions: str) -> None:
        """Use another instruction set, in streams that are opened from now on.

        Raises:
            FeedError: the machine or the library does not have it.
        """
        if self._library.edgese_use(self._weights, instructions.encode()):
            raise FeedError(f"instructions {instructions}: not here; {self.instructions} is")

    @property
    def weights_bytes(self) -> int:
        """Bytes that the weights take in memory."""
        return int(self._library.edgese_weights_bytes(self._weights))

    @property
    def stream_bytes(self) -> int:
        """Bytes that one stream takes in memory."""
        stream = _CStream(self)  # held until the library has answered
        return int(self._library.edgese_stream_bytes(stream.pointer))

    def stream(self, states: Mapping[str, str], **axes: int) -> Stream:
        """See `Runtime.stream`; a stream over all of the states keeps them in C."""
        if dict(states) == self._successors and axes.get("streams", 0) > 0:
            return _NativeStream(self, states, axes)
        return super().stream(states, **axes)

    def start(self) -> int:
        """Pointer to a new stream of the library; whoever asks stops it.

        Raises:
            ArtefactError: no memory, or an option that the weights do not have.
        """
        message = ctypes.create_string_buffer(_ERROR_SIZE)
        stream = self._library.edgese_start(self._weights, min(self._hops, _BLOCK), self._options, message)
        if not stream:
            raise ArtefactError(f"native: {message.value.decode(errors='replace')}")
        return int(stream)

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        n_streams = len(feeds[self._sound.name])
        while len(self._idle) < n_streams:
            self._idle.append(_CStream(self))
        results = {spec.name: zeros(spec.bind({"streams": n_streams})) for spec in self.outputs}
        for index, stream in enumerate(self._idle[:n_streams]):
            for name in self._successors:
                stream.set(name, np.ascontiguousarray(feeds[name][index]))
            stream.process(np.ascontiguousarray(feeds[self._sound.name][index]), results[self._enhanced.name][index])
            for name, successor in self._successors.items():
                stream.get(name, results[successor][index])
        return results

    def _free(self) -> None:
        self._idle = []
        self._library.edgese_close(self._weights)

    def _fit(self, artefact: Path) -> None:
        """Refuse weights that have other states than the artefact, or sound of another length."""
        library, weights = self._library, self._weights
        found: dict[str, int] = {}
        while name := library.edgese_state_name(weights, len(found)):
            found[name.decode()] = int(library.edgese_state_size(weights, name, None))
        inputs = {spec.name: self._floats(spec) for spec in self.inputs}
        wanted = {name: inputs.get(name) for name in self._successors}
        if found != wanted:
            raise ArtefactError(f"{artefact}: found states {found} in the weights, wanted {wanted}; write it again")
        n_samples, hop = self._floats(self.inputs[0]), int(library.edgese_hop(weights))
        if n_samples % hop or self._floats(self.outputs[0]) != n_samples:
            raise ArtefactError(f"{artefact}: {self.inputs[0]}: wanted hops of {hop} floats; write it again")

    @staticmethod
    def _floats(spec: TensorSpec) -> int:
        return math.prod(size for size in spec.shape[1:] if isinstance(size, int))


class _CStream:
    """A stream of the library, stopped when nobody holds it any more."""

    def __init__(self, runtime: NativeRuntime) -> None:
        self._library, self._hops = runtime._library, runtime._hops
        self.pointer = runtime.start()
        self._end = weakref.finalize(self, self._library.edgese_stop, self.pointer)

    def process(self, wave: NDArray[np.float32], enhanced: NDArray[np.float32]) -> None:
        self._library.edgese_process(self.pointer, wave.ctypes.data, enhanced.ctypes.data, self._hops)

    def process_at(self, wave: int, enhanced: int) -> None:
        """As `process`, of the arrays that lie at these addresses."""
        self._library.edgese_process(self.pointer, wave, enhanced, self._hops)

    def get(self, name: str, values: NDArray[np.float32]) -> None:
        failed = self._library.edgese_get_state(self.pointer, name.encode(), values.ctypes.data, values.size)
        assert not failed, f"{name} was checked when the artefact was opened"

    def set(self, name: str, values: NDArray[np.float32]) -> None:
        failed = self._library.edgese_set_state(self.pointer, name.encode(), values.ctypes.data, values.size)
        assert not failed, f"{name} was checked when the artefact was opened"

    def reset(self) -> None:
        self._library.edgese_reset(self.pointer)


class _NativeStream(Stream):
    """A stream whose states stay in C: a call copies the sound in and out."""

    def __init__(self, runtime: NativeRuntime, states: Mapping[str, str], axes: Mapping[str, int]) -> None:
        super().__init__(runtime, states, axes)
        self._states = {}
        (self._fed,), (self._enhanced,) = self.inputs, self.outputs
        self._rows = [_CStream(runtime) for _ in range(axes["streams"])]
        self._in, self._out = (np.zeros(spec.sizes or (), np.float32) for spec in (self._fed, self._enhanced))
        self._calls = [
            (row.process_at, self._in[index].ctypes.data, self._out[index].ctypes.data)
            for index, row in enumerate(self._rows)
        ]

    @property
    def states(self) -> dict[str, NDArray[Any]]:
        """See `Stream.states`."""
        arrays = {spec.name: np.empty(spec.sizes or (), np.float32) for spec in self._state_specs}
        for name, array in arrays.items():
            for index, row in enumerate(self._rows):
                row.get(name, array[index])
        return arrays

    def load(self, states: Arrays) -> None:
        """See `Stream.load`."""
        check_feeds(states, self._state_specs)
        for name, array in states.items():
            for index, row in enumerate(self._rows):
                row.set(name, np.ascontiguousarray(array[index]))

    def reset(self) -> None:
        """See `Stream.reset`."""
        for row in self._rows:
            row.reset()

    def _step(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        np.copyto(self._in, feeds[self._fed.name])
        for process, wave, enhanced in self._calls:
            process(wave, enhanced)
        return {self._enhanced.name: self._out.copy()}
