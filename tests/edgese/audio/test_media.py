"""Videos and phone recordings through ffmpeg: sound replaced in time with the picture, all else as it was; refusals."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgese.audio import Samples
from edgese.audio.media import MediaReader, have_ffmpeg, open_reader
from edgese.enhance import jobs as planning
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import enhance_file
from edgese.enhance.jobs import EnhanceOptions, passed_over, plan_jobs
from edgese.errors import AudioError

with_ffmpeg = pytest.mark.skipif(not have_ffmpeg(), reason="ffmpeg is not installed: videos cannot be read")
RATE = 16_000
WAVE = (np.random.default_rng(0).normal(0, 0.1, 3 * RATE) * (np.arange(3 * RATE) // 4000 % 2)).astype(np.float32)


def ffmpeg(*arguments: Any) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def video(path: Path, *options: str, sound: Samples = WAVE) -> Path:
    """A film of 3 s; options as for the output."""
    wav = path.with_suffix(".source.wav")
    soundfile.write(wav, sound, RATE)
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=3")
    ffmpeg(*picture, "-i", wav, "-map", "0:v", "-map", "1:a", "-metadata", "title=A talk", *options, path)
    return path


def enhanced(source: Path, target: Path, denoiser: Denoiser) -> Any:
    (job,) = plan_jobs([str(source)], EnhanceOptions(output=str(target)))
    return enhance_file(job, denoiser)


def decoded(path: Path) -> Samples:
    with open_reader(path) as reader:
        return np.concatenate(list(reader.blocks()))[:, 0]


def facts(path: Path) -> dict[str, Any]:
    command = ("ffprobe", "-v", "error", "-show_streams", "-show_format", "-of", "json", path)
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def packets(path: Path) -> list[str]:
    """Checksums of the picture's packets."""
    command = (
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        "v",
        "-show_data_hash",
        "md5",
        "-show_packets",
        "-of",
        "json",
        path,
    )
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [packet["data_hash"] for packet in found["packets"]]


def picture_begins(path: Path) -> float:
    return next(float(stream["start_time"]) for stream in facts(path)["streams"] if stream["codec_type"] == "video")


@with_ffmpeg
@pytest.mark.parametrize(
    ("suffix", "options", "codec"),
    [
        ("mp4", ("-c:v", "mpeg4", "-c:a", "aac"), "aac"),
        ("mkv", ("-c:v", "mpeg4", "-c:a", "flac"), "flac"),
        ("webm", ("-c:v", "libvpx", "-c:a", "libopus"), "opus"),
        ("mov", ("-c:v", "mpeg4", "-c:a", "pcm_s16le"), "aac"),
    ],
)
def test_the_sound_is_replaced_and_the_picture_is_the_same(
    tmp_path: Path, halving: Denoiser, suffix: str, options: tuple[str, ...], codec: str
) -> None:
    source, target = video(tmp_path / f"in.{suffix}", *options), tmp_path / f"out.{suffix}"
    summary = enhanced(source, target, halving)
    assert packets(target) == packets(source)
    streams = {stream["codec_type"]: stream for stream in facts(target)["streams"]}
    assert (streams["audio"]["codec_name"], facts(target)["format"]["tags"]["title"]) == (codec, "A talk")
    assert summary.warnings == ()
    before, after = decoded(source), decoded(target)
    length = min(len(before), len(after))
    product = np.fft.irfft(np.fft.rfft(after[:length]) * np.conj(np.fft.rfft(before[:length])), length)
    rate_hz = int(streams["audio"]["sample_rate"])
    lag = (int(product.argmax()) + length // 2) % length - length // 2
    moved_s = picture_begins(target) - picture_begins(source)  # as Opus' priming moves all of a WebM
    assert abs(lag - moved_s * rate_hz) <= 0.003 * rate_hz  # sound and picture stay together
    assert np.std(after) / np.std(before) == pytest.approx(0.5, rel=0.1)


@with_ffmpeg
def test_a_phone_recording_becomes_one_and_other_formats_on_demand(tmp_path: Path, identity: Denoiser) -> None:
    soundfile.write(tmp_path / "in.wav", WAVE, RATE)
    ffmpeg("-i", tmp_path / "in.wav", "-c:a", "aac", "-b:a", "128k", tmp_path / "memo.m4a")
    (job,) = plan_jobs([str(tmp_path / "memo.m4a")], EnhanceOptions())
    assert job.target == tmp_path / "memo.enhanced.m4a"
    enhance_file(job, identity)
    assert np.corrcoef(decoded(tmp_path / "memo.m4a")[:40_000], decoded(job.target)[:40_000])[0, 1] > 0.98
    assert enhanced(tmp_path / "memo.m4a", tmp_path / "memo.flac", identity).container == "FLAC"
    assert enhanced(tmp_path / "in.wav", tmp_path / "new.m4a", identity).container == "M4A"
    np.testing.assert_allclose(soundfile.read(tmp_path / "memo.flac")[0], decoded(tmp_path / "memo.m4a"), atol=1e-4)


@with_ffmpeg
def test_a_late_begin_is_silence_and_further_tracks_stay(tmp_path: Path, identity: Denoiser) -> None:
    source = video(tmp_path / "one.mkv", "-c:v", "mpeg4", "-c:a", "flac")
    late = ("-itsoffset", "0.5", "-i", source, "-map", "0:v", "-map", "1:a", "-map", "0:a", "-c", "copy")
    ffmpeg("-i", source, *late, tmp_path / "two.mkv")
    summary = enhanced(tmp_path / "two.mkv", tmp_path / "out.mkv", identity)
    assert summary.warnings == ("of 2 tracks of sound the first was enhanced, the others are as they were",)
    assert [stream["codec_type"] for stream in facts(tmp_path / "out.mkv")["streams"]] == ["video", "audio", "audio"]
    found = decoded(tmp_path / "out.mkv")
    assert not found[: RATE // 2 - 400].any()
    np.testing.assert_allclose(found[RATE // 2 :][: len(WAVE) - 8000], WAVE[:-8000], atol=1e-3)


@with_ffmpeg
@pytest.mark.parametrize("size", [100, 3000, 20_000])
def test_a_film_that_is_cut_leaves_nothing(tmp_path: Path, identity: Denoiser, size: int) -> None:
    source = video(tmp_path / "in.mp4", "-c:v", "mpeg4", "-c:a", "aac")
    source.write_bytes(source.read_bytes()[:size])
    with pytest.raises(AudioError, match="ffmpeg cannot read it"):
        enhanced(source, tmp_path / "out.mp4", identity)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "in.source.wav"]


@with_ffmpeg
def test_a_film_without_sound_says_so(tmp_path: Path, identity: Denoiser) -> None:
    source = video(tmp_path / "in.mp4", "-an", "-c:v", "mpeg4")
    with pytest.raises(AudioError, match="found no sound in it"):
        enhanced(source, tmp_path / "out.mp4", identity)


@with_ffmpeg
def test_a_playlist_in_a_film_s_clothes_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in.mp4").write_text("#EXTM3U\nhttp://127.0.0.1:1/x\n")
    with pytest.raises(AudioError, match="found no audio that can be read"):
        open_reader(tmp_path / "in.mp4")
    hidden = bytes(4) + b"ftypisom" + b"\n#EXTM3U\nhttp://127.0.0.1:1/x\n"
    (tmp_path / "in.mp4").write_bytes(hidden)
    with pytest.raises(AudioError, match="ffmpeg cannot read it"):
        open_reader(tmp_path / "in.mp4")


@with_ffmpeg
def test_a_reader_that_is_left_early_ends_its_process(tmp_path: Path) -> None:
    source = video(tmp_path / "in.mp4", "-c:v", "mpeg4", "-c:a", "aac")
    with open_reader(source) as reader:
        assert isinstance(reader, MediaReader)
        assert len(reader.excerpt(0.1)) == 1600
        next(reader.blocks())
        process = reader._process
    assert process is not None
    assert process.poll() is not None


def test_without_ffmpeg_the_refusal_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgese.audio.media.have_ffmpeg", lambda: False)
    (tmp_path / "in.m4a").write_bytes(bytes(4) + b"ftypM4A " + bytes(100))
    with pytest.raises(AudioError, match=r"an MP4 file .* as in: ffmpeg -i INPUT OUTPUT\.wav"):
        open_reader(tmp_path / "in.m4a")


@pytest.mark.parametrize("installed", [True, False])
def test_a_folder_s_films_are_done_where_they_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr(planning, "have_ffmpeg", lambda: installed)
    for name in ("a.wav", "b.m4a", "c.ac3"):
        (tmp_path / name).touch()
    found = plan_jobs([str(tmp_path)], EnhanceOptions(output=str(tmp_path / "out")))
    assert [job.target.name for job in found if job.target] == (["a.wav", "b.m4a"] if installed else ["a.wav"])
    assert [path.name for path in passed_over([str(tmp_path)])] == (["c.ac3"] if installed else ["b.m4a", "c.ac3"])
