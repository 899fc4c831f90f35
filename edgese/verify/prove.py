"""Verification of a bundle before it is trusted: every graph, in every runtime asked for, against PyTorch.

    verification = prove(Bundle.open(path), runtimes=["onnxruntime"], recordings=recordings(data))
    verification.passed, verification.failures

A graph is streamed for minutes with carried state over speech at several levels (samples, states, drift), compared with
a float64 run of the same network, scored by PESQ and STOI, and tried for what streaming needs: reset, several streams
at once, causality, delay, silence and full scale. The graphs of a bundle must also take over from each other at any
block. What is missing, unequal, not finite or was not run is a failure, never a gap.

A network that is not causal has no stream: its graph is run over minutes of segments, and the seams of overlapped ones
are compared with one pass over the whole recording. What only a stream has is named as not tried (`NOT_OF_SEGMENTS`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calib.batches import read_batches
from edgese.audio import Wave
from edgese.contract import require_contract
from edgese.errors import EdgeseError, VerificationError
from edgese.graphs.audio_facts import audio_facts
from edgese.graphs.form import bundle_enhancer, exported_form
from edgese.graphs.opening import open_graph
from edgese.graphs.plan import plan_of
from edgese.graphs.segments import Segments
from edgese.graphs.streaming import aligned, in_overlapped, run
from edgese.machine.host import describe, tool_versions
from edgese.metrics.difference import TensorError, snr_db, tensor_error
from edgese.metrics.pairs import Recording
from edgese.metrics.scores import packages, pesq_wb, stoi, wave_error
from edgese.model.enhancer import WaveformEnhancer
from edgese.verify import checks as check
from edgese.verify.agreement import judge
from edgese.verify.as_planned import rounded_as_planned
from edgese.verify.drift import horizon_h, projected_db
from edgese.verify.findings import Check, Listener, Proof, Streamed, Verification
from edgese.verify.limits import LIMITS, Limits
from edgese.verify.reference import TENTHS, Reference
from edgese.verify.truth import Truth, in_segments, streamed
from export import ExportError
from export.bundle import Bundle, Graph
from export.manifest import MANIFEST
from runtimes.base import Runtime, RuntimeUnavailable
from runtimes.registry import load_runtime

MINUTES = 10.0  # a state that loses precision shows it within 3,000 hops, 24 s; drift that is slower, in minutes
HALF_BLOCK = 8  # hops at a time
NOT_OF_SEGMENTS = ("reset of the state", "drift", "causality", "delay", "random blocks")


def prove(
    bundle: Bundle,
    *,
    runtimes: Sequence[str] = ("onnxruntime",),
    precisions: Sequence[str] = (),
    recordings: Sequence[Recording],
    minutes: float = MINUTES,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Verification:
    """Verify every graph of a bundle in every runtime.

    Args:
        precisions: only graphs in these; none: all.
        minutes: length of the long stream; never less than 3,000 hops.
        on_progress: called with the steps done, those in all, and the name of the next.

    Raises:
        CheckpointError: the bundle's weights are missing or broken.
        VerificationError: the network itself is not what every graph of it must be (contract.py).
        EdgeseError: a metric's package is missing, a recording cannot be scored, or the bundle has no such graph.
        RuntimeUnavailable: a runtime that was asked for is unknown or not installed.
    """
    if not recordings or not runtimes:
        raise VerificationError("found no recordings or no runtimes, wanted at least one of each")
    packages()
    for runtime in runtimes:
        load_runtime(runtime)
    offered = dict.fromkeys(graph.precision for graph in bundle.graphs)
    lacking = [precision for precision in precisions if precision not in offered]
    if lacking:
        raise VerificationError(
            f"{bundle.path}: no graph in {', '.join(lacking)}; this bundle has {', '.join(offered)}"
        )
    tried = [graph for graph in bundle.graphs if graph.precision in (precisions or offered)]
    segments = Segments.of(bundle.manifest)
    tell = _Steps(on_progress, len(tried) * len(runtimes), {graph.variant for graph in tried})
    proofs: list[Proof] = []
    together: list[Check] = []
    pytorch: dict[str, Wave] = {}
    for variant in dict.fromkeys(graph.variant for graph in tried):
        graphs = [graph for graph in tried if graph.variant == variant]
        tell(f"PyTorch{f' with {variant}' if variant else ''}, float32 and float64")
        enhancer = bundle_enhancer(bundle, variant)
        require_contract(enhancer)
        reference = Reference.of(enhancer, graphs, recordings, minutes, segments)
        if not pytorch:
            together += _as_declared(segments, reference.enhancer)
        pytorch[variant] = reference.enhanced[0]
        for runtime in runtimes:
            for graph in graphs:
                tell(f"{graph.file} in {runtime}")
                proofs.append(_prove_graph(bundle, graph, runtime, reference, recordings))
            if segments is None:
                together += _together(bundle, graphs, runtime, reference.truth)
        for precision in dict.fromkeys(graph.precision for graph in graphs if graph.precision in LIMITS):
            together += _half_in_pytorch(bundle, precision, variant, reference)
    return Verification(
        *(bundle, minutes, tuple(together), tuple(proofs), tuple(recordings), pytorch),
        provenance=_provenance(bundle, recordings),
        not_tried=() if segments is None else NOT_OF_SEGMENTS,
    )


class _Steps:
    """Counter of the steps: PyTorch's output for each variant, then each graph in each runtime."""

    def __init__(self, on_progress: Callable[[int, int, str], None] | None, n_proofs: int, variants: set[str]) -> None:
        self.on_progress, self.total, self.done = on_progress, n_proofs + len(variants), 0

    def __call__(self, what: str) -> None:
        if self.on_progress is not None:
            self.on_progress(self.done, self.total, what)
        self.done += 1


# What is compared with


def _as_declared(segments: Segments | None, enhancer: WaveformEnhancer) -> list[Check]:
    """Check that manifest and network agree on being causal; nothing where both say that it is."""
    if segments is None and enhancer.network.causal:
        return []
    found, wanted = ("causal" if causal else "not causal" for causal in (segments is None, enhancer.network.causal))
    return [Check("causal or not", found == wanted, f"{found} in the manifest", f"{wanted}, as the network is")]


# One graph in one runtime


def _prove_graph(
    bundle: Bundle, graph: Graph, runtime: str, reference: Reference, recordings: Sequence[Recording]
) -> Proof:
    if graph.precision not in LIMITS:
        wanted = f"one with limits: {', '.join(LIMITS)}"
        return Proof(graph, runtime, (Check("precision", False, graph.precision, wanted),))
    limits, wave = LIMITS[graph.precision], reference.truth.wave
    checks: list[Check] = []
    streamed: Streamed | None = None
    listeners: tuple[Listener, ...] = ()
    excerpt: Wave | None = None
    try:
        with open_graph(bundle, graph, runtime) as opened:
            checks.append(check.interface(opened, graph))
            if checks[0].passed:
                streamed, found = _stream_long(opened, graph, reference, limits)
                listeners, excerpt = _score_recordings(opened, graph, reference, recordings)
                checks += [*found, *_score_checks(listeners, limits)]
                if reference.segments is None or reference.whole is None:
                    overlap = audio_facts(bundle).overlap_samples
                    checks += [
                        check.reset(opened, graph, wave),
                        check.causality(opened, graph, wave),
                        check.delay(opened, graph, recordings[0].noisy, overlap),
                    ]
                else:
                    checks.append(check.seams(opened, graph, reference.segments, wave, reference.whole))
                checks += [
                    check.streams_at_once(opened, graph, wave, limits),
                    check.extremes(opened, graph),
                    rounded_as_planned(bundle, graph, reference.enhancer),
                    check.reference_vectors(opened, graph, *_reference_vectors(bundle, graph.variant), limits),
                ]
    except RuntimeUnavailable as error:
        checks.append(Check("runs", False, str(error), "no error"))
    return Proof(graph, runtime, tuple(checks), streamed, listeners, excerpt)


def _together(bundle: Bundle, graphs: Sequence[Graph], runtime: str, truth: Truth) -> list[Check]:
    """Checks that the graphs of each precision go on from each other's states."""
    checks = []
    for precision in dict.fromkeys(graph.precision for graph in graphs if graph.precision in LIMITS):
        same = [graph for graph in graphs if graph.precision == precision]
        try:
            with contextlib.ExitStack() as stack:
                opened = [(graph, stack.enter_context(open_graph(bundle, graph, runtime))) for graph in same]
                found = check.taking_over(opened, truth, LIMITS[precision])
        except RuntimeUnavailable as error:
            found = Check("random blocks", False, str(error), "no error")
        name = " ".join(filter(None, (found.name, "of", precision, same[0].variant, "in", runtime)))
        checks.append(dataclasses.replace(found, name=name))
    return checks


def _half_in_pytorch(bundle: Bundle, precision: str, variant: str, reference: Reference) -> list[Check]:
    """Check of a precision's half-precision products in PyTorch over 3,000 hops, operands and results rounded.

    ONNX Runtime and OpenVINO compute float16 in float32 on most CPUs: there, only the weights are rounded, and what is
    too large for float16 is not found.
    """
    name = " ".join(filter(None, ("half precision of", precision, variant, "in PyTorch")))
    try:
        half = plan_of(bundle, precision).half
    except ExportError as error:
        return [Check(name, False, str(error), "a plan")]
    if not half:
        return []
    enhancer, limits = reference.enhancer, LIMITS[precision]
    wave, wanted = reference.exact.wave, reference.truth.enhanced[: len(reference.exact.wave)]
    sound = torch.from_numpy(wave)
    with torch.no_grad(), exported_form(enhancer, half):
        if reference.segments is None:
            enhanced, _ = streamed(enhancer, sound, HALF_BLOCK * enhancer.audio.hop, enhancer.initial_state())
        else:
            enhanced = in_segments(enhancer, sound, reference.segments.size)
    ratio_db = snr_db(wanted, enhanced.numpy())
    found = f"SNR {ratio_db:.1f} dB over {len(wave) // enhancer.audio.hop:,} hops"
    return [Check(name, ratio_db >= limits.snr_db, found, f"SNR >= {limits.snr_db:.0f} dB")]


def _reference_vectors(bundle: Bundle, variant: str) -> tuple[Wave, Wave]:
    """Input and output that a bundle keeps for self-tests on devices."""
    reference = bundle.manifest["reference"]
    (batch,) = read_batches(bundle.file(reference["file"]), reference["digest"]).batches
    return batch["wave"][0], batch[f"enhanced_{variant}" if variant else "enhanced"][0]


def _stream_long(opened: Runtime, graph: Graph, reference: Reference, limits: Limits) -> tuple[Streamed, list[Check]]:
    truth, exact, audio = reference.truth, reference.exact, reference.enhancer.audio
    stream = opened.stream(graph.states, streams=1)
    took: list[float] = []
    first = run(stream, graph, exact.wave, took)
    states_float64 = stream.states
    enhanced = np.concatenate([first, run(stream, graph, truth.wave[len(exact.wave) :], took)])
    states = stream.states
    result = judge(graph, opened.name, truth, enhanced, states)
    tenths_db = [
        snr_db(wanted, found)
        for wanted, found in zip(np.array_split(truth.enhanced, TENTHS), np.array_split(enhanced, TENTHS), strict=True)
    ]
    seconds = len(truth.wave) / audio.sample_rate_hz
    found = Streamed(
        n_hops=result.n_hops,
        tensors=_tensor_errors(truth, enhanced, states),
        tensors_float64=_tensor_errors(exact, first, states_float64),
        wave=wave_error(truth.enhanced, enhanced),
        wave_float64=wave_error(exact.enhanced, first),
        pytorch_float64=reference.own_error,
        tenths_db=tuple(tenths_db),
        after_hours_db=projected_db(tenths_db, seconds),
        difference_dbfs=_levels_dbfs(truth.enhanced - enhanced, audio.sample_rate_hz),
        call_s=np.array(took),
    )
    n_bad = sum(error.n_bad for error in (*found.tensors, *found.tensors_float64))
    snr = f"SNR >= {limits.snr_db:.0f} dB"
    length = f"{result.n_hops:,} hops" if states else f"{result.n_hops // graph.block:,} segments"
    of_states = f", states within {check.bound(limits.state_relative)} of their range" if states else ""
    drift = Check(
        "drift",
        min(*tenths_db, found.after_hours_db) >= limits.snr_db,
        f"SNR {tenths_db[0]:.1f} dB in the first tenth, {min(tenths_db):.1f} in the worst, {tenths_db[-1]:.1f} in the "
        f"last; after {horizon_h(seconds):.2g} hours {found.after_hours_db:.1f}, projected",
        f"{snr} in every tenth and after {horizon_h(seconds):.2g} hours",
    )
    return found, [
        Check(
            "agrees with PyTorch",
            result.passed,
            "; ".join(result.failures) or f"SNR {result.snr_db:.1f} dB, samples within {result.max_abs:.1e}",
            f"{snr}, samples within {check.bound(limits.max_abs)}{of_states}, over {length}",
        ),
        Check(
            "agrees with float64",
            found.wave_float64.snr_db >= limits.snr_db,
            f"SNR {found.wave_float64.snr_db:.1f} dB (PyTorch itself {reference.own_error.snr_db:.1f} dB)",
            f"{snr} over {len(first) // audio.hop:,} hops",
        ),
        Check("NaN and Inf", n_bad == 0, f"{n_bad} values", "none in outputs and states"),
        *([drift] if reference.segments is None else []),
    ]


def _tensor_errors(truth: Truth, enhanced: Wave, states: Mapping[str, NDArray[Any]]) -> tuple[TensorError, ...]:
    pairs = {"enhanced": (truth.enhanced, enhanced)} | {name: (s, states[name]) for name, s in truth.states.items()}
    return tuple(tensor_error(name, wanted, found) for name, (wanted, found) in pairs.items())


def _score_recordings(
    opened: Runtime, graph: Graph, reference: Reference, recordings: Sequence[Recording]
) -> tuple[tuple[Listener, ...], Wave]:
    overlap, segments = reference.enhancer.audio.overlap, reference.segments
    waves = [
        aligned(opened, graph, recording.noisy, overlap)
        if segments is None
        else in_overlapped(opened, graph, recording.noisy, segments)
        for recording in recordings
    ]
    listeners = []
    for recording, wave, (quality, clearness) in zip(recordings, waves, reference.scores, strict=True):
        try:
            found = pesq_wb(recording.clean, wave), stoi(recording.clean, wave)
        except EdgeseError:  # silence, or NaN: PyTorch's output of the same recording could be scored
            found = math.nan, math.nan
        listeners.append(Listener(recording.name, quality, found[0], clearness, found[1]))
    return tuple(listeners), waves[0]


def _score_checks(listeners: Sequence[Listener], limits: Limits) -> list[Check]:
    losses = {
        "PESQ-WB": ([listener.pesq_pytorch - listener.pesq for listener in listeners], limits.pesq_loss),
        "STOI": ([listener.stoi_pytorch - listener.stoi for listener in listeners], limits.stoi_loss),
    }
    return [
        Check(
            f"{name} against clean",
            bool(np.mean(lost) <= limit),
            f"{np.mean(lost):+.4f} lost to PyTorch, at most {max(lost):+.4f} in a file",
            f"at most {limit:g} in the mean of {len(lost)} file{'s' if len(lost) != 1 else ''}",
        )
        for name, (lost, limit) in losses.items()
    ]


def _levels_dbfs(difference: Wave, rate_hz: int) -> NDArray[np.float64]:
    seconds = difference[: len(difference) // rate_hz * rate_hz].astype(np.float64).reshape(-1, rate_hz)
    return np.asarray(10 * np.log10(np.maximum((seconds**2).mean(axis=1), 1e-20)))


# Words and plain values


def _provenance(bundle: Bundle, recordings: Sequence[Recording]) -> dict[str, Any]:
    return {
        "bundle": str(bundle.manifest["name"]),
        "manifest_sha256": hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest(),
        "files": dict(bundle.manifest["files"]),
        "exported_with": dict(bundle.manifest["tools"]),
        "verified_with": tool_versions() | packages(),
        "recordings": {recording.name: recording.sha256 for recording in recordings},
        "machine": {name: found for name, found in describe().entry().items() if found and name != "versions"},
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
