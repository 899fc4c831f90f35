"""Link to a board: one ssh connection with an agent at its other end that answers requests (agent.py).

The system's own ssh is used: the user's keys, agent, config and known hosts count, nothing is asked. `EDGESE_SSH` names
another command line for it, as git's GIT_SSH_COMMAND does: EDGESE_SSH="ssh -F other_config -p 2222".
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import shlex
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgese.atomic_file import shown
from edgese.board.agent import ANSWER, BEAT, DATA, ERR, HELLO, OUT, QUIET_S, REQUEST, FrameError, Frames, packed
from edgese.board.answers import MOST_LINE, parse_answer
from edgese.errors import EdgeseError
from export.schema import SchemaError

if TYPE_CHECKING:
    from typing_extensions import Self

LEAST_PYTHON = (3, 10)
CONNECT_S = 10
HELLO_S = 45  # until the agent speaks: a slow board's login, and its Python
CHUNK = 1 << 16

_OPTIONS = (
    *("-T", "-a", "-x", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "LogLevel=ERROR"),
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", "ClearAllForwardings=yes"),
    *("-o", "RemoteCommand=none"),
)
_BEAT_S = QUIET_S / 12
_NOISE_BYTES = 1 << 16  # that a login may print before the agent speaks

# Without quotes, dollars and backslashes: it passes through whatever shell the board's user has. The agent's text
# comes as one line, read byte by byte, so that what follows is still there for the agent.
_BOOT = (
    f"import sys;print('{HELLO}',*sys.version_info[:2],flush=True);"
    f"sys.version_info[:2]>={LEAST_PYTHON}or sys.exit(0);import base64,zlib;"
    "exec(compile(zlib.decompress(base64.b64decode(open(0,'rb',0,closefd=False).readline())),'agent','exec'))"
)

OnMessage = Callable[[str], None]
Take = Callable[[bytes], object]


def _ignore(content: bytes) -> None:
    """Drop content that nobody waits for."""


class RemoteError(EdgeseError):
    """Error where a board cannot be reached, or where something cannot be done on it."""


class LinkLost(RemoteError):  # noqa: N818 - it may come back
    """Error where the link is down, or cannot be made at the moment: trying again may help."""


class RemoteStopped(RemoteError):  # noqa: N818 - nothing went wrong
    """Error where the user asked to stop."""


class Link:
    """Connection to an agent on a board, ready for requests. A context manager.

    Args:
        host: as ssh takes it: user@board, a name of the user's config, ssh://user@board:port.
        deadline: moment of `time.monotonic` beyond which nothing is waited for.
        stop: set when the user asks to stop.

    Raises:
        LinkLost: it does not answer, or not now.
        RemoteError: no ssh here; an unknown name, host key or user key; no Python there, or one too old.
    """

    def __init__(self, host: str, *, deadline: float = float("inf"), stop: threading.Event | None = None) -> None:
        self.host = host
        self.deadline = deadline
        self.stop = stop or threading.Event()
        self._frames = Frames()
        self._said: list[str] = []  # by ssh, or by the shell there, on stderr
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._requests = 0
        command = _ssh_command()
        try:
            self._ssh = subprocess.Popen(
                [*command, *_OPTIONS, "--", host, f'python3 -c "{_BOOT}"'],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for this process, which then tidies up through ssh
            )
        except OSError as error:
            raise RemoteError(
                f"{command[0]}: cannot be started ({error.strerror}): install OpenSSH's client "
                "(apt install openssh-client), or name another with EDGESE_SSH"
            ) from error
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        self._threads.append(threading.Thread(target=self._beat, daemon=True))
        self._threads[1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self, patience_s: float = 6.0) -> None:
        """End the link; the agent ends with it and whatever it runs. Closing twice is harmless."""
        self._closed.set()
        assert self._ssh.stdin is not None
        assert self._ssh.stdout is not None
        assert self._ssh.stderr is not None
        with self._writing, contextlib.suppress(OSError):
            self._ssh.stdin.close()
        try:
            self._ssh.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._ssh.kill()
            self._ssh.wait()
        for thread in self._threads:
            thread.join()
        self._ssh.stdout.close()
        self._ssh.stderr.close()

    def request(
        self,
        do: str,
        *,
        on_out: Take = _ignore,
        on_err: Take = _ignore,
        on_data: Take = _ignore,
        **details: Any,
    ) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            RemoteError: it was refused; or the time is up, or the user asked to stop.
            LinkLost: the link is down.
        """
        takers = {OUT: on_out, ERR: on_err, DATA: on_data}
        number = self.ask(do, **details)
        while True:
            kind, content = self.receive()
            if kind == ANSWER:
                answer = self.answer(content, do, number)
                if answer is not None:
                    return answer
            elif kind in takers:
                takers[kind](content)

    def answer(self, content: bytes, do: str, number: int) -> dict[str, Any] | None:
        """Content of an answer to the request of this kind and number; None where it answers an older one.

        Raises:
            RemoteError: the request was refused there, or this is no answer to it.
        """
        try:
            answer = parse_answer(content, do, number)
        except SchemaError as error:
            raise self.unexpected(error) from error
        if answer is not None and "error" in answer:
            raise RemoteError(f"{self.host}: {answer['error']}")
        return answer

    def unexpected(self, error: Exception) -> RemoteError:
        """Error where a board does not answer as edgese's agent does; the link is ended, nothing more is asked."""
        self.close(0)
        return RemoteError(
            f"{self.host}: does not answer as edgese's agent does: {error}: does its login print into the link, "
            "or is it another machine than you mean?"
        )

    def ask(self, do: str, **details: Any) -> int:
        """Send a request; returns its number, which the answer bears."""
        self._requests += 1
        self.send(REQUEST, json.dumps({"do": do, "id": self._requests, **details}).encode())
        return self._requests

    def send(self, kind: bytes, content: bytes = b"") -> None:
        """Send one frame."""
        assert self._ssh.stdin is not None
        try:
            with self._writing:
                self._ssh.stdin.write(packed(kind, content))
                self._ssh.stdin.flush()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            raise self._lost() from error

    def receive(self, wait: bool = True) -> tuple[bytes, bytes]:
        """Kind and content of the next frame; without `wait`, (b"", b"") if there is none yet."""
        while (frame := self._next_frame()) is None:
            content = self._read(0.2 if wait else 0.0)
            if content == b"":
                raise self._lost()
            if content is None and not wait:
                return b"", b""
            self._frames.add(content or b"")
        return frame

    def _next_frame(self) -> tuple[bytes, bytes] | None:
        try:
            return self._frames.take()
        except FrameError as error:
            raise self.unexpected(error) from error

    def _read(self, seconds: float) -> bytes | None:
        """Bytes that came within `seconds`; empty at the connection's end, None if none came.

        Raises:
            RemoteError: the time is up.
            RemoteStopped: the user asked to stop.
        """
        assert self._ssh.stdout is not None
        if self.stop.is_set():
            raise RemoteStopped(f"{self.host}: stopped")
        if time.monotonic() > self.deadline:
            raise RemoteError(f"{self.host}: not done in the time given, all was ended there: allow more (--timeout)")
        ready, _, _ = select.select([self._ssh.stdout], [], [], seconds)
        return os.read(self._ssh.stdout.fileno(), CHUNK) if ready else None

    def _greet(self) -> None:
        """Wait for the agent's first line, past what a login prints, and send it its text."""
        came, until = b"", time.monotonic() + HELLO_S
        pattern = re.compile(rb"^%s (\d{1,3}) (\d{1,3})\r?\n" % HELLO.encode(), re.MULTILINE)
        while (found := pattern.search(came)) is None:
            content = self._read(0.2)
            if content == b"":
                raise self._refused()
            came += content or b""
            if time.monotonic() > until or len(came) > _NOISE_BYTES:
                self.close(0)
                raise LinkLost(f"{self.host}: nothing answers there after {HELLO_S} s of waiting: is it overloaded?")
        version = int(found[1]), int(found[2])
        if version < LEAST_PYTHON:
            raise RemoteError(
                f"{self.host}: found Python {version[0]}.{version[1]} as python3 there, wanted 3.10 or later: "
                "JetPack 6 brings it; on an older system, install one and put it first in PATH"
            )
        text = zlib.compress((Path(__file__).parent / "agent.py").read_bytes(), 9)
        assert self._ssh.stdin is not None
        try:
            self._ssh.stdin.write(base64.b64encode(text) + b"\n")
            self._ssh.stdin.flush()
        except OSError as error:
            raise self._lost() from error
        self._frames.add(came[found.end() :])

    def _listen(self) -> None:
        assert self._ssh.stderr is not None
        while line := self._ssh.stderr.readline(MOST_LINE):
            self._said = [*self._said[-30:], line.decode(errors="replace").strip()]

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_S):
            with contextlib.suppress(LinkLost):  # whoever waits for an answer will notice
                self.send(BEAT)

    def _lost(self) -> LinkLost:
        """Error where the link has ended while it was in use, with ssh's last line."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh.wait(1)
        self._threads[0].join(1)
        said = next((line for line in reversed(self._said) if line), "the connection was closed")
        return LinkLost(f"{self.host}: the link was lost ({shown(said)})")

    def _refused(self) -> RemoteError:
        """Error where no agent has answered, from what ssh or the shell there has said."""
        code = self._ssh.wait()
        self._threads[0].join()
        return explain(self.host, code, self._said)


def _ssh_command() -> list[str]:
    """Command line that stands for ssh: the one that EDGESE_SSH names, or ssh itself.

    Raises:
        RemoteError: it is no command line.
    """
    named = os.environ.get("EDGESE_SSH", "")
    try:
        return shlex.split(named) or ["ssh"]
    except ValueError as error:
        raise RemoteError(
            f"EDGESE_SSH: found {named!r}, which is no command line ({error}), wanted one such as 'ssh -p 2222'"
        ) from error


def explain(host: str, code: int, said: list[str]) -> RemoteError:
    """Error with one line and its mend where ssh ended before the agent answered.

    Args:
        code: its exit code.
        said: its lines on stderr; OpenSSH's messages are known (clientloop.c, sshconnect.c, sshconnect2.c).
    """
    text = "\n".join(said)
    last = next((shown(line) for line in reversed(said) if line), f"exit code {code}")
    for pattern, error, line in _KNOWN:
        if found := re.search(pattern, text):
            return error(f"{host}: " + line.format(host=host, forget=_forget(host, text), found=found))
    if code == 127 or (code != 255 and "python3" in text):
        return RemoteError(
            f"{host}: found no python3 there ({last}), wanted Python 3.10 or later: sudo apt install python3"
        )
    if code == 255:
        return LinkLost(f"{host}: ssh cannot connect ({last}): try ssh {host}")
    return RemoteError(f"{host}: python3 cannot be run there ({last}): try ssh {host} python3 -V")


_KNOWN: tuple[tuple[str, type[RemoteError], str], ...] = (
    (
        r"Could not resolve hostname [^:]*: (.*)",
        RemoteError,
        "the name cannot be found ({found[1]}): check it, use its address, or give it a Host entry in ~/.ssh/config",
    ),
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        RemoteError,
        "its host key is not the one known for it: another machine, or a board flashed anew; if you know that it is "
        "right: {forget}, then ssh {host} once",
    ),
    (
        "Host key verification failed",
        RemoteError,
        "its host key is not known here: ssh {host} once, compare the key, accept it",
    ),
    (
        r"Permission denied \(([^)]*)\)",
        RemoteError,
        "lets none of your keys in ({found[1]}): ssh-copy-id {host}; a key with a passphrase needs ssh-add first",
    ),
    (
        "Connection refused",
        LinkLost,
        "refuses connections on its ssh port: start its server (sudo systemctl start ssh), or check the port",
    ),
    (
        "Connection timed out|No route to host|Network is unreachable|Operation timed out",
        LinkLost,
        "does not answer ({found[0]}): is it on, and in this network?",
    ),
)


def _forget(host: str, text: str) -> str:
    """Shell command that removes a known host key: as Debian's ssh prints it, else from the host's name and port."""
    if found := re.search(r"ssh-keygen -f \S+ -R \S+", text):
        return found[0]
    name, _, port = host.removeprefix("ssh://").rpartition("@")[2].rstrip("/").partition(":")
    return f'ssh-keygen -R "[{name}]:{port}"' if port else f"ssh-keygen -R {name}"


def checked_host(host: str) -> str:
    """Return a host name that ssh cannot take for an option.

    Raises:
        ValueError: the name is empty, begins with a dash or holds white space.
    """
    if not host or host.startswith("-") or any(character.isspace() for character in host):
        raise ValueError(f"found {host!r}, wanted user@board, a name of your ssh config, or ssh://user@board:port")
    return host


def environment_host(environment: Mapping[str, str] = os.environ) -> str | None:
    """Name of the board in the environment variable EDGESE_JETSON; None if it is not set."""
    return environment.get("EDGESE_JETSON") or None
