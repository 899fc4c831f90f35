"""ATTRIBUTION.md of weights: every source of their recordings, with licence and names as the manifests have them.

    python -m scripts.attribution DATA [--card MODEL_CARD] > ATTRIBUTION.md

DATA holds train_speech/, train_noise/ and rir/, each with a manifest.csv of the columns file, repo, commit, path and
licence. Nothing is shortened: a licence that asks for names gets all of them.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

KINDS = {"train_speech": "speech", "train_noise": "noise", "rir": "room impulse responses"}
SHARE_ALIKE = "BY-SA"
CLIP = re.compile(r"\d+-(\d+)-[A-Z]\.\w+$")  # ESC's file names hold the clip's number at freesound.org

HEAD = """\
# Attribution

The recordings that {what} were trained on, by the repositories that they were taken from: licence, with the
creators that the repository names; number of files; commit. They were cut, resampled to 16 kHz and mixed with each
other at random levels for training; none of them is part of this repository.
Licence texts: creativecommons.org/licenses, apache.org/licenses, opensource.org; repositories: github.com/OWNER/NAME.

## Recordings under CC BY-SA

{share_alike} of the files below are under CC BY-SA. These licences ask that adaptations of a work be shared alike. We
hold weights not to be an adaptation of them: weights are numbers fitted to very many mixtures, they hold no copy of a
recording, and nothing of one is heard in what the network gives. This is our view and no legal advice; to our knowledge
no court has decided it. Whoever sees it otherwise can train without these sources (`edgese train` takes any folder);
they are marked with SA.
"""


def main(
    data: Annotated[Path, typer.Argument(help="The data's folder.")],
    card: Annotated[Path | None, typer.Option(help="A model card; only what its table names.")] = None,
    what: Annotated[str, typer.Option(help="The weights, by name.")] = "the weights",
) -> None:
    """Print ATTRIBUTION.md."""
    sys.stdout.write(attribution(data, None if card is None else sources_of(card), what))


def sources_of(card: Path) -> set[tuple[str, str]]:
    """Kind and repository of each row of a model card's table of data."""
    rows = [[cell.strip() for cell in line.split("|")] for line in card.read_text(encoding="utf-8").splitlines()]
    return {(row[1], row[2]) for row in rows if len(row) > 3 and row[1] in KINDS.values()}


def attribution(data: Path, only: set[tuple[str, str]] | None, what: str) -> str:
    """Text of ATTRIBUTION.md."""
    sections, share_alike = [], 0
    for folder, kind in KINDS.items():
        files: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        with (data / folder / "manifest.csv").open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if only is None or (kind, row["repo"]) in only:
                    files[row["repo"], row["licence"], row["commit"]].append(row["path"])
        share_alike += sum(len(paths) for key, paths in files.items() if SHARE_ALIKE in key[1])
        sections.append(f"\n## {kind.capitalize()}\n\n" + "".join(_entries(files)))
    return HEAD.format(what=what, share_alike=share_alike) + "".join(sections)


def _entries(files: dict[tuple[str, str, str], list[str]]) -> Iterator[str]:
    for (repo, licence, commit), paths in sorted(files.items()):
        mark = "SA " if SHARE_ALIKE in licence else ""
        count = f"{len(paths)} file{'s' if len(paths) > 1 else ''}"
        yield f"- {mark}{repo}: {licence}; {count}; commit {commit}\n"
        clips = sorted({int(found[1]) for path in paths if (found := CLIP.search(path))})
        if clips and "CC0" not in licence:
            yield f"  (by the creators that freesound.org/s/NUMBER names: {', '.join(map(str, clips))})\n"


if __name__ == "__main__":
    typer.run(main)
