"""The `edgese` program: all commands under one name, and the options that come before a command.

Results go to stdout (`--json` for machines), everything else to stderr. Nothing heavy is imported before a command
needs it: `edgese --help` loads neither NumPy nor a runtime.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgese import __version__
from edgese.cli.bench import bench_command
from edgese.cli.bundle import bundle_command
from edgese.cli.calibrate import calibrate_command
from edgese.cli.doctor import doctor_command
from edgese.cli.enhance import enhance_command
from edgese.cli.evaluate import evaluate_command
from edgese.cli.export import export_command
from edgese.cli.hub import pull_command, push_command
from edgese.cli.info import info_command
from edgese.cli.listen import listen_command
from edgese.cli.models import models_command
from edgese.cli.serve import serve_command
from edgese.cli.terminal import say
from edgese.cli.train import train_command
from edgese.cli.triton import triton_command
from edgese.cli.verify import verify_command
from edgese.errors import printable

# Options by names that they had once: still taken, no longer shown. Without the dashes.
OLD_NAMES = {"out": "output", "size": "model"}


class _Commands(TyperGroup):
    """Group of commands whose usage errors, which repeat what was typed, steer no terminal."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _shown_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        with _shown_errors():
            return super().invoke(*args, **kwargs)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextlib.contextmanager
def _shown_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        for name in ("message", "ui_filename"):
            if hasattr(error, "exit_code") and isinstance(getattr(error, name, None), str):
                setattr(error, name, printable(getattr(error, name)))
        raise


app = typer.Typer(
    cls=_Commands,
    help="Speech enhancement from training to real time on an edge device, verified at every step.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: OLD_NAMES.get(name, name),
    },
)
app.command("enhance")(enhance_command)
app.command("listen")(listen_command)
app.command("serve")(serve_command)
app.command("evaluate")(evaluate_command)
app.command("calibrate")(calibrate_command)
app.command("export")(export_command)
app.command("verify")(verify_command)
app.command("bench")(bench_command)
app.command("bundle")(bundle_command)
app.command("push")(push_command)
app.command("pull")(pull_command)
app.command("triton")(triton_command)
app.command("train")(train_command)
app.command("info")(info_command)
app.command("models")(models_command)
app.command("doctor")(doctor_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"edgese {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="FILE_OR_MODULE",
            help="Python code that registers a network (docs/networks.md). May be repeated.",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print progress messages on stderr.")] = False,
) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    for plugin in plugins or []:
        from edgese.networks import plug_in

        plug_in(plugin)
