"""BSRNN: the causal variant as a stream, the published one as a whole, both as graphs, in double and in training."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.errors import ConfigError
from edgese.graphs.form import exported_form
from edgese.metrics.difference import snr_db
from edgese.model.bsrnn import TAPS, BandNorm, Bsrnn, FrameNorm, SequenceNorm
from edgese.model.cost import macs_per_frame, parameters
from edgese.model.enhancer import SegmentStep, StreamStep, WaveformEnhancer
from edgese.model.registry import build
from edgese.networks import MODELS, BsrnnConfig
from edgese.verify.truth import float64_truth, pytorch_truth
from export.graph import write_onnx
from runtimes.registry import open_runtime

# Greatest difference of samples in [-1, 1], float32; measured: see the right column.
STREAMING = 1e-5  # any split against one call: 1.5e-7
FORMS = 1e-5  # forms of the LSTM and the transform: 3e-7
GRAPH_DB = 100.0  # the limit of fp32 in edgese/verify/limits.py; measured: 117 streamed, 124 a segment
STATES = 1e-3  # of a state's greatest value, after 300 hops in a graph, as `verify` has it: 9e-5

HOP = 128
N_SAMPLES = 40 * HOP
TINY = BsrnnConfig(channels=8, layers=2, hidden=6, decoder_hidden=8)


def seeded(causal: bool) -> WaveformEnhancer:
    """A small network that listens and acts like a trained one; an untrained one is almost the identity."""
    torch.manual_seed(1)
    enhancer = build(dataclasses.replace(TINY, causal=causal), AudioConfig()).eval()
    with torch.no_grad():
        for name, parameter in enhancer.network.named_parameters():
            if "lstm" in name:
                parameter.mul_(3)
        enhancer.network.decoder.weight.mul_(30)
    return enhancer


@pytest.fixture
def causal() -> WaveformEnhancer:
    return seeded(causal=True)


@pytest.fixture
def published() -> WaveformEnhancer:
    return seeded(causal=False)


@pytest.fixture(params=[True, False], ids=["causal", "published"])
def either(request: pytest.FixtureRequest) -> WaveformEnhancer:
    return seeded(request.param)


@pytest.fixture
def wave(speech_like) -> Tensor:
    return torch.from_numpy(speech_like(N_SAMPLES, seed=2))[None]


@torch.no_grad()
def whole(enhancer: WaveformEnhancer, wave: Tensor) -> Tensor:
    """(B, n_samples) -> the same shape in one call from zero states, 384 samples behind."""
    return enhancer(wave, enhancer.initial_state(len(wave)))[0]


@torch.no_grad()
def streamed(enhancer: WaveformEnhancer, pieces: list[Tensor]) -> Tensor:
    state, outputs = enhancer.initial_state(len(pieces[0])), []
    for piece in pieces:
        output, state = enhancer(piece, state)
        outputs.append(output)
    return torch.cat(outputs, dim=1)


# The causal variant as a stream


@pytest.mark.parametrize("block", [1, 3, 16])
def test_streaming_in_blocks_equals_one_call(block: int, causal: WaveformEnhancer, wave: Tensor) -> None:
    output = streamed(causal, list(wave.split(block * HOP, dim=1)))
    assert (output - whole(causal, wave)).abs().max() <= STREAMING


def test_streaming_in_random_blocks_equals_one_call(causal: WaveformEnhancer, wave: Tensor) -> None:
    rng = np.random.default_rng(0)
    cuts = [0, *sorted(rng.choice(np.arange(1, 40), 12, replace=False).tolist()), 40]
    pieces = [wave[:, first * HOP : last * HOP] for first, last in itertools.pairwise(cuts)]
    assert (streamed(causal, pieces) - whole(causal, wave)).abs().max() <= STREAMING


def test_a_state_that_is_dropped_would_be_noticed(causal: WaveformEnhancer, wave: Tensor) -> None:
    half = N_SAMPLES // 2
    expected = whole(causal, wave)[:, half:]
    with torch.no_grad():
        _, state = causal(wave[:, :half], causal.initial_state())
        for name in state:
            output, _ = causal(wave[:, half:], state | {name: torch.zeros_like(state[name])})
            assert (output - expected).abs().max() > 10 * STREAMING, name


def test_states_have_the_names_and_shapes_of_the_contract(causal: WaveformEnhancer, wave: Tensor) -> None:
    state = causal.initial_state(streams=3)
    shapes = {"analysis": (3, 384), "synthesis": (3, 384), "spectra": (3, TAPS - 1, 2, 257)}
    for layer in range(2):
        shapes |= {f"lstm_h_{layer}": (3, 30, 6), f"lstm_c_{layer}": (3, 30, 6)}
    assert list(state) == list(shapes)
    with torch.no_grad():
        for frames in (1, 2, 7):
            _, after = causal(torch.rand(3, frames * HOP), state)
            for found in (state, after):
                assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes
                assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert not any(tensor.any() for tensor in state.values())  # a call leaves its arguments alone


def test_streams_together_equal_each_alone(causal: WaveformEnhancer, speech_like) -> None:
    waves = torch.from_numpy(np.stack([speech_like(20 * HOP, seed=seed) for seed in range(4)]))
    together = whole(causal, waves)
    for stream, alone in enumerate(waves.split(1)):
        assert (together[stream] - whole(causal, alone)).abs().max() <= STREAMING


# Causality


def changed_too_early(enhancer: WaveformEnhancer, wave: Tensor) -> list[int]:
    """Places from which on a change of the input alters bits of the output before the hop that holds the place."""
    before, early = whole(enhancer, wave), []
    for place in (0, 1, 127, 128, 1000, 2048, N_SAMPLES - 1):
        for later in (slice(place, None), slice(place, place + 1)):
            changed = wave.clone()
            changed[:, later] = 0.7 - changed[:, later]
            after = whole(enhancer, changed)
            hop = place // HOP * HOP
            if not torch.equal(before[:, :hop].view(torch.int32), after[:, :hop].view(torch.int32)):
                early.append(place)
            assert not torch.equal(before, after), "the network ignores its input: this check would mean nothing"
    return early


@pytest.mark.parametrize("form", ["train", "export", "exact"])
def test_changing_a_future_sample_changes_no_earlier_bit(form: str, causal: WaveformEnhancer, wave: Tensor) -> None:
    causal.network.use_form(form)
    assert causal.network.causal
    assert changed_too_early(causal, wave) == []


def test_the_published_network_fails_the_same_check(published: WaveformEnhancer, wave: Tensor) -> None:
    assert not published.network.causal
    assert {128, 1000, 2048, N_SAMPLES - 1} <= set(changed_too_early(published, wave))


def without(enhancer: WaveformEnhancer, part: str) -> WaveformEnhancer:
    """The causal network with one part of the published one in its place."""
    network = enhancer.network
    if part == "norm":
        network.time[0].norm = SequenceNorm(TINY.channels)
    elif part == "LSTM":
        network.bands[0].axis = 1  # both ways over time
    else:
        decoder = network.decoder.forward
        network.decoder.forward = lambda x: torch.roll(decoder(x), -1, dims=1)  # the mask of the frame after
    return enhancer


@pytest.mark.parametrize("part", ["norm", "LSTM", "mask"])
def test_each_part_of_the_published_network_that_looks_ahead_would_be_noticed(
    part: str, causal: WaveformEnhancer, wave: Tensor
) -> None:
    assert {1000, 2048} <= set(changed_too_early(without(causal, part), wave))


# What the parts are


def test_norms_are_those_of_the_equations() -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 5, 4, 6) + 1
    frame, sequence, band = FrameNorm(6), SequenceNorm(6), SequenceNorm(6, each_band=True)
    for norm in (frame, sequence, band):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    frames = nn.functional.layer_norm(x, (4, 6)) * frame.weight + frame.bias
    torch.testing.assert_close(frame(x), frames)
    groups = nn.functional.group_norm(x.permute(0, 3, 1, 2), 1, sequence.weight, sequence.bias)
    torch.testing.assert_close(sequence(x), groups.permute(0, 2, 3, 1))
    for k in range(4):
        alone = nn.functional.group_norm(x[:, :, k].transpose(1, 2), 1, band.weight, band.bias)
        torch.testing.assert_close(band(x)[:, :, k], alone.transpose(1, 2))


@pytest.mark.slow
def test_the_norm_of_a_whole_segment_loses_nothing_in_onnx_runtime(tmp_path: Path) -> None:
    """A million values, away from zero. One mean over all of them at once gave 91 dB here, axis by axis 148."""
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(1, 512, 30, 64, generator=generator) * torch.linspace(0.1, 4, 30)[:, None]
    norm = SequenceNorm(64).eval()
    write_onnx(norm, {"x": x}, ["y"], tmp_path / "norm.onnx", dynamic_axes={}, metadata={})
    with open_runtime("onnxruntime", tmp_path / "norm.onnx") as opened:
        found = opened.run({"x": x.numpy()})["y"]
    with torch.no_grad():
        assert snr_db(norm.double()(x.double()).numpy().ravel(), found.ravel()) >= 120


def test_norm_of_the_input_is_one_of_each_band() -> None:
    torch.manual_seed(0)
    widths, start = (2, 3, 1), 0
    x = torch.randn(2, 5, 2, 6) * torch.tensor([1.0, 1, 5, 5, 5, 0.1]) + 2
    found = BandNorm(widths)(x)
    for width in widths:
        bins = slice(start, start + width)
        alone = nn.functional.group_norm(x[..., bins].transpose(1, 2).flatten(3)[:, :, :, None].flatten(2), 1)
        wanted = alone.reshape(2, 2, 5, width).transpose(1, 2)
        torch.testing.assert_close(found[..., bins], wanted)
        start += width


@torch.no_grad()
def test_output_is_the_masked_sum_of_three_frames(either: WaveformEnhancer) -> None:
    network = either.network
    x = torch.randn(1, 6, 257, 2, generator=torch.Generator().manual_seed(3))
    state = network.initial_state()
    if network.causal:
        state["spectra"] = torch.randn(1, 2, 2, 257, generator=torch.Generator().manual_seed(4))
    mask, _ = network.estimate(x.transpose(-1, -2), state)
    enhanced, after = network(x, state)
    weights = torch.complex(mask[0, :, :TAPS], mask[0, :, TAPS:])  # (T, taps, F)
    spectrum = torch.view_as_complex(x)[0]
    nothing = torch.zeros(1, 257, dtype=torch.complex64)
    if network.causal:
        earlier = torch.complex(state["spectra"][0, :, 0], state["spectra"][0, :, 1])
        around = torch.cat([earlier, spectrum])
        torch.testing.assert_close(after["spectra"][0], x[0, -2:].transpose(-1, -2))
    else:
        around = torch.cat([nothing, spectrum, nothing])
    wanted = sum(weights[:, tap] * around[tap : tap + 6] for tap in range(TAPS))
    torch.testing.assert_close(torch.view_as_complex(enhanced[0].contiguous()), wanted)


@pytest.mark.parametrize("band", [0, 11, 29])
def test_a_frame_s_bands_hear_each_other(band: int, causal: WaveformEnhancer) -> None:
    x = 3 * torch.randn(1, 1, 2, 257, generator=torch.Generator().manual_seed(3))
    edges = np.cumsum([0, *TINY.band_widths])
    changed = x.clone()
    changed[..., edges[band] : edges[band + 1]] *= -5
    with torch.no_grad():
        masks = [causal.network.estimate(spectrum, causal.network.initial_state())[0] for spectrum in (x, changed)]
    moved = (masks[0] != masks[1]).any(dim=2).flatten()
    assert all(moved[edges[k] : edges[k + 1]].any() for k in range(30))


def test_forms_give_the_same_samples(either: WaveformEnhancer, wave: Tensor) -> None:
    expected = whole(either, wave)
    with exported_form(either):
        assert (whole(either, wave) - expected).abs().max() <= FORMS
    either.network.use_form("exact")
    assert (whole(either, wave) - expected).abs().max() <= FORMS


# Level, silence, training


@pytest.mark.parametrize("level_db", range(-40, 1, 10))
def test_output_is_finite_and_of_sane_level_at_any_input_level(
    level_db: int, either: WaveformEnhancer, wave: Tensor
) -> None:
    wave = wave / wave.abs().max() * 10 ** (level_db / 20)
    output = either.enhance(wave)
    assert torch.isfinite(output).all()
    assert 1e-4 < output.square().mean() / wave.square().mean() < 100


@pytest.mark.parametrize("level_db", [-40, -20, 0])
def test_untrained_network_leaves_the_signal_nearly_alone(level_db: int, wave: Tensor) -> None:
    wave = wave / wave.abs().max() * 10 ** (level_db / 20)
    for causal in (True, False):
        torch.manual_seed(1)
        residual = build(dataclasses.replace(TINY, causal=causal), AudioConfig()).enhance(wave) - wave
        assert 10 * torch.log10(wave.square().sum() / residual.square().sum()) > 15


def test_level_is_heard_by_the_causal_network_and_not_by_the_published(
    causal: WaveformEnhancer, published: WaveformEnhancer, wave: Tensor
) -> None:
    """Norms over the whole recording make the published one blind to its level, down to what the floors add."""

    def change(enhancer: WaveformEnhancer) -> float:
        loud, quiet = enhancer.enhance(wave), enhancer.enhance(0.1 * wave)
        return float((10 * quiet - loud).abs().max() / loud.abs().max())

    assert change(causal) > 0.01
    assert change(causal) > 2 * change(published)


def test_silence_gives_silence(either: WaveformEnhancer) -> None:
    assert not either.enhance(torch.zeros(1, 5000)).any()


def test_silence_follows_once_the_last_tap_is_past(causal: WaveformEnhancer, wave: Tensor) -> None:
    output = whole(causal, torch.cat([wave, torch.zeros(1, 20 * HOP)], dim=1))
    last_heard = 2 * causal.audio.overlap + (TAPS - 1) * HOP
    assert not output[:, N_SAMPLES + last_heard :].any()


def test_every_parameter_gets_a_finite_gradient(either: WaveformEnhancer, wave: Tensor) -> None:
    output, _ = either.train()(wave, either.initial_state())
    output.square().mean().backward()
    for name, parameter in either.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_silence_teaches_without_nan(either: WaveformEnhancer) -> None:
    output, _ = either.train()(torch.zeros(1, 10 * HOP), either.initial_state())
    (output - 0.1).square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in either.parameters())


def test_it_trains_under_bfloat16_autocast(either: WaveformEnhancer, wave: Tensor) -> None:
    expected = whole(either, wave)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = either.train()(wave, either.initial_state())
    assert output.dtype == torch.float32
    assert snr_db(expected[0].numpy(), output[0].detach().numpy()) > 20  # 8 bits of mantissa
    output.square().mean().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in either.parameters())


def test_float64_gives_the_same_by_the_equations(either: WaveformEnhancer, wave: Tensor) -> None:
    truth = float64_truth(either, wave[0].numpy(), wave.shape[1] // HOP)
    assert truth.enhanced.dtype == np.float64
    found = pytorch_truth(either, wave[0].numpy(), wave.shape[1] // HOP)
    assert snr_db(truth.enhanced, found.enhanced) > GRAPH_DB
    assert set(truth.states) == set(either.initial_state() if either.network.causal else ())


def test_copies_and_loaded_weights_do_not_share_with_the_original(either: WaveformEnhancer, wave: Tensor) -> None:
    """nn.LSTM keeps a second list of its weights: what changes the ones must change the others, and no copy."""
    expected, other = whole(either, wave), copy.deepcopy(either)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(whole(other, wave), expected)
    assert torch.equal(whole(either, wave), expected)
    other.load_state_dict(either.state_dict())
    assert torch.equal(whole(other, wave), expected)


# Size and cost


@pytest.mark.parametrize(("name", "count"), [("bsrnn", 3_479_052), ("bsrnn-causal", 2_957_900)])
def test_registered_models_have_the_published_size(name: str, count: int) -> None:
    config = MODELS[name]
    assert isinstance(config, BsrnnConfig)
    assert (config.channels, config.layers, config.hidden, config.decoder_hidden) == (64, 5, 128, 256)
    network = build(config, AudioConfig()).network
    assert isinstance(network, Bsrnn)
    assert network.causal == config.causal == (name == "bsrnn-causal")
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_cost_counts_each_lstm_by_its_equations(either: WaveformEnhancer) -> None:
    config, counts = either.network.config, macs_per_frame(either)
    gates = 4 * config.hidden * (config.channels + config.hidden)  # of a step in one direction
    back = config.hidden * config.channels
    directions = 1 if config.causal else 2
    assert counts["LSTMs over time"] == 2 * 30 * directions * (gates + back)
    assert counts["LSTMs over bands"] == 2 * 30 * 2 * (gates + back)
    assert counts["mask decoder"] >= 30 * 8 * 8 + 257 * 12 * 8 + 257 * TAPS * 4
    sizes = parameters(either)
    assert sum(sizes.values()) == sum(parameter.numel() for parameter in either.parameters())
    assert set(sizes) <= set(either.network.parts.values())


@pytest.mark.parametrize("name", ["channels", "layers", "hidden", "decoder_hidden"])
def test_sizes_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{name}: found 0, wanted 1 to \d+"):
        dataclasses.replace(TINY, **{name: 0})


# As graphs


def session(path: Path):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 4])
def test_a_streaming_graph_agrees_over_300_carried_hops(
    block: int, causal: WaveformEnhancer, speech_like, tmp_path: Path
) -> None:
    pytest.importorskip("onnx")
    from edgese.graphs.plan import Plan
    from edgese.graphs.write import graph_of, write_graph

    graph, path = graph_of(causal, block), tmp_path / "block.onnx"
    assert [spec.name for spec in graph.inputs] == ["wave", *causal.initial_state()]
    assert graph.states["lstm_h_1"] == "lstm_h_1_next"
    write_graph(causal, graph, path, Plan())
    opened = session(path)
    assert [tensor.name for tensor in opened.get_inputs()] == [spec.name for spec in graph.inputs]
    assert [tensor.name for tensor in opened.get_outputs()] == [spec.name for spec in graph.outputs]
    waves = np.stack([speech_like(300 * HOP, seed=seed) for seed in (5, 6)])  # two streams in each call
    states = {name: state.numpy() for name, state in causal.initial_state(2).items()}
    pieces = []
    for start in range(0, waves.shape[1], block * HOP):
        found = opened.run(None, {"wave": waves[:, start : start + block * HOP], **states})
        pieces.append(found[0])
        states = dict(zip(states, found[1:], strict=True))
    with torch.no_grad():
        wanted, after = causal(torch.from_numpy(waves), causal.initial_state(2))
    found_wave: NDArray[np.float32] = np.concatenate(pieces, axis=1)
    for stream in range(2):
        assert snr_db(wanted[stream].numpy(), found_wave[stream]) >= GRAPH_DB
    for name, state in after.items():
        difference = float((state - torch.from_numpy(states[name])).abs().max() / (state.abs().max() or 1))
        assert difference <= STATES, name
    assert (whole(causal, torch.from_numpy(waves)) - wanted).abs().max() == 0  # exporting changed nothing


@pytest.mark.slow
def test_a_segment_graph_agrees_and_has_a_node_for_each_lstm(
    published: WaveformEnhancer, speech_like, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    from export.graph import write_onnx

    path, wave = tmp_path / "segment.onnx", speech_like(96 * HOP, seed=5)[None]
    with exported_form(published):
        step = SegmentStep(published).eval()
        inputs = {"wave": torch.from_numpy(wave)}
        write_onnx(step, inputs, ["enhanced"], path, dynamic_axes={"wave": {0: "streams"}}, metadata={})
    graph = onnx.load(path).graph
    assert sum(node.op_type == "LSTM" for node in graph.node) == 4
    assert not {"Loop", "Scan", "If"} & {node.op_type for node in graph.node}
    waves = np.concatenate([wave, 0.1 * wave[:, ::-1]])
    (found,) = session(path).run(None, {"wave": waves})
    wanted = published.enhance(torch.from_numpy(waves))
    for stream in range(2):
        assert snr_db(wanted[stream].numpy(), found[stream]) >= GRAPH_DB


@pytest.mark.slow
def test_the_exported_form_is_a_program_of_pytorch_too(causal: WaveformEnhancer, wave: Tensor) -> None:
    with exported_form(causal):
        step = StreamStep(causal).eval()
        arguments = (wave[:, : 4 * HOP], *causal.initial_state().values())
        program = torch.export.export(step, arguments).module()
        for found, wanted in zip(program(*arguments), step(*arguments), strict=True):
            torch.testing.assert_close(found, wanted)
