"""How a Triton server is to run the models: options of `edgese triton`, without anything heavy."""

from __future__ import annotations

import dataclasses
from enum import Enum


class Backend(Enum):
    """Backend of the server, by its name there."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class Device(Enum):
    """Device that the server runs the models on."""

    AUTO = "auto"  # a GPU if the server has one
    CPU = "cpu"
    GPU = "gpu"


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a server is to run each model."""

    backend: Backend = Backend.ONNXRUNTIME
    device: Device = Device.AUTO
    streams: int = 64  # at a time in one instance, and in one call at most
    instances: int = 1
    delay_ms: float = 2.0  # that a request of one hop may wait for others; n times as much for a block of n hops
