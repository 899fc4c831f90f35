"""What the terminal shows of a line, and its keys, on a terminal of our own."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgese.listen.devices import Device, DeviceError, choose
from edgese.listen.line import Latency, Numbers
from edgese.listen.screen import latency_text, meter, status_text

from ..helpers.command_line import ROOT

SCRIPT = """
import threading
from edgese.listen.line import Latency, Numbers
from edgese.listen.screen import show

class Line:
    enhancing = True
    def numbers(self):
        return Numbers(-6.0, -20.0, 0.25, 3, 0.0, 0.5, -7, Latency(0.01, 0.039, 0.02, 0.03), 9.0)

line, stop = Line(), threading.Event()
show(line, stop, ["sound: a [b] -> c\\x1b[2J"])
print("ENHANCING", line.enhancing, stop.is_set())
"""


def test_the_screen_shows_meters_and_takes_its_keys(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=tmp_path
    ) as process:
        os.close(theirs)
        seen = b""
        try:
            while b"dropouts 3" not in seen:
                seen += os.read(ours, 4096)
            os.write(ours, b" ")
            while b"before" not in seen:
                seen += os.read(ours, 4096)
            os.write(ours, b"q")
            while b"ENHANCING False True" not in seen:
                seen += os.read(ours, 4096)
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)
    for told in (b"after", b"-6.0 dBFS", b"latency 99 ms: input 10, algorithm 39, buffers 20, output 30", b"load 25 %"):
        assert told in seen
    assert b"a [b] -> c\\x1b[2J" in seen


def test_numbers_in_words() -> None:
    numbers = Numbers(-90.0, 0.0, 0.5, 1, 0.25, 0.0, 12, None, 1.0)
    assert latency_text(numbers.latency) == "latency: not yet measured"
    assert latency_text(Latency(0.001, 0.002, 0.003, 0.004)).startswith("latency 10 ms: input 1, algorithm 2")
    assert status_text(numbers) == "load 50 %, dropouts 1, lost 0.25 s, skipped 0.00 s, clocks +12 samples"
    bars = [meter("in", level_db).plain.count("█") for level_db in (-90, -60, -30, 0, 6)]
    np.testing.assert_array_equal(bars, [0, 0, 20, 40, 40])


def device(number: int, name: str, inputs: int = 1, outputs: int = 1, default: bool = False) -> Device:
    return Device(number, name, "ALSA", inputs, outputs, 48_000.0, default, default)


def test_devices_are_chosen_by_number_name_or_default() -> None:
    found = [device(0, "USB Mic", outputs=0), device(1, "USB Headset"), device(2, "usb"), device(3, "HDMI", 0, 8)]
    assert choose(found, "1", "input").name == "USB Headset"
    assert choose(found, "usb", "input").number == 2  # the whole name before a part
    assert choose(found, "head", "output").number == 1
    for wanted, told in (
        ("3", "input 3: no such number, or it has no input"),
        ("USB", r"found 3 \(0 USB Mic, 1 USB Headset, 2 usb\), wanted one"),
        ("cellar", "no device of that name"),
        (None, "this machine has no default one"),
    ):
        with pytest.raises(DeviceError, match=told):
            choose(found, wanted, "input")
    assert choose([*found, device(4, "sysdefault", default=True)], None, "input").number == 4
