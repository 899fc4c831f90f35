"""A board that is this machine: an OpenSSH server on loopback, started by the tests, whose logins have a home, a PATH
and a python3 of the test's own; and a wire to it that can be cut.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

SSHD = next((path for path in ("/usr/sbin/sshd", shutil.which("sshd") or "") if path and Path(path).exists()), None)
LACKING = next(
    (f"{what} is not installed: apt-get install openssh-server" for what, there in
     (("sshd", SSHD), ("ssh", shutil.which("ssh")), ("ssh-keygen", shutil.which("ssh-keygen"))) if not there),
    "",
)  # fmt: skip

_LOGIN = """\
#!/bin/sh
cd {home} || exit 1
{before}
exec env -i HOME={home} PATH={path} PYTHONPATH={site} {wrap} /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


@dataclasses.dataclass
class SshBoard:
    """What logs in to it is given by `log_in`; before, there is nothing to log in to."""

    folder: Path  # with its keys, ssh's config and the script that a login runs
    port: int
    home: Path = Path("nowhere")

    @property
    def ssh(self) -> str:
        """For EDGESE_SSH."""
        return f"ssh -F {shlex.quote(str(self.folder / 'config'))}"

    @property
    def kept(self) -> Path:
        """Where edgese keeps its things there."""
        return self.home / ".cache/edgese"

    def log_in(
        self,
        home: Path,
        *,
        python: Sequence[object] = (sys.executable,),
        site: str = "",
        before: str = "",
        wrap: str = "",
    ) -> None:
        """From now on, logins have this home.

        Args:
            python: the command line that python3 stands for; none: there is no python3.
            site: Python to run at each start of that python3.
            before: shell lines ahead of the command.
            wrap: a command line that the command is given to.
        """
        self.home = home
        programs = self.folder / "bin"
        shutil.rmtree(programs, ignore_errors=True)
        programs.mkdir()
        if python:
            put_script(programs / "python3", f'#!/bin/sh\nexec {shlex.join(map(str, python))} "$@"\n')
        customs = self.folder / "site"
        customs.mkdir(exist_ok=True)
        (customs / "sitecustomize.py").write_text(site)
        path = f"{programs}:/usr/bin:/bin" if python else "/nowhere"
        put_script(
            self.folder / "login",
            _LOGIN.format(home=shlex.quote(str(home)), path=path, site=customs, before=before, wrap=wrap),
        )

    def write_config(self, *, port: int | None = None, key: str = "user", known: str = "known") -> None:
        """What ssh knows of the host `board`."""
        (self.folder / "config").write_text(
            f"Host board\n HostName 127.0.0.1\n Port {port or self.port}\n User {getpass.getuser()}\n"
            f" HostKeyAlias board\n IdentityFile {self.folder / key}\n IdentitiesOnly yes\n IdentityAgent none\n"
            f" UserKnownHostsFile {self.folder / known}\n GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n"
        )

    def processes(self, word: str = "") -> list[int]:
        """Processes there, by their working folder; with `word`, those with it among their arguments."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                inside = Path(str((process / "cwd").readlink()).removesuffix(" (deleted)")).is_relative_to(self.home)
                if inside and word.encode() in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found


@contextlib.contextmanager
def ssh_board(folder: Path) -> Iterator[SshBoard]:
    """A server with its own keys, that lets one user key in."""
    for name in ("host", "other_host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    for known, key in (("known", "host"), ("changed", "other_host")):
        (folder / known).write_text("board " + " ".join((folder / f"{key}.pub").read_text().split()[:2]) + "\n")
    shutil.copyfile(folder / "user.pub", folder / "authorized")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    board = SshBoard(folder, free_port())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{board.port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        f"ForceCommand {folder / 'login'}\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 100\n"
    )
    board.write_config()
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        wait_until(lambda: server.poll() is not None or b"listening" in (folder / "sshd.log").read_bytes())
        assert server.poll() is None, (folder / "sshd.log").read_text()
        yield board
    finally:
        server.terminate()
        server.wait()


class Wire:
    """A TCP connection's way to the board, in this process; it can be cut. A context manager.

    Args:
        limit: bytes towards the board after which the first connection is cut; None: none is.
        again: whether connections after a cut one are let through.
    """

    def __init__(self, port: int, limit: int | None = None, again: bool = True) -> None:
        self.sent: list[int] = []  # bytes towards the board, one number each connection
        self._target, self._limit, self._again = port, limit, again
        self._cut = threading.Event()
        self._end = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()
        self._listener.close()

    def cut(self) -> None:
        """Cut the connection that there is."""
        self._cut.set()

    def _serve(self) -> None:
        was_cut = False
        while not self._end.is_set():
            if not select.select([self._listener], [], [], 0.05)[0]:
                continue
            near, _ = self._listener.accept()
            with near:
                if was_cut and not self._again:
                    continue
                with socket.create_connection(("127.0.0.1", self._target)) as far:
                    self.sent.append(0)
                    self._cut.clear()
                    was_cut = self._carry(near, far, None if was_cut else self._limit) or was_cut

    def _carry(self, near: socket.socket, far: socket.socket, limit: int | None) -> bool:
        """Whether it was cut."""
        while not self._end.is_set():
            if self._cut.is_set() or (limit is not None and self.sent[-1] >= limit):
                return True
            for source in select.select([near, far], [], [], 0.05)[0]:
                try:
                    content = source.recv(1 << 14)
                    (far if source is near else near).sendall(content)
                except OSError:
                    return False
                if not content:
                    return False
                if source is near:
                    self.sent[-1] += len(content)
        return False


def put_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(there: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that must happen."""
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[str]:
    """A file system of its own in a folder; gives the reason where that is not possible."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which("mount") else None
    try:
        yield "" if done is not None and done.returncode == 0 else "a small disk cannot be mounted here"
    finally:
        if done is not None and done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def interrupt(process: subprocess.Popen[bytes], number: int = signal.SIGINT) -> None:
    os.kill(process.pid, number)
