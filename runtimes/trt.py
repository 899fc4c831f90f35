"""TensorRT: runs an engine; its streams keep the states on the GPU and replay one CUDA graph a call.

An engine does not say what its axes are called nor what it was made of: its sidecar does, `<engine>.json`, which names
TensorRT's package too: tensorrt (JetPack's), or tensorrt_rtx (TensorRT for RTX). Both are used through the names that
they share since tensorrt 10.3; memory and graphs are in cuda.py.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import Arrays, ArtefactError, FeedError, Runtime, RuntimeUnavailable, Stream, TensorSpec, check_feeds
from runtimes.cuda import Cuda, Queue, n_bytes_of
from runtimes.engine_sidecar import EngineSidecar
from runtimes.tensorrt_package import library_name, shown_lines, tensorrt_library, tensorrt_log

_DTYPES = {  # names of tensorrt.DataType
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def require_tensorrt() -> None:
    """Raise RuntimeUnavailable where no engine could be opened: no TensorRT, one that is too old, no driver, no GPU."""
    tensorrt_library()
    Cuda()


class TensorRt(Runtime):
    """An engine open in TensorRT, on the first GPU.

    Of the states of a stream whose sizes are all given, the GPU holds two copies. A call reads one and writes the
    other, as one CUDA graph: feeds up, the network, results down; see `_Session`.
    """

    name = "tensorrt"

    def __init__(self, artefact: Path, *, threads: int = 1, cuda_graph: bool = True) -> None:
        """Open the engine `artefact`, its sidecar beside it.

        Args:
            threads: any; of a graph, nothing is computed on the CPU.
            cuda_graph: whether streams replay captured CUDA graphs; the values are the same without.

        Raises:
            RuntimeUnavailable: no TensorRT, no driver, no GPU, or no memory left.
            ArtefactError: the engine or its sidecar is missing, damaged, or of another TensorRT or GPU.
        """
        sidecar = EngineSidecar.read(artefact)
        library = tensorrt_library(sidecar.library)
        here = library_name(library)
        if here != sidecar.built_by:
            raise ArtefactError(
                f"{artefact}: it is by {sidecar.built_by}, here is {here}; build it anew: engines belong to one version"
            )
        content = sidecar.read_engine()
        self.inputs, self.outputs, self.metadata = sidecar.inputs, sidecar.outputs, sidecar.metadata
        self.cuda_graph = cuda_graph
        with contextlib.ExitStack() as taken:
            cuda = taken.enter_context(Cuda())
            if sidecar.capability not in (None, cuda.capability):
                raise ArtefactError(
                    f"{artefact}: it is for {sidecar.device}, found a GPU of {cuda.capability}; "
                    "build it on the machine that runs it"
                )
            self._device = taken.enter_context(contextlib.closing(_Device(cuda, library)))
            self._device.load(artefact, content)
            self._bounds = self._device.check(artefact, self.inputs, self.outputs)
            self._plain: tuple[object, _Session] | None = None  # for run(): of the last shapes, and these
            self._running = threading.Lock()
            self._taken = taken.pop_all()
        self._abandoned = weakref.finalize(self, self._taken.close)  # a runtime that is dropped and was never closed
        self._abandoned.atexit = False  # the driver frees what a process leaves; TensorRT is half gone by then

    def stream(self, states: Mapping[str, str], **axes: int) -> Stream:
        """See `Runtime.stream`; states stay on the GPU if `axes` leaves no shape of the graph open."""
        if all(spec.bind(axes).sizes is not None for spec in (*self.inputs, *self.outputs)):
            return _DeviceStream(self, states, axes)
        return super().stream(states, **axes)

    def session(self, shapes: Mapping[str, tuple[int, ...]], states: Mapping[str, str], *, captured: bool) -> _Session:
        """A session that runs the graph on inputs of these shapes, on a stream and in memory of its own.

        Raises:
            FeedError: a size that the engine was not built for.
            RuntimeUnavailable: no memory left; a graph that cannot be captured.
        """
        for spec in self.inputs:
            for axis, size in zip(spec.shape, shapes[spec.name], strict=True):
                least, most = self._bounds.get(axis, (size, size))
                if not least <= size <= most:
                    raise FeedError(
                        f"{spec.name}: axis {axis} has size {size}, the engine is built for {least} to {most}; "
                        "build it for more, or feed less"
                    )
        return self._device.session(self, shapes, states, captured)

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        shapes = {spec.name: feeds[spec.name].shape for spec in self.inputs}
        with self._running:
            if self._plain is None or self._plain[0] != shapes:
                if self._plain is not None:
                    before, self._plain = self._plain[1], None
                    self._device.drop(before)
                self._plain = (shapes, self.session(shapes, {}, captured=False))
            return self._plain[1].step(feeds)

    def _free(self) -> None:
        self._plain = None
        self._abandoned()


class _DeviceStream(Stream):
    """A stream whose states are the session's; the host sees them when it asks for them."""

    def __init__(self, runtime: TensorRt, states: Mapping[str, str], axes: Mapping[str, int]) -> None:
        super().__init__(runtime, states, axes)
        self._states = {}
        shapes = {spec.name: spec.bind(axes).sizes or () for spec in runtime.inputs}
        self._session = runtime.session(shapes, states, captured=runtime.cuda_graph)
        weakref.finalize(self, runtime._device.dropped.append, self._session).atexit = False

    @property
    def states(self) -> dict[str, NDArray[Any]]:
        """The states that the next call starts from, by input name: copies.

        Raises:
            RuntimeUnavailable: closed.
        """
        self._runtime.require_open()
        return self._session.read_states()

    def load(self, states: Arrays) -> None:
        """See `Stream.load`; RuntimeUnavailable if it is closed."""
        self._runtime.require_open()
        check_feeds(states, self._state_specs)
        self._session.write_states(states)

    def reset(self) -> None:
        """See `Stream.reset`; RuntimeUnavailable if it is closed."""
        self._runtime.require_open()
        self._session.clear_states()

    def _step(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        return self._session.step(feeds)


class _Device:
    """The engine, the sessions that run it, and the order in which they are to be freed."""

    def __init__(self, cuda: Cuda, library: ModuleType) -> None:
        self.cuda = cuda
        self.library = library
        self._log = tensorrt_log(library)
        self._log_start = self._log.n_lines
        self.engine: Any = None
        self.dropped: collections.deque[_Session] = collections.deque()  # freed later: their streams went at any time
        self._runtime: Any = None
        self._sessions: list[_Session] = []
        self._changing = threading.RLock()

    def load(self, artefact: Path, content: bytes) -> None:
        """Put the engine on the GPU."""
        here = library_name(self.library)
        self.start_log()
        with self.cuda.current():
            try:
                self._runtime = self.library.Runtime(self._log.logger)
            except (TypeError, RuntimeError) as error:
                raise RuntimeUnavailable(f"{here} cannot start{self.log() or f' ({error})'}") from error
            try:
                self.engine = self._runtime.deserialize_cuda_engine(content)
            except (TypeError, RuntimeError, MemoryError) as error:
                raise ArtefactError(f"{artefact}: {here} cannot load it{self.log() or f' ({error})'}") from error
        if self.engine is None:
            raise ArtefactError(
                f"{artefact}: {here} cannot load it; build it anew, free memory of the GPU, or choose another "
                f"runtime if it does not support this GPU{self.log()}"
            )

    def check(
        self, artefact: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> dict[str | int, tuple[int, int]]:
        """The least and most size of each dynamic axis; ArtefactError if engine and sidecar do not agree."""
        modes = self.library.TensorIOMode  # the engine gets no name: a traceback would keep it alive
        wanted = {spec.name: (modes.INPUT, spec) for spec in inputs}
        wanted |= {spec.name: (modes.OUTPUT, spec) for spec in outputs}
        found = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        bounds: dict[str | int, tuple[int, int]] = {}
        if set(found) != set(wanted):
            raise ArtefactError(f"{artefact}: {_mismatch('tensors', sorted(found), sorted(wanted))}")
        for name, (mode, spec) in wanted.items():
            dtype = self.engine.get_tensor_dtype(name).name
            shape = tuple(self.engine.get_tensor_shape(name))
            if (self.engine.get_tensor_mode(name), _DTYPES.get(dtype)) != (mode, spec.dtype):
                raise ArtefactError(f"{artefact}: {_mismatch(name, dtype, spec.dtype)}")
            if tuple(-1 if isinstance(size, str) else size for size in spec.shape) != shape:
                raise ArtefactError(f"{artefact}: {_mismatch(name, shape, spec.shape)}")
            if self.engine.get_tensor_location(name) != self.library.TensorLocation.DEVICE:
                raise ArtefactError(f"{artefact}: {name} gives sizes, not values; such graphs are for onnxruntime")
            if mode == modes.INPUT and -1 in shape:
                least, _, most = (tuple(sizes) for sizes in self.engine.get_tensor_profile_shape(name, 0))
                for axis, low, high in zip(spec.shape, least, most, strict=True):
                    before = bounds.get(axis, (low, high))
                    bounds[axis] = (max(low, before[0]), min(high, before[1]))
        return {axis: sizes for axis, sizes in bounds.items() if isinstance(axis, str)}

    def session(
        self, runtime: Runtime, shapes: Mapping[str, tuple[int, ...]], states: Mapping[str, str], captured: bool
    ) -> _Session:
        """A session that is freed with this at the latest."""
        with self._changing:
            while self.dropped:
                self.drop(self.dropped.popleft())
            self._sessions.append(_Session(self, runtime.inputs, runtime.outputs, shapes, states, captured))
            return self._sessions[-1]

    def drop(self, session: _Session) -> None:
        """Free a session now."""
        with self._changing:
            if session in self._sessions:
                self._sessions.remove(session)
                session.close()

    def close(self) -> None:
        """Free all sessions, then the engine, then what loaded it."""
        with contextlib.ExitStack() as last:
            last.callback(self._forget)
            for session in self._sessions:
                last.callback(session.close)
            self._sessions = []

    def _forget(self) -> None:
        with self.cuda.released():
            self.engine = None
            self._runtime = None

    def start_log(self) -> None:
        """Let `log` begin with the lines that come from now on."""
        self._log_start = self._log.n_lines

    def log(self) -> str:
        """The last of TensorRT's warnings and errors, each on a line of its own, as messages end with them."""
        return shown_lines(self._log.since(self._log_start))


class _Session:
    """The graph on inputs of given shapes: its memory, a queue, and an execution context for each direction.

    Without states there is one direction. With them there are two, one that reads the first copies of the states and
    writes the second, and one the other way round: nothing is copied, and addresses never change, as CUDA graphs want.

    Args:
        captured: whether each direction is captured as a CUDA graph. TensorRT's own stream capture, after a run to warm
            up; TensorRT for RTX does that by itself.
    """

    def __init__(
        self,
        device: _Device,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        shapes: Mapping[str, tuple[int, ...]],
        states: Mapping[str, str],
        captured: bool,
    ) -> None:
        self._device = device
        self._states = dict(states)
        self._shapes = dict(shapes)
        self._dtypes = {spec.name: spec.dtype for spec in (*inputs, *outputs)}
        self._captures = captured
        self._at = 0  # the direction of the next call: the copies of the states that it reads
        self._contexts: list[Any] = []  # used in place only: a name of their own would let a traceback keep them alive
        self._graphs: list[int] = []
        self._banks: list[dict[str, int]] = []  # state -> address, twice
        device.start_log()
        with device.cuda.current(), contextlib.ExitStack() as taken:
            self._queue = Queue(device.cuda)
            taken.callback(self._queue.close)
            self._queue.keep(self._contexts.clear)
            for direction in range(2 if states else 1):
                self._contexts.append(self._new_context())
                left = "is memory of the GPU left for one more stream?"
                self._require(self._contexts[-1] is not None, f"cannot prepare to run; {left}")
                self._set_shapes(direction)
            self._allocate([spec.name for spec in inputs], [spec.name for spec in outputs])
            self._start()
            taken.pop_all()

    def close(self) -> None:
        """Free all; closing twice is harmless."""
        self._graphs = []
        self._queue.close()

    def step(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run the graph on its inputs but the states, which become their successors: fresh arrays of the other outputs.

        A call that fails leaves the states as they were.
        """
        for name, array in self._fed.items():
            np.copyto(array, feeds[name])
        with self._device.cuda.current():
            if self._graphs:
                self._queue.launch(self._graphs[self._at])
            else:
                self._enqueue(self._at)
            self._queue.wait()
        self._at = (self._at + 1) % len(self._contexts)
        return {name: array.copy() for name, array in self._results.items()}

    def read_states(self) -> dict[str, NDArray[Any]]:
        """Copies of the states."""
        found = {name: np.empty(self._shapes[name], self._dtypes[name]) for name in self._states}
        with self._device.cuda.current():
            for name, array in found.items():
                self._queue.download(self._banks[self._at][name], array)
            self._queue.wait()
        return found

    def write_states(self, states: Arrays) -> None:
        """Copy arrays of the states' shapes and dtypes over them."""
        contiguous = {name: np.ascontiguousarray(states[name]) for name in self._states}
        with self._device.cuda.current():
            for name, array in contiguous.items():
                self._queue.upload(array, self._banks[self._at][name])
            self._queue.wait()

    def clear_states(self) -> None:
        """Make all states zero."""
        with self._device.cuda.current():
            for name in self._states:
                self._queue.clear(self._banks[self._at][name], n_bytes_of(self._shapes[name], self._dtypes[name]))
            self._queue.wait()

    def _new_context(self) -> Any:
        strategies = getattr(self._device.library, "CudaGraphStrategy", None)
        if strategies is None:
            return self._device.engine.create_execution_context()
        # TensorRT for RTX captures by itself, once it has compiled for the shapes at hand.
        config = self._device.engine.create_runtime_config()
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if self._captures else strategies.DISABLED
        return self._device.engine.create_execution_context(config)

    def _set_shapes(self, direction: int) -> None:
        contexts = self._contexts
        if (
            contexts[direction].active_optimization_profile != 0
        ):  # from the second context on, some versions choose none
            chosen = contexts[direction].set_optimization_profile_async(0, self._queue.handle)
            self._require(chosen, "optimization profile 0 is refused")
            self._queue.wait()
        for name, shape in self._shapes.items():
            self._require(contexts[direction].set_input_shape(name, tuple(shape)), f"{name}: {shape} is refused")
        try:
            open_ones = list(contexts[direction].infer_shapes())
        except RuntimeError as error:
            raise RuntimeUnavailable(f"tensorrt: the shapes do not fit ({error}){self._device.log()}") from error
        self._require(not open_ones, f"the shapes leave {', '.join(open_ones)} open")

    def _allocate(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Allocate memory for all tensors, on the GPU and, but for the states, pinned in the host's memory too."""
        for name in outputs:
            shape = tuple(self._contexts[0].get_tensor_shape(name))
            self._require(-1 not in shape, f"{name}: its shape {shape} depends on values; use onnxruntime")
            self._shapes[name] = shape
        fed = [name for name in inputs if name not in self._states]
        results = [name for name in outputs if name not in self._states.values()]
        sizes = {name: n_bytes_of(shape, self._dtypes[name]) for name, shape in self._shapes.items()}
        queue = self._queue
        self._addresses = {name: queue.allocate(sizes[name]) for name in (*fed, *results)}
        self._banks = [{name: queue.allocate(sizes[name]) for name in self._states} for _ in range(len(self._contexts))]
        self._fed = {name: queue.allocate_host(self._shapes[name], self._dtypes[name]) for name in fed}
        self._results = {name: queue.allocate_host(self._shapes[name], self._dtypes[name]) for name in results}
        for direction in range(len(self._contexts)):
            before, after = self._banks[direction], self._banks[direction - 1]
            states = before | {successor: after[name] for name, successor in self._states.items()}
            for name, address in (self._addresses | states).items():
                taken = self._contexts[direction].set_tensor_address(name, address)
                self._require(taken, f"{name}: its address is refused")

    def _start(self) -> None:
        """Run each direction once, which settles what TensorRT leaves for later, and capture it; then zero states."""
        self.clear_states()
        for direction in range(len(self._contexts)):
            self._enqueue(direction)
            self._queue.wait()
            if self._captures and not hasattr(self._device.library, "CudaGraphStrategy"):
                self._graphs.append(self._queue.capture(functools.partial(self._enqueue, direction, captured=True)))
        self.clear_states()

    def _enqueue(self, direction: int, *, captured: bool = False) -> None:
        """Put one call on the queue: feeds up, the network, results down."""
        for name, array in self._fed.items():
            self._queue.upload(array, self._addresses[name])
        failed = (
            "it cannot be captured as a CUDA graph: open it with cuda_graph=False" if captured else "the run failed"
        )
        try:
            done = self._contexts[direction].execute_async_v3(self._queue.handle)
        except (TypeError, RuntimeError) as error:
            raise RuntimeUnavailable(f"tensorrt: {failed} ({error}){self._device.log()}") from error
        self._require(done, failed)
        for name, array in self._results.items():
            self._queue.download(self._addresses[name], array)

    def _require(self, fits: bool, what: str) -> None:
        if not fits:
            raise RuntimeUnavailable(f"tensorrt: {what}{self._device.log()}")


def _mismatch(what: str, found: object, wanted: object) -> str:
    return f"{what}: the engine has {found}, its sidecar {wanted}; build it anew"
