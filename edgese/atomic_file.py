"""Output files that appear whole or not at all, with the error that a user meets where they cannot be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgese.errors import OutputError, printable
from export.staging import StagedFile, check_place, write_all

if TYPE_CHECKING:
    from typing_extensions import Self


class PartialFile:
    """A file being built beside its target, which appears when `publish` is called; see `export.staging.StagedFile`.

    Args:
        name: how messages call it, the path by default.
        mode: permissions that it has at most, as those of the recording that it is made of.

    Raises:
        OutputError: the place cannot be written to.
    """

    def __init__(self, target: Path, name: str | None = None, *, mode: int | None = None) -> None:
        self.name = name or shown(target)
        try:
            self._staged = StagedFile(target, mode=mode)
        except OSError as error:
            raise self.error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """Path of the unfinished file."""
        return self._staged.path

    @property
    def fd(self) -> int:
        """Descriptor of the unfinished file, open for reading and writing."""
        return self._staged.fd

    def close(self) -> None:
        """Remove the file unless it was published; closing twice is harmless."""
        self._staged.close()

    def publish(self, *, replace: bool) -> None:
        """Give the finished file its name, in one step.

        Raises:
            OutputError: the target exists and must not be replaced, or the file system refuses.
        """
        try:
            self._staged.publish(replace=replace)
        except FileExistsError as error:
            raise OutputError(
                f"{self.name}: exists already; choose another name or allow it to be replaced (--force)"
            ) from error
        except OSError as error:
            raise self.error(error) from error

    def error(self, error: OSError) -> OutputError:
        """Error with one line that says why the file system refused to write."""
        return OutputError(
            f"{self.name}: cannot be written ({error.strerror or error}); "
            "nothing was left there: free space or choose another place with -o"
        )


def require_place(target: Path, name: str | None = None) -> None:
    """Check that a file can be made under this name, as `PartialFile` would find, without making anything.

    Raises:
        OutputError: the name is too long, the place is taken by what is no file, or its folder cannot be written to.
    """
    try:
        check_place(target)
    except OSError as error:
        raise OutputError(
            f"{name or shown(target)}: cannot be written ({error.strerror or error}); choose another place with -o"
        ) from error


def write_output(target: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: it exists and must not be replaced, or cannot be written.
    """
    with PartialFile(target) as partial:
        try:
            write_all(partial.fd, content)
        except OSError as error:
            raise partial.error(error) from error
        partial.publish(replace=replace)


def require_space(target: Path, n_bytes: int, promised: dict[int, int] | None = None) -> None:
    """Check that a file system has room for a file before anything is done for it.

    Args:
        promised: bytes that other files will take, by file system; this one's are added.

    Raises:
        OutputError: it has not.
    """
    place = next((folder for folder in Path(os.path.realpath(target)).parents if folder.exists()), None)
    if place is None:
        return
    device = place.stat().st_dev
    others = 0 if promised is None else promised.get(device, 0)
    free = shutil.disk_usage(place).free
    if n_bytes + others > free:
        raise OutputError(
            f"{shown(target)}: found {(free - others) / 1e6:.1f} MB of space left, wanted {n_bytes / 1e6:.1f}: free "
            "space, choose another place with -o, or a smaller format, as FLAC"
        )
    if promised is not None:
        promised[device] = others + n_bytes


def shown(path: Path | str) -> str:
    """Path as text for a one-line message: line breaks and bytes that no terminal can show are escaped."""
    return printable(str(path)).replace("\n", "\\n").replace("\t", "\\t")
