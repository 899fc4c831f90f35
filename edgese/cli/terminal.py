"""Options, tables and progress bars that commands share, and the check for packages that are missing."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgese.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress


Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
BUNDLE = (
    "A bundle made by `edgese export`, a shipped one by its name (base, small), or one of the Hugging Face Hub "
    "(hf:owner/name, hf:owner/name@revision). Default: base."
)
BundleArgument = Annotated[Path | None, typer.Argument(metavar="BUNDLE", help=BUNDLE)]
BundleOption = Annotated[Path | None, typer.Option("--model", "-m", metavar="BUNDLE", help=BUNDLE)]
Weights = Annotated[
    Path | None,
    typer.Argument(metavar="WEIGHTS", help=".safetensors or .pt of `edgese train`. Default: the shipped weights."),
]
Cache = Annotated[Path, typer.Option(metavar="DIR", help="Folder for decoded recordings, which may be emptied.")]
Jobs = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="Files at a time, each on a core. Default: one for each core.")
]
Precisions = Annotated[
    list[str] | None,
    typer.Option("--precision", metavar="NAME", help="May be repeated. Default: all that the bundle has."),
]
FIRST_LINE_S, NEXT_LINE_S = 10.0, 30.0  # of progress, where no bar can be drawn
CACHE = Path("~/.cache/edgese")


def say(text: object = "", err: bool = False) -> None:
    """Print text, on stderr with `err`, whoever it comes from: what would steer the terminal is escaped."""
    typer.echo(printable(str(text)), err=err)


@contextlib.contextmanager
def progress_bar(hidden: bool, columns: Callable[[], list[Any]] | None = None) -> Iterator[Progress]:
    """A progress bar on stderr; where that is no terminal, a line now and then, with what is left of the time.

    EDGESE_PROGRESS=0 leaves these lines out, which come by the clock: for tests of all that a command says.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Units a second; where the unit is a second of sound, as times real time."""

        def render(self, task: Any) -> Text:
            if not task.speed:
                return Text("")
            unit = task.fields.get("unit", "")
            return Text(f"{task.speed:.0f}x real time" if unit == "s" else f"{task.speed:.1f} {unit}/s")

    class Description(ProgressColumn):
        """What is done, as it is: the name of a file is no markup, and steers no terminal."""

        def render(self, task: Any) -> Text:
            return Text(printable(task.description))

    console = Console(stderr=True)
    shown = columns() if columns else [Speed(), TimeRemainingColumn()]
    with Progress(
        Description(),
        BarColumn(),
        *shown,
        TimeElapsedColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
        transient=True,
    ) as bar:
        if hidden or console.is_terminal or os.environ.get("EDGESE_PROGRESS") == "0":
            yield bar
        else:
            with _progress_lines(bar):
                yield bar


@contextlib.contextmanager
def _progress_lines(bar: Progress) -> Iterator[None]:
    """Lines about the task that runs, from a thread: soon after the beginning, then twice a minute."""
    done = threading.Event()

    def report() -> None:
        wait_s = FIRST_LINE_S
        while not done.wait(wait_s):
            wait_s = NEXT_LINE_S
            running = [task for task in bar.tasks if not task.finished]
            if running:
                task = running[-1]
                parts = [printable(task.description)]
                if task.total is not None:
                    parts.append(f"{task.completed:.0f}/{task.total:.0f} {task.fields.get('unit', '')}".rstrip())
                if task.time_remaining:
                    left_s = task.time_remaining
                    parts.append(f"about {left_s:.0f} s left" if left_s < 100 else f"about {left_s / 60:.0f} min left")
                say(": ".join([parts[0], ", ".join(parts[1:])]).rstrip(": "), err=True)

    reporter = threading.Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        done.set()
        reporter.join()


def counter(bar: Progress, description: str, unit: str) -> Callable[[int, int], None]:
    """A callback `(done, total)` that shows a task of its own in the bar, from its first call on."""
    tasks: list[Any] = []

    def count(done: int, total: int) -> None:
        if not tasks:
            tasks.append(bar.add_task(description, unit=unit, note=unit))
        bar.update(tasks[0], completed=done, total=total)

    return count


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A plain table, aligned: readable in a terminal, a log and a pipe."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    say(title)
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  " + "  ".join(cells).rstrip())


def require(*modules: str, extra: str) -> None:
    """Exit with one line that says what to install if a module is missing; called before any work."""
    import importlib.util

    from edgese.errors import install_command

    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        say(f"error: {', '.join(missing)} missing: {install_command(extra)}", err=True)
        raise typer.Exit(code=1)
