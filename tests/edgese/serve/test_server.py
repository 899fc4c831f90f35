"""`edgese serve` from outside: what comes out, who is taken and who is not, and that nobody disturbs another."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from edgese.audio import Samples
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.signal_path import denoise
from edgese.errors import AudioError, ConfigError
from edgese.graphs.bundles import shipped_bundle
from edgese.live.stream import StreamBatch
from edgese.serve import server as module
from edgese.serve.rounds import Rounds
from edgese.serve.server import ServeOptions, Server, estimated_streams
from export.bundle import Bundle

from ..helpers.command_line import ROOT, run_python
from ..helpers.identity_bundle import write_identity_bundle

LONG_S = 60.0  # nothing here waits for it unless it hangs


def served(bundle: Path, scenario: Callable[[str], Awaitable[None]], limit: int = 3, **options: Any) -> None:
    """Run a scenario against a server; at its end every stream must be gone."""

    async def run() -> None:
        with StreamBatch(model=bundle) as batch:
            server = Server(batch, ServeOptions(port=0, **options), limit)
            async with server.listening() as url:
                await asyncio.wait_for(scenario(url), LONG_S)
            assert (len(batch), len(server._held)) == (0, 0)

    asyncio.run(run())


@contextlib.asynccontextmanager
async def opened(url: str, query: str = "?rate=16000", **options: Any) -> AsyncIterator[ClientConnection]:
    async with connect(f"{url}/{query}", **options) as client:
        assert json.loads(await client.recv())["type"] == "ready"
        yield client


async def answer(client: ClientConnection, message: bytes) -> bytes:
    await client.send(message)
    found = await client.recv()
    assert isinstance(found, bytes)
    return found


async def flushed(client: ClientConnection) -> bytes:
    rest = await answer(client, '{"type": "flush"}')  # type: ignore[arg-type]
    assert json.loads(await client.recv()) == {"type": "flushed"}
    return rest


def sound(n: int = 4000, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(seed).normal(0, 3000, n).astype(np.int16)


def page(url: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url.replace("ws://", "http://") + path, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=LONG_S) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def number(url: str, name: str) -> float:
    _, text = await asyncio.to_thread(page, url, "/metrics")
    found = [line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0]) if found else 0.0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


async def passes_unharmed(client: ClientConnection, wave: Any, meanwhile: Callable[[], Awaitable[None]]) -> None:
    """A stream through the identity, with something happening in its middle, gives what it gets."""
    first = await answer(client, wave[: len(wave) // 2].tobytes())
    await meanwhile()
    found = first + await answer(client, wave[len(wave) // 2 :].tobytes()) + await flushed(client)
    np.testing.assert_array_equal(np.frombuffer(found, np.int16)[-len(wave) :], wave)


# What comes out


def test_what_comes_out_equals_enhance_in_streams_side_by_side() -> None:
    bundle = shipped_bundle("small")
    waves = [np.random.default_rng(seed).normal(0, 0.1, (3000, 2)).astype(np.float32) for seed in range(2)]
    with Denoiser(Bundle.open(bundle)) as denoiser:
        wanted = [np.concatenate(list(denoise([wave], 48_000, 2, denoiser))) for wave in waves]

    async def one(url: str, wave: Samples, sizes: tuple[int, int]) -> bytes:
        async with connect(url) as client:
            await client.send(json.dumps({"rate": 48_000, "channels": 2, "format": "float32"}))
            latency = json.loads(await client.recv())["latency_samples"]
            parts = [await answer(client, block.tobytes()) for block in np.split(wave, sizes)]
            return (b"".join(parts) + await flushed(client))[8 * latency :]

    async def scenario(url: str) -> None:
        found = await asyncio.gather(one(url, waves[0], (7, 1000)), one(url, waves[1], (480, 2999)))
        for got, want in zip(found, wanted, strict=True):
            np.testing.assert_allclose(np.frombuffer(got, np.float32).reshape(-1, 2), want, rtol=0, atol=1e-5)

    served(bundle, scenario)


@pytest.mark.slow
def test_the_example_of_the_page_runs(identity_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "serve.md").read_text()
    example = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    (tmp_path / "client.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    soundfile.write("noisy.wav", sound(2000), 16_000, "PCM_16")

    async def scenario(url: str) -> None:
        done = await asyncio.to_thread(partial(run_python, ["client.py", url], tmp_path, cold=True))
        assert (done.returncode, done.stderr) == (0, b"")

    served(identity_bundle, scenario)
    found, rate_hz = soundfile.read("clean.wav", dtype="int16")
    assert rate_hz == 16_000
    np.testing.assert_array_equal(found, sound(2000))


def test_a_stream_may_begin_with_samples_and_begin_anew(identity_bundle: Path) -> None:
    async def scenario(url: str) -> None:
        async with connect(url) as client:
            await client.send(sound().tobytes())
            latency = json.loads(await client.recv())["latency_samples"]
            for turn in range(2):
                first = await client.recv() if turn == 0 else await answer(client, sound().tobytes())
                assert isinstance(first, bytes)
                found = np.frombuffer(first + await flushed(client), np.int16)
                np.testing.assert_array_equal(found[latency:], sound())
            assert await answer(client, b"") == b""

    served(identity_bundle, scenario)


def test_a_long_message_does_not_hold_up_a_short_one(identity_bundle: Path) -> None:
    async def scenario() -> list[str]:
        done = []
        async with Rounds(StreamBatch(model=identity_bundle)) as rounds:

            async def one(name: str, n_samples: int) -> None:
                joined = await rounds.join(16_000, 1)
                assert len(await rounds.process(joined, sound(n_samples))) == n_samples
                done.append(name)

            await asyncio.gather(one("long", 16_000), one("short", 320))
            assert rounds.n_rounds >= 50  # of 20 ms
        return done

    assert asyncio.run(scenario()) == ["short", "long"]


def test_a_network_that_gives_inf_ends_its_stream_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Rounds(StreamBatch(model=write_identity_bundle(tmp_path / "loud", gain=1e30))) as rounds:
            good, bad = await rounds.join(16_000, 1), await rounds.join(16_000, 1)
            quiet, loud = np.full(1024, 1e-30, np.float32), np.full(1024, 1e10, np.float32)
            found = await asyncio.gather(rounds.process(good, quiet), rounds.process(bad, loud), return_exceptions=True)
            assert isinstance(found[1], AudioError)
            rounds.drop(bad)
            whole = np.concatenate([found[0], await rounds.process(good, quiet), await rounds.leave(good)])
            np.testing.assert_allclose(whole[good.latency_samples :], 1, rtol=1e-5)

    asyncio.run(scenario())


# Who is taken


def test_past_the_limit_is_refused_and_disturbs_nobody(identity_bundle: Path) -> None:
    async def scenario(url: str) -> None:
        async def two_more() -> None:
            for _ in range(2):
                with pytest.raises(InvalidStatus) as refused:
                    await connect(url)
                assert refused.value.response.status_code == 503
                assert refused.value.response.headers["Retry-After"] == "5"
                assert b"all 1 streams are taken" in (refused.value.response.body or b"")

        async with opened(url) as client:
            await passes_unharmed(client, sound(), two_more)
        assert '{result="refused_full"} 2' in (await asyncio.to_thread(page, url, "/metrics"))[1]
        await until(lambda: is_number(url, "edgese_streams", 0))
        async with opened(url):  # the place is free again
            assert await number(url, "edgese_streams") == 1

    served(identity_bundle, scenario, limit=1)


async def is_number(url: str, name: str, wanted: float) -> bool:
    return await number(url, name) == wanted


def test_a_token_is_asked_for_in_a_header_or_the_query(identity_bundle: Path) -> None:
    async def scenario(url: str) -> None:
        for query, headers in (("", {}), ("?token=wrong", {}), ("?token=", {"Authorization": "Bearer wr\xf6ng"})):
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{url}/{query}", additional_headers=headers)
            assert refused.value.response.status_code == 401
        async with opened(url, "?rate=16000&token=s%2Bcret"), opened(url, additional_headers=bearer):
            pass
        async with connect(f"{url}/?token=s%2Bcret") as client:  # a token alone asks for no format
            await client.send("{}")
            assert json.loads(await client.recv())["rate"] == 16_000
        found = [await asyncio.to_thread(page, url, "/metrics", headers) for headers in (None, bearer)]
        assert [status for status, _ in found] == [401, 200]
        assert 'result="refused_token"} 4' in found[1][1]
        assert await asyncio.to_thread(page, url, "/health") == (200, "ok\n")

    bearer = {"Authorization": "bearer s+cret"}
    served(identity_bundle, scenario, token="s+cret")


def test_web_pages_need_to_be_named(identity_bundle: Path) -> None:
    async def scenario(url: str) -> None:
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, origin="https://evil.example")
        assert refused.value.response.status_code == 403
        async with opened(url, origin="https://good.example"):
            pass

    served(identity_bundle, scenario, origins=("https://good.example",))


def test_addresses_that_are_none_are_answered_in_http(identity_bundle: Path) -> None:
    async def scenario(url: str) -> None:
        asked = ("/?rate=5", "/?speed=2", "/nothing", "/")
        found = [await asyncio.to_thread(page, url, path) for path in asked]
        assert [status for status, _ in found] == [400, 400, 404, 426]
        assert "rate: found 5, wanted 4000 to 384000" in found[0][1]
        assert await number(url, "edgese_streams") == 0

    served(identity_bundle, scenario)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, which makes the certificate")
def test_tls_by_a_certificate(identity_bundle: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2 "
            f"-addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}")  # fmt: skip
    subprocess.run(make.split(), check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=str(cert))

    async def scenario(url: str) -> None:
        assert url.startswith("wss://")
        async with opened(url, ssl=trusting) as client:
            assert len(await answer(client, sound().tobytes())) == 8000

    served(identity_bundle, scenario, tls_cert=cert, tls_key=key)
    with pytest.raises(ConfigError, match="no certificate with its key in PEM"):
        ServeOptions(tls_cert=cert).tls()


# Clients that fail


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"odd", 1007),
        ("text", 1007),
        (bytes(70_000), 1009),
        ('{"type": "reset"}', 1007),
    ],
)
def test_garbage_ends_its_own_stream_with_a_code(identity_bundle: Path, message: bytes | str, code: int) -> None:
    async def scenario(url: str) -> None:
        async def garbage() -> None:
            async with opened(url) as client:
                await client.send(message)
                with pytest.raises(ConnectionClosed) as closed:
                    await client.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == code

        async with opened(url) as good:
            await passes_unharmed(good, sound(), garbage)

    served(identity_bundle, scenario, max_message_bytes=65_536)


def test_bytes_that_are_no_frames_and_clients_that_are_killed(identity_bundle: Path) -> None:
    async def scenario(url: str) -> None:
        async def violence() -> None:
            async with opened(url) as client:
                client.transport.write(b"\xff" * 64)  # a reserved opcode, no mask
                with pytest.raises(ConnectionClosed):
                    await client.recv()
            host, port = url.removeprefix("ws://").split(":")
            with socket.create_connection((host, int(port))) as raw:  # no HTTP
                raw.sendall(b"\x16\x03\x01\x00\xff" * 20 + b"\r\n\r\n")
                raw.settimeout(LONG_S)
                while await asyncio.to_thread(raw.recv, 4096):
                    pass
            client = await connect(f"{url}/?rate=16000")
            await client.recv()
            await client.send(sound(16_000).tobytes())
            client.transport.abort()  # in the middle of its sound
            await until(lambda: is_number(url, "edgese_streams", 1))

        async with opened(url) as good:
            await passes_unharmed(good, sound(), violence)

    served(identity_bundle, scenario)


@pytest.mark.slow
def test_a_slow_reader_is_cut_off_and_nobody_waits_for_it(
    identity_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_READER_S", 0.2)

    async def scenario(url: str) -> None:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = url.removeprefix("ws://").split(":")
        raw.connect((host, int(port)))
        raw.setblocking(False)
        slow = await connect(f"{url}/?rate=48000&channels=8&format=int16", sock=raw, max_queue=1, ping_interval=None)

        async def send_and_never_read() -> None:
            for _ in range(1000):
                await slow.send(bytes(262_144))

        sending = asyncio.create_task(send_and_never_read())
        async with opened(url) as good:
            await passes_unharmed(good, sound(), lambda: asyncio.wait_for(asyncio.wait([sending]), LONG_S))
            assert isinstance(sending.exception(), ConnectionClosed | OSError)
            await until(lambda: is_number(url, 'edgese_closed_total{reason="slow_reader"}', 1))
            assert await number(url, "edgese_streams") == 1

    served(identity_bundle, scenario)


def test_a_connection_that_asks_for_nothing_is_closed(identity_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_MESSAGE_S", 0.05)

    async def scenario(url: str) -> None:
        async with connect(url) as client:
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1008

    served(identity_bundle, scenario)


# The server itself


def test_when_it_stops_streams_are_told(identity_bundle: Path) -> None:
    clients = []

    async def scenario(url: str) -> None:
        clients.append(await connect(f"{url}/?rate=16000"))
        await clients[0].recv()

    async def run() -> None:
        with StreamBatch(model=identity_bundle) as batch:
            async with Server(batch, ServeOptions(port=0), 1).listening() as url:
                await scenario(url)
            with pytest.raises(ConnectionClosed) as closed:
                await clients[0].recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001

    asyncio.run(run())


def test_a_bug_in_a_round_ends_the_server_instead_of_leaving_clients_waiting(
    identity_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.2)

    async def run() -> None:
        with StreamBatch(model=identity_bundle) as batch:
            monkeypatch.setattr(batch, "process", lambda blocks: 1 / 0)
            server = Server(batch, ServeOptions(port=0), 1)
            async with server.listening() as url:
                client = await connect(f"{url}/?rate=16000")
                await client.send(sound().tobytes())
                await asyncio.wait_for(server.until(asyncio.Event()), LONG_S)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def test_a_port_that_is_taken_and_options_that_cannot_be(identity_bundle: Path) -> None:
    async def scenario(url: str) -> None:
        with StreamBatch(model=identity_bundle) as batch:
            taken = ServeOptions(port=int(url.rpartition(":")[2]))
            with pytest.raises(ConfigError, match=r"cannot listen there \(.*--port"):
                async with Server(batch, taken, 1).listening():
                    pass

    served(identity_bundle, scenario)
    wrongs: list[dict[str, Any]] = [{"max_streams": 0}, {"max_message_bytes": 1}, {"tls_key": Path("key.pem")}]
    wrongs += [{"token": token} for token in ("", "two words", "s\u00e9cret")]
    for wrong in wrongs:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ServeOptions(**wrong)


def test_the_estimate_leaves_the_batch_empty(identity_bundle: Path) -> None:
    with StreamBatch(model=identity_bundle) as batch:
        assert estimated_streams(batch, threads=1) >= 1
        assert len(batch) == 0
