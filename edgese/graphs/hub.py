"""Bundles on the Hugging Face Hub, by names like `hf:owner/name@revision`: fetched, checked, kept; and sent there.

What is fetched lies in the library's own cache first: its rules hold for the place, tokens, resumed downloads and work
without network. A bundle may hold no links, and the library's cache is made of them; so its files get a second name
(a hard link, or a copy) in this user's cache, in a folder that is named after the commit and appears only when every
file has the SHA-256 that the manifest says.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgese.errors import EdgeseError, install_command
from edgese.graphs import HUB
from export import ExportError
from export.bundle import MODEL_CARD, SIGNATURE, Bundle
from export.manifest import MANIFEST, read_manifest
from export.schema import SchemaError, parse_json
from export.staging import StagedFolder

try:
    import huggingface_hub as library
    from huggingface_hub import errors, utils
except ImportError as error:
    raise EdgeseError(f"huggingface_hub is missing: {install_command('hub')}") from error

CARD = "README.md"  # the Hub's own page of a repository, which is no part of the bundle
EVALUATION = "evaluation.json"  # of `edgese evaluate --json`, where a bundle has it
LOGIN = "hf auth login"  # the library's own command

_COMMIT = re.compile("[0-9a-f]{40}")
_FORM = "wanted hf:owner/name, or hf:owner/name@revision with a branch, tag or commit"


class HubError(EdgeseError):
    """A bundle that cannot be fetched from the Hub, or not be sent there."""


def parse_name(name: str) -> tuple[str, str | None]:
    """Repository and revision of `hf:owner/name@revision`; None where no revision is named.

    Raises:
        HubError: it is no such name.
    """
    repository, at, revision = name.removeprefix(HUB).partition("@")
    try:
        utils.validate_repo_id(repository)  # type: ignore[attr-defined]
    except errors.HFValidationError as error:
        raise HubError(f"{name}: not the name of a repository; {_FORM}") from error
    if repository.count("/") != 1 or (at and not revision):
        raise HubError(f"{name}: not the name of a repository with its owner; {_FORM}")
    return repository, revision or None


def fetch(name: str, *, again: bool = False) -> Path:
    """Folder of a bundle of the Hub; named by its commit and already here, nothing is asked for.

    Args:
        name: `hf:owner/name`, or `hf:owner/name@revision`.
        again: every file anew, also those that are here.

    Raises:
        HubError: a bad name, no such repository or revision, no bundle there, no network and nothing here; what came
            is not what its manifest says.
        ExportError: the manifest that came is none.
    """
    repository, revision = parse_name(name)
    place = _cache() / repository.replace("/", "--")
    if revision is not None and _COMMIT.fullmatch(revision) and (place / revision).is_dir() and not again:
        return place / revision
    with _named(name, repository):
        _keep_quiet()
        options: dict[str, Any] = {"library_name": "edgese", "force_download": again}
        snapshot = Path(library.hf_hub_download(repository, MANIFEST, revision=revision, **options)).parent
    commit = snapshot.name
    if (place / commit).is_dir() and not again:
        return place / commit
    listed = {MANIFEST, SIGNATURE, *read_manifest(snapshot)["files"]}
    with _named(name, repository):
        library.snapshot_download(repository, revision=commit, allow_patterns=sorted(listed), **options)
    with StagedFolder(place) as staged:
        for file in snapshot.rglob("*"):
            inner = file.relative_to(snapshot)
            if inner.as_posix() in listed and file.is_file():
                (staged.path / inner).parent.mkdir(parents=True, exist_ok=True)
                _second_name(file.resolve(), staged.path / inner)
        try:
            Bundle.open(staged.path)
        except ExportError as error:
            found = str(error).replace(str(staged.path), f"{HUB}{repository}@{commit}")
            raise HubError(f"{found}; to fetch every file anew: edgese pull --force {repository}@{commit}") from error
        staged.publish(place / commit, replace=True)
    return place / commit


def send(bundle: Bundle, name: str, *, private: bool = False, licence: str | None = None) -> str:
    """Send a bundle to the Hub as one commit, with a page about it; the pinned name that fetches it again.

    The repository is made unless it is there; what else lies in it stays.

    Args:
        name: `hf:owner/name`, or `hf:owner/name@branch`.
        private: of a repository that is made; one that is there stays as it is.
        licence: its identifier on the Hub, such as `mit`.

    Raises:
        HubError: a bad name, no right to write there, no such branch, no network.
    """
    repository, branch = parse_name(name)
    names = [MANIFEST, *bundle.manifest["files"], *([SIGNATURE] if (bundle.path / SIGNATURE).is_file() else [])]
    files: dict[str, Path | bytes] = {name: bundle.path / name for name in names}
    page = files.get(CARD) or card(bundle, repository, licence).encode()
    additions = [library.CommitOperationAdd(name, file) for name, file in (files | {CARD: page}).items()]
    with _named(name, repository):
        _keep_quiet()
        api = library.HfApi(library_name="edgese")
        api.create_repo(repository, private=private, exist_ok=True)
        message = f"{bundle.manifest['name']}, a bundle of edgese {bundle.manifest['tools'].get('edgese', '')}".strip()
        commit = api.create_commit(repository, additions, commit_message=message, revision=branch)
    return f"{HUB}{repository}@{commit.oid}"


def card(bundle: Bundle, repository: str, licence: str | None = None) -> str:
    """The page of a bundle on the Hub: metadata that the Hub reads, then the bundle's model card, then its use."""
    about = library.ModelCardData(
        library_name="edgese",
        license=licence,
        pipeline_tag="audio-to-audio",
        tags=["speech-enhancement", "noise-suppression", "onnx", *["streaming"] * bundle.manifest.get("causal", True)],
        model_name=str(bundle.manifest["name"]),
        eval_results=_scores(bundle) or None,
    )
    own = MODEL_CARD in bundle.manifest["files"]
    text = bundle.file(MODEL_CARD).read_text(encoding="utf-8") if own else f"# {bundle.manifest['name']}\n"
    use = f"## Run it\n\n    edgese enhance noisy.wav --model {HUB}{repository}\n"
    return f"---\n{about.to_yaml()}\n---\n\n{text.rstrip()}\n\n{use}"


def _scores(bundle: Bundle) -> list[library.EvalResult]:
    """Scores of the bundle's own evaluation, those of its first system; none where it holds none in our form."""
    if EVALUATION not in bundle.manifest["files"]:
        return []
    with contextlib.suppress(SchemaError, LookupError, TypeError, AttributeError):
        report = parse_json(bundle.file(EVALUATION).read_bytes())
        scored = report["systems"][0]
        set_of = f"{report['data']} ({len(scored['pairs'])} recordings)"
        return [
            library.EvalResult(
                task_type="audio-to-audio",
                dataset_type="paired-recordings",
                dataset_name=set_of,
                metric_type=metric,
                metric_name=report["metrics"][metric]["title"],
                metric_value=round(value, 4),
            )
            for metric, value in scored["mean"]["enhanced"].items()
            if report["metrics"][metric]["higher_is_better"] is not None
        ]
    return []


def _keep_quiet() -> None:
    """No bars where there is no terminal, and each of the library's lines once, not by our handler too."""
    utils.logging.disable_propagation()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()  # type: ignore[attr-defined]


def _cache() -> Path:
    """Folder that keeps fetched bundles, a folder a repository, in it one a commit."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgese" / "hub"


def _second_name(file: Path, other: Path) -> None:
    try:
        os.link(file, other)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, other)


@contextlib.contextmanager
def _named(name: str, repository: str) -> Iterator[None]:
    """Turn the library's errors into one line with its mend; those it raises share no base but Exception."""
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(f"{name}: asks for its terms to be accepted: on its page on the Hub, then {LOGIN}") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{name}: found no such repository, or none that this user may see: see to the name, or the token: {LOGIN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"{name}: {repository} has no such branch, tag or commit; leave it out for the newest"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"{name}: not here yet, and the Hub cannot be reached ({_reason(error)}); fetch it where there is a "
            f"network: edgese pull {name.removeprefix(HUB)}"
        ) from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{name}: {repository} holds no {MANIFEST}, so no bundle; send one: edgese push") from error
    except Exception as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            raise HubError(f"{name}: this user may not write there; a token that may: {LOGIN}, or HF_TOKEN") from error
        raise HubError(f"{name}: the Hub did not do it ({_reason(error)}); try again, what came is kept") from error


def _reason(error: BaseException) -> str:
    """First line of what went wrong below an error of the library's."""
    cause = error.__cause__ or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0][:200]
