"""How many live streams one server holds in real time, what its answers take, what happens past the limit; a soak.

    python -m benchmarks.serve_load [--model small] [--runtime native] [--streams 1 4 8 16] [--seconds 20]
    python -m benchmarks.serve_load --soak-minutes 10 --streams 4

`edgese serve` in a process of its own; the clients are here, on the same machine, over loopback, and take their share
of its cores. Each client sends 20 ms of sound every 20 ms by its own clock, unless 25 messages wait for their answers.
Late: an answer that took longer than 40 ms, two blocks. Held: every client sent all that it was to send, and at most
1 % of the answers were late.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from benchmarks.machine import EDGESE, Row, parser, report, verdict
from edgese.audio.reader import read_wave
from edgese.machine.host import MB, describe
from edgese.samples import NOISY

BLOCK_S = 0.02
MOST_WAITING = 25
LATE_S = 2 * BLOCK_S


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="small")
    arguments.add_argument("--runtime", default="native")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rate", type=int, default=16_000)
    arguments.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16])
    arguments.add_argument("--seconds", type=float, default=20.0)
    arguments.add_argument("--soak-minutes", type=float, help="clients that come, go, are killed")
    options = arguments.parse_args()
    wave = np.round(read_wave(NOISY, options.rate) * 32767).astype("<i2")
    size = round(options.rate * BLOCK_S)
    blocks = [wave[at : at + size].tobytes() for at in range(0, len(wave) - size, size)]
    command = [*EDGESE, "serve", "--model", options.model, "--runtime", options.runtime, "--port", "0", "--json"]
    command += ["--threads", str(options.threads), "--max-streams", str(max(options.streams))]
    rows: list[Row] = []
    with _server(command) as (url, process):
        if options.soak_minutes:
            notes = asyncio.run(_soak(url, options.rate, blocks, options.streams[-1], options.soak_minutes * 60, rows))
        else:
            for n_streams in options.streams:
                rows.append(asyncio.run(_level(url, options.rate, blocks, n_streams, options.seconds, process.pid)))
            notes = [asyncio.run(_past_the_limit(url, options.rate, blocks, max(options.streams)))]
    report(
        "serve_load", describe(), rows, [f"{' '.join(command[3:])}; {options.rate} Hz", *notes], as_json=options.json
    )


@contextlib.contextmanager
def _server(command: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                message = json.loads(line)["message"]
                if message.startswith("listening on "):
                    break
            else:
                raise SystemExit(f"{' '.join(command)}: ended with exit code {process.wait()}")
            threading.Thread(target=process.stderr.read, daemon=True).start()  # else its log fills the pipe
            yield message.split()[2].rstrip(":"), process
        finally:
            process.terminate()


class Client:
    """A stream that sends at the pace of its sound."""

    def __init__(self, blocks: Sequence[bytes], start: int) -> None:
        self._blocks, self._at = blocks, start
        self.took_s: list[float] = []
        self.skipped = 0

    async def run(self, connection: ClientConnection, seconds: float) -> None:
        sent: deque[float] = deque()
        started = time.perf_counter() + np.random.default_rng(self._at).random() * BLOCK_S  # not all at once
        reading = asyncio.create_task(self._read(connection, sent))
        for turn in range(round(seconds / BLOCK_S)):
            await asyncio.sleep(max(0.0, started + turn * BLOCK_S - time.perf_counter()))
            if len(sent) >= MOST_WAITING:
                self.skipped += 1
                continue
            sent.append(time.perf_counter())
            self._at = (self._at + 1) % len(self._blocks)
            await connection.send(self._blocks[self._at])
        while sent and not reading.done():
            await asyncio.sleep(BLOCK_S)
        reading.cancel()

    async def _read(self, connection: ClientConnection, sent: deque[float]) -> None:
        async for _ in connection:
            self.took_s.append(time.perf_counter() - sent.popleft())


async def _level(url: str, rate_hz: int, blocks: Sequence[bytes], n_streams: int, seconds: float, pid: int) -> Row:
    clients = [Client(blocks, 37 * number % len(blocks)) for number in range(n_streams)]
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(f"{url}/?rate={rate_hz}")) for _ in clients]
        for connection in connections:
            await connection.recv()
        before_s = _cpu_s(pid)
        started = time.perf_counter()
        await asyncio.gather(
            *(client.run(connection, seconds) for client, connection in zip(clients, connections, strict=True))
        )
        cores = (_cpu_s(pid) - before_s) / (time.perf_counter() - started)
    took_ms = 1000 * np.array([took_s for client in clients for took_s in client.took_s])
    skipped = sum(client.skipped for client in clients)
    late = float(np.mean(took_ms > 1000 * LATE_S))
    return {
        "streams": n_streams,
        "held": "yes" if not skipped and late <= 0.01 else "no",
        "p50 ms": float(np.percentile(took_ms, 50)),
        "p99 ms": float(np.percentile(took_ms, 99)),
        "worst ms": float(took_ms.max()),
        "late %": 100 * late,
        "not sent %": 100 * skipped / (len(took_ms) + skipped),
        "server's cores": cores,
    }


async def _past_the_limit(url: str, rate_hz: int, blocks: Sequence[bytes], limit: int) -> str:
    """All places taken by quiet connections, one live among them; 50 more are refused meanwhile."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(f"{url}/?rate={rate_hz}")) for _ in range(limit)]
        await connections[0].recv()
        alone, beside = Client(blocks, 0), Client(blocks, 0)
        await alone.run(connections[0], 5)

        refused = 0
        live = asyncio.create_task(beside.run(connections[0], 5))
        while not live.done():
            try:
                await (await connect(f"{url}/?rate={rate_hz}")).close()
            except InvalidStatus as error:
                refused += error.response.status_code == 503
            await asyncio.sleep(0.1)
        p99 = [1000 * float(np.percentile(client.took_s, 99)) for client in (alone, beside)]
    return verdict(
        "past the limit all are refused with 503, and a live stream loses nothing",
        f"{refused} refused in 5 s; the live stream's p99 {p99[0]:.1f} ms before, {p99[1]:.1f} ms meanwhile, "
        f"{beside.skipped} blocks not sent",
        refused > 0 and not beside.skipped and len(beside.took_s) == len(alone.took_s),
    )


async def _soak(
    url: str, rate_hz: int, blocks: Sequence[bytes], n_streams: int, seconds: float, rows: list[Row]
) -> list[str]:
    """Streams that live 10 s each, then leave, every third one killed; memory and answers now and then."""
    ends = time.perf_counter() + seconds
    began = time.perf_counter()
    finished: list[Client] = []
    n_killed = 0

    async def come_and_go(number: int) -> None:
        nonlocal n_killed
        turn = 0
        while time.perf_counter() < ends:
            client = Client(blocks, (37 * number + 11 * turn) % len(blocks))
            connection = await connect(f"{url}/?rate={rate_hz}")
            await connection.recv()
            await client.run(connection, 10)
            if turn % 3 == 2:
                connection.transport.abort()
                n_killed += 1
            else:
                await connection.close()
            finished.append(client)
            turn += 1
            await asyncio.sleep(0.2)

    async def look() -> None:
        step_s = min(60.0, seconds / 10)
        while time.perf_counter() < ends:
            await asyncio.sleep(step_s)
            since, finished[:] = [*finished], []
            took_ms = 1000 * np.array([took_s for client in since for took_s in client.took_s] or [np.nan])
            n_skipped = sum(client.skipped for client in since)
            totals.append((sum(len(client.took_s) for client in since), len(since)))
            rows.append(
                {
                    "minutes": (time.perf_counter() - began) / 60,
                    "RSS MB": await asyncio.to_thread(_number, url, "process_resident_memory_bytes") / MB,
                    "p50 ms": float(np.percentile(took_ms, 50)),
                    "p99 ms": float(np.percentile(took_ms, 99)),
                    "worst ms": float(took_ms.max()),
                    "not sent": n_skipped,
                }
            )

    totals: list[tuple[int, int]] = []
    await asyncio.gather(look(), *(come_and_go(number) for number in range(n_streams)))
    await asyncio.sleep(1)
    open_now = await asyncio.to_thread(_number, url, "edgese_streams")
    later = [float(row["RSS MB"] or 0) for row in rows[len(rows) // 5 :]]  # after the first minutes
    grown_mb = later[-1] - later[0]
    n_streams_in_all = sum(n_clients for _, n_clients in totals) + len(finished)
    return [
        f"{n_streams_in_all} streams came and went, {n_killed} of them killed; {sum(n for n, _ in totals)} answers",
        verdict("memory grows by less than 5 MB", f"{grown_mb:+.1f} MB from row {len(rows) // 5 + 1} on", grown_mb < 5),
        verdict("no stream is left behind", f"{open_now:.0f}", open_now == 0),
    ]


def _number(url: str, name: str) -> float:
    with urllib.request.urlopen(url.replace("ws://", "http://") + "/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
