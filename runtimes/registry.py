"""Runtimes by name. A runtime's library is imported only when that runtime is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from runtimes.base import ArtefactError, Runtime, RuntimeUnavailable
from runtimes.onnx_file import read_weight_files

Opener = Callable[..., Runtime]  # (artefact, *, threads)


def _onnxruntime() -> Opener:
    from runtimes.ort import OnnxRuntime

    return OnnxRuntime


def _onnxruntime_cuda() -> Opener:
    from runtimes.ort import CUDA, opener

    return opener(CUDA)


def _onnxruntime_tensorrt() -> Opener:
    from runtimes.ort import TENSORRT, opener

    return opener(TENSORRT)


def _native() -> Opener:
    from runtimes.native import NativeRuntime

    return NativeRuntime


def _openvino() -> Opener:
    from runtimes.ov import OpenVino

    return OpenVino


def _pytorch() -> Opener:
    from runtimes.pytorch import PytorchRuntime

    return PytorchRuntime


def _tensorrt() -> Opener:
    from runtimes.trt import TensorRt, require_tensorrt

    require_tensorrt()  # which of its packages an engine needs, its sidecar says; without any, nothing can be opened
    return TensorRt


RUNTIMES: dict[str, Callable[[], Opener]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "onnxruntime-tensorrt": _onnxruntime_tensorrt,
    "native": _native,
    "openvino": _openvino,
    "pytorch": _pytorch,
    "tensorrt": _tensorrt,
}

ON_GPU = ("tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt")  # the others compute on the CPU


def require_known(name: str) -> None:
    """Raise RuntimeUnavailable for a name that is not in this registry."""
    if name not in RUNTIMES:
        raise RuntimeUnavailable(f"runtime {name}: unknown; known here: {', '.join(sorted(RUNTIMES))}")


def load_runtime(name: str) -> Opener:
    """The function that opens artefacts in the runtime `name`, its library loaded.

    Raises:
        RuntimeUnavailable: no runtime of this name, its library is not installed, or what it runs on is not here.
    """
    require_known(name)
    return RUNTIMES[name]()


def open_runtime(name: str, artefact: Path, *, threads: int = 1, metadata: Mapping[str, str] | None = None) -> Runtime:
    """The runtime `name` with `artefact` open in it.

    Args:
        artefact: `.onnx` for onnxruntime (all of them) and openvino, `.pt2` for pytorch, `.engine` for tensorrt, what
            `runtimes.native.write_artefact` wrote for native.
        threads: CPU threads that one call may use; on a GPU, of no meaning.
        metadata: entries that the artefact must carry with these values; it may carry more.

    Raises:
        RuntimeUnavailable: no runtime of this name, or its library is not installed.
        ArtefactError: the artefact is missing, broken, or carries other metadata.
    """
    opener = load_runtime(name)
    if threads < 1:
        raise RuntimeUnavailable(f"threads: found {threads}, wanted at least 1")
    if not artefact.is_file():
        raise ArtefactError(f"{artefact}: not a file; give the path of an artefact for {name}")
    if artefact.suffix == ".onnx":
        read_weight_files(artefact)  # raises for one that would have the runtime read elsewhere, as old ones do
    runtime = opener(artefact, threads=threads)
    for key, wanted in (metadata or {}).items():
        found = runtime.metadata.get(key)
        if found != wanted:
            runtime.close()
            raise ArtefactError(
                f"{artefact}: {key} is {found or 'missing'}, wanted {wanted}; this is another graph, export it again"
            )
    return runtime
