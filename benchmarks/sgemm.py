"""SGEMM peak of one core: the best rate of NumPy's float32 matrix product on one thread, in GFLOP/s.

    python -m benchmarks.sgemm

Other scripts call `sgemm_gflops`, which measures in a process of its own: a BLAS reads its thread count when it loads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np

SIZES = (256, 512, 1024)  # the largest takes 12 MB: beyond the first caches, and no slower for it
SECONDS_EACH = 0.3
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"), "1")


def sgemm_gflops() -> float:
    """SGEMM peak in GFLOP/s, measured in a new process, on the cores that this one may use."""
    command = (sys.executable, "-m", "benchmarks.sgemm")
    answer = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, text=True, check=True)
    return float(answer.stdout)


def best_rate(size: int) -> float:
    """Rate of the fastest of many products of two (size, size) matrices, GFLOP/s; nothing is allocated in between."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty_like(a)
    shortest_s, until = float("inf"), time.perf_counter() + SECONDS_EACH
    while time.perf_counter() < until:
        started = time.perf_counter()
        np.matmul(a, b, out=out)
        shortest_s = min(shortest_s, time.perf_counter() - started)
    return 2 * size**3 / shortest_s / 1e9


if __name__ == "__main__":
    if any(os.environ.get(name) != count for name, count in ONE_THREAD.items()):
        print(f"{sgemm_gflops():.1f}")
    else:
        print(max(map(best_rate, SIZES)))
