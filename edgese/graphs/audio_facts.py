"""Facts of the audio that a bundle's graphs take and give; each that stands twice in a bundle is compared.

The manifest says them for everybody, the weights for PyTorch, and the graphs show them in the shapes of their waves. A
rate that differs between them would enhance at the wrong speed and verify without a word.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgese.graphs.segments import Segments
from edgese.networks import AudioConfig  # of no TOML: this file runs on boards too
from export import ExportError
from export.bundle import WEIGHTS, Bundle

_Twice = tuple[str, tuple[Any, str, Any]]  # fact; as the manifest says it, where else it stands, as it stands there
_MAX_HEADER_BYTES = 100_000_000  # of a safetensors file, as its own library has it


@dataclasses.dataclass(frozen=True)
class AudioFacts:
    """Sample rate and hop of a bundle's graphs, and the samples by which their output runs behind their input."""

    sample_rate_hz: int
    hop: int
    overlap_samples: int  # 0 for a network that looks ahead


def open_bundle(path: Path) -> Bundle:
    """The bundle in a folder, its files unchanged and its facts of audio the same wherever it says them.

    Raises:
        ExportError: no bundle there, a damaged one, or one that contradicts itself.
    """
    bundle = Bundle.open(path)
    audio_facts(bundle)
    return bundle


def audio_facts(bundle: Bundle) -> AudioFacts:
    """The facts of a bundle's audio that its users need to stream it, the same wherever the bundle says them.

    Raises:
        ExportError: the manifest lacks one, or the bundle contradicts itself.
        ConfigError: one is out of range.
    """
    manifest = bundle.manifest
    try:
        audio = {key: manifest["audio"][key] for key in ("sample_rate_hz", "n_fft", "hop")}
        config = AudioConfig(**audio)
        said = dict(_said_twice(bundle, config))
        facts = AudioFacts(config.sample_rate_hz, config.hop, int(manifest["latency"]["overlap_samples"]))
    except (LookupError, TypeError, ValueError) as error:
        raise ExportError(
            f"{bundle.path}: the manifest's audio or latency lacks {error}; export the bundle again"
        ) from error
    for fact, (found, elsewhere, wanted) in said.items():
        if found != wanted:
            raise ExportError(
                f"{bundle.path}: the bundle contradicts itself: its manifest says {fact} {found}, {elsewhere} "
                f"{wanted}; export the bundle again"
            )
    return facts


def weights_settings(path: Path) -> dict[str, Any]:
    """Settings `audio` and `model` that a weights file carries; read without PyTorch, which a board has not.

    Raises:
        ExportError: not a weights file of `edgese train`.
    """
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes")
            settings: dict[str, Any] = json.loads(json.loads(file.read(size))["__metadata__"]["edgese"])
        if not all(isinstance(settings[key], dict) for key in ("audio", "model")):
            raise TypeError("no settings of audio and model")
    except (OSError, struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(
            f"{path}: not readable weights with their settings ({error}); export the bundle again"
        ) from error
    return settings


def _said_twice(bundle: Bundle, config: AudioConfig) -> list[_Twice]:
    """Facts that stand twice in the bundle."""
    manifest = bundle.manifest
    segments, latency, derived = Segments.of(manifest), manifest["latency"], "its other facts give"
    said: list[_Twice] = []
    if WEIGHTS in manifest["files"]:
        weights = weights_settings(bundle.path / WEIGHTS)
        for kind in ("audio", "model"):
            said += _compared(kind, manifest[kind], weights[kind])
    overlap = config.overlap if segments is None else 0
    n_late = config.latency_samples if segments is None else segments.size
    late_ms = 1000 * n_late / config.sample_rate_hz
    said += [
        ("audio.n_bins", (manifest["audio"].get("n_bins", config.n_bins), derived, config.n_bins)),
        ("latency.overlap_samples", (latency["overlap_samples"], derived, overlap)),
        ("latency.samples", (latency.get("samples", n_late), derived, n_late)),
        ("latency.ms", (round(float(latency.get("ms", late_ms)), 6), derived, round(late_ms, 6))),
    ]
    for graph in bundle.graphs:
        size = graph.block * config.hop if segments is None else segments.size
        for spec in (*graph.inputs, *graph.outputs):
            if spec.name in ("wave", "enhanced"):
                fact = f"audio.hop {config.hop}, thus in {graph.file} {spec.name}"
                said.append((fact, (size, "the graph has", spec.shape[-1])))
    return said


def _compared(kind: str, manifest: Mapping[str, Any], weights: Mapping[str, Any]) -> list[_Twice]:
    """Settings of the weights beside the manifest's; a setting that is younger than one of them is left out."""
    return [(f"{kind}.{key}", (manifest[key], f"{WEIGHTS} says", weights[key])) for key in weights if key in manifest]
