"""Facts of a network for manifests and tables: latency, parameters, operations."""

from __future__ import annotations

from typing import Any

from edgese.config import to_dict
from edgese.graphs.form import exported_form
from edgese.graphs.segments import SEGMENT_HOPS, Segments
from edgese.model.cost import macs_per_frame, parameters
from edgese.model.enhancer import WaveformEnhancer


def network_facts(enhancer: WaveformEnhancer, segment_hops: int = SEGMENT_HOPS) -> dict[str, Any]:
    """Facts of a network: model, causal or not, audio, latency, parameters and MACs of each part.

    Args:
        segment_hops: of a network that is not causal; its latency is the whole segment.
    """
    audio, causal = enhancer.audio, enhancer.network.causal
    segments = None if causal else Segments.of_hops(audio.hop, segment_hops)
    n_late = audio.latency_samples if segments is None else segments.size
    with exported_form(enhancer):
        macs = macs_per_frame(enhancer, SEGMENT_HOPS)
    return {
        "model": to_dict(enhancer.network.config),
        "causal": causal,
        **({} if segments is None else {"segments": segments.entry()}),
        "audio": to_dict(audio) | {"n_bins": audio.n_bins},
        "latency": {
            "samples": n_late,
            "ms": 1000.0 * n_late / audio.sample_rate_hz,
            "overlap_samples": audio.overlap if causal else 0,
        },
        "parameters": parameters(enhancer),
        "macs_per_frame": macs,
    }
