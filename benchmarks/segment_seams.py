"""What overlapped segments cost beside one pass over the whole recording, by overlap, edge and fade.

    python -m benchmarks.segment_seams

The network is the shipped one made to look ahead: the mean of its output and of its output on the reversed frames, so
that it remembers both ways as long as a trained network does. SNR is that of the whole pass's output over the
difference: over all samples, in the worst seam (from a fade's beginning to its end), and in all that lies apart from
the seams. This is what the constants of edgese/segments.py and the limit of `verify` were chosen by.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.machine import Row, describe, parser, report
from edgese.audio import read_wave
from edgese.checkpoint import load_enhancer
from edgese.enhance import SAMPLE, shipped_bundle
from edgese.metrics import snr_db
from edgese.model.network import Network
from edgese.model.waveform import SegmentStep, WaveformEnhancer
from edgese.segments import SEGMENT_HOPS, Segments
from edgese.verify import long_sound
from export.bundle import WEIGHTS

LAYOUTS = ((0, 0), (0, 16), (8, 16), (16, 16), (24, 16), (48, 16))  # edge and fade, hops

Wave = NDArray[np.float32]


class BothWays(Network):
    """The mean of a causal network's output and of its output backwards in time."""

    causal = False

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        zeros = self.network.initial_state(len(x))
        forwards, _ = self.network(x, zeros)
        backwards, _ = self.network(x.flip(1), zeros)
        return (forwards + backwards.flip(1)) / 2, {}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--seconds", type=float, default=24.0, help="of the recording")
    arguments.add_argument("--hops", type=int, default=SEGMENT_HOPS, help="of a segment")
    options = arguments.parse_args()
    machine = describe()
    causal = load_enhancer(shipped_bundle() / WEIGHTS)
    hop, rate_hz = causal.audio.hop, causal.audio.sample_rate_hz
    enhancer = WaveformEnhancer(BothWays(causal.network), causal.audio).eval()
    sound = long_sound([read_wave(SAMPLE, rate_hz)], round(options.seconds * rate_hz))
    whole = enhancer.enhance(torch.from_numpy(sound)[None])[0].numpy()
    rows = [
        measure(enhancer, sound, whole, Segments(options.hops * hop, (2 * edge + fade) * hop, edge * hop, hop))
        for edge, fade in LAYOUTS
    ]
    report("segment_seams", machine, rows, [], as_json=options.json)


@torch.no_grad()
def measure(enhancer: WaveformEnhancer, sound: Wave, whole: Wave, segments: Segments) -> Row:
    step = SegmentStep(enhancer)

    def call(segment: Wave) -> Wave:
        enhanced: Wave = step(torch.from_numpy(segment)).numpy()
        return enhanced

    found = np.concatenate(list(segments.joined([sound[:, None]], 1, call)))[: len(sound), 0]
    apart = np.ones(len(sound), bool)
    at_seams = []
    for seam in segments.seams(len(sound)):
        near = slice(seam - max(segments.fade // 2, 64), seam + max(segments.fade // 2, 64))
        at_seams.append(snr_db(whole[near], found[near]) if whole[near].any() else np.inf)
        apart[near] = False
    return {
        "edge_hops": segments.edge // segments.hop,
        "fade_hops": segments.fade // segments.hop,
        "overlap_s": segments.overlap / enhancer.audio.sample_rate_hz,
        "snr_db": snr_db(whole, found),
        "worst_seam_db": min(at_seams),
        "median_seam_db": float(np.median(at_seams)),
        "elsewhere_db": snr_db(whole[apart], found[apart]),
        "calls_more": segments.size / segments.advance - 1,
    }


if __name__ == "__main__":
    main()
