"""Session with a bundle on a board, where its commands can be run; the link may drop and come back.

    with Session("user@board", on_message=print) as session:
        session.place(bundle)
        session.run("self-test", "--json")

On the board everything lies in ~/.cache/edgese: the unpacked bundle and its engines stay there for the next session
unless they are not to be kept, what belongs to this session goes with it, and so does whatever it runs. One session at
a time has a board.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from edgese.atomic_file import shown
from edgese.board.agent import ANSWER, DATA, OUT
from edgese.board.answers import KEPT_LINES, MOST_ERR, MOST_LINE, MOST_OUT, parse_have, parse_result
from edgese.board.archive import SUFFIX, archive_name, write_archive
from edgese.board.link import CHUNK, Link, LinkLost, OnMessage, RemoteError, Take
from export.bundle import Bundle
from export.files import sha256_of
from export.schema import SchemaError
from export.staging import temporary_folder

if TYPE_CHECKING:
    from typing_extensions import Self

PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)  # before each new try, after a link was lost; then it is given up
_AHEAD_BYTES = 1 << 19  # sent and not confirmed yet: what a cut costs at most
SPARE_BYTES = 4_000_000  # that a session needs beside its files

_MODULES = ("numpy", "tensorrt", "tensorrt_rtx", "onnxruntime", "openvino")
_RUNTIME_MODULES = {
    "tensorrt": ("tensorrt", "tensorrt_rtx"),
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino",),
}
_MENDS = {
    "tensorrt": "JetPack brings it (sudo apt install python3-libnvinfer)",
    "onnxruntime": "python3 -m pip install onnxruntime",
    "openvino": "python3 -m pip install openvino",
}
_NAMES = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

T = TypeVar("T")
OnBytes = Callable[[str, int, int], None]  # what is copied, bytes done, bytes in all


@dataclasses.dataclass(frozen=True)
class Ran:
    """Exit code and output of a command that ended by itself."""

    code: int
    out: str
    lines: tuple[str, ...]  # on stderr

    @property
    def reason(self) -> str:
        """Last line that the command wrote to stderr, without "error: "."""
        lines = [line for line in self.lines if line]
        return lines[-1].removeprefix("error: ") if lines else f"exit code {self.code}, without a word"


class Session:
    """Connection to a board for one edgese command, made anew where it is lost. A context manager.

    Args:
        host: as ssh takes it.
        timeout_s: for all of it.
        keep: leave the unpacked bundle and its engines there for the next time.
        on_message: gets lines about what goes on, those of the board's commands among them.
        on_bytes: called while files are copied.
        stop: set when the user asks to stop.
        root: what stands for `/` there, where the board itself is read.
        pauses_s: before each new try after the link was lost without anything having been done since the last one.

    Raises:
        RemoteError: the board cannot be reached, now or any more; what was asked cannot be done there.
    """

    def __init__(
        self,
        host: str,
        *,
        timeout_s: float = float("inf"),
        keep: bool = True,
        on_message: OnMessage = lambda line: None,
        on_bytes: OnBytes = lambda what, done, total: None,
        stop: threading.Event | None = None,
        root: Path = Path("/"),
        pauses_s: Sequence[float] = PAUSES_S,
    ) -> None:
        self.host = host
        self.root = root
        self.facts: dict[str, Any] = {}  # what the board reported of itself at the last connection
        self._deadline = time.monotonic() + timeout_s
        self._keep, self._on_message, self._on_bytes = keep, on_message, on_bytes
        self._stop = stop or threading.Event()
        self._pauses_s = pauses_s
        self._work = f"work-{secrets.token_hex(4)}"
        self._kind = self._archive = self._folder = "none"  # names below the board's folder
        self._root = ""  # of the unpacked bundle, in its folder
        self._placed = False
        self._link: Link | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End what runs there, remove what is not to be kept, end the link."""
        link, self._link = self._link, None
        if link is None:
            return
        try:
            link.stop, link.deadline = threading.Event(), time.monotonic() + 10
            kept = link.request("leave", **self._names(), keep=self._keep)["kept"]
            if self._keep and self._placed:
                self._on_message(
                    f"kept on {self.host} for the next time: {self.facts['home']}, {kept / 1e6:.1f} MB "
                    "(--no-keep removes it)"
                )
        except RemoteError:
            pass  # the agent ends with its link; what it could not remove, the next session does
        finally:
            link.close()

    def place(self, bundle: Bundle, runtimes: Collection[str] = ()) -> None:
        """Copy a whole bundle to the board, unless it is there already; first check that the board is fit for it.

        Args:
            runtimes: that are wanted there; none named: one is needed, whichever.

        Raises:
            ExportError, VerificationError: the bundle cannot be packed.
            RemoteError: Python, NumPy, a runtime or space is missing there; the link is down for good.
        """
        self._steadily("looking at it", lambda link: None)  # said now, not after seconds of packing
        self._require_fit(runtimes)
        with temporary_folder() as folder:
            packed = write_archive(bundle, folder / archive_name(bundle))
            self._kind = packed.path.name.removesuffix(SUFFIX)
            self._folder = f"{self._kind}-{packed.sha256[:12]}"
            self._archive, self._root = f"{self._folder}{SUFFIX}", self._kind
            if self._steadily("looking at it", self._look)["there"]:
                self._placed = True
                self._on_message(f"{bundle.manifest['name']}: is on {self.host} already")
                return
            unpacked = int.from_bytes(packed.path.read_bytes()[-4:], "little")  # RFC 1952: the length, modulo 2^32
            needed = packed.n_bytes - int(self.facts["part"]) + unpacked + SPARE_BYTES
            if self.facts["free"] < needed:
                raise RemoteError(
                    f"{self.host}: found {self.facts['free'] / 1e6:.1f} MB free at {self.facts['home']}, wanted "
                    f"{needed / 1e6:.1f} MB for {bundle.manifest['name']}: free some space there"
                )
            self._put(packed.path, self._archive, "bundle", private=False)
        self._steadily(
            "unpacking",
            lambda link: None if self._look(link)["there"] else link.request("unpack", **self._names()),
        )
        self._placed = True

    def run(self, *arguments: object) -> Ran:
        """Run one of the bundle's commands on the board; after the link was lost, once more from its begin."""
        command = ["run", *map(str, arguments), "--cache", f"../../engines/{self._kind}"]

        def step(link: Link) -> Ran:
            out, lines = bytearray(), self._lines()
            take = self._at_most(MOST_OUT, f"printed by {arguments[0]}", out.extend)
            names = self._names() | {"command": command, "cwd": f"{self._folder}/{self._root}"}
            answer = link.request("run", on_out=take, on_err=lines.add, **names)
            lines.end()
            return Ran(answer["code"], out.decode(errors="replace"), tuple(lines.said))

        ran = self._steadily(f"running {arguments[0]}", step)
        if ran.code < 0:
            raise RemoteError(
                f"{self.host}: {arguments[0]} was ended by signal {-ran.code} ({ran.reason}): out of memory? "
                "see dmesg there"
            )
        if ran.code > 1:
            raise RemoteError(f"{self.host}: {arguments[0]} ended with exit code {ran.code}: {ran.reason}")
        return ran

    def result(self, *arguments: object) -> dict[str, Any]:
        """JSON that one of the bundle's commands prints on the board.

        Raises:
            RemoteError: it printed none, and its own line says why; or not what this command prints.
        """
        ran = self.run(*arguments)
        if not ran.out.strip():
            raise RemoteError(f"{self.host}: {ran.reason}")
        try:
            return parse_result(ran.out, str(arguments[0]))
        except SchemaError as error:
            raise RemoteError(f"{self.host}: {arguments[0]} does not print there what it should: {error}") from error

    def runtimes(self, wanted: Sequence[str] = ()) -> dict[str, Any]:
        """Runtimes that open on the board, `found`, reasons why others do not, `left_out`, and the `machine`.

        Raises:
            RemoteError: none does, or one that is wanted does not.
        """
        named = [part for name in wanted for part in ("--runtime", name)]
        runtimes = self.result("runtimes", "--json", "--root", self.root, *named)
        if not runtimes["found"]:
            raise RemoteError(f"{self.host}: no runtime opens there: {'; '.join(runtimes['left_out'].values())}")
        return runtimes

    def send(self, path: Path, name: str) -> str:
        """Copy a file to the session's folder on the board; returns its path there, for commands."""
        self._put(path, f"{self._work}/{name}", name, private=True)
        return self.path(name)

    def path(self, name: str) -> str:
        """Path of one of this session's files on the board, for commands."""
        return f"{self.facts['home']}/{self._work}/{name}"

    def fetch(self, name: str, target: Path, most_bytes: int) -> None:
        """Copy one of this session's files from the board; after the link was lost, from where it stopped.

        Raises:
            RemoteError: more than `most_bytes` come, or not what the board says it has sent.
        """
        target.write_bytes(b"")

        def step(link: Link) -> None:
            with target.open("ab") as stream:
                offset = stream.tell()
                take = self._at_most(most_bytes - offset, f"of {name}", stream.write)
                answer = link.request("get", on_data=take, name=f"{self._work}/{name}", offset=offset)
            found = sha256_of(target, "run this again")
            if found != answer["sha256"]:
                raise RemoteError(f"{self.host}: {name}: came with SHA-256 {found}, wanted {answer['sha256']}")

        self._steadily(f"copying {name}", step, lambda: target.stat().st_size)

    def _names(self) -> dict[str, Any]:
        return {"work": self._work, "kind": self._kind, "archive": self._archive, "folder": self._folder}

    def _look(self, link: Link) -> dict[str, Any]:
        self.facts = link.request(
            "look", on_err=self._lines().add, **self._names(), modules=_MODULES, tidy=bool(self._root)
        )
        return self.facts

    def _lines(self) -> _Lines:
        return _Lines(self._on_message, self._at_most(MOST_ERR, "on stderr"))

    def _at_most(self, most: int, what: str, take: Take = len) -> Take:
        """The same taker of bytes, up to a limit in all; beyond it, RemoteError."""
        left = most

        def limited(content: bytes) -> None:
            nonlocal left
            left -= len(content)
            if left < 0:
                if self._link is not None:
                    self._link.close(0)  # it would not read a request to stop
                raise RemoteError(f"{self.host}: found more than {most / 1e6:.1f} MB {what} there, wanted fewer")
            take(content)

        return limited

    def _require_fit(self, wanted: Collection[str]) -> None:
        there = {name for name, found in self.facts["modules"].items() if found}
        if "numpy" not in there:
            raise RemoteError(
                f"{self.host}: found no NumPy for python3 there, wanted it: sudo apt install python3-numpy"
            )
        lacking = [name for name, modules in _RUNTIME_MODULES.items() if not there & set(modules)]
        for name in wanted:
            if name in lacking:
                raise RemoteError(f"{self.host}: found no {_NAMES[name]} for python3 there, wanted it: {_MENDS[name]}")
        if len(lacking) == len(_RUNTIME_MODULES):
            raise RemoteError(
                f"{self.host}: found neither TensorRT nor ONNX Runtime for python3 there, wanted one of them: "
                "JetPack brings TensorRT (sudo apt install python3-libnvinfer); or: python3 -m pip install onnxruntime"
            )

    def _put(self, path: Path, name: str, what: str, *, private: bool) -> None:
        """Copy a file to the board; what has come of it stays over a lost link, and only the rest is sent."""
        n_bytes, digest, have = path.stat().st_size, sha256_of(path, "run this again"), 0

        def step(link: Link) -> None:
            nonlocal have
            number, begun = link.ask("put", name=name, bytes=n_bytes, sha256=digest, private=private), False
            with path.open("rb") as stream:
                while True:
                    ahead = stream.tell() - have
                    kind, content = link.receive(wait=not begun or ahead > _AHEAD_BYTES or stream.tell() == n_bytes)
                    if kind == OUT:
                        try:
                            have = parse_have(content, n_bytes)
                        except SchemaError as error:
                            raise link.unexpected(error) from error
                        self._on_bytes(what, have, n_bytes)
                        if not begun:
                            begun = True
                            stream.seek(have)
                            if have:
                                self._on_message(
                                    f"{what}: {have / 1e6:.1f} of {n_bytes / 1e6:.1f} MB are there already"
                                )
                    elif kind == ANSWER:
                        if link.answer(content, "put", number) is not None:
                            return
                    elif begun and stream.tell() < n_bytes:
                        link.send(DATA, stream.read(CHUNK))

        self._steadily(f"copying {what}", step, lambda: have)

    def _steadily(self, what: str, step: Callable[[Link], T], progress: Callable[[], int] = lambda: 0) -> T:
        """Do something over the link; where that is lost, connect again and do it again.

        Args:
            progress: grows while tries get something done; only those that do not are counted.
        """
        failures, before = 0, progress()
        while True:
            try:
                if self._link is None:
                    self._connect()
                assert self._link is not None
                return step(self._link)
            except LinkLost as error:
                if not self.facts:
                    raise  # there never was one
                self._drop()
                if progress() > before:
                    failures, before = 0, progress()
                if failures == len(self._pauses_s):
                    raise RemoteError(
                        f"{error}, while {what}, {failures + 1} times: run the same command again when it is stable, "
                        "it goes on from what is there"
                    ) from error
                pause_s = self._pauses_s[failures]
                failures += 1
                self._on_message(
                    f"{error}, while {what}: trying again in {pause_s:g} s ({failures} of {len(self._pauses_s)})"
                )
                self._stop.wait(pause_s)

    def _connect(self) -> None:
        link = Link(self.host, deadline=self._deadline, stop=self._stop)
        try:
            self._look(link)
        except BaseException:
            link.close()
            raise
        self._link = link

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()


class _Lines:
    """Bytes as they come, passed on line by line; a line that does not end is passed on in pieces."""

    def __init__(self, on_message: OnMessage, count: Take) -> None:
        self.said: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        self._on_message = on_message
        self._count = count
        self._waiting = b""

    def add(self, content: bytes) -> None:
        self._count(content)
        *whole, self._waiting = (self._waiting + content).split(b"\n")
        if len(self._waiting) > MOST_LINE:
            whole, self._waiting = [*whole, self._waiting], b""
        for line in whole:
            self.said.append(shown(line.decode(errors="replace")))
            with contextlib.suppress(BrokenPipeError):
                self._on_message(self.said[-1])

    def end(self) -> None:
        if self._waiting:
            self.add(b"\n")
