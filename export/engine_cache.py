"""A cache of engines on disk, each with a sidecar that names its graph, its TensorRT, its GPU and its date.

    path = cached_engine(onnx_path, cache_dir, options, print)

An engine is a cache, the graph is the artefact: an engine of another graph, TensorRT or GPU is built anew with one line
that says why, and never loaded. One that is damaged is refused. The engine's name says which graph and which axes it
is for: "block8.fp16.tensorrt.streams-1-1-8.engine", its sidecar's ends in ".json" after that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from export import ExportError
from export.engine import BuildOptions, BuiltEngine, Progress, as_export_error, build_engine, write_engine_file
from export.files import sha256_of
from export.schema import SchemaError, parse_json
from runtimes.engine_sidecar import SCHEMA_VERSION
from runtimes.gpu import read_device
from runtimes.onnx_file import OnnxHeader, read_onnx_file, read_onnx_header
from runtimes.tensorrt_package import library_name, tensorrt_library

# Parts of the key, in the order in which a difference is looked for, and the reason that it gives for a build.
_REASONS = {
    "onnx": "it is of another graph",
    "weights": "it is of other weights",
    "tensorrt": "it is by {found}, here is {wanted}",
    "device": "it is for {found}, wanted for {wanted}",
    "machine": "it is by a {found} machine, this is {wanted}",
    "precision": "it is in {found}, wanted {wanted}",
    "axes": "it is for {found}, wanted for {wanted}",
    "workspace_bytes": "it has {found} of workspace, wanted {wanted}",
}


def cached_engine(
    onnx_path: Path,
    cache_dir: Path,
    options: BuildOptions,
    on_message: Callable[[str], None],
    *,
    precision: str = "",
    rebuild: bool = False,
    library: ModuleType | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """The engine for a graph on this machine, built unless the cache holds it; several processes may ask at once.

    Args:
        on_message: called with one line before a build, not at all if the engine is there.
        precision: what the graph is said to be in, part of the key.
        rebuild: build it whatever the cache holds, a damaged one too.
        library, on_progress: as for `build_engine`.

    Raises:
        ExportError: as `build_engine`; the engine or its sidecar is damaged; the cache cannot be written.
    """
    with as_export_error():
        library = library or tensorrt_library()
    key = engine_key(onnx_path, options, precision, library)
    entry = _Entry(cache_dir / _file_name(onnx_path, options, library))
    with contextlib.suppress(ExportError):  # without the lock it may be half replaced; also, the cache may be read-only
        if not rebuild and entry.why_not(key) is None:
            return entry.path
    with entry.locked(on_message):
        why = "asked to" if rebuild else entry.why_not(key)
        if why is None:  # another process was faster
            return entry.path
        on_message(f"{onnx_path.name}: building its engine with {key['tensorrt']} for {key['device']}: {why}")
        with as_export_error():
            graph = read_onnx_header(onnx_path)
        entry.write(build_engine(onnx_path, options, library=library, on_progress=on_progress), key, graph)
    return entry.path


def engine_key(onnx_path: Path, options: BuildOptions, precision: str, library: ModuleType) -> dict[str, Any]:
    """All that an engine depends on, in plain values; engines of equal keys may stand for each other.

    Raises:
        ExportError: the graph or its weights cannot be read.
    """
    with as_export_error():
        weight_files = read_onnx_file(onnx_path).weight_files
    device = options.compute_capability or str(read_device() or "no GPU in particular")
    return {
        "onnx": sha256_of(onnx_path),
        "weights": {path.name: sha256_of(path) for path in weight_files},
        "tensorrt": library_name(library),
        "device": device,
        "machine": platform.machine(),
        "precision": precision,
        "axes": {axis: list(bounds) for axis, bounds in sorted(options.axes.items())},
        "workspace_bytes": options.workspace_bytes,
    }


@dataclasses.dataclass(frozen=True)
class _Entry:
    """An engine's place in the cache."""

    path: Path

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def why_not(self, key: Mapping[str, Any]) -> str | None:
        """The reason why the engine here does not fit the key; None: it fits and is whole.

        Raises:
            ExportError: the engine or its sidecar is damaged.
        """
        if not self.path.exists():
            return "there is none yet"
        if not self.sidecar.exists():
            return "the one there was not finished"
        record = self._read_sidecar()
        for part, reason in _REASONS.items():
            found, wanted = record["key"].get(part), key[part]
            if found != wanted:
                return reason.format(found=_shown(part, found), wanted=_shown(part, wanted))
        size, digest = record["engine"]["bytes"], record["engine"]["sha256"]
        if (self.path.stat().st_size, sha256_of(self.path)) != (size, digest):
            raise ExportError(
                f"{self.path}: damaged: its {self.path.stat().st_size} bytes are not the {size} that "
                f"{self.sidecar.name} records, by SHA-256; delete it, or build it anew (--force)"
            )
        return None

    def write(self, built: BuiltEngine, key: Mapping[str, Any], graph: OnnxHeader) -> None:
        """Put an engine here; until it is whole with its sidecar, there is no sidecar."""
        record = {
            "schema_version": SCHEMA_VERSION,
            "key": key,
            "engine": {"sha256": hashlib.sha256(built.serialized).hexdigest(), "bytes": len(built.serialized)},
            "graph": dataclasses.asdict(graph),
            "layers": built.n_layers,
            "build_seconds": round(built.seconds, 3),
            "built": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "host": platform.node(),
        }
        try:
            self.sidecar.unlink(missing_ok=True)
        except OSError as error:
            raise ExportError(f"{self.sidecar}: cannot be replaced ({error.strerror})") from error
        write_engine_file(self.path, built.serialized)
        write_engine_file(self.sidecar, (json.dumps(record, indent=2) + "\n").encode())

    @contextlib.contextmanager
    def locked(self, on_message: Callable[[str], None]) -> Iterator[None]:
        """Hold the entry for this process; another one that builds is waited for. The lock ends with the process."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_name(f"{self.path.name}.lock").open("ab")
        except OSError as error:
            raise ExportError(
                f"{self.path.parent}: engines cannot be kept there ({error.strerror}); choose another cache"
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_message(f"{self.path.name}: another process builds it; waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read_sidecar(self) -> dict[str, Any]:
        mend = "delete it, or build the engine anew (--force)"
        try:
            record = parse_json(self.sidecar.read_bytes())
        except OSError as error:
            raise ExportError(f"{self.sidecar}: cannot be read ({error.strerror}); {mend}") from error
        except SchemaError as error:
            raise ExportError(f"{self.sidecar}: damaged: {error}; {mend}") from error
        try:
            fits = isinstance(record["key"], dict) and {"bytes", "sha256"} <= set(record["engine"])
            fits = fits and {"inputs", "outputs", "metadata"} <= set(record["graph"])
        except (KeyError, TypeError):
            fits = False
        if not fits or record.get("schema_version") != SCHEMA_VERSION:
            raise ExportError(f"{self.sidecar}: damaged, or not of schema {SCHEMA_VERSION}; {mend}")
        return dict(record)


def _file_name(onnx_path: Path, options: BuildOptions, library: ModuleType) -> str:
    axes = [f"{axis}-{'-'.join(map(str, bounds))}" for axis, bounds in sorted(options.axes.items())]
    return ".".join([onnx_path.stem, library.__name__, *axes, "engine"])


def _shown(part: str, value: Any) -> str:
    if part == "axes":
        return ", ".join(f"{axis} {' to '.join(map(str, bounds))}" for axis, bounds in value.items()) or "fixed sizes"
    if part == "workspace_bytes":
        return "no limit" if value is None else f"{value} bytes"
    return str(value) or f"unknown {part}"
