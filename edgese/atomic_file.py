"""Output files that appear whole or not at all: built under a temporary name beside their target, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgese.errors import OutputError

if TYPE_CHECKING:
    from typing_extensions import Self


class PartialFile:
    """A file being built under a temporary name beside its target. A context manager: what is not published is removed.

    Folders on the way to the target are made, and removed again with the file. A target that is a link is written
    through.

    Raises:
        OutputError: the place cannot be written to.
    """

    def __init__(self, target: Path, name: str | None = None) -> None:
        self.name = name or shown(target)
        self.target = Path(os.path.realpath(target))
        self.path = self.target.with_name(f".edgese-{secrets.token_hex(4)}.partial")
        self._folders: list[Path] = []
        self._published = False
        try:
            self.fd = self._create()
        except OSError as error:
            self._remove_folders()
            raise self.error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file unless it was published; closing twice is harmless."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        if not self._published:
            self.path.unlink(missing_ok=True)
            self._remove_folders()

    def publish(self, *, replace: bool) -> None:
        """Give the finished file its name, in one step.

        Raises:
            OutputError: the target exists and must not be replaced, or the file system refuses.
        """
        if not replace and self.target.exists():
            raise OutputError(f"{self.name}: exists already; choose another name or allow it to be replaced (--force)")
        try:
            os.fsync(self.fd)  # else a power cut can leave an empty file under the final name
            self.path.replace(self.target)
        except OSError as error:
            raise self.error(error) from error
        self._published = True

    def error(self, error: OSError) -> OutputError:
        """Error with one line that says why the file system refused to write."""
        return OutputError(
            f"{self.name}: cannot be written ({error.strerror or error}); "
            "nothing was left there: free space or choose another place with -o"
        )

    def _create(self, attempts: int = 3) -> int:
        try:
            self._make_folders()
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another worker has removed a folder that it had made and that was still empty
            if attempts == 1:
                raise
            return self._create(attempts - 1)

    def _make_folders(self) -> None:
        missing = []
        for folder in self.target.parents:
            if folder.exists():
                break
            missing.append(folder)
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self._folders.append(folder)

    def _remove_folders(self) -> None:
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):  # another file has moved in
                folder.rmdir()


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
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(path))
