"""`edgese serve`: a WebSocket server for live sound."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from edgese.cli.terminal import BundleOption, require
from edgese.errors import printable
from edgese.graphs.precision import Precision


def serve_command(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8765,
    max_streams: Annotated[
        int | None,
        typer.Option(min=1, help="Streams at a time; more are refused. Default: an estimate, measured at the start."),
    ] = None,
    max_message_bytes: Annotated[
        int, typer.Option("--max-message", metavar="BYTES", min=1024, help="Longest message that is taken.")
    ] = 256 * 1024,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="EDGESE_TOKEN",
            help="Secret that clients must show. Better in the environment, where other users do not see it.",
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Web pages that may connect, such as https://example.com; * for all."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificate in PEM; then wss.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, where it is in another file.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="That compute. Default: one for each core.")] = None,
    atten_limit_db: Annotated[
        float | None, typer.Option("--atten-limit", metavar="DB", min=0, help="Attenuate by no more than this.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="The bundle must have it.")] = Precision.FP32,
    pcs: Annotated[bool, typer.Option("--pcs", help="Perceptual contrast stretching.")] = False,
    narrow: Annotated[bool, typer.Option("--narrow", help="Leave out what lies above the network's 8 kHz.")] = False,
    model: BundleOption = None,
    runtime: Annotated[str, typer.Option(metavar="NAME", help="See `edgese doctor`.")] = "onnxruntime",
    as_json: Annotated[bool, typer.Option("--json", help="Log lines as JSON.")] = False,
) -> None:
    """Serve live streams over WebSocket: samples in, enhanced samples out, a stream a connection (docs/serve.md).

    /health and /metrics (Prometheus) are on the same port. It ends on Ctrl-C and SIGTERM. The log goes to stderr.
    """
    require("websockets", extra="serve")
    from edgese.errors import ConfigError
    from edgese.live.stream import StreamBatch
    from edgese.machine.processes import n_cores
    from edgese.serve.server import ServeOptions, Server, estimated_streams, logger, serve_until_stopped

    _log(as_json)
    try:
        options = ServeOptions(
            host=host,
            port=port,
            max_streams=max_streams,
            max_message_bytes=max_message_bytes,
            token=token,
            origins=tuple(origin or ()),
            tls_cert=tls_cert,
            tls_key=tls_key,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    threads = threads or n_cores()
    batch = StreamBatch(
        model=model,
        runtime=runtime,
        precision=precision.value,
        attenuation_limit_db=atten_limit_db,
        narrow=narrow,
        pcs=pcs,
        threads=threads,
    )
    with batch:
        limit = options.max_streams
        if limit is None:
            limit = estimated_streams(batch, threads)
            logger.info("estimate: this machine holds %d streams at 48 kHz; --max-streams sets another limit", limit)
        if options.tls_cert is None and host not in ("127.0.0.1", "::1", "localhost"):
            logger.warning("no TLS: sound%s can be read on its way; see --tls-cert", " and token" if token else "")
        if token is None and host not in ("127.0.0.1", "::1", "localhost"):
            logger.warning("no token: whoever reaches this port may use it; see --token")
        serve_until_stopped(Server(batch, options, limit), f"{model or 'base'} in {runtime}, {threads} threads")


def _log(as_json: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if as_json else _Lines("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("edgese.serve")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    logging.getLogger("edgese.serve.websockets").setLevel(logging.CRITICAL)  # a client's faults are ours to tell


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        return json.dumps({"time": at, "level": record.levelname, "message": record.getMessage()})
