"""Watch on a Jetson during a measurement: its facts, its state before and after, and the energy of calls.

    watched = watch(Path("/"), idle_s=5.0)     # idle power is sampled now, before anything runs
    ...
    watched.energy(calls, audio_s=5.0)
    watched.entry()                            # reads the state once more

What a board does not report is listed as missing, with the reason; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgese.machine.jetson import Jetson, JetsonError, State, read_jetson, read_state, throttled
from edgese.machine.power import Energy, PowerSampler, Rail, Trace, energy_of, find_rails

NOTHING: Mapping[str, Any] = {"board": None, "before": None, "after": None, "throttled": None, "idle": None}


@dataclasses.dataclass(frozen=True)
class Watched:
    """Jetson on which a measurement has begun: its facts, its first state, its idle power."""

    root: Path
    board: Jetson
    before: State
    rails: tuple[Rail, ...]
    idle: Trace | None
    powerless: str  # why power is not known here; "" where it is

    def energy(self, work: Callable[[], object], audio_s: float) -> Energy:
        """Energy of `work`, which makes `audio_s` seconds of audio, with the idle power that is to be subtracted.

        Raises:
            JetsonError: power is not known here, or was not while the work was done.
        """
        if self.idle is None:
            raise JetsonError(self.powerless)
        with PowerSampler(self.rails) as sampler:
            work()
        return energy_of(sampler.trace(), idle=self.idle, audio_s=audio_s)

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON: the board, its state before and now, what throttled it, idle power."""
        after = read_state(self.root)
        missing = {f"board, {name}": reason for name, reason in self.board.missing.items()}
        missing |= {f"before, {name}": reason for name, reason in self.before.missing.items()}
        missing |= {f"after, {name}": reason for name, reason in after.missing.items()}
        return {
            "board": self.board.entry(),
            "before": self.before.entry(),
            "after": after.entry(),
            "throttled": throttled(self.before, after),
            "idle": None if self.idle is None else _idle_entry(self.idle),
            "missing": missing | ({"power": self.powerless} if self.powerless else {}),
        }


def watch(root: Path, idle_s: float) -> Watched:
    """Begin a watch: read the board's facts and state, then sample its idle power.

    Args:
        root: what stands for `/`.
        idle_s: so long idle power is sampled.

    Raises:
        JetsonError: this machine is no Jetson.
    """
    board, before = read_jetson(root), read_state(root)
    rails: Sequence[Rail] = ()
    idle, reason = None, ""
    try:
        rails = find_rails(root)
        with PowerSampler(rails) as sampler:
            time.sleep(idle_s)
        idle = sampler.trace()
    except JetsonError as error:
        reason = str(error)
    return Watched(root, board, before, tuple(rails), idle, reason)


def _idle_entry(idle: Trace) -> dict[str, Any]:
    joules = idle.rail_joules()
    rails_w = {name: value / idle.duration_s for name, value in joules.items()}
    return {"rails": idle.total[0], "mean_w": idle.mean_w, "duration_s": idle.duration_s, "rails_w": rails_w}
