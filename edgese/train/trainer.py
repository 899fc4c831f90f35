"""State of a training run that changes from step to step: its updates, validation and checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgese.config import TrainConfig, to_dict
from edgese.errors import CheckpointError, TrainingError
from edgese.metrics.scores import si_sdr
from edgese.model.checkpoint import load_checkpoint, save_checkpoint, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.registry import build
from edgese.train.aligned import aligned
from edgese.train.distillation import Teacher
from edgese.train.losses import Objective
from edgese.train.ranks import Ranks
from edgese.train.run_folder import BEST, LAST, TRUNK, WEIGHTS, load_last, save_last
from edgese.train.schedule import Fall, learning_rate, planned_fall
from edgese.train.scoring import Scorers

logger = logging.getLogger(__name__)

_STATE = ("config", "step", "best", "ema", "model", "optimizer")  # of a checkpoint to go on from


class Trainer:
    """Weights, their averages, optimizer and step count of a run.

    What a step gives stays on the device until `rows` is asked for: reading it at once would make a GPU wait.
    """

    def __init__(self, config: TrainConfig, enhancer: WaveformEnhancer, run: Path, ranks: Ranks, data: str) -> None:
        self.config, self.enhancer, self.run, self.ranks, self.device = config, enhancer, run, ranks, ranks.device
        self.data = data  # digest
        self.step, self.best, self.fall = 0, math.inf, planned_fall(config)
        self.objective = Objective(config.loss, config.audio, config.model.compression).to(self.device)
        bfloat16 = config.precision == "bfloat16"
        self.teacher = (
            Teacher(Path(config.teacher), config.audio, self.device, bfloat16=bfloat16) if config.teacher else None
        )
        if config.compile:
            enhancer.network.compile_parts()
        self.replica = ranks.wrap(enhancer)
        self.parameters = list(enhancer.parameters())
        groups = [
            {"params": parameters, "weight_decay": weight_decay}
            for parameters, weight_decay in zip(by_decay(enhancer), (config.weight_decay, 0.0), strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.ema = {name: tensor.clone() for name, tensor in enhancer.state_dict().items()}
        self._pending: list[tuple[int, float, dict[str, Tensor]]] = []

    def update(self, noisy: Tensor, clean: Tensor) -> None:
        """Do one step; its numbers wait for `rows`."""
        config = self.config
        rate = learning_rate(self.step, config, self.fall)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        taught = self.teacher.enhance(noisy) if self.teacher else None
        terms = self._terms(self.enhancer, self.replica, noisy, clean, taught)
        terms["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        self.step += 1
        self._average()
        self._pending.append((self.step, rate, {n: t.detach() for n, t in terms.items()} | {"gradient_norm": norm}))

    def rows(self) -> Iterator[dict[str, float]]:
        """Numbers of each step since the last call: loss terms, learning rate, gradient norm.

        Raises:
            TrainingError: one of them is not finite; those of the steps before it were given.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        values = torch.stack([torch.stack(list(numbers.values())).float() for _, _, numbers in pending])
        for (step, rate, names), numbers in zip(pending, self.ranks.mean(values).tolist(), strict=True):
            row = dict(zip(names, numbers, strict=True))
            if not all(map(math.isfinite, numbers)):
                raise TrainingError(
                    f"step {step}: {row}: not finite. The last checkpoint is untouched: mend broken recordings in the "
                    "data and start again with --changed-data to go on from it, or lower learning_rate with a new "
                    "--output"
                )
            yield {"step": step, "learning_rate": rate} | row

    def validate(self, examples: list[tuple[np.ndarray, np.ndarray]], scorers: Scorers) -> dict[str, float]:
        """Loss, PESQ and SI-SDR of the averaged weights on held-out speakers; keeps the best weights so far.

        A teacher has no part in this loss: runs with and without one are compared by it.
        """
        averaged = build(self.config.model, self.config.audio).to(self.device)
        averaged.load_state_dict(self.ema)
        losses, scores, ratios, gains = [], [], [], []
        with torch.no_grad():
            for start in range(0, len(examples), self.config.batch):
                part = examples[start : start + self.config.batch]
                noisy, clean = (torch.from_numpy(np.stack(waves)).to(self.device) for waves in zip(*part, strict=True))
                losses.append(float(self._terms(averaged, averaged, noisy, clean)["loss"]))
                for (before, target), after in zip(part, averaged.enhance(noisy).cpu().numpy(), strict=True):
                    scores.append(scorers.submit(target, after))
                    ratios.append(si_sdr(target, after))
                    gains.append(ratios[-1] - si_sdr(target, before))
        loss = float(np.mean(losses))
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {self.step}: the validation loss is {loss}: start again with a lower learning_rate"
            )
        known = [score for score in (done.result() for done in scores) if score is not None]
        if loss < self.best:
            self.best = loss
            save_checkpoint(self.run / BEST, self._content(with_optimizer=False))
            save_weights(self.run / WEIGHTS, self.enhancer, self.ema)
        return ({"validation_pesq_wb": float(np.mean(known))} if known else {}) | {
            "validation_loss": loss,
            "validation_si_sdr_db": float(np.mean(ratios)),
            "validation_si_sdr_gain_db": float(np.mean(gains)),
        }

    # Checkpoints

    def save(self) -> None:
        """Write the checkpoint that the same command goes on from."""
        save_last(self.run, self._content(with_optimizer=True))

    def save_trunk(self) -> None:
        """Write the state before the fall of the rate, from which another run can go on at the constant one."""
        save_checkpoint(self.run / TRUNK, self._content(with_optimizer=True))

    def resume(self, *, changed_data: bool = False) -> None:
        """Go on from the run's last checkpoint.

        Raises:
            CheckpointError: made with other settings, other data or another teacher, or it cannot be read.
        """
        content, path = load_last(self.run), self.run / LAST
        if not set(_STATE) <= set(content):
            raise CheckpointError(f"{path}: no checkpoint to go on from: remove it, or take another --output")
        if content["config"] != to_dict(self.config):
            found, wanted = content["config"], to_dict(self.config)
            changed = sorted(key for key in wanted if found.get(key) != wanted[key])
            raise CheckpointError(
                f"{path}: made with another config ({', '.join(changed)} differ); "
                "give the same settings to go on, or another --output to start afresh"
            )
        known = content.get("data", "")  # a checkpoint of an earlier edgese does not say
        if "" not in (known, self.data) and known != self.data and not changed_data:
            raise CheckpointError(
                f"{path}: made with other data (found {known[:12]}, wanted {self.data[:12]}); give the same "
                "--data to go on, --changed-data to go on with these, or another --output to start afresh"
            )
        if content.get("teacher") != self._teacher_digest:
            raise CheckpointError(
                f"{path}: made with another teacher than {self.config.teacher} is now; give the same weights to go "
                "on, or another --output to start afresh"
            )
        self._take(content)
        self.best = content["best"]
        fall = content.get("fall")
        if fall and self.step >= fall[0]:  # it has begun, and goes on as it was planned
            self.fall = Fall(*fall)
        logger.info("going on from step %d", self.step)

    def begin_from(self, trunk: Path) -> None:
        """Go on from another run's state: its weights, averages, optimizer and step count.

        Raises:
            CheckpointError: the file is none of a run's, or was made by a network with other settings.
            TrainingError: this run is meant to be shorter than that one was.
        """
        content = load_checkpoint(trunk)
        if not set(_STATE) <= set(content):
            raise CheckpointError(f"{trunk}: no state of a run to go on from, wanted its {TRUNK} or {LAST}")
        wanted = to_dict(self.config)
        changed = [key for key in ("model", "audio") if content["config"].get(key) != wanted[key]]
        if changed:
            raise CheckpointError(f"{trunk}: made with other settings of {', '.join(changed)} than this run's")
        if self.fall and content["step"] >= self.fall.last:
            raise TrainingError(
                f"steps: found {self.config.steps}, wanted more than the {content['step']} that {trunk} has behind it"
            )
        self._take(content)
        logger.info("going on from step %d of %s", self.step, trunk)

    def _take(self, content: dict[str, Any]) -> None:
        self.step = content["step"]
        self.enhancer.load_state_dict(content["model"])
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]  # of these settings, not of the file
        self.optimizer.load_state_dict(content["optimizer"])
        for group, weight_decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = weight_decay
        for name, tensor in content["ema"].items():
            self.ema[name].copy_(tensor)

    def _content(self, *, with_optimizer: bool) -> dict[str, Any]:
        content: dict[str, Any] = {"config": to_dict(self.config), "step": self.step, "best": self.best}
        content |= {"ema": self.ema, "data": self.data, "teacher": self._teacher_digest}
        content |= {"fall": list(dataclasses.astuple(self.fall)) if self.fall else None}
        if with_optimizer:
            content |= {"model": self.enhancer.state_dict(), "optimizer": self.optimizer.state_dict()}
        return content

    @property
    def _teacher_digest(self) -> str | None:
        return self.teacher.digest if self.teacher else None

    # A step

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averages towards the weights; counters and the like are copied."""
        live = self.enhancer.state_dict()
        moving = [name for name, tensor in live.items() if tensor.is_floating_point()]
        decay = min(self.config.ema_decay, self.step / (self.step + 10))
        torch._foreach_lerp_([self.ema[name] for name in moving], [live[name] for name in moving], 1 - decay)
        for name in live.keys() - moving:
            self.ema[name].copy_(live[name])

    def _terms(
        self, enhancer: WaveformEnhancer, replica: nn.Module, noisy: Tensor, clean: Tensor, taught: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Terms of the objective over whole segments."""
        found = aligned(enhancer, replica, noisy, bfloat16=self.config.precision == "bfloat16")
        length = found.shape[1]
        terms: dict[str, Tensor] = self.objective(found, clean[:, :length], noisy[:, :length], taught)
        return terms


def by_decay(enhancer: WaveformEnhancer) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with weight decay, and those without: biases, gains and decay rates (as Mamba's authors train it)."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in enhancer.named_parameters():
        exempt = parameter.ndim < 2 or name.endswith(("bias", "a_log"))
        (kept if exempt else decayed).append(parameter)
    return decayed, kept
