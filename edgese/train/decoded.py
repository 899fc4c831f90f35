"""Cache of recordings, decoded once on all cores into a memory map from which any part is read at no cost."""

from __future__ import annotations

import collections
import copy
import hashlib
import itertools
import json
import os
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

Progress = Callable[[int, int], None]


class DecodedRecordings:
    """Many recordings as one int16 memory map at the rate of the signal contract.

    A copy that is sent to another process opens the same map there.
    """

    def __init__(
        self, files: Sequence[Path], sample_rate_hz: int, cache: Path, progress: Progress | None = None
    ) -> None:
        """Decode `files` unless the cache holds them already (same paths, sizes and times).

        Raises:
            AudioError: recordings that cannot be read, or hold no sound; all of them in one message.
            TrainingError: the cache cannot be written.
        """
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = hashlib.sha256(json.dumps([sample_rate_hz, stats]).encode()).hexdigest()[:24]
        self.files = list(files)
        self._samples_path, index_path = cache / f"{key}.i16", cache / f"{key}.json"
        if not index_path.exists():
            try:
                cache.mkdir(parents=True, exist_ok=True)
                _decode(files, sample_rate_hz, self._samples_path, index_path, progress)
            except OSError as error:
                raise TrainingError(
                    f"{cache}: cannot be the cache ({error.strerror}); choose another --cache"
                ) from error
        bounds = np.array(json.loads(index_path.read_text()))
        self._starts, self.lengths = bounds[:-1], np.diff(bounds)
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


def _decode(
    files: Sequence[Path],
    sample_rate_hz: int,
    samples_path: Path,
    index_path: Path,
    progress: Progress | None,
) -> None:
    """Write samples and index, both whole or not at all; the index comes last and says that both are there."""
    bounds, broken = [0], list[AudioError]()
    partial = samples_path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with partial.open("wb") as out:
            for samples in _decoded(files, sample_rate_hz):
                if isinstance(samples, AudioError):
                    broken.append(samples)
                    samples = np.zeros(0, dtype=np.int16)
                out.write(samples.tobytes())
                bounds.append(bounds[-1] + len(samples))
                if progress:
                    progress(len(bounds) - 1, len(files))
        if broken:  # all are named at once: whoever mends one mends all
            others = "".join(f"; {error}" for error in broken[1:5])
            more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
            raise AudioError(f"{broken[0]}{others}{more}") from broken[0]
        if bounds[-1] == 0:
            raise TrainingError(f"{files[0].parent if files else 'data'}: no audio in {len(files)} files")
        partial.replace(samples_path)
        partial.write_text(json.dumps(bounds))
        partial.replace(index_path)
    finally:
        partial.unlink(missing_ok=True)


def _decoded(files: Sequence[Path], sample_rate_hz: int) -> Iterator[NDArray[np.int16] | AudioError]:
    """Samples of each file, or the error that it gave, in order; some files are decoded ahead, one on each core.

    By threads: libsndfile and soxr, where nine tenths of the time are spent, run without the interpreter's lock, and
    processes could not be started from every script.
    """
    n_workers = n_cores()
    pool = ThreadPoolExecutor(n_workers)
    waiting = iter(files)
    under_way: collections.deque[Future[NDArray[np.int16] | AudioError]] = collections.deque()
    try:
        for file in itertools.islice(waiting, 4 * n_workers):
            under_way.append(pool.submit(_samples, file, sample_rate_hz))
        while under_way:
            yield under_way.popleft().result()
            for file in itertools.islice(waiting, 1):
                under_way.append(pool.submit(_samples, file, sample_rate_hz))
    finally:
        pool.shutdown(cancel_futures=True)


def _samples(file: Path, sample_rate_hz: int) -> NDArray[np.int16] | AudioError:
    try:
        wave = read_wave(file, sample_rate_hz)
    except AudioError as error:
        return error
    return np.rint(wave * 32768).clip(-32768, 32767).astype("<i2")
