"""Clean and noisy recordings to judge a graph by."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgese.audio import read_wave
from edgese.enhance import SAMPLE
from edgese.errors import VerificationError
from edgese.evaluate import pair_files

N_FILES = 10


@dataclasses.dataclass(frozen=True)
class Recording:
    """One clean/noisy pair at the network's rate."""

    name: str
    clean: NDArray[np.float32]
    noisy: NDArray[np.float32]
    sha256: str  # of the noisy file


def recordings(data: Path | None, n_files: int = N_FILES, rate_hz: int = 16_000) -> list[Recording]:
    """Pairs to verify with: the shipped sample, or so many of `data`/clean and `data`/noisy, evenly spread by name.

    Raises:
        AudioError: no pairs there, or files that cannot be read.
        VerificationError: clean and noisy differ in length.
    """
    pairs = {SAMPLE.stem: (SAMPLE.with_name("clean.flac"), SAMPLE)} if data is None else pair_files(data)
    names = sorted(pairs)
    chosen = [names[at * len(names) // n_files] for at in range(n_files)] if len(names) > n_files else names
    found = []
    for name in chosen:
        clean, noisy = (read_wave(path, rate_hz) for path in pairs[name])
        if len(clean) != len(noisy):
            raise VerificationError(f"{name}: found {len(noisy)} noisy and {len(clean)} clean samples, wanted as many")
        found.append(Recording(name, clean, noisy, hashlib.sha256(pairs[name][1].read_bytes()).hexdigest()))
    return found
