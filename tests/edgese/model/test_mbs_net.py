"""The network as a stream: the same samples however it is cut, no look at the future, bands that mix, no surprises."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.contract import require_contract
from edgese.errors import ConfigError
from edgese.model.bands import BandAttention, BandDecoder, BandFusion, BandSplit
from edgese.model.cost import macs_per_frame
from edgese.model.enhancer import StreamStep, WaveformEnhancer
from edgese.model.mamba import MambaBlock
from edgese.model.mbs_net import MbsNet
from edgese.model.product import Product, products
from edgese.model.registry import build
from edgese.networks import MODELS, NETWORKS, MbsConfig, Registered, register

# Greatest difference of samples in [-1, 1], float32; measured: see the right column. The bar of all is 1e-5.
STREAMING = 1e-5  # any split against one call, also after 20 s: 1.2e-7
BATCH = 1e-5  # streams together against one by one: 4e-9
FORMS = 1e-5  # scans and transforms of one network: 3e-6

HOP = 128
N_SAMPLES = 40 * HOP

Process = Callable[[Tensor], Tensor]


class SampleStream:
    """An enhancer that takes any number of samples: what does not fill a hop waits for the next call."""

    def __init__(self, enhancer: WaveformEnhancer) -> None:
        self.enhancer, self.state = enhancer, enhancer.initial_state()
        self.waiting = torch.zeros(1, 0)

    @torch.no_grad()
    def push(self, samples: Tensor) -> Tensor:
        samples = torch.cat([self.waiting, samples], dim=1)
        whole = samples.shape[1] // HOP * HOP
        self.waiting = samples[:, whole:]
        if not whole:
            return samples[:, :0]
        output, self.state = self.enhancer(samples[:, :whole], self.state)
        return output


def whole_run(enhancer: WaveformEnhancer) -> Process:
    """(B, n_samples) -> (B, n_samples) in one call from zero states, 384 samples behind."""
    return torch.no_grad()(lambda wave: enhancer(wave, enhancer.initial_state(len(wave)))[0])


@pytest.fixture
def wave(speech_like) -> Tensor:
    return torch.from_numpy(speech_like(N_SAMPLES, seed=2))[None]


# Streaming


@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000, N_SAMPLES])
def test_streaming_equals_offline_for_any_split(size: int, tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    stream = SampleStream(tiny_enhancer)
    output = torch.cat([stream.push(piece) for piece in wave.split(size, dim=1)], dim=1)
    assert output.shape == wave.shape
    assert (output - whole_run(tiny_enhancer)(wave)).abs().max() <= STREAMING


def test_streaming_equals_offline_for_random_splits(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    rng = np.random.default_rng(0)
    stream = SampleStream(tiny_enhancer)
    cuts = np.sort(rng.integers(0, N_SAMPLES, 30)).tolist()
    pieces = [wave[:, first:last] for first, last in zip([0, *cuts], [*cuts, N_SAMPLES], strict=True)]
    output = torch.cat([stream.push(piece) for piece in pieces], dim=1)
    assert (output - whole_run(tiny_enhancer)(wave)).abs().max() <= STREAMING


@pytest.mark.parametrize("block", [1, 3, 64])
def test_enhance_is_the_stream_in_time_with_its_input(
    block: int, tiny_enhancer: WaveformEnhancer, wave: Tensor
) -> None:
    overlap = tiny_enhancer.audio.overlap
    followed = nn.functional.pad(wave, (0, overlap))
    expected = whole_run(tiny_enhancer)(followed)[:, overlap:]
    for n_samples in (N_SAMPLES, N_SAMPLES - 1, 1000):
        output = tiny_enhancer.enhance(wave[:, :n_samples], block)
        assert output.shape == (1, n_samples)
        settled = n_samples - overlap if n_samples < N_SAMPLES else n_samples  # later ones know what was cut off
        assert (output - expected[:, :n_samples])[:, :settled].abs().max() <= STREAMING


def test_a_state_that_is_dropped_would_be_noticed(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    """The control: forgetting any one state half-way changes the samples by far more than the tolerance."""
    expected = whole_run(tiny_enhancer)(wave)[:, N_SAMPLES // 2 :]
    with torch.no_grad():
        _, state = tiny_enhancer(wave[:, : N_SAMPLES // 2], tiny_enhancer.initial_state())
        for name in state:
            forgotten = state | {name: torch.zeros_like(state[name])}
            output, _ = tiny_enhancer(wave[:, N_SAMPLES // 2 :], forgotten)
            assert (output - expected).abs().max() > 10 * STREAMING, name


def test_batch_of_streams_equals_single_streams(tiny_enhancer: WaveformEnhancer, speech_like) -> None:
    waves = torch.from_numpy(np.stack([speech_like(20 * HOP, seed=seed) for seed in range(5)]))
    waves[2] = 0
    together = whole_run(tiny_enhancer)(waves)
    for stream, single in enumerate(waves.split(1)):
        assert (together[stream] - whole_run(tiny_enhancer)(single)).abs().max() <= BATCH


def test_one_stream_never_hears_another(tiny_enhancer: WaveformEnhancer, speech_like) -> None:
    waves = torch.from_numpy(np.stack([speech_like(10 * HOP, seed=seed) for seed in range(3)]))
    before = whole_run(tiny_enhancer)(waves)
    waves[1] *= -3
    after = whole_run(tiny_enhancer)(waves)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_state_is_not_modified_in_place(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    with torch.no_grad():
        _, state = tiny_enhancer(wave, tiny_enhancer.initial_state())
        kept, heard = {name: tensor.clone() for name, tensor in state.items()}, wave.clone()
        first, after = tiny_enhancer(wave, state)
        assert all(torch.equal(state[name], kept[name]) for name in kept)
        assert torch.equal(wave, heard)
        after_kept = {name: tensor.clone() for name, tensor in after.items()}
        second, _ = tiny_enhancer(wave, state)
    assert torch.equal(first, second)
    assert all(torch.equal(after[name], after_kept[name]) for name in after)  # nor does a later call touch a result


def test_state_keeps_names_order_shapes_and_type(tiny_enhancer: WaveformEnhancer, tiny_config: MbsConfig) -> None:
    state = tiny_enhancer.initial_state(streams=3)
    inner = tiny_config.inner
    shapes = {"analysis": (3, 384), "synthesis": (3, 384)}
    for layer in range(2):
        shapes |= {f"conv_{layer}": (3, 30, 3, inner), f"ssm_{layer}": (3, 30, 4, inner)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    assert list(state) == list(shapes)
    assert all(tensor.dtype == torch.float32 and not tensor.any() for tensor in state.values())
    for frames in (1, 2, 7):
        _, after = tiny_enhancer(torch.rand(3, frames * HOP), state)
        assert {name: tuple(tensor.shape) for name, tensor in after.items()} == shapes
        assert set(after) == set(state)


@pytest.mark.parametrize("scan", ["unrolled", "reference"])
@pytest.mark.parametrize("transform", ["fft", "matmul"])
def test_every_form_gives_the_same_samples(
    scan: str, transform: str, tiny_enhancer: WaveformEnhancer, wave: Tensor
) -> None:
    expected = whole_run(tiny_enhancer)(wave)
    tiny_enhancer.network.use_scan(scan)
    tiny_enhancer.transform.form = transform
    assert (whole_run(tiny_enhancer)(wave) - expected).abs().max() <= FORMS


def test_stream_step_is_the_enhancer_with_positional_states(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    step = StreamStep(tiny_enhancer)
    assert step.names == ("analysis", "synthesis", "conv_0", "ssm_0", "conv_1", "ssm_1")
    states: tuple[Tensor, ...] = tuple(tiny_enhancer.initial_state().values())
    state = tiny_enhancer.initial_state()
    with torch.no_grad():
        for piece in wave.split(4 * HOP, dim=1):
            output, *states = step(piece, *states)
            expected, state = tiny_enhancer(piece, state)
            assert torch.equal(output, expected)
    for name, tensor in zip(step.names, states, strict=True):
        assert torch.equal(tensor, state[name]), name


# Causality


def changed_too_early(process: Process, wave: Tensor) -> list[int]:
    """Places in `wave` from which on a change alters bits of the output before the hop that holds the place.

    Output sample i of `process` may depend on the input up to the end of its hop, and on nothing later.
    """
    before = process(wave)
    early = []
    for place in (0, 1, 127, 128, 129, 1000, 2047, 2048, N_SAMPLES - 1):
        for later in (slice(place, None), slice(place, place + 1)):  # all of the future, or one sample of it
            changed = wave.clone()
            changed[:, later] = 0.7 - changed[:, later]
            after = process(changed)
            hop = place // HOP * HOP
            if not torch.equal(before[:, :hop].view(torch.int32), after[:, :hop].view(torch.int32)):
                early.append(place)
            assert not torch.equal(before, after), "the process ignores its input: this check would mean nothing"
    return early


class LookAhead(nn.Module):
    """A network that hears one frame early."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.initial_state = network, network.initial_state

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.network(nn.functional.pad(x[:, 1:], (0, 0, 0, 0, 0, 1)), state)


class NormOverTime(LookAhead):
    """A network whose input is normalised by statistics of the whole stretch, as in models that cannot be streamed."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.network((x - x.mean(dim=1, keepdim=True)) / (x.std(dim=1, keepdim=True) + 1e-3), state)


class BackwardInTime(LookAhead):
    """A bidirectional network: the mean of both directions."""

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        forward, after = self.network(x, state)
        backward, _ = self.network(x.flip(1), state)
        return (forward + backward.flip(1)) / 2, after


@pytest.mark.parametrize("scan", ["chunked", "unrolled"])
@pytest.mark.parametrize("transform", ["fft", "matmul"])
def test_changing_a_future_sample_changes_no_earlier_bit(
    scan: str, transform: str, tiny_enhancer: WaveformEnhancer, wave: Tensor
) -> None:
    tiny_enhancer.network.use_scan(scan)
    tiny_enhancer.transform.form = transform
    assert changed_too_early(whole_run(tiny_enhancer), wave) == []


@pytest.mark.parametrize("leak", [LookAhead, NormOverTime, BackwardInTime])
def test_non_causal_controls_fail_the_same_check(
    leak: type[LookAhead], tiny_enhancer: WaveformEnhancer, wave: Tensor
) -> None:
    leaking = WaveformEnhancer(leak(tiny_enhancer.network), tiny_enhancer.audio)
    early = changed_too_early(whole_run(leaking), wave)
    assert {128, 1000, 2048, N_SAMPLES - 1} <= set(early)


def test_aligned_output_depends_on_no_more_than_the_stated_latency(
    tiny_enhancer: WaveformEnhancer, wave: Tensor
) -> None:
    """In time with the input, output sample i is settled once input sample i + 511 is known."""
    place, latency = 3000, tiny_enhancer.audio.latency_samples
    before = tiny_enhancer.enhance(wave)
    changed = wave.clone()
    changed[:, place:] = 0.7 - changed[:, place:]
    after = tiny_enhancer.enhance(changed)
    first_changed = int((before != after).flatten().nonzero()[0])
    assert place - latency < first_changed <= place


# Bands


@pytest.fixture
def spectrum() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 3 * torch.randn(1, 6, 257, 2, generator=generator)


def bands_reached(network: MbsNet, spectrum: Tensor, band: int) -> set[int]:
    """Bands whose mask changes when the bins of one band change."""
    edges = np.cumsum([0, *network.config.band_widths])
    changed = spectrum.clone()
    changed[:, :, edges[band] : edges[band + 1]] *= -5
    with torch.no_grad():
        masks = [network.estimate(x, network.initial_state())[0] for x in (spectrum, changed)]
    moved = (masks[0] != masks[1]).any(dim=1).squeeze(0)
    return {k for k in range(network.config.n_bands) if moved[edges[k] : edges[k + 1]].any()}


@pytest.mark.parametrize("band", [0, 11, 29])
def test_bands_mix(band: int, tiny_enhancer: WaveformEnhancer, spectrum: Tensor) -> None:
    assert bands_reached(tiny_enhancer.network, spectrum, band) == set(range(30))


@pytest.mark.parametrize("band", [0, 11, 29])
def test_without_its_band_mixer_no_band_hears_another(
    band: int, tiny_enhancer: WaveformEnhancer, spectrum: Tensor
) -> None:
    """The control: the fusion's K x K weights made diagonal leave everything else as it is."""
    with torch.no_grad():
        for fusion in tiny_enhancer.network.fusions:
            fusion.bands.copy_(torch.diag(fusion.bands.diagonal()))
    assert bands_reached(tiny_enhancer.network, spectrum, band) == {band}


@pytest.mark.parametrize(("fusion", "count"), [("once", 1), ("each", 2), ("attention", 2)])
def test_fusion_setting_says_how_often_bands_are_mixed(
    fusion: str, count: int, tiny_config: MbsConfig, spectrum: Tensor
) -> None:
    network = MbsNet(dataclasses.replace(tiny_config, fusion=fusion, channels=16))
    calls = []
    for module in network.fusions:
        module.register_forward_hook(lambda *_: calls.append(1))
    network(spectrum, network.initial_state())
    assert len(network.fusions) == len(calls) == count


WIDTHS = (2, 3, 1, 4)


def test_band_split_is_a_linear_layer_for_each_band() -> None:
    torch.manual_seed(0)
    split, x = BandSplit(WIDTHS, features=3, channels=5), torch.randn(2, 6, 10, 3)
    nn.init.normal_(split.bias)
    result = split(x)
    assert result.shape == (2, 4, 6, 5)
    start = 0
    for band, width in enumerate(WIDTHS):
        bins = slice(start, start + width)
        expected = torch.einsum("btwf,wfd->btd", x[:, :, bins], split.weight[bins]) + split.bias[band]
        torch.testing.assert_close(result[:, band], expected)
        start += width


def test_band_decoder_is_a_two_layer_network_for_each_band() -> None:
    torch.manual_seed(0)
    decoder, x = BandDecoder(WIDTHS, channels=5, hidden=7, features=2), torch.randn(2, 4, 6, 5)
    nn.init.normal_(decoder.bias)
    nn.init.normal_(decoder.hidden_bias)
    result = decoder(x)
    assert result.shape == (2, 6, 10, 2)
    start = 0
    for band, width in enumerate(WIDTHS):
        bins = slice(start, start + width)
        hidden = nn.functional.silu(x[:, band] @ decoder.hidden_weight[band] + decoder.hidden_bias[band])
        expected = torch.einsum("bth,wfh->btwf", hidden, decoder.weight[bins]) + decoder.bias[bins]
        torch.testing.assert_close(result[:, :, bins], expected)
        start += width


def test_band_fusion_mixes_bands_then_channels_of_one_frame() -> None:
    torch.manual_seed(0)
    fusion, x = BandFusion(n_bands=4, channels=5), torch.randn(2, 4, 6, 5)
    nn.init.normal_(fusion.bias)
    normed = nn.functional.layer_norm(x, (5,))
    mixed = torch.einsum("jk,bktd->bjtd", fusion.bands, normed) + fusion.bias[:, :, None]
    torch.testing.assert_close(fusion(x), x + fusion.channels(nn.functional.silu(mixed)))


def test_band_attention_is_its_formula_frame_by_frame() -> None:
    torch.manual_seed(0)
    fusion, x = BandAttention(n_bands=3, channels=32).double(), torch.randn(2, 3, 4, 32, dtype=torch.float64)
    nn.init.normal_(fusion.score_bias)
    normed = nn.functional.layer_norm(x, (32,), fusion.norm.weight, fusion.norm.bias)
    query, key, value = (normed @ fusion.in_proj.weight.T).split([8, 8, 16], dim=-1)  # four heads of 2, 2 and 4
    for batch, frame in [(0, 0), (1, 3)]:
        heads = []
        for head in range(4):
            narrow, wide = slice(2 * head, 2 * head + 2), slice(4 * head, 4 * head + 4)
            q = query[batch, :, frame, narrow] + fusion.query_bias[head]
            k = key[batch, :, frame, narrow] + fusion.key_bias[head]
            scores = torch.stack([torch.stack([q[i] @ k[j] for j in range(3)]) for i in range(3)]) / 2**0.5
            heads.append(torch.softmax(scores + fusion.score_bias[head], dim=-1) @ value[batch, :, frame, wide])
        change = torch.cat(heads, dim=-1) @ fusion.out_proj.weight.T + fusion.out_proj.bias
        torch.testing.assert_close(fusion(x)[batch, :, frame], x[batch, :, frame] + change)


def test_every_parameter_of_the_attention_is_learnt() -> None:
    torch.manual_seed(0)
    fusion = BandAttention(n_bands=3, channels=16)
    fusion(torch.randn(2, 3, 4, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in fusion.parameters())


@pytest.fixture
def attentive() -> WaveformEnhancer:
    torch.manual_seed(0)
    config = MbsConfig(channels=16, layers=2, states=4, decay_heads=4, chunk=5, decoder_hidden=8, fusion="attention")
    return build(config, AudioConfig()).eval()


@pytest.mark.parametrize("size", [127, 128, 1000])
def test_network_with_attention_streams_as_it_runs_offline(
    size: int, attentive: WaveformEnhancer, wave: Tensor
) -> None:
    stream = SampleStream(attentive)
    output = torch.cat([stream.push(piece) for piece in wave.split(size, dim=1)], dim=1)
    assert (output - whole_run(attentive)(wave)).abs().max() <= STREAMING


def test_attention_lets_bands_hear_each_other_within_a_frame_alone(
    attentive: WaveformEnhancer, spectrum: Tensor
) -> None:
    require_contract(attentive)  # causal, and its states are all its memory
    assert bands_reached(attentive.network, spectrum, 3) == set(range(30))


def test_attention_costs_half_more_than_fixed_weights_and_its_products_can_be_chosen(
    attentive: WaveformEnhancer,
) -> None:
    fixed = build(dataclasses.replace(attentive.network.config, fusion="each"), AudioConfig())
    macs = [macs_per_frame(enhancer)["cross-band fusion"] for enhancer in (attentive, fixed)]
    bands, channels = 30, 16
    inner = channels * channels + channels * channels // 2  # in_proj, out_proj
    scores = bands * bands * (channels // 4 + channels // 2)
    assert macs == [2 * (bands * inner + scores), 2 * (bands**2 * channels + bands * channels**2)]
    names = [name for name in products(attentive.network) if name.startswith("fusions")]
    assert names == [f"fusions.{layer}.{part}" for layer in (0, 1) for part in ("in_proj", "out_proj")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # PyTorch's compiler looks at it, and hides that
def test_compiled_parts_give_the_same_values_and_gradients_by_four_graphs(
    attentive: WaveformEnhancer, wave: Tensor
) -> None:
    """Three layers: the graph between two scans is used twice."""
    from torch._dynamo.testing import CompileCounterWithBackend

    config = dataclasses.replace(attentive.network.config, layers=3)
    torch.manual_seed(0)
    plain = build(config, AudioConfig())
    compiled = copy.deepcopy(plain)
    graphs = CompileCounterWithBackend("eager")  # the graphs as they are found: to compile them takes a minute
    compiled.network.compile_parts(graphs)
    for enhancer in (plain, compiled):
        enhancer(wave, enhancer.initial_state())[0].square().sum().backward()
    found, wanted = (dict(enhancer.named_parameters()) for enhancer in (compiled, plain))
    for name, parameter in wanted.items():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
    assert graphs.frame_count == 4


# The block


@torch.no_grad()
def test_mamba_block_is_what_the_paper_draws(tiny_config: MbsConfig) -> None:
    """One frame after another, written out: norm, projections, convolution, scan, skip, gate, residual."""
    torch.manual_seed(0)
    block = MambaBlock(tiny_config)
    nn.init.normal_(block.conv_bias)
    inner, heads = tiny_config.inner, tiny_config.decay_heads or tiny_config.inner
    x = torch.randn(1, 1, 9, 8)
    conv, ssm = torch.randn(1, 1, 3, inner), torch.randn(1, 1, 4, inner)
    found, conv_after, ssm_after = block(x, conv, ssm)

    taps, h = [*conv[0, 0]], ssm[0, 0].clone()
    wide = inner // heads
    for t in range(9):
        u, gate = block.in_proj(block.norm(x[0, 0, t])).split(inner)
        taps.append(u)
        u = block.conv_bias + sum(tap * weight for tap, weight in zip(taps[-4:], block.conv_weight, strict=True))
        u = nn.functional.silu(u)
        dt, b, c = block.x_proj(u).split([len(block.x_proj.weight) - 8, 4, 4])
        dt = nn.functional.softplus(block.dt_proj(dt) + block.dt_bias).repeat_interleave(wide)
        h = torch.exp(-dt * block.a_log.exp().repeat_interleave(wide, dim=1)) * h + b[:, None] * (dt * u)
        y = (c @ h + u * block.skip) * nn.functional.silu(gate)
        torch.testing.assert_close(found[0, 0, t], x[0, 0, t] + block.out_proj(y), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv_after[0, 0], torch.stack(taps[-3:]))
    torch.testing.assert_close(ssm_after[0, 0], h, atol=1e-5, rtol=1e-5)


def test_step_sizes_and_decays_begin_where_the_paper_puts_them(tiny_config: MbsConfig) -> None:
    block = MambaBlock(tiny_config)
    dt = nn.functional.softplus(block.dt_bias)
    assert ((dt > 0.0009) & (dt < 0.11)).all()
    rates = block.a_log.exp()
    assert ((rates >= 0.999) & (rates <= 16.001)).all()
    if not tiny_config.decay_heads:
        torch.testing.assert_close(rates, torch.arange(1.0, 5)[:, None].expand(4, 8))


def test_every_parameter_gets_a_gradient(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    output, _ = tiny_enhancer(wave, tiny_enhancer.initial_state())
    output.square().mean().backward()
    for name, parameter in tiny_enhancer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_gradients_do_not_depend_on_the_form_of_the_scan(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    def gradients(enhancer: WaveformEnhancer) -> Iterator[tuple[str, Tensor]]:
        enhancer(wave, enhancer.initial_state())[0].square().mean().backward()
        return ((name, parameter.grad) for name, parameter in enhancer.named_parameters() if parameter.grad is not None)

    other = copy.deepcopy(tiny_enhancer)
    other.network.use_scan("reference")
    wanted = dict(gradients(other))
    for name, gradient in gradients(tiny_enhancer):
        assert (gradient - wanted[name]).abs().max() <= 1e-4 * wanted[name].abs().max(), name


# Size, level, silence


def test_base_has_between_1_9_and_2_5_million_parameters(audio: AudioConfig) -> None:
    count = sum(parameter.numel() for parameter in build(MODELS["base"], audio).parameters())
    assert 1_900_000 <= count <= 2_500_000


def test_every_named_size_builds_and_runs(audio: AudioConfig) -> None:
    own = {name: config for name, config in MODELS.items() if NETWORKS[config.name].code.startswith("edgese.model.")}
    assert {"small", "base", "bsrnn", "mbs-net-original"} <= own.keys()
    for name, config in own.items():
        enhancer = build(config, audio).eval()
        assert enhancer.network.causal == (name not in ("bsrnn", "db-transform", "mbs-net-original")), name
        assert enhancer.enhance(torch.zeros(1, 2 * HOP)).shape == (1, 2 * HOP), name


def test_unknown_network_is_refused_with_the_known_names(audio: AudioConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.name: found 'no-net', wanted one of mbs-net.*--plugin"):
        build(MbsConfig(name="no-net"), audio)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("edgese.model.absent:Net", r"edgese\.model\.absent:Net cannot be loaded \(No module"),
        ("edgese.model.mbs_net:Absent", r"cannot be loaded .*Absent"),
        ("edgese.model.product:Product", "is no edgese.model.network.Network"),
    ],
)
def test_code_that_is_no_network_is_refused(
    code: str, message: str, audio: AudioConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "mbs-net", Registered(MbsConfig, code))
    monkeypatch.setattr(Product, "__init__", lambda self, config: None)
    with pytest.raises(ConfigError, match=message):
        build(MbsConfig(), audio)


def test_a_name_is_registered_for_one_network_only() -> None:
    register("mbs-net", MbsConfig, NETWORKS["mbs-net"].code, {"small": MODELS["small"]})  # the same again is harmless
    with pytest.raises(ConfigError, match="network mbs-net: registered already"):
        register("mbs-net", MbsConfig, "my_network:Other", {})
    with pytest.raises(ConfigError, match="network other: its settings are those of 'mbs-net'"):
        register("other", MbsConfig, "my_network:Other", {})
    with pytest.raises(ConfigError, match="model small: there is another of that name"):
        register("mbs-net", MbsConfig, NETWORKS["mbs-net"].code, {"small": MbsConfig()})


def test_same_seed_gives_the_same_network(tiny_config: MbsConfig, audio: AudioConfig) -> None:
    weights = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        weights.append(nn.utils.parameters_to_vector(build(tiny_config, audio).parameters()))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("level_db", [-40, -20, 0])
def test_untrained_network_leaves_the_signal_nearly_alone(
    level_db: int, tiny_config: MbsConfig, audio: AudioConfig, wave: Tensor
) -> None:
    torch.manual_seed(1)
    wave = wave / wave.abs().max() * 10 ** (level_db / 20)
    residual = build(tiny_config, audio).enhance(wave) - wave
    assert 10 * torch.log10(wave.square().sum() / residual.square().sum()) > 15


def test_mask_is_within_its_range_and_rotation_has_unit_length(
    tiny_enhancer: WaveformEnhancer, spectrum: Tensor
) -> None:
    network = tiny_enhancer.network
    with torch.no_grad():
        mask, rotation, _ = network.estimate(spectrum, network.initial_state())
        mask = mask[..., 0]
        enhanced, _ = network(spectrum, network.initial_state())
    assert mask.shape == (1, 6, 257)
    assert 0 <= mask.min() < 0.9
    assert 1.1 < mask.max() <= 2
    torch.testing.assert_close(rotation.square().sum(-1), torch.ones(1, 6, 257), atol=1e-4, rtol=0)
    # the mask is one of compressed magnitudes |X|^0.3, and the rotation adds to the phase
    x, y, turn = (torch.view_as_complex(tensor.contiguous()) for tensor in (spectrum, enhanced, rotation))
    torch.testing.assert_close(y.abs() ** 0.3, mask * x.abs() ** 0.3, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(y, x * turn * mask ** (1 / 0.3), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("level_db", range(-40, 1, 10))
def test_output_is_finite_and_of_sane_level_at_any_input_level(
    level_db: int, tiny_enhancer: WaveformEnhancer, wave: Tensor
) -> None:
    wave = wave / wave.abs().max() * 10 ** (level_db / 20)
    output = tiny_enhancer.enhance(wave)
    assert torch.isfinite(output).all()
    greatest_gain = 2 ** (1 / 0.3)  # of a mask of 2 on the compressed magnitude
    assert 0 < output.square().mean() <= greatest_gain**2 * wave.square().mean()


def test_level_is_heard(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    """Nothing normalises the level away: it is what tells speech from noise."""
    loud, quiet = tiny_enhancer.enhance(wave), tiny_enhancer.enhance(0.01 * wave)
    assert (100 * quiet - loud).abs().max() > 0.01 * loud.abs().max()


def test_silence_gives_silence(tiny_enhancer: WaveformEnhancer, wave: Tensor) -> None:
    assert not tiny_enhancer.enhance(torch.zeros(1, 5000)).any()
    followed = torch.cat([wave, torch.zeros(1, 20 * HOP)], dim=1)
    output = whole_run(tiny_enhancer)(followed)
    last_heard = 2 * tiny_enhancer.audio.overlap  # the last frame that holds a sample, and as long as it overlaps
    assert not output[:, N_SAMPLES + last_heard :].any()


def test_silence_teaches_without_nan(tiny_enhancer: WaveformEnhancer) -> None:
    output, _ = tiny_enhancer(torch.zeros(1, 10 * HOP), tiny_enhancer.initial_state())
    (output - 0.1).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny_enhancer.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", ["constant", "nyquist", "square", "noise", "one sample"])
def test_full_scale_extremes_stay_finite(kind: str, tiny_enhancer: WaveformEnhancer) -> None:
    n = torch.arange(20 * HOP)
    waves = {
        "constant": torch.ones(len(n)),
        "nyquist": 1.0 - 2.0 * (n % 2),
        "square": torch.sign(torch.sin(2 * torch.pi * 200 * n / 16_000)),
        "noise": torch.rand(len(n), generator=torch.Generator().manual_seed(0)) * 2 - 1,
        "one sample": (n == 777).float(),
    }
    assert torch.isfinite(tiny_enhancer.enhance(waves[kind][None])).all()


@pytest.mark.slow
def test_long_stream_does_not_drift(tiny_enhancer: WaveformEnhancer, speech_like) -> None:
    """Twenty seconds in, the stream still equals the whole; a state that grows would show by then."""
    wave = torch.from_numpy(speech_like(2500 * HOP))[None]
    output, state = [], tiny_enhancer.initial_state()
    with torch.no_grad():
        for piece in wave.split(16 * HOP, dim=1):
            enhanced, state = tiny_enhancer(piece, state)
            output.append(enhanced)
    difference = (torch.cat(output, dim=1) - whole_run(tiny_enhancer)(wave)).abs()
    assert difference.max() <= STREAMING
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
