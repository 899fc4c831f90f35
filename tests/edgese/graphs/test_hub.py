"""Bundles on the Hugging Face Hub: the library itself against a hub on this machine, and without one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgese.errors import install_command
from edgese.graphs.bundles import bundle_path
from export import ExportError
from export.bundle import Bundle, seal_bundle

from ..helpers.command_line import edgese, one_error, parsed
from ..helpers.identity_bundle import write_identity_bundle
from ..helpers.local_hub import LARGE, Files, LocalHub, local_hub

pytest.importorskip("huggingface_hub", reason="the [hub] extra is not installed")

import huggingface_hub.constants as constants
import huggingface_hub.utils._http as http

from edgese.graphs.hub import HubError, card, fetch, parse_name, send

NAME = "hf:owner/name"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A hub, with the library's and our cache in the test's own folder; for this process and those it starts."""
    with local_hub() as running:
        for name, value in {"HF_HOME": tmp_path / "hf", "XDG_CACHE_HOME": tmp_path / "cache", "HF_TOKEN": "t"}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # whose own program uploads to servers of its own
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(http.time, "sleep", lambda seconds: None)
        yield running


@pytest.fixture(scope="module")
def large_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The identity, with a model card, a signature and a file that is large enough for LFS."""
    path = write_identity_bundle(tmp_path_factory.mktemp("large") / "large")
    (path / "MODEL_CARD.md").write_text("# A delay\n\nIt delays.\n")
    (path / "weights.bin").write_bytes(bytes(range(256)) * 80)
    scores = {"pesq_wb": 2.5, "level_1000_db": -0.1}
    about = {name: {"title": name.upper(), "higher_is_better": name == "pesq_wb" or None} for name in scores}
    system = {"pairs": [1, 2], "mean": {"enhanced": scores}}
    (path / "evaluation.json").write_text(json.dumps({"data": "set", "metrics": about, "systems": [system]}))
    seal_bundle(path, json.loads((path / "manifest.json").read_text()))
    (path / "manifest.json.sig").write_text("signed")
    return path


def files_of(path: Path) -> Files:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def commit(hub: LocalHub, large_bundle: Path) -> str:
    """The commit that holds the bundle on the hub, with files beside it that are no part of it."""
    return hub.commit("owner/name", files_of(large_bundle) | {"README.md": b"a page", "samples/a.wav": b"RIFF"})


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf:owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("hf:o-1/n.x_y@feature/x", ("o-1/n.x_y", "feature/x")),
    ],
)
def test_a_name_has_a_repository_and_a_revision(name: str, parts: tuple[str, str | None]) -> None:
    assert parse_name(name) == parts


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:../x", "hf:a b/c", "hf:owner/name@", "hf:owner/"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(HubError, match="wanted hf:owner/name"):
        parse_name(name)


def test_a_bundle_is_fetched_checked_and_pinned(hub: LocalHub, commit: str, large_bundle: Path) -> None:
    """As real files, its own and no others; named by its commit, it is there again without a single request."""
    path = bundle_path(Path(NAME))
    assert path.name == commit
    assert files_of(path) == files_of(large_bundle)
    assert not any(file.is_symlink() for file in path.iterdir())
    Bundle.open(path)
    hub.requests.clear()
    assert bundle_path(Path(f"{NAME}@{commit}")) == path
    assert hub.requests == []


def test_a_revision_stays_what_it_was(hub: LocalHub, commit: str) -> None:
    newer = hub.commit("owner/name", {"README.md": b"another page"})
    assert (fetch(f"{NAME}@{commit}").name, fetch(NAME).name) == (commit, newer)


def test_without_network_the_newest_that_is_here_is_taken(
    hub: LocalHub, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert fetch(NAME) == path
    assert hub.requests == []


def test_without_network_and_with_nothing_here_it_says_so(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"not here yet, and the Hub cannot be reached .* edgese pull owner/name"):
        fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(HubError, match=r"not here yet, and the Hub cannot be reached .*refused"):
        fetch(NAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:owner/nobody", "hf:owner/nobody: found no such repository.*hf auth login"),
        ("hf:owner/name@v9", "owner/name has no such branch, tag or commit"),
        ("hf:owner/other", "owner/other holds no manifest.json, so no bundle"),
    ],
)
@pytest.mark.usefixtures("commit")
def test_what_is_not_there_is_named(name: str, message: str, hub: LocalHub) -> None:
    hub.commit("owner/other", {"README.md": b"no bundle"})
    with pytest.raises(HubError, match=message):
        fetch(name)


@pytest.mark.parametrize("change", [b"other", None], ids=["changed", "missing"])
def test_a_file_that_is_not_what_the_manifest_says_is_not_kept(
    change: bytes | None, hub: LocalHub, large_bundle: Path, tmp_path: Path
) -> None:
    files = files_of(large_bundle)
    files.pop("weights.bin")
    commit = hub.commit("owner/name", files | ({"weights.bin": change} if change else {}))
    with pytest.raises(HubError, match=rf"{NAME}@{commit}/weights.bin: .*edgese pull --force owner/name@{commit}"):
        fetch(NAME)
    assert not any((tmp_path / "cache" / "edgese" / "hub").rglob("weights.bin"))


def test_a_manifest_that_names_files_outside_gets_none_of_them(
    hub: LocalHub, large_bundle: Path, tmp_path: Path
) -> None:
    manifest = json.loads((large_bundle / "manifest.json").read_text())
    manifest["files"]["../../../../secret"] = "0" * 64
    (tmp_path / "secret").write_text("secret")
    hub.commit("owner/name", files_of(large_bundle) | {"manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(HubError, match="lies outside"):
        fetch(NAME)
    assert not any((tmp_path / "cache" / "edgese" / "hub").rglob("secret"))


@pytest.mark.usefixtures("commit")
def test_half_a_download_is_no_bundle_and_goes_on_where_it_stopped(hub: LocalHub, tmp_path: Path) -> None:
    hub.cuts = 1_000
    with pytest.raises(HubError, match="the Hub did not do it"):
        fetch(NAME)
    assert not list((tmp_path / "cache" / "edgese" / "hub").rglob("manifest.json"))
    hub.cuts = 0
    Bundle.open(fetch(NAME))


@pytest.mark.usefixtures("commit")
def test_a_damaged_copy_is_fetched_anew(hub: LocalHub, large_bundle: Path) -> None:
    """The library's cache shares the damage: it is the same file."""
    path = fetch(NAME)
    with (path / "weights.bin").open("r+b") as file:
        file.write(b"damage")
    with pytest.raises(ExportError, match="changed since it was exported"):
        Bundle.open(fetch(NAME))
    assert fetch(NAME, again=True) == path
    assert files_of(path) == files_of(large_bundle)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # between the library and its own httpx
def test_what_is_sent_comes_back(hub: LocalHub, large_bundle: Path) -> None:
    """As one commit after the one that makes the repository, with the right token, small files and large."""
    hub.token = "t"
    pinned = send(Bundle.open(large_bundle), "owner/new", licence="mit")
    assert [*hub.commits["owner/new"]][-1] == pinned.partition("@")[2]
    assert len(hub.commits["owner/new"]) == 2
    assert len(hub.objects) == sum(len(content) > LARGE for content in files_of(large_bundle).values()) > 0
    assert files_of(fetch(pinned)) == files_of(large_bundle)


def test_sending_again_replaces_and_leaves_what_else_is_there(
    hub: LocalHub, commit: str, identity_bundle: Path
) -> None:
    send(Bundle.open(identity_bundle), "owner/name")
    assert {"samples/a.wav", "weights.bin"} <= set(list(hub.commits["owner/name"].values())[-1])
    assert files_of(fetch(NAME)).keys() == files_of(identity_bundle).keys() | {"manifest.json.sig"}


def test_the_wrong_token_sends_nothing(hub: LocalHub, large_bundle: Path) -> None:
    hub.token = "another"
    with pytest.raises(HubError, match="may not write there; a token that may: hf auth login"):
        send(Bundle.open(large_bundle), "owner/new")
    assert hub.commits == {}


def test_the_page_carries_metadata_scores_and_the_model_card(large_bundle: Path) -> None:
    from huggingface_hub import ModelCard

    page = ModelCard(card(Bundle.open(large_bundle), "owner/name", "mit"), ignore_metadata_errors=False)
    about = page.data
    assert (about.library_name, about.license, about.pipeline_tag) == ("edgese", "mit", "audio-to-audio")
    assert "onnx" in about.tags
    (score,) = about.eval_results
    assert (score.metric_type, score.metric_value, score.dataset_name) == ("pesq_wb", 2.5, "set (2 recordings)")
    assert "It delays." in page.text
    assert "edgese enhance noisy.wav --model hf:owner/name" in page.text


def test_commands_take_a_bundle_of_the_hub_by_its_name(hub: LocalHub, large_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(large_bundle, folder / "large")
    pinned = parsed(edgese("push", "large", "owner/name", "--json", cwd=folder).stdout)["name"]
    done = edgese("pull", "owner/name", "-o", "copy", cwd=folder)
    assert done.stdout.decode() == f"{pinned} -> copy: 2 graphs, all 5 files as their manifest says\n"
    assert files_of(folder / "copy") == files_of(large_bundle)
    assert "exists already" in one_error(edgese("pull", "owner/name", "-o", "copy", cwd=folder, code=1))
    assert parsed(edgese("info", pinned, "--json", cwd=folder).stdout) == Bundle.open(large_bundle).manifest


def test_a_bundle_that_was_not_verified_is_not_sent(tmp_path: Path, hub: LocalHub) -> None:
    path = write_identity_bundle(tmp_path / "failed", verified=False)
    assert "did not pass its verification" in one_error(edgese("push", path, "owner/name", cwd=tmp_path, code=1))
    assert hub.commits == {}


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['huggingface_hub'] = None\n")
    error = one_error(edgese("enhance", "noisy.wav", "--model", NAME, cwd=tmp_path, code=1, path=[hidden]))
    assert error == f"error: huggingface_hub is missing: {install_command('hub')}"
