"""The C library, compiled where it is first needed and kept in this user's cache."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from runtimes.base import RuntimeUnavailable

SOURCES = ("edgese.c", "edgese.h")
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared")
COMPILERS = ("cc", "gcc", "clang")

_FOLDER = Path(__file__).parent
_ONE_MINUTE = 60  # it takes 10 s on a slow core


def library(folder: Path | None = None) -> Path:
    """Path of the library, compiled unless these sources were, with this compiler and these flags.

    Args:
        folder: where it is kept; the user's cache where it is None.

    Raises:
        RuntimeUnavailable: no C compiler, or it fails.
    """
    command = compiler()
    digest = hashlib.sha256("\0".join((*command, *FLAGS, _version(command), platform.machine())).encode())
    for name in SOURCES:
        digest.update((_FOLDER / name).read_bytes())
    kept = (folder or _cache()) / f"edgese-{digest.hexdigest()[:16]}.so"
    if not kept.is_file():
        _compile(command, kept)
    return kept


def compiler() -> list[str]:
    """Command of the C compiler: the environment's CC, or the first one of `COMPILERS` that is installed.

    Raises:
        RuntimeUnavailable: there is none.
    """
    command = shlex.split(os.environ.get("CC", ""))
    candidates = [command] if command else [[name] for name in COMPILERS]
    for candidate in candidates:
        if shutil.which(candidate[0]):
            return candidate
    looked_for = ", ".join(candidate[0] for candidate in candidates)
    mend = "xcode-select --install" if sys.platform == "darwin" else "apt-get install gcc"
    raise RuntimeUnavailable(
        f"native: found no C compiler ({looked_for}), wanted one to build the library: {mend}, or another --runtime"
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgese" / "native"


def _version(command: list[str]) -> str:
    return subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout


def _compile(command: list[str], target: Path) -> None:
    """Compile beside the target and rename it; of processes that want it at once, one compiles and the others wait."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(target.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            if target.is_file():
                return
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".edgese-", dir=target.parent))
            made = Path(folder) / target.name
            subprocess.run(
                [*command, *FLAGS, str(_FOLDER / "edgese.c"), "-o", str(made), "-lm"],
                capture_output=True,
                text=True,
                check=True,
                timeout=10 * _ONE_MINUTE,
            )
            made.replace(target)
    except OSError as error:
        raise RuntimeUnavailable(f"native: {target}: cannot be written ({error.strerror})") from error
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr.strip()[:200])
        raise RuntimeUnavailable(f"native: {shlex.join(command)} failed ({said}); name another in CC") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(f"native: {shlex.join(command)} did not end in ten minutes") from error
