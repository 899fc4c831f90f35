"""The first GPU by ctypes: its memory, streams and CUDA graphs, through the driver's own library.

Where there is a driver there is libcuda, on a board too, and its functions keep their names and arguments for good:
no toolkit, no version to look for, no package. TensorRT works in the same context, the device's primary one.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtimes.base import RuntimeUnavailable
from runtimes.gpu import CAPABILITY, DRIVER

if TYPE_CHECKING:
    from typing_extensions import Self

_INT, _UINT, _SIZE, _POINTER, _ADDRESS = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.c_void_p,  # in the host's memory, and what the driver hides behind one: streams, graphs, contexts
    ctypes.c_uint64,  # in the device's memory
)
_TEXT = ctypes.POINTER(ctypes.c_char_p)

# What is used of cuda.h; names end in _v2 where the header puts that version behind the plain name.
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UINT,),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_POINTER), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxPushCurrent_v2": (_POINTER,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(_POINTER),),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemAlloc_v2": (ctypes.POINTER(_ADDRESS), _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (ctypes.POINTER(_POINTER), _SIZE, _UINT),
    "cuMemFreeHost": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _POINTER),
    "cuMemsetD8Async": (_ADDRESS, ctypes.c_ubyte, _SIZE, _POINTER),
    "cuStreamCreate": (ctypes.POINTER(_POINTER), _UINT),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamBeginCapture_v2": (_POINTER, _INT),
    "cuStreamEndCapture": (_POINTER, ctypes.POINTER(_POINTER)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_POINTER), _POINTER, ctypes.c_uint64),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphExecDestroy": (_POINTER,),
    "cuGraphDestroy": (_POINTER,),
    "cuGetErrorName": (_INT, _TEXT),
    "cuGetErrorString": (_INT, _TEXT),
}

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for what others put on the default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is their own

_OUT_OF_MEMORY = 2
_LOST = "the GPU's work of this process is lost: start it anew, with CUDA_LAUNCH_BLOCKING=1 to see where it fails"
_MENDS = {  # cuda.h, CUresult
    34: "this libcuda is the toolkit's stub: take its directory `stubs` out of LD_LIBRARY_PATH",
    46: "another program holds the GPU for itself alone",
    100: "no GPU is visible: see CUDA_VISIBLE_DEVICES; a container needs --gpus all, on a Jetson --runtime nvidia",
    101: "no GPU is visible: see CUDA_VISIBLE_DEVICES; a container needs --gpus all, on a Jetson --runtime nvidia",
    802: "the driver is still starting: wait, or see its services",
    803: "the driver and its library are of different versions: restart the machine after an update of the driver",
    804: "the driver is too old for the CUDA of this container: update the driver",
    **dict.fromkeys((700, 701, 702, 710, 714, 715, 716, 717, 718, 719, 999), _LOST),
    **dict.fromkeys(range(900, 909), "it cannot be captured as a CUDA graph: open it with cuda_graph=False"),
}


def load_driver() -> Any:
    """The driver's library.

    Raises:
        RuntimeUnavailable: there is none, or it is too old.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise RuntimeUnavailable(
            f"cuda: the driver's {DRIVER} cannot be loaded ({error}); install the NVIDIA driver; "
            "a container needs --gpus all, on a Jetson --runtime nvidia"
        ) from error
    for name, arguments in PROTOTYPES.items():
        try:
            getattr(driver, name).argtypes = arguments
        except AttributeError as error:
            raise RuntimeUnavailable(
                f"cuda: the driver's {DRIVER} has no {name}, wanted that of CUDA 11.4 or later; update the driver"
            ) from error
    return driver


class Cuda:
    """The first GPU; as a context manager it holds the GPU's primary context."""

    def __init__(self) -> None:
        """Start the driver and look whether there is a GPU, which is not held yet.

        Raises:
            RuntimeUnavailable: no driver, no GPU, or it does not start.
        """
        self._driver = load_driver()
        self._device = _INT()
        self._context = _POINTER()
        self._held = False
        self.call("cuInit", 0, doing="cannot start")
        self.call("cuDeviceGet", ctypes.byref(self._device), 0, doing="cannot find a GPU")
        number, numbers = _INT(), []
        for attribute in CAPABILITY:
            self.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, self._device, doing="cannot ask the GPU")
            numbers.append(number.value)
        self.capability = f"SM{numbers[0]}{numbers[1]}"  # "SM87"

    def __enter__(self) -> Self:
        doing = "cannot work on the GPU"
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device, doing=doing)
        self._held = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the GPU; what was allocated must have been freed before."""
        if self._held:
            self._held = False
            self.release("cuDevicePrimaryCtxRelease_v2", self._device)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make this the GPU that the calling thread works on, and the one before it afterwards."""
        self.call("cuCtxPushCurrent_v2", self._context, doing="cannot work on the GPU")
        try:
            yield
        finally:
            self.release("cuCtxPopCurrent_v2", ctypes.byref(_POINTER()))

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Make this the current GPU for freeing; no error where its context is lost, and all its memory with it."""
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(RuntimeUnavailable):
                stack.enter_context(self.current())
            yield

    def call(self, name: str, *arguments: Any, doing: str = "failed") -> None:
        """Call a function of the driver.

        Raises:
            RuntimeUnavailable: it failed; the message says `doing`, the driver's reason and what to do.
        """
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            raise RuntimeUnavailable(f"cuda: {doing}: {self._reason(status, name)}")

    def release(self, name: str, *arguments: Any) -> None:
        """Call a function that frees something, whatever it returns.

        It fails only where an earlier call has failed and raised: a lost context takes all of its things with it.
        """
        getattr(self._driver, name)(*arguments)

    def _reason(self, status: int, function: str) -> str:
        texts = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._driver, name)(status, ctypes.byref(text))
            texts.append((text.value or b"unknown").decode(errors="replace"))
        mend = self._memory_left() if status == _OUT_OF_MEMORY else _MENDS.get(status, f"{function} returned {status}")
        return f"{texts[0]} ({texts[1]}); {mend}"

    def _memory_left(self) -> str:
        free, total = _SIZE(), _SIZE()
        self._driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        left = f"{free.value >> 20} of {total.value >> 20} MiB are free"
        return f"{left}: close other programs, or open fewer streams"


class Queue:
    """A CUDA stream and the memory that its work uses; closing it frees all, the last taken first.

    Work is done in the order in which it was put here, later than the call that puts it; `wait` waits for it. All
    methods but `close` want `Cuda.current` around them.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._taken = contextlib.ExitStack()
        stream = _POINTER()
        cuda.call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING, doing="cannot make a stream")
        self.handle: int = stream.value or 0
        self._taken.callback(cuda.release, "cuStreamDestroy_v2", self.handle)

    def close(self) -> None:
        """Wait for the work and free all; closing twice is harmless."""
        if self.handle:
            with self._cuda.released(), self._taken:
                self._cuda.release("cuStreamSynchronize", self.handle)
                self.handle = 0

    def keep(self, undo: Callable[[], object]) -> None:
        """Call `undo` when this is closed, before what was taken earlier is freed."""
        self._taken.callback(undo)

    def allocate(self, n_bytes: int) -> int:
        """The address of that much of the GPU's memory, not cleared."""
        address = _ADDRESS()
        doing = f"cannot allocate {n_bytes} bytes of the GPU's memory"
        self._cuda.call("cuMemAlloc_v2", ctypes.byref(address), n_bytes, doing=doing)
        self._taken.callback(self._cuda.release, "cuMemFree_v2", address.value)
        return address.value

    def allocate_host(self, shape: Sequence[int], dtype: str) -> NDArray[Any]:
        """Zeros in the host's memory, pinned: the GPU reads and writes them itself. Gone when this is closed."""
        n_bytes, address = n_bytes_of(shape, dtype), _POINTER()
        doing = f"cannot pin {n_bytes} bytes of the host's memory"
        self._cuda.call("cuMemHostAlloc", ctypes.byref(address), n_bytes, 0, doing=doing)
        assert address.value is not None
        self._taken.callback(self._cuda.release, "cuMemFreeHost", address.value)
        memory = memoryview((ctypes.c_ubyte * n_bytes).from_address(address.value))
        array: NDArray[Any] = np.frombuffer(memory, np.dtype(dtype)).reshape(tuple(shape))
        array.fill(0)
        return array

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy an array to the GPU; it must stay as it is until that is done."""
        assert array.flags.c_contiguous
        doing = "cannot copy to the GPU"
        self._cuda.call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.handle, doing=doing)

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Fill an array from the GPU; it holds the values once that is done."""
        assert array.flags.c_contiguous
        doing = "cannot copy from the GPU"
        self._cuda.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.handle, doing=doing)

    def clear(self, address: int, n_bytes: int) -> None:
        """Make that much of the GPU's memory zero."""
        self._cuda.call("cuMemsetD8Async", address, 0, n_bytes, self.handle, doing="cannot clear the GPU's memory")

    def capture(self, work: Callable[[], None]) -> int:
        """A CUDA graph of the work that `work` puts here, for `launch`; nothing of it is done now."""
        graph, ready = _POINTER(), _POINTER()
        self._cuda.call("cuStreamBeginCapture_v2", self.handle, _THREAD_LOCAL, doing="cannot capture a CUDA graph")
        try:
            work()
        except BaseException:
            self._cuda.release("cuStreamEndCapture", self.handle, ctypes.byref(graph))
            if graph.value:
                self._cuda.release("cuGraphDestroy", graph)
            raise
        self._cuda.call("cuStreamEndCapture", self.handle, ctypes.byref(graph), doing="cannot capture a CUDA graph")
        try:
            self._cuda.call(
                "cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, 0, doing="cannot prepare a CUDA graph"
            )
        finally:
            self._cuda.release("cuGraphDestroy", graph)
        assert ready.value is not None
        self._taken.callback(self._cuda.release, "cuGraphExecDestroy", ready.value)
        return ready.value

    def launch(self, graph: int) -> None:
        """Put a captured CUDA graph here."""
        self._cuda.call("cuGraphLaunch", graph, self.handle, doing="cannot launch a CUDA graph")

    def wait(self) -> None:
        """Wait until all is done; what went wrong on the GPU is raised here."""
        self._cuda.call("cuStreamSynchronize", self.handle, doing="the work on the GPU failed")


def n_bytes_of(shape: Sequence[int], dtype: str) -> int:
    """The bytes that an array of that shape and dtype takes."""
    return int(np.prod(tuple(shape), dtype=np.int64)) * np.dtype(dtype).itemsize
