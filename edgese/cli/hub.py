"""`edgese push` and `edgese pull`: bundles sent to the Hugging Face Hub, and fetched from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from edgese.cli.terminal import BUNDLE, Json, require, say


def push_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help=BUNDLE)],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository, with @BRANCH for another branch.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is made: for its owner only.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="The licence by its name on the Hub, such as mit.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send a bundle that passed its verification to the Hugging Face Hub, as one commit; needs the extra hub.

    Its page there gets the bundle's model card, scores and licence. The token is the library's: `hf auth login`, or
    HF_TOKEN.
    """
    require("huggingface_hub", extra="hub")
    from edgese.graphs.bundles import bundle_path, open_verified
    from edgese.graphs.hub import send

    sent = send(open_verified(bundle_path(bundle)), name, private=private, licence=licence)
    say(json.dumps({"name": sent}, indent=2) if as_json else f"{bundle} -> {sent}")


def pull_command(
    name: Annotated[
        str,
        typer.Argument(metavar="OWNER/NAME", help="The repository, with @REVISION for a branch, a tag or a commit."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Copy it there. Default: it stays in the cache."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Fetch every file anew, and replace a bundle at --output.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch a bundle from the Hugging Face Hub and check every file of it; needs the extra hub.

    It stays in the cache, where `--model hf:owner/name` finds it without a network.
    """
    require("huggingface_hub", extra="hub")
    from edgese.graphs import HUB
    from edgese.graphs.audio_facts import open_bundle
    from edgese.graphs.hub import fetch, parse_name
    from export.bundle import stage_bundle

    folder = fetch(name, again=force)
    bundle = open_bundle(folder)
    pinned = f"{HUB}{parse_name(name)[0]}@{folder.name}"
    if output is not None:
        with stage_bundle(output, replace=force) as staging:
            shutil.copytree(folder, staging, dirs_exist_ok=True)
    place = output or folder
    if as_json:
        facts = {"name": pinned, "path": str(place), "verified": bundle.verified}
        say(json.dumps(facts, indent=2))
        return
    n_files = len(bundle.manifest["files"])
    say(f"{pinned} -> {place}: {len(bundle.graphs)} graphs, all {n_files} files as their manifest says")
