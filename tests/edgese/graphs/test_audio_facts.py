"""Facts of audio that stand twice in a bundle: a bundle that contradicts itself is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgese.config import AudioConfig
from edgese.enhance.denoiser import Denoiser
from edgese.graphs.audio_facts import audio_facts, open_bundle, weights_settings
from edgese.graphs.bundles import audio_config, shipped_bundle
from export import ExportError
from export.bundle import MANIFEST, WEIGHTS, Bundle


def changed(path: Path, change: Callable[[dict[str, Any]], None], source: Path) -> Path:
    """A copy of a bundle with another manifest."""
    shutil.copytree(source, path)  # no hard links: onnx refuses weights that have them, and the shipped ones would
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


def test_the_shipped_bundle_agrees_with_itself() -> None:
    bundle = open_bundle(shipped_bundle("small"))
    assert audio_config(bundle) == AudioConfig()
    assert weights_settings(bundle.path / WEIGHTS)["audio"] == {"hop": 128, "n_fft": 512, "sample_rate_hz": 16_000}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda m: m["audio"].update(sample_rate_hz=48_000),
            "audio.sample_rate_hz 48000, model.safetensors says 16000",
        ),
        (lambda m: m["audio"].update(n_fft=256), "audio.n_fft 256, model.safetensors says 512"),
        (lambda m: m["audio"].update(n_bins=129), "audio.n_bins 129, its other facts give 257"),
        (lambda m: m["latency"].update(overlap_samples=0), "latency.overlap_samples 0, its other facts give 384"),
        (lambda m: m["latency"].update(samples=128), "latency.samples 128, its other facts give 512"),
        (lambda m: m["latency"].update(ms=10.0), "latency.ms 10.0, its other facts give 32.0"),
        (lambda m: m["model"].update(layers=4), "model.layers 4, model.safetensors says 2"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    path = changed(tmp_path / "bundle", change, shipped_bundle("small"))
    with pytest.raises(ExportError, match=told):
        open_bundle(path)
    with pytest.raises(ExportError, match="contradicts itself"):
        audio_facts(Bundle.open(path))
    with pytest.raises(ExportError, match="contradicts itself"):
        Denoiser(Bundle.open(path))


def test_without_weights_the_graphs_and_the_latency_still_tell(tmp_path: Path, identity_bundle: Path) -> None:
    for name, change in {
        "rate": lambda m: m["audio"].update(sample_rate_hz=48_000),
        "hop": lambda m: (m["audio"].update(hop=256), m["latency"].update(overlap_samples=256)),
    }.items():
        with pytest.raises(ExportError, match="contradicts itself"):
            open_bundle(changed(tmp_path / name, change, identity_bundle))


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\2\0\0\0\0\0\0\0{}", b"\4\0\0\0\0\0\0\0[[[["])
def test_weights_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(ExportError, match="not readable weights with their settings"):
        weights_settings(tmp_path / WEIGHTS)
