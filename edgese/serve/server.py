"""WebSocket server: a stream a connection, all of them advanced together; numbers and health on the same port.

Each connection has one message under way: the next is read when its answer is sent, so that a client that sends faster
than is computed, or reads slower, fills its own buffers and is made to wait. What is held for a client is bounded by
`WAITING` messages of at most `max_message_bytes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import itertools
import logging
import math
import re
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, urlsplit

import numpy as np

from edgese import __version__
from edgese.errors import AudioError, ConfigError, install_command
from edgese.live.stream import Joined, StreamBatch
from edgese.machine.host import MB, memory_mb
from edgese.serve.prometheus import CONTENT_TYPE, Counts
from edgese.serve.protocol import FLUSHED, StreamFormat, is_flush
from edgese.serve.rounds import Rounds
from runtimes.base import RuntimeUnavailable

try:
    from websockets.asyncio.server import ServerConnection, serve
    from websockets.exceptions import ConnectionClosed
    from websockets.frames import CloseCode
    from websockets.http11 import Request, Response
except ImportError as error:
    raise RuntimeUnavailable(f"websockets is missing: {install_command('serve')}") from error

WAITING = 4  # messages of a client that are read ahead
FIRST_MESSAGE_S = 10.0  # in which a client that asked for nothing in its address must say what it wants
SLOW_READER_S = 10.0  # after which a client is cut off that takes no answers
STOP_S = 5.0  # for the goodbyes, when the server ends
HELD_SHARE = 0.7  # of what the network alone could hold: the rest is for sockets, and for rounds that come unevenly

logger = logging.getLogger("edgese.serve")


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Where to listen, and how much of what to take.

    Attributes:
        port: 0: any that is free.
        max_streams: at a time; None: as many as `estimated_streams` finds.
        token: that clients must show; None: anybody may.
        origins: of web pages that may connect, `*` for all; programs send none.

    Raises:
        ConfigError: a value out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    max_streams: int | None = None
    max_message_bytes: int = 256 * 1024
    token: str | None = None
    origins: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def __post_init__(self) -> None:
        if self.max_streams is not None and self.max_streams < 1:
            raise ConfigError(f"max_streams: found {self.max_streams}, wanted 1 or more")
        if self.max_message_bytes < 1024:
            raise ConfigError(f"max_message_bytes: found {self.max_message_bytes}, wanted 1024 or more")
        if self.token is not None and not re.fullmatch("[!-~]+", self.token):
            raise ConfigError("token: wanted one or more visible ASCII characters, such as openssl rand -hex 32 makes")
        if self.tls_key is not None and self.tls_cert is None:
            raise ConfigError("tls_key: found no tls_cert beside it, wanted both")

    def tls(self) -> ssl.SSLContext | None:
        """What TLS needs; None without a certificate.

        Raises:
            ConfigError: files that are none, or do not belong together.
        """
        if self.tls_cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"{self.tls_cert}: no certificate with its key in PEM ({error}); wanted such as openssl req -x509 makes"
            ) from error
        return context


def estimated_streams(batch: StreamBatch, threads: int) -> int:
    """Estimate of how many streams of 48 kHz the batch can hold in real time, from a moment of noise in some."""
    rate_hz, block_s, n_blocks = 48_000, 0.02, 10
    noise = np.random.default_rng(0).normal(0, 0.1, round(rate_hz * block_s)).astype(np.float32)
    streams = [batch.join(rate_hz) for _ in range(4 * threads)]
    blocks = dict.fromkeys(streams, noise)
    for _ in range(5):  # the first hops, and what a runtime does once
        batch.process(blocks)
    took_s = []
    for _ in range(n_blocks):
        started = time.perf_counter()
        batch.process(blocks)
        took_s.append(time.perf_counter() - started)
    for stream in streams:
        batch.drop(stream)
    return max(1, math.floor(HELD_SHARE * len(streams) * block_s / float(np.median(took_s))))


class _Connection(ServerConnection):
    """A connection that knows since when its client takes no answers, and says when it is gone.

    Attributes:
        wanted: what its address asked for; None: nothing.
    """

    wanted: StreamFormat | None = None
    slow_since: float | None = None
    cut_off = False
    gone: Callable[[], None] | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self.slow_since = time.monotonic()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.slow_since = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.gone is not None:
            self.gone()


class Server:
    """A server on a batch.

    Attributes:
        limit: streams that it takes at a time.
    """

    def __init__(self, batch: StreamBatch, options: ServeOptions, limit: int) -> None:
        self._rounds, self._options, self.limit = Rounds(batch), options, limit
        self._held: set[_Connection] = set()  # those that have a place
        self._numbers = itertools.count(1)
        self._counts = Counts()
        self._started = time.monotonic()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        """Its address while it listens; at the end all streams are told goodbye.

        Raises:
            ConfigError: the port cannot be had, or TLS cannot be.
        """
        options, tls = self._options, self._options.tls()
        async with self._rounds:
            try:
                server = await serve(
                    self._stream,
                    options.host,
                    options.port,
                    ssl=tls,
                    process_request=self._page,
                    process_response=self._place,
                    server_header=f"edgese/{__version__}",
                    compression=None,  # sound does not compress, and what is small could unfold to much
                    max_size=options.max_message_bytes,
                    max_queue=WAITING,
                    ping_timeout=60,  # a client that sends a whole file waits for its own sound
                    close_timeout=STOP_S / 2,
                    create_connection=_Connection,
                    logger=logging.getLogger("edgese.serve.websockets"),
                )
            except (OSError, OverflowError) as error:
                raise ConfigError(
                    f"{options.host} port {options.port}: cannot listen there ({error}); choose by --host, --port"
                ) from error
            watch = asyncio.create_task(self._cut_off_slow_readers())
            name = server.sockets[0].getsockname()
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            try:
                yield f"{'wss' if tls else 'ws'}://{host}:{name[1]}"
            finally:
                watch.cancel()
                server.close(code=CloseCode.GOING_AWAY, reason="the server stops")
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(server.wait_closed(), STOP_S)
                for connection in [*self._held]:
                    connection.transport.abort()

    async def until(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set, or when a bug has ended the rounds."""
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, self._rounds.task}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()

    # Before a stream: pages, secrets, places

    def _page(self, connection: ServerConnection, request: Request) -> Response | None:
        """An answer in plain HTTP; None: go on to a stream."""
        address = urlsplit(request.path)
        if address.path == "/health":
            return connection.respond(HTTPStatus.OK, "ok\n")
        if address.path not in ("/", "/metrics"):
            return connection.respond(HTTPStatus.NOT_FOUND, "wanted /, /health or /metrics\n")
        query = dict(parse_qsl(address.query, keep_blank_values=True))
        if not self._may(request, query.pop("token", "")):
            self._refuse(connection, "token")
            response = connection.respond(HTTPStatus.UNAUTHORIZED, "wanted Authorization: Bearer TOKEN, or ?token=\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if address.path == "/metrics":
            response = connection.respond(HTTPStatus.OK, self._metrics())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        origin = request.headers.get("Origin")
        if origin is not None and not {origin, "*"} & {*self._options.origins}:
            self._refuse(connection, "origin")
            return connection.respond(HTTPStatus.FORBIDDEN, "pages from there may not connect: see --origin\n")
        try:
            cast(_Connection, connection).wanted = StreamFormat.from_query(query) if query else None
        except ConfigError as error:
            self._refuse(connection, "format")
            return connection.respond(HTTPStatus.BAD_REQUEST, f"{error}\n")
        return None

    def _may(self, request: Request, shown: str) -> bool:
        if self._options.token is None:
            return True
        scheme, _, bearer = request.headers.get("Authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else shown
        wanted = self._options.token.encode()
        return hmac.compare_digest(given.encode(errors="replace"), wanted)

    def _place(self, connection: ServerConnection, request: Request, response: Response) -> Response | None:
        """None, and a place is taken where the answer is to open a stream; another answer where all are."""
        if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
            return None
        if len(self._held) >= self.limit:
            self._refuse(connection, "full")
            response = connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"all {self.limit} streams are taken: try again later\n"
            )
            response.headers["Retry-After"] = "5"
            return response
        holder = cast(_Connection, connection)
        self._held.add(holder)
        holder.gone = partial(self._held.discard, holder)
        self._counts.connections["accepted"] += 1
        return None

    def _refuse(self, connection: ServerConnection, why: str) -> None:
        self._counts.connections[f"refused_{why}"] += 1
        logger.info("refused %s: %s", _peer(connection), why)

    # A stream

    async def _stream(self, connection: ServerConnection) -> None:
        number, started, sound_s = next(self._numbers), time.monotonic(), 0.0
        joined: Joined | None = None
        why = "client"
        try:
            wanted, message = await self._agreed(connection)
            joined = await self._rounds.join(wanted.rate, wanted.channels)
            await connection.send(wanted.ready(joined.latency_samples))
            logger.info("stream %d opened: %s, %s", number, _peer(connection), wanted)
            while True:
                if message is None:
                    message = await connection.recv()
                if isinstance(message, str):
                    if not is_flush(message):
                        raise AudioError('message: unknown text, wanted bytes, or {"type": "flush"}')
                    rest = await self._rounds.leave(joined)
                    joined = await self._rounds.join(wanted.rate, wanted.channels)
                    await connection.send(wanted.message(rest))
                    await connection.send(FLUSHED)
                else:
                    arrived, samples = time.perf_counter(), wanted.samples(message)
                    answer = await self._rounds.process(joined, samples)
                    await connection.send(wanted.message(answer))
                    self._counts.answered(time.perf_counter() - arrived, len(samples) / wanted.rate)
                    sound_s += len(samples) / wanted.rate
                message = None
        except ConnectionClosed as closed:
            why = _reason(connection, closed)
        except (ConfigError, AudioError) as error:
            why = "garbage"
            logger.info("stream %d: %s", number, error)
            await connection.close(CloseCode.INVALID_DATA, _short(error))
        except asyncio.TimeoutError:
            why = "silent"
            await connection.close(CloseCode.POLICY_VIOLATION, f"no message in {FIRST_MESSAGE_S:.0f} s")
        except RuntimeUnavailable as error:
            why = "failed"
            logger.error("stream %d: %s", number, error)
            await connection.close(CloseCode.INTERNAL_ERROR, "the network failed")
        finally:
            if joined is not None:
                self._rounds.drop(joined)
            self._counts.closed[why] += 1
            took_s = time.monotonic() - started
            logger.info("stream %d closed: %s; %.1f s of sound in %.1f s", number, why, sound_s, took_s)

    async def _agreed(self, connection: ServerConnection) -> tuple[StreamFormat, str | bytes | None]:
        """The format of a stream, and its first message if that was none that named it."""
        wanted = cast(_Connection, connection).wanted
        if wanted is not None:
            return wanted, None
        first = await asyncio.wait_for(connection.recv(), FIRST_MESSAGE_S)
        if isinstance(first, str) and not is_flush(first):
            return StreamFormat.from_message(first), None
        return StreamFormat(), first

    async def _cut_off_slow_readers(self) -> None:
        while True:
            await asyncio.sleep(SLOW_READER_S / 10)
            for connection in [*self._held]:
                since = connection.slow_since
                if since is not None and time.monotonic() - since > SLOW_READER_S:
                    connection.cut_off = True
                    connection.transport.abort()

    def _metrics(self) -> str:
        memory = memory_mb("VmRSS")
        gauges = {
            "edgese_streams": ("Streams that are open.", float(len(self._held))),
            "edgese_streams_limit": ("Streams that are taken at a time.", float(self.limit)),
        }
        if memory is not None:
            gauges["process_resident_memory_bytes"] = ("Resident memory.", memory * MB)
        totals = {
            "edgese_rounds_total": (
                "Calls of the network, for all streams that had sound.",
                self._rounds.n_rounds,
            ),
            "edgese_busy_seconds_total": ("Seconds in these calls; its rate is the load.", self._rounds.busy_s),
            "edgese_uptime_seconds_total": ("Seconds since the start.", time.monotonic() - self._started),
        }
        return self._counts.text(gauges, {name: (says, float(value)) for name, (says, value) in totals.items()})


def _peer(connection: ServerConnection) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if address else "a client that is gone"


def _short(error: Exception) -> str:
    """At most the 123 bytes that a close frame holds."""
    return str(error).encode()[:120].decode(errors="ignore")


def _reason(connection: ServerConnection, closed: ConnectionClosed) -> str:
    """Why a connection is closed, in a word."""
    if cast(_Connection, connection).cut_off:
        return "slow_reader"
    if closed.sent is not None and closed.sent.code == CloseCode.GOING_AWAY and not closed.rcvd_then_sent:
        return "stopped"
    if closed.sent is not None and closed.sent.code == CloseCode.MESSAGE_TOO_BIG:
        return "too_big"
    if closed.sent is not None and closed.sent.code in (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA):
        return "garbage"
    return "client" if closed.rcvd is not None else "lost"


def serve_until_stopped(server: Server, what: str) -> None:
    """Serve until Ctrl-C or SIGTERM. Errors: as `Server.listening`."""
    asyncio.run(_serve_until_stopped(server, what))


async def _serve_until_stopped(server: Server, what: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server.listening() as url:
        logger.info("listening on %s: %s, up to %d streams", url, what, server.limit)
        await server.until(stop)
        logger.info("stopping")
    logger.info("stopped")
