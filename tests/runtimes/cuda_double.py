"""A double of the driver's library: a GPU whose memory no host can touch, whose work waits until it is waited for.

Addresses of its memory mean nothing to the host: what mixes them up fails here as on a GPU. Copies and runs that are
put on a stream are done when the stream is synchronized, or become a graph while it is captured. All that is given out
is in `live`; what is given back twice, or used afterwards, fails by AssertionError.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.cuda import PROTOTYPES

NAMES = {
    0: "CUDA_SUCCESS",
    2: "CUDA_ERROR_OUT_OF_MEMORY",
    100: "CUDA_ERROR_NO_DEVICE",
    201: "CUDA_ERROR_INVALID_CONTEXT",
    700: "CUDA_ERROR_ILLEGAL_ADDRESS",
    803: "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    900: "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
}

Work = Callable[[], None]


class CudaDouble:
    """A driver for `runtimes.cuda.load_driver`; `calls` holds the calls of its functions, `failing` their failures."""

    def __init__(self, capability: tuple[int, int] = (8, 7), n_bytes: int = 1 << 30) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, list[int]] = {}  # function -> what its next calls return
        self.live: dict[int, str] = {}  # address or handle -> what it is
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.pinned: dict[int, Any] = {}
        self.queued: dict[int, list[Work]] = {}
        self.capturing: dict[int, list[Work]] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.contexts: list[int] = []  # pushed
        self.freed: list[str] = []
        self.lost = False  # whether nothing but letting the context go works any more
        self._capability = capability
        self._left = n_bytes
        self._retained = 0
        self._next = 0x7F00_0000_0000

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name not in PROTOTYPES:
            raise AttributeError(name)
        work = getattr(self, f"_{name.removesuffix('_v2')}")

        def call(*arguments: Any) -> int:
            assert len(arguments) == len(PROTOTYPES[name]), name
            for kind, argument in zip(PROTOTYPES[name], arguments, strict=True):
                kind.from_param(argument)  # TypeError where ctypes would refuse it
            self.calls.append(name)
            if self.lost and not name.startswith(("cuDevicePrimary", "cuGetError")):
                return 700
            if self.failing.get(name):
                status = self.failing[name].pop(0)
                if status:
                    return status
            if name.startswith(("cuMem", "cuStream", "cuGraph")) and not self.contexts:
                return 201
            return work(*(_plain(argument) for argument in arguments)) or 0

        return call

    def at(self, address: int, n_bytes: int) -> NDArray[np.uint8]:
        """The GPU's memory there."""
        for start, memory in self.memory.items():
            if start <= address and address + n_bytes <= start + len(memory):
                return memory[address - start : address - start + n_bytes]
        raise AssertionError(f"{n_bytes} bytes at {address:#x}: not the GPU's memory")

    def put(self, stream: int, work: Work) -> None:
        """Have something done in the stream's order."""
        assert self.live.get(stream) == "stream"
        self.capturing.get(stream, self.queued[stream]).append(work)

    def _give(self, what: str) -> int:
        self._next += 1 << 24
        self.live[self._next] = what
        return self._next

    def _take(self, handle: int, what: str) -> None:
        assert self.live.get(handle) == what, f"{what} {handle:#x}: not there, or given back before"
        del self.live[handle]
        self.freed.append(what)

    def _cuInit(self, flags: int) -> None:  # noqa: N802
        assert flags == 0

    def _cuDeviceGet(self, device: Any, ordinal: int) -> None:  # noqa: N802
        device.value = ordinal

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> None:  # noqa: N802
        value.value = self._capability[{75: 0, 76: 1}[attribute]]

    def _cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> None:  # noqa: N802
        held = [handle for handle, what in self.live.items() if what == "context"]
        context.value = held[0] if held else self._give("context")
        self._retained += 1

    def _cuDevicePrimaryCtxRelease(self, device: int) -> None:  # noqa: N802
        self._retained -= 1
        if self._retained == 0 and self.lost:
            self.live.clear()
        elif self._retained == 0:
            assert not self.contexts
            assert list(self.live.values()) == ["context"], f"still there: {self.live}"
            self._take(next(iter(self.live)), "context")

    def _cuCtxPushCurrent(self, context: int) -> None:  # noqa: N802
        assert self.live.get(context) == "context"
        self.contexts.append(context)

    def _cuCtxPopCurrent(self, context: Any) -> None:  # noqa: N802
        context.value = self.contexts.pop()

    def _cuMemGetInfo(self, free: Any, total: Any) -> None:  # noqa: N802
        free.value, total.value = self._left, 1 << 30

    def _cuMemAlloc(self, address: Any, n_bytes: int) -> int:  # noqa: N802
        assert n_bytes > 0
        if n_bytes > self._left:
            return 2
        self._left -= n_bytes
        address.value = self._give("memory")
        self.memory[address.value] = np.full(n_bytes, 0xFF, np.uint8)  # NaN, until it is written
        return 0

    def _cuMemFree(self, address: int) -> None:  # noqa: N802
        assert not any(self.queued.values()), "freed while work waits"
        self._take(address, "memory")
        self._left += len(self.memory.pop(address))

    def _cuMemHostAlloc(self, address: Any, n_bytes: int, flags: int) -> None:  # noqa: N802
        memory = ctypes.create_string_buffer(b"\xff" * n_bytes, n_bytes)
        address.value = ctypes.addressof(memory)
        self.pinned[address.value] = memory
        self.live[address.value] = "pinned"

    def _cuMemFreeHost(self, address: int) -> None:  # noqa: N802
        self._take(address, "pinned")
        del self.pinned[address]

    def _cuMemcpyHtoDAsync(self, target: int, source: int, n_bytes: int, stream: int) -> None:  # noqa: N802
        memory = self.at(target, n_bytes)
        self.put(stream, lambda: _copy(memory.ctypes.data, source, n_bytes))

    def _cuMemcpyDtoHAsync(self, target: int, source: int, n_bytes: int, stream: int) -> None:  # noqa: N802
        memory = self.at(source, n_bytes)
        self.put(stream, lambda: _copy(target, memory.ctypes.data, n_bytes))

    def _cuMemsetD8Async(self, address: int, value: int, n_bytes: int, stream: int) -> None:  # noqa: N802
        memory = self.at(address, n_bytes)
        self.put(stream, lambda: memory.fill(value))

    def _cuStreamCreate(self, stream: Any, flags: int) -> None:  # noqa: N802
        assert flags == 1
        stream.value = self._give("stream")
        self.queued[stream.value] = []

    def _cuStreamSynchronize(self, stream: int) -> int:  # noqa: N802
        assert self.live.get(stream) == "stream"
        if stream in self.capturing:
            return 900
        while self.queued[stream]:
            self.queued[stream].pop(0)()
        return 0

    def _cuStreamDestroy(self, stream: int) -> None:  # noqa: N802
        self._take(stream, "stream")
        assert self.queued.pop(stream) == []

    def _cuStreamBeginCapture(self, stream: int, mode: int) -> None:  # noqa: N802
        assert self.live.get(stream) == "stream"
        assert mode == 1
        self.capturing[stream] = []

    def _cuStreamEndCapture(self, stream: int, graph: Any) -> None:  # noqa: N802
        work = self.capturing.pop(stream)
        graph.value = self._give("graph")
        self.graphs[graph.value] = work

    def _cuGraphInstantiateWithFlags(self, ready: Any, graph: int, flags: int) -> None:  # noqa: N802
        assert self.live.get(graph) == "graph"
        ready.value = self._give("executable graph")
        self.graphs[ready.value] = list(self.graphs[graph])

    def _cuGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        assert self.live.get(graph) == "executable graph"
        for work in self.graphs[graph]:
            self.put(stream, work)

    def _cuGraphExecDestroy(self, graph: int) -> None:  # noqa: N802
        self._take(graph, "executable graph")

    def _cuGraphDestroy(self, graph: int) -> None:  # noqa: N802
        self._take(graph, "graph")

    def _cuGetErrorName(self, status: int, text: Any) -> int:  # noqa: N802
        text.value = NAMES[status].encode() if status in NAMES else None
        return 0 if status in NAMES else 1

    def _cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text.value = NAMES[status].lower().replace("_", " ").encode() if status in NAMES else None
        return 0 if status in NAMES else 1


def _copy(target: int, source: int, n_bytes: int) -> None:
    ctypes.memmove(target, source, n_bytes)


def _plain(argument: Any) -> Any:
    """The object behind a reference, the number in an object of ctypes."""
    if hasattr(argument, "_obj"):
        return argument._obj
    return argument.value if isinstance(argument, ctypes._SimpleCData) else argument
