"""Recordings and outputs by URI: what fsspec opens, as s3://, gs://, https://, sftp:// or a shared file system's path.

An output is there whole or not at all: a file of a local or shared file system is renamed when it is finished, an
object of a store appears when its upload is, and elsewhere it is moved into place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from edgese.audio.formats import READABLE
from edgese.enhance.jobs import EnhanceOptions, output_name
from edgese.errors import AudioError, ConfigError, EdgeseError, OutputError, install_command, pip_command
from export.staging import write_whole

try:
    import fsspec
except ImportError as error:
    raise EdgeseError(f"fsspec is missing: {install_command('ray')}") from error

LIST = "@"  # before the name of a file that lists recordings, a URI a line
_WHOLE = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "memory")  # an upload appears when it is finished


@dataclasses.dataclass(frozen=True)
class Item:
    """A recording and the place for what becomes of it."""

    source: str
    target: str


def list_items(inputs: Sequence[str], output: str, options: EnhanceOptions) -> list[Item]:
    """One item for each recording: folders are walked and mirrored below `output`, lists are read.

    Raises:
        AudioError: a folder or list without recordings, or two that would share an output.
        ConfigError: a URI that nothing here opens.
    """
    named = [(source, inner) for given in inputs for source, inner in _sources(given)]
    items = [Item(source, posixpath.join(output, _as_output(inner, options))) for source, inner in named]
    shared = [target for target, n in Counter(item.target for item in items).items() if n > 1]
    if shared:
        both = " and ".join(item.source for item in items if item.target == shared[0])
        raise AudioError(f"{shared[0]}: {both} would be written there: enhance them into two folders")
    return items


def _sources(given: str) -> Iterator[tuple[str, str]]:
    """Recordings that an argument names, each with its place below the output."""
    if given.startswith(LIST):
        lines = (line.strip() for line in _text(given.removeprefix(LIST)).splitlines())
        sources = [line for line in lines if line and not line.startswith("#")]
        if not sources:
            raise AudioError(f"{given}: found no line with a recording")
        yield from ((source, _base(source)) for source in sources)
        return
    files, path = _opened(given)
    if urlsplit(given).scheme in ("http", "https") or not files.isdir(path):
        yield given, _base(given)
        return
    found = [str(file) for file in sorted(files.find(path)) if PurePosixPath(file).suffix.lower() in READABLE]
    inner = [(file, posixpath.relpath(file, path)) for file in found]
    seen = [(file, name) for file, name in inner if not any(part.startswith(".") for part in name.split("/"))]
    if not seen:
        raise AudioError(f"{given}: found no audio files, wanted some that end in {', '.join(READABLE)}")
    yield from ((files.unstrip_protocol(file) if "://" in given else file, name) for file, name in seen)


def is_there(uri: str) -> bool:
    """True if there is a file at this place."""
    files, path = _opened(uri)
    with _named(uri, AudioError):
        return bool(files.exists(path))


def fetch(uri: str, folder: Path) -> Path:
    """Path of a recording here: its own on a local or shared file system, else of a copy in `folder`.

    Raises:
        AudioError: it cannot be read.
    """
    files, path = _opened(uri)
    if "file" in _protocols(files):
        return Path(path)
    copy = folder / _base(uri)
    with _named(uri, AudioError):
        files.get_file(path, str(copy))
    return copy


def local_path(uri: str) -> Path | None:
    """Path of a place on a local or shared file system; None of any other."""
    files, path = _opened(uri)
    return Path(path) if "file" in _protocols(files) else None


def deliver(file: Path, uri: str) -> None:
    """Bring a finished file to its place, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    files, path = _opened(uri)
    with _named(uri, OutputError):
        files.makedirs(posixpath.dirname(path), exist_ok=True)
        if set(_protocols(files)) & set(_WHOLE):
            files.put_file(str(file), path)
            return
        hidden = posixpath.join(posixpath.dirname(path), f".{posixpath.basename(path)}.partial")
        files.put_file(str(file), hidden)
        files.mv(hidden, path)


def save_arrays(uri: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to one file, whole or not at all; `load_arrays` gives them back.

    Raises:
        OutputError: it cannot be written.
    """
    content = io.BytesIO()
    named: dict[str, Any] = {f"_{name}": array for name, array in arrays.items()}  # savez keeps some names for itself
    np.savez(content, **named)
    files, path = _opened(uri)
    with _named(uri, OutputError):
        files.makedirs(posixpath.dirname(path), exist_ok=True)
        if "file" in _protocols(files):
            write_whole(Path(path), content.getvalue())
        else:
            files.pipe_file(path, content.getvalue())


def load_arrays(uri: str) -> dict[str, NDArray[Any]]:
    """The arrays of `save_arrays`.

    Raises:
        OutputError: they cannot be read.
    """
    files, path = _opened(uri)
    with _named(uri, OutputError), np.load(io.BytesIO(files.cat_file(path)), allow_pickle=False) as arrays:
        return {name.removeprefix("_"): arrays[name] for name in arrays.files}


def remove_folder(uri: str) -> None:
    """Remove a folder with all in it, and the one that it lies in if nothing else does."""
    files, path = _opened(uri)
    with _named(uri, OutputError), contextlib.suppress(FileNotFoundError):
        files.rm(path, recursive=True)
    with contextlib.suppress(OSError):  # others are at work in there; stores have no folders
        files.rmdir(posixpath.dirname(path))


def _text(uri: str) -> str:
    files, path = _opened(uri)
    with _named(uri, AudioError):
        content: bytes = files.cat_file(path)
        return content.decode("utf-8")


def _opened(uri: str) -> tuple[Any, str]:
    """File system of a URI, and the path in it."""
    try:
        files, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:  # it names the package for this kind of URI
        package = next((word for word in str(error).split() if word.endswith("fs")), "the package for it")
        raise ConfigError(f"{uri}: {error}: {pip_command('install', package)}") from error
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"{uri}: no URI that fsspec opens ({error}); wanted a path, or one such as s3://bucket/a.wav"
        ) from error
    return files, str(path)


def _protocols(files: Any) -> tuple[str, ...]:
    return (files.protocol,) if isinstance(files.protocol, str) else tuple(files.protocol)


def _base(uri: str) -> str:
    """File name of a URI, its query left out."""
    path = unquote(urlsplit(uri).path) if "://" in uri else uri
    return posixpath.basename(path) or "recording"


def _as_output(inner: str, options: EnhanceOptions) -> str:
    return posixpath.join(posixpath.dirname(inner), output_name(Path(posixpath.basename(inner)), options))


@contextlib.contextmanager
def _named(uri: str, kind: type[EdgeseError]) -> Iterator[None]:
    """Turn a file system's errors into one line; those of stores share no base but Exception."""
    try:
        yield
    except EdgeseError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise kind(f"{uri}: cannot be reached ({reason.splitlines()[0]}); see to the name and the rights") from error
