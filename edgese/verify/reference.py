"""PyTorch's answers to all that a bundle's graphs are asked: what `prove` holds them against."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from edgese.audio import Wave
from edgese.graphs.segments import Segments
from edgese.metrics.pairs import Recording
from edgese.metrics.scores import WaveError, pesq_wb, stoi, wave_error
from edgese.model.enhancer import WaveformEnhancer
from edgese.verify.checks import seam_samples
from edgese.verify.limits import VERIFICATION_HOPS
from edgese.verify.truth import Truth, float64_truth, in_segments, long_sound, pytorch_truth
from export.bundle import Graph

TENTHS = 10


@dataclasses.dataclass(frozen=True)
class Reference:
    """PyTorch's outputs for all that the graphs of one variant are run on."""

    enhancer: WaveformEnhancer
    truth: Truth  # float32, the long stream
    exact: Truth  # float64, its first 3,000 hops
    own_error: WaveError  # of float32 from float64
    enhanced: tuple[Wave, ...]  # each recording, aligned with it
    scores: tuple[tuple[float, float], ...]  # PESQ-WB and STOI of each
    segments: Segments | None  # of a network that is not causal, which takes each recording in these
    whole: Wave | None  # what it makes of the long stream's beginning in one pass

    @classmethod
    def of(
        cls,
        enhancer: WaveformEnhancer,
        graphs: Sequence[Graph],
        recordings: Sequence[Recording],
        minutes: float,
        segments: Segments | None,
    ) -> Reference:
        audio = enhancer.audio
        multiple = math.lcm(*(graph.block for graph in graphs))

        def whole(n_hops: float) -> int:
            """Samples of at least `n_hops` hops, in whole blocks of every size."""
            return math.ceil(n_hops / multiple) * multiple * audio.hop

        n_seams = 0 if segments is None else seam_samples(segments) // audio.hop
        n_long = whole(max(minutes * 60_000 / audio.hop_ms, VERIFICATION_HOPS, n_seams))
        once = long_sound([recording.noisy for recording in recordings], -(-n_long // TENTHS))
        truth = pytorch_truth(enhancer, np.tile(once, TENTHS)[:n_long], multiple)
        exact = float64_truth(enhancer, truth.wave[: whole(VERIFICATION_HOPS)], multiple)
        enhanced = tuple(enhanced_by_pytorch(enhancer, recording.noisy, segments) for recording in recordings)
        scores = tuple(
            (pesq_wb(recording.clean, wave), stoi(recording.clean, wave))
            for recording, wave in zip(recordings, enhanced, strict=True)
        )
        own_error = wave_error(exact.enhanced, truth.enhanced[: len(exact.enhanced)])
        in_one_pass = None
        if segments is not None:
            in_one_pass = enhanced_by_pytorch(enhancer, truth.wave[: seam_samples(segments)], None)
        return cls(enhancer, truth, exact, own_error, enhanced, scores, segments, in_one_pass)


@torch.no_grad()
def enhanced_by_pytorch(enhancer: WaveformEnhancer, wave: Wave, segments: Segments | None) -> Wave:
    """PyTorch's output for a recording, aligned with it: in overlapped segments, or in one pass."""
    if segments is None:
        enhanced: Wave = enhancer.enhance(torch.from_numpy(wave)[None])[0].numpy()
        return enhanced

    def call(segment: Wave) -> Wave:
        enhanced: Wave = in_segments(enhancer, torch.from_numpy(segment[0]), segments.size).numpy()
        return enhanced[None]

    return segments.recording(wave, call)
