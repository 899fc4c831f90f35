"""DB-Transform: its parts against their equations, and the network as a stream or as a segment."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.errors import ConfigError
from edgese.graphs.form import exported_form
from edgese.graphs.plan import Plan
from edgese.graphs.write import graph_of, write_graph
from edgese.metrics.difference import snr_db
from edgese.model.cost import macs_per_frame, parameters
from edgese.model.db_transform import (
    TAPS,
    BandAttention,
    DbTransform,
    HarmonicGraph,
    ScaleFusion,
    harmonic_adjacency,
)
from edgese.model.enhancer import SegmentStep, WaveformEnhancer
from edgese.model.product import products
from edgese.model.registry import build
from edgese.networks import BAND_WIDTHS_257, MODELS, DbTransformConfig
from edgese.verify.agreement import verify_graph
from edgese.verify.truth import float64_truth, pytorch_truth
from export.graph import write_onnx
from runtimes.registry import open_runtime

from .test_mbs_net import HOP, N_SAMPLES, SampleStream, changed_too_early, whole_run

STREAMING = 1e-5  # any split against one call: 2e-7
EXACT = {"atol": 1e-12, "rtol": 1e-9}  # float64 against float64: another order of sums

CAUSAL = DbTransformConfig(
    causal=True, channels=16, layers=2, heads=2, scales=(1, 3, 5), gate_hidden=4, feedforward=8, decoder_hidden=8
)
CENTRED = dataclasses.replace(CAUSAL, causal=False)
ONE_LAYER = dataclasses.replace(CAUSAL, layers=1)  # for graphs: PyTorch translates another layer in as long again
FEW_BANDS = dataclasses.replace(CAUSAL, band_widths=(2, 3, 1, 4))


def lively(config: DbTransformConfig) -> WaveformEnhancer:
    """A seeded enhancer that acts like a trained one: its mask moves, its gates prefer, its biases are not zero."""
    torch.manual_seed(1)
    enhancer = build(config, AudioConfig()).eval()
    with torch.no_grad():
        for name, parameter in enhancer.network.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
        enhancer.network.decoder.weight.mul_(5)
    return enhancer


@pytest.fixture
def causal() -> WaveformEnhancer:
    return lively(CAUSAL)


@pytest.fixture
def centred() -> WaveformEnhancer:
    return lively(CENTRED)


@pytest.fixture(params=[CAUSAL, CENTRED], ids=["causal", "centred"])
def enhancer(request: pytest.FixtureRequest) -> WaveformEnhancer:
    return lively(request.param)


@pytest.fixture
def wave(speech_like) -> Tensor:
    return torch.from_numpy(speech_like(N_SAMPLES, seed=2))[None]


def agree_in_values_and_gradients(
    module: nn.Module, x: Tensor, found: Callable[[Tensor], Tensor], wanted: Callable[[Tensor], Tensor]
) -> None:
    """Both give the same, and the same gradients for the input and for every parameter, none of them zero."""
    x.requires_grad_()
    results, gradients = [], []
    for compute in (found, wanted):
        y = compute(x)
        push = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        gradients.append(torch.autograd.grad((y * push).sum(), [x, *module.parameters()]))
        results.append(y)
    torch.testing.assert_close(*results, **EXACT)
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, **EXACT)
        assert first.any()


# Parts


@pytest.mark.parametrize("layer", [0, 3])
def test_attention_is_that_of_the_paper(layer: int) -> None:
    """Query by query, head by head, as the equations of Ye et al. 2024 read."""
    torch.manual_seed(0)
    attention = BandAttention(FEW_BANDS, layer).double()
    nn.init.normal_(attention.head_scale)
    heads, width = 2, 4

    def reference(x: Tensor) -> Tensor:
        lambda_init = 0.8 - 0.6 * math.exp(-0.3 * (layer + 1 - 1))
        first = torch.exp(torch.dot(attention.lambda_q1, attention.lambda_k1))
        weight = first - torch.exp(torch.dot(attention.lambda_q2, attention.lambda_k2)) + lambda_init
        w_q, w_k, w_v = attention.in_proj.weight.split(16)
        streams = []
        for frame in x.flatten(0, 1):  # (K, D)
            normed = attention.norm(frame)
            q, k, v = normed @ w_q.T, normed @ w_k.T, normed @ w_v.T
            rows = []
            for band in range(4):
                row = []
                for head in range(heads):
                    maps = []
                    for half in range(2):
                        at = slice((2 * head + half) * width, (2 * head + half + 1) * width)
                        scores = [torch.dot(q[band, at], k[other, at]) / math.sqrt(width) for other in range(4)]
                        exps = torch.stack(scores).exp()
                        maps.append(exps / exps.sum())
                    values = v[:, head * 2 * width : (head + 1) * 2 * width]
                    out = sum((maps[0][other] - weight * maps[1][other]) * values[other] for other in range(4))
                    out = out / torch.sqrt(out.square().mean() + 1e-5) * attention.head_scale
                    row.append((1 - lambda_init) * out)
                rows.append(torch.cat(row))
            streams.append(frame + torch.stack(rows) @ attention.out_proj.weight.T)
        return torch.stack(streams).view_as(x)

    x = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    agree_in_values_and_gradients(attention, x, attention, reference)


def test_second_map_begins_with_the_weight_of_the_paper() -> None:
    torch.manual_seed(0)
    for layer, wanted in ((0, 0.2), (1, 0.8 - 0.6 * math.exp(-0.3)), (5, 0.8 - 0.6 * math.exp(-1.5))):
        attention = BandAttention(CAUSAL, layer)
        nn.init.zeros_(attention.lambda_q1)
        nn.init.zeros_(attention.lambda_k2)
        assert attention.weight_of_second().item() == pytest.approx(wanted)


@pytest.mark.parametrize("looks_back_only", [True, False])
def test_fusion_mixes_its_convolutions_band_by_band(looks_back_only: bool) -> None:
    """Frame by frame and tap by tap: softmax of the gates, kernels ending at the frame or centred on it."""
    torch.manual_seed(0)
    fusion = ScaleFusion(dataclasses.replace(FEW_BANDS, causal=looks_back_only)).double()
    for bias in (fusion.bias, fusion.gate_bias):
        nn.init.normal_(bias)
    before = torch.randn(2, 4, 4, 16, dtype=torch.float64) if looks_back_only else None

    def reference(x: Tensor) -> Tensor:
        normed = fusion.norm(x)
        outputs = []
        for t in range(7):
            gate = torch.softmax(
                fusion.gate(nn.functional.silu(fusion.gate_hidden(normed[:, t]))) + fusion.gate_bias, -1
            )
            y = fusion.bias
            for index, kernel in enumerate(fusion.kernels):
                width = len(kernel)
                for tap in range(width):
                    place = t + tap - (width - 1 if looks_back_only else width // 2)
                    if 0 <= place < 7:
                        heard = normed[:, place]
                    elif before is not None:
                        heard = before[:, place]  # -1 is the last
                    else:
                        continue
                    y = y + gate[..., index, None] * kernel[tap] * heard
            outputs.append(x[:, t] + fusion.out_proj(nn.functional.silu(y)))
        return torch.stack(outputs, dim=1)

    x = torch.randn(2, 7, 4, 16, dtype=torch.float64)
    agree_in_values_and_gradients(fusion, x, lambda x: fusion(x, before)[0], reference)
    after = fusion(x, before)[1]
    if looks_back_only:
        torch.testing.assert_close(after, fusion.norm(x)[:, 3:])
    else:
        assert after is None


def test_graph_begins_as_harmonic_relations() -> None:
    """Each pair of bands by the definition; undone, the degrees leave 1 / sqrt(m) for an exact m-th harmonic."""
    edges = np.cumsum([0, *BAND_WIDTHS_257])
    bands = [(np.mean(range(first, last)), (last - first) / 2) for first, last in itertools.pairwise(edges)]
    wanted = np.zeros((30, 30))
    for i, one in enumerate(bands):
        for j, other in enumerate(bands):
            (low, _), (high, half) = sorted([one, other])
            m = round(high / low)
            wanted[i, j] = math.exp(-(((high - m * low) / half) ** 2) / 2) / math.sqrt(m)
    found = harmonic_adjacency(BAND_WIDTHS_257).double().numpy()
    degrees = wanted.sum(0)
    np.testing.assert_allclose(found * np.sqrt(np.outer(degrees, degrees)), wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(found, found.T)
    # bands 1, 2, 3 and 4 are centred on bins 3, 6, 9 and 12
    np.testing.assert_allclose(wanted[1, 2:5], 1 / np.sqrt([2, 3, 4]))
    assert wanted[2, 4] > 5 * wanted[2, 3]


def test_a_band_of_nothing_but_0_hz_has_finite_relations() -> None:
    assert torch.isfinite(harmonic_adjacency((1, 2, 3))).all()


def test_graph_convolution_sums_over_neighbours() -> None:
    torch.manual_seed(0)
    graph = HarmonicGraph(FEW_BANDS).double()

    def reference(x: Tensor) -> Tensor:
        normed = graph.norm(x)
        bands = [sum(graph.adjacency[i, j] * normed[:, :, j] for j in range(4)) for i in range(4)]
        return x + nn.functional.silu(torch.stack(bands, dim=2) @ graph.channels.weight.T + graph.channels.bias)

    agree_in_values_and_gradients(graph, torch.randn(2, 3, 4, 16, dtype=torch.float64), graph, reference)


@torch.no_grad()
def test_mask_is_a_filter_over_three_frames(enhancer: WaveformEnhancer) -> None:
    network = enhancer.network
    x = 3 * torch.randn(2, 6, 257, 2, generator=torch.Generator().manual_seed(3))
    mask, _ = network.estimate(x, network.initial_state(2))
    assert mask.shape == (2, 6, 257, 2 * TAPS)
    taps = torch.view_as_complex(mask.unflatten(-1, (TAPS, 2)).contiguous())
    spectrum = torch.view_as_complex(x)
    wanted = torch.zeros_like(spectrum)
    for t in range(6):
        for tap in range(TAPS):
            place = t + tap - (2 if network.causal else 1)
            if 0 <= place < 6:
                wanted[:, t] += taps[:, t, :, tap] * spectrum[:, place]
    found, after = network(x, network.initial_state(2))
    torch.testing.assert_close(torch.view_as_complex(found.contiguous()), wanted, atol=1e-4, rtol=1e-4)
    if network.causal:
        torch.testing.assert_close(after["taps"].transpose(-1, -2), x[:, -2:])


# Size, settings, cost


@pytest.mark.parametrize("model", ["db-transform", "db-transform-causal"])
def test_there_are_4_1_million_parameters(model: str) -> None:
    enhancer = build(MODELS[model], AudioConfig())
    counts = parameters(enhancer)
    assert sum(counts.values()) == pytest.approx(4_100_000, rel=0.01)
    assert sum(counts.values()) == sum(parameter.numel() for parameter in enhancer.parameters())
    assert list(counts) == list(DbTransform.parts.values())
    assert enhancer.network.causal == (model == "db-transform-causal")


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.heads: found 3, wanted half a divisor of 128 channels"):
        DbTransformConfig(heads=3)
    with pytest.raises(ConfigError, match=r"model\.scales: found \(3, 4\), wanted odd numbers"):
        DbTransformConfig(scales=(3, 4))
    with pytest.raises(ConfigError, match=r"model\.scales: found \(\)"):
        DbTransformConfig(scales=())
    with pytest.raises(ConfigError, match=r"model\.layers: found 0, wanted 1 to 256"):
        DbTransformConfig(layers=0)


def test_macs_are_those_of_the_definition(enhancer: WaveformEnhancer) -> None:
    with exported_form(enhancer):
        found = macs_per_frame(enhancer)
    k, d, layers = 30, 16, 2
    assert found["differential band attention"] == layers * (4 * k * d**2 + 2 * k**2 * d)
    assert found["multi-scale fusion"] == layers * k * (d * (1 + 3 + 5) + d * 4 + 4 * 3 + d**2)
    assert found["harmonic graph"] == layers * (k**2 * d + k * d**2)
    assert found["feed-forward"] == layers * k * 3 * d * 8
    assert found["mask decoder"] == k * (d * 8 + 8 * 21 * 7) + 4 * 3 * 257


def test_every_product_with_weights_may_be_taken_in_half_precision(causal: WaveformEnhancer) -> None:
    """Any weight that is a matrix and no table of its own kind belongs to a product."""
    linear = {name for name, module in causal.network.named_modules() if isinstance(module, nn.Linear)}
    others = {"split.product", "decoder.first", "decoder.last", "graphs.0.mix", "graphs.1.mix"}
    assert products(causal.network).keys() == linear | others


# Training


@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_parameter_gets_a_gradient(bfloat16: bool, enhancer: WaveformEnhancer, wave: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output, _ = enhancer(wave, enhancer.initial_state())
    assert output.dtype == torch.float32
    output.square().mean().backward()
    for name, parameter in enhancer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("level_db", [-40, -20, 0])
@pytest.mark.parametrize("config", [CAUSAL, CENTRED], ids=["causal", "centred"])
def test_untrained_network_leaves_the_signal_nearly_alone(
    config: DbTransformConfig, level_db: int, wave: Tensor
) -> None:
    torch.manual_seed(1)
    wave = wave / wave.abs().max() * 10 ** (level_db / 20)
    residual = build(config, AudioConfig()).enhance(wave) - wave
    assert 10 * torch.log10(wave.square().sum() / residual.square().sum()) > 15


def test_silence_gives_silence_and_teaches_without_nan(enhancer: WaveformEnhancer, wave: Tensor) -> None:
    assert not enhancer.enhance(torch.zeros(1, 5000)).any()
    output, _ = enhancer(torch.zeros(1, 10 * HOP), enhancer.initial_state())
    (output - 0.1).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in enhancer.parameters() if p.grad is not None)


def test_level_is_heard(enhancer: WaveformEnhancer, wave: Tensor) -> None:
    loud, quiet = enhancer.enhance(wave), enhancer.enhance(0.01 * wave)
    assert (100 * quiet - loud).abs().max() > 0.01 * loud.abs().max()


def test_double_precision_says_the_same(enhancer: WaveformEnhancer, wave: Tensor) -> None:
    exact = float64_truth(enhancer, wave[0].numpy(), wave.shape[1] // HOP)
    assert exact.enhanced.dtype == np.float64
    assert snr_db(exact.enhanced, pytorch_truth(enhancer, wave[0].numpy(), wave.shape[1] // HOP).enhanced) >= 105  # 113


# As a stream


@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000, N_SAMPLES])
def test_streaming_equals_offline_for_any_split(size: int, causal: WaveformEnhancer, wave: Tensor) -> None:
    stream = SampleStream(causal)
    output = torch.cat([stream.push(piece) for piece in wave.split(size, dim=1)], dim=1)
    assert (output - whole_run(causal)(wave)).abs().max() <= STREAMING


def test_a_state_that_is_dropped_would_be_noticed(causal: WaveformEnhancer, wave: Tensor) -> None:
    expected = whole_run(causal)(wave)[:, N_SAMPLES // 2 :]
    with torch.no_grad():
        _, state = causal(wave[:, : N_SAMPLES // 2], causal.initial_state())
        assert list(state) == ["analysis", "synthesis", "conv_0", "conv_1", "taps"]
        for name in state:
            forgotten = state | {name: torch.zeros_like(state[name])}
            output, _ = causal(wave[:, N_SAMPLES // 2 :], forgotten)
            assert (output - expected).abs().max() > 10 * STREAMING, name


def test_changing_a_future_sample_changes_no_earlier_bit(causal: WaveformEnhancer, wave: Tensor) -> None:
    assert changed_too_early(whole_run(causal), wave) == []


def test_the_centred_network_fails_the_same_check(centred: WaveformEnhancer, wave: Tensor) -> None:
    assert centred.initial_state().keys() == {"analysis", "synthesis"}
    assert {128, 1000, 2048, N_SAMPLES - 1} <= set(changed_too_early(whole_run(centred), wave))


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 4])
def test_graph_agrees_over_300_carried_hops(block: int, speech_like, tmp_path: Path) -> None:
    causal = lively(ONE_LAYER)
    graph = graph_of(causal, block)
    write_graph(causal, graph, tmp_path / graph.file, Plan())
    result = verify_graph(tmp_path, graph, pytorch_truth(causal, speech_like(300 * HOP, seed=4), block))
    assert result.failures == ()
    assert (result.n_hops, result.state_relative.keys()) == (300, causal.initial_state().keys())
    assert result.snr_db >= 100


# As a segment


@pytest.mark.slow
def test_segment_graph_agrees(speech_like, tmp_path: Path) -> None:
    centred = lively(dataclasses.replace(ONE_LAYER, causal=False))
    wave = torch.from_numpy(np.stack([speech_like(64 * HOP, seed=seed) for seed in (5, 6)]))
    step = SegmentStep(centred).eval()
    with torch.no_grad():
        wanted = step(wave).numpy()
    with exported_form(centred):
        write_onnx(
            step, {"wave": wave}, ["enhanced"], tmp_path / "segment.onnx", dynamic_axes={"wave": {0: "B"}}, metadata={}
        )
    with open_runtime("onnxruntime", tmp_path / "segment.onnx") as runtime:
        found = runtime.run({"wave": wave.numpy()})["enhanced"]
    assert found.shape == wanted.shape
    assert snr_db(wanted, found) >= 100
