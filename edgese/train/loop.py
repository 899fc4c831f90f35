"""Training loop: seeded, resumable to the same result, stopped by NaN, logged as CSV and TensorBoard.

A run is a folder: config.json, log.csv, last.pt (to go on from; last.prev.pt the one before, should that be damaged),
best.pt (lowest validation loss), and the averaged weights of best.pt as weights.safetensors. One process at a time
trains in it and holds its lock. Under `torchrun` the processes share each batch.
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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgese.atomic_file import write_output
from edgese.config import TrainConfig, to_dict
from edgese.contract import require_contract
from edgese.errors import CheckpointError, EdgeseError, TrainingError
from edgese.metrics.scores import pesq_wb, si_sdr
from edgese.model.checkpoint import load_enhancer, save_checkpoint, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.registry import build
from edgese.train.data import DataSets, Examples
from edgese.train.losses import Objective
from edgese.train.ranks import Ranks, joined
from edgese.train.run_folder import LAST, RunLog, has_checkpoint, load_last, locked, save_last
from export.staging import sweep

logger = logging.getLogger(__name__)

N_VALIDATION = 96  # examples, always the same
WORST_PESQ = 1.04  # bottom of the wideband scale


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


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to 1 % (Loshchilov & Hutter 2017)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


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
) -> Result:
    """Train in the folder `run` until config.steps, going on from run/last.pt where there is one.

    Args:
        device: cpu, cuda, ...; under torchrun, cuda is the GPU of each process.
        stop_at_step, stop_after_s, stop: end this slice early, with a checkpoint; the next call goes on to the same
            result.
        changed_data: go on with other data than those that the run has had.

    Raises:
        TrainingError: a loss or gradient is not finite (the last checkpoint stays as it was); another process trains
            in this folder.
        CheckpointError: run/last.pt was made with another config or other data.
        OutputError: the disk is full (the last checkpoint stays as it was).
    """
    until = _Until(stop_at_step, stop_after_s, stop)
    with joined(device) as ranks:
        return _train(config, data, run, ranks, on_progress, until, changed_data)


@dataclasses.dataclass(frozen=True)
class _Until:
    """End of a slice."""

    step: int | None
    seconds: float
    event: threading.Event | None

    def reached(self, elapsed_s: float, ranks: Ranks) -> bool:
        """True for all processes alike where one of them has come to the time or got the signal."""
        if self.seconds == math.inf and self.event is None:
            return False
        return ranks.any(elapsed_s > self.seconds or (self.event is not None and self.event.is_set()))


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
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{run}: cannot be the run's folder ({error.strerror}); choose another --output") from error
    keep_freed_memory()
    torch.manual_seed(config.seed)
    with locked(run) if ranks.leads else contextlib.nullcontext():
        return _train_locked(config, data, run, ranks, on_progress, until, changed_data)


def _train_locked(
    config: TrainConfig,
    data: DataSets,
    run: Path,
    ranks: Ranks,
    on_progress: Callable[[Progress], None] | None,
    until: _Until,
    changed_data: bool,
) -> Result:
    device = ranks.device
    ranks.wait()  # the leader has the lock
    sweep(run)
    resumes = has_checkpoint(run)
    begins_with_weights = config.start_from and not resumes  # a checkpoint brings its own
    enhancer = (
        starting_enhancer(config, Path(config.start_from)) if begins_with_weights else build(config.model, config.audio)
    )
    require_contract(enhancer)  # now, not when it is exported after days of training
    trainer = _Trainer(config, enhancer.to(device), run, ranks, data.digest)
    if resumes:
        trainer.resume(changed_data=changed_data)
    elif ranks.leads:
        write_output(run / "config.json", json.dumps(to_dict(config), indent=2).encode())
    ranks.wait()
    last_step = max(trainer.step, min(config.steps, config.steps if until.step is None else until.step))
    batches = _batches(data.train, config, trainer.step, last_step, ranks)
    validation = [data.validation(index) for index in range(N_VALIDATION)] if ranks.leads else []
    started, first_step, validation_s = time.monotonic(), trainer.step, 0.0  # the last one's, 0 before it
    with RunLog(run, trainer.step) if ranks.leads else contextlib.nullcontext() as log:
        for noisy, clean in batches:
            row = trainer.update(noisy.to(device), clean.to(device))
            elapsed_s = time.monotonic() - started
            last = until.reached(elapsed_s, ranks) or trainer.step == last_step
            if log:
                per_step = elapsed_s / (trainer.step - first_step)
                row["audio_per_second"] = config.batch * noisy.shape[1] / config.audio.sample_rate_hz / per_step
                left, speed = (last_step - trainer.step) * per_step, row["audio_per_second"]
                if trainer.step % config.validate_every == 0 or trainer.step == config.steps:
                    begun, likely_s = time.monotonic(), validation_s or N_VALIDATION / config.batch * per_step
                    if on_progress:
                        on_progress(Progress(trainer.step, config.steps, row["loss"], speed, left, None, likely_s))
                    row |= trainer.validate(validation)
                    validation_s = time.monotonic() - begun
                log.write(row)  # before the checkpoint: rows past it are dropped on resume, a missing one stays missing
                if trainer.step % config.checkpoint_every == 0 or last:
                    log.sync()
                    trainer.save()
                if on_progress:
                    validated = row.get("validation_loss")
                    on_progress(Progress(trainer.step, config.steps, row["loss"], speed, left, validated))
            if last:
                break
    ranks.wait()
    return Result(trainer.step, trainer.best, run / "weights.safetensors", trainer.step == config.steps)


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


class _Trainer:
    """State that changes from step to step (weights, averages, optimizer), with its updates and checkpoints."""

    def __init__(self, config: TrainConfig, enhancer: WaveformEnhancer, run: Path, ranks: Ranks, data: str) -> None:
        self.config, self.enhancer, self.run, self.ranks, self.device = config, enhancer, run, ranks, ranks.device
        self.last_path, self.best_path = run / LAST, run / "best.pt"
        self.data = data  # digest
        self.step, self.best = 0, math.inf
        self.objective = Objective(config.loss, config.audio, config.model.compression).to(self.device)
        if config.compile:
            enhancer.network.compile()
        self.replica = ranks.wrap(enhancer)
        groups = [
            {"params": parameters, "weight_decay": weight_decay}
            for parameters, weight_decay in zip(_by_decay(enhancer), (config.weight_decay, 0.0), strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        self.ema = {name: tensor.clone() for name, tensor in enhancer.state_dict().items()}

    def update(self, noisy: Tensor, clean: Tensor) -> dict[str, float]:
        """Do one step; returns its loss terms, learning rate and gradient norm."""
        config = self.config
        rate = learning_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._terms(self.replica, noisy, clean)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.enhancer.parameters(), config.clip_norm)
        means = self.ranks.mean(torch.stack([term.detach() for term in terms.values()]))
        values = dict(zip(terms, means.tolist(), strict=True)) | {"gradient_norm": float(norm)}
        if not all(map(math.isfinite, values.values())):
            raise TrainingError(
                f"step {self.step + 1}: {values}: not finite. The last checkpoint is untouched: mend broken "
                "recordings in the data and start again with --changed-data to go on from it, or lower learning_rate "
                "with a new --output"
            )
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema_decay, self.step / (self.step + 10))
        with torch.no_grad():
            for name, tensor in self.enhancer.state_dict().items():
                self.ema[name].lerp_(tensor, 1 - decay)
        return {"step": self.step, "learning_rate": rate} | values

    def validate(self, examples: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Loss, PESQ and SI-SDR of the averaged weights on held-out speakers; keeps the best weights so far."""
        averaged = build(self.config.model, self.config.audio).to(self.device)
        averaged.load_state_dict(self.ema)
        losses, scores, ratios, gains = [], [], [], []
        with torch.no_grad():
            for start in range(0, len(examples), self.config.batch):
                part = examples[start : start + self.config.batch]
                noisy, clean = (torch.from_numpy(np.stack(waves)).to(self.device) for waves in zip(*part, strict=True))
                losses.append(float(self._terms(averaged, noisy, clean)["loss"]))
                for (before, target), after in zip(part, averaged.enhance(noisy).cpu().numpy(), strict=True):
                    scores.append(_score(target, after))
                    ratios.append(si_sdr(target, after))
                    gains.append(ratios[-1] - si_sdr(target, before))
        loss = float(np.mean(losses))
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: the validation loss is {loss}: start again with a lower learning_rate"
            )
        known = [score for score in scores if score is not None]
        if loss < self.best:
            self.best = loss
            save_checkpoint(self.best_path, self._content(with_optimizer=False))
            save_weights(self.run / "weights.safetensors", self.enhancer, self.ema)
        return ({"validation_pesq_wb": float(np.mean(known))} if known else {}) | {
            "validation_loss": loss,
            "validation_si_sdr_db": float(np.mean(ratios)),
            "validation_si_sdr_gain_db": float(np.mean(gains)),
        }

    def save(self) -> None:
        save_last(self.run, self._content(with_optimizer=True))

    def resume(self, *, changed_data: bool = False) -> None:
        content = load_last(self.run)
        if not {"config", "step", "best", "ema", "model", "optimizer"} <= set(content):
            raise CheckpointError(f"{self.last_path}: no checkpoint to go on from: remove it, or take another --output")
        if content["config"] != to_dict(self.config):
            found, wanted = content["config"], to_dict(self.config)
            changed = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise CheckpointError(
                f"{self.last_path}: made with another config ({', '.join(changed)} differ); "
                "give the same settings to go on, or another --output to start afresh"
            )
        known = content.get("data", "")  # a checkpoint of an earlier edgese does not say
        if "" not in (known, self.data) and known != self.data and not changed_data:
            raise CheckpointError(
                f"{self.last_path}: made with other data (found {known[:12]}, wanted {self.data[:12]}); give the same "
                "--data to go on, --changed-data to go on with these, or another --output to start afresh"
            )
        self.step, self.best = content["step"], content["best"]
        self.enhancer.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.ema = {name: tensor.to(self.ema[name].device) for name, tensor in content["ema"].items()}
        logger.info("going on from step %d", self.step)

    def _content(self, *, with_optimizer: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"config": to_dict(self.config), "step": self.step, "best": self.best}
        content |= {"ema": self.ema, "data": self.data}
        if with_optimizer:
            content |= {"model": self.enhancer.state_dict(), "optimizer": self.optimizer.state_dict()}
        return content

    def _terms(self, enhancer: nn.Module, noisy: Tensor, clean: Tensor) -> dict[str, Tensor]:
        """Terms of the objective over whole segments; output and target are aligned by the known lag."""
        hop, overlap = self.config.audio.hop, self.config.audio.overlap
        whole = noisy.shape[1] // hop * hop
        state = self.enhancer.initial_state(len(noisy))
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            output, _ = enhancer(noisy[:, :whole], state)
        length = whole - overlap
        terms: dict[str, Tensor] = self.objective(output[:, overlap:].float(), clean[:, :length], noisy[:, :length])
        return terms


def _score(target: np.ndarray, enhanced: np.ndarray) -> float | None:
    """PESQ-WB; the scale's worst where nothing is left of the speech, None without speech or without the package."""
    if target.any() and not enhanced.any():
        return WORST_PESQ
    try:
        return pesq_wb(target, enhanced)
    except EdgeseError as error:
        logger.info("validation without PESQ of one example: %s", error)
        return None


def _by_decay(enhancer: WaveformEnhancer) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay, and those without: biases, gains and decay rates (as Mamba's authors train it)."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in enhancer.named_parameters():
        exempt = parameter.ndim < 2 or name.endswith(("bias", "a_log"))
        (kept if exempt else decayed).append(parameter)
    return decayed, kept


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
    )
    yield from (tuple(batch) for batch in loader)


def _begin_worker(number: int) -> None:
    """Leave Ctrl-C, which a terminal sends to workers too, to the process that ends them; by SIGTERM if they hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
