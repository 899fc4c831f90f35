"""Commands that run on a board (`--host`): their options, their session, and tables of their results."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgese.cli.terminal import print_table, say
from edgese.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress

    from edgese.board.session import Session

DEFAULT_MINUTES = 120.0

Host = Annotated[
    str | None,
    typer.Option(metavar="USER@BOARD", help="Run on that board, over ssh with your keys; also ssh://user@board:port."),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="MINUTES", min=0.001, help="With --host: limit of the whole command. Default: 120."
    ),
]
NoKeep = Annotated[bool, typer.Option("--no-keep", help="With --host: remove bundle and engines from the board.")]


def check_options(host: str | None, local: Mapping[str, object], remote: Mapping[str, object]) -> None:
    """Refuse options that mean nothing where the command runs.

    Args:
        local: option -> what was given, of those that mean nothing on a board.
        remote: of those that mean nothing here.
    """
    given = [name for name, value in (remote if host is None else local).items() if value not in (None, False)]
    if host is None:
        if given:
            raise typer.BadParameter(f"{', '.join(given)}: found no --host beside it, wanted one")
        return
    from edgese.board.link import checked_host

    try:
        checked_host(host)
    except ValueError as error:
        raise typer.BadParameter(f"--host: {error}") from error
    if given:
        raise typer.BadParameter(f"--host: found {', '.join(given)} beside it, which a board has no use for")


def check_runtimes(runtimes: list[str]) -> list[str]:
    """The same names, if boards may have runtimes of these names; else a usage error."""
    from edgese.device.candidates import CANDIDATES

    for name in runtimes:
        if name not in CANDIDATES:
            raise typer.BadParameter(f"--runtime: found {name!r}, wanted one that boards have: {', '.join(CANDIDATES)}")
    return runtimes


@contextlib.contextmanager
def board_session(
    host: str,
    bar: Progress,
    timeout_minutes: float | None,
    no_keep: bool,
    quiet: bool,
    stop: threading.Event | None = None,
) -> Iterator[Session]:
    """A session on a board, with progress messages on stderr unless `quiet`; the bar shows files being copied."""
    from edgese.board.session import Session

    tasks: dict[str, Any] = {}

    def count(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(f"copying {what}", unit="MB")
        bar.update(tasks[what], completed=done / 1e6, total=total / 1e6)

    def tell(line: str) -> None:
        if quiet:
            return
        if bar.disable:
            say(line, err=True)
        else:
            bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    timeout_s = 60 * (timeout_minutes or DEFAULT_MINUTES)
    with Session(host, timeout_s=timeout_s, keep=not no_keep, on_message=tell, on_bytes=count, stop=stop) as session:
        yield session


def print_self_test(tested: Mapping[str, Any], name: str, host: str) -> None:
    """Print a table of the trials, and the verdict."""
    print_machine(name, host, tested["machine"])
    print_left_out(tested)
    rows = [
        [trial["graph"], trial["runtime"], _decibels(trial["snr_db"]), _decibels(trial["limit_db"], 0), _verdict(trial)]
        for trial in tested["trials"]
    ]
    print_table(
        "golden vectors: PyTorch's output over the difference, dB", ["graph", "runtime", "SNR", "limit", ""], rows
    )
    failed = sum(not trial["passed"] for trial in tested["trials"])
    n_trials = len(tested["trials"])
    if tested["passed"]:
        say(f"passed: all {n_trials} trials on {host}")
    else:
        say(f"FAILED: {failed} of {n_trials} trials on {host}" if failed else f"FAILED: none was tried on {host}")


def print_bench(found: Mapping[str, Any], name: str, host: str) -> None:
    """Print the board, the times of calls, the energy, and what slowed the board down."""
    bench = found["bench"]
    print_machine(name, host, bench["machine"])
    say(_software(bench))
    print_left_out(bench)
    n_trials = len(found["self_test"]["trials"])
    say(f"self-test there: all {n_trials} graphs passed")
    say("")
    print_table(
        "a call, ms: back to back, and paced in real time",
        ["runtime", "", "block", "streams", "", "n", "p50", "p90", "p99", "p99.9", "max", "RTF", "missed"],
        [row for result in bench["results"] for row in _call_rows(result)],
    )
    for failure, reason in bench["failures"].items():
        say(f"FAILED: {failure}: {reason}")
    say("")
    rows = [_energy_row(result) for result in bench["results"] if result["energy"] is not None]
    idle = bench["idle"]
    if rows and idle is not None:
        print_table(
            f"energy of calls in real time, {idle['rails']}, {idle['mean_w']:.2f} W idle",
            ["runtime", "", "block", "J / s of sound above idle", "mean W"],
            rows,
        )
    print_state(bench)


def print_state(readings: Mapping[str, Any]) -> None:
    """Print temperatures and what slowed a board down; readings that are missing go to stderr."""
    before, after = readings["before"], readings["after"]
    shown = [f"{zone} {_degrees(before, zone)} to {_degrees(after, zone)}" for zone in after["temperatures_c"]]
    say(f"temperatures before and after, C: {', '.join(shown) or 'not known'}")
    for line in readings["throttled"] or ["nothing is known to have"]:
        say(f"held back: {line}")
    for what, reason in readings["missing"].items():
        say(f"not known: {what}: {reason}", err=True)


def print_machine(name: str, host: str, machine: Mapping[str, Any]) -> None:
    """Print the machine that the numbers belong to."""
    hardware = machine["board"] or machine["cpu"]
    versions = ", ".join(f"{library} {machine['versions'][library]}" for library in ("python", "numpy", "onnxruntime"))
    say(f"{name} on {host}: {hardware}, {machine['cores']} cores; {machine['system']}; {versions}")


def print_left_out(found: Mapping[str, Any]) -> None:
    """Print the runtimes that did not open on the board, with reasons."""
    for runtime, reason in found["left_out"].items():
        say(f"left out: {runtime}: {reason}")


def _software(readings: Mapping[str, Any]) -> str:
    board, before = readings["board"], readings["before"]
    told = {"L4T": board["l4t"], "JetPack": board["jetpack"], "TensorRT": board["tensorrt"], "CUDA": board["cuda"]}
    versions = ", ".join(f"{name} {version or 'not known'}" for name, version in told.items())
    locked = {True: "locked (jetson_clocks)", False: "not locked", None: "not known whether locked"}
    clocks = locked[before["jetson_clocks"]]
    return f"{versions}; power mode {before['power_mode'] or 'not known'}; clocks {clocks}"


def _call_rows(result: Mapping[str, Any]) -> list[list[str]]:
    names = [result["runtime"], result["precision"], str(result["block"]), str(result["streams"])]
    rows = []
    for way in ("back", "paced"):
        timing = result[way]
        if timing is None:  # a segment is not live
            continue
        values = [_number(timing[f"{key}_ms"]) for key in ("p50", "p90", "p99", "p99_9", "max")]
        begin = names if way == "back" else [""] * len(names)
        rows.append([*begin, way, str(timing["calls"]), *values, f"{timing['rtf']:.3f}", str(timing["missed"])])
    return rows


def _energy_row(result: Mapping[str, Any]) -> list[str]:
    energy = result["energy"]
    numbers = [f"{energy['joules_per_audio_s']:.3f}", f"{energy['mean_w']:.2f}"]
    return [result["runtime"], result["precision"], str(result["block"]), *numbers]


def _degrees(state: Mapping[str, Any], zone: str) -> str:
    value = state["temperatures_c"].get(zone)
    return "-" if value is None else f"{value:.1f}"


def _decibels(value: float | str, digits: int = 1) -> str:
    return value if isinstance(value, str) else f"{value:.{digits}f}"


def _verdict(trial: Mapping[str, Any]) -> str:
    return "passed" if trial["passed"] else f"FAILED: {'; '.join(trial['failures'])}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
