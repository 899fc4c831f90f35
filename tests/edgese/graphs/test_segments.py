"""Overlapped segments: every length, any cut, flat memory, seams that are not there; and what refuses to stream."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgese.audio import Samples
from edgese.graphs.segments import MIN_SEGMENT_HOPS, SEGMENT_HOPS, Segments, require_streaming_form
from export import ExportError
from export.bundle import Bundle

HOP = 128
SMALL = Segments(size=12 * HOP, overlap=4 * HOP, edge=HOP, hop=HOP)
USUAL = Segments.of_hops(HOP)

Call = Callable[[Samples], Samples]


def joined(segments: Segments, wave: Samples, call: Call, cut: int = 1000) -> Samples:
    """(n_samples,) in blocks of `cut`, through segments."""
    blocks = (wave[at : at + cut, None] for at in range(0, len(wave), cut))
    found = list(segments.joined(blocks, 1, call))
    return np.concatenate(found)[:, 0] if found else wave[:0]


def noise(n_samples: int) -> Samples:
    return np.random.default_rng(0).uniform(-1, 1, n_samples).astype(np.float32)


# Lengths and alignment


@pytest.mark.parametrize("segments", [SMALL, USUAL, Segments(8 * HOP, 0, 0, HOP), Segments(8 * HOP, HOP, 0, HOP)])
def test_what_does_nothing_gives_back_every_sample_of_any_length(segments: Segments) -> None:
    size, advance = segments.size, segments.advance
    lengths = [1, 127, 128, 129, size - 1, size, size + 1, size + advance - 1, size + advance, size + advance + 1]
    for n_samples in (*lengths, 5 * size + 77):
        wave = noise(n_samples)
        found = joined(segments, wave, lambda segment: segment)
        assert len(found) == -(-n_samples // HOP) * HOP
        assert np.abs(found[:n_samples] - wave).max() <= 1.2e-7, n_samples
        assert not found[n_samples:].any()


def test_nothing_gives_nothing() -> None:
    assert list(SMALL.joined([], 1, lambda segment: segment)) == []
    assert list(SMALL.joined([np.zeros((0, 2), np.float32)], 2, lambda segment: segment)) == []


@pytest.mark.parametrize("cut", [1, 63, 128, 5000, 100_000])
def test_how_the_input_is_cut_changes_no_bit(cut: int) -> None:
    wave = noise(4 * SMALL.size + 5)[: 700 if cut == 1 else None]
    whole = joined(SMALL, wave, np.tanh, len(wave))
    assert np.array_equal(joined(SMALL, wave, np.tanh, cut), whole)


def test_channels_are_kept_apart() -> None:
    waves = np.stack([noise(5000), -0.5 * noise(5000)], axis=1)
    found = np.concatenate(list(SMALL.joined([waves[:3000], waves[3000:]], 2, lambda segment: segment)))
    assert np.abs(found[:5000] - waves).max() <= 1.2e-7


def test_segments_begin_at_whole_hops_and_hear_no_made_up_silence() -> None:
    wave = 1 + np.arange(3 * SMALL.size + 1000, dtype=np.float32)  # each sample tells its place
    begins = []

    def note(segment: Samples) -> Samples:
        assert segment.shape == (1, SMALL.size)
        assert segment.dtype == np.float32
        assert segment.flags.c_contiguous
        begins.append(int(segment[0, 0]) - 1)
        assert np.count_nonzero(segment == 0) < HOP, "all but the rest of the last hop is sound"
        return segment

    joined(SMALL, wave, note)
    whole = -(-len(wave) // HOP) * HOP
    assert begins == [*range(0, whole - SMALL.size, SMALL.advance), whole - SMALL.size]
    assert all(begin % HOP == 0 for begin in begins)


def test_only_a_recording_shorter_than_a_segment_is_followed_by_silence() -> None:
    heard = []
    joined(SMALL, noise(1000), lambda segment: heard.append(segment.copy()) or segment)
    assert len(heard) == 1
    assert not heard[0][0, 1000:].any()


def test_memory_does_not_grow_with_the_length() -> None:
    def peak(n_segments: int) -> int:
        blocks = (np.full((4000, 1), 0.1, np.float32) for _ in range(n_segments * USUAL.advance // 4000))
        tracemalloc.start()
        for _ in USUAL.joined(blocks, 1, np.copy):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(40) < 1.05 * peak(4)


# What neighbours make of each other


def test_a_fade_adds_up_to_one_at_every_sample() -> None:
    for segments in (SMALL, USUAL):
        found = joined(segments, np.ones(4 * segments.size, np.float32), lambda segment: segment)
        assert np.abs(found - 1).max() <= 1.2e-7


def test_the_outer_part_of_an_overlap_is_context_only() -> None:
    """Whatever a network makes of its segment's ends is heard at the recording's own ends only."""

    def spoil(segment: Samples) -> Samples:
        spoiled = segment.copy()
        spoiled[:, : SMALL.edge] = spoiled[:, -SMALL.edge :] = 9
        return spoiled

    wave = noise(5 * SMALL.size)
    found = joined(SMALL, wave, spoil)
    assert np.abs(found - wave)[SMALL.edge : -SMALL.edge].max() <= 1.2e-7
    assert (found[: SMALL.edge] == 9).all()  # the recording's first samples have no other segment


def test_a_wrong_edge_would_be_heard() -> None:
    """The control of the one above."""
    wave = noise(5 * SMALL.size)

    def spoil(segment: Samples) -> Samples:
        return np.concatenate([9 + 0 * segment[:, : 2 * HOP], segment[:, 2 * HOP :]], axis=1)

    assert np.abs(joined(SMALL, wave, spoil) - wave)[2 * HOP :].max() > 1


def test_seams_are_where_one_segment_fades_into_the_next() -> None:
    counted = iter(range(100))
    numbers = joined(SMALL, noise(5 * SMALL.size + 300), lambda segment: np.full_like(segment, next(counted)))
    halves = [int(np.argmax(numbers >= index + 0.5)) for index in range(int(numbers.max()))]
    assert halves == SMALL.seams(5 * SMALL.size + 300)
    assert SMALL.seams(SMALL.size) == []
    assert len(SMALL.seams(SMALL.size + 1)) == 1


# What a manifest says of them


def test_the_manifest_keeps_them(ahead: Bundle) -> None:
    segments = Segments.of(ahead.manifest)
    assert segments == Segments.of_hops(HOP, MIN_SEGMENT_HOPS)
    assert segments is not None
    assert segments.hops == ahead.graphs[0].block
    assert Segments.of({**ahead.manifest, "segments": USUAL.entry()}) == USUAL
    assert USUAL.hops == SEGMENT_HOPS


def test_a_manifest_that_does_not_say_is_that_of_a_causal_network(identity_bundle: Path) -> None:
    bundle = Bundle.open(identity_bundle)
    assert "causal" not in bundle.manifest
    assert Segments.of(bundle.manifest) is None
    require_streaming_form(bundle, [1, 16])


@pytest.mark.parametrize(
    "told",
    [
        None,
        {"samples": 65536},
        {**USUAL.entry(), "samples": 65537},
        {**USUAL.entry(), "overlap_samples": 1},
        {**USUAL.entry(), "edge_samples": "x"},
    ],
    ids=["none", "no overlap", "half a hop", "no room for edges", "no number"],
)
def test_segments_that_cannot_be_are_refused(ahead: Bundle, told: object) -> None:
    with pytest.raises(ExportError, match="segments"):
        Segments.of({**ahead.manifest, "segments": told})


def test_a_streaming_form_is_refused_in_words_that_help(ahead: Bundle) -> None:
    require_streaming_form(ahead, [])
    require_streaming_form(ahead, [MIN_SEGMENT_HOPS])
    wanted = rf"looks-ahead looks ahead: no streaming form; it has segments of {MIN_SEGMENT_HOPS} hops \(1.0 s\) only"
    with pytest.raises(ExportError, match=wanted):
        require_streaming_form(ahead, [1])


def test_costs_are_counted_over_the_usual_segment() -> None:
    """The constant stands twice: `segments.py` runs on boards, which have no PyTorch."""
    cost = pytest.importorskip("edgese.model.cost", reason="the [train] extra is not installed", exc_type=ImportError)
    assert cost.SEGMENT_HOPS == SEGMENT_HOPS
