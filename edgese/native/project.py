"""The C project that `edgese export --c` writes: sources, weights, example, self-test, and what builds them."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np

from edgese.audio import Wave
from edgese.errors import OutputError
from edgese.native.weights import SUFFIX

WEIGHTS = f"model{SUFFIX}"  # as the programs look for it
SELF_TEST = "selftest.bin"

_FOLDER = Path(__file__).parent
_SOURCES = ("edgese.h", "edgese.c", "edgese_live.h", "edgese_live.c")
_OWN = ("edgese.h", WEIGHTS)  # a folder that holds these is such a project


def write_project(
    folder: Path, weights: bytes, wave: Wave, enhanced: Wave, least_snr_db: float, *, replace: bool = False
) -> None:
    """Write the project.

    Args:
        weights: content of the weights file.
        wave, enhanced: (n_samples,) float32, a whole number of hops: a sound and PyTorch's output for it.
        least_snr_db: by which the self-test passes.
        replace: an older project may be replaced.

    Raises:
        OutputError: the folder is taken, or cannot be written.
    """
    if folder.exists() and not (replace and all((folder / name).is_file() for name in _OWN)):
        mend = "choose another place" if replace else "choose another place, or replace an older project (--force)"
        raise OutputError(f"{folder}: exists already{' and is no C project' if replace else ''}; {mend}")
    staging = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, content in project_files(weights, wave, enhanced, least_snr_db).items():
            (staging / name).write_bytes(content)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another place") from error


def project_files(weights: bytes, wave: Wave, enhanced: Wave, least_snr_db: float) -> dict[str, bytes]:
    """Files of the project by name; see `write_project`."""
    vectors = np.concatenate([wave, enhanced]).astype("<f4").tobytes()
    sources = [*(_FOLDER / name for name in _SOURCES), *(_FOLDER / "project").iterdir()]
    return {source.name: source.read_bytes() for source in sources} | {
        WEIGHTS: weights,
        SELF_TEST: struct.pack("<If", len(wave), least_snr_db) + vectors,
    }
