"""Overlapped segments of a recording of any length, for a network that is not causal, in constant memory.

    segments = Segments.of(bundle.manifest)              # None for a causal network
    for block in segments.joined(blocks, n_channels, call): ...

A network that looks ahead is worst at the ends of its input. So neighbours share `overlap` samples, of which the outer
`edge` at either end is context only and thrown away; in the middle one segment fades into the next:

    segment 0   |------------------------ edge ~~fade~~ edge |
    segment 1                           | edge ~~fade~~ edge ------------------------|

The gains of a fade add up to one at every sample (raised cosine): both segments hold nearly the same samples, so that
equal power would make the seam louder. Segments begin at whole hops, where one pass over the whole recording has its
frames as well. The first begins with the recording; the last ends with it, shifted back so that it is full of sound,
without added silence. Only a recording shorter than a segment is followed by silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from edgese.audio import Samples
from export import ExportError
from export.bundle import Bundle

# Measured (benchmarks/segment_seams.py): a network that looks up to 192 ms to either side gives what one pass over the
# whole recording gives; one that remembers for seconds differs from it everywhere, whatever the overlap.
SEGMENT_HOPS = 512  # 4.096 s
EDGE_HOPS = 24  # 192 ms: context at either end
FADE_HOPS = 16  # 128 ms; overlap in all 0.512 s, for which a long recording takes 14 % more calls
MIN_SEGMENT_HOPS = 2 * (2 * EDGE_HOPS + FADE_HOPS)  # shorter ones would be overlap for the greater part
MAX_SEGMENT_HOPS = 1500  # 12 s: twice in what an export is verified over


@dataclasses.dataclass(frozen=True)
class Segments:
    """Sizes and overlap of the segments of a recording, all in samples."""

    size: int  # of a segment: what one call takes and gives
    overlap: int  # that neighbours share
    edge: int  # at either end of the overlap that is context only
    hop: int  # segments begin at its multiples

    def __post_init__(self) -> None:
        fits = 0 <= 2 * self.edge <= self.overlap and self.fade <= self.advance and self.advance > 0
        fits = fits and 0 < self.hop <= self.size <= MAX_SEGMENT_HOPS * self.hop
        if not fits or self.size % self.hop or self.advance % self.hop:
            raise ExportError(
                f"segments: found {self.size} samples that overlap by {self.overlap} with edges of {self.edge}, "
                f"wanted at most {MAX_SEGMENT_HOPS} whole hops of {self.hop}, an overlap that holds both edges "
                "and leaves a fade's length between its neighbours; export the bundle again"
            )

    @classmethod
    def of_hops(cls, hop: int, hops: int = SEGMENT_HOPS) -> Segments:
        """Segments of `hops` hops, with the usual overlap."""
        return cls(hops * hop, (2 * EDGE_HOPS + FADE_HOPS) * hop, EDGE_HOPS * hop, hop)

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Segments | None:
        """Segments of a bundle, by its manifest; None for a causal network, also where the manifest does not say.

        Raises:
            ExportError: the network is not causal, and the manifest does not state its segments.
        """
        if manifest.get("causal", True):
            return None
        try:
            stated = {key: int(manifest["segments"][f"{key}_samples"]) for key in ("overlap", "edge")}
            return cls(int(manifest["segments"]["samples"]), hop=int(manifest["audio"]["hop"]), **stated)
        except (KeyError, TypeError, ValueError) as error:
            raise ExportError(
                f"{manifest.get('name')}: the network is not causal, and the manifest does not state its segments "
                f"({type(error).__name__}: {error}); export the bundle again"
            ) from error

    def entry(self) -> dict[str, int]:
        """Plain values for the manifest; `of` restores equal ones."""
        return {"samples": self.size, "overlap_samples": self.overlap, "edge_samples": self.edge}

    @property
    def advance(self) -> int:
        """Samples from the beginning of a segment to that of the next."""
        return self.size - self.overlap

    @property
    def fade(self) -> int:
        return self.overlap - 2 * self.edge

    @property
    def hops(self) -> int:
        """Hops of a segment."""
        return self.size // self.hop

    def seams(self, n_samples: int) -> list[int]:
        """Positions of the middles of the fades in a recording of `n_samples`, in samples."""
        n_seams = max(0, -(-(n_samples - self.size) // self.advance))
        return [index * self.advance + self.edge + self.fade // 2 for index in range(1, n_seams + 1)]

    def gains(self) -> tuple[Samples, Samples]:
        """Gains of the segment that leaves and of the one that enters, (fade,) each; together 1 at every sample."""
        enters = 0.5 - 0.5 * np.cos(np.pi * (np.arange(self.fade) + 0.5) / max(self.fade, 1)).astype(np.float32)
        return 1 - enters, enters

    def recording(self, wave: Samples, call: Callable[[Samples], Samples]) -> Samples:
        """Enhanced sound of a whole recording of one channel, (n_samples,), as long as the input; see `joined`."""
        return np.concatenate(list(self.joined([wave[:, None]], 1, call)))[: len(wave), 0]

    def joined(
        self, blocks: Iterable[Samples], n_channels: int, call: Callable[[Samples], Samples]
    ) -> Iterator[Samples]:
        """Enhanced sound of a stream of blocks: aligned with it, and as long, rounded up to a whole hop.

        Args:
            blocks: (n, n_channels) float32 of any n.
            call: a segment of each channel, (n_channels, size) float32, to the same segments enhanced.

        Yields:
            (n, n_channels) float32; nothing where no sample comes in.
        """
        leaves, enters = self.gains()
        waiting = np.zeros((n_channels, 0), np.float32)  # from the beginning of the segment that was called last
        following = 0  # where the next one begins in it
        leaving: Samples | None = None  # of the segment that was called last, what fades into the next

        def entered(segment: Samples, at: int, end: int) -> Samples:
            """Part of the output that a segment gives, up to `end`; the fade into it begins at `at`."""
            if leaving is None:
                return segment[:, :end]
            mixed = leaving * leaves + segment[:, at : at + self.fade] * enters
            return np.concatenate([mixed, segment[:, at + self.fade : end]], axis=1)

        for block in blocks:
            waiting = np.concatenate([waiting, block.T], axis=1)
            while waiting.shape[1] > following + self.size:  # there is more: this one is not the last
                segment = call(np.ascontiguousarray(waiting[:, following : following + self.size]))
                waiting = waiting[:, following:]
                following, seam = self.advance, self.advance + self.edge
                yield entered(segment, self.edge, seam).T
                leaving = segment[:, seam : seam + self.fade]
        n_left = -(-waiting.shape[1] // self.hop) * self.hop
        if n_left:
            waiting = np.pad(waiting, ((0, 0), (0, max(n_left, self.size) - waiting.shape[1])))
            begin = max(n_left - self.size, 0)
            segment = call(np.ascontiguousarray(waiting[:, begin : begin + self.size]))
            yield entered(segment, following - begin + self.edge, n_left - begin).T


def require_streaming_form(bundle: Bundle, blocks: Collection[int]) -> None:
    """Check that blocks may be named for a bundle: of a network that looks ahead, only its segment.

    Raises:
        ExportError: it is not causal, and one of the blocks is no segment of the bundle.
    """
    segments = Segments.of(bundle.manifest)
    if segments is None or all(block == segments.hops for block in blocks):
        return
    raise ExportError(
        f"{bundle.path}: {network_name(bundle.manifest)} looks ahead: no streaming form; it has "
        f"{segments_in_words(bundle)} only: leave --block out, or choose a causal network"
    )


def network_name(manifest: Mapping[str, Any]) -> str:
    """Name under which a bundle's network is registered."""
    return str(manifest["model"].get("name", manifest["name"]))


def segments_in_words(bundle: Bundle) -> str:
    """Segments of a bundle that has them, in words: `segments of 512 hops (4.1 s)`."""
    segments = Segments.of(bundle.manifest)
    assert segments is not None, "causal networks have none"
    seconds = segments.size / bundle.manifest["audio"]["sample_rate_hz"]
    return f"segments of {segments.hops} hops ({seconds:.1f} s)"
