"""`edgese listen` on a real sound server, whose devices are made of nothing."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import soundfile

from edgese.audio.reader import read_wave
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.signal_path import denoise
from edgese.graphs.bundles import shipped_bundle
from edgese.samples import NOISY
from export.bundle import Bundle

from ..helpers.command_line import ROOT
from ..helpers.sound_server import RATE_HZ, SoundServer, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.required,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoundServer]:
    server = SoundServer(tmp_path_factory.mktemp("pulse"))
    yield server
    server.close()


@contextlib.contextmanager
def listening(server: SoundServer, folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "edgese", "listen", *arguments]
    environment = server.environment | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(lines: IO[str] | None, wanted: str | tuple[str, ...]) -> None:
    """Read on to a line that begins so; others are ALSA's own."""
    assert lines is not None
    seen = []
    for line in lines:
        seen.append(line)
        if line.startswith(wanted):
            return
    pytest.fail(f"no {wanted!r} in {seen}")


def test_devices_are_listed_and_chosen(server: SoundServer, tmp_path: Path) -> None:
    with listening(server, tmp_path, "--list", "--json") as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert {"microphone", "speaker"} <= {one["name"] for one in json.loads(out)["devices"]}
    for arguments, told in (
        (("-i", "cellar"), "input 'cellar': no device of that name; see `edgese listen --list`"),
        (("-o", "999"), "output 999: no such number, or it has no output"),
        (("-i", "r", "-o", "speaker"), "wanted one: choose by its number"),
    ):
        with listening(server, tmp_path, *arguments, "--model", "small") as process:
            _, said = process.communicate()
        assert process.returncode == 1
        assert told in said


def test_what_is_recorded_equals_enhance_and_is_what_the_loudspeaker_says(server: SoundServer, tmp_path: Path) -> None:
    wave = read_wave(NOISY, RATE_HZ)[: 3 * RATE_HZ]
    arguments = ["-i", "microphone", "-o", "speaker", "--model", "small", "--record", "both.wav", "--json"]
    arguments += ["--latency", "100", "--reserve", "300"]  # for machines with much to do
    with listening(server, tmp_path, *arguments) as process, server.recorded("speaker.monitor", tmp_path / "said"):
        until(process.stderr, "sound: microphone -> speaker")
        server.play(wave.tobytes(), "microphone")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert process.returncode == 0
    measured = json.loads(out)
    assert measured["heard_s"] > 2.5
    assert measured["latency"] is None or measured["latency"]["algorithm_s"] == pytest.approx(0.039, abs=0.001)

    before, after = soundfile.read(tmp_path / "both.wav", dtype="float32")[0].T
    with Denoiser(Bundle.open(shipped_bundle("small"))) as denoiser:
        wanted = np.concatenate(list(denoise([before[:, None]], RATE_HZ, 1, denoiser)))[:, 0]
    np.testing.assert_allclose(after, wanted, rtol=0, atol=2e-4)  # what is heard is rounded to 16 bits in the file

    assert likeness(wave[RATE_HZ : RATE_HZ + 24_000], before) > 0.99
    said = np.fromfile(tmp_path / "said", np.float32)
    loud = np.argsort([-np.sum(part**2) for part in np.split(after[: len(after) // 2400 * 2400], len(after) // 2400)])
    found = [likeness(after[2400 * at : 2400 * (at + 1)], said) for at in loud[:11]]
    assert np.median(found) > 0.95, found  # a dropout spoils one or two


def likeness(part: np.ndarray, whole: np.ndarray) -> float:  # type: ignore[type-arg]
    """The greatest correlation of a part with a place of the whole."""
    n = len(whole) + len(part)
    products = np.fft.irfft(np.fft.rfft(whole, n) * np.conj(np.fft.rfft(part, n)), n)[: len(whole) - len(part) + 1]
    sums = np.concatenate([[0], np.cumsum(whole.astype(np.float64) ** 2)])
    energies = sums[len(part) :] - sums[: len(sums) - len(part)]
    return float((products / np.sqrt(np.maximum(energies, 1e-3) * np.sum(part.astype(np.float64) ** 2))).max())


def test_devices_that_go_away_are_waited_for(tmp_path: Path) -> None:
    server = SoundServer(tmp_path)
    try:
        with listening(server, tmp_path, "-i", "microphone", "-o", "speaker", "--model", "small") as process:
            until(process.stderr, "sound: microphone -> speaker")
            server.close()  # one sink that goes is replaced by PulseAudio itself, and listen hears nothing of it
            until(process.stderr, ("input microphone is gone: waiting until", "output speaker is gone: waiting until"))
            server = SoundServer(tmp_path)
            until(process.stderr, "sound again: microphone -> speaker")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate()
        assert process.returncode == 0
        assert "s heard; latency" in out
    finally:
        server.close()
