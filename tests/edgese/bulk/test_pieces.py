"""Long recordings in pieces: the sum is what one pass gives, whatever is cut, lost or started again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import enhance_file
from edgese.enhance.jobs import EnhanceOptions, Job
from export.bundle import Bundle

from ..helpers.data_folders import SpeechLike

pytest.importorskip("fsspec", reason="the [ray] extra is not installed")

from edgese.bulk import pieces as module
from edgese.bulk.pieces import Joined, Pieces, cut, run, wants_pieces
from edgese.bulk.places import Item

OPTIONS = EnhanceOptions(force=True, subtype="FLOAT")
PIECE_S = 1.0


def in_pieces(bundle: Bundle, source: Path, target: Path) -> tuple[Pieces, np.ndarray]:
    item = Item(str(source), str(target))
    pieces = cut(item, source, bundle, OPTIONS, PIECE_S)
    for index in range(pieces.n_pieces):
        run(pieces, index, bundle, OPTIONS)
    with Joined(pieces, bundle) as joined:
        enhance_file(Job(source, target, None, OPTIONS), joined)
    return pieces, soundfile.read(target, dtype="float32")[0]


def at_once(bundle: Bundle, source: Path, target: Path) -> np.ndarray:
    with Denoiser(bundle) as denoiser:
        enhance_file(Job(source, target, None, OPTIONS), denoiser)
    return soundfile.read(target, dtype="float32")[0]


@pytest.mark.parametrize(("rate_hz", "n_channels", "gain"), [(16_000, 1, 1.0), (44_100, 2, 1.0), (48_000, 1, 1e-3)])
def test_the_pieces_are_one_pass(
    rate_hz: int, n_channels: int, gain: float, halving_bundle: Path, tmp_path: Path, speech_like: SpeechLike
) -> None:
    """At any rate, any number of channels, quiet ones that are lifted too: sample for sample."""
    bundle = Bundle.open(halving_bundle)
    sound = np.stack([speech_like(3 * rate_hz + 777, seed, rate_hz) for seed in range(n_channels)], axis=1)
    soundfile.write(tmp_path / "noisy.wav", gain * sound, rate_hz, "FLOAT")
    pieces, given = in_pieces(bundle, tmp_path / "noisy.wav", tmp_path / "clean.wav")
    assert pieces.n_pieces >= 3
    np.testing.assert_array_equal(given, at_once(bundle, tmp_path / "noisy.wav", tmp_path / "whole.wav"))


@pytest.mark.slow
def test_the_network_hands_its_states_on(bundle: Bundle, tmp_path: Path, speech_like: SpeechLike) -> None:
    """The tiny network, whose states matter: without them the seams would be heard."""
    soundfile.write(tmp_path / "noisy.wav", speech_like(40_000), 16_000, "FLOAT")
    pieces, given = in_pieces(bundle, tmp_path / "noisy.wav", tmp_path / "clean.wav")
    wanted = at_once(bundle, tmp_path / "noisy.wav", tmp_path / "whole.wav")
    np.testing.assert_array_equal(given, wanted)
    second = Path(pieces.folder) / "00001.enhanced.npz"
    second.unlink()
    (Path(pieces.folder) / "00000.enhanced.npz").rename(tmp_path / "kept.npz")
    with np.load(tmp_path / "kept.npz") as kept:
        forgotten = {name: kept[name] * (name == "_wave_enhanced") for name in kept.files}
    np.savez(Path(pieces.folder) / "00000.enhanced.npz", **forgotten)
    _, without = in_pieces(bundle, tmp_path / "noisy.wav", tmp_path / "clean.wav")
    assert np.abs(without - wanted).max() > 1e-3


def test_what_is_done_is_not_done_again(
    halving_bundle: Path, tmp_path: Path, speech_like: SpeechLike, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(halving_bundle)
    soundfile.write(tmp_path / "noisy.wav", speech_like(40_000), 16_000, "FLOAT")
    pieces, wanted = in_pieces(bundle, tmp_path / "noisy.wav", tmp_path / "clean.wav")
    (Path(pieces.folder) / "00001.enhanced.npz").unlink()  # the run was killed here
    opened, real = [], module.open_graph
    monkeypatch.setattr(module, "open_graph", lambda *args: opened.append(args) or real(*args))
    again, given = in_pieces(bundle, tmp_path / "noisy.wav", tmp_path / "clean.wav")
    assert again == pieces
    assert len(opened) == 1
    np.testing.assert_array_equal(given, wanted)


def test_another_recording_or_other_options_have_pieces_of_their_own(
    halving_bundle: Path, tmp_path: Path, speech_like: SpeechLike
) -> None:
    bundle, source = Bundle.open(halving_bundle), tmp_path / "noisy.wav"
    soundfile.write(source, speech_like(20_000), 16_000)
    item = Item(str(source), str(tmp_path / "clean.wav"))
    folders = [cut(item, source, bundle, OPTIONS, PIECE_S).folder]
    folders.append(cut(item, source, bundle, EnhanceOptions(block=1), PIECE_S).folder)
    folders.append(cut(Item(str(source), str(tmp_path / "other.wav")), source, bundle, OPTIONS, PIECE_S).folder)
    soundfile.write(source, speech_like(20_000, 1), 16_000)
    folders.append(cut(item, source, bundle, OPTIONS, PIECE_S).folder)
    assert len(set(folders)) == 4


def test_only_long_recordings_of_networks_with_states_are_cut(identity_bundle: Path, tmp_path: Path) -> None:
    bundle, source = Bundle.open(identity_bundle), tmp_path / "a.wav"
    soundfile.write(source, np.zeros(32_000), 16_000)
    assert wants_pieces(bundle, source, "a", 1.0)
    assert not wants_pieces(bundle, source, "a", 2.0)
    segments = {"causal": False, "segments": {"samples": 4096, "overlap_samples": 512, "edge_samples": 64}}
    assert not wants_pieces(Bundle(bundle.path, {**bundle.manifest, **segments}, bundle.graphs), source, "a", 1.0)
