"""Form of a bundle's manifest.json: everything that is read of it later is checked here, once, when it is opened.

It comes from outside. What has this form is of the types that the code expects, of limited length and depth, and
finite; what its numbers mean for sound is checked where they are used (`edgese.config`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from export import ExportError
from export.files import read_bytes
from export.schema import (
    SchemaError,
    check,
    either,
    fields,
    flag,
    list_of,
    map_of,
    maybe,
    number,
    one_of,
    parse_json,
    plain,
    text,
    whole,
)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MOST_BYTES = 16_000_000  # of a manifest; the shipped one has 0.1 MB
MOST_FILES = 10_000
MOST_BLOCK = 1 << 20  # frames in one call
MOST_AXIS = (1 << 31) - 1

_MEND = "fetch or export the bundle again"

_COUNT = number(0, 1e18)
_DIGEST = text(64, "[0-9a-f]{64}", "a SHA-256 of 64 hexadecimal digits")
_LABEL = text(100, r"[^\x00-\x1f\x7f]*", "a text of at most 100 characters, none of them for control")
_NAME = text(
    200,
    r"(?!\.{1,2}$)[^\x00-\x1f\x7f/\\]+",
    "a name of 1 to 200 characters that could be a file's: no slash, no controls",
)
_FILE = text(300)  # whether it lies inside the bundle is checked with its digest

_TENSOR = fields(
    {
        "name": _LABEL,
        "shape": list_of(either(_LABEL, whole(0, MOST_AXIS)), most=16),
        "dtype": one_of(
            *("float16", "float32", "float64", "bool"),
            *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        ),
    },
    others=plain,
)
_GRAPH = fields(
    {
        "file": _FILE,
        "precision": _LABEL,
        "block": whole(1, MOST_BLOCK),
        "inputs": list_of(_TENSOR),
        "outputs": list_of(_TENSOR),
        "states": map_of(_LABEL),
    },
    {"variant": _LABEL},
    others=plain,
)
_OBJECT = map_of(plain)

# What every manifest says.
_REQUIRED = {
    "name": _NAME,
    "model": fields({}, {"name": _LABEL}, others=plain),
    "audio": _OBJECT,
    "latency": fields({"samples": _COUNT, "ms": _COUNT}, {"overlap_samples": whole(0, MOST_AXIS)}, others=plain),
    "parameters": map_of(_COUNT),
    "macs_per_frame": map_of(_COUNT),
    "graphs": list_of(_GRAPH),
    "tools": map_of(text(200)),
    "calibration": maybe(_OBJECT),
    "verification": fields({"passed": flag}, {"limits": map_of(_OBJECT), "results": list_of(_OBJECT)}, others=plain),
    "reference": fields({}, {"file": _FILE, "digest": _DIGEST}, others=plain),
}
_SEALED = {
    "schema_version": whole(SCHEMA_VERSION, SCHEMA_VERSION),
    "files": map_of(_DIGEST, key=_FILE, most=MOST_FILES),
}
_SEGMENTS = fields({f"{part}samples": whole(0, MOST_AXIS) for part in ("", "overlap_", "edge_")}, others=plain)
_PLAN = fields(
    {},
    {
        "half": list_of(text(300)),
        "int8": map_of(list_of(number(), least=2, most=2)),
        "calibration": maybe(_DIGEST),
        "facts": _OBJECT,
    },
    others=plain,
)
_OPTIONAL = {
    "causal": flag,
    "trained": flag,
    "segments": _SEGMENTS,
    "precisions": map_of(_PLAN),
    "device": fields({}, {"metadata": map_of(map_of(text()))}, others=plain),
}

KEYS = tuple(_REQUIRED)
_FORM = fields(_REQUIRED | _SEALED, _OPTIONAL, others=plain)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of the bundle in a folder, in the form that this file describes.

    Raises:
        ExportError: none there, too long, not JSON, of another schema, or not in its form.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ExportError(f"{folder}: not a bundle: found no such directory, wanted one that holds {MANIFEST}")
    content = read_bytes(path, MOST_BYTES, f"is {folder} a bundle?")
    try:
        manifest = parse_json(content)
    except SchemaError as error:
        raise ExportError(f"{path}: {error}; {_MEND}") from error
    return checked_manifest(path, manifest)


def checked_manifest(path: Path, manifest: Any) -> dict[str, Any]:
    """The same manifest, if it has its form.

    Raises:
        ExportError: it is of another schema, or not in its form.
    """
    if not isinstance(manifest, dict):
        raise ExportError(f"{path}: found a {type(manifest).__name__}, wanted an object")
    found = manifest.get("schema_version")
    if type(found) is not int or found != SCHEMA_VERSION:
        raise ExportError(
            f"{path}: the bundle's schema_version is {str(found)[:40]}, wanted {SCHEMA_VERSION}; "
            "export it again, or use the edgese that wrote it"
        )
    try:
        check(manifest, _FORM)
    except SchemaError as error:
        raise ExportError(f"{path}: not in the form of schema {SCHEMA_VERSION}: {error}; {_MEND}") from error
    return manifest
