"""Agent on the board while a link is up: it answers requests, runs one command at a time, and ends with the link.

`link.py` sends this file's text through ssh into the board's python3; nothing of it is installed there. It needs
Python 3.10 and the standard library. Both ends speak in frames: one byte for the kind, four for the length
(big-endian), then the content.

    to the board      REQUEST (JSON), DATA (of a file), BEAT (every few seconds, so that silence means a dead link)
    from the board    ANSWER (JSON, ends a request), DATA (of a file), OUT (a command's stdout), ERR (its stderr)

It ends, and with it the command that it runs, when its input ends (the link was cut, the other side is gone) and when
nothing has come for `QUIET_S` (a pulled cable sends no end). A request that comes while another is being served
ends that one. All that it keeps lies in one folder, `home()`; a lock there makes one session a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

REQUEST, DATA, BEAT, ANSWER, OUT, ERR = b"R", b"D", b"B", b"A", b"O", b"T"
_KINDS = (REQUEST, DATA, BEAT, ANSWER, OUT, ERR)
HELLO = "edgese-agent"

QUIET_S = 60  # without a frame: the link is dead
LOCK_S = 90  # longer than a dead link's agent needs to notice
_MERCY_S = 3  # that a command gets to end by itself
_CHUNK = 1 << 16
_HEAD = struct.Struct(">cI")
_DEATH = 1  # PR_SET_PDEATHSIG, linux/prctl.h

# Names that session.py gives: <bundle>.device-<digest>, and work-<token>.
_FOLDER = re.compile(r".+\.device-[0-9a-f]{12}")
_ARCHIVE = re.compile(rf"{_FOLDER.pattern}\.tar\.gz(\.part)?")
_UNPACKING = re.compile(rf"{_FOLDER.pattern}\.unpacking")
_WORK = re.compile(r"work-[0-9a-f]{8}")


MOST_FRAME = 1 << 20  # bytes of content: what either side sends is smaller


class FrameError(ValueError):
    """Error where what came is no frame of this protocol."""


def packed(kind: bytes, content: bytes = b"") -> bytes:
    """Bytes of one frame."""
    return _HEAD.pack(kind, len(content)) + content


class Frames:
    """Buffer that takes bytes as they come and gives whole frames."""

    def __init__(self) -> None:
        self._waiting = bytearray()

    def add(self, content: bytes) -> None:
        self._waiting += content

    def take(self) -> tuple[bytes, bytes] | None:
        """Kind and content of the next whole frame; None if it has not all come.

        Raises:
            FrameError: of no known kind, or larger than any; found before its content is waited for.
        """
        if len(self._waiting) < _HEAD.size:
            return None
        kind, length = _HEAD.unpack_from(self._waiting)
        if kind not in _KINDS or length > MOST_FRAME:
            raise FrameError(f"found a frame of kind {kind!r} with {length} bytes, wanted one of edgese's agent")
        if len(self._waiting) < _HEAD.size + length:
            return None
        content = bytes(self._waiting[_HEAD.size : _HEAD.size + length])
        del self._waiting[: _HEAD.size + length]
        return kind, content


def home() -> Path:
    """Folder on the board where everything is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "edgese"


class _GoneError(Exception):
    """Error where the other side is gone."""


class _RefusedError(Exception):
    """Error of a request that cannot be served; the message is for the user, without the board's name."""


class _Agent:
    def __init__(self) -> None:
        self._frames = Frames()
        self._next: list[dict[str, Any]] = []  # a request that came while another was being served
        self._child: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    def serve(self) -> None:
        """Answer requests until the other side is gone."""
        signal.signal(signal.SIGALRM, lambda number, frame: self._die())  # also where a write hangs
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._die())
        signal.alarm(QUIET_S)
        answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "look": self._look,
            "put": self._put,
            "unpack": self._unpack,
            "run": self._run,
            "get": self._get,
            "leave": self._leave,
        }
        with contextlib.suppress(_GoneError, FrameError):
            while True:
                request = self._request()
                try:
                    answer = answers[request["do"]](request)
                except _RefusedError as error:
                    answer = {"error": str(error)}
                except OSError as error:
                    answer = {"error": _failure(error)}
                self._send(ANSWER, json.dumps(answer | {"id": request["id"]}).encode())
        self._end_child()

    # What is there

    def _look(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the lock, clear what others have left, and answer with what is on the board.

        A folder of a bundle counts only if every file in it is as it was packed.
        """
        place = home()
        place.mkdir(parents=True, exist_ok=True)
        self._take_lock(place / "lock")
        for path in place.iterdir() if request["tidy"] else ():
            if _left_over(path.name, request["archive"], request["work"]):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder = place / request["folder"]
        if folder.exists() and not _whole(folder):
            shutil.rmtree(folder)
        found = {name: importlib.util.find_spec(name) is not None for name in request["modules"]}
        return {
            "python": ".".join(map(str, sys.version_info[:3])),
            "modules": found,
            "home": str(place),
            "there": folder.exists(),
            "free": shutil.disk_usage(place).free,
            "part": _size(place / f"{request['archive']}.part"),
        }

    def _take_lock(self, path: Path) -> None:
        if self._lock is None:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        waited = 0.0
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.pread(self._lock, 20, 0).decode() or "unknown"
                if waited >= LOCK_S:
                    raise _RefusedError(
                        f"another edgese is at work there (process {owner}), wanted the board for this one alone: "
                        "wait until it is done"
                    ) from None
                if not waited:
                    self._send(ERR, b"another edgese is at work there: waiting\n")
                waited += 0.5
                self._pump(0.5)
                if self._next:
                    raise _RefusedError("stopped") from None
            else:
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, str(os.getpid()).encode(), 0)
                return

    # Files

    def _put(self, request: dict[str, Any]) -> dict[str, Any]:
        """Receive a file's missing end, confirming the bytes after each piece; it gets its name when it is whole."""
        target = home() / request["name"]
        if request["private"]:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        if target.exists() and _digest(target) == request["sha256"]:  # the link was lost after it had come
            self._send(OUT, json.dumps({"have": request["bytes"]}).encode())
            return {}
        have = _size(part)
        if have > request["bytes"]:
            part.unlink()
            have = 0
        self._send(OUT, json.dumps({"have": have}).encode())
        try:
            with part.open("ab") as stream:
                while have < request["bytes"] and not self._next:
                    kind, content = self._frame()
                    if kind == DATA:
                        stream.write(content)
                        stream.flush()
                        have += len(content)
                    self._send(OUT, json.dumps({"have": have}).encode())
        except OSError:  # the disk is full: what came is of no use to anybody
            part.unlink(missing_ok=True)
            raise
        if self._next:
            raise _RefusedError("stopped")
        found = _digest(part)
        if found != request["sha256"]:
            part.unlink()
            raise _RefusedError(f"{target}: found SHA-256 {found}, sent was {request['sha256']}: run this again")
        part.rename(target)
        return {}

    def _unpack(self, request: dict[str, Any]) -> dict[str, Any]:
        """Unpack an archive that was sent; its folder appears whole or not at all and replaces those of its kind."""
        archive, folder = home() / request["archive"], home() / request["folder"]
        staging = folder.with_name(f"{folder.name}.unpacking")
        try:
            with tarfile.open(archive) as tar:
                if hasattr(tarfile, "data_filter"):  # else Pythons from 3.12 on warn
                    tar.extractall(staging, filter="data")
                else:
                    tar.extractall(staging)
            for older in home().iterdir():
                same_kind = _FOLDER.fullmatch(older.name) and older.name.rpartition("-")[0] == request["kind"]
                if same_kind and older.is_dir():
                    shutil.rmtree(older)
            staging.rename(folder)
        finally:
            archive.unlink(missing_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
        return {}

    def _get(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a file from an offset on; answers with its size and digest."""
        path = home() / request["name"]
        with path.open("rb") as stream:
            stream.seek(request["offset"])
            while (content := stream.read(_CHUNK)) and not self._next:
                self._send(DATA, content)
                self._pump(0)  # beats
        return {"bytes": _size(path), "sha256": _digest(path)}

    def _leave(self, request: dict[str, Any]) -> dict[str, Any]:
        """Remove the session's own files, and all else of the bundle's unless it is to be kept."""
        place = home()
        shutil.rmtree(place / request["work"], ignore_errors=True)
        if not request["keep"]:
            for path in (place / request["folder"], place / "engines" / request["kind"]):
                shutil.rmtree(path, ignore_errors=True)
            (place / f"{request['archive']}.part").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others are kept there
                (place / "engines").rmdir()
        return {"kept": sum(_size(path) for path in place.rglob("*") if path.is_file())}

    # Commands

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run a command to its end; answers with its exit code, negative for the signal that ended it."""
        libc = ctypes.CDLL(None)
        (home() / request["work"]).mkdir(mode=0o700, exist_ok=True)
        self._child = subprocess.Popen(
            [sys.executable, *request["command"]],
            cwd=home() / request["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_DEATH, signal.SIGKILL),  # even if this very process is killed
        )
        child = self._child
        assert child.stdout is not None
        assert child.stderr is not None
        streams = {child.stdout.fileno(): OUT, child.stderr.fileno(): ERR}
        while streams and not self._next:
            for number in self._pump(1.0, *streams):
                content = os.read(number, _CHUNK)
                if content:
                    self._send(streams[number], content)
                else:
                    del streams[number]
        if self._next:
            self._end_child()
        code = child.wait()
        self._child = None
        child.stdout.close()
        child.stderr.close()
        return {"code": code}

    def _end_child(self) -> None:
        """End the command and all that it has started: politely, then surely."""
        child = self._child
        if child is None:
            return
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_MERCY_S)
        self._child = None

    def _die(self) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        self._end_child()
        os._exit(1)

    # Frames

    def _request(self) -> dict[str, Any]:
        while not self._next:
            self._frame()  # what is no request belonged to one that was refused
        return self._next.pop(0)

    def _frame(self) -> tuple[bytes, bytes]:
        """Next frame, waited for; a request is also queued."""
        while (frame := self._frames.take()) is None:
            self._read()
        if frame[0] == REQUEST:
            self._next.append(json.loads(frame[1]))
        return frame

    def _pump(self, seconds: float, *others: int) -> list[int]:
        """Wait for input of the link or of `others`; returns which of `others` have some. Requests are queued."""
        ready, _, _ = select.select([0, *others], [], [], seconds)
        if 0 in ready:
            self._read()
            while (frame := self._frames.take()) is not None:
                if frame[0] == REQUEST:
                    self._next.append(json.loads(frame[1]))
        return [number for number in ready if number != 0]

    def _read(self) -> None:
        content = os.read(0, _CHUNK)
        if not content:
            raise _GoneError
        signal.alarm(QUIET_S)
        self._frames.add(content)

    def _send(self, kind: bytes, content: bytes) -> None:
        waiting = memoryview(packed(kind, content))
        try:
            while waiting:
                waiting = waiting[os.write(1, waiting) :]
        except BrokenPipeError:
            raise _GoneError from None


def _failure(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(home() if home().exists() else Path.home()).free
            return f"{home()}: the disk is full ({error.strerror}; {free / 1e6:.1f} MB free): free some space there"
    return f"{error.filename or home()}: {error.strerror or error}"


def _left_over(name: str, archive: str, work: str) -> bool:
    """True if a file was left by another session, which must have been cut off: this one has the lock.

    Only what has a session's names: others may keep their things in the same folder.
    """
    if _ARCHIVE.fullmatch(name):
        return name.removesuffix(".part") != archive
    return bool(_UNPACKING.fullmatch(name)) or (bool(_WORK.fullmatch(name)) and name != work)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while content := stream.read(1 << 20):
            digest.update(content)
    return digest.hexdigest()


def _whole(folder: Path) -> bool:
    """True if every file is as SHA256SUMS says."""
    try:
        (sums,) = folder.glob("*/SHA256SUMS")
        lines = sums.read_text().splitlines()
        return all(_digest(sums.parent / line[66:]) == line[:64] for line in lines)
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    os.umask(0o077)
    _Agent().serve()
