"""A bundle: one directory that holds graphs, their weights, reference vectors and the record of their verification.

    with stage_bundle(path) as staging:      # a folder with a hidden name beside it
        ...write graphs, verify them...
        seal_bundle(staging, manifest)       # manifest.json with the SHA-256 of every file
                                             # renamed whole: <path>, or <path>.unverified
    bundle = Bundle.open(path)

Reading needs the standard library only: it happens on devices that have neither PyTorch nor onnx.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export import ExportError
from export.files import inner_file, sha256_of
from export.manifest import KEYS, MANIFEST, SCHEMA_VERSION, checked_manifest, read_manifest
from export.staging import StagedFolder
from runtimes.errors import ArtefactError
from runtimes.onnx_file import read_weight_files
from runtimes.tensor_spec import TensorSpec

_MOST_NAME = 80  # characters; what is made of it must stay under 255
WEIGHTS = "model.safetensors"  # what the graphs were made of; a bundle may lack it, as the two below
MODEL_CARD = "MODEL_CARD.md"
ATTRIBUTION = "ATTRIBUTION.md"  # whose recordings the weights were trained on
SIGNATURE = f"{MANIFEST}.sig"  # by OpenSSH, docs/security.md: what is signed cannot list it
MOST_BYTES = 64_000_000_000  # of all files of a bundle

_MEND = "fetch or export the bundle again"


@dataclasses.dataclass(frozen=True)
class Graph:
    """One graph of a bundle."""

    file: str  # name inside the bundle
    precision: str  # "fp32", ...
    block: int  # frames that one call takes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: Mapping[str, str]  # name of a state's input -> name of the output that holds its successor
    variant: str = ""  # what it adds to the plain graph of its block and precision

    def entry(self) -> dict[str, Any]:
        """Plain values for the manifest; a plain graph names no variant. `from_entry` restores an equal graph."""
        entry = dataclasses.asdict(self)
        return entry if self.variant else {key: value for key, value in entry.items() if key != "variant"}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Graph:
        def specs(key: str) -> tuple[TensorSpec, ...]:
            return tuple(map(TensorSpec.from_entry, entry[key]))

        return cls(
            file=entry["file"],
            precision=entry["precision"],
            block=entry["block"],
            inputs=specs("inputs"),
            outputs=specs("outputs"),
            states=dict(entry["states"]),
            variant=entry.get("variant", ""),
        )


@dataclasses.dataclass(frozen=True)
class Bundle:
    """An opened bundle whose files are all present and unchanged. Use `Bundle.open`."""

    path: Path
    manifest: Mapping[str, Any]
    graphs: tuple[Graph, ...]

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """The bundle in directory `path`, every file checked against the SHA-256 that the manifest records.

        Raises:
            ExportError: no bundle there, one of another schema or form; a file that is missing, changed, not listed,
                not below the directory, a link, or no regular file.
        """
        manifest = read_manifest(path)
        graphs = tuple(map(Graph.from_entry, manifest["graphs"]))
        files: dict[str, str] = manifest["files"]
        _check_graphs(path, graphs, files)
        for name, wanted in _sizes_checked(path, files).items():
            _check_file(path / name, wanted)
        _refuse_unlisted(path, files)
        return cls(path, manifest, graphs)

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files: everything that is read of a bundle is reached through this.

        Raises:
            ExportError: the manifest does not list it, so that nobody has checked it.
        """
        if name not in self.manifest["files"]:
            raise ExportError(f"{self.path}: {name} is not among the files that its manifest lists; {_MEND}")
        return self.path / name

    def graph_file(self, graph: Graph) -> Path:
        """Path of a graph whose files of weights are the bundle's own, checked ones.

        Raises:
            ExportError: it names weights that the manifest does not list, or cannot be read.
        """
        path = self.file(graph.file)
        for weights in self.weight_files(graph):
            self.file(weights)
        return path

    def weight_files(self, graph: Graph) -> tuple[str, ...]:
        """Names in the bundle of the files that a graph keeps its weights in.

        Raises:
            ExportError: it cannot be read, or a file that it names is missing, a link or outside of the bundle.
        """
        path = self.file(graph.file)
        try:
            return tuple(file.relative_to(self.path).as_posix() for file in read_weight_files(path))
        except ArtefactError as error:
            raise ExportError(str(error)) from error

    @property
    def verified(self) -> bool:
        """True where every graph agreed with PyTorch within the recorded limits."""
        return self.manifest["verification"]["passed"] is True

    @property
    def file_name(self) -> str:
        """The bundle's name as a file or folder may have it, whatever the manifest says: never a way out."""
        return re.sub(r"[^\w.+-]+", "_", str(self.manifest["name"]), flags=re.ASCII).strip(".")[:_MOST_NAME] or "bundle"

    def graph(self, *, block: int, precision: str = "fp32", variant: str = "") -> Graph:
        """The graph that takes `block` frames a call.

        Raises:
            ExportError: the bundle has none; the message lists those it has.
        """
        for graph in self.graphs:
            if (graph.block, graph.precision, graph.variant) == (block, precision, variant):
                return graph
        offered = ", ".join(_kind(graph.block, graph.precision, graph.variant) for graph in self.graphs)
        wanted = _kind(block, precision, variant)
        raise ExportError(f"{self.path}: no graph of block {wanted}; this bundle has {offered}")


@contextlib.contextmanager
def stage_bundle(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """An empty directory to build a bundle in, which gets its name whole when the block ends.

    A bundle that was sealed as verified lands at `path`, one that was sealed as not verified at `<path>.unverified`,
    also when the block raises after sealing. Anything else leaves nothing behind. Nothing that is not a bundle, whole
    and with nothing else in it, is ever replaced.

    Args:
        replace: a bundle that already lies at `path` may be replaced.

    Raises:
        ExportError: `path` or `<path>.unverified` is taken; the block ended without sealing; the disk is full.
    """
    unverified = path.with_name(f"{path.name}.unverified")
    _check_free(path, replace)
    _check_free(unverified, True, verified=False)
    try:
        with StagedFolder(path.parent) as staged:
            try:
                yield staged.path
                if not (staged.path / MANIFEST).is_file():
                    raise ExportError(f"{path}: the bundle was not sealed; nothing was written")
            finally:
                passed = _sealed_as_verified(staged.path)
                if passed is False:
                    _check_free(unverified, True, verified=False)
                    staged.publish(unverified, replace=True)
            if passed:
                _check_free(path, replace)
                staged.publish(path, replace=replace)
    except OSError as error:
        raise ExportError(
            f"{path}: cannot be written ({error.strerror or error}); nothing was left there: free space or choose "
            "another place"
        ) from error


def seal_bundle(staging: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` into `staging`, with the schema version and the SHA-256 of every file there.

    Args:
        manifest: the keys of a bundle's manifest; `schema_version` and `files` are set here. `graphs` holds
            `Graph`s or their entries. JSON has no inf and no NaN: give finite numbers.

    Raises:
        ExportError: a key or a graph's file is missing, or a value that JSON cannot hold.
    """
    missing = [key for key in KEYS if key not in manifest]
    if missing:
        raise ExportError(f"{staging}: the manifest lacks {', '.join(missing)}")
    if not isinstance(manifest["verification"].get("passed"), bool):
        raise ExportError(f"{staging}: the manifest's verification.passed must be true or false")
    graphs = [graph.entry() if isinstance(graph, Graph) else dict(graph) for graph in manifest["graphs"]]
    files = {
        file.relative_to(staging).as_posix(): sha256_of(file)
        for file in sorted(staging.rglob("*"))
        if file.is_file() and file not in (staging / MANIFEST, staging / SIGNATURE)
    }
    _check_graphs(staging, tuple(Graph.from_entry(entry) for entry in graphs), files)
    sealed = {"schema_version": SCHEMA_VERSION, **manifest, "graphs": graphs, "files": files}
    sealed["schema_version"] = SCHEMA_VERSION
    try:
        text = json.dumps(sealed, indent=2, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ExportError(f"{staging}: the manifest holds a value that JSON cannot ({error})") from error
    checked_manifest(staging / MANIFEST, json.loads(text))
    manifest_path = staging / MANIFEST
    manifest_path.write_text(text + "\n", encoding="utf-8")
    for name in files:  # some were written by way of private temporary files
        (staging / name).chmod(manifest_path.stat().st_mode)


def _kind(block: int, precision: str, variant: str) -> str:
    return f"{block} ({precision} {variant})" if variant else f"{block} ({precision})"


def _check_graphs(path: Path, graphs: tuple[Graph, ...], files: Mapping[str, str]) -> None:
    if not graphs:
        raise ExportError(f"{path}: the bundle holds no graph, wanted at least one")
    for graph in graphs:
        if graph.file not in files:
            raise ExportError(f"{path}: graph {graph.file} is not among the bundle's files: {', '.join(files)}")


def _sizes_checked(path: Path, files: Mapping[str, str]) -> Mapping[str, str]:
    """The same files, which are regular ones below `path` and in all not larger than a bundle may be."""
    n_bytes = sum(inner_file(path, name, _MEND).stat().st_size for name in files)
    if n_bytes > MOST_BYTES:
        raise ExportError(f"{path}: found {n_bytes / 1e9:.0f} GB, wanted at most {MOST_BYTES / 1e9:.0f}; {_MEND}")
    return files


def _check_file(file: Path, wanted: str) -> None:
    found = sha256_of(file, _MEND)
    if found != wanted:
        raise ExportError(f"{file}: changed since it was exported: found SHA-256 {found}, wanted {wanted}; {_MEND}")


def _refuse_unlisted(path: Path, files: Mapping[str, str]) -> None:
    """Raise ExportError for a file that the manifest does not list; hidden ones are desktops' and tools' own."""
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            file = (Path(folder) / name).relative_to(path).as_posix()
            if file not in files and file not in (MANIFEST, SIGNATURE) and not name.startswith("."):
                raise ExportError(
                    f"{path}: found {file}, which the manifest does not list; move it out of the bundle, "
                    "or fetch the bundle again"
                )


def _check_free(path: Path, replace: bool, *, verified: bool = True) -> None:
    """Refuse a place that is taken, but for a bundle with nothing else in it that may be replaced."""
    if not os.path.lexists(path):
        return
    if not replace:
        raise ExportError(f"{path}: exists already; choose another place, or replace it (--force)")
    if not (path / MANIFEST).is_file():
        raise ExportError(f"{path}: exists and is not a bundle; it is not replaced, choose another place")
    try:
        manifest = read_manifest(path)
    except ExportError as error:
        raise ExportError(f"{path}: exists and is not a bundle ({error}); it is not replaced, move it away") from error
    known, passed = {MANIFEST, SIGNATURE, *manifest["files"]}, manifest["verification"]["passed"]
    if not verified and passed:
        raise ExportError(f"{path}: found a bundle that is verified, which is not replaced here; move it away")
    others = sorted({file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()} - known)
    if others:
        raise ExportError(
            f"{path}: holds {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}, no part of the bundle that "
            "would be replaced: move it away, or choose another place"
        )


def _sealed_as_verified(staging: Path) -> bool | None:
    """Verdict that a directory was sealed with; None where it was not sealed."""
    if not (staging / MANIFEST).is_file():
        return None
    return bool(read_manifest(staging)["verification"]["passed"])
