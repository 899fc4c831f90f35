"""What many tests share: tiny seeded networks in both parametrisations, and sound that behaves like speech.

Tests stand in two tiers. `make test` runs all, each file in one of several processes (pytest-xdist); `make test-fast`
leaves out those marked `slow`: more than about a second of CPU time. A fixture that takes long is paid by the first
test that asks for it: all that ask for it are slow (`SLOW_FIXTURES` in edgese/conftest.py).
What keeps them quick:

- commands run in forks of a Python that has its libraries imported (`helpers/warm_python.py`); each command starts cold
  in one test;
- tiny bundles are exported once, by whichever process comes first (`helpers/made_once.py`);
- a test meets both parametrisations of the decay where it is about the network, and one where it is about what is done
  with it: so are the users of `bundle` that are not marked `both_networks` (see edgese/conftest.py).

A skip says why. Tests marked `required` hold doubles against what they stand for: where CI is set, their skip fails.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgese.audio import Wave
from edgese.config import AudioConfig
from edgese.networks import MbsConfig

# Each core has a test process already: PyTorch's threads would wait for each other by turning in circles. Set before it
# is imported, and for whatever the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import torch
except ImportError:  # the base install has none, and its tests need none
    pass
else:
    torch.set_num_threads(1)

if TYPE_CHECKING:
    from edgese.model.enhancer import WaveformEnhancer

SpeechLike = Callable[..., Wave]

# Two blocks, eight channels; the chunk divides none of the tested lengths.
_TINY = MbsConfig(channels=8, layers=2, states=4, dt_rank=2, decay_heads=0, chunk=5, fusion="once", decoder_hidden=8)
TINY_CONFIGS = {
    "decay-per-channel": _TINY,
    "decay-per-head": dataclasses.replace(_TINY, decay_heads=4, expand=2, fusion="each"),
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: a long file at the end would leave the other processes without work."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Continuous integration has what the `required` tests need, or it fails."""
    report = yield
    if report.skipped and os.environ.get("CI") and item.get_closest_marker("required"):
        report.outcome, report.longrepr = "failed", f"required where CI is set, but skipped: {report.longrepr}"
    return report


@pytest.fixture
def audio() -> AudioConfig:
    return AudioConfig()


@pytest.fixture(params=TINY_CONFIGS.values(), ids=TINY_CONFIGS.keys())
def tiny_config(request: pytest.FixtureRequest) -> MbsConfig:
    """A network of two blocks and eight channels, once with each parametrisation of the decay."""
    config: MbsConfig = request.param
    return config


@pytest.fixture
def tiny_enhancer(tiny_config: MbsConfig, audio: AudioConfig) -> WaveformEnhancer:
    """A seeded enhancer that listens and acts like a trained one; an untrained one is almost the identity.

    Long step sizes make its states matter, large last layers let its mask and rotation move.
    """
    from edgese.model.registry import build

    torch.manual_seed(1)
    enhancer = build(tiny_config, audio).eval()
    network = enhancer.network
    with torch.no_grad():
        for block in network.blocks:
            block.dt_bias.add_(2)
            block.a_log.sub_(1)
            block.x_proj.weight.mul_(5)
        for decoder in (network.magnitude_decoder, network.phase_decoder):
            decoder.weight.mul_(30)
    return enhancer


@pytest.fixture(scope="session")
def speech_like() -> SpeechLike:
    """`speech_like(n_samples, seed=0)`: (n_samples,) float32, syllables and pauses, at -20 dBFS."""
    return _speech_like


def _speech_like(n_samples: int, seed: int = 0, sample_rate_hz: int = 16_000) -> Wave:
    rng = np.random.default_rng(seed)
    seconds = np.arange(n_samples) / sample_rate_hz
    pitch_hz = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * seconds))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / sample_rate_hz
    voiced = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 25))
    syllables = np.sin(
        2 * np.pi * (rng.uniform(3, 5) * seconds + rng.random())
    )  # positive: voiced; strongly negative: a hiss
    wave = np.maximum(syllables, 0) * voiced + np.maximum(-syllables - 0.7, 0) * rng.standard_normal(n_samples)
    wave *= np.sin(2 * np.pi * (0.6 * seconds + rng.random())) > -0.7  # pauses, digitally silent
    level = np.sqrt(np.mean(wave**2)) + 1e-9
    return np.clip(0.1 * wave / level, -1, 1).astype(np.float32)
