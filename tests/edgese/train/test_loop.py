"""The training loop on tiny data: it learns, resumes to the same bits, stops at NaN, and keeps a whole log."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgese.audio import Wave
from edgese.config import DataConfig, LossConfig, TrainConfig, from_dict, to_dict
from edgese.errors import CheckpointError, OutputError, TrainingError
from edgese.model.checkpoint import load_checkpoint, load_enhancer, save_checkpoint
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.registry import build
from edgese.model.scan import chunked_scan
from edgese.networks import MODELS, MbsConfig
from edgese.train import loop as training
from edgese.train import trainer as trainers
from edgese.train.data import DataSets, open_data
from edgese.train.loop import Progress, Result, train
from edgese.train.run_folder import COLUMNS, LAST, LOCK, RunLog, locked

from ..helpers.disk import file_size_limit

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
N_SAMPLES = 2000  # an eighth of a second, not a whole number of hops


class Tones:
    """Numbered examples: a tone in noise, both of the number's own."""

    def __call__(self, index: int) -> tuple[Wave, Wave]:
        rng = np.random.default_rng([7, index])
        clean = 0.2 * np.sin(2 * np.pi * rng.uniform(200, 3000) * np.arange(N_SAMPLES) / 16_000)
        return (clean + 0.1 * rng.standard_normal(N_SAMPLES)).astype(np.float32), clean.astype(np.float32)


class Same(Tones):
    """One example, whatever its number."""

    def __call__(self, index: int) -> tuple[Wave, Wave]:
        return super().__call__(0)


class BrokenFrom(Tones):
    """From one number on, one sample is not finite."""

    def __init__(self, first: int, value: float) -> None:
        self.first, self.value = first, value

    def __call__(self, index: int) -> tuple[Wave, Wave]:
        noisy, clean = super().__call__(index)
        if index >= self.first:
            noisy[1234] = self.value
        return noisy, clean


DATA = DataSets(Tones(), Tones(), {})


def small_run(model: MbsConfig) -> TrainConfig:
    """Seven steps, checkpoints after 2, 4, 6 and 7, validated after 3, 6 and 7; one block, three bands for thirty."""
    return TrainConfig(
        model=dataclasses.replace(model, layers=1, band_widths=(17, 80, 160)),
        data=DataConfig(segment_s=0.125),
        loss=LossConfig(perceptual=0),  # wants longer examples
        steps=7,
        batch=2,
        warmup_steps=2,
        schedule="cosine",
        validate_every=3,
        checkpoint_every=2,
    )


@pytest.fixture
def config() -> TrainConfig:
    return small_run(MbsConfig(channels=8, layers=2, states=4, decay_heads=4, chunk=5, decoder_hidden=8))


@pytest.fixture
def each_config(tiny_config: MbsConfig) -> TrainConfig:
    """One run for each parametrisation of the decay."""
    return small_run(tiny_config)


@pytest.fixture(scope="module", autouse=True)
def _few_validation_examples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "N_VALIDATION", 3)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrainConfig], Path]:
    """The folder of a run that nothing disturbed, made once."""

    @functools.cache
    def run(config: TrainConfig) -> Path:
        path = tmp_path_factory.mktemp("uninterrupted")
        train(config, DATA, path)
        return path

    return run


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def assert_equal_to_the_bit(found: object, wanted: object, place: str) -> None:
    assert type(found) is type(wanted), place
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), place
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), place
        for key, value in wanted.items():
            assert_equal_to_the_bit(found[key], value, f"{place}.{key}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), place
        for number, value in enumerate(wanted):
            assert_equal_to_the_bit(found[number], value, f"{place}.{number}")
    else:
        assert found == wanted, place


def assert_same_result(found: Path, wanted: Path) -> None:
    """Both runs hold the same bits: weights, averages, optimizer, best, and the numbers of the log but for speed."""
    for name in ("last.pt", "best.pt"):
        assert_equal_to_the_bit(load_checkpoint(found / name), load_checkpoint(wanted / name), name)
    for name in ("weights.safetensors", "config.json"):
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
    logs = [[row | {"audio_per_second": ""} for row in rows_of(run)] for run in (found, wanted)]
    assert logs[0] == logs[1]


# Learning


@pytest.mark.slow
def test_loss_falls_when_one_example_is_learnt(each_config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(each_config, steps=40, validate_every=40, checkpoint_every=40, learning_rate=5e-3)
    told: list[Progress] = []
    train(config, DataSets(Same(), Same(), {}), tmp_path, on_progress=told.append)
    losses = [progress.loss for progress in told if progress.validation_s is None]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert np.mean(losses[10:20]) < np.mean(losses[:5])


def test_training_that_does_not_step_would_be_noticed(config: TrainConfig, tmp_path: Path) -> None:
    """The control: at a vanishing learning rate the same run learns nothing."""
    losses: list[float] = []
    config = dataclasses.replace(config, steps=8, learning_rate=1e-12)
    train(config, DataSets(Same(), Same(), {}), tmp_path, on_progress=lambda progress: losses.append(progress.loss))
    assert losses[-1] == pytest.approx(losses[0], rel=1e-3)


def test_run_ends_with_weights_that_can_be_opened(config: TrainConfig, tmp_path: Path) -> None:
    result = train(config, DATA, tmp_path / "runs" / "first")
    assert result == Result(7, result.best_validation_loss, tmp_path / "runs" / "first" / "weights.safetensors", True)
    assert math.isfinite(result.best_validation_loss)
    best = load_checkpoint(tmp_path / "runs" / "first" / "best.pt")
    assert best["best"] == result.best_validation_loss
    for path in (result.weights, tmp_path / "runs" / "first" / "best.pt"):
        weights = load_enhancer(path).state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in best["ema"].items())


def test_best_weights_are_those_of_the_lowest_validation_loss(config: TrainConfig, tmp_path: Path) -> None:
    result = train(dataclasses.replace(config, validate_every=1), DATA, tmp_path)
    losses = [float(row["validation_loss"]) for row in rows_of(tmp_path)]
    assert len(losses) == 7
    assert result.best_validation_loss == pytest.approx(min(losses), rel=1e-5)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 1 + int(np.argmin(losses))


def test_averaged_weights_follow_the_trained_ones(config: TrainConfig, tmp_path: Path) -> None:
    """ema <- decay * ema + (1 - decay) * weights, with a decay that begins small: min(ema_decay, k / (k + 10))."""
    for steps in (1, 2):
        train(dataclasses.replace(config, ema_decay=0.1), DATA, tmp_path, stop_at_step=steps)
        content = load_checkpoint(tmp_path / "last.pt")
        if steps == 1:
            first = content
    for name, weights in content["model"].items():
        expected = 0.1 * first["ema"][name] + 0.9 * weights
        torch.testing.assert_close(content["ema"][name], expected)
    assert any(not torch.equal(content["ema"][name], weights) for name, weights in content["model"].items())


def test_gradients_are_clipped_to_the_norm_asked_for(config: TrainConfig, tmp_path: Path) -> None:
    """AdamW hides a gradient's scale, but not from its moments."""
    clipped = dataclasses.replace(config, clip_norm=1e-4)
    train(clipped, DATA, tmp_path, stop_at_step=1)
    moments = [state["exp_avg"] for state in load_checkpoint(tmp_path / "last.pt")["optimizer"]["state"].values()]
    norm = torch.sqrt(sum((moment / 0.1).square().sum() for moment in moments))  # first moment: (1 - 0.9) * gradient
    assert float(norm) == pytest.approx(1e-4, rel=1e-2)
    assert float(rows_of(tmp_path)[0]["gradient_norm"]) > 1e-2


def test_weights_decay_and_biases_do_not(config: TrainConfig, tmp_path: Path) -> None:
    train(config, DATA, tmp_path, stop_at_step=1)
    groups = load_checkpoint(tmp_path / "last.pt")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [config.weight_decay, 0.0]
    enhancer = build(config.model, config.audio)
    decayed, kept = trainers.by_decay(enhancer)
    assert [len(group["params"]) for group in groups] == [len(decayed), len(kept)]
    names = {id(parameter): name for name, parameter in enhancer.named_parameters()}
    free = {names[id(parameter)].split(".")[-1] for parameter in kept}
    assert free == {"a_log", "bias", "conv_bias", "dt_bias", "hidden_bias", "skip", "weight"}  # weight: of the norms
    assert not any(names[id(parameter)].endswith(("bias", "a_log")) for parameter in decayed)
    assert len(decayed) + len(kept) == len(names)


def test_starts_from_given_weights(config: TrainConfig, tmp_path: Path) -> None:
    weights = train(config, DATA, tmp_path / "first").weights
    still = dataclasses.replace(config, start_from=str(weights), learning_rate=1e-12, steps=1, warmup_steps=0, seed=5)
    train(still, DATA, tmp_path / "second")
    wanted, found = (load_enhancer(tmp_path / run / "weights.safetensors").state_dict() for run in ("first", "second"))
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0)


def test_weights_of_another_model_are_refused_at_the_start(config: TrainConfig, tmp_path: Path) -> None:
    weights = train(config, DATA, tmp_path / "first", stop_at_step=3).weights
    wider = dataclasses.replace(config.model, channels=16)
    with pytest.raises(TrainingError, match=r"weights\.safetensors: weights of another model"):
        train(dataclasses.replace(config, model=wider, start_from=str(weights)), DATA, tmp_path / "second")


def test_bfloat16_products_follow_float32_ones(each_config: TrainConfig, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        train(dataclasses.replace(each_config, precision=precision), DATA, tmp_path / precision, stop_at_step=4)
    single, half = (
        [float(row["loss"]) for row in rows_of(tmp_path / precision)] for precision in ("float32", "bfloat16")
    )
    assert half == pytest.approx(single, rel=0.02)
    model, exact = (load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("bfloat16", "float32"))
    assert any(not torch.equal(tensor, exact[name]) for name, tensor in model.items())  # another precision indeed
    assert {tensor.dtype for tensor in model.values()} == {torch.float32}


def test_scan_runs_in_float32_where_the_products_are_bfloat16(tiny_enhancer: WaveformEnhancer) -> None:
    seen: list[torch.dtype] = []
    block = tiny_enhancer.network.blocks[0]
    inner = chunked_scan(5)

    def watch(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, h = inner(*tensors)
        seen.extend([tensors[3].dtype, y.dtype, h.dtype])  # b comes from a product
        return y, h

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(block, "_scan", lambda: watch)
        output, state = tiny_enhancer(torch.randn(1, 1280) * 0.1, tiny_enhancer.initial_state())
    assert seen == [torch.bfloat16, torch.float32, torch.float32]
    assert {tensor.dtype for tensor in (output, *state.values())} == {torch.float32}


def test_progress_tells_where_a_run_stands(config: TrainConfig, tmp_path: Path) -> None:
    told: list[Progress] = []
    train(config, DATA, tmp_path, on_progress=told.append)
    assert [progress.step for progress in told if progress.validation_s is None] == list(range(1, 8))
    assert [progress.step for progress in told if progress.validation_s is not None] == [3, 6, 7]
    assert {progress.steps for progress in told} == {7}
    assert all(progress.audio_per_second > 0 for progress in told)
    assert told[-1].seconds_left == 0
    assert [progress.step for progress in told if progress.validation_loss is not None] == [3, 6, 7]


# Numbers that stay on the device


def test_numbers_read_every_few_steps_are_those_of_each_step(
    config: TrainConfig,
    uninterrupted: Callable[[TrainConfig], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: rows come together, before a checkpoint or a validation at the latest."""
    monkeypatch.setitem(training.ROWS_AT_ONCE, "cpu", 50)
    told: list[int] = []
    train(config, DATA, tmp_path, stop_at_step=5, on_progress=lambda progress: told.append(progress.step))
    assert told == [2, 3, 3, 4, 5]  # of checkpoints, before and after a validation, the end of the slice
    train(config, DATA, tmp_path)
    assert_same_result(tmp_path, uninterrupted(config))


def test_nan_among_steps_read_together_is_found_where_it_was(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(training.ROWS_AT_ONCE, "cpu", 50)
    config = dataclasses.replace(config, checkpoint_every=7, validate_every=7)
    with pytest.raises(TrainingError, match=r"step 4: .*not finite"):
        train(config, DataSets(BrokenFrom(3 * config.batch, math.nan), Tones(), {}), tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "2", "3"]
    assert not (tmp_path / LAST).exists()


# A constant rate and its fall


@pytest.fixture
def constant(config: TrainConfig) -> TrainConfig:
    """The rate falls after step 4 of 7, which is no step of a checkpoint or validation."""
    return dataclasses.replace(config, schedule="constant", fall=0.43, checkpoint_every=3)


@pytest.mark.parametrize("stop", [3, 4, 5])
def test_stopped_run_with_a_fall_equals_the_uninterrupted_one(
    stop: int, constant: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    train(constant, DATA, tmp_path, stop_at_step=stop)
    assert train(constant, DATA, tmp_path).finished
    assert_same_result(tmp_path, uninterrupted(constant))
    trunks = [load_checkpoint(run / "trunk.pt") for run in (tmp_path, uninterrupted(constant))]
    assert_equal_to_the_bit(*trunks, "trunk.pt")
    assert trunks[0]["step"] == 4


def test_next_stretch_goes_on_from_the_trunk_as_if_the_rate_had_never_fallen(
    constant: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    trunk = uninterrupted(constant) / "trunk.pt"
    longer = dataclasses.replace(constant, steps=11, fall=3 / 11)
    train(dataclasses.replace(longer, start_from=str(trunk)), DATA, tmp_path / "next")
    train(longer, DATA, tmp_path / "whole")
    found, wanted = (load_checkpoint(tmp_path / name / LAST) for name in ("next", "whole"))
    for part in ("model", "ema", "optimizer", "step"):
        assert_equal_to_the_bit(found[part], wanted[part], part)
    assert [row["step"] for row in rows_of(tmp_path / "next")] == [str(step) for step in range(5, 12)]


def test_trunk_is_refused_where_nothing_would_follow_or_the_network_is_another(
    constant: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    onward = dataclasses.replace(constant, start_from=str(uninterrupted(constant) / "trunk.pt"))
    with pytest.raises(TrainingError, match=r"steps: found 4, wanted more than the 4 that .*trunk\.pt has behind it"):
        train(dataclasses.replace(onward, steps=4), DATA, tmp_path)
    wider = dataclasses.replace(constant.model, channels=16)
    with pytest.raises(CheckpointError, match=r"trunk\.pt: made with other settings of model"):
        train(dataclasses.replace(onward, model=wider), DATA, tmp_path)
    best = uninterrupted(constant) / "best.pt"
    with pytest.raises(CheckpointError, match=r"best\.pt: no state of a run to go on from"):
        train(dataclasses.replace(onward, start_from=str(best)), DATA, tmp_path)


class Clock:
    """Clock of a run whose steps take a second each, validations nothing."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    update = trainers.Trainer.update

    def takes_a_second(trainer: trainers.Trainer, *waves: torch.Tensor) -> None:
        update(trainer, *waves)
        clock.now += 1

    monkeypatch.setattr(trainers.Trainer, "update", takes_a_second)
    monkeypatch.setattr(training, "time", clock)
    return clock


def test_run_against_the_clock_lets_the_rate_fall_and_ends_in_time(
    constant: TrainConfig, seconds: Clock, tmp_path: Path
) -> None:
    config = dataclasses.replace(constant, fall=0.25, steps=3, warmup_steps=1)  # steps do not count
    result = train(config, DATA, tmp_path, finish_within_s=20)
    assert (result.step, result.finished, seconds.now) == (20, True, 1020)
    rates = [float(row["learning_rate"]) / config.learning_rate for row in rows_of(tmp_path)]
    assert rates[:16] == pytest.approx([1] * 16)
    assert rates[15:] == pytest.approx([1 - math.sqrt(share / 5) for share in range(5)], rel=1e-4)
    assert load_checkpoint(tmp_path / "trunk.pt")["step"] == 15


def test_fall_that_was_decided_by_the_clock_goes_on_as_it_was_planned(
    constant: TrainConfig, seconds: Clock, tmp_path: Path
) -> None:
    config = dataclasses.replace(constant, fall=0.25)
    train(config, DATA, tmp_path / "whole", finish_within_s=20)
    train(config, DATA, tmp_path / "slices", finish_within_s=20, stop_at_step=17)
    assert train(config, DATA, tmp_path / "slices", finish_within_s=999).finished  # the time no longer counts
    assert_same_result(tmp_path / "slices", tmp_path / "whole")


def test_a_cosine_cannot_be_run_against_the_clock(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="schedule: found 'cosine', wanted 'constant' to finish"):
        train(config, DATA, tmp_path, finish_within_s=20)


# A teacher


def test_teacher_changes_what_is_learnt_and_not_what_is_validated(
    config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    weights = uninterrupted(config) / "weights.safetensors"
    train(dataclasses.replace(config, teacher=str(weights)), DATA, tmp_path)
    taught, alone = rows_of(tmp_path), rows_of(uninterrupted(config))
    assert all(float(row["distillation"]) > 0 for row in taught)
    assert not any(row["distillation"] for row in alone)
    first, before = taught[0], alone[0]  # the same weights and examples, before the first update
    assert float(first["loss"]) == pytest.approx(float(before["loss"]) + 2 * float(first["distillation"]), rel=1e-4)
    assert (
        load_checkpoint(tmp_path / LAST)["model"].keys()
        == load_checkpoint(uninterrupted(config) / LAST)["model"].keys()
    )


def test_network_learns_nothing_from_a_teacher_that_it_is_itself(config: TrainConfig, tmp_path: Path) -> None:
    weights = train(config, DATA, tmp_path / "first").weights
    pupil = dataclasses.replace(config, start_from=str(weights), teacher=str(weights), steps=1)
    train(pupil, DATA, tmp_path / "second")
    assert float(rows_of(tmp_path / "second")[0]["distillation"]) == pytest.approx(0, abs=1e-9)


def test_run_goes_on_with_the_same_teacher_alone(
    config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    weights = tmp_path / "teacher.safetensors"
    weights.write_bytes((uninterrupted(config) / "weights.safetensors").read_bytes())
    taught = dataclasses.replace(config, teacher=str(weights))
    train(taught, DATA, tmp_path / "whole")
    train(taught, DATA, tmp_path / "slices", stop_at_step=2)
    train(taught, DATA, tmp_path / "slices", stop_at_step=4)
    weights.write_bytes(train(config, DATA, tmp_path / "other", stop_at_step=3).weights.read_bytes())
    with pytest.raises(CheckpointError, match=r"made with another teacher than .*teacher\.safetensors is now"):
        train(taught, DATA, tmp_path / "slices")
    weights.write_bytes((uninterrupted(config) / "weights.safetensors").read_bytes())
    train(taught, DATA, tmp_path / "slices")
    assert_same_result(tmp_path / "slices", tmp_path / "whole")


def test_teacher_for_another_signal_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    weights = train(config, DATA, tmp_path / "first", stop_at_step=3).weights
    audio = dataclasses.replace(config.audio, hop=64)
    with pytest.raises(TrainingError, match=r"a teacher for another signal: found .*hop=128.*, wanted .*hop=64"):
        train(dataclasses.replace(config, audio=audio, teacher=str(weights)), DATA, tmp_path / "second")


# Several processes

TORCHRUN = """
import dataclasses, json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.edgese.train.test_loop import DATA
from edgese.train import loop as training
from edgese.config import TrainConfig, from_dict
training.N_VALIDATION = 3
config = from_dict(TrainConfig, json.loads(Path(sys.argv[1]).read_text()))
training.train(config, DATA, Path(sys.argv[2]), stop_at_step=int(sys.argv[3]), stop_after_s=float(sys.argv[4]))
"""


def torchrun(
    config: TrainConfig, run: Path, stop_at_step: int, stop_after_s: float = 1e9
) -> subprocess.CompletedProcess[str]:
    folder = run.parent
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    (folder / "job.py").write_text(TORCHRUN.format(root=str(Path(__file__).parents[3])))
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    job = [str(folder / "job.py"), str(folder / "config.json"), str(run), str(stop_at_step), str(stop_after_s)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launch, *job], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_two_processes_train_like_one_and_resume(config: TrainConfig, tmp_path: Path) -> None:
    """Each has half of every batch; gradients are their mean (gloo)."""
    train(config, DATA, tmp_path / "alone", stop_at_step=4)
    for stop, seconds in ((4, 0.0), (4, 1e9)):  # the first slice ends by time, the second goes on from its checkpoint
        done = torchrun(config, tmp_path / "shared", stop, seconds)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        assert len(rows_of(tmp_path / "shared")) == (1 if seconds == 0 else 4)
    alone, shared = rows_of(tmp_path / "alone"), rows_of(tmp_path / "shared")
    for row, wanted in zip(shared, alone, strict=True):
        for name in ("loss", "gradient_norm", "learning_rate"):
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=2e-3), name
    assert float(shared[2]["validation_loss"]) == pytest.approx(float(alone[2]["validation_loss"]), rel=2e-3)
    weights = [load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("alone", "shared")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_batch_that_processes_cannot_share_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    done = torchrun(dataclasses.replace(config, batch=3), tmp_path / "run", 1)
    assert done.returncode != 0
    assert "batch: found 3, wanted a multiple of torchrun's 2 processes" in done.stderr


# Going on


def test_slice_that_ends_by_time_goes_on_to_the_same_result(
    config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    first = train(config, DATA, tmp_path, stop_after_s=0.0)
    assert (first.step, first.finished) == (1, False)
    assert train(config, DATA, tmp_path, stop_after_s=1e9).finished
    assert_same_result(tmp_path, uninterrupted(config))


def test_resuming_needs_the_weights_of_the_start_no_more(config: TrainConfig, tmp_path: Path) -> None:
    weights = train(config, DATA, tmp_path / "first", stop_at_step=3).weights
    second = dataclasses.replace(config, start_from=str(weights))
    train(second, DATA, tmp_path / "second", stop_at_step=1)
    weights.unlink()
    assert train(second, DATA, tmp_path / "second").finished


@pytest.mark.parametrize("stops", [(1,), (3, 4, 6)])
def test_stopped_and_resumed_run_equals_the_uninterrupted_one(
    stops: tuple[int, ...], each_config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    for stop in stops:
        result = train(each_config, DATA, tmp_path, stop_at_step=stop)
        assert (result.step, result.finished) == (stop, False)
    assert train(each_config, DATA, tmp_path).finished
    assert_same_result(tmp_path, uninterrupted(each_config))


def killed_at(step: int) -> Callable[[Progress], None]:
    def kill(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return kill


@pytest.mark.parametrize("step", [1, 3, 5])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(
    step: int, config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config, DATA, tmp_path, on_progress=killed_at(step))
    train(config, DATA, tmp_path)
    assert_same_result(tmp_path, uninterrupted(config))


@pytest.mark.parametrize(
    ("moment", "call"), [("save_last", 1), ("save_last", 2), ("save_checkpoint", 1), ("save_weights", 1)]
)
def test_run_killed_while_it_saves_resumes_to_the_same_result(
    moment: str,
    call: int,
    config: TrainConfig,
    uninterrupted: Callable[[TrainConfig], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever file is being written when the machine stops, none of the others runs ahead of last.pt."""
    original, calls = getattr(trainers, moment), []

    def dies(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainers, moment, dies)
        with pytest.raises(KeyboardInterrupt):
            train(config, DATA, tmp_path)
    train(config, DATA, tmp_path)
    assert_same_result(tmp_path, uninterrupted(config))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(config, DATA, tmp_path, stop_at_step=5)
    os.truncate(tmp_path / LAST, 1000)
    train(config, DATA, tmp_path)
    assert "going on from last.prev.pt, step 4" in caplog.text
    assert_same_result(tmp_path, uninterrupted(config))


def test_a_signal_ends_a_slice_with_a_checkpoint(
    config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    stop = threading.Event()
    result = train(config, DATA, tmp_path, on_progress=lambda progress: stop.set(), stop=stop)
    assert (result.step, result.finished) == (2, False)  # the step that was under way
    train(config, DATA, tmp_path)
    assert_same_result(tmp_path, uninterrupted(config))


def test_one_process_at_a_time_trains_in_a_folder(config: TrainConfig, tmp_path: Path) -> None:
    program = f"""
import time
from pathlib import Path
from edgese.train.run_folder import locked
with locked(Path({str(tmp_path)!r})):
    print("locked", flush=True)
    time.sleep(600)
"""
    other = subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT, stdout=subprocess.PIPE)
    assert other.stdout is not None
    with other.stdout:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(TrainingError, match=rf"another edgese train is at work there \(process {other.pid}\)"):
            train(config, DATA, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        other.kill()
        other.wait()
    with locked(tmp_path):  # it ended with its process
        pass


def test_other_data_are_noticed(config: TrainConfig, tmp_path: Path) -> None:
    ours, others = (dataclasses.replace(DATA, digest=digest) for digest in ("aa", "bb"))
    train(config, ours, tmp_path, stop_at_step=1)
    with pytest.raises(CheckpointError, match=r"made with other data .* --changed-data to go on with these"):
        train(config, others, tmp_path, stop_at_step=2)
    assert train(config, ours, tmp_path, stop_at_step=2).step == 2
    assert train(config, others, tmp_path, stop_at_step=3, changed_data=True).step == 3
    assert train(config, others, tmp_path, stop_at_step=4).step == 4


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(
    config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    train(config, DATA, tmp_path, stop_at_step=2)
    with file_size_limit(5000), pytest.raises(OutputError, match="cannot be written"):
        train(config, DATA, tmp_path)
    train(config, DATA, tmp_path)
    assert_same_result(tmp_path, uninterrupted(config))


@pytest.mark.parametrize("rest", ["3,0.1", "3,0.1\n", "3" + 15 * ",", "\0\0\0\0", "x" + 15 * "," + "\n", "\n"])
def test_a_torn_last_row_of_the_log_is_dropped(rest: str, config: TrainConfig, tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        log.write({"step": 1, "loss": 0.5})
        log.write({"step": 2, "loss": 0.25})
    with (tmp_path / "log.csv").open("a") as lines:
        lines.write(rest)
    with RunLog(tmp_path, 5) as log:
        log.write({"step": 3, "loss": 0.125})
    assert [(row["step"], row["loss"]) for row in rows_of(tmp_path)] == [("1", "0.5"), ("2", "0.25"), ("3", "0.125")]


def test_log_row_of_a_checkpoint_is_written_before_it(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that comes after its checkpoint is lost for good when the run is killed between the two."""
    original = RunLog.write

    def dies_at_step_4(log: object, row: dict[str, float]) -> None:
        if row["step"] == 4:
            raise KeyboardInterrupt
        original(log, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", dies_at_step_4)
        with pytest.raises(KeyboardInterrupt):
            train(config, DATA, tmp_path)
    train(config, DATA, tmp_path)
    assert [row["step"] for row in rows_of(tmp_path)] == [str(step) for step in range(1, 8)]


def test_same_seed_gives_the_same_run_and_another_another(config: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(99)  # what came before does not matter
    train(config, DATA, tmp_path / "a", stop_at_step=2)
    torch.manual_seed(1)
    train(config, DATA, tmp_path / "b", stop_at_step=2)
    train(dataclasses.replace(config, seed=1), DATA, tmp_path / "c", stop_at_step=2)
    weights = [load_checkpoint(tmp_path / name / "last.pt")["model"] for name in "abc"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 on; the loader's own way
def test_workers_change_nothing(config: TrainConfig, tmp_path: Path) -> None:
    train(config, DATA, tmp_path / "alone", stop_at_step=3)
    train(dataclasses.replace(config, workers=1), DATA, tmp_path / "helped", stop_at_step=3)
    weights = [load_checkpoint(tmp_path / name / "last.pt")["model"] for name in ("alone", "helped")]
    assert_equal_to_the_bit(weights[1], weights[0], "model")


def test_finished_run_is_left_as_it_is(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config, DATA, tmp_path)
    before = (tmp_path / "last.pt").read_bytes(), rows_of(tmp_path)
    assert train(config, DATA, tmp_path) == first
    assert ((tmp_path / "last.pt").read_bytes(), rows_of(tmp_path)) == before


def test_stop_at_a_step_long_past_changes_nothing(config: TrainConfig, tmp_path: Path) -> None:
    train(config, DATA, tmp_path, stop_at_step=4)
    before = (tmp_path / "last.pt").read_bytes()
    assert train(config, DATA, tmp_path, stop_at_step=2).step == 4
    assert (tmp_path / "last.pt").read_bytes() == before


# Refusals


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"seed": 1}, "seed"),
        ({"steps": 8}, "steps"),
        ({"data": DataConfig(segment_s=0.125, snr_db=(0, 5))}, "data"),
        ({"model": MODELS["small"], "batch": 3}, "batch, model"),
    ],
)
def test_another_config_is_refused_on_resume(
    change: dict[str, object], name: str, config: TrainConfig, tmp_path: Path
) -> None:
    train(config, DATA, tmp_path, stop_at_step=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError) as refusal:
        train(dataclasses.replace(config, **change), DATA, tmp_path)
    message = str(refusal.value)
    assert message.startswith(f"{tmp_path / 'last.pt'}: made with another config ({name} differ)")
    assert "\n" not in message
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_broken_checkpoint_is_refused_by_name(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"half of a checkp")
    with pytest.raises(CheckpointError, match=r"last\.pt: not a readable checkpoint"):
        train(config, DATA, tmp_path)
    save_checkpoint(tmp_path / "last.pt", {"step": 3})
    with pytest.raises(CheckpointError, match=r"last\.pt: "):
        train(config, DATA, tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_stops_the_run_and_leaves_the_last_checkpoint(value: float, config: TrainConfig, tmp_path: Path) -> None:
    broken = DataSets(BrokenFrom(5 * config.batch, value), Tones(), {})
    with pytest.raises(TrainingError) as refusal:
        train(config, broken, tmp_path)
    assert "step 6" in str(refusal.value)
    assert "not finite" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    content = load_checkpoint(tmp_path / "last.pt")
    assert content["step"] == 4  # checkpoint_every = 2, and the 6th never came to be
    train(config, DATA, tmp_path / "whole", stop_at_step=4)
    assert_equal_to_the_bit(content, load_checkpoint(tmp_path / "whole" / "last.pt"), "last.pt")
    assert [row["step"] for row in rows_of(tmp_path)] == [str(step) for step in range(1, 6)]


def test_run_goes_on_once_the_broken_recording_is_mended(
    config: TrainConfig, uninterrupted: Callable[[TrainConfig], Path], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError):
        train(config, DataSets(BrokenFrom(10, math.nan), Tones(), {}), tmp_path)
    train(config, DATA, tmp_path)
    assert_same_result(tmp_path, uninterrupted(config))


def test_mend_that_the_nan_message_names_is_possible(config: TrainConfig, tmp_path: Path) -> None:
    """A lower learning rate is another config, which a run refuses to go on with: the message must not promise it."""
    broken = DataSets(BrokenFrom(5 * config.batch, math.nan), Tones(), {})
    with pytest.raises(TrainingError) as refusal:
        train(config, broken, tmp_path)
    assert "learning_rate" in str(refusal.value)
    assert "--output" in str(refusal.value)


# The log


def test_log_has_one_complete_row_for_each_step(config: TrainConfig, tmp_path: Path) -> None:
    train(config, DATA, tmp_path, stop_at_step=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, DATA, tmp_path, on_progress=killed_at(5))
    train(config, DATA, tmp_path)
    rows = rows_of(tmp_path)
    assert tuple(rows[0]) == COLUMNS
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 8)]
    weightless = {name for name, weight in dataclasses.asdict(config.loss).items() if weight == 0} | {"distillation"}
    always = [name for name in COLUMNS if not name.startswith("validation") and name not in weightless]
    assert not any(row[name] for row in rows for name in weightless)
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in always), row
        judged = [row[name] for name in COLUMNS if name.startswith("validation") and "pesq" not in name]
        validated = [math.isfinite(float(value)) for value in judged if value]
        assert validated == ([True] * 3 if int(row["step"]) in (3, 6, 7) else []), row
    assert float(rows[0]["learning_rate"]) == pytest.approx(config.learning_rate / config.warmup_steps)


def test_log_of_more_than_a_million_steps_can_be_gone_on_with(config: TrainConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, steps=1_234_569)
    train(config, DATA, tmp_path, stop_at_step=1)
    content = load_checkpoint(tmp_path / "last.pt")
    save_checkpoint(tmp_path / "last.pt", content | {"step": 1_234_566})
    train(config, DATA, tmp_path, stop_at_step=1_234_567)
    train(config, DATA, tmp_path, stop_at_step=1_234_568)
    assert [row["step"] for row in rows_of(tmp_path)] == ["1", "1234567", "1234568"]


def test_config_lies_beside_the_run(config: TrainConfig, tmp_path: Path) -> None:
    train(config, DATA, tmp_path, stop_at_step=1)
    text = (tmp_path / "config.json").read_text()
    assert from_dict(TrainConfig, json.loads(text)) == config
    assert load_checkpoint(tmp_path / "last.pt")["config"] == to_dict(config)


def test_tensorboard_events_are_written(config: TrainConfig, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the [train] extra is not installed")
    train(config, DATA, tmp_path, stop_at_step=2)
    assert [path.stat().st_size > 0 for path in (tmp_path / "tensorboard").iterdir()] == [True]


# From files to weights


def test_a_folder_of_recordings_becomes_weights(config: TrainConfig, tmp_path: Path, speech_like) -> None:
    import soundfile

    for kind, scale in (("speech", 1.0), ("noise", 0.2)):
        for number in range(3):
            path = tmp_path / "data" / kind / f"p{number}_1.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = 0.1 * np.random.default_rng(number).standard_normal(8000)
            soundfile.write(path, scale * (speech_like(8000, seed=number) if kind == "speech" else noise), 16_000)
    data = open_data(tmp_path / "data", config.data, 16_000, config.seed, tmp_path / "cache")
    result = train(config, data, tmp_path / "run", stop_at_step=3)
    enhanced = load_enhancer(result.weights).enhance(torch.from_numpy(speech_like(5000, seed=9))[None])
    assert enhanced.shape == (1, 5000)
    assert torch.isfinite(enhanced).all()


# Where a GPU is


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU and a PyTorch for it")
    return "cuda"


@pytest.mark.gpu
def test_a_run_on_a_gpu_follows_the_one_on_the_cpu(
    each_config: TrainConfig, cuda: str, tmp_path: Path, uninterrupted: Callable[[TrainConfig], Path]
) -> None:
    result = train(each_config, DATA, tmp_path / "run", device=cuda)
    assert (result.step, result.finished) == (7, True)
    for found, wanted in zip(rows_of(tmp_path / "run"), rows_of(uninterrupted(each_config)), strict=True):
        assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-3)
        assert float(found["gradient_norm"]) == pytest.approx(float(wanted["gradient_norm"]), rel=1e-2)
    assert all(tensor.device.type == "cpu" for tensor in load_enhancer(result.weights).state_dict().values())


@pytest.mark.gpu
def test_a_run_on_a_gpu_goes_on_from_its_checkpoint(each_config: TrainConfig, cuda: str, tmp_path: Path) -> None:
    train(each_config, DATA, tmp_path / "whole", device=cuda)
    for stop in (3, None):
        train(each_config, DATA, tmp_path / "slices", device=cuda, stop_at_step=stop)
    for found, wanted in zip(rows_of(tmp_path / "slices"), rows_of(tmp_path / "whole"), strict=True):
        assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-4)


@pytest.mark.gpu
def test_a_network_on_a_gpu_gives_what_it_gives_on_the_cpu(
    tiny_enhancer: WaveformEnhancer, cuda: str, speech_like: Callable[..., Wave]
) -> None:
    wave = torch.from_numpy(speech_like(16_000))[None]
    wanted = tiny_enhancer.enhance(wave)
    found = tiny_enhancer.to(cuda).enhance(wave.to(cuda)).cpu()
    assert (found - wanted).abs().max() <= 1e-5
    blocks = tiny_enhancer.enhance(wave.to(cuda), block=3).cpu()
    assert (blocks - found).abs().max() <= 1e-5
