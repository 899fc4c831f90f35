"""`--preview`: some seconds before and after, of where the sound is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import enhance_file
from edgese.enhance.jobs import EnhanceOptions, plan_jobs
from edgese.errors import ConfigError

RATE = 16_000


def previewed(source: Path, denoiser: Denoiser, seconds: float) -> tuple[np.ndarray, tuple[str, ...]]:
    (job,) = plan_jobs([str(source)], EnhanceOptions(preview_s=seconds))
    assert job.target == source.with_name(f"{source.stem}.preview.wav")
    summary = enhance_file(job, denoiser)
    return soundfile.read(job.target, dtype="float32")[0], summary.warnings


def test_the_loudest_seconds_come_before_and_after(tmp_path: Path, halving: Denoiser) -> None:
    wave = np.random.default_rng(0).normal(0, 0.01, 10 * RATE).astype(np.float32)
    wave[6 * RATE : 7 * RATE] *= 20
    soundfile.write(tmp_path / "in.flac", wave, RATE, "PCM_24")
    with soundfile.SoundFile(tmp_path / "in.flac") as file:
        wave = file.read(dtype="float32")
    found, warnings = previewed(tmp_path / "in.flac", halving, 1.0)
    before, pause, after = np.split(found, [RATE, RATE + RATE // 2])
    np.testing.assert_allclose(before, wave[6 * RATE : 7 * RATE], atol=1e-6)
    assert not pause.any()
    np.testing.assert_allclose(after, 0.5 * before, atol=1e-6)
    assert warnings == ()


def test_a_short_recording_is_heard_whole_and_silence_named(tmp_path: Path, identity: Denoiser) -> None:
    soundfile.write(tmp_path / "in.wav", np.zeros(RATE), RATE)
    found, warnings = previewed(tmp_path / "in.wav", identity, 10.0)
    assert len(found) == 2 * RATE + RATE // 2
    assert len(warnings) == 1
    assert "silent" in warnings[0]


@pytest.mark.parametrize("options", [{"preview_s": 0.0}, {"preview_s": 1e9}, {"preview_s": 5.0, "plot": True}])
def test_previews_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--p"):
        EnhanceOptions(**options)  # type: ignore[arg-type]
