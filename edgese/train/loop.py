"""Training loop: seeded, resumable to the same result, stopped by NaN, logged as CSV and TensorBoard.

A run is a folder: config.json, log.csv, last.pt (to go on from; last.prev.pt the one before, should that be damaged),
trunk.pt (before the fall of a constant rate: another run can go on from it), best.pt (lowest validation loss), and the
averaged weights of best.pt as weights.safetensors. One process at a time trains in it and holds its lock. Under
`torchrun` the processes share each batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edgese.atomic_file import write_output
from edgese.config import TrainConfig, to_dict
from edgese.contract import require_contract
from edgese.errors import TrainingError
from edgese.model.checkpoint import load_enhancer
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.registry import build
from edgese.train.data import DataSets, Examples
from edgese.train.ranks import Ranks, joined
from edgese.train.run_folder import WEIGHTS, RunLog, has_checkpoint, locked
from edgese.train.schedule import Fall
from edgese.train.scoring import Scorers
from edgese.train.trainer import Trainer
from export.staging import sweep

logger = logging.getLogger(__name__)

N_VALIDATION = 96  # examples, always the same
ROWS_AT_ONCE = {"cpu": 1, "other": 50}  # steps between two looks at the numbers: a GPU would wait for each
UNENDING = 1 << 40  # steps


@dataclasses.dataclass(frozen=True)
class Progress:
    """Progress of a run after one step, or before its validation."""

    step: int
    steps: int
    loss: float
    audio_per_second: float  # seconds of audio trained on per second of time
    seconds_left: float
    validation_loss: float | None
    validation_s: float | None = None  # before a validation: what it is likely to take


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a run, or of a slice of it."""

    step: int
    best_validation_loss: float
    weights: Path
    finished: bool


def train(
    config: TrainConfig,
    data: DataSets,
    run: Path,
    *,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
    stop_at_step: int | None = None,
    stop_after_s: float = math.inf,
    stop: threading.Event | None = None,
    changed_data: bool = False,
    finish_within_s: float = math.inf,
) -> Result:
    """Train in the folder `run` until config.steps, going on from run/last.pt where there is one.

    Args:
        device: cpu, cuda, ...; under torchrun, cuda is the GPU of each process.
        stop_at_step, stop_after_s, stop: end this slice early, with a checkpoint; the next call goes on to the same
            result.
        changed_data: go on with other data than those that the run has had.
        finish_within_s: finish the run in this time, whatever config.steps is: a constant rate falls for the last share
            `config.fall` of it. The steps of the fall are counted when it begins; they end the run, in this slice or
            another.

    Raises:
        TrainingError: a loss or gradient is not finite (the last checkpoint stays as it was); another process trains
            in this folder.
        CheckpointError: run/last.pt was made with another config or other data.
        OutputError: the disk is full (the last checkpoint stays as it was).
    """
    if finish_within_s < math.inf and config.schedule != "constant":
        raise TrainingError(f"schedule: found {config.schedule!r}, wanted 'constant' to finish within a given time")
    until = _Until(stop_at_step, stop_after_s, stop, time.monotonic(), finish_within_s)
    with joined(device) as ranks:
        return _train(config, data, run, ranks, on_progress, until, changed_data)


@dataclasses.dataclass(frozen=True)
class _Until:
    """End of a slice, and of the time for the whole run."""

    step: int | None
    seconds: float
    event: threading.Event | None
    called_s: float
    finish_within_s: float

    @property
    def deadline_s(self) -> float:
        """Moment, of the monotonic clock, by which the run is to be finished."""
        return self.called_s + self.finish_within_s

    def reached(self, elapsed_s: float, ranks: Ranks) -> bool:
        """True for all processes alike where one of them has come to the time or got the signal."""
        if self.seconds == math.inf and self.event is None:
            return False
        return ranks.any(elapsed_s > self.seconds or (self.event is not None and self.event.is_set()))

    def fall(self, step: int, share: float, per_step_s: float, last_s: float, ranks: Ranks) -> Fall | None:
        """Fall that begins after this step and ends in time, for all processes alike; None while it is too early.

        Args:
            share: of the whole time.
            last_s: what comes after the last step.
        """
        left_s = self.deadline_s - time.monotonic() - last_s
        if not ranks.any(left_s <= share * self.finish_within_s):
            return None
        steps = ranks.mean(torch.tensor(float(max(0, left_s)) / per_step_s, device=ranks.device))
        return Fall(step, step + max(1, round(float(steps))))


def _train(
    config: TrainConfig,
    data: DataSets,
    run: Path,
    ranks: Ranks,
    on_progress: Callable[[Progress], None] | None,
    until: _Until,
    changed_data: bool,
) -> Result:
    device = ranks.device
    _require_device(device)
    if config.batch % ranks.size:
        raise TrainingError(f"batch: found {config.batch}, wanted a multiple of torchrun's {ranks.size} processes")
    make_run_folder(run)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    with locked(run) if ranks.leads else contextlib.nullcontext():
        return _train_locked(config, data, run, ranks, on_progress, until, changed_data)


def make_run_folder(run: Path) -> None:
    """Make the folder of a run, unless it is there.

    Raises:
        TrainingError: it cannot be one.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{run}: cannot be the run's folder ({error.strerror}); choose another --output") from error


def _train_locked(
    config: TrainConfig,
    data: DataSets,
    run: Path,
    ranks: Ranks,
    on_progress: Callable[[Progress], None] | None,
    until: _Until,
    changed_data: bool,
) -> Result:
    ranks.wait()  # the leader has the lock
    sweep(run)
    resumes = has_checkpoint(run)
    start = Path(config.start_from) if config.start_from and not resumes else None  # a checkpoint brings its own
    whole_state = start is not None and start.suffix == ".pt"
    enhancer = starting_enhancer(config, start) if start and not whole_state else build(config.model, config.audio)
    require_contract(enhancer)  # now, not when it is exported after days of training
    trainer = Trainer(config, enhancer.to(ranks.device), run, ranks, data.digest)
    if until.finish_within_s < math.inf:
        trainer.fall = None  # not known yet
    if resumes:
        trainer.resume(changed_data=changed_data)
    else:
        if start and whole_state:
            trainer.begin_from(start)
        if ranks.leads:
            write_output(run / "config.json", json.dumps(to_dict(config), indent=2).encode())
    ranks.wait()
    return _Slice(trainer, data, until, on_progress).run()


class _Slice:
    """Steps of one call of `train`."""

    def __init__(
        self, trainer: Trainer, data: DataSets, until: _Until, on_progress: Callable[[Progress], None] | None
    ) -> None:
        self.trainer, self.config, self.ranks, self.until = trainer, trainer.config, trainer.ranks, until
        self.on_progress = on_progress
        self.against_time = until.finish_within_s < math.inf
        self.rows_at_once = ROWS_AT_ONCE["cpu" if self.ranks.device == "cpu" else "other"]
        last = max(trainer.step, self._last_step())
        self.batches = _batches(data.train, self.config, trainer.step, last, self.ranks)
        self.validation = [data.validation(index) for index in range(N_VALIDATION)] if self.ranks.leads else []
        self.scorers = Scorers(len(self.validation))
        self.validation_s: float | None = None  # the last one's
        self.first_s, self.first_step = time.monotonic(), trainer.step
        self.begun = self.first_s, self.first_step  # from where on speed is measured

    def run(self) -> Result:
        trainer, config, ranks = self.trainer, self.config, self.ranks
        opened = RunLog(trainer.run, trainer.step) if ranks.leads else contextlib.nullcontext()
        with opened as log, contextlib.closing(self.scorers):
            for noisy, clean in self.batches:
                if trainer.step == self.first_step + 1:
                    self.begun = time.monotonic(), trainer.step  # the first step may have compiled
                trainer.update(*(wave.to(ranks.device, non_blocking=True) for wave in (noisy, clean)))
                self._decide_fall()
                last = self.until.reached(time.monotonic() - self.first_s, ranks) or trainer.step == self._last_step()
                trunk = trainer.fall is not None and trainer.step == trainer.fall.first
                validates = trainer.step % config.validate_every == 0 or trainer.step == self._end()
                saves = trainer.step % config.checkpoint_every == 0 or last or trunk
                if not (validates or saves or trainer.step % self.rows_at_once == 0):
                    continue
                row: dict[str, float] = {}
                for row in trainer.rows():  # in all processes: they share them
                    if log:
                        if validates and row["step"] == trainer.step:
                            row |= self._validate(row)
                        log.write(row | {"audio_per_second": self._speed()})
                if log and trunk:
                    trainer.save_trunk()
                if log and saves:  # after its rows: those past it are dropped on resume, a missing one stays missing
                    log.sync()
                    trainer.save()
                if log:
                    self._tell(row)
                if last:
                    break
        ranks.wait()
        return Result(trainer.step, trainer.best, trainer.run / WEIGHTS, trainer.step >= self._end())

    def _validate(self, row: dict[str, float]) -> dict[str, float]:
        started = time.monotonic()
        self._tell(row, self._likely_validation_s())
        scores = self.trainer.validate(self.validation, self.scorers)
        self.validation_s = time.monotonic() - started
        return scores

    def _likely_validation_s(self) -> float:
        """Time that a validation is likely to take: as the last one, or as much sound in steps."""
        if self.validation_s is None:
            return N_VALIDATION / self.config.batch * self._per_step_s()
        return self.validation_s

    def _tell(self, row: dict[str, float], validation_s: float | None = None) -> None:
        """Report progress after the step of a row."""
        if not self.on_progress:
            return
        step, known = int(row["step"]), self._last_step() < UNENDING
        per_step_s = self._per_step_s()
        if known:
            left_s = (self._last_step() - step) * per_step_s
        else:
            left_s = max(0.0, self.until.deadline_s - time.monotonic())
        steps = self._end() if known else step + round(left_s / per_step_s)
        validated = row.get("validation_loss")
        self.on_progress(Progress(step, steps, row["loss"], self._speed(), left_s, validated, validation_s))

    def _per_step_s(self) -> float:
        started, first_step = self.begun
        return (time.monotonic() - started) / max(1, self.trainer.step - first_step)

    def _speed(self) -> float:
        """Seconds of sound trained on in a second."""
        return self.config.batch * self.config.data.segment_s / self._per_step_s()

    def _decide_fall(self) -> None:
        """Let the rate fall from now on where there is just time for it."""
        trainer, share = self.trainer, self.config.fall
        if self.against_time and trainer.fall is None:
            per_step_s, last_s = self._per_step_s(), self._likely_validation_s()
            trainer.fall = self.until.fall(trainer.step, share, per_step_s, last_s, self.ranks)

    def _end(self) -> int:
        """Last step of the run, as far as it is known."""
        if self.trainer.fall:
            return self.trainer.fall.last
        return UNENDING if self.against_time else self.config.steps

    def _last_step(self) -> int:
        """Last step of this slice."""
        return min(self._end(), UNENDING if self.until.step is None else self.until.step)


def starting_enhancer(config: TrainConfig, weights: Path) -> WaveformEnhancer:
    """Enhancer of a weights file that a run with these settings can begin with.

    Raises:
        CheckpointError: not a file of weights.
        TrainingError: weights of another model.
    """
    found = load_enhancer(weights)
    if (found.network.config, found.audio) != (config.model, config.audio):
        raise TrainingError(f"{weights}: weights of another model or signal than the settings'")
    return found.train()


def _require_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name, a PyTorch without CUDA, no such GPU
        raise TrainingError(f"device {device}: cannot be used ({str(error).splitlines()[0]}); try cpu") from error


def keep_freed_memory() -> None:
    """Make glibc reuse a step's buffers: giving them back and faulting them in again takes half a step on a CPU."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)


class _Numbered(Dataset[tuple[Tensor, Tensor]]):
    """Dataset of this process's share of the examples of steps first ... last - 1, for a loader with workers."""

    def __init__(self, examples: Examples, batch: int, first: int, last: int, ranks: Ranks) -> None:
        self.examples, self.batch, self.first, self.last, self.ranks = examples, batch, first, last, ranks

    def __len__(self) -> int:
        return (self.last - self.first) * self.batch // self.ranks.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        step, place = divmod(index, self.batch // self.ranks.size)
        noisy, clean = self.examples((self.first + step) * self.batch + place * self.ranks.size + self.ranks.rank)
        return torch.from_numpy(noisy), torch.from_numpy(clean)


def _batches(
    examples: Examples, config: TrainConfig, step: int, last_step: int, ranks: Ranks
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        _Numbered(examples, config.batch, step, last_step, ranks),
        batch_size=config.batch // ranks.size,
        num_workers=config.workers,
        prefetch_factor=8 if config.workers else None,
        worker_init_fn=_begin_worker,
        pin_memory=ranks.device.startswith("cuda"),
    )
    yield from (tuple(batch) for batch in loader)


def _begin_worker(number: int) -> None:
    """Leave Ctrl-C, which a terminal sends to workers too, to the process that ends them; by SIGTERM if they hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
