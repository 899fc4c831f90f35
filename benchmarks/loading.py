"""Throughput of the training loader: seconds of audio a second with 0, 1 and 2 workers, and per core.

    python -m benchmarks.loading                    # recordings made on the spot
    python -m benchmarks.loading --data DATA        # those of a folder that `edgese train` takes

Mixtures at the default settings, in batches as training takes them. `per_core` is seconds of audio per second of CPU
time of this process and its workers, which other load on the machine does not change; `made_ms` is that CPU time for
one example. A GPU starves where it trains faster than `audio_per_second` grows with the workers.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import Row, parser, report
from edgese.config import DataConfig
from edgese.machine.host import describe
from edgese.train.data import Examples, open_data

RATE_HZ = 16_000
BATCH = 8


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, help="a folder with recordings; default: noise that stands in for them")
    arguments.add_argument("--cache", type=Path, help="where decoded recordings are kept; default: nowhere")
    arguments.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--examples", type=int, default=800)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    machine = describe()
    config = DataConfig()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or write_stand_ins(Path(scratch) / "data")
        cache = options.cache or Path(scratch) / "cache"
        cached = cache.is_dir()
        started, cpu_started = time.perf_counter(), time.process_time()
        sets = open_data(data, config, RATE_HZ, seed=0, cache=cache)
        wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        rows: list[Row] = [measure(sets.train, workers, options.examples, config) for workers in options.workers]
    described = ", ".join(f"{key} {value}" for key, value in sets.description.items())
    notes = [
        f"{options.data or 'stand-ins'}: {described}",
        f"opened in {wall_s:.1f} s, {cpu_s:.1f} s of CPU time ({'cache was there' if cached else 'all decoded'})",
    ]
    report("loading", machine, rows, notes, as_json=options.json)


class _Numbered(Dataset[tuple[torch.Tensor, ...]]):
    """Dataset of the first examples, as training's loader takes them."""

    def __init__(self, examples: Examples, length: int) -> None:
        self.examples, self.length = examples, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(wave) for wave in self.examples(index))


def measure(examples: Examples, workers: int, n_examples: int, config: DataConfig) -> Row:
    """Table row of one pass over the first examples; the workers' start is part of it, as it is of a run's."""
    for index in range(20):
        examples(index)
    loader = DataLoader(
        _Numbered(examples, n_examples), BATCH, num_workers=workers, prefetch_factor=8 if workers else None
    )
    started, cpu_started = time.perf_counter(), _cpu_s()
    made_s = sum(noisy.numel() / RATE_HZ for noisy, _ in loader)
    wall_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_started
    return {
        "workers": workers,
        "audio_per_second": made_s / wall_s,
        "per_core": made_s / cpu_s,
        "made_ms": 1000 * cpu_s * config.segment_s / made_s,
    }


def write_stand_ins(folder: Path) -> Path:
    """Write eight speakers and twelve noises, 30 s each, and ten rooms, all of noise; returns their folder.

    Noise costs the loader what speech does.
    """
    rng = np.random.default_rng(0)
    for kind, count, n_samples in (("speech", 8, 30 * RATE_HZ), ("noise", 12, 30 * RATE_HZ), ("rir", 10, RATE_HZ)):
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            wave = 0.1 * rng.standard_normal(n_samples)
            if kind == "rir":
                wave *= np.exp(-np.arange(n_samples) / 1000)
            soundfile.write(folder / kind / f"{number}_.wav", wave, RATE_HZ, subtype="PCM_16")
    return folder


def _cpu_s() -> float:
    """CPU seconds of this process and of its workers that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
