"""A Python that has its libraries imported already, and forks for each command: what a fresh one does, seconds sooner.

One server a test process, started by the first command. It imports other people's libraries and nothing of ours, starts
no thread and computes nothing. A command then runs in a fork of it, with the working folder, the arguments, the
environment and the three streams of its own, and ends as any interpreter does: its exit code or signal, what is left to
be written. Not the same as in a fresh interpreter are what the libraries read from the environment as they are imported
(`COLD` names it; commands that change it are refused), `sys.modules`, and /proc/self/cmdline: tests of light imports,
of start-up and of processes start their own.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Imported if installed. What starts a thread as it is imported, or changes sys.path, is refused by `serve`.
LIBRARIES = (
    *("numpy", "soundfile", "soxr", "typer", "rich.console", "rich.table", "scipy.signal", "scipy.stats"),
    *("onnxruntime", "onnx", "onnxscript", "safetensors.torch", "torch", "torch._dynamo"),
    *("torch.onnx", "torch.export", "torch.utils.flop_counter", "pesq", "pystoi", "jinja2"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg"),
    *("typer._adapters", "typer.rich_utils", "rich.markdown"),  # typer's own, at the first option and the first help
)
COLD = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH", "PYTORCH", "MPL", "LANG", "LC_", "MALLOC_")
_THREADLESS = {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}  # else NumPy and ONNX Runtime start threads
_STUB = """\
import sys
sys.path.insert(0, {folder!r})
import warm_python
del sys.path[0]
program = warm_python.serve({link}, {libraries!r})
if program:
    try:
        exec(program)
    except SystemExit as end:
        sys.exit(warm_python.finish(end.code))
    warm_python.finish(None)
"""  # __main__ has no file, as with -c: processes that a command spawns would run it


class WarmPython:
    """The server, as tests see it."""

    def __init__(self, python_path: str, libraries: Sequence[str] = LIBRARIES) -> None:
        self._environment = os.environ | {"PYTHONPATH": python_path}
        self._link, theirs = socket.socketpair()
        self._lock = threading.Lock()
        stub = _STUB.format(folder=str(Path(__file__).parent), link=theirs.fileno(), libraries=tuple(libraries))
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-c", stub],
                env=self._environment | _THREADLESS,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        atexit.register(self.close)
        self._answers = self._link.makefile("r")
        if self._answers.readline() != "ready\n":
            raise RuntimeError("the server of warm processes did not start; its reason is on stderr")

    def close(self) -> None:
        """End the server; it takes no time."""
        self._answers.close()
        self._link.close()
        self._server.wait()

    def takes(self, arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a fork of the server does with this command what a fresh interpreter does."""
        changed = {name for name, _ in self._environment.items() ^ environment.items()}
        return arguments[0] in ("-c", "-m") and not any(name.startswith(COLD) for name in changed)

    def run(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], stdin: bytes, timeout_s: float
    ) -> subprocess.CompletedProcess[bytes]:
        """`subprocess.run` with pipes, of this interpreter with `arguments`.

        Raises:
            subprocess.TimeoutExpired: it ran longer, and was killed.
        """
        request = {"arguments": list(arguments), "cwd": str(cwd), "environment": dict(environment)}
        content = json.dumps(request).encode()
        command = [sys.executable, *arguments]
        with self._lock, contextlib.ExitStack() as ends:
            pipes = [os.pipe() for _ in range(3)]
            theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
            ours = [ends.enter_context(open(end, mode)) for end, mode in zip(  # noqa: PTH123
                (pipes[0][1], pipes[1][0], pipes[2][0]), ("wb", "rb", "rb"), strict=True
            )]  # fmt: skip
            socket.send_fds(self._link, [len(content).to_bytes(8, "little")], theirs)
            for end in theirs:
                os.close(end)
            self._link.sendall(content)
            child = int(self._answers.readline())
            written: list[bytes] = [b"", b""]

            def read(index: int) -> None:
                written[index] = ours[index + 1].read()

            def write() -> None:
                with contextlib.suppress(BrokenPipeError):  # it read no further
                    ours[0].write(stdin)
                with contextlib.suppress(BrokenPipeError):
                    ours[0].close()

            carriers = [threading.Thread(target=write)]
            carriers += [threading.Thread(target=read, args=(index,)) for index in range(2)]
            late = threading.Event()

            def kill() -> None:
                late.set()
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

            clock = threading.Timer(timeout_s, kill)
            for thread in (*carriers, clock):
                thread.start()
            try:
                code = int(self._answers.readline())
            except BaseException:
                kill()
                raise
            finally:
                clock.cancel()
                for thread in (*carriers, clock):
                    thread.join()
            if late.is_set():
                raise subprocess.TimeoutExpired(command, timeout_s, *written)
            return subprocess.CompletedProcess(command, code, *written)


def serve(link_number: int, libraries: Sequence[str]) -> str | None:
    """The program that this process has to run, being a fork of the server; None to the server itself, at its end."""
    link = socket.socket(fileno=link_number)
    places = [*sys.path]
    for name in libraries:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    n_threads = len(list(Path("/proc/self/task").iterdir()))
    if n_threads != 1:
        raise RuntimeError(f"found {n_threads} threads, wanted one: a fork has the locks of the others, and not them")
    if sys.path != places:
        raise RuntimeError(f"found sys.path changed by a library: {sys.path}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends when its link does
    gc.collect()
    gc.freeze()  # else a fork's first collection copies all of this
    link.sendall(b"ready\n")
    while True:
        header, streams, _, _ = socket.recv_fds(link, 8, 3)
        if not header:
            return None
        content = bytearray()
        while len(content) < int.from_bytes(header, "little"):
            content += link.recv(1 << 16)
        child = os.fork()
        if child == 0:
            link.close()
            return _become(json.loads(content), streams)
        for stream in streams:
            os.close(stream)
        link.sendall(b"%d\n" % child)
        link.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(request: Mapping[str, Any], streams: Sequence[int]) -> str:
    """Makes this fork the interpreter that was asked for; its program, for `__main__` to run."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    option, what, *arguments = request["arguments"]
    sys.orig_argv[1:] = request["arguments"]
    sys.argv[:] = [option, *arguments]
    sys.path[0] = str(Path.cwd()) if option == "-m" else ""
    sys.path_importer_cache.clear()
    return f"import runpy; runpy._run_module_as_main({what!r})" if option == "-m" else str(what)


def finish(code: object) -> int | None:
    """Ends this process as the interpreter does, but for taking thousands of modules apart: half a second.

    Returns the exit code if what was printed can't be written: the interpreter has its own way to say so.
    """
    if not isinstance(code, (int, type(None))):
        print(code, file=sys.stderr)  # noqa: T201
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return code
    os._exit((code or 0) & 0xFF)
