"""Bundles and signals that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgese.enhance import Denoiser
from export.bundle import Bundle

from .identity_bundle import write_identity_bundle


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
