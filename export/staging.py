"""Files and folders that appear whole or not at all: staged beside their target, then renamed.

    with StagedFile(target) as staged:
        os.write(staged.fd, content)
        staged.publish(replace=False)

What is staged has a hidden random name, `.edgese-1a2b3c4d.partial`, and is locked (flock) by the process that works on
it. A process that was killed leaves it unlocked: the next one that stages in that folder removes it (`sweep`), and
removes nothing else. A folder is staged one level down, so that it never has its final name and our marker at once:

    .edgese-1a2b3c4d.partial/
      marker       locked; only where it lies is anything removed
      content/     becomes the target, or is what a target was before this one took its place
      replaced/    what the target was, where the file system cannot exchange two folders; put back by `sweep`

Content is on the disk (fsync) before it gets its name. Errors are `OSError`s: callers make their own of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

_NAME = re.compile(r"\.edgese-[0-9a-f]{8}\.partial")
_MARKER, _CONTENT, _REPLACED = "marker", "content", "replaced"
_MARK = b"edgese is making something here; what a killed process has left is removed by the next one\n"
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # of a FAT, or of a file with too many
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h

_swept: set[str] = set()  # by this process: what others leave while it runs is for those after it


class StagedFile:
    """A file being made beside its target. A context manager: what is not published is removed.

    Folders on the way to the target are made, and removed again with the file.

    Args:
        target: a link is written through where it may be replaced.
        mode: permissions that the file has at most; None: all that the umask leaves, or those of the file it replaces.

    Raises:
        OSError: the place cannot be written to, or is taken by what is no file.
    """

    def __init__(self, target: Path, *, mode: int | None = None) -> None:
        _check_name(target)
        self.target = Path(os.path.realpath(target))
        self._named, self._mode, self._published = target, mode, False
        self._folders = _Folders(self.target.parent)
        sweep(self.target.parent, once=True)
        try:
            self.path, self.fd = self._folders.with_made(self._create)
        except BaseException:
            self._folders.remove()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file unless it was published; closing twice is harmless."""
        if self.fd < 0:
            return
        if not self._published:
            self.path.unlink(missing_ok=True)
            self._folders.remove()
        os.close(self.fd)
        self.fd = -1

    def publish(self, *, replace: bool) -> None:
        """Give the finished file its name, in one step that no other process can come between.

        Raises:
            FileExistsError: the target is there and must not be replaced.
            OSError: the file system refuses.
        """
        if replace:
            with contextlib.suppress(FileNotFoundError):
                before = stat.S_IMODE(self.target.stat().st_mode)
                os.fchmod(self.fd, before & (0o777 if self._mode is None else self._mode) | 0o600)
        os.fsync(self.fd)  # else a power cut can leave an empty file under the final name
        if replace:
            self.path.replace(self.target)
        else:
            _name_new(self.path, self._named)
        self._published = True
        _sync_folder(self.target.parent)

    def _create(self) -> tuple[Path, int]:
        while True:
            path = self.target.parent / _new_name()
            mode = 0o666 if self._mode is None else self._mode & 0o666 | 0o600
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            if _locked(fd, path):
                return path, fd
            os.close(fd)  # another process has swept it before it was locked


class StagedFolder:
    """A folder being made in another, `path`. A context manager: what is not published is removed.

    Args:
        parent: where the target will lie; folders on the way are made, and removed again.
        private: for this user's eyes only.

    Raises:
        OSError: the place cannot be written to.
    """

    def __init__(self, parent: Path, *, private: bool = False) -> None:
        self._parent, self._published = Path(os.path.realpath(parent)), False
        self._folders = _Folders(self._parent)
        sweep(self._parent, once=True)
        try:
            self._outer, self._fd = self._folders.with_made(lambda: self._create(0o700 if private else 0o777))
        except BaseException:
            self._folders.remove()
            raise
        self.path = self._outer / _CONTENT

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was not published, or what was replaced; closing twice is harmless."""
        if self._fd < 0:
            return
        _remove_staged(self._outer)
        if not self._published:
            self._folders.remove()
        os.close(self._fd)
        self._fd = -1

    def publish(self, target: Path, *, replace: bool) -> None:
        """Give the finished folder its name in `parent`, in one step.

        Args:
            replace: a folder that lies there may be replaced. It is there until the new one is, also if this process
                is killed.

        Raises:
            OSError: the target is there and must not be replaced; the file system refuses.
        """
        target = self._parent / target.name
        _sync_all(self.path)
        if not (replace and target.is_dir()):
            self.path.rename(target)  # refused where anything but an empty folder is
        elif not _exchange(self.path, target):
            os.pwrite(self._fd, os.fsencode(target.name), len(_MARK))
            target.rename(self._outer / _REPLACED)
            self.path.rename(target)
        self._published = True
        _sync_folder(self._parent)

    def _create(self, mode: int) -> tuple[Path, int]:
        while True:
            outer = self._parent / _new_name()
            outer.mkdir(mode)
            try:
                fd = os.open(outer / _MARKER, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # another process has swept it
                continue
            if _locked(fd, outer / _MARKER):
                os.pwrite(fd, _MARK, 0)
                (outer / _CONTENT).mkdir(mode)
                return outer, fd
            os.close(fd)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of this user's own in the system's place for temporary files, removed at the end or swept later.

    Raises:
        OSError: there is no such place, or it is full.
    """
    with StagedFolder(Path(tempfile.gettempdir()), private=True) as staged:
        yield staged.path


def check_place(target: Path) -> None:
    """Check that a file can be staged for this target, without making anything.

    Raises:
        OSError: the name is too long, the target is no file, or its folder cannot be written to.
    """
    _check_name(target)
    folder = next(folder for folder in Path(os.path.realpath(target)).parents if folder.exists())
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, also if two processes write it at once; replaces an older one.

    Raises:
        OSError: it cannot be written.
    """
    with StagedFile(path) as staged:
        write_all(staged.fd, content)
        staged.publish(replace=True)


def keep_as(path: Path, other: Path) -> None:
    """Give a file that is about to be replaced a second name, in place of what has that one.

    Raises:
        OSError: the file system refuses.
    """
    link = path.with_name(_new_name())
    try:
        os.link(path, link)
        link.replace(other)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        path.replace(other)
    finally:
        link.unlink(missing_ok=True)  # replacing a file by another name of itself does nothing


def write_all(fd: int, content: bytes) -> None:
    """Write all of `content`, where `os.write` may write a part."""
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def sweep(folder: Path, *, once: bool = False) -> None:
    """Remove what killed processes of this user have staged in a folder; what a live one works on stays.

    Args:
        once: only if this process has not done it yet.
    """
    name = os.path.realpath(folder)
    if once and name in _swept:
        return
    _swept.add(name)
    try:
        with os.scandir(name) as entries:
            staged = [Path(entry.path) for entry in entries if _NAME.fullmatch(entry.name)]
    except OSError:  # there is none yet, or it cannot be listed
        return
    for path in staged:
        with contextlib.suppress(OSError):  # another process is at work on it, or has swept it meanwhile
            _sweep_one(path)


def _sweep_one(path: Path) -> None:
    found = path.lstat()
    if found.st_uid != os.geteuid() or stat.S_ISLNK(found.st_mode):
        return
    is_folder = stat.S_ISDIR(found.st_mode)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path / _MARKER if is_folder else path, flags)
    except FileNotFoundError:  # killed before it had its marker: then there is nothing in it
        path.rmdir()
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_folder:
            path.unlink()
            return
        marked = os.pread(fd, len(_MARK) + 4096, 0)
        if not _MARK.startswith(marked[: len(_MARK)]):
            return
        target = path.parent / os.fsdecode(marked[len(_MARK) :])
        if (path / _REPLACED).is_dir() and target != path.parent and not os.path.lexists(target):
            (path / _REPLACED).rename(target)
        _remove_staged(path)
    finally:
        os.close(fd)


def _remove_staged(outer: Path) -> None:
    """Remove a staged folder, its marker last: whoever is killed here leaves it to be swept."""
    for name in (_CONTENT, _REPLACED):
        shutil.rmtree(outer / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        (outer / _MARKER).unlink()
        outer.rmdir()


class _Folders:
    """Folders that are made on the way to a place, and removed again while they are empty."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []

    def with_made(self, create: Callable[[], tuple[Path, int]], attempts: int = 3) -> tuple[Path, int]:
        """What `create` gives, called when the folders are there."""
        try:
            self._make()
            return create()
        except FileNotFoundError:  # another worker has removed a folder that it had made and that was still empty
            if attempts == 1:
                raise
            return self.with_made(create, attempts - 1)

    def remove(self) -> None:
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):  # another file has moved in
                folder.rmdir()

    def _make(self) -> None:
        missing = []
        for folder in (self._folder, *self._folder.parents):
            if folder.exists():
                break
            missing.append(folder)
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self._made.append(folder)


def _new_name() -> str:
    return f".edgese-{secrets.token_hex(4)}.partial"


def _check_name(target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # nothing there, or a dangling link; a name that is too long is raised
        os.lstat(target)
        if not stat.S_ISREG(target.stat().st_mode):
            raise OSError(errno.EEXIST, "found a folder, pipe or device, wanted the name of a file", str(target))


def _locked(fd: int, path: Path) -> bool:
    """True if this process has locked the file of that name; False if another has swept it before."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return True  # a file system without locks: nobody can lock it to sweep it either
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.lstat())
    return False


def _name_new(path: Path, target: Path) -> None:
    """Give a file a name that is not taken; a link that leads nowhere takes a name, too."""
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC))
        path.replace(target)
    else:
        path.unlink()


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync_all(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for file in files:
            fd = os.open(Path(place) / file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        _sync_folder(Path(place))


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where its file system can do that."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
