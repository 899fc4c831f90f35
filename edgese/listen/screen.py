"""What a terminal shows of a line that runs, and the keys that it takes."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from edgese.errors import printable
from edgese.listen.line import FLOOR_DB, Latency, Line, Numbers

BAR = 40  # characters of a meter, from -60 dBFS to 0
LINE_S = 10.0  # between lines where there is no terminal
SWITCH, QUIT = " b", "q\x03"


def latency_text(latency: Latency | None) -> str:
    """Measured latency and what it is made of, as a line."""
    if latency is None:
        return "latency: not yet measured"
    return (
        f"latency {1000 * latency.total_s:.0f} ms: input {1000 * latency.input_s:.0f}, "
        f"algorithm {1000 * latency.algorithm_s:.0f}, buffers {1000 * latency.buffers_s:.0f}, "
        f"output {1000 * latency.output_s:.0f}"
    )


def status_text(numbers: Numbers) -> str:
    """Load and losses as a line."""
    return (
        f"load {100 * numbers.load:.0f} %, dropouts {numbers.n_dropouts}, lost {numbers.lost_s:.2f} s, "
        f"skipped {numbers.skipped_s:.2f} s, clocks {numbers.stretched:+d} samples"
    )


def meter(name: str, level_db: float) -> Text:
    """A bar of one level."""
    filled = round(BAR * min(1.0, max(0.0, 1 + level_db / 60)))
    colour = "red" if level_db > -1 else "yellow" if level_db > -9 else "green"
    bar = Text(f"{name:4}") + Text("█" * filled, colour) + Text("·" * (BAR - filled), "dim")
    return bar + Text(f" {level_db:6.1f} dBFS" if level_db > FLOOR_DB else "  silence")


def show(line: Line, stop: threading.Event, said: list[str]) -> None:
    """Show meters until `stop` is set, which the key `q` does; `b` or the space bar switch before and after.

    Args:
        said: lines of the session, shown above the meters.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        _tell(line, stop, said)
        return
    with Live(console=console, refresh_per_second=10, transient=True) as live, _keys() as key:
        while not stop.is_set():
            while said:
                console.print(printable(said.pop(0)), markup=False, highlight=False)
            numbers = line.numbers()
            mode = (
                Text("after (enhanced)", "bold green") if line.enhancing else Text("before (as it is)", "bold yellow")
            )
            live.update(
                Group(
                    meter("in", numbers.level_in_db),
                    meter("out", numbers.level_out_db),
                    Text("heard: ") + mode + Text("   space: switch   q: end", "dim"),
                    Text(latency_text(numbers.latency)),
                    Text(status_text(numbers)),
                )
            )
            pressed = key(0.1)
            if pressed and pressed in SWITCH:
                line.enhancing = not line.enhancing
            elif pressed and pressed in QUIT:
                stop.set()


def _tell(line: Line, stop: threading.Event, said: list[str]) -> None:
    next_s = time.monotonic() + LINE_S
    while True:
        ended = stop.wait(0.2)
        while said:
            sys.stderr.write(printable(said.pop(0)) + "\n")
        if ended:
            return
        if time.monotonic() >= next_s:
            next_s += LINE_S
            numbers = line.numbers()
            sys.stderr.write(f"{latency_text(numbers.latency)}; {status_text(numbers)}\n")


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that gives the key pressed within some seconds, or "" where there is none."""
    if not sys.stdin.isatty():
        yield lambda wait_s: time.sleep(wait_s) or ""  # type: ignore[func-returns-value]
        return
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)

    def key(wait_s: float) -> str:
        ready, _, _ = select.select([file], [], [], wait_s)
        return os.read(file, 1).decode(errors="ignore") if ready else ""

    tty.setcbreak(file)
    try:
        yield key
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
