"""`edgese_live` as a C program has it."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np

from edgese.audio import Samples
from edgese.native import build

NATIVE = Path(build.__file__).parent
NO_LIMIT = 100.0


def live_library(folder: Path, network: Path) -> ctypes.CDLL:
    """`edgese_live`, compiled, on a network: its source, or the compiled library."""
    library = folder / "live.so"
    flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fPIC", "-shared", f"-I{NATIVE}")
    command = [*build.compiler(), *flags, str(NATIVE / "edgese_live.c"), str(network), "-o", str(library), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    c = ctypes.CDLL(str(library))
    c.edgese_live_start.restype = ctypes.c_void_p
    c.edgese_live_latency.restype = ctypes.c_size_t
    c.edgese_live_process.restype = ctypes.c_size_t
    return c


class Live:
    """Sound of the library; the network's gain and tone are chosen where it is the known one."""

    def __init__(self, c: ctypes.CDLL, rate_hz: int, channels: int = 1, weights: int = 0) -> None:
        self.c, self.channels = c, channels
        message = ctypes.create_string_buffer(256)
        self.live = c.edgese_live_start(ctypes.c_void_p(weights), rate_hz, channels, 0, message)
        if not self.live:
            raise ValueError(message.value.decode())
        self.latency = c.edgese_live_latency(ctypes.c_void_p(self.live))
        self.no_sound = 0

    def __del__(self) -> None:
        if getattr(self, "live", None):
            self.c.edgese_live_stop(ctypes.c_void_p(self.live))

    def __call__(
        self, wave: Samples, *, limit_db: float = NO_LIMIT, mix: float = 1, blocks: tuple[int, ...] = (480,)
    ) -> Samples:
        """Output for (channels, n), in calls of these lengths in turns."""
        wave = np.ascontiguousarray(wave, np.float32)
        out, start, turn = np.empty_like(wave), 0, 0
        pointers = ctypes.c_void_p * self.channels
        while start < wave.shape[1]:
            n = min(blocks[turn % len(blocks)], wave.shape[1] - start)
            ends = [pointers(*(row[start:].ctypes.data for row in side)) for side in (wave, out)]
            values = ctypes.c_size_t(n), ctypes.c_float(limit_db), ctypes.c_float(mix)
            self.no_sound += self.c.edgese_live_process(ctypes.c_void_p(self.live), *ends, *values)
            start, turn = start + n, turn + 1
        return out
