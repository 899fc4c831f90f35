"""Recordings by URI: folders, lists and single ones on file systems of several kinds, and outputs that are whole."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgese.enhance.jobs import EnhanceOptions
from edgese.errors import AudioError, ConfigError, OutputError

pytest.importorskip("fsspec", reason="the [ray] extra is not installed")

import fsspec
from fsspec.implementations.dirfs import DirFileSystem

from edgese.bulk.places import (
    deliver,
    fetch,
    is_there,
    list_items,
    load_arrays,
    local_path,
    remove_folder,
    save_arrays,
)

OPTIONS = EnhanceOptions()


@pytest.fixture
def store() -> Iterator[str]:
    """A store that holds objects, empty."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    yield "memory://bucket"
    memory.store.clear()


def put(uri: str, content: bytes = b"sound") -> str:
    with fsspec.open(uri, "wb") as file:
        file.write(content)
    return uri


def test_folders_are_walked_and_mirrored(tmp_path: Path, store: str) -> None:
    for root in (store, str(tmp_path / "in")):
        for name in ("a.wav", "sub/b.flac", "sub/c.mp3", "notes.txt", ".edgese-pieces/x/d.wav"):
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            put(f"{root}/{name}")
        items = list_items([root], "memory://out/x", OPTIONS)
        targets = [item.target.removeprefix("memory://out/x/") for item in items]
        assert targets == ["a.wav", "sub/b.flac", "sub/c.wav"]
        assert all(is_there(item.source) for item in items)


def test_lists_and_single_recordings_lie_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# a comment\n\ns3://bucket/deep/b.wav\nhttps://host/c%20d.mp3?key=1\n")
    items = list_items([str(tmp_path / "a.ogg"), f"@{tmp_path / 'list.txt'}"], "out", EnhanceOptions(container="FLAC"))
    assert [item.target for item in items] == ["out/a.flac", "out/b.flac", "out/c d.flac"]
    assert items[1].source == "s3://bucket/deep/b.wav"


def test_what_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(AudioError, match="no line with a recording"):
        list_items([f"@{tmp_path / 'empty.txt'}"], "out", OPTIONS)
    with pytest.raises(AudioError, match="found no audio files"):
        list_items([str(tmp_path)], "out", OPTIONS)
    with pytest.raises(AudioError, match=r"out/a\.wav: x/a\.wav and y/a\.wav would be written there"):
        list_items(["x/a.wav", "y/a.wav"], "out", OPTIONS)
    with pytest.raises(AudioError, match=r"missing\.txt: cannot be reached"):
        list_items([f"@{tmp_path / 'missing.txt'}"], "out", OPTIONS)
    with pytest.raises(ConfigError, match="no URI that fsspec opens"):
        list_items(["nonsense://x/a.wav"], "out", OPTIONS)


def test_a_kind_of_uri_that_needs_a_package_names_it() -> None:
    if importlib.util.find_spec("s3fs"):
        pytest.skip("s3fs is installed, so nothing is missing")
    with pytest.raises(ConfigError, match="pip install s3fs"):
        list_items(["s3://bucket/folder"], "out", OPTIONS)


def test_what_is_local_is_used_where_it_lies_and_what_is_not_is_copied(tmp_path: Path, store: str) -> None:
    own = tmp_path / "a.wav"
    own.write_bytes(b"here")
    assert fetch(str(own), tmp_path / "copies") == local_path(str(own)) == own
    copy = fetch(put(f"{store}/b.wav", b"there"), tmp_path)
    assert copy.read_bytes() == b"there"
    assert local_path(f"{store}/b.wav") is None
    with pytest.raises(AudioError, match=r"memory://bucket/c\.wav: cannot be reached"):
        fetch(f"{store}/c.wav", tmp_path)


class _Cut(DirFileSystem):
    """A file system of another kind, whose uploads can end half way."""

    protocol = "cut"
    fails = False

    def put_file(self, lpath: str, rpath: str, **options: object) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[: 2 if self.fails else None])
        if self.fails:
            raise OSError("connection lost")


def test_an_output_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an upload that was cut off leaves a part."""
    files = _Cut(path=str(tmp_path), fs=fsspec.filesystem("file"))
    monkeypatch.setattr("edgese.bulk.places.fsspec.core.url_to_fs", lambda uri: (files, uri.removeprefix("cut://")))
    (tmp_path / "here.wav").write_bytes(b"enhanced")
    files.fails = True
    with pytest.raises(OutputError, match="connection lost"):
        deliver(tmp_path / "here.wav", "cut://out/a.wav")
    assert not is_there("cut://out/a.wav")
    files.fails = False
    deliver(tmp_path / "here.wav", "cut://out/a.wav")
    assert (tmp_path / "out" / "a.wav").read_bytes() == b"enhanced"


def test_arrays_come_back_from_anywhere(tmp_path: Path, store: str) -> None:
    arrays = {"file": np.arange(6, dtype=np.float32).reshape(2, 3), "ssm_0": np.zeros(2)}
    for root in (store, str(tmp_path)):
        save_arrays(f"{root}/deep/x/1.npz", arrays)
        found = load_arrays(f"{root}/deep/x/1.npz")
        assert found.keys() == arrays.keys()
        np.testing.assert_array_equal(found["file"], arrays["file"])
        remove_folder(f"{root}/deep/x")
        assert not is_there(f"{root}/deep/x/1.npz")
    assert not (tmp_path / "deep").exists()
