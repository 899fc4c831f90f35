"""Training in several processes, as `torchrun` starts them: rank and device of this one, sums over all of them.

Without torchrun's environment there is one process and nothing happens here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgese.errors import TrainingError


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Rank of this process among `size`, and its device; the one with rank 0 logs, validates and saves."""

    device: str
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Module whose gradients are means over all processes."""
        return nn.parallel.DistributedDataParallel(module) if self.size > 1 else module

    def mean(self, value: Tensor) -> Tensor:
        """Mean of a value over all processes."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value / self.size

    def any(self, holds: bool) -> bool:
        """True if `holds` is true in any of the processes: they decide alike."""
        return bool(self.mean(torch.tensor(float(holds), device=self.device))) if self.size > 1 else holds

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.size > 1:
            torch.distributed.barrier()


def leads() -> bool:
    """True if this process logs and prints for all of them: its rank is 0."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join torchrun's processes; gives this one's rank and device: "cuda" becomes the GPU of its local rank.

    Raises:
        TrainingError: PyTorch has no way for the processes to talk to each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks(device)
        return
    if device.startswith("cuda:"):
        raise TrainingError(f"device: found {device}, wanted cuda: torchrun's processes have one GPU each")
    try:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError, AssertionError) as error:  # no GPU, fewer than processes, no way to the others
        raise TrainingError(f"torchrun's processes cannot join on {device} ({str(error).splitlines()[0]})") from error
    yield Ranks(device, torch.distributed.get_rank(), torch.distributed.get_world_size())
    # after an error nobody is waited for: the process ends, and torchrun ends the others
    torch.distributed.destroy_process_group()
