"""The first GPU as its driver describes it, by ctypes; needs the standard library only."""

from __future__ import annotations

import ctypes
import dataclasses

DRIVER = "libcuda.so.1"

CAPABILITY = (75, 76)  # cuda.h, CUdevice_attribute: COMPUTE_CAPABILITY_MAJOR, _MINOR
_MULTIPROCESSORS = 16  # CUdevice_attribute: MULTIPROCESSOR_COUNT


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU, as far as an engine depends on it."""

    name: str
    compute_capability: str  # "SM87"
    multiprocessors: int

    def __str__(self) -> str:
        return f"{self.name} ({self.compute_capability}, {self.multiprocessors} multiprocessors)"


def read_device() -> Device | None:
    """The first GPU that the driver finds; None where there is no driver or no GPU."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device, number, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    cuda.cuDeviceGetName(name, len(name), device)
    numbers = []
    for attribute in (*CAPABILITY, _MULTIPROCESSORS):
        if cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != 0:
            return None
        numbers.append(number.value)
    return Device(name.value.decode(errors="replace"), f"SM{numbers[0]}{numbers[1]}", numbers[2])
