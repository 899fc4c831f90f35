"""PESQ of validation examples: by this process or by others, the same scores; one that dies costs one score."""

from __future__ import annotations

import contextlib
import logging
import os
import signal

import numpy as np
import pytest

from edgese.audio import Wave
from edgese.train import scoring
from edgese.train.scoring import WORST_PESQ, WORTH_PROCESSES, Scorers, pesq_of

from ...conftest import SpeechLike

pytest.importorskip("pesq", reason="the [metrics] extra is not installed")


@pytest.fixture
def pairs(speech_like: SpeechLike) -> list[tuple[Wave, Wave]]:
    clean = [speech_like(8000, seed=seed) for seed in range(3)]
    noise = 0.02 * np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    return [(wave, wave + noise) for wave in clean]


def test_silence_is_the_worst_and_what_has_no_speech_is_left_out(pairs: list[tuple[Wave, Wave]]) -> None:
    speech = pairs[0][0]
    assert pesq_of(speech, np.zeros_like(speech)) == WORST_PESQ
    assert pesq_of(np.zeros_like(speech), speech) is None


@pytest.mark.slow
def test_processes_give_the_scores_of_this_one(
    pairs: list[tuple[Wave, Wave]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scoring, "n_cores", lambda: 2)
    speech = pairs[0][0]
    asked = [*pairs, (np.zeros_like(speech), speech)]
    wanted = [pesq_of(*pair) for pair in asked]
    with contextlib.closing(Scorers(2)) as here, contextlib.closing(Scorers(WORTH_PROCESSES)) as there:
        assert [done.result() for done in [here.submit(*pair) for pair in asked]] == wanted
        assert [done.result() for done in [there.submit(*pair) for pair in asked]] == wanted
        assert len(set(wanted)) == 4  # of which one is None
        process = there._idle.get()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        there._idle.put(process)
        with caplog.at_level(logging.WARNING):
            scores = [there.submit(*pairs[0]).result() for _ in range(3)]
    assert scores.count(None) == 1
    assert scores.count(wanted[0]) == 2
    assert "without PESQ of one example: its process ended (-9)" in caplog.text
    assert process.returncode == -signal.SIGKILL
