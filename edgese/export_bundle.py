"""Export of weights into a verified bundle: graphs for each block size, verification, reference vectors, model card."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from calib.batches import Batches, write_batches
from edgese.audio import Samples
from edgese.audio.reader import read_wave
from edgese.config import AudioConfig
from edgese.contract import require_contract
from edgese.errors import ConfigError, VerificationError
from edgese.graphs.audio_facts import open_bundle
from edgese.graphs.facts import network_facts
from edgese.graphs.form import with_variant
from edgese.graphs.opening import graph_metadata
from edgese.graphs.plan import Plan
from edgese.graphs.precision import Precision
from edgese.graphs.segments import MAX_SEGMENT_HOPS, MIN_SEGMENT_HOPS, SEGMENT_HOPS
from edgese.graphs.write import graph_of, write_graph
from edgese.machine.host import tool_versions
from edgese.model.checkpoint import load_enhancer, save_weights
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.registry import build
from edgese.native.artefact import STORED, graph_artefact, weights_file, write_weights
from edgese.native.project import write_project
from edgese.networks import MODELS, MbsConfig
from edgese.samples import NOISY
from edgese.verify.agreement import Result, verify_graph
from edgese.verify.limits import LIMITS, VERIFICATION_HOPS
from edgese.verify.truth import long_sound, pytorch_truth
from export.bundle import ATTRIBUTION, MODEL_CARD, WEIGHTS, Bundle, seal_bundle, stage_bundle
from export.weights import share_weights

DEFAULT_BLOCKS = (1, 4, 8, 16)
MAX_BLOCK = 32  # the unrolled graph grows with the block; TensorRT builds 32 in 1 s, 64 in 3 s, 128 in 16 s
PROJECT_HOPS = 750  # 6 s: what a C project is verified over before it is written
REFERENCE_HOPS = 96  # 0.77 s: of a whole number of blocks of 1, 2, 3, 4, 6, 8, 12, 16, 24 and 32

_UNTRAINED_CARD = """\
# {name}

UNTRAINED: {network} with random weights of seed 0, as it is before training. It enhances nothing. It was exported to
measure how fast the network is, before anyone trains it; the graphs agree with PyTorch, their sound means nothing.
"""


@dataclasses.dataclass(frozen=True)
class Export:
    """Result of an export; `bundle` is None where verification failed: not published, the files are kept in `path`."""

    path: Path
    bundle: Bundle | None
    results: tuple[Result, ...]


def export_bundle(
    weights: Path | WaveformEnhancer,
    path: Path,
    *,
    name: str,
    trained: bool = True,
    blocks: Sequence[int] | None = None,
    segment_hops: int | None = None,
    sound: Path = NOISY,
    model_card: Path | None = None,
    attribution: Path | None = None,
    pcs: bool = False,
    native: bool = False,
    plans: Mapping[Precision, Plan] | None = None,
    calibration: Batches | None = None,
    replace: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Export:
    """Write, verify and seal a bundle; one that fails is not published and kept as `<path>.unverified`.

    Args:
        weights: .safetensors, or a checkpoint of `edgese train`; or the enhancer that they were loaded to.
        trained: False for a network with random weights (`untrained`); the bundle and its model card then say so.
        blocks: hops that a call of each graph takes; None: `DEFAULT_BLOCKS`. For causal networks.
        segment_hops: of the one graph that a network has which is not causal; None: 512.
        sound: speech to verify with.
        model_card, attribution: files that travel with the bundle: what it is, and whose recordings it was trained on.
        pcs: add a second graph for each block, with perceptual contrast stretching (edgese.model.pcs).
        native: add the C library's weights file for each precision (edgese.native), verified as the graphs are.
        plans: add graphs in these precisions (`edgese.quantize.search.make_plans`) to those in float32.
        calibration: the batches that plans with INT8 come from; their provenance travels with the bundle.
        on_progress: called with the name of each step.

    Raises:
        ConfigError: a block size that cannot be; blocks for a network that looks ahead, segments for a causal one.
        CheckpointError, AudioError, ExportError: weights, sound or bundle cannot be read or written.
    """
    report = on_progress or (lambda step: None)
    enhancer = load_enhancer(weights) if isinstance(weights, Path) else weights
    blocks = _blocks(enhancer, blocks, segment_hops)
    multiple = int(np.lcm.reduce(blocks))
    require_contract(enhancer)
    config = enhancer.network.config
    if native and not isinstance(config, MbsConfig):
        raise ConfigError(f"--native: found {config.name}, wanted mbs-net: the C library runs no other")
    plans = {Precision.FP32: Plan(), **(plans or {})}
    _require_calibration(plans, calibration)
    variants = {variant: with_variant(enhancer, variant) for variant in ("", *(("pcs",) if pcs else ()))}
    wave = long_sound([read_wave(sound, enhancer.audio.sample_rate_hz)], VERIFICATION_HOPS * enhancer.audio.hop)
    for given, wanted in ((model_card, "a model card"), (attribution, "the sources of the training data")):
        if given and not given.is_file():
            raise ConfigError(f"{given}: found no such file, wanted {wanted}")
    with contextlib.ExitStack() as stack:
        staging = stack.enter_context(stage_bundle(path, replace=replace))
        save_weights(staging / WEIGHTS, enhancer, enhancer.state_dict())
        digest = hashlib.sha256((staging / WEIGHTS).read_bytes()).hexdigest()
        graphs = []
        for precision, plan in plans.items():
            kinds = [graph_of(enhancer, block, precision.value, variant) for variant in variants for block in blocks]
            for graph in kinds:
                report(f"{graph.file}: to ONNX")
                metadata = graph_metadata(name, digest, graph, plan.calibration)
                write_graph(variants[graph.variant], graph, staging / graph.file, plan, metadata)
            share_weights([staging / graph.file for graph in kinds], staging / f"weights.{precision.value}.bin")
            graphs += kinds
        truths = {variant: pytorch_truth(variants[variant], wave, multiple) for variant in variants}
        results = []
        for graph in graphs:
            report(f"{graph.file}: against PyTorch, {VERIFICATION_HOPS} hops")
            results.append(verify_graph(staging, graph, truths[graph.variant]))
        files = {}
        for precision in plans if native else ():
            stored = STORED[precision.value]
            files[stored] = weights_file(stored)
            write_weights(staging / files[stored], staging / WEIGHTS, name, digest, stored)
            for variant, truth in truths.items():
                graph = graph_of(enhancer, blocks[0], precision.value, variant)
                report(f"{files[stored]}: against PyTorch, {VERIFICATION_HOPS} hops")
                with graph_artefact(staging / files[stored], graph, {}) as artefact:
                    results.append(verify_graph(staging, graph, truth, runtime="native", artefact=artefact))
        reference = _write_reference(variants, staging, sound.name, truths[""].wave, blocks[0])
        if model_card:
            shutil.copyfile(model_card, staging / MODEL_CARD)
        elif not trained:
            (staging / MODEL_CARD).write_text(_UNTRAINED_CARD.format(name=name, network=enhancer.network.config.name))
        if attribution:
            shutil.copyfile(attribution, staging / ATTRIBUTION)
        n_wanted = len(plans) * len(variants) * (len(blocks) + native)
        passed = len(results) == n_wanted and all(result.passed for result in results)
        manifest = {
            "name": name,
            **({} if trained else {"trained": False}),
            **network_facts(enhancer, blocks[0]),
            "graphs": graphs,
            **({"native": files} if native else {}),
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
    return Export(landed, open_bundle(path) if passed else None, tuple(results))


def export_c(
    enhancer: WaveformEnhancer,
    folder: Path,
    *,
    name: str,
    precision: Precision = Precision.FP32,
    sound: Path = NOISY,
    replace: bool = False,
) -> Result:
    """Write the C project of a network, if the library agrees with PyTorch over six seconds of the sound.

    Args:
        precision: how the weights are held.

    Raises:
        CheckpointError, AudioError, OutputError: weights, sound or folder cannot be read or written.
        RuntimeUnavailable: no C compiler.
        VerificationError: the library does not agree with PyTorch; nothing is written.
    """
    stored, hop = STORED[precision.value], enhancer.audio.hop
    wave = long_sound([read_wave(sound, enhancer.audio.sample_rate_hz)], PROJECT_HOPS * hop)
    truth = pytorch_truth(enhancer, wave, 1)
    with tempfile.TemporaryDirectory(prefix="edgese-") as place:
        source, weights = Path(place) / WEIGHTS, Path(place) / weights_file(stored)
        save_weights(source, enhancer, enhancer.state_dict())
        write_weights(weights, source, name, hashlib.sha256(source.read_bytes()).hexdigest(), stored)
        graph = graph_of(enhancer, 1, precision.value)
        with graph_artefact(weights, graph, {}) as artefact:
            result = verify_graph(weights.parent, graph, truth, runtime="native", artefact=artefact)
        if not result.passed:
            raise VerificationError(f"{folder}: not written; in C, the network differs: {', '.join(result.failures)}")
        n_samples, limit = REFERENCE_HOPS * hop, LIMITS[precision.value].snr_db
        vectors = wave[:n_samples], pytorch_truth(enhancer, wave[:n_samples], 1).enhanced
        write_project(folder, weights.read_bytes(), *vectors, limit, replace=replace)
    return result


def untrained(model: str) -> WaveformEnhancer:
    """Network of that name as it is before training, weights from seed 0: to measure how fast it will be.

    Raises:
        ConfigError: no model has that name, or its code cannot be loaded.
    """
    if model not in MODELS:
        raise ConfigError(f"model: found {model!r}, wanted one of {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(MODELS[model], AudioConfig()).eval()


def _blocks(enhancer: WaveformEnhancer, blocks: Sequence[int] | None, segment_hops: int | None) -> list[int]:
    """Block sizes of the graphs in ascending order, hops; of a network that looks ahead, its one segment."""
    name = enhancer.network.config.name
    if not enhancer.network.causal:
        if blocks is not None:
            raise ConfigError(
                f"--block: {name} looks ahead: no streaming form, no graphs of blocks; it gets one graph of a whole "
                f"segment: choose its length with --segment-hops (default {SEGMENT_HOPS}), or a causal network"
            )
        hops = SEGMENT_HOPS if segment_hops is None else segment_hops
        if not MIN_SEGMENT_HOPS <= hops <= MAX_SEGMENT_HOPS:
            raise ConfigError(f"--segment-hops: found {hops}, wanted {MIN_SEGMENT_HOPS} to {MAX_SEGMENT_HOPS} hops")
        return [hops]
    if segment_hops is not None:
        raise ConfigError(f"--segment-hops: {name} is causal and streams: choose the sizes of its graphs with --block")
    sizes = sorted(set(DEFAULT_BLOCKS if blocks is None else blocks))
    if not sizes or sizes[0] < 1 or sizes[-1] > MAX_BLOCK:
        raise ConfigError(f"--block: found {sizes}, wanted numbers of hops from 1 to {MAX_BLOCK}")
    multiple = int(np.lcm.reduce(sizes))
    if multiple > VERIFICATION_HOPS:
        raise ConfigError(
            f"--block: found {sizes}, whose least common multiple is {multiple}, wanted at most "
            f"{VERIFICATION_HOPS}: all are verified over the same sound; choose powers of two"
        )
    return sizes


def _require_calibration(plans: Mapping[Precision, Plan], calibration: Batches | None) -> None:
    """Check that INT8 plans have ranges, and from the batches that the bundle names."""
    wanted = None if calibration is None else calibration.digest
    for precision, plan in plans.items():
        if precision.quantized and (not plan.ranges or plan.calibration != wanted):
            found = f"the ranges of {len(plan.ranges)} products, from the batches {plan.calibration}"
            raise ConfigError(f"{precision.value}: found {found}, wanted some from {wanted}; quantize it again")


def require_passed(export: Export) -> Bundle:
    """Return the bundle of an export that passed its verification.

    Raises:
        VerificationError: it failed; the message says where the files are kept and what differed.
    """
    if export.bundle is None:
        reasons = "; ".join(
            f"{result.graph}: {', '.join(result.failures)}" for result in export.results if not result.passed
        )
        raise VerificationError(
            f"{export.path}: does not agree with PyTorch; not published, kept under this name. {reasons}"
        )
    return export.bundle


@torch.no_grad()
def _write_reference(
    variants: Mapping[str, WaveformEnhancer], folder: Path, sound: str, verified: Samples, block: int
) -> dict[str, str]:
    """Write an input and PyTorch's output (`enhanced`, `enhanced_pcs`), for a self-test on devices without PyTorch.

    Of a network that is not causal: one segment, of `block` hops.
    """
    hop, n_hops = variants[""].audio.hop, REFERENCE_HOPS if variants[""].network.causal else block
    start = len(verified) // 4 // hop * hop  # amid speech, not in its lead-in
    wave = verified[start : start + min(n_hops * hop, len(verified))]
    batch = {"wave": wave[None]}
    for variant, enhancer in variants.items():
        enhanced = pytorch_truth(enhancer, wave, n_hops if not enhancer.network.causal else 1).enhanced
        batch[f"enhanced_{variant}" if variant else "enhanced"] = enhanced[None]
    digest = write_batches(
        folder / "reference.npz", [batch], {"sound": sound, "start_sample": start, "runtime": "pytorch"}
    )
    return {"file": "reference.npz", "digest": digest}
