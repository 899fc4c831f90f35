"""Microphones and loudspeakers of this machine, by PortAudio (sounddevice)."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from edgese.audio import Samples
from edgese.errors import EdgeseError, install_command
from runtimes.base import RuntimeUnavailable

try:
    import sounddevice
except ImportError as error:
    raise RuntimeUnavailable(f"sounddevice is missing: {install_command('live')}") from error
except OSError as error:  # it finds no PortAudio
    raise RuntimeUnavailable(f"{error}: apt-get install libportaudio2, or what your system calls it") from error

Side = Literal["input", "output"]
Callback = Callable[[Samples, float, float], None]  # frames, when they are in the air, now, by the devices' clock

STALLED_S = 2.0  # without a callback: a device that is gone, whatever it says of itself


class DeviceError(EdgeseError):
    """A device that is not there, or cannot do what is asked of it."""


@dataclasses.dataclass(frozen=True)
class Device:
    """A device as PortAudio lists it."""

    number: int
    name: str
    api: str
    inputs: int
    outputs: int
    rate_hz: float
    default_input: bool
    default_output: bool


def devices() -> list[Device]:
    """All devices of this machine, as they are now."""
    sounddevice._terminate()  # PortAudio looks for devices when it begins, and not again
    sounddevice._initialize()
    apis = sounddevice.query_hostapis()
    defaults = sounddevice.default.device
    return [
        Device(
            number=number,
            name=found["name"],
            api=apis[found["hostapi"]]["name"],
            inputs=found["max_input_channels"],
            outputs=found["max_output_channels"],
            rate_hz=found["default_samplerate"],
            default_input=number == defaults[0],
            default_output=number == defaults[1],
        )
        for number, found in enumerate(sounddevice.query_devices())
    ]


def choose(found: list[Device], wanted: str | None, side: Side) -> Device:
    """The device that a number or a part of a name means; None: the system's default.

    Raises:
        DeviceError: none, or several.
    """
    able = [one for one in found if (one.inputs if side == "input" else one.outputs)]
    listed = "see `edgese listen --list`"
    if wanted is None:
        default = [one for one in able if (one.default_input if side == "input" else one.default_output)]
        if not default:
            raise DeviceError(f"{side}: this machine has no default one; {listed} and choose by --{side}")
        return default[0]
    if wanted.isdecimal():
        numbered = [one for one in able if one.number == int(wanted)]
        if not numbered:
            raise DeviceError(f"{side} {wanted}: no such number, or it has no {side}; {listed}")
        return numbered[0]
    exact = [one for one in able if one.name == wanted]
    named = exact or [one for one in able if wanted.lower() in one.name.lower()]
    if not named:
        raise DeviceError(f"{side} {wanted!r}: no device of that name; {listed}")
    if len(named) > 1:
        names = ", ".join(f"{one.number} {one.name}" for one in named[:5])
        raise DeviceError(f"{side} {wanted!r}: found {len(named)} ({names}), wanted one: choose by its number")
    return named[0]


class Flow:
    """Frames of an open device, one way."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.called_s = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it still goes."""
        return bool(self._stream.active) and time.monotonic() - self.called_s < STALLED_S


@contextlib.contextmanager
def opened(
    device: Device, side: Side, rate_hz: int, channels: int, latency: str | float, callback: Callback
) -> Iterator[Flow]:
    """A device that calls back with its frames until the end of the context.

    Args:
        latency: `low`, `high` or seconds.
        callback: gets frames to keep, or to fill, and when the first of them was or will be in the air.

    Raises:
        DeviceError: it cannot be opened so.
    """
    flow: Flow | None = None

    def called(frames: Samples, n_frames: int, times: Any, status: Any) -> None:
        if flow is not None:
            flow.called_s = time.monotonic()
        at_s = times.inputBufferAdcTime if side == "input" else times.outputBufferDacTime
        callback(frames, at_s, times.currentTime)

    kind = sounddevice.InputStream if side == "input" else sounddevice.OutputStream
    try:
        stream = kind(
            samplerate=rate_hz,
            device=device.number,
            channels=channels,
            dtype="float32",
            latency=latency,
            callback=called,
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise DeviceError(
            f"{side} {device.name}: cannot be opened at {rate_hz} Hz with {channels} channels ({error}); "
            "try --rate, --channels, or another one"
        ) from error
    try:
        flow = Flow(stream)
        try:
            stream.start()
        except sounddevice.PortAudioError as error:
            raise DeviceError(f"{side} {device.name}: does not start ({error}); try another one") from error
        yield flow
    finally:
        with contextlib.suppress(sounddevice.PortAudioError):  # of a device that is gone
            stream.close()
