"""Files of weights: whole or not at all, holding their config, refused in one line when they are something else."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from edgese import atomic_file
from edgese.config import AudioConfig, to_dict
from edgese.errors import CheckpointError, EdgeseError, OutputError
from edgese.model.checkpoint import load_checkpoint, load_enhancer, save_checkpoint, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.registry import build
from edgese.networks import MbsConfig

from ..helpers.disk import file_size_limit


def settings_of(enhancer: WaveformEnhancer) -> dict[str, Any]:
    return {"audio": to_dict(enhancer.audio), "model": to_dict(enhancer.network.config)}


def save_pt(path: Path, enhancer: WaveformEnhancer, **changes: Any) -> Path:
    """A checkpoint as `edgese train` writes it; the weights trained last differ from their average, "ema"."""
    ema = enhancer.state_dict()
    content = {"config": settings_of(enhancer), "ema": ema, "model": {name: w + 1 for name, w in ema.items()}}
    save_checkpoint(path, content | changes)
    return path


def save_safetensors(path: Path, enhancer: WaveformEnhancer, metadata: dict[str, str] | None = None) -> Path:
    """Weights with chosen metadata, as some other program may have written them."""
    safetensors.torch.save_file(enhancer.state_dict(), path, metadata)
    return path


def assert_same_network(found: WaveformEnhancer, wanted: WaveformEnhancer) -> None:
    assert found.network.config == wanted.network.config
    assert found.audio == wanted.audio
    assert found.state_dict().keys() == wanted.state_dict().keys()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def refusal_of(path: Path) -> str:
    """The line with which `load_enhancer` refuses a file: it names the file and is one line."""
    with pytest.raises(EdgeseError) as refusal:
        load_enhancer(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    return message


# Round trips


def test_checkpoint_gives_back_what_it_was_given(tmp_path: Path) -> None:
    content = {"step": 3, "best": math.inf, "config": {"a": [1, 2.5, "x", None]}, "ema": {"w": torch.randn(3, 2)}}
    save_checkpoint(tmp_path / "last.pt", content)
    found = load_checkpoint(tmp_path / "last.pt")
    assert torch.equal(found["ema"].pop("w"), content["ema"].pop("w"))
    assert found == content
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_weights_travel_with_their_config(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", tiny_enhancer, tiny_enhancer.state_dict())
    loaded = load_enhancer(tmp_path / "w.safetensors")
    assert_same_network(loaded, tiny_enhancer)
    assert not loaded.training
    wave = torch.rand(1, 1000)
    assert torch.equal(loaded.enhance(wave), tiny_enhancer.enhance(wave))
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_other_signal_settings_travel_too(tmp_path: Path) -> None:
    audio = AudioConfig(sample_rate_hz=8000, n_fft=256, hop=64)
    enhancer = build(MbsConfig(band_widths=(9, 40, 80), channels=8, layers=1), audio)
    save_weights(tmp_path / "w.safetensors", enhancer, enhancer.state_dict())
    assert_same_network(load_enhancer(tmp_path / "w.safetensors"), enhancer)


def test_same_weights_make_the_same_file(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    weights = tiny_enhancer.state_dict()
    save_weights(tmp_path / "a.safetensors", tiny_enhancer, weights)
    save_weights(tmp_path / "b.safetensors", tiny_enhancer, dict(reversed(weights.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_training_checkpoint_is_opened_with_its_averaged_weights(
    tiny_enhancer: WaveformEnhancer, tmp_path: Path
) -> None:
    assert_same_network(load_enhancer(save_pt(tmp_path / "last.pt", tiny_enhancer)), tiny_enhancer)


# Whole or not at all


def test_interrupted_checkpoint_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()

    def torn(fd: int, content: bytes) -> None:
        os.write(fd, content[:16])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic_file, "write_all", torn)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {"step": 2})
    assert path.read_bytes() == before
    assert load_checkpoint(path) == {"step": 1}
    save_checkpoint(path, {"step": 3})  # what the interrupt left behind does not matter
    assert load_checkpoint(path) == {"step": 3}
    assert [found.name for found in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("name", ["last.pt", "weights.safetensors"])
def test_a_full_disk_is_one_line_and_leaves_nothing(name: str, tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    def save(path: Path) -> None:
        if name == "last.pt":
            save_checkpoint(path, {"ema": tiny_enhancer.state_dict()})
        else:
            save_weights(path, tiny_enhancer, tiny_enhancer.state_dict())

    with file_size_limit(5000), pytest.raises(OutputError, match=rf"{name}: cannot be written \(File too large\)"):
        save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_weights_leave_the_old_ones(
    tiny_enhancer: WaveformEnhancer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, tiny_enhancer, tiny_enhancer.state_dict())
    before = path.read_bytes()

    def torn(fd: int, content: bytes) -> None:
        os.write(fd, content[:16])
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_file, "write_all", torn)
    with pytest.raises(KeyboardInterrupt):
        save_weights(path, tiny_enhancer, {name: w + 1 for name, w in tiny_enhancer.state_dict().items()})
    assert path.read_bytes() == before


# Refusals


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors"])
def test_missing_file_is_named(name: str, tmp_path: Path) -> None:
    assert "no such" in refusal_of(tmp_path / name)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not weights at all", b"\x80\x04."])
def test_garbage_is_refused_by_name(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    message = refusal_of(tmp_path / name)
    assert "not a readable" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_truncated_file_is_refused_by_name(name: str, tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    path = tmp_path / name
    save = save_pt if name == "w.pt" else lambda p, e: save_weights(p, e, e.state_dict())
    save(path, tiny_enhancer)
    path.write_bytes(path.read_bytes()[:-100])
    assert "not a readable" in refusal_of(path)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_folder_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert "\n" not in refusal_of(tmp_path / name)


class Trojan:
    """An object whose unpickling runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"ema": Trojan(tmp_path / "executed")}, tmp_path / "w.pt")
    assert "not a readable checkpoint" in refusal_of(tmp_path / "w.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [{}, [1, 2], 3, {"ema": {}}, {"config": {}, "ema": {}}, {"config": 3, "ema": {}}],
    ids=["empty", "list", "number", "no config", "empty config", "config a number"],
)
def test_checkpoint_of_something_else_is_refused_by_name(content: Any, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "w.pt", content)
    assert "\n" not in refusal_of(tmp_path / "w.pt")


def test_checkpoint_without_averaged_weights_is_refused_by_name(
    tiny_enhancer: WaveformEnhancer, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "w.pt", {"config": settings_of(tiny_enhancer), "model": tiny_enhancer.state_dict()})
    assert "'ema' is missing" in refusal_of(tmp_path / "w.pt")


def test_weights_without_config_are_refused_by_name(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        message = refusal_of(save_safetensors(tmp_path / "w.safetensors", tiny_enhancer, metadata))
        assert "found no edgese config" in message


@pytest.mark.parametrize("config", ["", "{", "3", "{}", '{"audio": {}}', '{"audio": {}, "model": {"chanels": 3}}'])
def test_weights_with_a_broken_config_are_refused_by_name(
    config: str, tiny_enhancer: WaveformEnhancer, tmp_path: Path
) -> None:
    save_safetensors(tmp_path / "w.safetensors", tiny_enhancer, {"edgese": config})
    assert "\n" not in refusal_of(tmp_path / "w.safetensors")


def test_weights_of_another_network_are_refused_by_name(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    settings = settings_of(tiny_enhancer)
    wider = dataclasses.replace(tiny_enhancer.network.config, channels=16)
    metadata = {"edgese": json.dumps(settings | {"model": to_dict(wider)})}
    message = refusal_of(save_safetensors(tmp_path / "w.safetensors", tiny_enhancer, metadata))
    assert "its weights do not fit its own config" in message
    few = dict(list(tiny_enhancer.state_dict().items())[1:])
    assert "its weights do not fit" in refusal_of(save_pt(tmp_path / "w.pt", tiny_enhancer, ema=few))


def test_settings_of_a_network_far_larger_than_its_weights_are_refused_before_it_is_built(
    tiny_enhancer: WaveformEnhancer, tmp_path: Path
) -> None:
    settings = settings_of(tiny_enhancer)
    huge = dataclasses.replace(tiny_enhancer.network.config, channels=8192, layers=64)  # 17 GB
    metadata = {"edgese": json.dumps(settings | {"model": to_dict(huge)})}
    assert "far larger than its weights" in refusal_of(save_safetensors(tmp_path / "w", tiny_enhancer, metadata))


def test_load_checkpoint_raises_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
