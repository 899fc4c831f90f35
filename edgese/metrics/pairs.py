"""Pairs of clean and noisy recordings of one name: finding them in a folder, reading them for a verification."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgese.audio.formats import READABLE
from edgese.audio.reader import read_wave
from edgese.errors import AudioError, VerificationError
from edgese.samples import CLEAN, NOISY

logger = logging.getLogger(__name__)

N_FILES = 10
_MOST_NAMED = 100  # files in a message


@dataclasses.dataclass(frozen=True)
class Recording:
    """One clean/noisy pair at the network's rate."""

    name: str
    clean: NDArray[np.float32]
    noisy: NDArray[np.float32]
    sha256: str  # of the noisy file


def read_recordings(data: Path | None, n_files: int = N_FILES, rate_hz: int = 16_000) -> list[Recording]:
    """Pairs to verify with: the shipped sample, or `n_files` of `data`/clean and `data`/noisy, evenly spread by name.

    Raises:
        AudioError: no pairs there, or files that cannot be read.
        VerificationError: clean and noisy differ in length.
    """
    pairs = {NOISY.stem: (CLEAN, NOISY)} if data is None else pair_files(data)
    names = sorted(pairs)
    chosen = [names[at * len(names) // n_files] for at in range(n_files)] if len(names) > n_files else names
    found = []
    for name in chosen:
        clean, noisy = (read_wave(path, rate_hz) for path in pairs[name])
        if len(clean) != len(noisy):
            raise VerificationError(f"{name}: found {len(noisy)} noisy and {len(clean)} clean samples, wanted as many")
        found.append(Recording(name, clean, noisy, hashlib.sha256(pairs[name][1].read_bytes()).hexdigest()))
    return found


def pair_files(data: Path) -> dict[str, tuple[Path, Path]]:
    """Clean and noisy file by name, of the names that both `data`/clean and `data`/noisy hold.

    Raises:
        AudioError: no pairs there, or two files of one name.
    """
    clean, noisy = (files_by_stem(data / kind) for kind in ("clean", "noisy"))
    names = sorted(clean.keys() & noisy.keys())
    if not names:
        raise AudioError(f"{data}: found no pairs, wanted files of the same names in clean/ and noisy/")
    alone = [str((clean.get(name) or noisy[name]).relative_to(data)) for name in sorted(clean.keys() ^ noisy.keys())]
    if alone:
        more = f" and {len(alone) - _MOST_NAMED} more" if len(alone) > _MOST_NAMED else ""
        what = "1 file is" if len(alone) == 1 else f"{len(alone)} files are"
        logger.warning(
            "%s: %s left out, in clean/ or noisy/ only: %s%s", data, what, ", ".join(alone[:_MOST_NAMED]), more
        )
    return {name: (clean[name], noisy[name]) for name in names}


def files_by_stem(folder: Path) -> dict[str, Path]:
    """Audio files of a folder by their names without suffixes.

    Raises:
        AudioError: no such folder, or two files of one name.
    """
    if not folder.is_dir():
        raise AudioError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in READABLE:
            other = files.setdefault(path.stem, path)
            if other is not path:
                raise AudioError(f"{folder}: found both {other.name} and {path.name}, wanted one file of a name")
    return files
