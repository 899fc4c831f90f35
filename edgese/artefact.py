"""From weights to a verified bundle: graphs for each block size, their proof, reference vectors, model card."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calib.batches import Batches, write_batches
from edgese import __version__
from edgese.audio import Samples, read_wave
from edgese.checkpoint import load_enhancer, save_weights
from edgese.config import to_dict
from edgese.contract import require_contract
from edgese.enhance import SAMPLE as SAMPLE
from edgese.errors import ConfigError, VerificationError
from edgese.exported import exported_form, with_variant
from edgese.graphs import graph_of, write_graph
from edgese.model.cost import macs_per_frame, parameters
from edgese.model.waveform import WaveformEnhancer
from edgese.opening import graph_metadata
from edgese.plan import Plan
from edgese.precision import Precision
from edgese.verify import LIMITS, VERIFICATION_HOPS, Result, long_sound, pytorch_truth, verify_graph
from export.bundle import WEIGHTS, Bundle, seal_bundle, stage_bundle
from export.weights import share_weights

DEFAULT_BLOCKS = (1, 4, 8, 16)
MAX_BLOCK = 32  # the unrolled graph grows with the block; TensorRT builds up to here in seconds (FACTS.md)
REFERENCE_HOPS = 96  # 0.77 s: of a whole number of blocks of 1, 2, 3, 4, 6, 8, 12, 16, 24 and 32
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


@dataclasses.dataclass(frozen=True)
class Export:
    """What came of an export; `bundle` is None where verification failed and the files were kept aside."""

    path: Path
    bundle: Bundle | None
    results: tuple[Result, ...]


def export_bundle(
    weights: Path,
    path: Path,
    *,
    name: str,
    blocks: Sequence[int] = DEFAULT_BLOCKS,
    sound: Path = SAMPLE,
    model_card: Path | None = None,
    pcs: bool = False,
    plans: Mapping[Precision, Plan] | None = None,
    calibration: Batches | None = None,
    replace: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Export:
    """Writes, verifies and seals a bundle; one that fails is kept as `<path>.unverified`.

    Args:
        weights: .safetensors, or a checkpoint of `edgese train`.
        blocks: hops that a call of each graph takes.
        sound: speech to verify with.
        pcs: add a second graph for each block, with perceptual contrast stretching (edgese.model.pcs).
        plans: add graphs in these precisions (`edgese.quantize.make_plans`) to those in float32.
        calibration: the batches that plans with INT8 come from; their provenance travels with the bundle.
        on_progress: told what is being done.

    Raises:
        ConfigError: a block size that cannot be.
        CheckpointError, AudioError, ExportError: weights, sound or bundle cannot be read or written.
    """
    tell = on_progress or (lambda step: None)
    blocks = sorted(set(blocks))
    if not blocks or blocks[0] < 1 or blocks[-1] > MAX_BLOCK:
        raise ConfigError(f"blocks: found {list(blocks)}, wanted numbers of hops from 1 to {MAX_BLOCK}")
    multiple = int(np.lcm.reduce(blocks))
    if multiple > VERIFICATION_HOPS:
        raise ConfigError(
            f"blocks: found {list(blocks)}, whose least common multiple is {multiple}, wanted at most "
            f"{VERIFICATION_HOPS}: all are verified over the same sound; choose powers of two"
        )
    enhancer = load_enhancer(weights)
    require_contract(enhancer)
    plans = {Precision.FP32: Plan(), **(plans or {})}
    _require_calibration(plans, calibration)
    variants = {variant: with_variant(enhancer, variant) for variant in ("", *(("pcs",) if pcs else ()))}
    wave = long_sound([read_wave(sound, enhancer.audio.sample_rate_hz)], VERIFICATION_HOPS * enhancer.audio.hop)
    if model_card and not model_card.is_file():
        raise ConfigError(f"{model_card}: found no such file, wanted a model card")
    with contextlib.ExitStack() as stack:
        staging = stack.enter_context(stage_bundle(path, replace=replace))
        save_weights(staging / WEIGHTS, enhancer, enhancer.state_dict())
        digest = hashlib.sha256((staging / WEIGHTS).read_bytes()).hexdigest()
        graphs = []
        for precision, plan in plans.items():
            kinds = [graph_of(enhancer, block, precision.value, variant) for variant in variants for block in blocks]
            for graph in kinds:
                tell(f"{graph.file}: to ONNX")
                metadata = graph_metadata(name, digest, graph, plan.calibration)
                write_graph(variants[graph.variant], graph, staging / graph.file, plan, metadata)
            share_weights([staging / graph.file for graph in kinds], staging / f"weights.{precision.value}.bin")
            graphs += kinds
        truths = {variant: pytorch_truth(variants[variant], wave, multiple) for variant in variants}
        results = []
        for graph in graphs:
            tell(f"{graph.file}: against PyTorch, {VERIFICATION_HOPS} hops")
            results.append(verify_graph(staging, graph, truths[graph.variant]))
        reference = _write_reference(variants, staging, sound.name, truths[""].wave)
        if model_card:
            shutil.copyfile(model_card, staging / "MODEL_CARD.md")
        passed = len(results) == len(plans) * len(variants) * len(blocks) and all(result.passed for result in results)
        manifest = {
            "name": name,
            **network_facts(enhancer),
            "graphs": graphs,
            "tools": tool_versions(),
            "calibration": calibration and {"digest": calibration.digest, "provenance": calibration.provenance},
            "precisions": {precision.value: plan.entry() for precision, plan in plans.items()},
            "verification": {
                "passed": passed,
                "limits": {precision: dataclasses.asdict(limits) for precision, limits in LIMITS.items()},
                "sound": sound.name,
                "results": [result.entry() for result in results],
            },
            "reference": reference,
        }
        seal_bundle(staging, manifest)
    landed = path if passed else path.with_name(f"{path.name}.unverified")
    return Export(landed, Bundle.open(path) if passed else None, tuple(results))


def _require_calibration(plans: Mapping[Precision, Plan], calibration: Batches | None) -> None:
    """Ranges are those of the batches that the bundle names."""
    wanted = None if calibration is None else calibration.digest
    for precision, plan in plans.items():
        if precision.quantized and (not plan.ranges or plan.calibration != wanted):
            found = f"the ranges of {len(plan.ranges)} products, from the batches {plan.calibration}"
            raise ConfigError(f"{precision.value}: found {found}, wanted some from {wanted}; quantize it again")


def network_facts(enhancer: WaveformEnhancer) -> dict[str, Any]:
    """What a network is and costs: model, audio, latency, parameters and MACs of each part."""
    audio = enhancer.audio
    with exported_form(enhancer):
        macs = macs_per_frame(enhancer)
    return {
        "model": to_dict(enhancer.network.config),
        "audio": to_dict(audio) | {"n_bins": audio.n_bins},
        "latency": {"samples": audio.latency_samples, "ms": audio.latency_ms, "overlap_samples": audio.overlap},
        "parameters": parameters(enhancer),
        "macs_per_frame": macs,
    }


def require_passed(export: Export) -> Bundle:
    """The bundle.

    Raises:
        VerificationError: it failed; the message says where it was kept and what differed.
    """
    if export.bundle is None:
        reasons = "; ".join(
            f"{result.graph}: {', '.join(result.failures)}" for result in export.results if not result.passed
        )
        raise VerificationError(f"{export.path}: kept aside, it does not agree with PyTorch. {reasons}")
    return export.bundle


def tool_versions() -> dict[str, str]:
    """Versions of all that a bundle is made with."""
    versions = {tool: importlib.metadata.version(tool) for tool in _TOOLS}
    return {"edgese": __version__, "python": platform.python_version()} | versions


@torch.no_grad()
def _write_reference(
    variants: Mapping[str, WaveformEnhancer], folder: Path, sound: str, heard: Samples
) -> dict[str, str]:
    """Input and PyTorch's output (`enhanced`, `enhanced_pcs`), for a self-test on devices that have no PyTorch."""
    hop = variants[""].audio.hop
    start = len(heard) // 4 // hop * hop  # amid speech, not in its lead-in
    wave = heard[start : start + min(REFERENCE_HOPS * hop, len(heard))]
    batch = {"wave": wave[None]}
    for variant, enhancer in variants.items():
        enhanced, _ = enhancer(torch.from_numpy(wave)[None], enhancer.initial_state())
        batch[f"enhanced_{variant}" if variant else "enhanced"] = enhanced.numpy()
    digest = write_batches(
        folder / "reference.npz", [batch], {"sound": sound, "start_sample": start, "runtime": "pytorch"}
    )
    return {"file": "reference.npz", "digest": digest}
