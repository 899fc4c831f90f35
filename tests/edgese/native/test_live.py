"""Live sound of any rate in C: with a network whose answer is known, and beside PyTorch with a real one."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import edgese
from edgese.audio import Samples, Wave
from edgese.graphs.bundles import shipped_bundle
from edgese.metrics.difference import snr_db
from edgese.model.checkpoint import save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.native import build
from edgese.native.weights import native_weights

from ..helpers.live import Live, live_library
from ..helpers.tiny_bundle import ONE_NETWORK

RATES = (16_000, 32_000, 44_100, 48_000, 96_000)

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler: apt-get install gcc"
)

# What edgese.c has, of a network that multiplies: its gain and a tone that it adds are chosen, what it hears is kept.
KNOWN_NETWORK = """
#include "edgese_live.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

float gain = 1, tone = 0;
float heard[1 << 20];
size_t n_heard = 0;

struct edgese_stream { float kept[384]; };

size_t edgese_sample_rate(const edgese_weights *w) { (void)w; return 16000; }
size_t edgese_hop(const edgese_weights *w) { (void)w; return 128; }
size_t edgese_delay(const edgese_weights *w) { (void)w; return 384; }
void edgese_stop(edgese_stream *s) { free(s); }
void edgese_reset(edgese_stream *s) { memset(s, 0, sizeof *s); n_heard = 0; }
edgese_stream *edgese_start(const edgese_weights *w, size_t block, unsigned options, char *error)
{
    (void)w, (void)block, (void)options, (void)error;
    return calloc(1, sizeof(edgese_stream));
}
size_t edgese_process(edgese_stream *s, const float *in, float *out, size_t n)
{
    (void)n;
    memcpy(heard + n_heard, in, 128 * sizeof *in);
    for (int i = 0; i < 128; i++)
        out[i] = gain * s->kept[i] + tone * (float)sin(6.283185307179586 / 16 * (double)(n_heard + (size_t)i));
    memmove(s->kept, s->kept + 128, 256 * sizeof *out);
    memcpy(s->kept + 256, in, 128 * sizeof *in);
    n_heard += 128;
    return 0;
}
"""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("known")
    (folder / "network.c").write_text(KNOWN_NETWORK)
    return live_library(folder, folder / "network.c")


def set_network(c: ctypes.CDLL, gain: float, tone: float = 0) -> None:
    ctypes.c_float.in_dll(c, "gain").value = gain
    ctypes.c_float.in_dll(c, "tone").value = tone


def noise(n: int, channels: int = 1, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).normal(0, 0.1, (channels, n)).astype(np.float32)


def level_db(wave: Samples, rate_hz: int, low_hz: float, high_hz: float) -> float:
    """Energy of a stationary sound between two frequencies, dB."""
    power = np.abs(np.fft.rfft(wave * np.blackman(wave.shape[-1]))) ** 2
    hz = np.fft.rfftfreq(wave.shape[-1], 1 / rate_hz)
    return float(10 * np.log10(power[..., (hz >= low_hz) & (hz < high_hz)].sum() + 1e-30))


@pytest.mark.parametrize("rate_hz", RATES)
def test_a_network_that_changes_nothing_gives_the_input_after_the_stated_latency(
    known: ctypes.CDLL, rate_hz: int
) -> None:
    set_network(known, 1)
    live = Live(known, rate_hz)
    wave = noise(rate_hz // 2)
    out = live(wave)
    late = live.latency
    assert late == {16_000: 511, 32_000: 1246, 44_100: 1717, 48_000: 1869, 96_000: 3738}[rate_hz]
    # measured: 2e-7, the rounding of float32
    np.testing.assert_allclose(out[0, late:], wave[0, :-late], atol=1e-6)
    np.testing.assert_allclose(out[0, :late], 0, atol=1e-6)


def test_the_output_does_not_depend_on_how_sound_is_cut_into_calls(known: ctypes.CDLL) -> None:
    set_network(known, 0.3)
    wave = noise(20_000, channels=2)
    whole = Live(known, 44_100, 2)(wave, blocks=(20_000,), limit_db=20)
    for blocks in ((1,), (64,), (1, 777, 13)):
        np.testing.assert_array_equal(Live(known, 44_100, 2)(wave, blocks=blocks, limit_db=20), whole)
    again = Live(known, 44_100, 2)
    again(noise(7000, channels=2, seed=5))
    known.edgese_live_reset(ctypes.c_void_p(again.live))
    np.testing.assert_array_equal(again(wave, limit_db=20), whole)
    np.testing.assert_array_equal(Live(known, 44_100)(wave[1:], limit_db=20), whole[1:])


@pytest.mark.parametrize(("gain", "heard_db"), [(0.5, -6), (1.0, 0), (3.0, 0)])
def test_what_lies_above_the_network_follows_its_upper_band_and_is_never_louder(
    known: ctypes.CDLL, gain: float, heard_db: float
) -> None:
    set_network(known, gain)
    rate_hz = 48_000
    wave = noise(rate_hz)
    out = Live(known, rate_hz)(wave)[0, -rate_hz // 2 :]
    given = wave[0, -rate_hz // 2 :]
    above = level_db(out, rate_hz, 8500, 23_000) - level_db(given, rate_hz, 8500, 23_000)
    below = level_db(out, rate_hz, 100, 6500) - level_db(given, rate_hz, 100, 6500)
    assert above == pytest.approx(heard_db, abs=0.2)
    assert below == pytest.approx(20 * np.log10(gain), abs=0.2)


def test_steady_noise_above_the_network_stays_out_while_the_network_is_closed(known: ctypes.CDLL) -> None:
    set_network(known, 0.29)
    wave, settled = noise(48_000), slice(24_000, None)
    out = Live(known, 48_000)(wave)
    above, below = (
        level_db(out[0, settled], 48_000, *band) - level_db(wave[0, settled], 48_000, *band)
        for band in ((8500, 23_000), (100, 7000))
    )
    assert above < below - 1  # measured: 1.9 dB


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_the_network_hears_nothing_from_above_and_its_images_are_92_db_down(known: ctypes.CDLL, rate_hz: int) -> None:
    set_network(known, 1)
    seconds = np.arange(rate_hz) / rate_hz

    def heard(hz: float) -> float:
        """Level of a tone as the network hears it, dB."""
        Live(known, rate_hz)(np.sin(2 * np.pi * hz * seconds)[None])
        n = ctypes.c_size_t.in_dll(known, "n_heard").value
        kept = np.ctypeslib.as_array((ctypes.c_float * n).in_dll(known, "heard"))
        return float(20 * np.log10(np.sqrt(2) * np.std(kept[2000:-2000])))

    assert abs(heard(300)) < 0.01
    assert abs(heard(7280)) < 0.002
    assert heard(7696) == pytest.approx(-6, abs=0.1)
    for hz in (8165, 9000, 12_345, 15_000, 17_000):
        assert heard(hz) < -92, hz

    set_network(known, 1, tone=1)
    out = Live(known, rate_hz)(np.zeros((1, rate_hz)))[0, rate_hz // 4 :]
    tone = level_db(out, rate_hz, 900, 1100)
    assert level_db(out, rate_hz, 1200, rate_hz / 2) - tone < -92


def test_limit_and_mix_leave_so_much_of_the_input_and_change_without_a_click(known: ctypes.CDLL) -> None:
    set_network(known, 0)
    wave, rate_hz = noise(30_000), 48_000
    late = Live(known, rate_hz).latency
    for values, share in (
        ({"limit_db": 0.0}, 1.0),
        ({"mix": 0.0}, 1.0),
        ({"limit_db": 6.0}, 10 ** (-6 / 20)),
        ({"mix": 0.25}, 0.75),
    ):
        out = Live(known, rate_hz)(wave, **values)
        settled = slice(12_000, None)
        atol = 0 if share == 1 else 2e-3  # the band above takes time to fall silent: to -40 dB here
        np.testing.assert_allclose(out[0, late:][settled], share * wave[0, :-late][settled], atol=atol)
    set_network(known, 1, 0)
    live, steady = Live(known, rate_hz), np.ones((1, 12_000), np.float32)
    set_network(known, 0)
    live(steady)
    stepped = np.concatenate([live(steady)[0, -1:], live(steady, mix=0.0)[0], live(steady, limit_db=float("nan"))[0]])
    assert np.abs(np.diff(stepped)).max() < 2e-3
    assert stepped[12_000] == pytest.approx(1, abs=1e-3)


def test_what_is_no_sound_is_counted_and_forgotten(known: ctypes.CDLL) -> None:
    set_network(known, 1)
    wave = noise(20_000)
    wave[0, 5000:5003] = np.nan, np.inf, -1e30
    live = Live(known, 48_000)
    out = live(wave)
    assert live.no_sound == 3
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[0, 9000:], wave[0, 9000 - live.latency : -live.latency], atol=1e-6)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "message"),
    [
        (8000, 1, "found 8000 Hz and 1 channels, wanted 16000 Hz or more and a channel"),
        (48_000, 0, "found 48000 Hz and 0 channels, wanted 16000 Hz or more and a channel"),
        (48_001, 1, "found 48001 Hz, wanted a rate with a larger common factor with 16000"),
        (4_000_000_000, 1, "found 4000000000 Hz, wanted a rate"),
    ],
)
def test_what_cannot_be_is_refused(known: ctypes.CDLL, rate_hz: int, channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Live(known, rate_hz, channels)


@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
def test_it_gives_what_the_stream_in_python_gives(
    speech_like: Callable[..., Wave], tmp_path: Path, rate_hz: int
) -> None:
    c = live_library(tmp_path, build.library())
    small = shipped_bundle("small")
    content = native_weights(small / "model.safetensors")
    c.edgese_open_memory.restype = ctypes.c_void_p
    live = Live(c, rate_hz, 2, c.edgese_open_memory(content, ctypes.c_size_t(len(content)), None))
    wave = np.stack([speech_like(rate_hz, seed, rate_hz) for seed in (1, 2)])
    wave += np.random.default_rng(0).normal(0, 0.02, wave.shape).astype(np.float32)
    with edgese.Stream(rate_hz, channels=2, model=small, runtime="native", attenuation_limit_db=20) as stream:
        assert stream.latency_samples == live.latency
        wanted = np.concatenate([stream.process(block) for block in np.array_split(wave.T, 40)])
    assert snr_db(wanted.T, live(wave, limit_db=20)) > 100  # measured: 114 dB and more


@ONE_NETWORK
@pytest.mark.slow
def test_a_real_network_gives_what_pytorch_gives(
    tiny_enhancer: WaveformEnhancer, speech_like: Callable[..., Wave], tmp_path: Path
) -> None:
    c = live_library(tmp_path, build.library())
    save_weights(tmp_path / "tiny.safetensors", tiny_enhancer, tiny_enhancer.state_dict())
    content = native_weights(tmp_path / "tiny.safetensors")
    c.edgese_open_memory.restype = ctypes.c_void_p
    weights = c.edgese_open_memory(content, ctypes.c_size_t(len(content)), None)
    wave = speech_like(16_000, seed=3)
    live = Live(c, 16_000, 1, weights)
    out = live(np.concatenate([wave, np.zeros(live.latency, np.float32)])[None])[0, live.latency :]
    np.testing.assert_allclose(out, tiny_enhancer.enhance(torch.from_numpy(wave[None]))[0].numpy(), atol=1e-5)
