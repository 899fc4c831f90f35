"""Published peaks of NVIDIA's Jetson modules, with the source of each figure.

Arithmetic peaks follow from multiprocessors and clock: an SM of Orin does 128 multiply-accumulates a clock in float32,
1024 in float16 and 2048 in INT8, without sparsity. That agrees with what is published: 5.3 TFLOPS in float32 for 16 SMs
at 1.3 GHz, "128 CUDA cores per SM", 170 INT8 TOPS of its GPU with sparsity, which doubles them (NVIDIA Jetson AGX Orin
Technical Brief v1.2, p. 5); and for the GPU's share of the other modules' INT8 figures, see `GPU_SPARSE_TOPS`.

Sources. The text of DS-10662-001 v1.6 was read, the others in public transcripts and notes of them: check a figure in
the data sheet before you rely on it.

- Orin Nano: Data Sheet DS-11105-001 v1.1, p. 1 (cores, clock) and p. 7 (bandwidth); Super: Jetson Orin Nano Developer
  Kit User Guide, docs.nvidia.com/jetson/orin-nano-devkit/user-guide ("Up to 102 GB/s with the latest software stack");
  clock of Super: Jetson Linux Developer Guide r36.4.4, Platform Power and Performance, MAXN_SUPER.
- Orin NX: Data Sheet DS-10712-001 v1.7, developer.nvidia.com/downloads/jetson-orin-nx-module-series-data-sheet, p. 1
  and p. 9, which prints one column for MAXN and one for MAXN_SUPER.
- AGX Orin: Data Sheet DS-10662-001 v1.6, p. 6 (cores, clock, 256 bit at 3200 MHz); v1.8, p. 12 (204.8 GB/s).
- AGX Thor: Jetson Thor Series Modules Data Sheet DS-11945-001 v1.2 to v1.5 (bandwidth, clock, 2560 cores, FP8).

Where two sources differ, `differs` says so, and the figure is the data sheet's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

_CORES = 128  # of an SM: multiply-accumulates a clock in float32


@dataclasses.dataclass(frozen=True)
class Peak:
    """Peak bandwidth and arithmetic rates of a device, published or measured."""

    name: str
    bandwidth_gbs: float  # of its memory, 1e9 bytes a second
    tflops: Mapping[str, float]  # precision -> 1e12 operations a second; a multiply-accumulate is two

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"name": self.name, "bandwidth_gbs": self.bandwidth_gbs, "tflops": dict(self.tflops)}


@dataclasses.dataclass(frozen=True)
class JetsonModule:
    """Published figures of a Jetson module in one power mode."""

    peak: Peak
    mode: str
    multiprocessors: int
    clock_mhz: float  # of the GPU, the highest of the mode
    source: str
    differs: str = ""  # other figures that are published

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"peak": self.peak.entry()}


def _orin(
    name: str, mode: str, multiprocessors: int, clock_mhz: float, bandwidth_gbs: float, source: str, differs: str = ""
) -> JetsonModule:
    float32 = multiprocessors * _CORES * 2 * clock_mhz / 1e6  # TFLOPS
    peak = Peak(name, bandwidth_gbs, {"fp32": float32, "fp16": 8 * float32, "int8": 16 * float32})
    return JetsonModule(peak, mode, multiprocessors, clock_mhz, source, differs)


_NANO = "DS-11105-001 v1.1"
_NX = "DS-10712-001 v1.7"
_AGX = "DS-10662-001 v1.6"
_GUIDE = "Orin Nano Developer Kit User Guide, Jetson Linux Developer Guide r36.4.4"

BOARDS: Mapping[str, JetsonModule] = {
    "orin-nano-4gb": _orin("Jetson Orin Nano 4GB", "10W", 4, 625, 34, _NANO, "resellers of Super: 51 GB/s"),
    "orin-nano": _orin("Jetson Orin Nano 8GB", "15W", 8, 625, 68, _NANO, "Super software: see orin-nano-super"),
    "orin-nano-super": _orin("Jetson Orin Nano 8GB", "MAXN_SUPER", 8, 1020, 102, _GUIDE, "DS v1.1: 625 MHz, 68 GB/s"),
    "orin-nx-8gb": _orin("Jetson Orin NX 8GB", "MAXN", 8, 765, 102, _NX, "1173 MHz in MAXN_SUPER"),
    "orin-nx-16gb": _orin("Jetson Orin NX 16GB", "MAXN", 8, 918, 102, _NX, "1173 MHz in MAXN_SUPER"),
    "orin-nx-super": _orin("Jetson Orin NX 8GB or 16GB", "MAXN_SUPER", 8, 1173, 102, _NX, "DS v1.0: 765 or 918 MHz"),
    "agx-orin-32gb": _orin("Jetson AGX Orin 32GB", "MAXN", 14, 939, 204.8, _AGX, "also 930.75 MHz"),
    "agx-orin-64gb": _orin("Jetson AGX Orin 64GB", "MAXN", 16, 1300, 204.8, _AGX, "also 1301 MHz"),
    "agx-thor": JetsonModule(
        Peak("Jetson AGX Thor (T5000)", 273, {"fp32": 8.064, "fp16": 258.5, "int8": 517}),
        "MAXN",
        20,
        1575,
        "DS-11945-001",
        "96 tensor cores in the data sheet, 80 by its 20 SMs; INT8 is taken as FP8's 517 dense TFLOPS, FP16 as half of "
        "it; 1386 MHz measured by others in the 120W mode",
    ),
}

# Published INT8 TOPS with sparsity, less the DLAs' share: a check on what is derived above.
GPU_SPARSE_TOPS: Mapping[str, float] = {
    "orin-nano-4gb": 20,
    "orin-nano": 40,
    "orin-nano-super": 67,
    "orin-nx-8gb": 70 - 20,
    "orin-nx-16gb": 100 - 40,
    "orin-nx-super": 157 - 80,
    "agx-orin-32gb": 108,
    "agx-orin-64gb": 170,
}
