"""Checks of open graphs for streaming: interface, reset, several streams, causality, delay, extremes, random blocks.

For graphs of segments: their seams. Each gives a `Check`: what was found, what was wanted, and whether it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.graphs.segments import Segments
from edgese.graphs.streaming import in_overlapped, run, samples
from edgese.metrics.difference import snr_db
from edgese.metrics.scores import wave_error
from edgese.verify.findings import Check
from edgese.verify.limits import Limits
from edgese.verify.truth import Truth
from export.bundle import Graph
from runtimes.base import Runtime

WARM_UP_HOPS = 64  # after them, a network's state is no longer that of its start
STREAMS = 3
SPLIT_HOPS = 1000
SEED = 0

SEAMS = 4
SEAM_SAMPLES = 512  # 32 ms: over so many a difference at a seam is averaged
# A network that looks 16 frames to either side: -123 dB, without an overlap -6. The shipped one made to look ahead
# remembers for seconds: 0 to 6 dB more near the seams than far from them (benchmarks/segment_seams.py).
SEAM_DB = -40.0  # over the level of the sound: inaudible
SEAM_MARGIN_DB = 10.0
NEAR = 4096  # samples, 256 ms: so near a seam a difference is the seam's; twice as far away it is not


def interface(opened: Runtime, graph: Graph) -> Check:
    """Check that names, shapes and types of all inputs and outputs are the manifest's."""

    def described(specs: Sequence[Any]) -> dict[str, str]:
        return {spec.name: f"{tuple(spec.shape)} {spec.dtype}" for spec in specs}

    problems = [
        f"{kind} {name} is {found.get(name, 'missing')}, not {wanted.get(name, 'known')}"
        for kind, found, wanted in (
            ("input", described(opened.inputs), described(graph.inputs)),
            ("output", described(opened.outputs), described(graph.outputs)),
        )
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    n_tensors = len(graph.inputs) + len(graph.outputs)
    return Check("inputs and outputs", not problems, "; ".join(problems) or f"all {n_tensors}", "the manifest's")


def reset(opened: Runtime, graph: Graph, wave: Wave) -> Check:
    """Check that a stream that is reset gives the same bits again, and one that is not gives others."""
    part = wave[: samples(graph, WARM_UP_HOPS)]
    stream = opened.stream(graph.states, streams=1)
    first, went_on = (run(stream, graph, part) for _ in range(2))
    stream.reset()
    again = run(stream, graph, part)
    found = "the same" if np.array_equal(first, again) else f"samples up to {np.abs(first - again).max():.1e} apart"
    if np.array_equal(first, went_on):
        found = "a graph that carries no state"
    return Check("reset of the state", found == "the same", found, "the same samples again, others without a reset")


def streams_at_once(opened: Runtime, graph: Graph, wave: Wave, limits: Limits) -> Check:
    """Check that streams in one call do not affect each other."""
    length, size = samples(graph, WARM_UP_HOPS), samples(graph, graph.block)
    starts = [len(wave) // STREAMS * at // size * size for at in range(STREAMS)]
    parts = np.stack([wave[start : start + length] for start in starts])
    stream = opened.stream(graph.states, streams=STREAMS)
    calls = [np.ascontiguousarray(parts[:, start : start + size]) for start in range(0, length, size)]
    together = np.concatenate([stream({"wave": call})["enhanced"] for call in calls], axis=1)
    alone = np.stack([run(opened.stream(graph.states, streams=1), graph, part) for part in parts])
    worst_db = min(snr_db(one, of_several) for one, of_several in zip(alone, together, strict=True))
    distinct = not np.array_equal(alone[0], alone[1])
    return Check(
        f"{STREAMS} streams at once",
        worst_db >= limits.snr_db and distinct,
        f"SNR {worst_db:.1f} dB" if distinct else "the same output for different sound",
        f"each as if alone: SNR >= {limits.snr_db:.0f} dB",
    )


def causality(opened: Runtime, graph: Graph, wave: Wave) -> Check:
    """Check that a changed first sample of a hop changes no bit before that hop, and something after it."""
    n_before = -(-WARM_UP_HOPS // graph.block) * graph.block
    part = wave[: (n_before + 4 * graph.block) * samples(graph, 1)]
    before = run(opened.stream(graph.states, streams=1), graph, part)
    places = sorted({place % graph.block for place in (0, 1, graph.block // 2, graph.block - 1)})
    problems = []
    for place in places:
        at = (n_before + graph.block + place) * samples(graph, 1)
        changed = part.copy()
        changed[at] += np.float32(0.25)
        different = np.flatnonzero(before != run(opened.stream(graph.states, streams=1), graph, changed))
        if not len(different):
            problems.append(f"nothing follows a change in hop {place} of a block")
        elif different[0] < at:
            problems.append(f"a change in hop {place} of a block shows {at - different[0]} samples before it")
    return Check(
        "causality",
        not problems,
        "; ".join(problems) or f"so in the hops {', '.join(map(str, places))} of a block",
        "a changed sample changes no bit before its hop, and some after it",
    )


def delay(opened: Runtime, graph: Graph, noisy: Wave, wanted: int) -> Check:
    """Check the delay of output behind input, the lag of their largest cross-correlation, against the manifest's."""
    size = samples(graph, graph.block)
    part = noisy[: len(noisy) // size * size]
    output = run(opened.stream(graph.states, streams=1), graph, part)
    n_fft = 2 * len(part)
    correlation = np.fft.irfft(np.fft.rfft(output, n_fft) * np.conj(np.fft.rfft(part, n_fft)))
    lag = int(np.argmax(correlation))
    lag -= n_fft if lag > len(part) else 0
    return Check("delay", lag == wanted, f"{lag} samples", f"{wanted} samples")


def extremes(opened: Runtime, graph: Graph) -> Check:
    """Check that silence gives silence, and noise at full scale and silence after it finite samples and states."""
    length = samples(graph, WARM_UP_HOPS)
    silence = np.zeros(length, np.float32)
    noise = np.sign(np.random.default_rng(SEED).standard_normal(length)).astype(np.float32)
    stream = opened.stream(graph.states, streams=1)
    silent, loud, after = (run(stream, graph, part) for part in (silence, noise, silence))
    finite = all(np.isfinite(array).all() for array in (silent, loud, after, *stream.states.values()))
    return Check(
        "silence and full scale",
        finite and not silent.any() and bool(loud.any()),
        f"peaks {np.abs(silent).max():.1g} and {np.abs(loud).max():.2g}" if finite else "NaN or Inf",
        "silence from silence, sound from sound, all finite, and so the states",
    )


def reference_vectors(opened: Runtime, graph: Graph, wave: Wave, enhanced: Wave, limits: Limits) -> Check:
    """Check a graph against the bundle's golden vectors, which devices without PyTorch test themselves with."""
    size = samples(graph, graph.block)
    length = len(wave) // size * size
    found = run(opened.stream(graph.states, streams=1), graph, wave[:length])
    ratio_db = snr_db(enhanced[:length], found) if len(enhanced) == len(wave) and length else math.nan
    return Check(
        "reference vectors",
        ratio_db >= limits.snr_db and bool(enhanced.any()),
        f"SNR {ratio_db:.1f} dB",
        f"SNR >= {limits.snr_db:.0f} dB",
    )


def taking_over(opened: Sequence[tuple[Graph, Runtime]], truth: Truth, limits: Limits) -> Check:
    """Check blocks of random sizes: each call is made by another graph, which goes on from the last one's states.

    Args:
        opened: the graphs of one precision and variant, each open.
    """
    blocks = {graph.block: graph for graph, _ in opened}
    streams = {graph.block: runtime.stream(graph.states, streams=1) for graph, runtime in opened}
    hop = samples(opened[0][0], 1)
    rng = np.random.default_rng(SEED)
    pieces: list[Wave] = []
    states: Mapping[str, NDArray[Any]] | None = None
    done = 0
    while done < SPLIT_HOPS and (done + max(blocks)) * hop <= len(truth.wave):
        block = int(rng.choice(list(blocks)))
        stream = streams[block]
        stream.reset()
        if states is not None:
            stream.load(states)
        pieces.append(run(stream, blocks[block], truth.wave[done * hop : (done + block) * hop]))
        states, done = stream.states, done + block
    enhanced = np.concatenate(pieces)
    error = wave_error(truth.enhanced[: len(enhanced)], enhanced)
    return Check(
        "random blocks",
        error.snr_db >= limits.snr_db and (limits.max_abs is None or error.max_abs <= limits.max_abs),
        f"SNR {error.snr_db:.1f} dB, samples within {error.max_abs:.1e}",
        f"over {len(pieces)} calls of {', '.join(map(str, sorted(blocks)))} hops, states handed on: as one stream, "
        f"SNR >= {limits.snr_db:.0f} dB, samples within {bound(limits.max_abs)}",
    )


def seam_samples(segments: Segments) -> int:
    """Samples of a sound that has `SEAMS` seams, the last one with a segment that is shifted back."""
    return segments.size + SEAMS * segments.advance - segments.advance // (2 * segments.hop) * segments.hop


def seams(opened: Runtime, graph: Graph, segments: Segments, wave: Wave, whole: Wave) -> Check:
    """Check that overlapped segments give what one pass over the whole recording gives, at their seams above all.

    A network that remembers for seconds, or whose norms span a segment, gives something else in every segment, far from
    the seams as well: that is its nature, and no fault of theirs, as long as they are not much worse than the rest.

    Args:
        wave: sound that begins with what `whole` was made of.
        whole: what PyTorch makes of `seam_samples` in one pass, aligned with it.
    """
    found = in_overlapped(opened, graph, wave[: len(whole)], segments)
    difference = np.square(found.astype(np.float64) - whole)
    energy = float(np.square(whole.astype(np.float64)).mean())
    places = segments.seams(len(whole))
    distance = np.abs(np.arange(len(whole))[:, None] - np.array(places)).min(axis=1)
    near, far = distance < NEAR, distance > 2 * NEAR
    windows = np.convolve(difference, np.full(SEAM_SAMPLES, 1 / SEAM_SAMPLES), "same")

    def level_db(noise: float) -> float:
        return 10 * math.log10(max(noise, 1e-30) / energy) if energy and math.isfinite(noise) else math.nan

    worst_db, near_db = level_db(float(windows[near].max())), level_db(float(difference[near].mean()))
    far_db = level_db(float(difference[far].mean())) if far.any() else -math.inf
    return Check(
        "seams",
        len(places) == SEAMS and (worst_db <= SEAM_DB or near_db <= far_db + SEAM_MARGIN_DB),  # NaN fails
        f"{worst_db:.1f} dB at the worst of {len(places)} seams, {near_db:.1f} near, {far_db:.1f} far from them",
        f"the difference from one whole pass, over the sound: {SEAM_DB:.0f} dB at the worst of {SEAMS} seams, or at "
        f"most {SEAM_MARGIN_DB:.0f} dB more near them than far from them",
    )


def bound(value: float | None) -> str:
    """Words for a limit: "any bound" for None."""
    return "any bound" if value is None else f"{value:.0e}"
