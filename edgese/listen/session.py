"""A line kept between two devices, which may go away and come back."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import NamedTuple

from edgese.listen.devices import DeviceError, Side, choose, devices, opened
from edgese.listen.line import Line

WAIT_S = 0.1  # for sound, before one looks whether the devices are still there
RETRY_S = 1.0

Say = Callable[[str], None]


class Wanted(NamedTuple):
    """Devices as they were asked for: numbers, parts of names, None: the default; `latency` as `opened` has it."""

    input: str | None
    output: str | None
    rate_hz: int
    channels: int
    latency: str | float


class Session:
    """Sound from one device to another until it is stopped.

    Attributes:
        names: of the devices, once they were open.
    """

    def __init__(self, line: Line, wanted: Wanted, say: Say) -> None:
        self._line, self._wanted, self._say = line, wanted, say
        self.names: dict[Side, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Let sound go until `stop` is set.

        Raises:
            DeviceError: a device is not there, or cannot be opened, at the beginning; later it is waited for.
            AudioError, RuntimeUnavailable: as `edgese.Stream.process`.
        """
        waiting = False
        while not stop.is_set():
            try:
                gone = self._pass(stop, waiting)
            except DeviceError:
                if not self.names:
                    raise
                stop.wait(RETRY_S)
                continue
            self._line.finish()
            self._line.restart()
            if gone:
                self._say(f"{gone} {self.names[gone]} is gone: waiting until it is back; Ctrl-C ends")
                waiting = True

    def _pass(self, stop: threading.Event, again: bool) -> Side | None:
        """Open both devices and let sound go; the one that has gone away, None where it was stopped."""
        wanted, found = self._wanted, devices()
        source = choose(found, self.names.get("input", wanted.input), "input")
        target = choose(found, self.names.get("output", wanted.output), "output")
        form = wanted.rate_hz, wanted.channels, wanted.latency
        with contextlib.ExitStack() as stack:
            heard = stack.enter_context(opened(source, "input", *form, self._line.hear))
            said = stack.enter_context(opened(target, "output", *form, self._line.say))
            self.names = {"input": source.name, "output": target.name}
            self._say(f"{'sound again' if again else 'sound'}: {source.name} -> {target.name}")
            while not stop.is_set():
                self._line.work(WAIT_S)
                if not heard.alive:
                    return "input"
                if not said.alive:
                    return "output"
        return None
