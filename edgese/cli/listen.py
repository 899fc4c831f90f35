"""`edgese listen`: a microphone, enhanced, to headphones or a virtual microphone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgese.cli.terminal import BundleOption, print_table, require, say
from edgese.errors import printable
from edgese.graphs.precision import Precision

if TYPE_CHECKING:
    from edgese.listen.devices import Device


def listen_command(
    source: Annotated[
        str | None, typer.Option("--input", "-i", metavar="DEVICE", help="Number or part of a name. Default: yours.")
    ] = None,
    target: Annotated[str | None, typer.Option("--output", "-o", metavar="DEVICE", help="The same.")] = None,
    listing: Annotated[bool, typer.Option("--list", "-l", help="List the devices and end.")] = False,
    rate_hz: Annotated[int, typer.Option("--rate", metavar="HZ", help="Of both devices.")] = 48_000,
    channels: Annotated[int, typer.Option(min=1, help="Of both devices; each is enhanced by itself.")] = 1,
    latency: Annotated[str, typer.Option(help="Of the devices: low, high or milliseconds.")] = "high",
    reserve_ms: Annotated[
        float, typer.Option("--reserve", metavar="MS", min=0, max=500, help="Kept against dropouts.")
    ] = 10.0,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="WAV or FLAC: channels before, then after.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0, help="End after so long. Default: at Ctrl-C.")] = None,
    atten_limit_db: Annotated[
        float | None, typer.Option("--atten-limit", metavar="DB", min=0, help="Attenuate by no more than this.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="The bundle must have it.")] = Precision.FP32,
    pcs: Annotated[bool, typer.Option("--pcs", help="Perceptual contrast stretching.")] = False,
    narrow: Annotated[bool, typer.Option("--narrow", help="Leave out what lies above the network's 8 kHz.")] = False,
    model: BundleOption = None,
    runtime: Annotated[str, typer.Option(metavar="NAME", help="See `edgese doctor`.")] = "onnxruntime",
    as_json: Annotated[bool, typer.Option("--json", help="Print devices, or what was measured, as JSON.")] = False,
) -> None:
    """Hear a microphone enhanced, or give it to other programs by a virtual one (docs/listen.md).

    Space switches between before and after, q ends. With a loudspeaker beside the microphone use headphones: it howls.
    """
    require("sounddevice", extra="live")
    from edgese.errors import ConfigError
    from edgese.listen.devices import devices

    if listing:
        found = devices()
        if as_json:
            say(json.dumps({"devices": [dataclasses.asdict(one) for one in found]}, indent=2))
        else:
            _print_devices(found)
        return
    try:
        wanted_latency: str | float = latency if latency in ("low", "high") else float(latency) / 1000
    except ValueError as error:
        raise typer.BadParameter(f"--latency: found {latency!r}, wanted low, high or milliseconds") from error

    from edgese.listen.line import Line
    from edgese.listen.recorder import Recorder
    from edgese.listen.screen import latency_text, show, status_text
    from edgese.listen.session import Session, Wanted
    from edgese.live.stream import Stream
    from edgese.machine.processes import stopping_on_signals

    failed: list[BaseException] = []
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping_on_signals())
        try:
            stream = stack.enter_context(
                Stream(
                    rate_hz,
                    channels,
                    model=model,
                    runtime=runtime,
                    precision=precision.value,
                    attenuation_limit_db=atten_limit_db,
                    narrow=narrow,
                    pcs=pcs,
                )
            )
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error
        recorder = None
        if record is not None:
            recorder = stack.enter_context(Recorder(record, rate_hz, channels, replace=force))
        line, lines = Line(stream, reserve_ms, recorder), list[str]()
        session = Session(line, Wanted(source, target, rate_hz, channels, wanted_latency), lines.append)

        def run() -> None:
            try:
                session.run(stop)
            except BaseException as error:  # noqa: BLE001  it is raised again in the main thread
                failed.append(error)
            finally:
                stop.set()

        worker = threading.Thread(target=run, name="edgese-listen")
        if seconds is not None:
            timer = threading.Timer(seconds, stop.set)
            timer.daemon = True
            timer.start()
        worker.start()
        show(line, stop, lines)
        measured = line.numbers()
        worker.join()
        if failed:
            raise failed[0]
    if recorder is not None and recorder.error is not None:
        raise recorder.error
    if as_json:
        say(json.dumps(dataclasses.asdict(measured), indent=2))
    else:
        say(f"{measured.heard_s:.1f} s heard; {latency_text(measured.latency)}; {status_text(measured)}")


def _print_devices(found: list[Device]) -> None:
    header = ["number", "name", "inputs", "outputs", "Hz", "interface", "default"]
    rows = []
    for one in found:
        marks = ["input"] * one.default_input + ["output"] * one.default_output
        cells = [one.number, printable(one.name), one.inputs, one.outputs, round(one.rate_hz), one.api, " ".join(marks)]
        rows.append([str(cell) for cell in cells])
    print_table("devices", header, rows)
