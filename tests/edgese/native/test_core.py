"""The C library against PyTorch: samples, states, precisions, and what a C program meets at its edges."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import platform
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.config import AudioConfig
from edgese.errors import CheckpointError
from edgese.metrics.difference import snr_db
from edgese.model.checkpoint import save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.native import build
from edgese.native.build import library
from edgese.native.weights import STORED, native_weights
from edgese.networks import BsrnnConfig, MbsConfig
from runtimes.base import RuntimeUnavailable
from runtimes.native import PASS, PCS, load_library

from ..helpers.tiny_bundle import ONE_NETWORK

HOP = 128
N_HOPS = 60
LEAST_DB = 110  # measured: 124 to 137 dB

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, build.COMPILERS)), reason="needs a C compiler: apt-get install gcc"
)

SpeechLike = Callable[..., Wave]


class Native:
    """Weights and streams of the library, as a C program has them."""

    def __init__(self, content: bytes, instructions: str = "") -> None:
        self.c = load_library(library())
        message = ctypes.create_string_buffer(256)
        self.c.edgese_open_memory.restype = ctypes.c_void_p
        self.weights = self.c.edgese_open_memory(content, ctypes.c_size_t(len(content)), message)
        if not self.weights:
            raise ValueError(message.value.decode())
        if instructions and self.c.edgese_use(self.weights, instructions.encode()):
            self.c.edgese_close(self.weights)
            pytest.skip(f"this machine has no {instructions}")
        self._streams: list[int] = []

    def close(self) -> None:
        for stream in self._streams:
            self.c.edgese_stop(stream)
        self.c.edgese_close(self.weights)

    def start(self, block: int = 1, options: int = PASS) -> int:
        message = ctypes.create_string_buffer(256)
        stream = self.c.edgese_start(self.weights, block, options, message)
        if not stream:
            raise ValueError(message.value.decode())
        self._streams.append(stream)
        return int(stream)

    def process(self, stream: int, wave: Wave) -> Wave:
        out = np.empty_like(wave)
        self.c.edgese_process(stream, wave.ctypes.data, out.ctypes.data, len(wave) // HOP)
        return out

    def get(self, stream: int, name: str, size: int) -> NDArray[np.float32]:
        values = np.empty(size, np.float32)
        assert self.c.edgese_get_state(stream, name.encode(), values.ctypes.data, size) == 0
        return values

    def states(self, stream: int) -> dict[str, NDArray[np.float32]]:
        found = {}
        while name := self.c.edgese_state_name(self.weights, len(found)):
            size = self.c.edgese_state_size(self.weights, name, None)
            found[name.decode()] = self.get(stream, name.decode(), size)
        return found


@pytest.fixture
def weights(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_weights(path, tiny_enhancer, tiny_enhancer.state_dict())
    return path


@pytest.fixture
def native(weights: Path) -> Iterator[Native]:
    opened = Native(native_weights(weights))
    yield opened
    opened.close()


@pytest.fixture
def wave(speech_like: SpeechLike) -> Wave:
    return speech_like(N_HOPS * HOP, seed=3)


@torch.no_grad()
def in_pytorch(enhancer: WaveformEnhancer, wave: Wave) -> tuple[Wave, dict[str, NDArray[np.float32]]]:
    enhanced, states = enhancer(torch.from_numpy(wave)[None], enhancer.initial_state())
    return enhanced[0].numpy(), {name: state.numpy().ravel() for name, state in states.items()}


@pytest.mark.parametrize("instructions", ["sse2", "avx2", "avx512"] if platform.machine() == "x86_64" else [""])
@pytest.mark.parametrize("block", [1, 7])
def test_samples_and_states_are_pytorch_s(
    weights: Path, tiny_enhancer: WaveformEnhancer, wave: Wave, instructions: str, block: int
) -> None:
    wanted, states = in_pytorch(tiny_enhancer, wave)
    native = Native(native_weights(weights), instructions)
    stream = native.start(block)
    assert snr_db(wanted, native.process(stream, wave)) >= LEAST_DB
    found = native.states(stream)
    assert list(found) == list(states)
    for name, state in states.items():
        assert np.abs(found[name] - state).max() <= 1e-5 * np.abs(state).max(), name  # measured: 3e-6 and less
    native.close()


def test_any_split_gives_the_same_bits(native: Native, wave: Wave) -> None:
    whole = native.process(native.start(block=16), wave)
    for block, cut in ((1, 1), (4, 3), (64, 60)):
        stream = native.start(block)
        parts = [native.process(stream, part) for part in np.split(wave, range(cut * HOP, len(wave), cut * HOP))]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_contrast_stretching_is_pytorch_s(native: Native, tiny_enhancer: WaveformEnhancer, wave: Wave) -> None:
    stretched = WaveformEnhancer(tiny_enhancer.network, tiny_enhancer.audio, pcs=True).eval()
    wanted, _ = in_pytorch(stretched, wave)
    found = native.process(native.start(options=PCS), wave)
    assert snr_db(wanted, found) >= LEAST_DB
    assert snr_db(wanted, native.process(native.start(), wave)) < 20


@pytest.mark.parametrize("stored", ["fp16", "int8"])
def test_a_smaller_file_rounds_the_products_weights_and_nothing_else(
    weights: Path, tiny_enhancer: WaveformEnhancer, wave: Wave, stored: str
) -> None:
    plain, _ = in_pytorch(tiny_enhancer, wave)
    rounded = dict(tiny_enhancer.state_dict())
    for name, (values, scale) in products_of(native_weights(weights, stored=stored)).items():
        wide = np.float32(1)
        if stored == "int8" and name == "split.weight":
            wide = np.repeat(scale, tiny_enhancer.network.config.band_widths, axis=0)[:, None]
        elif stored == "int8":
            wide = np.expand_dims(scale, 1 if "hidden" in name else -1)
        rounded[f"network.{name}"] = torch.from_numpy(values.astype(np.float32) * wide)
    tiny_enhancer.load_state_dict(rounded)
    wanted, _ = in_pytorch(tiny_enhancer, wave)
    for block in (1, 7):
        native = Native(native_weights(weights, stored=stored))
        found = native.process(native.start(block), wave)
        native.close()
        assert snr_db(wanted, found) >= LEAST_DB
    assert 30 < snr_db(plain, wanted) < 90


def products_of(content: bytes) -> dict[str, tuple[NDArray, NDArray]]:
    """Tensors of a weights file that are not float32, and their scales, read by the format's description."""
    tensors = {}
    n_bands = struct.unpack_from("<I", content, 64 + 12)[0]
    for index in range(struct.unpack_from("<I", content, 12)[0]):
        name, kind, n_dims, *rest = struct.unpack_from("<64s6IQ", content, 128 + 4 * n_bands + 96 * index)
        shape, offset = rest[:n_dims], rest[4]
        dtype = ("<f4", "<f2", "i1")[kind]
        count = int(np.prod(shape))
        tensors[name.rstrip(b"\0").decode()] = np.frombuffer(content, dtype, count, offset).reshape(shape)
    return {
        name: (tensor, tensors.get(f"{name}.scale", np.ones(1)))
        for name, tensor in tensors.items()
        if tensor.dtype != np.float32
    }


def test_every_product_is_in_a_smaller_file(weights: Path, tiny_config: MbsConfig) -> None:
    found = products_of(native_weights(weights, stored="int8"))
    assert len(found) == tiny_config.layers * (4 if tiny_config.decay_heads == 0 else 3) + (
        len(["split", "head", "head", "hidden", "hidden", "last", "last"])
        + (tiny_config.layers if tiny_config.fusion == "each" else 1)
    )


def test_states_go_on_where_they_were_taken(native: Native, wave: Wave) -> None:
    first, second = np.split(wave, 2)
    stream = native.start()
    native.process(stream, first)
    taken = native.states(stream)
    wanted = native.process(stream, second)
    native.c.edgese_reset(stream)
    assert not any(state.any() for state in native.states(stream).values())
    for name, state in taken.items():
        assert native.c.edgese_set_state(stream, name.encode(), state.ctypes.data, state.size) == 0
    np.testing.assert_array_equal(native.process(stream, second), wanted)


def test_a_state_that_there_is_not_is_refused(native: Native) -> None:
    stream, values = native.start(), np.zeros(384, np.float32)
    assert native.c.edgese_get_state(stream, b"ssm_9", values.ctypes.data, 384) == -1
    assert native.c.edgese_set_state(stream, b"analysis", values.ctypes.data, 383) == -1
    assert native.c.edgese_state_size(native.weights, b"ssm_9", None) == 0


def test_axes_of_a_state_are_the_graph_s(native: Native, tiny_enhancer: WaveformEnhancer) -> None:
    for name, state in tiny_enhancer.initial_state().items():
        dims = (ctypes.c_size_t * 3)()
        native.c.edgese_state_size(native.weights, name.encode(), dims)
        assert [size for size in dims if size] == list(state.shape[1:])


def test_sizes_are_the_network_s(native: Native, audio: AudioConfig) -> None:
    c, found = native.c, {}
    for name in ("sample_rate", "hop", "delay", "latency"):
        function = getattr(c, f"edgese_{name}")
        function.restype, function.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
        found[name] = function(native.weights)
    assert found == {
        "sample_rate": audio.sample_rate_hz,
        "hop": audio.hop,
        "delay": audio.overlap,
        "latency": audio.latency_samples,
    }


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_sound_is_counted_and_harms_nothing_later(native: Native, wave: Wave, wrong: float) -> None:
    spoilt = wave.copy()
    spoilt[HOP * 10 : HOP * 10 + 5] = wrong
    stream, out = native.start(block=8, options=0), np.empty_like(wave)
    found = native.c.edgese_process(stream, spoilt.ctypes.data, out.ctypes.data, N_HOPS)
    assert found == 5
    assert np.isfinite(out).all()
    assert np.isfinite(np.concatenate(list(native.states(stream).values()))).all()
    assert native.c.edgese_process(stream, wave.ctypes.data, out.ctypes.data, N_HOPS) == 0


def test_passed_nan_stays_until_a_reset(native: Native, wave: Wave) -> None:
    stream = native.start(options=PASS)
    wanted = native.process(stream, wave)
    native.c.edgese_reset(stream)
    spoilt = wave.copy()
    spoilt[HOP * 10] = np.nan
    assert np.isnan(native.process(stream, spoilt)[HOP * 10 :]).all()
    assert np.isnan(native.process(stream, wave)).all()
    native.c.edgese_reset(stream)
    np.testing.assert_array_equal(native.process(stream, wave), wanted)


def test_buffers_may_lie_anywhere_and_be_the_same(native: Native, wave: Wave) -> None:
    wanted = native.process(native.start(block=4), wave)
    memory = ctypes.create_string_buffer(wave.nbytes + 1)
    place = ctypes.addressof(memory) + 1
    ctypes.memmove(place, wave.ctypes.data, wave.nbytes)
    native.c.edgese_process(native.start(block=4), place, place, N_HOPS)
    np.testing.assert_array_equal(np.frombuffer(memory, np.uint8, wave.nbytes, 1), wanted.view(np.uint8))


def test_streams_in_threads_share_weights_and_nothing_else(native: Native, speech_like: SpeechLike) -> None:
    waves = [speech_like(N_HOPS * HOP, seed=seed) for seed in range(4)]
    alone = [native.process(native.start(), wave) for wave in waves]
    found: dict[int, Wave] = {}

    def enhance(index: int, stream: int) -> None:
        parts = [native.process(stream, part) for part in np.split(waves[index], N_HOPS)]
        found[index] = np.concatenate(parts)

    threads = [threading.Thread(target=enhance, args=(index, native.start())) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, wanted in enumerate(alone):
        np.testing.assert_array_equal(found[index], wanted)


def test_a_weight_that_is_off_by_a_thousandth_is_seen(
    weights: Path, tiny_enhancer: WaveformEnhancer, wave: Wave, tmp_path: Path
) -> None:
    wanted, _ = in_pytorch(tiny_enhancer, wave)
    for name, value in tiny_enhancer.state_dict().items():
        if name == "network.split.weight":
            value.mul_(1.001)
    save_weights(tmp_path / "off.safetensors", tiny_enhancer, tiny_enhancer.state_dict())
    native = Native(native_weights(tmp_path / "off.safetensors"))
    assert snr_db(wanted, native.process(native.start(), wave)) < 100
    native.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: b"", "not a weights file"),
        (lambda whole: b"RIFF" + whole[4:], "not a weights file"),
        (lambda whole: whole[:-1], "copy the file again"),
        (lambda whole: whole[:1000], "copy the file again"),
        (lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "its SHA-256 is not the one in its header"),
        (lambda whole: whole[:8] + b"\2" + whole[9:], "version 2, wanted 1"),
        (
            lambda whole: sealed(whole[:76] + struct.pack("<I", 31) + whole[80:]),
            "write the weights file again",
        ),  # bands
        (lambda whole: sealed(whole[:80] + struct.pack("<I", 16) + whole[84:]), "another shape"),  # channels
        (lambda whole: sealed(whole[:68] + struct.pack("<I", 500) + whole[72:]), "n_fft 500"),
        (lambda whole: sealed(whole[:-4] + struct.pack("<f", np.nan)), "not finite"),
        (lambda whole: sealed(whole.replace(b"norm.bias\0", b"nosr.bias\0", 1)), "norm.bias: not in the file"),
    ],
)
def test_a_file_that_is_damaged_is_refused_in_one_line(
    weights: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Native(damage(native_weights(weights)))
    assert "\n" not in str(caught.value)


def sealed(content: bytes) -> bytes:
    """A file with the digest that its content has."""
    return content[:32] + hashlib.sha256(content[64:]).digest() + content[64:]


@ONE_NETWORK
def test_no_damage_under_a_right_digest_reaches_beyond_the_file(weights: Path) -> None:
    """Words of header and table in turn: the file is refused, or opened and run."""
    whole = native_weights(weights)
    end = 128 + 4 * 30 + 96 * struct.unpack_from("<I", whole, 12)[0]
    rng = np.random.default_rng(0)
    for at in [*range(8, 32, 4), *range(64, 128, 4), *rng.integers(32, end // 4, 40) * 4]:
        for value in (1, 0xFFFFFFFF):
            damaged = sealed(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])
            try:
                native = Native(damaged)
            except ValueError:
                continue
            native.process(native.start(), np.zeros(2 * HOP, np.float32))
            native.close()


def test_options_and_blocks_that_there_are_not_are_refused(native: Native) -> None:
    for block, options in ((0, 0), (65, 0), (1, 4)):
        with pytest.raises(ValueError, match="wanted 1 to 64 hops"):
            native.start(block, options)


def test_metadata_travels_with_the_weights(weights: Path) -> None:
    native = Native(native_weights(weights, metadata={"edgese.bundle": "tiny"}))
    found = json.loads(native.c.edgese_metadata(native.weights))
    native.close()
    assert found == {"edgese.bundle": "tiny", "stored": "fp32"}


def test_a_file_grows_smaller_as_it_is_stored(weights: Path) -> None:
    sizes = [len(native_weights(weights, stored=stored)) for stored in STORED]
    assert sizes == sorted(sizes, reverse=True)


def test_another_network_is_refused(tmp_path: Path, audio: AudioConfig) -> None:
    from edgese.model.registry import build as build_network

    config = dataclasses.replace(BsrnnConfig(causal=True), channels=8, layers=1)
    other = build_network(config, audio)
    save_weights(tmp_path / "other.safetensors", other, other.state_dict())
    with pytest.raises(CheckpointError, match="holds bsrnn; the C library runs mbs-net"):
        native_weights(tmp_path / "other.safetensors")


def test_attention_over_bands_is_refused(tmp_path: Path, audio: AudioConfig) -> None:
    from edgese.model.registry import build as build_network

    config = MbsConfig(channels=16, layers=1, decoder_hidden=8, fusion="attention")
    other = build_network(config, audio)
    save_weights(tmp_path / "other.safetensors", other, other.state_dict())
    with pytest.raises(CheckpointError, match="mixed by attention, which the C library does not run; choose another"):
        native_weights(tmp_path / "other.safetensors")


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, struct.pack("<Q", 2) + b"{}"])
def test_a_broken_source_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken.safetensors: not a weights file of edgese"):
        native_weights(tmp_path / "broken.safetensors")


def test_without_a_compiler_one_line_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeUnavailable, match=r"found no C compiler \(cc, gcc, clang\), wanted one .* --runtime$"):
        library()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("#!/bin/sh\necho 'edgese.c: error: too new' >&2\nexit 1\n")
    (tmp_path / "bad").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "bad"))
    with pytest.raises(RuntimeUnavailable, match=r"bad failed \(edgese.c: error: too new\); name another in CC"):
        library(tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_a_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = library()
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert library() == first
    monkeypatch.setattr(build, "FLAGS", ("-O1",))
    with pytest.raises(pytest.fail.Exception):
        library()
