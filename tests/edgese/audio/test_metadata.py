"""Metadata of recordings: kept where the format has a place for it, named where not, harmless where it is broken."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.audio.formats import AudioInfo
from edgese.audio.metadata import Metadata
from edgese.audio.reader import AudioReader
from edgese.audio.writer import AudioWriter
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import enhance_file
from edgese.enhance.jobs import EnhanceOptions, Job

RATE = 16_000
SOUND = np.random.default_rng(0).normal(0, 0.1, 2001).astype(np.float32)  # an odd number: 8-bit chunks are padded
TEXTS = {"title": "Über Wörter", "artist": "Ą", "comment": "scene 1\x1b[2J", "date": "2026"}


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


BEXT = chunk(b"bext", b"scene".ljust(338, b"\0") + struct.pack("<Q", 123_456) + bytes(256))
CUE = chunk(b"cue ", struct.pack("<I", 1) + struct.pack("<II4sIII", 1, 500, b"data", 0, 0, 500))
LABEL = chunk(b"LIST", b"adtl" + chunk(b"labl", struct.pack("<I", 1) + b"here\0"))
INFO = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"Caf\xe9\0") + chunk(b"IENG", b"an engineer"))


def with_chunks(path: Path, *chunks: bytes, before: bytes = b"", subtype: str = "PCM_16") -> Path:
    soundfile.write(path, SOUND, RATE, subtype)
    raw = path.read_bytes()
    at = raw.index(b"data")
    body = raw[8:at] + before + raw[at:] + b"".join(chunks)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def id3(version: int, *frames: tuple[bytes, bytes], flags: int = 0) -> bytes:
    def size(n: int) -> bytes:
        return bytes(n >> 7 * at & 0x7F for at in (3, 2, 1, 0))

    body = b"".join(
        name + (size(len(text)) if version == 4 else struct.pack(">I", len(text))) + b"\0\0" + text
        for name, text in frames
    )
    return b"ID3" + bytes([version, 0, flags]) + size(len(body)) + body


def enhanced(source: Path, target: Path, identity: Denoiser) -> tuple[str, ...]:
    return enhance_file(Job(source, target, None, EnhanceOptions()), identity).warnings


@pytest.mark.parametrize("before", [BEXT, b""])
def test_a_wav_keeps_its_chunks_byte_for_byte(tmp_path: Path, identity: Denoiser, before: bytes) -> None:
    kept = [*([before] if before else []), CUE, LABEL, INFO]
    source = with_chunks(tmp_path / "in.wav", CUE, LABEL, INFO, chunk(b"junk", b"12345"), before=before)
    assert enhanced(source, tmp_path / "out.wav", identity) == ()
    raw = (tmp_path / "out.wav").read_bytes()
    assert raw.endswith(b"".join(kept))
    assert struct.unpack("<I", raw[4:8]) == (len(raw) - 8,)
    found, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    np.testing.assert_allclose(found, SOUND, atol=1e-4)
    with AudioReader(tmp_path / "out.wav") as reader:
        assert (reader.metadata.texts, reader.notes) == ({"title": "Café"}, [])


def test_an_odd_number_of_bytes_is_padded_before_the_chunks(tmp_path: Path) -> None:
    info = AudioInfo(RATE, 1, None, "WAV", "PCM_U8")
    with AudioWriter(tmp_path / "out.wav", info, metadata=Metadata(chunks=((b"cue ", CUE),))) as writer:
        writer.write(SOUND[:, None])
        writer.finish()
        writer.publish(replace=False)
    with AudioReader(tmp_path / "out.wav") as reader:
        assert reader.info.n_frames == len(SOUND)
        assert reader.metadata.chunks == ((b"cue ", CUE),)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "aiff", "caf", "wav"])
def test_texts_go_from_format_to_format(tmp_path: Path, identity: Denoiser, suffix: str) -> None:
    with soundfile.SoundFile(tmp_path / "in.flac", "w", RATE, 1) as file:
        for name, text in TEXTS.items():
            setattr(file, name, text)
        file.write(SOUND)
    warnings = enhanced(tmp_path / "in.flac", tmp_path / f"out.{suffix}", identity)
    with AudioReader(tmp_path / f"out.{suffix}") as reader:
        missing = {"aiff": {"date"}}.get(suffix, set())
        assert dict(reader.metadata.texts) == {name: TEXTS[name] for name in TEXTS if name not in missing}
    assert warnings == (("not kept in AIFF: date",) if missing else ())


def test_what_a_format_has_no_place_for_is_named(tmp_path: Path, identity: Denoiser) -> None:
    source = with_chunks(tmp_path / "in.wav", CUE, INFO, before=BEXT)
    (warning,) = enhanced(source, tmp_path / "out.flac", identity)
    assert warning == "not kept in FLAC: the broadcast chunk (bext), cue points"
    (warning,) = enhanced(source, tmp_path / "out.w64", identity)
    assert warning == "not kept in W64: the broadcast chunk (bext), cue points, title"


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(("encoding", "code"), [(0, "latin-1"), (1, "utf-16"), (2, "utf-16-be"), (3, "utf-8")])
def test_the_texts_of_an_mp3_are_read(tmp_path: Path, version: int, encoding: int, code: str) -> None:
    def text(words: str) -> bytes:
        return words.encode(code)

    soundfile.write(tmp_path / "plain.mp3", SOUND, RATE)
    first = bytes([encoding])
    tag = id3(
        version,
        (b"TIT2", first + text("Größe\0")),
        (b"COMM", first + b"eng" + text("\0") + text("a comment")),
        (b"APIC", bytes(300)),
    )
    (tmp_path / "in.mp3").write_bytes(tag + (tmp_path / "plain.mp3").read_bytes())
    with AudioReader(tmp_path / "in.mp3") as reader:
        assert reader.metadata == Metadata({"title": "Größe", "comment": "a comment"}, (), ("the cover picture",))


@pytest.mark.parametrize(
    "tag",
    [
        id3(4, (b"TIT2", b"\x03x"), flags=0x80),
        id3(2, (b"TIT2", b"\x03x")),
        id3(4, (b"TIT2", b"\x09x"), (b"TPE1", b"")),
        id3(4, (b"TIT2", b"\x01\xff")),
        id3(3)[:6] + b"\x7f\x7f\x7f\x7f",
        id3(4, (b"TIT2", b"\x03x"))[:12],
    ],
)
def test_a_tag_that_is_odd_or_cut_harms_nothing(tmp_path: Path, tag: bytes) -> None:
    from edgese.audio.byte_view import FileBytes
    from edgese.audio.metadata import read_metadata

    soundfile.write(tmp_path / "plain.flac", SOUND, RATE)
    (tmp_path / "in").write_bytes(tag)
    with (tmp_path / "in").open("rb") as file, soundfile.SoundFile(tmp_path / "plain.flac") as sound_file:
        found = read_metadata(FileBytes(file.fileno(), len(tag)), sound_file)
    assert set(found.texts.values()) <= {"x", "\ufffd"}


def test_chunks_beyond_all_reason_are_left_and_named(tmp_path: Path, identity: Denoiser) -> None:
    source = with_chunks(tmp_path / "in.wav", chunk(b"iXML", bytes(5 << 20)), CUE)
    assert enhanced(source, tmp_path / "out.wav", identity) == ("not kept in WAV: iXML, too large",)
    assert (tmp_path / "out.wav").read_bytes().endswith(CUE)


@pytest.mark.parametrize("cut", [2, 9, 12, 30])
def test_chunks_that_are_cut_are_none(tmp_path: Path, cut: int) -> None:
    source = with_chunks(tmp_path / "in.wav", CUE)
    source.write_bytes(source.read_bytes()[:-cut])
    with AudioReader(source) as reader:
        assert reader.metadata.chunks == ()
        assert sum(map(len, reader.blocks())) == len(SOUND)
