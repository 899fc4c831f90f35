"""`edgese.Stream` and `StreamBatch`: what comes out, when, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgese
from edgese.audio import Samples
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.lift import LiveLift
from edgese.enhance.signal_path import denoise
from edgese.errors import AudioError, ConfigError
from edgese.graphs.bundles import shipped_bundle
from export import ExportError
from export.bundle import Bundle
from runtimes.base import RuntimeUnavailable

RATES = (16_000, 48_000, 44_100, 8_000, 22_050, 44_101)
SIZES = (1, 480, 7, 1000, 1, 3, 2500)  # of blocks, again and again


@pytest.fixture
def small() -> Path:
    """The shipped bundle that is the fastest."""
    return shipped_bundle("small")


def noise(rate_hz: int, seconds: float = 0.25, channels: int = 1) -> Samples:
    shape = round(rate_hz * seconds), channels
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def cut(wave: Samples, sizes: tuple[int, ...] = SIZES) -> Iterator[Samples]:
    at, turn = 0, 0
    while at < len(wave):
        yield wave[at : at + sizes[turn % len(sizes)]]
        at, turn = at + sizes[turn % len(sizes)], turn + 1


def streamed(stream: edgese.Stream, wave: Samples) -> Samples:
    """A recording through a stream, its delay taken away; every block must come back as long as it was."""
    found = []
    for block in cut(wave):
        found.append(stream.process(block))
        assert (found[-1].shape, found[-1].dtype) == (block.shape, block.dtype)
    found.append(stream.flush())
    assert len(found[-1]) == stream.latency_samples
    return np.concatenate(found)[stream.latency_samples :]


def enhanced(bundle: Path, wave: Samples, rate_hz: int, **options: Any) -> Samples:
    with Denoiser(Bundle.open(bundle)) as denoiser:
        return np.concatenate(list(denoise([wave], rate_hz, wave.shape[1], denoiser, **options)))


@pytest.mark.parametrize("rate_hz", RATES)
def test_a_stream_gives_what_enhance_gives(small: Path, rate_hz: int) -> None:
    wave = noise(rate_hz, channels=2)
    with edgese.Stream(rate_hz, 2, model=small) as stream:
        for _ in range(2):  # flush began it anew
            np.testing.assert_allclose(streamed(stream, wave), enhanced(small, wave, rate_hz), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"narrow": True}, {"atten_limit_db": 6.0}])
def test_the_options_are_those_of_enhance(small: Path, options: dict[str, Any]) -> None:
    own = {"attenuation_limit_db" if name == "atten_limit_db" else name: value for name, value in options.items()}
    with edgese.Stream(48_000, model=small, **own) as stream:
        wanted = enhanced(small, noise(48_000), 48_000, **options)
        np.testing.assert_allclose(streamed(stream, noise(48_000)), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate_hz", RATES)
def test_the_latency_is_what_is_measured(identity_bundle: Path, rate_hz: int) -> None:
    with edgese.Stream(rate_hz, model=identity_bundle) as stream:
        at = rate_hz // 10 + 5
        wave = np.zeros(rate_hz // 2, np.float32)
        wave[at] = 1.0
        found = np.concatenate([stream.process(block) for block in np.split(wave, range(1, 3000))])
        assert int(np.abs(found).argmax()) - at == stream.latency_samples
        assert stream.latency_ms == 1000 * stream.latency_samples / rate_hz
        assert 31 < stream.latency_ms < 47


def test_the_latency_is_the_least_that_one_sample_at_a_time_allows(identity_bundle: Path) -> None:
    with edgese.Stream(48_000, model=identity_bundle) as stream:
        front, least = stream._port.front, 10**9
        for _ in range(6000):
            front.feed(np.zeros((1, 1), np.float32))
            stream._advance()
            least = min(least, front._done.n_frames - 1)
            front.take(1)
        assert least == 0


def test_integers_come_back_as_integers(identity_bundle: Path) -> None:
    wave = np.array([0, 1, -1, 32767, -32768, 12345] * 200, np.int16)
    with edgese.Stream(16_000, model=identity_bundle) as stream:
        found = np.concatenate([stream.process(wave), stream.flush()])
        assert found.dtype == np.int16
        np.testing.assert_array_equal(found[stream.latency_samples :], wave)


def test_quiet_sound_is_lifted_after_ten_seconds_and_no_sooner() -> None:
    lift, hop = LiveLift(16_000, 1), noise(16_000, 0.008) * 0.01  # -60 dBFS
    rises = [np.abs(lift.raised(hop)).max() / np.abs(hop).max() for _ in range(1500)]
    assert rises[1200] == 1.0
    assert 10 < rises[-1] < 40
    back = np.concatenate([lift.taken_back(hop * np.float32(1)) for _ in range(1500)])
    assert np.abs(back[-128:]).max() == pytest.approx(np.abs(hop).max() / rises[-1], rel=0.05)
    loud = noise(16_000, 0.008) * 3
    assert np.abs(lift.raised(loud))[-1] == pytest.approx(np.abs(loud)[-1], rel=1e-3)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        ([0.0, 1.0], "list"),
        (np.zeros((5, 2), np.float32), r"\(5, 2\)"),
        (np.zeros((5, 1, 1), np.float32), r"\(5, 1, 1\)"),
        (np.zeros(5, np.int32), "int32"),
        (np.array([0, np.nan], np.float32), "NaN"),
        (np.array([0, np.inf]), "NaN or Inf"),
    ],
)
def test_blocks_that_are_none_are_refused_and_the_stream_goes_on(
    identity_bundle: Path, samples: Any, found: str
) -> None:
    wave = noise(16_000)[:, 0]
    with edgese.Stream(16_000, model=identity_bundle) as stream:
        first = stream.process(wave[:2000])
        with pytest.raises(AudioError, match=found):
            stream.process(samples)
        rest = np.concatenate([first, stream.process(wave[2000:]), stream.flush()])
        np.testing.assert_array_equal(rest[stream.latency_samples :], wave)


@pytest.mark.parametrize(
    ("options", "error", "found"),
    [
        ({"sample_rate_hz": 1000}, ConfigError, "found 1000, wanted 4000 to"),
        ({"sample_rate_hz": 16_000.0}, ConfigError, "found 16000.0"),
        ({"channels": 0}, ConfigError, "found 0, wanted 1 to"),
        ({"attenuation_limit_db": -1}, ConfigError, "found -1"),
        ({"precision": "fp64"}, ConfigError, "found 'fp64', wanted one of fp32"),
        ({"precision": "int8"}, ExportError, "int8"),
        ({"model": "nothing-like-it"}, ExportError, "no such directory"),
        ({"runtime": "nothing-like-it"}, RuntimeUnavailable, "nothing-like-it"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    identity_bundle: Path, options: dict[str, Any], error: type[Exception], found: str
) -> None:
    with pytest.raises(error, match=found):
        edgese.Stream(**{"sample_rate_hz": 16_000, "model": identity_bundle, **options})


def test_a_closed_stream_says_so(identity_bundle: Path) -> None:
    stream = edgese.Stream(16_000, model=identity_bundle)
    stream.close()
    stream.close()
    with pytest.raises(RuntimeUnavailable, match="closed"):
        stream.process(np.zeros(1000, np.float32))


def test_no_sound_is_no_sound(identity_bundle: Path) -> None:
    with edgese.Stream(48_000, 2, model=identity_bundle) as stream:
        assert stream.process(np.zeros((0, 2), np.float32)).shape == (0, 2)
        assert stream.flush().shape == (stream.latency_samples, 2)


def test_importing_edgese_loads_nothing_heavy() -> None:
    script = "import sys, edgese; assert 'numpy' not in sys.modules; edgese.Stream; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "False\n"


# Many streams


def test_streams_of_a_batch_are_alone_whoever_joins_and_leaves(small: Path) -> None:
    rates, begins, sizes = (16_000, 48_000, 44_100), (0, 2, 5), (300, 2000, 977)
    waves = [noise(rate_hz, 0.2 + 0.02 * index, 1 + index % 2) for index, rate_hz in enumerate(rates)]
    with edgese.StreamBatch(model=small) as batch:
        streams: dict[int, Any] = {}
        found: dict[int, list[Samples]] = {0: [], 1: [], 2: []}
        at, left = [0, 0, 0], set[int]()
        for turn in range(100):
            for index, begin in enumerate(begins):
                if turn == begin:
                    streams[index] = batch.join(rates[index], waves[index].shape[1])
            blocks = {
                streams[index]: waves[index][at[index] : at[index] + sizes[index]]
                for index in streams
                if index not in left
            }
            for joined, block in batch.process(blocks).items():
                index = next(key for key, value in streams.items() if value is joined)
                assert block.shape == blocks[joined].shape
                found[index].append(block)
                at[index] += len(block)
            for index in set(streams) - left:
                if at[index] >= len(waves[index]):
                    found[index].append(batch.leave(streams[index]))
                    left.add(index)
        assert (left, len(batch)) == ({0, 1, 2}, 0)
        for index, rate_hz in enumerate(rates):
            wave = np.concatenate(found[index])[streams[index].latency_samples :]
            np.testing.assert_allclose(wave, enhanced(small, waves[index], rate_hz), rtol=0, atol=1e-5)


def test_a_row_that_is_used_again_begins_silent(small: Path) -> None:
    with edgese.StreamBatch(model=small) as batch:
        found = []
        for _ in range(2):
            joined = batch.join(16_000)
            found.append(batch.process({joined: noise(16_000)})[joined])
            batch.drop(joined)
        np.testing.assert_array_equal(*found)


def test_a_block_that_is_refused_disturbs_no_other_stream(identity_bundle: Path) -> None:
    with edgese.StreamBatch(model=identity_bundle) as batch:
        good, bad = batch.join(16_000), batch.join(16_000)
        wave = noise(16_000)[:, 0]
        with pytest.raises(AudioError, match="NaN"):
            batch.process({good: wave, bad: np.full(10, np.nan, np.float32)})
        found = np.concatenate([batch.process({good: wave})[good], batch.leave(good)])
        np.testing.assert_array_equal(found[good.latency_samples :], wave)
        with pytest.raises(ConfigError, match="has left"):
            batch.process({good: wave})
        with pytest.raises(ConfigError, match="has left"):
            batch.leave(good)


def test_streams_in_threads_of_their_own_do_not_mix(small: Path) -> None:
    wave = noise(16_000, channels=3)
    found: dict[int, Samples] = {}

    def run(index: int) -> None:
        with edgese.Stream(16_000, model=small) as stream:
            found[index] = streamed(stream, wave[:, index : index + 1])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = enhanced(small, wave, 16_000)
    np.testing.assert_allclose(np.concatenate([found[i] for i in range(3)], axis=1), wanted, rtol=0, atol=1e-5)
