"""TensorRT's Python package as all its versions offer it: the one that is installed here, its name, its log.

tensorrt (JetPack brings it) and tensorrt_rtx (TensorRT for RTX, from the package index) differ by a few names only;
what exists is asked of the package, never concluded from its version. The standard library is all that this needs.
"""

from __future__ import annotations

import collections
import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from runtimes.errors import RuntimeUnavailable

LIBRARIES = ("tensorrt", "tensorrt_rtx")  # the first one that can be imported is taken
LEAST_VERSION = (10, 3)  # of tensorrt: JetPack 6; before 10, networks were not strongly typed

_MENDS = {
    "tensorrt": "JetPack brings it, in Python 3.10 of the system: apt install python3-libnvinfer",
    "tensorrt_rtx": f"{sys.executable} -m pip install tensorrt_rtx",
}
_MOST_LINES = 1000  # of a log: a process may run for months
_LINES_SHOWN = 8  # of the log's last, on failure
_ABOUT_LOGGERS = "The logger passed into"  # where something else in the process gave TensorRT a logger before


def tensorrt_library(name: str | None = None) -> ModuleType:
    """TensorRT's Python package: `name`, or tensorrt, else tensorrt_rtx.

    Raises:
        RuntimeUnavailable: not installed, not loadable, or too old; the message says how to get it.
    """
    if name not in (None, *LIBRARIES):
        raise RuntimeUnavailable(f"{name}: not a TensorRT, wanted one of {', '.join(LIBRARIES)}")
    candidates = [name] if name else LIBRARIES
    failures = []
    for candidate in candidates:
        try:
            library = importlib.import_module(candidate)
        except (ImportError, OSError) as error:  # OSError: one of its shared libraries
            failures.append(f"{candidate} cannot be loaded ({error})")
            continue
        if candidate == "tensorrt" and _version(library) < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            raise RuntimeUnavailable(
                f"tensorrt: found {library.__version__}, wanted {least} or later; JetPack 6.1 brings it"
            )
        return library
    mends = "; without a board: ".join(_MENDS[candidate] for candidate in candidates)
    raise RuntimeUnavailable(f"{'; '.join(failures)}: {mends}")


def library_name(library: ModuleType) -> str:
    """The package's name and version: "tensorrt 10.3.0"."""
    return f"{library.__name__} {library.__version__}"


def _version(library: ModuleType) -> tuple[int, ...]:
    return tuple(int(part) for part in str(library.__version__).split(".")[:2])


class TensorRtLog:
    """The warnings and errors of a package, its last thousand, each in one line.

    `logger` is the ILogger that TensorRT's objects are made with; `n_lines` counts all lines that ever came.
    """

    def __init__(self, library: ModuleType) -> None:
        self.n_lines = 0
        self._lines: collections.deque[str] = collections.deque(maxlen=_MOST_LINES)
        add, most = self._add, int(library.ILogger.Severity.WARNING)

        class Logger(library.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                library.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if int(severity) <= most and _ABOUT_LOGGERS not in msg:
                    add(" ".join(msg.split()))

        self.logger: Any = Logger()

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self.n_lines += 1

    def since(self, n_lines: int) -> list[str]:
        """The lines that came after the first `n_lines`; of those, the last thousand."""
        lines = list(self._lines)
        return lines[max(0, len(lines) - (self.n_lines - n_lines)) :]


# TensorRT keeps the first logger that it is given, by its bare address, for as long as it has any object. So there is
# one for each package, for builders and runtimes alike, for as long as the process lives.
_LOGS: dict[ModuleType, TensorRtLog] = {}


def tensorrt_log(library: ModuleType) -> TensorRtLog:
    """The process's one log of a package; it collects from the first call on."""
    if library not in _LOGS:
        _LOGS[library] = TensorRtLog(library)
    return _LOGS[library]


def shown_lines(lines: Iterable[str]) -> str:
    """The last eight lines of a log as an error's message ends with them, each on a line of its own."""
    return "".join(f"\n  log: {line}" for line in collections.deque(lines, maxlen=_LINES_SHOWN))
