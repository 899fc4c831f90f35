"""The network that MBS-Net came from: its size and ranges, both directions heard, every form of its scan the same."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgese.config import AudioConfig
from edgese.errors import ConfigError
from edgese.graphs.form import exported_form
from edgese.model import cost
from edgese.model.enhancer import SegmentStep, WaveformEnhancer
from edgese.model.mbs_net_original import UNTRAINED_MASK, MbsNetOriginal
from edgese.model.registry import build
from edgese.networks import MODELS, OriginalConfig

# Measured: see the right column.
FORMS = 1e-5  # greatest difference of samples in [-1, 1] between forms of the scan: 6e-8
GRADIENTS = 1e-4  # greatest difference of a gradient, relative to its greatest value, full and chunked: 4e-6
EXPORT_SNR_DB = 100  # ONNX Runtime against PyTorch, speech-like sound: 134

HOP = 128
TINY = OriginalConfig(channels=8, layers=1, states=4, dt_rank=2, head_hidden=8, decoder_hidden=8)


def lively(config: OriginalConfig) -> WaveformEnhancer:
    """A seeded enhancer whose states matter and whose mask and offset move, as in a trained one."""
    torch.manual_seed(1)
    enhancer = build(config, AudioConfig()).eval()
    network = enhancer.network
    with torch.no_grad():
        for layer in (*network.layers, network.across):
            for block in layer.blocks:
                block.dt_bias.add_(2)
                block.a_log.sub_(1)
                block.x_proj.weight.mul_(5)
                block.out_proj.weight.mul_(3)
        network.magnitude_decoder.weight.mul_(300)
        network.phase_decoder.weight.mul_(60)
    return enhancer


@pytest.fixture
def enhancer() -> WaveformEnhancer:
    return lively(TINY)


@pytest.fixture
def wave(speech_like) -> Tensor:
    return torch.from_numpy(speech_like(40 * HOP, seed=2))[None]


@pytest.fixture
def spectrum() -> Tensor:
    return 3 * torch.randn(2, 9, 257, 2, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_spectrum_keeps_its_shape_and_there_is_no_state(enhancer: WaveformEnhancer, spectrum: Tensor) -> None:
    assert not enhancer.network.causal
    assert enhancer.network.initial_state(3) == {}
    for frames in (1, 2, 9):
        enhanced, state = enhancer.network(spectrum[:, :frames], {})
        assert enhanced.shape == (2, frames, 257, 2)
        assert state == {}


def test_has_the_7_33_million_parameters_of_the_original() -> None:
    enhancer = build(MODELS["mbs-net-original"], AudioConfig())
    assert sum(cost.parameters(enhancer).values()) == pytest.approx(7.33e6, rel=0.01)


def test_costs_are_told_by_part_in_every_form(enhancer: WaveformEnhancer) -> None:
    parts = set(MbsNetOriginal.parts.values())
    assert set(cost.parameters(enhancer)) == parts
    in_training = cost.macs_per_frame(enhancer)
    assert set(in_training) == parts
    with exported_form(enhancer):
        exported = cost.macs_per_frame(enhancer)
    assert exported.pop(cost.TRANSFORM) > 0
    assert exported == in_training


def test_multiply_accumulates_are_those_of_the_definition(enhancer: WaveformEnhancer) -> None:
    """Over time, a frame and band: four blocks (in, x, dt and out projections, taps, scan) and two joins."""
    D, E, N, R = 8, 16, 4, 2
    block = D * 2 * E + E * (R + 2 * N) + R * E + E * D + 4 * E + 3 * N * E
    layer = 31 * (4 * block + 2 * 2 * D * D)
    found = cost.macs_per_frame(enhancer)
    assert found["Mamba over time"] == layer
    assert found["Mamba across bands"] == layer


@torch.no_grad()
def test_mask_is_within_0_and_1_and_the_offset_within_a_turn(enhancer: WaveformEnhancer, spectrum: Tensor) -> None:
    mask, offset = enhancer.network.estimate(spectrum)
    assert mask.shape == offset.shape == (2, 9, 257, 1)
    assert 0 <= mask.min() < 0.3
    assert 0.97 < mask.max() <= 1
    assert -math.pi <= offset.min() < -0.3 * math.pi
    assert 0.3 * math.pi < offset.max() <= math.pi
    enhanced, _ = enhancer.network(spectrum, {})
    x, y = (torch.view_as_complex(tensor.contiguous()) for tensor in (spectrum, enhanced))
    turned = x * torch.polar(mask[..., 0] ** (1 / 0.3), offset[..., 0])
    torch.testing.assert_close(y, turned, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_untrained_network_turns_nearly_nothing_and_masks_alike(spectrum: Tensor) -> None:
    torch.manual_seed(1)
    mask, offset = build(TINY, AudioConfig()).network.estimate(spectrum)
    assert (mask - torch.sigmoid(torch.tensor(UNTRAINED_MASK))).abs().max() < 0.05
    assert offset.abs().max() < 0.5


@torch.no_grad()
def test_a_change_of_the_future_changes_the_past_and_one_of_the_past_the_future(
    enhancer: WaveformEnhancer, spectrum: Tensor
) -> None:
    """The control of the causality check: this network must be caught by it."""
    before, _ = enhancer.network.estimate(spectrum)
    for changed_frame in (0, 8):
        changed = spectrum.clone()
        changed[:, changed_frame] *= -5
        after, _ = enhancer.network.estimate(changed)
        moved = (after != before).any(dim=3).any(dim=2)
        assert moved.all(), changed_frame


@torch.no_grad()
def test_reversed_in_time_with_its_directions_exchanged_it_is_the_same(
    enhancer: WaveformEnhancer, spectrum: Tensor
) -> None:
    """Both directions are given the same sound and put together in the same places."""
    exchanged = copy.deepcopy(enhancer.network)
    for layer in exchanged.layers:
        blocks = layer.blocks
        blocks[0], blocks[1], blocks[2], blocks[3] = blocks[1], blocks[0], blocks[3], blocks[2]
        for join in layer.joins:
            join.weight.copy_(join.weight.roll(join.out_features, dims=1))
    for found, wanted in zip(exchanged.estimate(spectrum.flip(1)), enhancer.network.estimate(spectrum), strict=True):
        torch.testing.assert_close(found.flip(1), wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("band", [0, 17, 30])
def test_bands_mix_both_ways(band: int, enhancer: WaveformEnhancer, spectrum: Tensor) -> None:
    first = sum(TINY.band_widths[:band])
    changed = spectrum.clone()
    changed[:, :, first : first + TINY.band_widths[band]] *= -5
    before, after = (enhancer.network.estimate(x)[0] for x in (spectrum, changed))
    assert (before != after).any(dim=1).all()


@torch.no_grad()
def test_one_recording_never_hears_another(enhancer: WaveformEnhancer, spectrum: Tensor) -> None:
    together = enhancer.network(spectrum, {})[0]
    for number in range(2):
        alone = enhancer.network(spectrum[number : number + 1], {})[0]
        torch.testing.assert_close(together[number : number + 1], alone, atol=1e-4, rtol=1e-4)


def test_silence_gives_silence(enhancer: WaveformEnhancer) -> None:
    assert not enhancer.enhance(torch.zeros(1, 5000)).any()


def test_level_is_heard(enhancer: WaveformEnhancer, wave: Tensor) -> None:
    loud, quiet = enhancer.enhance(wave), enhancer.enhance(0.01 * wave)
    assert (100 * quiet - loud).abs().max() > 0.01 * loud.abs().max()


def test_every_parameter_gets_a_gradient(enhancer: WaveformEnhancer, wave: Tensor) -> None:
    enhancer(wave, enhancer.initial_state())[0].square().mean().backward()
    for name, parameter in enhancer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_full_and_chunked_scan_agree_in_samples_and_gradients(wave: Tensor) -> None:
    samples, gradients = [], []
    for chunk in (0, 7):
        enhancer = lively(dataclasses.replace(TINY, chunk=chunk))
        assert enhancer.network.across.scan_form == ("chunked" if chunk else "full")
        output, _ = enhancer(wave, enhancer.initial_state())
        output.square().mean().backward()
        samples.append(output.detach())
        gradients.append({name: parameter.grad for name, parameter in enhancer.named_parameters()})
    assert (samples[0] - samples[1]).abs().max() <= FORMS
    for name, wanted in gradients[0].items():
        assert (gradients[1][name] - wanted).abs().max() <= GRADIENTS * wanted.abs().max(), name


@torch.no_grad()
@pytest.mark.parametrize("scan", ["unrolled", "looped", "prefix", "reference"])
def test_every_form_gives_the_same_samples(scan: str, enhancer: WaveformEnhancer, wave: Tensor) -> None:
    expected = enhancer.enhance(wave)
    enhancer.network.use_scan(scan)
    assert (enhancer.enhance(wave) - expected).abs().max() <= FORMS


def test_training_in_half_precision_keeps_the_scan_in_float32(enhancer: WaveformEnhancer, wave: Tensor) -> None:
    exact = enhancer.enhance(wave)
    with torch.autocast("cpu", torch.bfloat16):
        output = enhancer.enhance(wave)
    assert torch.isfinite(output).all()
    assert 0 < (output - exact).square().sum() < 0.05 * exact.square().sum()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"chunk": -1}, r"model\.chunk: found -1, wanted 0 to 8192"),
        ({"layers": 0}, r"model\.layers: found 0, wanted 1 to 256"),
    ],
)
def test_settings_that_make_no_network_are_refused(setting: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **setting)


@pytest.mark.slow
def test_exported_segment_agrees_with_pytorch_for_any_number_of_streams(
    enhancer: WaveformEnhancer, speech_like, tmp_path: Path
) -> None:
    """Slow: PyTorch and the simplifier take half a minute over the graph."""
    onnx = pytest.importorskip("onnx", reason="the [export] extra is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the [export] extra is not installed")
    from export.graph import write_onnx

    path, hops = tmp_path / "segment.onnx", 40
    with exported_form(enhancer):
        write_onnx(
            SegmentStep(enhancer).eval(),
            {"wave": torch.zeros(1, hops * HOP)},
            ["enhanced"],
            path,
            dynamic_axes={"wave": {0: "streams"}},
            metadata={},
        )
    scans = [node for node in onnx.load(path).graph.node if node.op_type == "Scan"]
    assert len(scans) == TINY.layers + 1  # all four scans of a layer are one
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for streams in (1, 3):
        waves = torch.stack([torch.from_numpy(speech_like(hops * HOP, seed=seed)) for seed in range(streams)])
        with torch.no_grad():
            wanted = SegmentStep(enhancer)(waves)
        found = torch.from_numpy(session.run(None, {"wave": waves.numpy()})[0])
        noise = (found - wanted).square().sum()
        assert 10 * torch.log10(wanted.square().sum() / noise) >= EXPORT_SNR_DB, streams
    in_time = SegmentStep(enhancer)(waves)
    torch.testing.assert_close(in_time, enhancer.enhance(waves), atol=FORMS, rtol=0)
