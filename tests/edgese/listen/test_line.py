"""Rings, stretching, and the line between two devices, on clocks of our own."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.audio import Samples
from edgese.errors import OutputError
from edgese.listen import line as module
from edgese.listen.line import Line
from edgese.listen.recorder import Recorder
from edgese.listen.ring import Ring
from edgese.listen.stretch import DELAY, Stretch

RATE_HZ = 48_000
BLOCK = 480


class Halving:
    """A stream that gives half of what it got, 1000 samples later."""

    sample_rate_hz, channels, latency_samples = RATE_HZ, 1, 1000

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._waiting = np.zeros(self.latency_samples, np.float32)

    def process(self, samples: Samples) -> Samples:
        whole = np.concatenate([self._waiting, samples])
        self._waiting = whole[len(samples) :]
        return whole[: len(samples)] / 2

    def flush(self) -> Samples:
        rest = self._waiting / 2
        self.reset()
        return rest


def noise(n: int, channels: int = 1, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).normal(0, 0.1, (n, channels)).astype(np.float32)


def run(
    line: Line, wave: Samples, output_ppm: float = 0.0, start_s: float = 0.0, watch: list[float] | None = None
) -> Samples:
    """A recording through a line by virtual clocks, the loudspeaker's faster by `output_ppm`; what was said.

    `watch` gets the latency once in ten seconds.
    """
    said, now_s = [], start_s
    step_s = BLOCK / RATE_HZ
    said_step_s = step_s / (1 + output_ppm * 1e-6)
    next_say_s = start_s + 0.3 * step_s
    for at in range(0, len(wave), BLOCK):
        now_s = start_s + (at + BLOCK) / RATE_HZ
        line.hear(wave[at : at + BLOCK], now_s - step_s - 0.002, now_s)
        assert line.work(0)
        while next_say_s < now_s + step_s:
            out = np.full((BLOCK, 1), 9, np.float32)
            line.say(out, next_say_s + 0.005, next_say_s)
            said.append(out)
            next_say_s += said_step_s
        if watch is not None and (at // BLOCK) % 1000 == 999:
            latency = line.numbers().latency
            watch.append(np.nan if latency is None else latency.total_s)
    return np.concatenate(said)


def test_a_ring_gives_what_was_put_across_its_end_and_says_what_found_no_place() -> None:
    ring, wave = Ring(10, 2), noise(25, 2)
    assert len(ring.take(5)) == 0
    assert [ring.put(wave[:7]), len(ring.take(4)), ring.put(wave[7:14])] == [0, 4, 0]
    assert ring.n_frames == 10
    assert ring.put(wave[14:17]) == 3
    np.testing.assert_array_equal(ring.take(100), wave[4:14])
    assert (ring.n_put, ring.n_taken) == (14, 14)


def test_two_threads_share_a_ring_without_a_lock() -> None:
    ring, wave, found = Ring(64, 1), np.arange(5000, dtype=np.float32)[:, None], []

    def put() -> None:
        at = 0
        while at < len(wave):
            block = wave[at : at + 17]
            at += len(block) - ring.put(block)
            time.sleep(0)

    putting = threading.Thread(target=put)
    putting.start()
    while sum(map(len, found)) < len(wave):
        found.append(ring.take(13))
        time.sleep(0)
    putting.join()
    np.testing.assert_array_equal(np.concatenate(found), wave)


def test_stretching_leaves_a_tone_a_tone_and_nothing_changed_as_it_is() -> None:
    at = np.arange(4800)
    tone = np.sin(2 * np.pi * 1000 / RATE_HZ * at).astype(np.float32)[:, None]
    plain, stretch = Stretch(1), Stretch(1)
    np.testing.assert_array_equal(
        np.concatenate([plain.push(block, 0) for block in np.split(tone, 10)])[DELAY:], tone[:-DELAY]
    )
    longer = [0, 2, -2, 1, 0, -1, 2, 0, -2, 0]
    blocks = [stretch.push(block, more) for block, more in zip(np.split(tone, 10), longer, strict=True)]
    assert [len(block) for block in blocks] == [480 + more for more in longer]
    places = np.concatenate([480 * i + np.arange(480 + more) * 480 / (480 + more) for i, more in enumerate(longer)])
    wanted = np.sin(2 * np.pi * 1000 / RATE_HZ * (places - DELAY))
    np.testing.assert_allclose(np.concatenate(blocks)[4:, 0], wanted[4:], atol=2e-5)


def test_what_is_said_is_what_the_stream_gives_and_the_latency_is_measured() -> None:
    wave, line = noise(RATE_HZ), Line(Halving())  # type: ignore[arg-type]
    said = run(line, wave, start_s=100.0)
    numbers = line.numbers()
    lag = int(np.correlate(said[:, 0], wave[:20_000, 0] / 2, "valid").argmax())
    np.testing.assert_allclose(said[lag : lag + 20_000], wave[:20_000] / 2, rtol=0, atol=1e-7)
    assert numbers.latency is not None
    # the first block is heard from 100 - 0.002 s on; what is said begins to sound at 100 + 0.003 + 0.005
    assert numbers.latency.total_s == pytest.approx(lag / RATE_HZ + 0.008 + 0.002, abs=1e-6)
    assert numbers.latency.input_s == pytest.approx(0.012)
    assert numbers.latency.output_s == pytest.approx(0.005)
    assert numbers.latency.algorithm_s == (1000 + DELAY) / RATE_HZ
    assert (numbers.n_dropouts, numbers.lost_s, numbers.stretched, numbers.heard_s) == (0, 0, 0, 1)
    assert -16 < numbers.level_in_db < 0
    assert numbers.level_out_db == pytest.approx(numbers.level_in_db - 6.02, abs=1.5)


def test_before_and_after_are_equally_late_and_fade() -> None:
    wave, line = noise(RATE_HZ), Line(Halving())  # type: ignore[arg-type]
    run(line, wave[: RATE_HZ // 2])
    line.enhancing = False
    said = run(line, wave[RATE_HZ // 2 :], start_s=0.5)
    lag = int(np.correlate(said[:, 0], wave[30_000:40_000, 0], "valid").argmax())
    np.testing.assert_allclose(said[lag : lag + 10_000], wave[30_000:40_000], rtol=0, atol=1e-7)
    late = 30_000 - RATE_HZ // 2  # samples after the switch
    assert 1000 < lag - late < 3500
    first = said[2000:] / wave[: len(said) - 2000]
    assert np.isfinite(first).all()


@pytest.mark.parametrize("ppm", [500.0, -500.0])
def test_clocks_that_differ_stay_together(ppm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wave, seconds = noise(60 * RATE_HZ), 60
    line, found = Line(Halving()), list[float]()  # type: ignore[arg-type]
    run(line, wave, ppm, watch=found)
    assert np.ptp(found[1:]) < 0.005
    numbers = line.numbers()
    assert (numbers.n_dropouts, numbers.lost_s) == (0, 0)
    assert numbers.stretched * 1e6 / (seconds * RATE_HZ) == pytest.approx(ppm, rel=0.4)  # and the reserve is kept
    monkeypatch.setattr(module, "MOST_STRETCH", 0)  # the control
    line, found = Line(Halving()), list[float]()  # type: ignore[arg-type]
    run(line, wave, ppm, watch=found)
    assert line.numbers().n_dropouts > 0 or np.ptp(found[1:]) > 0.01


def test_after_a_standstill_what_is_too_much_is_skipped_and_counted() -> None:
    wave, line = noise(6 * RATE_HZ), Line(Halving())  # type: ignore[arg-type]
    run(line, wave[:RATE_HZ])
    for at in range(0, RATE_HZ // 2, BLOCK):  # the loudspeaker stood still
        line.hear(wave[at : at + BLOCK], 1 + at / RATE_HZ, 1 + at / RATE_HZ)
        line.work(0)
    run(line, wave[: 5 * RATE_HZ], start_s=1.5)
    numbers = line.numbers()
    assert 0.4 < numbers.skipped_s < 0.55
    assert numbers.latency is not None
    assert numbers.latency.total_s < 0.07


def test_a_microphone_that_falls_silent_is_one_dropout_and_begins_anew() -> None:
    wave, line = noise(RATE_HZ), Line(Halving())  # type: ignore[arg-type]
    run(line, wave)
    out = np.full((BLOCK, 1), 9, np.float32)
    for _ in range(20):
        line.say(out, 0, 0)
    assert not line.work(0)
    assert (out == 0).all()
    assert line.numbers().n_dropouts == 1
    line.restart()
    said = run(line, wave, start_s=5.0)
    assert np.abs(said).max() > 0.1
    assert line.numbers().n_dropouts == 1


def test_the_reserve_grows_with_a_dropout_and_falls_when_all_is_well() -> None:
    wave, line = noise(RATE_HZ), Line(Halving(), reserve_ms=10)  # type: ignore[arg-type]
    out = np.zeros((BLOCK, 1), np.float32)
    reserves = []
    for turn in range(3):
        run(line, wave, start_s=10.0 * turn)
        for _ in range(10):
            line.say(out, 0, 0)
        reserves.append(line._reserve / RATE_HZ)
    assert reserves == pytest.approx([0.02, 0.03, 0.04])
    run(line, noise(20 * RATE_HZ), start_s=100.0)
    assert line.numbers().n_dropouts == 3
    assert line._reserve / RATE_HZ == pytest.approx(0.035, abs=0.001)


def test_what_the_thread_does_not_take_is_lost_and_counted() -> None:
    line = Line(Halving())  # type: ignore[arg-type]
    for _ in range(120):
        line.hear(noise(BLOCK), 0, 0)
    assert line.numbers().lost_s == pytest.approx(0.2)


def test_the_record_holds_before_and_after_aligned_and_whole(tmp_path: Path) -> None:
    wave, path = noise(RATE_HZ // 2), tmp_path / "both.wav"
    with Recorder(path, RATE_HZ, 1) as recorder:
        line = Line(Halving(), record=recorder)  # type: ignore[arg-type]
        for part in np.split(wave, [20_160]):  # as if a device had been away between
            run(line, part)
            line.finish()
            line.restart()
        assert not path.exists()
    found, rate_hz = soundfile.read(path, dtype="float32")
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(found, np.concatenate([wave, wave / 2], axis=1), rtol=0, atol=0.6 / 32768)
    with pytest.raises(OutputError, match=r"both\.wav: exists; choose another name, or --force"):
        Recorder(path, RATE_HZ, 1)
