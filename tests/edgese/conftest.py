"""Bundles and signals that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgese.config import DataConfig
from edgese.enhance.denoiser import Denoiser
from export.bundle import Bundle

from .helpers.data_folders import PLAIN, RATE_HZ, SpeechLike, write_mixing, write_pairs
from .helpers.identity_bundle import write_identity_bundle

if TYPE_CHECKING:
    from edgese.model.enhancer import WaveformEnhancer
    from edgese.train.data import DataSets


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One network for a test of what is done with its bundle; both for a test of the network, if it is marked so."""
    if not {"bundle", "tiny_config"} <= {*metafunc.fixturenames}:
        return
    markers = metafunc.definition.iter_markers("parametrize")
    if any("tiny_config" in marker.args[0] for marker in markers) or "both_networks" in metafunc.definition.keywords:
        return
    from .helpers.tiny_bundle import TINY

    one = pytest.mark.parametrize("tiny_config", [TINY], ids=["decay-per-head"], indirect=True)
    metafunc.definition.add_marker(one)  # a marker, and before pytest looks for them: it overrides `params`


# They export a network, which takes PyTorch a minute unless the cache has it, train one by the command, or install.
SLOW_FIXTURES = (
    {"bundle", "tiny_config"},
    *({name} for name in ("quantized", "ahead", "plain", "good", "desk", "trained", "spans", "bare_python")),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs such fixtures is slow, marked or not."""
    for item in items:
        needs = {*getattr(item, "fixturenames", ())} if item.path.is_relative_to(Path(__file__).parent) else set()
        if any(slow <= needs for slow in SLOW_FIXTURES):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def identity_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that gives back what it gets, 384 samples later."""
    return write_identity_bundle(tmp_path_factory.mktemp("bundles") / "identity")


@pytest.fixture(scope="session")
def halving_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same at half the amplitude."""
    return write_identity_bundle(tmp_path_factory.mktemp("bundles") / "halving", gain=0.5)


@pytest.fixture(scope="session")
def identity(identity_bundle: Path) -> Iterator[Denoiser]:
    with Denoiser(Bundle.open(identity_bundle)) as denoiser:
        yield denoiser


@pytest.fixture(scope="session")
def halving(halving_bundle: Path) -> Iterator[Denoiser]:
    with Denoiser(Bundle.open(halving_bundle)) as denoiser:
        yield denoiser


@pytest.fixture
def bundle(tiny_enhancer: WaveformEnhancer, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny network's."""
    from .helpers.tiny_bundle import tiny_bundle

    return tiny_bundle(tiny_enhancer, tmp_path_factory)


@pytest.fixture
def quantized(
    tiny_enhancer: WaveformEnhancer,
    tmp_path_factory: pytest.TempPathFactory,
    speech_like: SpeechLike,
    monkeypatch: pytest.MonkeyPatch,
) -> Bundle:
    """The tiny network's bundle in every precision."""
    from .helpers.precision_bundle import precision_bundle

    return precision_bundle(tiny_enhancer, tmp_path_factory, speech_like, monkeypatch)


@pytest.fixture
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That of a network that looks ahead."""
    from .helpers.lookahead import ahead_bundle

    return ahead_bundle(tmp_path_factory)


@pytest.fixture
def mixing(tmp_path: Path, speech_like: SpeechLike) -> Path:
    return write_mixing(tmp_path / "mixing", speech_like)


@pytest.fixture
def pairs(tmp_path: Path, speech_like: SpeechLike) -> Path:
    return write_pairs(tmp_path / "pairs", speech_like)


@pytest.fixture
def open_folder(tmp_path: Path) -> Callable[..., DataSets]:
    """`open_folder(folder, config=PLAIN, seed=0)` with a cache of the test's own."""
    from edgese.train.data import open_data

    def opened(folder: Path, config: DataConfig = PLAIN, seed: int = 0, **options) -> DataSets:
        return open_data(folder, config, RATE_HZ, seed, tmp_path / "cache", **options)

    return opened
