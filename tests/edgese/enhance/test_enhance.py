"""Enhancing files: length and alignment, channels, options, plans, batches, interrupts; with delays for networks."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgese.audio import Samples
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import Outcome, Stopped, Summary, denoiser_factory, enhance_file, enhance_files, preview
from edgese.enhance.jobs import EnhanceOptions, Job, passed_over, plan_jobs
from edgese.enhance.signal_path import denoise
from edgese.errors import AudioError, ConfigError, OutputError, VerificationError, install_command
from edgese.machine.processes import stopping_on_signals
from export import ExportError
from export.bundle import Bundle
from runtimes.base import RuntimeUnavailable

from ..helpers.identity_bundle import write_identity_bundle

RATES = [4_000, 8_000, 16_000, 22_050, 44_100, 48_000, 96_000]
RESAMPLING = 1e-5  # of full scale, there and back; measured 3e-7


def tones(rate_hz: int, seconds: float = 2.0, n_channels: int = 1) -> Samples:
    """Sines below 1.7 kHz, others in each channel, fading in and out."""
    time = np.arange(round(seconds * rate_hz) + 13) / rate_hz
    waves = [
        sum(0.2 * np.sin(2 * np.pi * (frequency + 40 * channel) * time + channel) for frequency in (110, 440, 1500))
        for channel in range(n_channels)
    ]
    return (np.stack(waves, axis=1) * np.hanning(len(time))[:, None]).astype(np.float32)


def split(wave: Samples, n_frames: int) -> Iterator[Samples]:
    return (wave[start : start + n_frames] for start in range(0, len(wave), n_frames))


def job(source: Path, target: Path | None = None, **options: Any) -> Job:
    target = target or source.with_name(f"{source.stem}.out{source.suffix}")
    return Job(source, target, None, EnhanceOptions(**options))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def run_python(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, timeout=60, **options)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    path = tmp_path / "noisy.wav"
    soundfile.write(path, tones(16_000), 16_000, "PCM_16")
    return path


# The signal


@pytest.mark.parametrize("rate_hz", RATES)
def test_the_output_has_the_input_s_length_and_place_at_any_rate(
    tmp_path: Path, identity: Denoiser, rate_hz: int
) -> None:
    wave = tones(rate_hz, n_channels=2)
    soundfile.write(tmp_path / "in.wav", wave, rate_hz, "FLOAT")
    summary = enhance_file(job(tmp_path / "in.wav", tmp_path / "out.wav"), identity)
    enhanced, found_hz = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert (found_hz, summary.sample_rate_hz, summary.channels) == (rate_hz, rate_hz, 2)
    assert summary.duration_s == len(wave) / rate_hz
    np.testing.assert_allclose(enhanced, wave, atol=RESAMPLING)
    assert summary.level_change_db == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("n_frames", [512, 513, 2047, 2048, 16_000 - 384, 16_000, 2048 * 8 - 384, 2048 * 8 - 383])
def test_the_tail_is_there_to_the_last_sample(identity: Denoiser, n_frames: int) -> None:
    wave = np.zeros((n_frames, 1), np.float32)
    wave[[0, -1]] = 1.0
    enhanced = np.concatenate(list(denoise([wave], 16_000, 1, identity)))
    np.testing.assert_array_equal(enhanced, wave)


@pytest.mark.parametrize("n_frames", [1, 127, 128, 129, 1000, 10**6])
def test_the_split_into_blocks_changes_no_sample(halving: Denoiser, n_frames: int) -> None:
    wave = tones(16_000, seconds=0.5, n_channels=2)
    enhanced = np.concatenate(list(denoise(split(wave, n_frames), 16_000, 2, halving)))
    np.testing.assert_array_equal(enhanced, 0.5 * wave)


@pytest.mark.parametrize("block", [1, 16])
def test_every_graph_of_the_bundle_gives_the_same(halving_bundle: Path, block: int) -> None:
    wave = tones(16_000, seconds=0.5)
    with Denoiser(Bundle.open(halving_bundle), block=block) as denoiser:
        assert denoiser.block_samples == block * 128
        np.testing.assert_array_equal(np.concatenate(list(denoise([wave], 16_000, 1, denoiser))), 0.5 * wave)


def test_the_largest_graph_is_taken_unless_another_is_asked_for(identity: Denoiser) -> None:
    assert identity.block_samples == 16 * 128


@pytest.mark.parametrize("n_channels", [1, 3, 64])
def test_channels_are_kept_apart(identity: Denoiser, n_channels: int) -> None:
    wave = tones(16_000, seconds=0.3, n_channels=n_channels)
    enhanced = np.concatenate(list(denoise([wave], 16_000, n_channels, identity)))
    np.testing.assert_array_equal(enhanced, wave)


def test_a_denoiser_forgets_between_files(halving: Denoiser) -> None:
    wave = tones(16_000, seconds=0.5)
    first, second = (np.concatenate(list(denoise([wave], 16_000, 1, halving))) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_narrow_leaves_out_what_lies_above_8_khz(identity: Denoiser) -> None:
    time = np.arange(44_100) / 44_100
    wave = (0.5 * np.sin(2 * np.pi * 12_000 * time) * np.hanning(len(time))).astype(np.float32)[:, None]
    narrow = np.concatenate(list(denoise([wave], 44_100, 1, identity, narrow=True)))
    assert np.abs(narrow).max() < 1e-4
    np.testing.assert_allclose(np.concatenate(list(denoise([wave], 44_100, 1, identity))), wave, atol=1e-6)


@pytest.mark.parametrize("rate_hz", RATES)
@pytest.mark.parametrize("limit_db", [0.0, 3.0, 12.0])
def test_the_attenuation_limit_mixes_the_input_in_without_shifting_it(
    tmp_path: Path, halving: Denoiser, rate_hz: int, limit_db: float
) -> None:
    wave = tones(rate_hz, seconds=1.0)
    soundfile.write(tmp_path / "in.wav", wave, rate_hz, "FLOAT")
    enhance_file(job(tmp_path / "in.wav", tmp_path / "out.wav", atten_limit_db=limit_db), halving)
    enhanced = soundfile.read(tmp_path / "out.wav", dtype="float32", always_2d=True)[0]
    share = 10 ** (-limit_db / 20)
    np.testing.assert_allclose(enhanced, (0.5 + 0.5 * share) * wave, atol=RESAMPLING)


def test_the_attenuation_limit_holds_above_8_khz_too(identity: Denoiser) -> None:
    time = np.arange(44_100) / 44_100
    wave = (0.5 * np.sin(2 * np.pi * 12_000 * time) * np.hanning(len(time))).astype(np.float32)[:, None]
    enhanced = np.concatenate(list(denoise([wave], 44_100, 1, identity, atten_limit_db=20.0, narrow=True)))
    np.testing.assert_allclose(enhanced, 0.1 * wave, atol=1e-4)


def test_memory_does_not_grow_with_length(identity: Denoiser) -> None:
    def peak_bytes(seconds: int) -> int:
        second = tones(16_000, seconds=1.0)
        tracemalloc.start()
        for _ in denoise((second for _ in range(seconds)), 16_000, 1, identity, atten_limit_db=6.0):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(3)
    assert peak_bytes(100) < 1.2 * peak_bytes(30)  # the lift keeps eleven seconds


# One file


def test_the_summary_tells_what_was_done(tmp_path: Path, halving: Denoiser, noisy: Path) -> None:
    calls: list[tuple[Job, float, float | None]] = []
    todo = job(noisy)
    summary = enhance_file(todo, halving, lambda *call: calls.append(call))
    assert (summary.source, summary.target) == (str(noisy), str(todo.target))
    assert (summary.container, summary.subtype, summary.n_clipped, summary.warnings) == ("WAV", "PCM_16", 0, ())
    assert summary.level_change_db == pytest.approx(20 * np.log10(0.5), abs=0.01)
    wave = tones(16_000)
    assert summary.level_in_dbfs == pytest.approx(10 * np.log10(np.mean(wave.astype(np.float64) ** 2)), abs=0.01)
    assert summary.rtf == summary.processing_s / summary.duration_s > 0
    assert [call[0] for call in calls] == [todo] * len(calls)
    seconds = [call[1] for call in calls]
    assert seconds == sorted(seconds)
    assert seconds[-1] == calls[-1][2] == summary.duration_s
    json.dumps(dataclasses.asdict(summary), allow_nan=False)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_24"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS"), ("a.opus", "OPUS"), ("a.aiff", "PCM_16")],
)
def test_format_and_subtype_are_kept(tmp_path: Path, identity: Denoiser, name: str, subtype: str) -> None:
    path = tmp_path / name
    soundfile.write(path, tones(48_000), 48_000, subtype, format="OGG" if name == "a.opus" else None)
    before = soundfile.info(path)
    (todo,) = plan_jobs([str(path)], EnhanceOptions())
    enhance_file(todo, identity)
    assert todo.target == path.with_name(f"a.enhanced{path.suffix}")
    after = soundfile.info(todo.target)
    assert (after.format, after.subtype, after.frames) == (before.format, before.subtype, before.frames)


def test_mp3_becomes_wav_unless_its_name_says_otherwise(tmp_path: Path, identity: Denoiser) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, tones(16_000), 16_000)
    (todo,) = plan_jobs([str(path)], EnhanceOptions())
    summary = enhance_file(todo, identity)
    assert todo.target == tmp_path / "a.enhanced.wav"
    assert (summary.subtype, soundfile.info(todo.target).subtype) == ("PCM_16", "PCM_16")
    (todo,) = plan_jobs([str(path)], EnhanceOptions(output=str(tmp_path / "b.mp3")))
    assert "shift and pad" in enhance_file(todo, identity).warnings[0]


def test_clipping_is_counted_and_told(tmp_path: Path) -> None:
    bundle = write_identity_bundle(tmp_path / "loud", gain=4.0, blocks=(16,))
    wave = np.full((16_000, 1), 0.5, np.float32)
    wave[:4000] = 0.1
    wave[1::2] *= -1
    soundfile.write(tmp_path / "in.wav", wave, 16_000, "PCM_16")
    with Denoiser(Bundle.open(bundle)) as denoiser:
        summary = enhance_file(job(tmp_path / "in.wav", tmp_path / "out.wav"), denoiser)
        assert summary.n_clipped == 12_000
        assert "12000 samples were clipped" in summary.warnings[0]
        summary = enhance_file(job(tmp_path / "in.wav", tmp_path / "float.wav", subtype="FLOAT"), denoiser)
        assert (summary.n_clipped, summary.warnings) == (0, ())
    assert soundfile.read(tmp_path / "out.wav")[0].max() == 1 - 2**-15


def test_an_mp3_that_ends_early_gives_a_warning(tmp_path: Path, identity: Denoiser) -> None:
    soundfile.write(tmp_path / "cut.mp3", tones(16_000), 16_000)
    os.truncate(tmp_path / "cut.mp3", (tmp_path / "cut.mp3").stat().st_size // 2)
    (todo,) = plan_jobs([str(tmp_path / "cut.mp3")], EnhanceOptions())
    assert "may be truncated" in enhance_file(todo, identity).warnings[0]


@pytest.mark.parametrize("n_frames", [1, 100, 511])
def test_what_is_shorter_than_a_window_is_enhanced(tmp_path: Path, identity: Denoiser, n_frames: int) -> None:
    wave = tones(16_000)[:n_frames]
    soundfile.write(tmp_path / "in.wav", wave, 16_000, "FLOAT")
    enhance_file(job(tmp_path / "in.wav", tmp_path / "out.wav"), identity)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.wav", always_2d=True)[0], wave, atol=1e-6)


def test_silence_gives_silence_and_a_warning(tmp_path: Path, identity: Denoiser) -> None:
    soundfile.write(tmp_path / "in.wav", np.zeros((9000, 2)), 44_100)
    summary = enhance_file(job(tmp_path / "in.wav", tmp_path / "out.wav"), identity)
    assert "the input is silent" in summary.warnings[0]
    found, _ = soundfile.read(tmp_path / "out.wav")
    assert found.shape == (9000, 2)
    assert not found.any()


def test_floats_in_the_range_of_integers_are_given_back_in_it(tmp_path: Path, halving: Denoiser) -> None:
    wave = tones(16_000)
    soundfile.write(tmp_path / "in.wav", wave * 32768, 16_000, "FLOAT")
    summary = enhance_file(job(tmp_path / "in.wav", tmp_path / "out.wav"), halving)
    assert "multiplied again" in " ".join(summary.warnings)
    plain = enhance_file(job(tmp_path / "in.wav", tmp_path / "out.flac"), halving)
    assert "left so" in " ".join(plain.warnings)
    assert plain.n_clipped == 0
    soundfile.write(tmp_path / "small.wav", wave, 16_000, "FLOAT")
    enhance_file(job(tmp_path / "small.wav", tmp_path / "wanted.wav"), halving)
    wanted = soundfile.read(tmp_path / "wanted.wav", dtype="float32")[0]
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], wanted * 32768)
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.flac", dtype="float32")[0], wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "rate_hz", "reason"),
    [("out.aiff", 48_000, "AIFF cannot hold"), ("out.au", 48_000, "AU cannot hold"), ("out.mp3", 96_000, "MP3")],
)
def test_limits_of_formats_are_known_before_the_work(
    tmp_path: Path, name: str, rate_hz: int, reason: str, identity: Denoiser
) -> None:
    n_bytes = 2**32
    chunk = struct.pack("<IQQQI", 28, n_bytes + 72, n_bytes, n_bytes // 2, 0)
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    head = b"RF64\xff\xff\xff\xffWAVEds64" + chunk + b"fmt " + form + b"data\xff\xff\xff\xff"
    (tmp_path / "long.wav").write_bytes(head)
    os.truncate(tmp_path / "long.wav", len(head) + n_bytes)
    todo = job(tmp_path / "long.wav", tmp_path / name)
    for work in (preview, lambda todo: enhance_file(todo, identity)):
        with pytest.raises(AudioError, match=f"{name}: .*{reason}"):
            work(todo)


def test_missing_space_is_known_before_the_work(
    tmp_path: Path, noisy: Path, identity: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = noisy.stat().st_size
    free = shutil.disk_usage(tmp_path)._replace(free=size + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free)
    todo, promised = job(noisy, tmp_path / "out.wav"), dict[int, int]()
    preview(todo, promised)
    with pytest.raises(OutputError, match="MB of space left, wanted"):  # there is no room for a second one
        preview(todo, promised)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: free._replace(free=1000))
    with pytest.raises(OutputError, match="MB of space left, wanted"):
        enhance_file(todo, identity)


def test_a_network_that_gives_nan_is_an_error_and_leaves_nothing(tmp_path: Path, noisy: Path) -> None:
    bundle = write_identity_bundle(tmp_path / "bundle", gain=float("inf"), blocks=(16,))
    with Denoiser(Bundle.open(bundle)) as denoiser, pytest.raises(AudioError, match="the network gave NaN or Inf"):
        enhance_file(job(noisy, tmp_path / "new" / "out.wav"), denoiser)
    assert not (tmp_path / "new").exists()


def test_an_error_in_the_middle_leaves_nothing(tmp_path: Path, identity: Denoiser) -> None:
    wave = tones(16_000, seconds=5.0)
    wave[60_000] = np.nan
    soundfile.write(tmp_path / "in.wav", wave, 16_000, "FLOAT")
    with pytest.raises(AudioError, match=r"NaN or Inf at 3\.750 s"):
        enhance_file(job(tmp_path / "in.wav", tmp_path / "new" / "out.wav"), identity)
    assert names(tmp_path) == ["in.wav"]


def test_a_file_that_appeared_meanwhile_is_not_replaced(identity: Denoiser, noisy: Path) -> None:
    (todo,) = plan_jobs([str(noisy)], EnhanceOptions())
    assert todo.target is not None
    todo.target.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        enhance_file(todo, identity)
    assert todo.target.read_text() == "mine"
    assert names(noisy.parent) == ["noisy.enhanced.wav", "noisy.wav"]


@pytest.mark.parametrize("force", [False, True])
def test_what_is_private_stays_so(force: bool, identity: Denoiser, noisy: Path) -> None:
    noisy.chmod(0o600)
    todo = dataclasses.replace(job(noisy, force=force), plot=noisy.with_name("picture.png"))
    assert todo.target is not None
    assert todo.plot is not None
    if force:
        todo.target.touch(0o644)
    enhance_file(todo, identity)
    assert [path.stat().st_mode & 0o777 for path in (todo.target, todo.plot)] == [0o600, 0o600]


def test_a_name_that_is_too_long_is_found_before_the_work_and_stops_no_other(tmp_path: Path) -> None:
    """With what is added to it: 247 bytes and `.enhanced.wav`."""
    bundle = write_identity_bundle(tmp_path / "identity")
    sources = [tmp_path / f"{'x' * 243}.wav", tmp_path / "short.wav"]
    for source in sources:
        soundfile.write(source, tones(16_000, seconds=0.5), 16_000)
    jobs = plan_jobs(list(map(str, sources)), EnhanceOptions(output=None))
    with pytest.raises(OutputError, match=r"\.enhanced\.wav: cannot be written \(File name too long\)"):
        preview(jobs[0])
    long, short = enhance_files(jobs, denoiser_factory(bundle, jobs[0].options))
    assert "File name too long" in str(long.error)
    assert short.summary is not None


def test_a_link_that_leads_nowhere_is_not_written_through(identity: Denoiser, noisy: Path) -> None:
    link = noisy.with_name("noisy.enhanced.wav")
    link.symlink_to(noisy.with_name("elsewhere.wav"))
    with pytest.raises(AudioError, match="exists already"):
        plan_jobs([str(noisy)], EnhanceOptions())
    with pytest.raises(OutputError, match="exists already"):  # nor where it came after the plan
        enhance_file(job(noisy, link), identity)
    assert names(noisy.parent) == ["noisy.enhanced.wav", "noisy.wav"]


def test_a_preview_shows_what_would_be_written_and_writes_nothing(tmp_path: Path, noisy: Path) -> None:
    (todo,) = plan_jobs([str(noisy)], EnhanceOptions(output=str(tmp_path / "out.ogg")))
    shown = preview(todo)
    assert (shown.source.container, shown.source.duration_s) == ("WAV", (32_000 + 13) / 16_000)
    assert (shown.target.container, shown.target.subtype, shown.target.sample_rate_hz) == ("OGG", "VORBIS", 16_000)
    assert names(tmp_path) == ["noisy.wav"]
    with pytest.raises(AudioError, match="no such file"):
        preview(job(tmp_path / "missing.wav"))


def test_a_plot_is_a_png_beside_the_output(identity: Denoiser, noisy: Path) -> None:
    (todo,) = plan_jobs([str(noisy)], EnhanceOptions(plot=True))
    summary = enhance_file(todo, identity)
    picture = noisy.with_name("noisy.enhanced.png")
    assert summary.plot == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert names(noisy.parent) == ["noisy.enhanced.png", "noisy.enhanced.wav", "noisy.wav"]


def test_a_plot_that_cannot_be_made_leaves_no_output_either(
    identity: Denoiser, noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for drawing in ("edgese.enhance.plot", "edgese.pictures.figure"):
        monkeypatch.delitem(sys.modules, drawing, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (todo,) = plan_jobs([str(noisy)], EnhanceOptions(plot=True))
    with pytest.raises(OutputError, match=rf"matplotlib is missing.*{re.escape(install_command('plot'))}"):
        enhance_file(todo, identity)
    assert names(noisy.parent) == ["noisy.wav"]


# The plan


def targets(inputs: Sequence[object], **options: Any) -> list[Path | None]:
    return [todo.target for todo in plan_jobs([str(text) for text in inputs], EnhanceOptions(**options))]


def refused(inputs: Sequence[object], **options: Any) -> str:
    with pytest.raises(AudioError) as caught:
        targets(inputs, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with audio on two levels, and what must be passed over."""
    for name in ("b.wav", "a.FLAC", "sub/c.mp3", "sub/deep/d.ogg", "notes.txt", ".hidden.wav", ".cache/e.wav"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    return tmp_path / "tree"


def test_a_file_gets_its_output_beside_it(tmp_path: Path) -> None:
    assert targets([tmp_path / "a.b.wav", tmp_path / "talk.3", tmp_path / "c.MP3", tmp_path / "d.AIFF"]) == [
        tmp_path / "a.b.enhanced.wav",
        tmp_path / "talk.3.enhanced.wav",
        tmp_path / "c.enhanced.wav",
        tmp_path / "d.enhanced.AIFF",
    ]


def test_an_output_is_a_file_for_one_input_and_a_folder_for_several(tmp_path: Path) -> None:
    a, b, out = tmp_path / "a.wav", tmp_path / "b.mp3", tmp_path / "out"
    assert targets([a], output=str(out / "x.flac")) == [out / "x.flac"]
    assert targets([a], output=f"{out}/") == [out / "a.wav"]
    assert targets([a, b], output=str(out)) == [out / "a.wav", out / "b.wav"]
    out.mkdir()
    assert targets([a], output=str(out)) == [out / "a.wav"]
    assert targets([b], output=str(out), container="FLAC") == [out / "b.flac"]


def test_a_folder_is_mirrored(tree: Path) -> None:
    mirrored = ["a.FLAC", "b.wav", "sub/c.wav", "sub/deep/d.ogg"]
    beside, out = tree.with_name("tree.enhanced"), tree.parent / "out"
    assert targets([tree]) == [beside / name for name in mirrored]
    assert targets([f"{tree}/sub/.."]) == [beside / name for name in mirrored]
    assert targets([tree], output=str(out)) == [out / name for name in mirrored]
    assert targets([tree, tree / "sub" / "c.mp3"], output=str(out)) == [
        *(out / "tree" / name for name in mirrored),
        out / "c.wav",
    ]


def test_an_output_folder_inside_the_input_is_not_taken_for_input(tree: Path) -> None:
    out = tree / "out"
    first = targets([tree], output=str(out))
    out.mkdir()
    (out / "b.wav").touch()
    assert targets([tree], output=str(out), force=True) == first


def test_stdin_goes_to_stdout_or_to_the_output(tmp_path: Path) -> None:
    (todo,) = plan_jobs(["-"], EnhanceOptions())
    assert (todo.source, todo.target, todo.source_name, todo.target_name) == (None, None, "stdin", "stdout")
    assert targets(["-"], output=str(tmp_path / "a.wav")) == [tmp_path / "a.wav"]
    assert targets(["-"], output=f"{tmp_path}/") == [tmp_path / "stdin.wav"]
    assert targets([tmp_path / "a.wav"], output="-") == [None]


def test_the_input_is_never_the_output(tmp_path: Path, noisy: Path) -> None:
    (tmp_path / "soft.wav").symlink_to(noisy)
    os.link(noisy, tmp_path / "hard.wav")
    for output in ("noisy.wav", "soft.wav", "hard.wav", "../" + tmp_path.name + "/noisy.wav"):
        assert "is an input itself" in refused([noisy], output=str(tmp_path / output), force=True)
    assert "is an input itself" in refused([noisy], output=str(tmp_path), force=True)
    other = tmp_path / "noisy.enhanced.wav"
    other.touch()
    assert "is an input itself" in refused([noisy, other], force=True)


def test_two_inputs_never_share_an_output(tmp_path: Path) -> None:
    line = refused([tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav"], output=str(tmp_path / "out"))
    assert "x/a.wav" in line
    assert "y/a.wav" in line
    assert "both" in refused([tmp_path / "a.wav", tmp_path / "a.wav"])
    assert "both" in refused([tmp_path / "a.mp3", tmp_path / "a.mp3"])


def test_inputs_that_differ_in_their_suffix_alone_keep_apart(tmp_path: Path) -> None:
    inputs = [tmp_path / name for name in ("a.mp3", "a.wav", "a.aifc", "b.mp3")]
    wanted = ["a.mp3.wav", "a.wav", "a.aifc.wav", "b.wav"]
    assert targets(inputs, output=str(tmp_path / "out")) == [tmp_path / "out" / name for name in wanted]
    assert [path.name for path in targets(inputs) if path] == [
        *("a.mp3.enhanced.wav", "a.enhanced.wav", "a.aifc.enhanced.wav", "b.enhanced.wav")
    ]
    jobs = plan_jobs([str(tmp_path / "a.ogg"), str(tmp_path / "a.wav")], EnhanceOptions(plot=True))
    assert [job.plot.name for job in jobs if job.plot] == ["a.enhanced.png", "a.enhanced.wav.png"]


def test_several_inputs_are_not_joined_into_a_file(tmp_path: Path, tree: Path) -> None:
    for inputs in ([tmp_path / "a.wav", tmp_path / "b.wav"], [tree]):
        with pytest.raises(ConfigError, match=r"merged\.wav: found the name of a file, wanted a folder"):
            targets(inputs, output=str(tmp_path / "merged.wav"))
        assert targets(inputs, output=f"{tmp_path / 'merged.wav'}/")


def test_files_that_are_not_read_are_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgese.enhance.jobs.have_ffmpeg", lambda: False)
    for name in ("talk.m4a", "sub/film.WEBM", "sub/.hidden.mp4", "notes.txt"):
        (tree / name).touch()
    assert passed_over([str(tree), "-", "a.m4a"]) == [tree / "talk.m4a", tree / "sub" / "film.WEBM"]


def test_an_existing_output_needs_force(noisy: Path) -> None:
    target = noisy.with_name("noisy.enhanced.wav")
    target.touch()
    line = refused([noisy])
    assert str(target) in line
    assert "--force" in line
    assert targets([noisy], force=True) == [target]
    picture = noisy.with_name("noisy.enhanced.png")
    target.rename(picture)
    assert "exists already" in refused([noisy], plot=True)


def test_outputs_that_are_no_files_are_refused_even_with_force(tmp_path: Path, noisy: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    assert "found a folder, pipe or device" in refused([noisy], output=str(tmp_path / "pipe.wav"), force=True)
    assert targets([noisy], output=str(tmp_path / "folder.wav")) == [tmp_path / "folder.wav" / "noisy.wav"]
    assert "found a file, wanted a folder" in refused([noisy, tmp_path / "b.wav"], output=str(noisy))


def test_what_cannot_be_planned_is_told(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no input" in refused([])
    assert "empty name" in refused([""])
    assert "empty name" in refused([tmp_path / "a.wav"], output="")
    assert "more than once" in refused(["-", "-"])
    assert "no audio files" in refused([tmp_path / "empty"])
    assert "no place beside it" in refused(["/"])
    assert "takes one file" in refused([tree], output="-")
    assert "takes one file" in refused(["-", tmp_path / "a.wav"], output="-")
    assert "no place for a plot" in refused(["-"], plot=True)
    assert "names no audio format" in refused([tmp_path / "a.wav"], output=str(tmp_path / "out"))
    assert "choose one" in refused([tmp_path / "a.wav"], output=str(tmp_path / "out.flac"), container="WAV")
    assert targets([tmp_path / "a.wav"], output=str(tmp_path / "out.wav"), container="RF64")


@pytest.mark.parametrize(
    "options",
    [
        {"atten_limit_db": -1.0},
        {"atten_limit_db": float("nan")},
        {"jobs": 0},
        {"container": "BMP"},
        {"subtype": "PCM_17"},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="found"):
        EnhanceOptions(**options)


# Several files


def test_a_folder_is_enhanced_and_a_bad_file_does_not_stop_the_others(tmp_path: Path, identity_bundle: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for index in range(4):
        soundfile.write(folder / f"{index}.wav", tones(16_000, seconds=0.5), 16_000)
    (folder / "1.wav").write_bytes(b"RIFF")
    soundfile.write(folder / "sub" / "silent.flac", np.zeros(16_000), 16_000)
    jobs = plan_jobs([str(folder), str(tmp_path / "missing.wav")], EnhanceOptions(output=str(tmp_path / "out")))
    seen: list[Outcome] = []
    outcomes = enhance_files(jobs, denoiser_factory(identity_bundle, jobs[0].options), n_workers=3, done=seen.append)
    assert [outcome.job for outcome in outcomes] == jobs
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, True, True, False]
    assert [isinstance(outcome.summary, Summary) for outcome in outcomes] == [True, False, True, True, True, False]
    assert sorted(map(id, seen)) == sorted(map(id, outcomes))
    assert names(tmp_path / "out") == [*("in", "in/0.wav", "in/2.wav", "in/3.wav", "in/sub", "in/sub/silent.flac")]


def test_every_worker_has_a_denoiser_of_its_own_and_closes_it(tmp_path: Path, identity_bundle: Path) -> None:
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", tones(16_000, seconds=0.2), 16_000)
    jobs = plan_jobs([str(tmp_path)], EnhanceOptions(output=str(tmp_path / "out")))
    opened: list[Denoiser] = []
    together = threading.Barrier(3)  # each worker has a file under way

    def open_one() -> Denoiser:
        opened.append(Denoiser(Bundle.open(identity_bundle)))
        return opened[-1]

    def wait(*_: object) -> None:
        together.wait(timeout=30)

    outcomes = enhance_files(jobs, open_one, n_workers=8, progress=wait)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert len(opened) == 3
    for denoiser in opened:
        with pytest.raises(RuntimeUnavailable, match="closed"):
            list(denoiser.blocks([tones(16_000)], 1))


def test_no_jobs_are_no_work() -> None:
    def never() -> Denoiser:
        raise AssertionError("no denoiser is needed")

    assert enhance_files([], never) == []


def test_a_bundle_that_cannot_run_ends_everything(tmp_path: Path, noisy: Path, identity_bundle: Path) -> None:
    (todo,) = plan_jobs([str(noisy)], EnhanceOptions())
    with pytest.raises(ExportError, match="no graph of block 3"):
        enhance_files([todo], denoiser_factory(identity_bundle, EnhanceOptions(block=3)))
    with pytest.raises(RuntimeUnavailable, match="abacus"):
        enhance_files([todo], denoiser_factory(identity_bundle, EnhanceOptions(runtime="abacus")))
    with pytest.raises(ExportError):
        denoiser_factory(tmp_path / "none", EnhanceOptions())
    unverified = write_identity_bundle(tmp_path / "bundle", verified=False)
    with pytest.raises(VerificationError, match="did not pass its verification"):
        denoiser_factory(unverified, EnhanceOptions())
    foreign = write_identity_bundle(tmp_path / "foreign", name="another")
    with pytest.raises(RuntimeUnavailable, match=r"edgese\.bundle"):
        enhance_files([todo], denoiser_factory(foreign, EnhanceOptions()))
    assert not noisy.with_name("noisy.enhanced.wav").exists()


def test_stopping_gives_up_what_is_under_way_and_begins_nothing(tmp_path: Path, identity_bundle: Path) -> None:
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", tones(16_000, seconds=5.0), 16_000)
    jobs = plan_jobs([str(tmp_path)], EnhanceOptions(output=str(tmp_path / "out")))
    stop = threading.Event()

    def progress(job: Job, done_s: float, total_s: float | None) -> None:
        if done_s > 2:
            stop.set()

    outcomes = enhance_files(
        jobs, denoiser_factory(identity_bundle, EnhanceOptions()), n_workers=1, progress=progress, stop=stop
    )
    assert [type(outcome.error) for outcome in outcomes] == [Stopped] * 3
    assert names(tmp_path) == ["0.wav", "1.wav", "2.wav"]


def test_an_exception_of_the_caller_s_own_passes_and_leaves_nothing(noisy: Path, identity_bundle: Path) -> None:
    def progress(*_: object) -> None:
        raise ZeroDivisionError

    (todo,) = plan_jobs([str(noisy)], EnhanceOptions())
    with pytest.raises(ZeroDivisionError):
        enhance_files([todo], denoiser_factory(identity_bundle, EnhanceOptions()), progress=progress)
    assert names(noisy.parent) == ["noisy.wav"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_work_tidily(tmp_path: Path, identity_bundle: Path, number: signal.Signals) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for index in range(4):
        soundfile.write(folder / f"{index}.wav", tones(16_000, seconds=20.0), 16_000)
    jobs = plan_jobs([str(folder)], EnhanceOptions(output=str(tmp_path / "out")))
    before = signal.getsignal(number)

    def progress(job: Job, done_s: float, total_s: float | None) -> None:
        os.kill(os.getpid(), number)  # a second signal would act as it always does
        progress_goes_on.wait(timeout=30)

    progress_goes_on = threading.Event()
    with stopping_on_signals() as stop:
        waiter = threading.Thread(target=lambda: (stop.wait(30), progress_goes_on.set()))
        waiter.start()
        outcomes = enhance_files(
            jobs, denoiser_factory(identity_bundle, EnhanceOptions()), n_workers=1, progress=progress, stop=stop
        )
        waiter.join()
        assert stop.is_set()
    assert signal.getsignal(number) is before
    assert all(isinstance(outcome.error, Stopped) for outcome in outcomes)
    assert not (tmp_path / "out").exists()


# Pipes, and what is imported

PIPE = """
import sys
from pathlib import Path
from edgese.enhance.files import denoiser_factory, enhance_files
from edgese.enhance.jobs import EnhanceOptions, plan_jobs
options = EnhanceOptions(container=sys.argv[2] if len(sys.argv) > 2 else None)
outcome = enhance_files(plan_jobs(["-"], options), denoiser_factory(Path(sys.argv[1]), options))[0]
sys.exit(str(outcome.error) if outcome.error else 0)
"""


def test_stdin_is_enhanced_to_stdout(tmp_path: Path, halving_bundle: Path, noisy: Path) -> None:
    data = bytearray(noisy.read_bytes())
    data[4:8] = data[40:44] = b"\xff" * 4  # as ffmpeg writes into a pipe
    done = run_python(PIPE, str(halving_bundle), input=bytes(data))
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "out.wav").write_bytes(done.stdout)
    enhanced = soundfile.read(tmp_path / "out.wav")[0]
    np.testing.assert_allclose(enhanced, 0.5 * soundfile.read(noisy)[0], atol=2**-15)


def test_a_bad_stdin_and_a_closed_stdout_are_one_line(halving_bundle: Path, noisy: Path) -> None:
    done = run_python(PIPE, str(halving_bundle), input=b"")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"stdin: found an empty file")
    assert done.stderr.count(b"\n") == 1
    with Path("/dev/full").open("wb") as full:
        failed = subprocess.run(
            [sys.executable, "-c", PIPE, str(halving_bundle)],
            input=noisy.read_bytes(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert failed.returncode == 1
    assert failed.stderr.startswith(b"stdout: cannot be written (No space left on device)")


def test_enhancing_needs_neither_torch_nor_onnx_nor_matplotlib(
    tmp_path: Path, identity_bundle: Path, noisy: Path
) -> None:
    script = """
import sys
from pathlib import Path
from edgese.enhance.files import denoiser_factory, enhance_files
from edgese.enhance.jobs import EnhanceOptions, plan_jobs
assert "onnxruntime" not in sys.modules, "the runtime is imported before it is asked for"
options = EnhanceOptions()
enhance_files(plan_jobs([sys.argv[2]], options), denoiser_factory(Path(sys.argv[1]), options))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    done = run_python(script, str(identity_bundle), str(noisy))
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.decode().split()
    assert "onnxruntime" in loaded
    assert not {"torch", "onnx", "matplotlib", "scipy"} & set(loaded)
    assert noisy.with_name("noisy.enhanced.wav").exists()
