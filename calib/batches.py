"""Batches of named arrays in one `.npz`, with a digest of their contents and a record of where they came from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from calib import CalibrationError

# Arrays lie under "<index of the batch>/<name>"; this entry, JSON as bytes, holds what else is stored.
_RECORD = "record"

MOST_BYTES = 4_000_000_000  # of all arrays, unpacked

# numpy.lib.format, versions 1.0 and 2.0. NumPy's own reader takes all memory that a header claims, and evaluates it.
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\0..|\x02\0....)\{'descr': '(?P<dtype>[<>|](?:b1|[iu][1248]|f[248]))', "
    rb"'fortran_order': (?P<columns>True|False), 'shape': \((?P<shape>\d{0,18}(?:, ?\d{1,18}){0,31},?)\),? ?\} *\n",
    re.DOTALL,
)

_DAMAGED = (
    *(AttributeError, EOFError, LookupError, RecursionError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError),  # RuntimeError: it is encrypted
)


@dataclasses.dataclass(frozen=True)
class Batches:
    """Stored batches; `digest` is over their contents, `provenance` says where they came from."""

    batches: tuple[dict[str, NDArray[Any]], ...]
    provenance: dict[str, Any]
    digest: str

    def __len__(self) -> int:
        return len(self.batches)


def write_batches(
    path: Path,
    batches: Sequence[Mapping[str, NDArray[Any]]],
    provenance: Mapping[str, Any],
    *,
    stream: BinaryIO | None = None,
) -> str:
    """Store batches as one `.npz`; return their digest.

    Args:
        stream: to write to in place of `path`, for a file that gets this name when it is whole; its OSErrors pass.
        batches: at least one, none empty; numbers only, all finite.
        provenance: what JSON can hold.

    Raises:
        CalibrationError: nothing to store, an array that is empty or not finite, a file that cannot be written.
    """
    _check_batches(path, batches)
    digest = digest_of(batches)
    try:
        record = json.dumps({"provenance": dict(provenance), "digest": digest, "count": len(batches)})
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{path}: the provenance holds a value that JSON cannot ({error})") from error
    arrays = {f"{index}/{name}": array for index, batch in enumerate(batches) for name, array in batch.items()}
    arrays[_RECORD] = np.frombuffer(record.encode(), np.uint8)
    if stream is not None:
        np.savez(stream, **dict(arrays))  # type: ignore[arg-type]  # the stub takes allow_pickle for an array
        return digest
    try:
        with path.open("wb") as opened:
            np.savez(opened, **dict(arrays))  # type: ignore[arg-type]
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be written ({error.strerror})") from error
    return digest


def read_batches(path: Path, digest: str | None = None) -> Batches:
    """The batches stored at `path`, their contents checked against the digest stored with them.

    Args:
        digest: the one that they must have, if the caller has recorded it.

    Raises:
        CalibrationError: the file is missing, damaged or empty, or its batches are others.
    """
    try:
        arrays = _read_arrays(path)
        record = json.loads(arrays.pop(_RECORD).tobytes())
        if not 0 <= record["count"] <= len(arrays):
            raise ValueError(f"found {record['count']} batches announced, and {len(arrays)} arrays")
        batches: list[dict[str, NDArray[Any]]] = [{} for _ in range(record["count"])]
        for key, array in arrays.items():
            index, name = key.split("/", 1)
            batches[int(index)][name] = array
        provenance, stored = dict(record["provenance"]), str(record["digest"])
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _DAMAGED as error:
        raise CalibrationError(f"{path}: not a file of batches ({error}); write or fetch it again") from error
    _check_batches(path, batches)
    found = digest_of(batches)
    if found != stored:
        raise CalibrationError(f"{path}: damaged: the digest is {found}, wanted {stored}; write or fetch it again")
    if digest is not None and found != digest:
        raise CalibrationError(f"{path}: these are other batches: the digest is {found}, wanted {digest}")
    return Batches(tuple(batches), provenance, found)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz by name; sizes are compared with those of the file before memory is taken for them."""
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        n_bytes = sum(member.file_size for member in members)
        if n_bytes > MOST_BYTES:
            raise ValueError(f"found {n_bytes / 1e9:.1f} GB of arrays, wanted at most {MOST_BYTES / 1e9:.1f}")
        return {member.filename.removesuffix(".npy"): _array(archive.read(member)) for member in members}


def _array(content: bytes) -> NDArray[Any]:
    """Array of plain numbers that the bytes of an .npy file hold: as `write_batches` writes them, no other forms."""
    found = _NPY.match(content)
    if found is None:
        raise ValueError("found an array that is no .npy of plain numbers")
    dtype, shape = np.dtype(found["dtype"].decode()), tuple(map(int, re.findall(rb"\d+", found["shape"])))
    n_bytes = len(content) - found.end()
    if math.prod(shape) * dtype.itemsize != n_bytes:
        raise ValueError(f"found {dtype} of shape {shape} in {n_bytes} bytes, wanted as many as its numbers take")
    flat: NDArray[Any] = np.frombuffer(content, dtype, offset=found.end()).copy()
    return flat.reshape(shape, order="F" if found["columns"] == b"True" else "C")


def digest_of(batches: Sequence[Mapping[str, NDArray[Any]]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes; the order of batches counts, that of names does not."""
    digest = hashlib.sha256()
    for index, batch in enumerate(batches):
        for name, array in sorted(batch.items()):
            # One JSON line each: no two different sets of batches give the same bytes.
            digest.update(json.dumps([index, name, array.dtype.str, list(array.shape)]).encode() + b"\n")
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _check_batches(path: Path, batches: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    if not batches:
        raise CalibrationError(f"{path}: no batches, wanted at least one")
    for index, batch in enumerate(batches):
        if not batch:
            raise CalibrationError(f"{path}: batch {index} holds no array")
        for name, array in batch.items():
            if array.dtype.kind not in "biuf":
                raise CalibrationError(f"{path}: batch {index}: {name} is of dtype {array.dtype}, wanted numbers")
            if array.size == 0:
                raise CalibrationError(f"{path}: batch {index}: {name} is empty, shape {array.shape}")
            if not np.isfinite(array).all():
                raise CalibrationError(f"{path}: batch {index}: {name} holds NaN or Inf, wanted finite numbers")
