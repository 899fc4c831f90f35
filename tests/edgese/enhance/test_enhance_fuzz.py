"""Whatever lies in a file, enhancing it either works or ends with one line, and nothing partial stays."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgese.audio.formats import FORMATS
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import enhance_file
from edgese.enhance.jobs import EnhanceOptions, plan_jobs
from edgese.errors import AudioError

SUFFIXES = st.sampled_from([*FORMATS, ".raw", ".gsm", ".vox", ".txt", ".WAV", ""])
MAGICS = [
    b"",
    b"RIFF",
    b"RIFF\0\0\0\0WAVE",
    b"RF64",
    b"fLaC",
    b"OggS\0",
    b"ID3\4",
    b"\xff\xfb",
    b"FORM",
    b".snd",
    b"caff",
]
KINDS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("W64", "PCM_16"),
    ("WAV", "IMA_ADPCM"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "ALAC_16"),
]

fuzz = settings(
    deadline=None,
    max_examples=150,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@functools.cache
def whole_file(container: str, subtype: str) -> bytes:
    """A tenth of a second of stereo noise."""
    memory = io.BytesIO()
    wave = 0.1 * np.random.default_rng(0).standard_normal((1600, 2))
    soundfile.write(memory, wave, 16_000, subtype, format=container)
    return memory.getvalue()


def enhance_bytes(data: bytes, suffix: str, denoiser: Denoiser) -> str:
    """Enhance a file of these bytes, and check what must hold whatever they are; the line it ended with, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"in{suffix}"
        source.write_bytes(data)
        (job,) = plan_jobs([str(source)], EnhanceOptions(output=f"{folder}/out/"))
        assert job.target is not None
        line = ""
        try:
            summary = enhance_file(job, denoiser)
        except AudioError as error:
            line = str(error)
        assert source.read_bytes() == data
        if line:
            assert source.name in line or job.target.name in line
            assert "\n" not in line
            assert names(folder) == {source.name}
        else:
            written = soundfile.info(job.target)
            assert written.frames == round(summary.duration_s * summary.sample_rate_hz)
            assert (written.samplerate, written.channels) == (summary.sample_rate_hz, summary.channels)
            assert names(folder) == {source.name, "out", job.target.name}
    return line


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).rglob("*")}


@pytest.mark.parametrize(("container", "subtype"), KINDS)
def test_the_files_that_fuzzing_starts_from_are_good(container: str, subtype: str, identity: Denoiser) -> None:
    assert enhance_bytes(whole_file(container, subtype), ".wav", identity) == ""


@fuzz
@given(magic=st.sampled_from(MAGICS), data=st.binary(max_size=4000), suffix=SUFFIXES)
def test_random_bytes_never_break_out(magic: bytes, data: bytes, suffix: str, identity: Denoiser) -> None:
    enhance_bytes(magic + data, suffix, identity)


@fuzz
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(st.tuples(st.integers(0, 160), st.integers(0, 255)), min_size=1, max_size=4),
    suffix=SUFFIXES,
)
@example(kind=("WAV", "PCM_16"), changes=[(22, 0), (23, 0)], suffix=".wav")  # no channels
@example(kind=("WAV", "PCM_16"), changes=[(24, 0), (25, 0)], suffix=".wav")  # rate 0
@example(kind=("WAV", "PCM_16"), changes=[(23, 255)], suffix=".wav")  # 65,000 channels
@example(kind=("WAV", "PCM_16"), changes=[(27, 127)], suffix=".wav")  # 2 GHz
def test_a_changed_header_never_breaks_out(
    kind: tuple[str, str], changes: list[tuple[int, int]], suffix: str, identity: Denoiser
) -> None:
    data = bytearray(whole_file(*kind))
    for place, value in changes:
        data[place] = value
    enhance_bytes(bytes(data), suffix, identity)


@fuzz
@given(
    kind=st.sampled_from(KINDS),
    share=st.floats(0, 1),
    place=st.floats(0, 1),
    patch=st.binary(max_size=64),
    suffix=SUFFIXES,
)
def test_a_cut_and_patched_file_never_breaks_out(
    kind: tuple[str, str], share: float, place: float, patch: bytes, suffix: str, identity: Denoiser
) -> None:
    data = bytearray(whole_file(*kind))
    start = int(place * len(data))
    data[start : start + len(patch)] = patch
    enhance_bytes(bytes(data[: int(share * len(data))]), suffix, identity)
