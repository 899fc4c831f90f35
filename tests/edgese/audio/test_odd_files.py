"""What recorders, players and `cat` make of audio files: joined, tagged, never completed, damaged; all read whole."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.audio import Samples
from edgese.audio.reader import AudioReader, read_wave
from edgese.errors import AudioError

RATE = 16_000
N = 2 * RATE

ID3V2 = b"ID3\x04\0\0" + bytes([0, 0, 8, 0]) + b"TIT2\xff\xfb\x90\x64" + bytes(1016)  # what looks like a frame in it
ID3V1 = b"TAG" + bytes(125)
_APE_BODY = b"\x05\0\0\0\0\0\0\0Title\0hello"


def ape(flags: int) -> bytes:
    return b"APETAGEX" + struct.pack("<IIII8x", 2000, len(_APE_BODY) + 32, 1, flags)


APE = ape(0xA0000000) + _APE_BODY + ape(0x80000000)
LIST = b"LIST" + struct.pack("<I", 12) + b"INFOISFT\0\0\0\0"


def noise(n_frames: int = N) -> Samples:
    steps = np.random.default_rng(5).integers(-9000, 9000, n_frames)
    return (steps / 2**15).astype(np.float32)


def encoded(folder: Path, kind: str, n_frames: int = N, rate_hz: int = RATE, n_channels: int = 1) -> bytes:
    """A file of noise as libsndfile writes it; `kind` is its suffix, `ogg-flac` FLAC in Ogg."""
    if kind == "ogg-flac":
        return ogg_flac(encoded(folder, "flac", n_frames))
    path = folder / f"made.{kind.replace('opus', 'ogg')}"
    container = {"mp3": "MP3", "opus": "OGG"}.get(kind)
    soundfile.write(
        *(path, np.repeat(noise(n_frames)[:, None], n_channels, axis=1), rate_hz),
        **({"format": container} if container else {}),
        subtype={"opus": "OPUS", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}.get(kind, "PCM_16"),
    )
    return path.read_bytes()


def ogg_flac(flac: bytes) -> bytes:
    """A FLAC file in Ogg pages (RFC 9639, section 10.1); its checksums are left out."""
    packets = [b"\x7fFLAC\x01\0\0\x01" + flac[:42], flac[42:]]
    pages = []
    for at, packet in enumerate(packets):
        pieces = [packet[start : start + 255 * 255] for start in range(0, len(packet), 255 * 255)]
        for piece in pieces:
            last = at == 1 and piece is pieces[-1]
            flags = (2 if not pages else 0) | (4 if last else 0)
            lacing = [255] * (len(piece) // 255) + ([len(piece) % 255] if len(piece) % 255 else [])
            head = struct.pack("<4sBBqIII", b"OggS", 0, flags, N if last else 0, 7, len(pages), 0)
            pages.append(head + bytes([len(lacing), *lacing]) + piece)
    return b"".join(pages)


def read(folder: Path, content: bytes) -> tuple[Samples, list[str]]:
    """All samples of a file with this content, and what the reader notes."""
    path = folder / "file"
    path.write_bytes(content)
    with AudioReader(path) as reader:
        blocks = list(reader.blocks())
        assert reader.info.n_frames in (None, reader.n_read)
        return np.concatenate(blocks), reader.notes


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        read(folder, content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Joined, tagged

KINDS = ("wav", "flac", "mp3", "ogg", "opus", "ogg-flac", "aiff", "au", "caf", "w64", "rf64")


@pytest.mark.parametrize("kind", KINDS)
def test_joined_recordings_are_read_one_after_another(tmp_path: Path, kind: str) -> None:
    one = encoded(tmp_path, kind)
    alone, notes = read(tmp_path, one)
    assert (len(alone), notes) == (N, [])
    both, notes = read(tmp_path, one + one)
    np.testing.assert_array_equal(both, np.concatenate([alone, alone]))
    assert notes == ["2 recordings are joined in this file; they were read one after another"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tag", [ID3V2, APE, ID3V2 + bytes(900) + APE], ids=["ID3v2", "APE", "padded, both"])
def test_tags_around_a_recording_are_passed_over(tmp_path: Path, kind: str, tag: bytes) -> None:
    one = encoded(tmp_path, kind)
    alone, _ = read(tmp_path, one)
    for behind in (b"", ID3V1, APE + ID3V1):
        found, notes = read(tmp_path, tag + one + behind)
        np.testing.assert_array_equal(found, alone)
        assert notes == []


@pytest.mark.parametrize("kind", ["mp3", "flac"])
def test_tags_between_joined_recordings_are_passed_over(tmp_path: Path, kind: str) -> None:
    one = encoded(tmp_path, kind)
    both, _ = read(tmp_path, ID3V2 + one + APE + ID3V1 + ID3V2 + one + ID3V1)
    assert len(both) == 2 * N


@pytest.mark.parametrize("kind", ["wav", "mp3", "opus"])
def test_joined_recordings_of_two_rates_or_channel_counts_are_refused_with_the_place(tmp_path: Path, kind: str) -> None:
    first = encoded(tmp_path, kind)
    for other in (encoded(tmp_path, kind, rate_hz=24_000), encoded(tmp_path, kind, n_channels=2)):
        line = refusal(tmp_path, first + other)
        assert "found recordings joined" in line
        assert f"head -c {len(first)} INPUT" in line


def test_what_follows_a_recording_and_is_unknown_is_said_and_left_out(tmp_path: Path) -> None:
    found, notes = read(tmp_path, encoded(tmp_path, "wav") + b"not a chunk, not a tag")
    assert len(found) == N
    assert notes == ["the last 22 bytes are no audio that is known and were left out"]


def test_a_flac_that_goes_on_behind_its_announced_end_is_refused(tmp_path: Path) -> None:
    flac = bytearray(encoded(tmp_path, "flac", 8 * RATE))
    said = int.from_bytes(flac[21:26], "big")  # the lower 36 bits count the samples
    flac[21:26] = (said - 6 * RATE).to_bytes(5, "big")
    assert "bytes before its end" in refusal(tmp_path, bytes(flac))


def test_the_sound_of_an_ogg_video_is_found(tmp_path: Path) -> None:
    def page(flags: int, packet: bytes) -> bytes:
        head = struct.pack("<4sBBqIII", b"OggS", 0, flags, 0, 99, 0, 0)
        return head + bytes([1, len(packet)]) + packet

    sound = encoded(tmp_path, "ogg")
    video = page(2, b"\x80theora" + bytes(35)) + sound[:58] + page(0, b"\x81theora") + sound[58:]  # 58: the first page
    np.testing.assert_array_equal(read(tmp_path, video)[0], read(tmp_path, sound)[0])


# Sizes that nobody wrote


def with_size(content: bytes, size: int, kind: str) -> bytes:
    """A file whose header says another size of its samples."""
    name, form = {
        "wav": (b"data", "<I"),
        "rf64": (b"ds64", "<4xQQQ"),
        "w64": (b"data\xf3", "<12xQ"),
        "aiff": (b"SSND", ">I"),
        "caf": (b"data", ">q"),
        "au": (b".snd", ">4xI"),
    }[kind]
    at = content.index(name) + 4
    values = (size,) * (3 if kind == "rf64" else 1)
    packed = bytearray(struct.pack(form, *values))
    kept = struct.calcsize(form) - struct.calcsize(form.replace("4x", "").replace("12x", ""))
    packed[:kept] = content[at : at + kept]
    return content[:at] + bytes(packed) + content[at + len(packed) :]


UNFINISHED = {
    "wav": (0, 20_000, 0xFFFFFFFF, 0x7FFFF000, 0x80000000),
    "rf64": (0, 20_000),
    "w64": (0, 24, 20_000, 2**63 - 1, 2**64 - 1),
    "aiff": (0, 8, 20_000, 0xFFFFFFFF),
    "caf": (0, -1, 20_000),
    "au": (0, 0xFFFFFFFF, 20_000),
}


@pytest.mark.parametrize(("kind", "size"), [(kind, size) for kind, sizes in UNFINISHED.items() for size in sizes])
def test_samples_are_read_to_the_end_whatever_size_the_header_was_left_with(
    tmp_path: Path, kind: str, size: int
) -> None:
    found, notes = read(tmp_path, with_size(encoded(tmp_path, kind), size, kind))
    np.testing.assert_array_equal(found[:, 0], noise())
    never_completed = size in (0, 8, 24, 20_000) and (kind, size) != ("rf64", 0)  # which is how RF64 is streamed
    assert [("never completed" in note) for note in notes] == [True] * never_completed


def test_two_streamed_wavs_that_are_joined_are_two(tmp_path: Path) -> None:
    streamed = with_size(encoded(tmp_path, "wav"), 0xFFFFFFFF, "wav")
    found, _ = read(tmp_path, streamed + streamed)
    np.testing.assert_array_equal(found[:, 0], np.tile(noise(), 2))


@pytest.mark.parametrize("pad", [b"", b"\0"], ids=["unpadded", "padded"])
@pytest.mark.parametrize("behind", [b"", LIST], ids=["nothing", "LIST"])
def test_odd_chunks_are_padded_or_not(tmp_path: Path, pad: bytes, behind: bytes) -> None:
    soundfile.write(tmp_path / "made.wav", noise(9999), RATE, "PCM_U8")
    content = (tmp_path / "made.wav").read_bytes()[: 44 + 9999]
    found, notes = read(tmp_path, content + pad + behind)
    assert (len(found), notes) == (9999, [])
    odd = b"LIST" + struct.pack("<I", 11) + b"INFOISFT\0\0\0"
    found, _ = read(tmp_path, content[:36] + odd + pad + content[36:])
    assert len(found) == 9999


def test_a_wav_past_4_gib_that_says_so_wrongly_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    n_bytes = 2**32 + 2**20
    wav = encoded(tmp_path, "wav")
    with path.open("wb") as file:
        file.write(with_size(wav[:44], n_bytes % 2**32, "wav"))
        file.seek(44 + n_bytes % 2**32)
        file.write(b"\1\1")  # zeros alone would be padding
        file.truncate(44 + n_bytes)
    with AudioReader(path) as reader:
        assert reader.info.n_frames == n_bytes // 2
        assert "never completed" in reader.notes[0]


def test_a_header_alone_has_no_samples(tmp_path: Path) -> None:
    head = with_size(encoded(tmp_path, "wav")[:44], 0, "wav")
    for behind in (b"", LIST):
        assert "no samples" in refusal(tmp_path, head + behind)


def test_a_caf_that_is_cut_is_refused(tmp_path: Path) -> None:
    assert "truncated" in refusal(tmp_path, encoded(tmp_path, "caf")[:-2000])


# Damaged MP3 and Ogg


def mp3_hole(mp3: bytes) -> bytes:
    middle = len(mp3) // 2
    return mp3[:middle] + bytes(2000) + mp3[middle + 2000 :]


def mp3_junk(mp3: bytes) -> bytes:
    middle = len(mp3) // 2
    return mp3[:middle] + np.random.default_rng(1).bytes(3000) + mp3[middle:]


@pytest.mark.parametrize(("damage", "share"), [(mp3_hole, 0.7), (mp3_junk, 0.95)])
def test_an_mp3_is_read_on_behind_what_is_no_frame(
    tmp_path: Path, damage: Callable[[bytes], bytes], share: float
) -> None:
    found, notes = read(tmp_path, damage(encoded(tmp_path, "mp3")))
    assert share * N < len(found) <= N
    assert "bytes between MPEG frames are no audio" in notes[0]


def test_an_mp3_begins_behind_junk(tmp_path: Path) -> None:
    found, notes = read(tmp_path, b"junk" * 999 + encoded(tmp_path, "mp3"))
    assert len(found) == N
    assert notes == ["3996 bytes before the first MPEG frame are no audio and were left out"]


def test_an_mp3_with_frames_that_cannot_be_decoded_keeps_its_length(tmp_path: Path) -> None:
    mp3 = bytearray(encoded(tmp_path, "mp3", 6 * RATE))
    rng = np.random.default_rng(3)
    for place in rng.integers(2000, len(mp3), 60):  # some hit headers: libsndfile alone ends there, without a word
        mp3[place] = rng.integers(256)
    found, _ = read(tmp_path, bytes(mp3))
    assert len(found) > 0.9 * 6 * RATE


def test_a_frame_that_stops_the_decoder_is_replaced_by_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgese.audio import decoder

    whole, _ = read(tmp_path, encoded(tmp_path, "mp3"))
    stopped: list[int] = []
    plain_read = decoder.SoundFile.read

    def stops_once(self: object, n_frames: int, **options: object) -> Samples:
        stopped.append(n_frames)
        return plain_read(self, 0 if len(stopped) == 2 else min(n_frames, 10_000), **options)

    monkeypatch.setattr(decoder.SoundFile, "read", stops_once)
    found, notes = read(tmp_path, encoded(tmp_path, "mp3"))
    assert len(found) == N
    assert "ms of damaged MPEG frames cannot be decoded and were replaced by silence" in notes[0]
    np.testing.assert_array_equal(found[:10_000], whole[:10_000])
    n_lost = np.flatnonzero(found[10_000:].any(axis=1))[0]
    assert 0 < n_lost <= 4 * 576  # what was left of the frame, and those that lean on it
    np.testing.assert_allclose(found[15_000:], whole[15_000:], atol=2e-3)  # in place again, once its past is the same


def test_junk_between_ogg_pages_is_passed_over_and_a_missing_page_refused(tmp_path: Path) -> None:
    ogg = encoded(tmp_path, "ogg", 8 * RATE)
    pages = [at for at in range(len(ogg)) if ogg[at : at + 5] == b"OggS\0"]
    at = pages[len(pages) // 2]
    found, notes = read(tmp_path, ogg[:at] + b"junk" * 50 + ogg[at:])
    assert (len(found), notes) == (8 * RATE, ["200 bytes between Ogg pages are no audio and were left out"])
    following = pages[len(pages) // 2 + 1]
    assert "truncated or damaged" in refusal(tmp_path, ogg[:at] + ogg[following:])


# Level


@pytest.mark.parametrize(("subtype", "bits"), [("FLOAT", 7), ("FLOAT", 15), ("DOUBLE", 23), ("DOUBLE", 31)])
def test_floats_in_the_range_of_integers_are_scaled_by_a_power_of_two(tmp_path: Path, subtype: str, bits: int) -> None:
    path = tmp_path / "loud.wav"
    soundfile.write(path, noise().astype(np.float64) * 2.0**bits, RATE, subtype)
    with AudioReader(path) as reader:
        found = np.concatenate(list(reader.blocks()))
        assert reader.scale == 2.0**bits
        assert f"found a peak of {float(np.abs(noise()).max()) * 2.0**bits:.6g}" in reader.notes[0]
    np.testing.assert_array_equal(found[:, 0], noise())
    np.testing.assert_array_equal(read_wave(path, RATE), noise())


@pytest.mark.parametrize(("gain", "click"), [(1, 0), (12, 0), (1, 1e6)])
def test_floats_that_are_merely_loud_or_click_keep_their_scale(tmp_path: Path, gain: float, click: float) -> None:
    wave = noise() * gain  # 12: a peak of 3.3
    wave[777] += click
    soundfile.write(tmp_path / "loud.wav", wave, RATE, "FLOAT")
    with AudioReader(tmp_path / "loud.wav") as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks()))[:, 0], wave)
        assert reader.scale == 1
        assert [("found a peak of 1e+06" in note) for note in reader.notes] == [True] * bool(click)


# What is not read


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"\0\0\0\x20ftypM4A ", "an MP4 file"),
        (b"\x1a\x45\xdf\xa3", "a Matroska or WebM file"),
        (b"\xf0\x7e\0\x01\0\0\x10", "a MIDI sample dump"),
        (b"#!AMR\n", "an AMR file"),
        (b"\xff\xf1\x50\x80", "AAC without a container"),
    ],
)
def test_containers_are_known_by_their_first_bytes_before_libsndfile_sees_them(
    tmp_path: Path, head: bytes, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgese.audio.decoder.SoundFile", None)
    assert f"found no audio that can be read: {what}" in refusal(tmp_path, head + bytes(5000))
