"""Precision of a graph's matrix products; all that is not a product stays float32.

fp32      nothing is rounded
fp16      every product in half precision
int8      the chosen products in INT8 as TensorRT takes it (symmetric), the others in half precision
int8-cpu  the chosen products in INT8 as CPUs take it (asymmetric activations), the others in float32
"""

from __future__ import annotations

import enum


class Precision(str, enum.Enum):
    """Precision of a graph, as its manifest and commands name it."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT8_CPU = "int8-cpu"

    @property
    def quantized(self) -> bool:
        """True if it needs ranges of activations, and so a calibration."""
        return self in (Precision.INT8, Precision.INT8_CPU)
