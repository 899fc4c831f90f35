"""What takes seconds to make and comes out the same each time, such as a tiny bundle: made once, by whoever is first.

It is kept in .pytest_cache, under a digest of all that it may depend on: our sources, the tests' helpers, Python and
the installed packages. Each process works on a copy, so that a test which changes its own harms no later run.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[3]
_CACHE = _ROOT / ".pytest_cache" / "made"
_KEPT_S = 7 * 86_400  # so long, what other sources made is kept: it is wanted again where branches are changed


def made_once(name: str, make: Callable[[Path], object], folders: pytest.TempPathFactory) -> Path:
    """A folder of the caller's own with what `make(folder)` writes into an empty one; `name` tells it from others."""
    place = _CACHE / _digest()
    place.mkdir(parents=True, exist_ok=True)
    with (place / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / name).is_dir():
            making = Path(tempfile.mkdtemp(dir=place))
            try:
                make(making)
                making.rename(place / name)
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
                raise
    return Path(shutil.copytree(place / name, folders.mktemp(name) / name))


@functools.cache
def _digest() -> str:
    """Of sources, helpers and tools; what is older and of others goes, as it is made but once in a process."""
    files = [path for folder in ("edgese", "export", "calib", "runtimes") for path in (_ROOT / folder).rglob("*.py")]
    files += [*(_ROOT / "tests").glob("conftest.py"), *Path(__file__).parent.glob("*.py")]
    whole = hashlib.sha256(f"{sys.version} {platform.platform()}".encode())
    for line in sorted(f"{found.name} {found.version}" for found in importlib.metadata.distributions()):
        whole.update(f"{line}\n".encode())
    for path in sorted(files):
        whole.update(f"{path.relative_to(_ROOT)}\n".encode() + path.read_bytes())
    found = whole.hexdigest()[:20]
    with contextlib.suppress(OSError):
        (_CACHE / found).mkdir(parents=True, exist_ok=True)
        os.utime(_CACHE / found)
        for other in _CACHE.iterdir():
            if time.time() - other.stat().st_mtime > _KEPT_S:
                shutil.rmtree(other, ignore_errors=True)
    return found
