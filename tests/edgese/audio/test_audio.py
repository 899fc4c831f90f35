"""Audio files in and out: formats, every kind of bad input, outputs that appear whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.atomic_file import PartialFile
from edgese.audio import Samples
from edgese.audio.formats import AudioInfo, choose_format
from edgese.audio.reader import MAX_CHANNELS, AudioReader, read_wave, resampled_by_soxr
from edgese.audio.writer import AudioWriter
from edgese.errors import AudioError, OutputError

from ..helpers.disk import file_size_limit

RATE = 16_000

LOSSLESS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAVEX", "PCM_16"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_24"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_32"),
    ("CAF", "PCM_24"),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("WAV", "ULAW"), ("AU", "ALAW")]


def noise(n_frames: int, n_channels: int = 1) -> Samples:
    """Noise on the grid of 16 bits, so that every lossless subtype holds it exactly."""
    steps = np.random.default_rng(n_frames + n_channels).integers(-9000, 9000, (n_frames, n_channels))
    return (steps / 2**15).astype(np.float32)


def read_all(path: Path) -> Samples:
    with AudioReader(path) as reader:
        return np.concatenate(list(reader.blocks()))


def write_all(path: Path, wave: Samples, container: str, subtype: str, rate_hz: int = RATE, step: int = 5000) -> int:
    with AudioWriter(path, AudioInfo(rate_hz, wave.shape[1], None, container, subtype)) as writer:
        for start in range(0, len(wave), step):
            writer.write(wave[start : start + step])
        writer.finish()
        writer.publish(replace=False)
        return writer.n_clipped


def refusal(path: Path) -> str:
    """The one line that reading this file ends with."""
    with pytest.raises(AudioError) as caught:
        read_all(path)
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    return line


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    """Two seconds of 16-bit noise."""
    path = tmp_path / "noise.wav"
    write_all(path, noise(2 * RATE), "WAV", "PCM_16")
    return path


# Reading and writing


@pytest.mark.parametrize(("container", "subtype"), LOSSLESS)
def test_what_is_written_is_read_back_exactly(tmp_path: Path, container: str, subtype: str) -> None:
    path = tmp_path / "file"
    wave = noise(RATE + 77, 2)
    assert write_all(path, wave, container, subtype) == 0
    with AudioReader(path) as reader:
        assert reader.info == AudioInfo(RATE, 2, len(wave), container, subtype)
        assert reader.info.duration_s == len(wave) / RATE
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks())), wave)


@pytest.mark.parametrize(("container", "subtype"), LOSSY)
def test_lossy_formats_keep_length_and_alignment(tmp_path: Path, container: str, subtype: str) -> None:
    path = tmp_path / "file"
    time = np.arange(2 * RATE + 77) / RATE
    wave = (0.3 * np.sin(2 * np.pi * 300 * time) * np.hanning(len(time))).astype(np.float32)[:, None]
    write_all(path, wave, container, subtype)
    read = read_all(path)
    assert len(read) == len(wave)
    shifts = range(-20, 21)
    likeness = [float(np.dot(np.roll(wave[:, 0], shift), read[:, 0])) for shift in shifts]
    assert shifts[int(np.argmax(likeness))] == 0


def test_blocks_are_about_a_second_whatever_the_length(tmp_path: Path) -> None:
    write_all(tmp_path / "mono.wav", noise(5 * RATE), "WAV", "PCM_16")
    write_all(tmp_path / "wide.wav", noise(2 * 48_000, 60), "WAV", "PCM_16", 48_000)
    with AudioReader(tmp_path / "mono.wav") as reader:
        assert [len(block) for block in reader.blocks()] == [RATE] * 5
    with AudioReader(tmp_path / "wide.wav") as reader:
        assert max(block.size for block in reader.blocks()) <= 2**20


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24", "PCM_32"])
def test_integers_are_rounded_clipped_and_counted(tmp_path: Path, subtype: str) -> None:
    step = 2.0 ** -(int(subtype[4:] if subtype != "PCM_S8" else 8) - 1)
    values = np.array([0.25 + 0.4 * step, 0.25 + 0.6 * step, -0.25 - 0.6 * step, 1.5, -1.5, 1.0, -1.0])
    wave = np.tile(values.astype(np.float32), 100)[:, None]
    assert write_all(tmp_path / "file.aiff", wave, "AIFF", subtype) == 200
    written = soundfile.read(tmp_path / "file.aiff")[0][:7]
    rounded = np.rint(wave[:7, 0].astype(np.float64) / step) * step
    np.testing.assert_array_equal(written, np.clip(rounded, -1.0, 1.0 - step))


def test_floats_keep_what_is_beyond_full_scale(tmp_path: Path) -> None:
    wave = 3 * noise(RATE)
    assert write_all(tmp_path / "file.wav", wave, "WAV", "FLOAT") == 0
    np.testing.assert_array_equal(read_all(tmp_path / "file.wav"), wave)


@pytest.mark.parametrize("rate_hz", [4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 384_000])
def test_resampling_there_and_back_shifts_nothing(rate_hz: int) -> None:
    time = np.arange(rate_hz + 13) / rate_hz
    wave = (np.sin(2 * np.pi * 440 * time) * np.hanning(len(time))).astype(np.float32)[:, None]
    blocks = [wave[start : start + 3000] for start in range(0, len(wave), 3000)]
    back = np.concatenate(list(resampled_by_soxr(resampled_by_soxr(blocks, rate_hz, RATE, 1), RATE, rate_hz, 1)))
    n = min(len(back), len(wave))
    assert len(wave) - n <= 1
    np.testing.assert_allclose(back[:n], wave[:n], atol=1e-5)


@pytest.mark.parametrize(
    ("source", "suffix", "asked", "chosen"),
    [
        (("WAV", "PCM_24"), ".wav", (None, None), ("WAV", "PCM_24")),
        (("WAV", "PCM_24"), ".flac", (None, None), ("FLAC", "PCM_24")),
        (("WAV", "FLOAT"), ".flac", (None, None), ("FLAC", "PCM_24")),
        (("WAV", "DOUBLE"), ".rf64", (None, None), ("RF64", "DOUBLE")),
        (("WAV", "PCM_U8"), ".flac", (None, None), ("FLAC", "PCM_S8")),
        (("WAVEX", "PCM_16"), ".wav", (None, None), ("WAVEX", "PCM_16")),
        (("WAV", "IMA_ADPCM"), ".wav", (None, None), ("WAV", "PCM_16")),
        (("WAV", "PCM_16"), ".ogg", (None, None), ("OGG", "VORBIS")),
        (("OGG", "OPUS"), ".ogg", (None, None), ("OGG", "OPUS")),
        (("OGG", "VORBIS"), ".opus", (None, None), ("OGG", "OPUS")),
        (("OGG", "VORBIS"), ".wav", (None, None), ("WAV", "PCM_16")),
        (("MP3", "MPEG_LAYER_III"), ".wav", (None, None), ("WAV", "PCM_16")),
        (("FLAC", "PCM_16"), "", (None, None), ("WAV", "PCM_16")),
        (("FLAC", "PCM_16"), ".wav", (None, "FLOAT"), ("WAV", "FLOAT")),
        (("WAV", "PCM_16"), "", ("FLAC", None), ("FLAC", "PCM_16")),
        (("RF64", "PCM_16"), ".wav", ("WAV", None), ("WAV", "PCM_16")),
    ],
)
def test_the_output_format_follows_what_was_asked_for_then_the_suffix_then_the_input(
    source: tuple[str, str], suffix: str, asked: tuple[str | None, str | None], chosen: tuple[str, str]
) -> None:
    info = choose_format(AudioInfo(RATE, 2, 1000, *source), suffix, *asked)
    assert (info.container, info.subtype) == chosen
    assert (info.sample_rate_hz, info.n_channels) == (RATE, 2)


def test_a_wav_that_would_pass_4_gib_becomes_rf64() -> None:
    long = AudioInfo(48_000, 2, 2**30, "WAV", "PCM_16")
    assert choose_format(dataclasses.replace(long, n_frames=2**29), ".wav", None, None).container == "WAV"
    assert choose_format(long, ".wav", None, None).container == "RF64"
    assert choose_format(long, ".flac", None, None).container == "FLAC"


def test_a_subtype_that_the_container_cannot_hold_is_refused_with_those_it_can() -> None:
    with pytest.raises(AudioError, match=r"VORBIS: WAV cannot hold it, wanted one of PCM_U8, PCM_16"):
        choose_format(AudioInfo(RATE, 1, 1000, "WAV", "PCM_16"), ".wav", None, "VORBIS")


# Bad input


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "missing.wav")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    assert "found a folder" in refusal(tmp_path)


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    assert "pipe or device" in refusal(tmp_path / "pipe.wav")


def test_an_unreadable_file_says_so(wav: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:  # a real one cannot be made where tests run as root
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "permission denied" in refusal(wav)


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    assert "0 bytes" in refusal(tmp_path / "empty.wav")


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".raw", ".vox", ".txt", ""])
def test_text_is_not_audio_whatever_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"letter{suffix}"
    path.write_text("dear reader, " * 1000)
    assert "no audio that can be read" in refusal(path)


@pytest.mark.parametrize(
    ("container", "subtype"), [*LOSSLESS, ("OGG", "VORBIS"), ("OGG", "OPUS")], ids=lambda value: str(value)
)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_a_truncated_file_is_refused(tmp_path: Path, container: str, subtype: str, share: float) -> None:
    path = tmp_path / "cut"
    write_all(path, noise(2 * RATE), container, subtype)
    os.truncate(path, int(path.stat().st_size * share))
    line = refusal(path)
    assert "truncated" in line or "no audio that can be read" in line


@pytest.mark.parametrize("n_bytes", [1, 4, 11, 12, 20, 36, 43, 44, 45])
def test_a_wav_cut_within_its_header_is_refused(wav: Path, n_bytes: int) -> None:
    os.truncate(wav, n_bytes)
    line = refusal(wav)
    assert any(words in line for words in ("truncated", "no audio that can be read", "no samples"))


def test_an_mp3_that_ends_early_is_read_to_where_it_ends(tmp_path: Path) -> None:
    write_all(tmp_path / "cut.mp3", noise(2 * RATE), "MP3", "MPEG_LAYER_III")
    os.truncate(tmp_path / "cut.mp3", (tmp_path / "cut.mp3").stat().st_size // 2)
    with AudioReader(tmp_path / "cut.mp3") as reader:
        assert not reader.info.exact
        n_frames = sum(len(block) for block in reader.blocks())
        assert reader.n_read == n_frames
        assert 0.3 * 2 * RATE < n_frames < 0.7 * 2 * RATE


def test_a_flac_with_a_damaged_frame_is_refused_where_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "damaged.flac"
    write_all(path, noise(4 * RATE), "FLAC", "PCM_16")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    assert "cannot be decoded" in refusal(path)


def test_a_flac_stream_of_unknown_length_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "stream.flac"
    write_all(path, noise(RATE), "FLAC", "PCM_16")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's total of samples, 36 bits: 0 means unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with AudioReader(path) as reader:
        assert reader.info.n_frames is None
    np.testing.assert_array_equal(read_all(path), noise(RATE))


@pytest.mark.parametrize("sizes", [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (0x80000024, 0x80000000)])
def test_a_wav_streamed_through_a_pipe_is_whole_although_its_header_could_not_know(
    wav: Path, sizes: tuple[int, int]
) -> None:
    before = read_all(wav)
    data = bytearray(wav.read_bytes())
    data[4:8], data[40:44] = (struct.pack("<I", size) for size in sizes)
    wav.write_bytes(data)
    np.testing.assert_array_equal(read_all(wav), before)


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), RATE)
    assert "no samples" in refusal(tmp_path / "none.wav")


@pytest.mark.parametrize("n_frames", [1, 511, 512])
def test_short_files_are_read_and_refused_only_to_learn_from(tmp_path: Path, n_frames: int) -> None:
    soundfile.write(tmp_path / "short.wav", noise(n_frames), RATE)
    assert len(read_all(tmp_path / "short.wav")) == n_frames
    if n_frames < 512:
        with pytest.raises(AudioError, match=f"found {n_frames} sample.*wanted at least 32 ms"):
            read_wave(tmp_path / "short.wav", RATE)
    else:
        assert len(read_wave(tmp_path / "short.wav", RATE)) == n_frames


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_with_their_time(tmp_path: Path, value: float) -> None:
    wave = noise(3 * RATE, 2)
    wave[int(1.25 * RATE), 1] = value
    soundfile.write(tmp_path / "broken.wav", wave, RATE, "FLOAT")
    assert "NaN or Inf at 1.250 s" in refusal(tmp_path / "broken.wav")


def test_silence_is_read_and_refused_only_to_learn_from(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    with AudioReader(tmp_path / "silent.wav") as reader:
        assert sum(map(len, reader.blocks())) == RATE
        assert reader.silent
    with pytest.raises(AudioError, match=r"silence, 1\.00 s"):
        read_wave(tmp_path / "silent.wav", RATE)


@pytest.mark.parametrize("rate_hz", [1, 3_999, 384_001, 2**31 - 1])
def test_an_absurd_rate_is_refused(tmp_path: Path, rate_hz: int) -> None:
    soundfile.write(tmp_path / "rate.wav", noise(RATE), rate_hz)
    assert f"{rate_hz} Hz" in refusal(tmp_path / "rate.wav")


def test_too_many_channels_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "wide.wav", noise(600, MAX_CHANNELS), RATE)
    assert read_all(tmp_path / "wide.wav").shape == (600, MAX_CHANNELS)
    soundfile.write(tmp_path / "wider.wav", noise(600, MAX_CHANNELS + 1), RATE)
    assert "65 channels" in refusal(tmp_path / "wider.wav")


def test_a_file_name_cannot_break_the_line(tmp_path: Path) -> None:
    with pytest.raises(AudioError) as caught:
        AudioReader(tmp_path / "two\nlines\udcff.wav")
    assert "two\\nlines\\udcff.wav" in str(caught.value)
    str(caught.value).encode("utf-8")


# Outputs appear whole or not at all


def test_what_is_not_published_leaves_nothing(tmp_path: Path) -> None:
    info = AudioInfo(RATE, 1, None, "WAV", "PCM_16")
    with AudioWriter(tmp_path / "new" / "folder" / "out.wav", info) as writer:
        writer.write(noise(RATE))
        assert writer.path.exists()
        writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_or_are_in_use_stay(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with PartialFile(tmp_path / "old" / "new" / "a"), PartialFile(tmp_path / "old" / "new" / "b") as kept:
        kept.publish(replace=False)
    assert [path.name for path in (tmp_path / "old" / "new").iterdir()] == ["b"]
    with PartialFile(tmp_path / "old" / "other" / "a"):
        pass
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]


def test_an_existing_file_is_replaced_only_when_that_is_allowed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with PartialFile(target) as partial, pytest.raises(OutputError, match="exists already"):
        partial.publish(replace=False)
    assert target.read_text() == "old"
    with PartialFile(target) as partial:
        os.write(partial.fd, b"new")
        partial.publish(replace=True)
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with PartialFile(tmp_path / "link") as partial, pytest.raises(OutputError, match="exists already"):
        partial.publish(replace=False)  # though it leads nowhere yet
    with PartialFile(tmp_path / "link") as partial:
        partial.publish(replace=True)
    assert (tmp_path / "real" / "out").is_file()
    assert (tmp_path / "link").is_symlink()


def test_the_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with PartialFile(tmp_path / "out") as partial:
        partial.publish(replace=False)
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)
def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path: Path, container: str, subtype: str | None) -> None:
    info = AudioInfo(48_000, 2, None, container, subtype or "MPEG_LAYER_III")
    with file_size_limit(50_000), AudioWriter(tmp_path / "out", info) as writer:
        wave = noise(9600 * 100, 2)
        with pytest.raises(OutputError, match=r"out: cannot be written \(File too large\)"):
            writer.write(wave)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("container", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
)
def test_a_disk_that_is_full_when_the_file_is_completed_is_noticed(
    tmp_path: Path, container: str, subtype: str
) -> None:
    with AudioWriter(tmp_path / "out", AudioInfo(16_000, 1, None, container, subtype)) as writer:
        for _ in range(10):
            writer.write(noise(2500))
        limit = writer.path.stat().st_size + 100  # the encoders still hold the rest
        with file_size_limit(limit), pytest.raises(OutputError, match="out"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_to_keep_the_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with PartialFile(tmp_path / "out") as partial, pytest.raises(OutputError, match="No space left on device"):
        partial.publish(replace=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/out.wav", "file/more/out.wav", "x" * 300 + "/out.wav"])
def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"out\.wav: cannot be written"):
        PartialFile(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("rate_hz", "n_channels", "container", "subtype"),
    [
        (384_000, 1, "OGG", "VORBIS"),  # libvorbis would crash
        (44_100, 1, "OGG", "OPUS"),
        (65_537, 1, "FLAC", "PCM_16"),
        (48_000, 9, "FLAC", "PCM_16"),
        (96_000, 1, "MP3", "MPEG_LAYER_III"),
    ],
)
def test_a_format_that_cannot_hold_the_sound_is_refused(
    tmp_path: Path, rate_hz: int, n_channels: int, container: str, subtype: str
) -> None:
    with (
        pytest.raises(AudioError, match=r"out: .*choose another format"),
        AudioWriter(tmp_path / "out", AudioInfo(rate_hz, n_channels, None, container, subtype)) as writer,
    ):
        writer.write(noise(5000, n_channels))
    assert list(tmp_path.iterdir()) == []


def test_many_files_are_read_and_written_at_once(tmp_path: Path) -> None:
    def work(index: int) -> None:
        for _ in range(3):
            path = tmp_path / f"folder{index % 2}" / f"{index}.flac"
            write_all(path, noise(RATE + index), "FLAC", "PCM_16")
            same[index] = np.array_equal(read_all(path), noise(RATE + index))
            path.unlink()

    same: dict[int, bool] = {}
    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == dict.fromkeys(range(8), True)
