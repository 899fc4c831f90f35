"""The sidecar of an engine, `<engine>.json`: the names of its axes, which the engine lacks, and its origin."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtimes.errors import ArtefactError
from runtimes.tensor_spec import TensorSpec
from runtimes.tensorrt_package import LIBRARIES

SCHEMA_VERSION = 1
DTYPES = ("float32", "float16", "int8", "uint8", "int32", "int64", "bool")


@dataclasses.dataclass(frozen=True)
class EngineSidecar:
    """The entries of `<engine>.json`."""

    artefact: Path
    built_by: str  # package and version: "tensorrt 10.3.0"
    device: str
    digest: str
    n_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: dict[str, str]

    @classmethod
    def read(cls, artefact: Path) -> EngineSidecar:
        """The sidecar of an engine; ArtefactError if it is missing or damaged."""
        path = artefact.with_name(f"{artefact.name}.json")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            graph = record["graph"]
            found = cls(
                artefact,
                str(record["key"]["tensorrt"]),
                str(record["key"]["device"]),
                str(record["engine"]["sha256"]),
                int(record["engine"]["bytes"]),
                tuple(map(_spec, graph["inputs"])),
                tuple(map(_spec, graph["outputs"])),
                {str(key): str(value) for key, value in graph["metadata"].items()},
            )
            whole = record["schema_version"] == SCHEMA_VERSION and found.library in LIBRARIES
        except OSError as error:
            raise ArtefactError(
                f"{artefact}: its sidecar {path.name} cannot be read ({error.strerror}); build the engine anew"
            ) from error
        except (RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(
                f"{artefact}: its sidecar {path.name} is damaged ({type(error).__name__}: {error}); "
                "build the engine anew"
            ) from error
        if not whole:
            raise ArtefactError(f"{artefact}: its sidecar {path.name} is of another edgese; build the engine anew")
        return found

    @property
    def library(self) -> str:
        """The package that built it and runs it."""
        return self.built_by.partition(" ")[0]

    @property
    def capability(self) -> str | None:
        """Compute capability of the GPU that it is for, such as "SM87"; None: for any that its package knows."""
        found = re.search(r"\bSM\d+\b", self.device)
        return found.group() if found else None

    def read_engine(self) -> bytes:
        """The engine's bytes, checked against the sidecar's SHA-256: TensorRT does not survive all damage."""
        try:
            content = self.artefact.read_bytes()
        except OSError as error:
            raise ArtefactError(f"{self.artefact}: cannot be read ({error.strerror}); build it anew") from error
        if (len(content), hashlib.sha256(content).hexdigest()) != (self.n_bytes, self.digest):
            raise ArtefactError(
                f"{self.artefact}: damaged: its {len(content)} bytes are not the {self.n_bytes} that its sidecar "
                "records, by SHA-256; build it anew"
            )
        return content


def _spec(entry: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(entry["shape"])
    if not all(isinstance(size, int | str) for size in shape) or entry["dtype"] not in DTYPES:
        raise ValueError(f"{entry['name']} is {shape} {entry['dtype']}")
    return TensorSpec(str(entry["name"]), shape, str(entry["dtype"]))
