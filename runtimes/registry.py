"""Runtimes by name. A runtime's library is imported only when that runtime is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from runtimes.base import ArtefactError, Runtime, RuntimeUnavailable


def _onnxruntime(artefact: Path, threads: int) -> Runtime:
    from runtimes.ort import OnnxRuntime

    return OnnxRuntime(artefact, threads=threads)


def _openvino(artefact: Path, threads: int) -> Runtime:
    from runtimes.ov import OpenVino

    return OpenVino(artefact, threads=threads)


def _pytorch(artefact: Path, threads: int) -> Runtime:
    from runtimes.pytorch import PytorchRuntime

    return PytorchRuntime(artefact, threads=threads)


RUNTIMES: dict[str, Callable[[Path, int], Runtime]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "pytorch": _pytorch,
}


def open_runtime(name: str, artefact: Path, *, threads: int = 1, metadata: Mapping[str, str] | None = None) -> Runtime:
    """The runtime `name` with `artefact` open in it.

    Args:
        artefact: `.onnx` for onnxruntime and openvino, `.pt2` for pytorch.
        threads: CPU threads that one call may use.
        metadata: entries that the artefact must carry with these values; it may carry more.

    Raises:
        RuntimeUnavailable: no runtime of this name, or its library is not installed.
        ArtefactError: the artefact is missing, broken, or carries other metadata.
    """
    if name not in RUNTIMES:
        raise RuntimeUnavailable(f"runtime {name}: unknown; known here: {', '.join(sorted(RUNTIMES))}")
    if threads < 1:
        raise RuntimeUnavailable(f"threads: found {threads}, wanted at least 1")
    if not artefact.is_file():
        raise ArtefactError(f"{artefact}: not a file; give the path of an artefact for {name}")
    runtime = RUNTIMES[name](artefact, threads)
    for key, wanted in (metadata or {}).items():
        found = runtime.metadata.get(key)
        if found != wanted:
            runtime.close()
            raise ArtefactError(
                f"{artefact}: {key} is {found or 'missing'}, wanted {wanted}; this is another graph, export it again"
            )
    return runtime
