"""Learning rate of each step, and the fall of a constant rate at the end of a run."""

from __future__ import annotations

import dataclasses
import math

from edgese.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Fall:
    """The last steps of a run with a constant rate: from step `first` on it falls, and the run ends with `last`.

    Steps are counted by how many are done: the state after `first` steps is the trunk, from which another run can go on
    at the constant rate.
    """

    first: int
    last: int

    def rate(self, step: int) -> float:
        """Factor of the learning rate, 1 - sqrt of the share of the fall that is over (Haegele et al. 2024)."""
        return 1 - math.sqrt(min(1.0, max(0, step - self.first) / max(1, self.last - self.first)))


def planned_fall(config: TrainConfig) -> Fall | None:
    """Fall of a run of config.steps; None for another schedule."""
    if config.schedule != "constant":
        return None
    return Fall(config.steps - round(config.fall * config.steps), config.steps)


def learning_rate(step: int, config: TrainConfig, fall: Fall | None) -> float:
    """Learning rate of a step: linear warm-up, then constant until the fall, or half a cosine down to 1 %.

    Args:
        step: number of steps done before it.
        fall: of a constant rate, if it is known when it will fall.
    """
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate * warm * (fall.rate(step) if fall else 1.0)
    if step < config.warmup_steps:
        return config.learning_rate * warm
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)  # Loshchilov & Hutter 2017
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
