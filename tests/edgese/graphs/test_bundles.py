"""Names of bundles as users give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgese.graphs.bundles import SHIPPED, bundle_path, shipped_bundle
from export import ExportError


def test_shipped_bundles_go_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert bundle_path(None) == shipped_bundle("base")
    assert [bundle_path(Path(name)) for name in SHIPPED] == [shipped_bundle(name) for name in SHIPPED]
    assert all(shipped_bundle(name).is_dir() for name in SHIPPED)


def test_a_folder_of_that_name_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path)
    assert bundle_path(Path("small")) == Path("small")


def test_what_is_neither_is_refused_with_the_names(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"bas: not a bundle: found no such directory, wanted .*, the name base or small of"
    ):
        bundle_path(tmp_path / "bas")
