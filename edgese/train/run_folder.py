"""A run's folder: one process at a time, checkpoints in two generations, a log of whole rows."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import io
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgese.atomic_file import write_output
from edgese.config import LossConfig
from edgese.errors import CheckpointError, OutputError, TrainingError
from edgese.model.checkpoint import load_checkpoint, save_checkpoint
from export.staging import keep_as, write_all

logger = logging.getLogger(__name__)

LAST, PREVIOUS, LOCK = "last.pt", "last.prev.pt", ".lock"
TRUNK = "trunk.pt"  # before the fall of a constant rate
BEST, WEIGHTS = "best.pt", "weights.safetensors"
LOCK_S = 10.0  # that a killed run's workers need to notice that they are alone
TERMS = tuple(field.name for field in dataclasses.fields(LossConfig))
COLUMNS = (
    *("step", "loss", *TERMS, "learning_rate", "gradient_norm", "audio_per_second"),
    *("validation_loss", "validation_pesq_wb", "validation_si_sdr_db", "validation_si_sdr_gain_db"),
)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which ends with this process.

    Raises:
        TrainingError: another process holds it.
    """
    try:
        lock = (run / LOCK).open("a+b")
    except OSError as error:
        raise OutputError(f"{run}: cannot be written ({error.strerror}); choose another --output") from error
    with lock:
        waited_s = 0.0
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                lock.seek(0)
                owner = lock.read(20).decode(errors="replace").strip()
                if waited_s >= LOCK_S or (owner.isdigit() and Path(f"/proc/{owner}").exists()):
                    raise TrainingError(
                        f"{run}: another edgese train is at work there (process {owner}); wait until it is done, or "
                        "choose another --output"
                    ) from None
                time.sleep(0.1)  # its process was killed, a worker of it lives on for a moment
                waited_s += 0.1
            except OSError:  # a file system without locks
                break
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        yield


def has_checkpoint(run: Path) -> bool:
    """True if the folder holds a checkpoint to go on from, of either generation."""
    return (run / LAST).exists() or (run / PREVIOUS).exists()


def save_last(run: Path, content: dict[str, Any]) -> None:
    """Write the last checkpoint; the one before it stays as last.prev.pt.

    Raises:
        OutputError: it cannot be written; both generations are as they were, or of the same step.
    """
    if (run / LAST).exists():
        try:
            keep_as(run / LAST, run / PREVIOUS)
        except OSError as error:
            raise OutputError(f"{run / PREVIOUS}: cannot be written ({error.strerror}); free space") from error
    save_checkpoint(run / LAST, content)


def load_last(run: Path) -> dict[str, Any]:
    """Content of the last checkpoint, or of the one before where that is damaged or missing.

    Raises:
        CheckpointError: neither can be read.
    """
    try:
        return load_checkpoint(run / LAST)
    except CheckpointError as error:
        if not (run / PREVIOUS).exists():
            raise
        content = load_checkpoint(run / PREVIOUS)
        logger.warning("%s; going on from %s, step %s", error, PREVIOUS, content.get("step"))
        (run / LAST).unlink(missing_ok=True)  # else it would be kept in place of the good one
        return content


class RunLog:
    """Log of a run as log.csv and TensorBoard events; rows past the step that a run goes on from are dropped.

    Raises:
        OutputError: it cannot be written.
    """

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / "log.csv"
        rows = [row for row in _whole_rows(self.path) if int(row["step"]) <= step]
        header = dict(zip(COLUMNS, COLUMNS, strict=True))
        write_output(self.path, b"".join(map(_csv_line, (header, *rows))))  # a run that is killed keeps its history
        with self._writing():
            self._file = self.path.open("ab", buffering=0)
            self._board = _summary_writer(run, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._file.close()
        if self._board:
            with contextlib.suppress(OSError) if kind else self._writing():  # the error under way says more
                self._board.close()

    def write(self, row: dict[str, float]) -> None:
        shown = {key: str(value) if key == "step" else f"{value:.6g}" for key, value in row.items()}
        with self._writing():
            write_all(self._file.fileno(), _csv_line(shown))
            if self._board:
                for key, value in row.items():
                    if key != "step":
                        self._board.add_scalar(key, value, int(row["step"]))

    def sync(self) -> None:
        """Put all rows on the disk."""
        with self._writing():
            os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror or error}); free space: the same command goes on "
                "from the last checkpoint"
            ) from error


def _csv_line(row: Mapping[str, str]) -> bytes:
    line = io.StringIO(newline="")
    csv.DictWriter(line, COLUMNS).writerow(row)
    return line.getvalue().encode()


def _whole_rows(log: Path) -> Iterator[dict[str, str]]:
    """Rows of a log that are whole; the last may have been cut by whatever ended the run."""
    if not log.exists():
        return
    header, *lines = log.read_bytes().decode(errors="replace").replace("\0", "").splitlines(keepends=True) or [""]
    columns = next(csv.reader([header]), [])
    for line in lines:
        values = next(csv.reader([line]), [])
        row = dict(zip(columns, values, strict=False))
        if line.endswith("\n") and len(values) == len(columns) and set(row) <= set(COLUMNS) and row["step"].isdigit():
            yield row


def _summary_writer(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the CSV stays
        logger.info("tensorboard is missing: the log is %s alone", run / "log.csv")
        return None
    return SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
