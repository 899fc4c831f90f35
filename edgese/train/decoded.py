"""Cache of recordings, decoded once on all cores into a memory map from which any part is read at no cost."""

from __future__ import annotations

import collections
import copy
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.audio.reader import read_wave
from edgese.errors import AudioError, TrainingError
from edgese.machine.processes import n_cores
from export.staging import StagedFile, write_all, write_whole

Progress = Callable[[int, int], None]
_Decoded = tuple[NDArray[np.int16], bytes]


class DecodedRecordings:
    """Many recordings as one int16 memory map at the rate of the signal contract; empty where one cannot be used.

    A copy that is sent to another process opens the same map there.
    """

    broken: dict[int, str]  # why a recording cannot be read, or holds no sound, by its number; of a subset: of all
    digest: str  # SHA-256 over the files as they lie on the disk, whatever decodes them; of a subset: over all

    def __init__(
        self, files: Sequence[Path], sample_rate_hz: int, cache: Path, progress: Progress | None = None
    ) -> None:
        """Decode `files` unless the cache holds them already (same paths, sizes and times), whole.

        Raises:
            AudioError: none of the recordings can be used.
            TrainingError: a file is gone, or the cache cannot be written.
        """
        key = hashlib.sha256(json.dumps([sample_rate_hz, list(map(_identity, files))]).encode()).hexdigest()[:24]
        self.files, self.sample_rate_hz = list(files), sample_rate_hz
        self._samples_path, index_path = cache / f"{key}.i16", cache / f"{key}.json"
        index = _read_index(index_path, self._samples_path, len(files))
        if index is None:
            try:
                index = _decode(files, sample_rate_hz, self._samples_path, index_path, progress)
            except OSError as error:
                raise TrainingError(
                    f"{cache}: cannot be the cache ({error.strerror}); free space or choose another --cache"
                ) from error
        bounds = np.array(index["bounds"])
        self._starts, self.lengths, self.digest = bounds[:-1], np.diff(bounds), str(index["sha256"])
        self.broken = {int(number): str(reason) for number, reason in index["broken"].items()}
        self._open()

    def __len__(self) -> int:
        return len(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_samples"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def subset(self, indices: Sequence[int]) -> DecodedRecordings:
        """Recordings with these indices, of the same memory map."""
        part = copy.copy(self)
        part.files = [self.files[index] for index in indices]
        part._starts, part.lengths = self._starts[list(indices)], self.lengths[list(indices)]
        return part

    @property
    def n_samples(self) -> int:
        return int(self.lengths.sum())

    def length(self, index: int) -> int:
        """Number of samples of one recording."""
        return int(self.lengths[index])

    def read(self, index: int, start: int = 0, length: int | None = None) -> Wave:
        """Samples of one recording from `start` on, (n,) float32 in [-1, 1), n at most `length`."""
        first = int(self._starts[index])
        last = first + self.length(index)
        first += start
        if length is not None:
            last = min(last, first + length)
        return np.asarray(self._samples[first:last] / np.float32(32768), dtype=np.float32)

    def _open(self) -> None:
        self._samples = np.memmap(self._samples_path, dtype=np.int16, mode="r")


def _identity(file: Path) -> tuple[str, int, int]:
    """Path, size and time of a file: as long as they stay, its content is taken to."""
    try:
        found = file.stat()
    except OSError as error:
        raise TrainingError(f"{file}: cannot be read ({error.strerror}); remove it from the data") from error
    return str(file.resolve()), found.st_size, found.st_mtime_ns


def _read_index(index_path: Path, samples_path: Path, n_files: int) -> dict[str, Any] | None:
    """Index of the cache: `bounds`, `broken`, `sha256`; None where there is none, or its samples have another size."""
    try:
        index: dict[str, Any] = json.loads(index_path.read_text())
        bounds, fits = index["bounds"], isinstance(index["sha256"], str)
        fits = (
            fits
            and isinstance(index["broken"], dict)
            and len(bounds) == n_files + 1
            and samples_path.stat().st_size == 2 * bounds[-1]
        )
    except (OSError, ValueError, LookupError, TypeError):  # none yet, cut short, or of an earlier edgese
        return None
    return index if fits else None


def _decode(
    files: Sequence[Path],
    sample_rate_hz: int,
    samples_path: Path,
    index_path: Path,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write samples and index, both whole or not at all; the index comes last and says that both are there."""
    bounds, broken, digest = [0], dict[int, str](), hashlib.sha256()
    with StagedFile(samples_path) as staged:
        for decoded in _decoded(files, sample_rate_hz):
            if isinstance(decoded, AudioError):
                broken[len(bounds) - 1] = str(decoded)
                bounds.append(bounds[-1])
            else:
                samples, file_digest = decoded
                write_all(staged.fd, samples.tobytes())
                digest.update(file_digest)
                bounds.append(bounds[-1] + len(samples))
            if progress:
                progress(len(bounds) - 1, len(files))
        if bounds[-1] == 0 and broken:
            others = "".join(f"; {reason}" for reason in list(broken.values())[1:5])
            more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
            raise AudioError(f"{broken[0]}{others}{more}")
        if bounds[-1] == 0:
            raise TrainingError(f"{files[0].parent if files else 'data'}: no audio in {len(files)} files")
        staged.publish(replace=True)
    index = {"bounds": bounds, "broken": broken, "sha256": digest.hexdigest()}
    write_whole(index_path, json.dumps(index).encode())
    return index


def _decoded(files: Sequence[Path], sample_rate_hz: int) -> Iterator[_Decoded | AudioError]:
    """Samples and digest of each file, or its error, in order; some files are decoded ahead, one on each core.

    By threads: libsndfile and soxr, where nine tenths of the time are spent, run without the interpreter's lock, and
    processes could not be started from every script.
    """
    n_workers = n_cores()
    pool = ThreadPoolExecutor(n_workers)
    waiting = iter(files)
    under_way: collections.deque[Future[_Decoded | AudioError]] = collections.deque()
    try:
        for file in itertools.islice(waiting, 4 * n_workers):
            under_way.append(pool.submit(_samples, file, sample_rate_hz))
        while under_way:
            yield under_way.popleft().result()
            for file in itertools.islice(waiting, 1):
                under_way.append(pool.submit(_samples, file, sample_rate_hz))
    finally:
        pool.shutdown(cancel_futures=True)


def _samples(file: Path, sample_rate_hz: int) -> _Decoded | AudioError:
    try:
        wave = read_wave(file, sample_rate_hz)
    except AudioError as error:
        return error
    return np.rint(wave * 32768).clip(-32768, 32767).astype("<i2"), hashlib.sha256(file.read_bytes()).digest()
