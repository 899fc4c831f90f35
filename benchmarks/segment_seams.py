"""Loss by overlapped segments against one pass over the whole recording, by overlap, edge and fade.

    python -m benchmarks.segment_seams

The network is the shipped one made to look ahead: the mean of its output and of its output on the reversed frames, so
that it remembers both ways as long as a trained network does. Levels are those of the difference from the whole pass,
over that of the whole pass's output: in the mean, and in the worst 32 ms, near the seams and far from them (as `verify`
has it, edgese/verify/checks.py). PESQ-WB is that of the whole pass less that of the segments, mean over the recording's
repetitions. This is what the constants of edgese/graphs/segments.py and the limit of `verify` were chosen by.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import Row, parser, report
from edgese.audio import Wave
from edgese.audio.reader import read_wave
from edgese.graphs.bundles import shipped_bundle
from edgese.graphs.segments import SEGMENT_HOPS, Segments
from edgese.machine.host import describe
from edgese.metrics.scores import pesq_wb
from edgese.model.checkpoint import load_enhancer
from edgese.model.enhancer import SegmentStep, WaveformEnhancer
from edgese.model.network import Network
from edgese.samples import CLEAN, NOISY
from edgese.verify.checks import NEAR, SEAM_SAMPLES
from edgese.verify.truth import long_sound
from export.bundle import WEIGHTS

LAYOUTS = ((0, 0), (8, 16), (24, 16), (56, 16))  # edge and fade, hops


class BothWays(Network):
    """Network that looks both ways: the mean of a causal network's output and of its output backwards in time."""

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
    arguments.add_argument("--seconds", type=float, default=26.6, help="of the recording")
    arguments.add_argument("--hops", type=int, default=SEGMENT_HOPS, help="of a segment")
    options = arguments.parse_args()
    machine = describe()
    causal = load_enhancer(shipped_bundle() / WEIGHTS)
    hop, rate_hz = causal.audio.hop, causal.audio.sample_rate_hz
    enhancer = WaveformEnhancer(BothWays(causal.network), causal.audio).eval()
    sound = long_sound([read_wave(NOISY, rate_hz)], round(options.seconds * rate_hz))
    clean = read_wave(CLEAN, rate_hz)
    whole = enhancer.enhance(torch.from_numpy(sound)[None])[0].numpy()
    rows = [
        measure(enhancer, sound, whole, clean, Segments(options.hops * hop, (2 * edge + fade) * hop, edge * hop, hop))
        for edge, fade in LAYOUTS
    ]
    report("segment_seams", machine, rows, [], as_json=options.json)


@torch.no_grad()
def measure(enhancer: WaveformEnhancer, sound: Wave, whole: Wave, clean: Wave, segments: Segments) -> Row:
    step = SegmentStep(enhancer)

    def call(segment: Wave) -> Wave:
        enhanced: Wave = step(torch.from_numpy(segment)).numpy()
        return enhanced

    found = np.concatenate(list(segments.joined([sound[:, None]], 1, call)))[: len(sound), 0]
    difference, energy = np.square(found.astype(np.float64) - whole), float(np.square(whole.astype(np.float64)).mean())
    windows = np.convolve(difference, np.full(SEAM_SAMPLES, 1 / SEAM_SAMPLES), "same")
    distance = np.abs(np.arange(len(sound))[:, None] - np.array(segments.seams(len(sound)))).min(axis=1)

    def level_db(noise: float) -> float:
        return 10 * math.log10(noise / energy)

    length = len(clean)
    losses = [
        pesq_wb(clean, whole[at : at + length]) - pesq_wb(clean, found[at : at + length])
        for at in range(0, len(sound) - length + 1, length)
    ]
    return {
        "edge_hops": segments.edge // segments.hop,
        "fade_hops": segments.fade // segments.hop,
        "overlap_s": segments.overlap / enhancer.audio.sample_rate_hz,
        "near_db": level_db(difference[distance < NEAR].mean()),
        "far_db": level_db(difference[distance > 2 * NEAR].mean()),
        "near_worst_db": level_db(windows[distance < NEAR].max()),
        "far_worst_db": level_db(windows[distance > 2 * NEAR].max()),
        "pesq_lost": sum(losses) / len(losses),
        "calls_more": segments.size / segments.advance - 1,
    }


if __name__ == "__main__":
    main()
