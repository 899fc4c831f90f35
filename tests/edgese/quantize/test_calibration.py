"""Calibration: what is drawn is what a stream really hears and remembers, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import edgese.train.data
from calib import CalibrationError
from calib.batches import digest_of, write_batches
from calib.ranges import METHODS
from edgese.audio import Wave
from edgese.config import DataConfig
from edgese.errors import ConfigError, EdgeseError, OutputError, TrainingError
from edgese.model.checkpoint import load_enhancer, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import products
from edgese.model.registry import build
from edgese.networks import MbsConfig
from edgese.quantize.calibration import (
    SPLIT_SEED,
    Drawing,
    Span,
    compare_ranges,
    draw_batches,
    read_calibration,
    require_target,
    weights_digest,
    write_calibration,
)
from edgese.train.data import DataSets

from ..helpers.command_line import run_python
from ..helpers.disk import file_size_limit
from ..helpers.tiny_bundle import TINY

HOP, RATE_HZ = 128, 16_000
SMALL = Drawing(n_streams=3, n_batches=2, block=2, warm_up_s=(0.08, 0.8))  # past STRIDE

Example = Callable[[int, int], tuple[Wave, Wave]]
Drawn = tuple[list[dict[str, NDArray[Any]]], dict[str, Any]]


@pytest.fixture
def tiny_config() -> MbsConfig:
    return TINY


class Data:
    """Stands in for `open_data`: examples made by a function, of which it remembers what was asked for."""

    def __init__(self, example: Example) -> None:
        self.example = example
        self.opened: list[tuple[DataConfig, int]] = []
        self.given: list[Wave] = []  # noisy waves, in the order in which they were asked for

    def __call__(
        self, folder: Path, config: DataConfig, sample_rate_hz: int, seed: int, cache: Path, progress: Any = None
    ) -> DataSets:
        self.opened.append((config, seed))

        def train(index: int) -> tuple[Wave, Wave]:
            noisy, clean = self.example(index, round(config.segment_s * sample_rate_hz))
            self.given.append(noisy)
            return noisy, clean

        def validation(index: int) -> tuple[Wave, Wave]:
            raise AssertionError("validation examples are not for calibration")

        return DataSets(train, validation, {"layout": "made up"})


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> Data:
    """Examples of noise, clean at half the amplitude, at a level of their own each."""

    def example(index: int, n_samples: int) -> tuple[Wave, Wave]:
        rng = np.random.default_rng(index)
        noisy = (10 ** rng.uniform(-3, 0) * rng.uniform(-1, 1, n_samples)).astype(np.float32)
        return noisy, noisy / 2

    return given(monkeypatch, example)


def given(monkeypatch: pytest.MonkeyPatch, example: Example) -> Data:
    data = Data(example)
    monkeypatch.setattr(edgese.train.data, "open_data", data)
    return data


def draw(enhancer: WaveformEnhancer, drawing: Drawing = SMALL, **changes: Any) -> Drawn:
    return draw_batches(enhancer, Path("made-up"), dataclasses.replace(drawing, **changes), Path("nowhere"))


def row(batches: list[dict[str, NDArray[Any]]], number: int) -> dict[str, NDArray[Any]]:
    """One stream's part of its batch, by its number over all batches."""
    batch, place = divmod(number, SMALL.n_streams)
    return {name: array[place] for name, array in batches[batch].items()}


# What is drawn


def test_batches_hold_exactly_what_a_graph_takes(tiny_enhancer: WaveformEnhancer, mixing: Path, tmp_path: Path) -> None:
    batches, provenance = draw_batches(tiny_enhancer, mixing, SMALL, tmp_path / "cache")
    assert len(batches) == 2
    states = {name: tuple(state.shape) for name, state in tiny_enhancer.initial_state(3).items()}
    for batch in batches:
        assert {name: array.shape for name, array in batch.items()} == {"wave": (3, 2 * HOP)} | states
        assert {array.dtype for array in batch.values()} == {np.dtype(np.float32)}
        assert all(np.isfinite(array).all() for array in batch.values())
        assert list(batch) == ["wave", *states]
    assert provenance["data"]["layout"] == "mixing"


def test_states_are_those_of_a_stream_and_the_wave_goes_on_where_they_end(
    tiny_enhancer: WaveformEnhancer, noises: Data
) -> None:
    """Every stream heard again, alone and hop by hop."""
    batches, provenance = draw(tiny_enhancer)
    assert len(set(provenance["warm_up_s"])) > 1
    for number, noisy in enumerate(noises.given):
        found = row(batches, number)
        n_hops = round(provenance["warm_up_s"][number] * RATE_HZ / HOP)
        new = noisy[n_hops * HOP : (n_hops + SMALL.block) * HOP]
        gain = np.abs(found["wave"]).max() / np.abs(new).max()
        np.testing.assert_allclose(found.pop("wave"), gain * new, rtol=1e-5)
        wave = torch.from_numpy((gain * noisy).astype(np.float32))[None]
        state = tiny_enhancer.initial_state()
        with torch.no_grad():
            for hop in range(n_hops):
                _, state = tiny_enhancer(wave[:, hop * HOP : (hop + 1) * HOP], state)
        for name, array in found.items():
            wanted = state[name][0].numpy()
            assert wanted.any(), name
            np.testing.assert_allclose(array, wanted, atol=1e-5 * np.abs(wanted).max(), err_msg=name)


def test_levels_are_of_peaks_spread_over_the_range_and_never_clipped(
    tiny_enhancer: WaveformEnhancer, noises: Data
) -> None:
    batches, provenance = draw(tiny_enhancer, n_batches=20, warm_up_s=(0.0, 0.0))
    levels = provenance["peak_dbfs"]
    assert len(levels) == 60
    assert -40 <= min(levels) < -35
    assert -8 < max(levels) <= -3
    for number, level in enumerate(levels):
        found = row(batches, number)["wave"]
        assert np.abs(found).max() == pytest.approx(10 ** (level / 20), rel=2e-3)


def test_equal_seeds_give_equal_batches_and_others_do_not(
    tiny_enhancer: WaveformEnhancer, mixing: Path, tmp_path: Path
) -> None:
    def digest(seed: int) -> str:
        drawing = dataclasses.replace(SMALL, seed=seed)
        batches, _ = draw_batches(tiny_enhancer, mixing, drawing, tmp_path / "cache")
        return digest_of(batches)

    assert digest(3) == digest(3) != digest(4)


def test_the_split_is_training_s_whatever_the_seed(tiny_enhancer: WaveformEnhancer, noises: Data) -> None:
    for seed in (0, 5):
        draw(tiny_enhancer, seed=seed)
    assert [seed for _, seed in noises.opened] == [SPLIT_SEED, SPLIT_SEED]
    assert {config.snr_db for config, _ in noises.opened} == {DataConfig().snr_db}


def test_after_a_short_recording_the_next_one_follows(
    tiny_enhancer: WaveformEnhancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples of recorded pairs end in zeros where the recording is shorter."""

    def example(index: int, n_samples: int) -> tuple[Wave, Wave]:
        noisy = np.random.default_rng(index).uniform(0.1, 1, n_samples).astype(np.float32)
        noisy[500:] = 0
        return noisy, noisy

    data = given(monkeypatch, example)
    batches, provenance = draw(tiny_enhancer)
    assert all(batch["wave"].min() > 0 for batch in batches)
    assert provenance["examples"] == len(data.given) > 6 * SMALL.block
    assert provenance["without_noise"] == len(data.given)


def test_recorded_pairs_can_be_drawn_from(tiny_enhancer: WaveformEnhancer, pairs: Path, tmp_path: Path) -> None:
    batches, provenance = draw_batches(tiny_enhancer, pairs, SMALL, tmp_path / "cache")
    assert provenance["data"]["layout"] == "pairs"
    assert all(batch["wave"].any(axis=1).all() for batch in batches)


def test_progress_counts_streams(tiny_enhancer: WaveformEnhancer, noises: Data) -> None:
    told: list[tuple[int, int]] = []
    draw_batches(tiny_enhancer, Path("x"), SMALL, Path("y"), lambda done, total: told.append((done, total)))
    assert told == [(3, 6), (6, 6)]


# What is known of it


def test_the_provenance_tells_what_was_heard(tiny_enhancer: WaveformEnhancer, noises: Data) -> None:
    _, provenance = draw(tiny_enhancer)
    assert json.loads(json.dumps(provenance, allow_nan=False)) == provenance
    sizes = {key: provenance[key] for key in ("batches", "streams", "block", "hops", "examples", "sample_rate_hz")}
    assert sizes == {"batches": 2, "streams": 3, "block": 2, "hops": 12, "examples": 6, "sample_rate_hz": RATE_HZ}
    assert provenance["states"] == "of a float32 streaming run, after 0.1 to 0.8 s"
    assert provenance["data"] == {"folder": "made-up", "split": "training", "split_seed": 0, "layout": "made up"}
    assert provenance["heard_s"] == pytest.approx(sum(provenance["warm_up_s"]) + 12 * HOP / RATE_HZ)
    assert all(0.08 <= seconds <= 0.8 for seconds in provenance["warm_up_s"])
    assert provenance["snr_db"] == [0.0] * 6  # clean is half of noisy: the other half is noise
    assert [provenance[key] for key in ("without_speech", "without_noise", "silent")] == [0, 0, 0]
    assert {"edgese", "torch", "numpy"} <= provenance["tools"].keys()


def test_noise_alone_speech_alone_and_silence_are_counted(
    tiny_enhancer: WaveformEnhancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = iter([(1, 0), (1, 1), (0, 0), (1, 0), (2, 1), (1, 0)])  # noisy, clean

    def example(index: int, n_samples: int) -> tuple[Wave, Wave]:
        noisy, clean = next(kinds)
        wave = np.full(n_samples, 0.1, np.float32)
        return noisy * wave, clean * wave

    given(monkeypatch, example)
    batches, provenance = draw(tiny_enhancer)
    assert [provenance[key] for key in ("without_speech", "without_noise", "silent")] == [3, 1, 1]
    assert (provenance["snr_db"], provenance["examples"]) == ([0.0], 6)
    assert not row(batches, 2)["wave"].any()


def test_weights_are_named_by_the_digest_of_a_bundle_s_file(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    save_weights(path, tiny_enhancer, tiny_enhancer.state_dict())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights_digest(tiny_enhancer) == weights_digest(load_enhancer(path)) == digest
    with torch.no_grad():
        tiny_enhancer.network.magnitude_head.weight[0, 0] += 1e-6
    assert weights_digest(tiny_enhancer) != digest


# What cannot be drawn


def test_nothing_but_silence_is_refused(tiny_enhancer: WaveformEnhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, lambda index, n_samples: (np.zeros(n_samples, np.float32),) * 2)
    with pytest.raises(CalibrationError, match="made-up: found nothing but silence in 6 streams, wanted speech"):
        draw(tiny_enhancer)


def test_more_than_a_gigabyte_is_refused_before_anything_is_read(tiny_enhancer: WaveformEnhancer) -> None:
    message = r"100000 batches of 8 streams: they would take [\d,]+ MB, wanted at most 1,074 MB: choose fewer"
    with pytest.raises(ConfigError, match=message):
        draw(tiny_enhancer, Drawing(n_batches=100_000))


def test_a_folder_without_data_is_refused(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"wanted clean/ and noisy/ .* or speech/ and noise/"):
        draw_batches(tiny_enhancer, tmp_path, SMALL, tmp_path / "cache")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_streams": 0}, "n_streams: found 0, wanted at least 1"),
        ({"n_batches": 0}, "n_batches: found 0"),
        ({"block": -1}, "block: found -1"),
        ({"seed": -1}, "seed: found -1, wanted 0 or more"),
        ({"warm_up_s": (2.0, 1.0)}, r"warm_up_s: found \(2.0, 1.0\)"),
        ({"warm_up_s": (-1.0, 1.0)}, "warm_up_s: found"),
        ({"warm_up_s": (1.0, float("nan"))}, "warm_up_s: found"),
        ({"peak_dbfs": (-40.0, 3.0)}, r"peak_dbfs: found \(-40.0, 3.0\), wanted .* clipped"),
        ({"peak_dbfs": (-3.0, -40.0)}, "peak_dbfs: found"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Drawing(**setting)


# Stored and read


@pytest.fixture
def stored(tiny_enhancer: WaveformEnhancer, noises: Data, tmp_path: Path) -> Path:
    path = tmp_path / "calibration.npz"
    write_calibration(path, *draw(tiny_enhancer))
    return path


def test_what_was_drawn_comes_back(tiny_enhancer: WaveformEnhancer, noises: Data, tmp_path: Path) -> None:
    batches, provenance = draw(tiny_enhancer)
    digest = write_calibration(tmp_path / "c.npz", batches, provenance)
    found = read_calibration(tmp_path / "c.npz", tiny_enhancer)
    assert (found.digest, found.provenance, len(found)) == (digest, provenance, 2)
    assert digest_of(found.batches) == digest_of(batches)


def test_an_existing_file_stays_unless_it_may_be_replaced(stored: Path) -> None:
    before = stored.read_bytes()
    with pytest.raises(CalibrationError, match=r"calibration\.npz: exists already; replace it with --force"):
        write_calibration(stored, [{"wave": np.ones(1)}], {})
    assert stored.read_bytes() == before
    write_calibration(stored, [{"wave": np.ones(1)}], {}, replace=True)
    assert stored.read_bytes() != before


def test_a_full_disk_is_one_line_and_leaves_the_old_file(stored: Path) -> None:
    before = stored.read_bytes()
    with file_size_limit(1000), pytest.raises(OutputError, match=r"calibration\.npz: cannot be written \(File too"):
        write_calibration(stored, [{"wave": np.ones(10_000)}], {}, replace=True)
    assert list(stored.parent.glob(".*")) == []
    assert stored.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("c.txt", r"c\.txt: the file name must end in \.npz"),
        ("missing/c.npz", "found no folder .*missing; make it"),
        ("folder.npz", "is a folder, wanted a file"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_beforehand(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(CalibrationError, match=message):
        require_target(tmp_path / name, replace=True)


def test_other_weights_are_refused(stored: Path, tiny_enhancer: WaveformEnhancer) -> None:
    with torch.no_grad():
        tiny_enhancer.network.phase_head.bias += 0.01
    with pytest.raises(CalibrationError, match=r"made with the weights \w{16}, wanted \w{16}: run `edgese calibrate`"):
        read_calibration(stored, tiny_enhancer)


def test_another_network_is_refused(stored: Path, tiny_enhancer: WaveformEnhancer) -> None:
    config = dataclasses.replace(tiny_enhancer.network.config, states=6)
    other = build(config, tiny_enhancer.audio).eval()
    message = r"batch 0: ssm_0 is of shape \(30, 4, 16\) a stream, wanted \(30, 6, 16\): .* another network"
    with pytest.raises(CalibrationError, match=message):
        read_calibration(stored, other)


def test_reading_takes_no_scipy(tmp_path: Path) -> None:
    """It comes with the [train] extra; `edgese export` reads calibrations without it."""
    program = "import edgese.quantize.calibration, sys; sys.exit('scipy' in sys.modules)"
    assert run_python(["-c", program], cwd=tmp_path, cold=True).returncode == 0


def test_batches_of_something_else_are_refused(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    write_batches(tmp_path / "r.npz", [{"wave": np.ones((1, 256))}], {"sound": "noisy.flac"})
    with pytest.raises(CalibrationError, match=r"r\.npz: these are batches of something else; wanted those of"):
        read_calibration(tmp_path / "r.npz", tiny_enhancer)


# Ranges


_compared: list[tuple[Span, ...]] = []  # once a session: PyTorch takes seconds for the graph


@pytest.fixture
def spans(tiny_enhancer: WaveformEnhancer, noises: Data) -> tuple[Span, ...]:
    if not _compared:
        told: list[tuple[int, int]] = []
        batches, _ = draw(tiny_enhancer)
        _compared.append(compare_ranges(tiny_enhancer, batches, lambda done, total: told.append((done, total))))
        assert told == [(done, 5) for done in range(1, 6)]
    return _compared[0]


def test_ranges_are_of_what_each_product_meets(
    spans: tuple[Span, ...], tiny_enhancer: WaveformEnhancer, noises: Data
) -> None:
    """The inputs of the modules themselves, where PyTorch runs over the same batches."""
    met: dict[str, list[float]] = {}
    batches, _ = draw(tiny_enhancer)
    found = {span.product: span for span in spans}
    modules = products(tiny_enhancer.network)
    assert found.keys() <= modules.keys()
    left_hand = {name for name in modules if name.endswith(".mix")}  # the weight is on the left: not for INT8
    assert found.keys() == modules.keys() - left_hand
    for name in found:
        modules[name].register_forward_pre_hook(
            lambda module, inputs, name=name: met.setdefault(name, []).extend(torch.aminmax(inputs[0]))
        )
    with torch.no_grad():
        for batch in batches:
            tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
            tiny_enhancer(tensors.pop("wave"), tensors)
    for name, span in found.items():
        wanted = float(min(met[name])), float(max(met[name]))
        assert (span.extent.low, span.extent.high) == pytest.approx(wanted, rel=1e-4, abs=1e-5), name
        widest = max(-wanted[0], wanted[1])
        assert span.chosen["minmax"].high == pytest.approx(widest, rel=1e-4), name
        for method in METHODS:
            assert 0 < span.chosen[method].high == -span.chosen[method].low <= 1.001 * widest, (name, method)
        assert span.histogram.edges[[0, -1]] == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    n_values = {name: int(span.histogram.counts.sum()) for name, span in found.items()}
    channels = TINY.channels * TINY.n_bands * 12  # 12 hops in all
    assert n_values["magnitude_head"] == n_values["blocks.0.in_proj"] == channels


def test_an_entry_is_plain(spans: tuple[Span, ...]) -> None:
    entry = json.loads(json.dumps(spans[0].entry(), allow_nan=False))
    assert list(entry) == ["tensor", "extent", *METHODS]
    assert entry["minmax"] == [-max(map(abs, entry["extent"])), max(map(abs, entry["extent"]))]


# The picture


def test_each_product_has_a_panel_and_each_range_a_name(
    spans: tuple[Span, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    from matplotlib.figure import Figure

    from edgese.quantize.plots import write_ranges_plot

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *to, **how: (drawn.append(figure), save(figure, *to, **how)))
    write_ranges_plot(spans, "a title", tmp_path / "ranges.png")
    assert (tmp_path / "ranges.png").read_bytes().startswith(b"\x89PNG\r\n")
    (figure,) = drawn
    panels = {axis.get_title(loc="left"): axis for axis in figure.axes if axis.axison}
    assert list(panels) == [span.product for span in spans]
    for span in spans:
        edges = [line.get_xdata()[0] for line in panels[span.product].lines]
        assert edges == [edge for found in span.chosen.values() for edge in (found.low, found.high)]
        assert panels[span.product].get_yscale() == "log"
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["values over all batches", *(f"range by {method}" for method in METHODS)]


def test_a_picture_of_nothing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    from edgese.quantize.plots import require_picture, write_ranges_plot

    with pytest.raises(EdgeseError, match="found no product to draw"):
        write_ranges_plot((), "", tmp_path / "ranges.png")
    with pytest.raises(EdgeseError, match=r"ranges\.jpg: the picture's name must end in \.png"):
        require_picture(tmp_path / "ranges.jpg")
    assert list(tmp_path.iterdir()) == []
