"""Recordings of a data folder by the names of folders and files: kinds, pairs, speakers; splits that manifests mark."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgese.audio.formats import READABLE
from edgese.errors import TrainingError

MANIFEST = "manifest.csv"
MARKS = ("", "train", "validation")  # in its column split; "test" is passed over
DEPTH = 3  # of folders that are looked into

# A folder is named one of these, or one of these and something after an underscore; the first that is found counts.
CLEAN = ("clean_trainset", "train_clean", "clean")
SPEECH = ("train_speech", "speech", "clean_fullband", *CLEAN)
NOISE = ("train_noise", "noise_fullband", "noise")
ROOMS = ("rir", "rirs", "impulse_responses")
LEAVES = (*SPEECH, *NOISE, *ROOMS, "noisy_trainset", "train_noisy", "noisy")
HELD_OUT = re.compile(r"(^|[-_])(test|eval|dev|val)(set|uation|id|idation)?([-_]|$)", re.IGNORECASE)

# Speakers in file names: DNS read speech, VCTK and VoiceBank (p226_) and VocalSet (f1_), LibriSpeech, CREMA-D
SPEAKER = re.compile(r"reader_\d+|^[psfm]\d+(?=_)|^\d+(?=-\d+-)|^\d{4}(?=_[A-Z]{3}_)")
NO_SPEAKER = re.compile(r"(wavs?|wav\d+.*|flac|audio|mono|clean|train|.*speech|.*\d+k(hz)?)", re.IGNORECASE)
SYNTHESIZED = re.compile(r"fileid_\d+")  # the DNS challenges' own mixtures: their clean and noisy names differ


@dataclasses.dataclass(frozen=True)
class Source:
    """Recording, the speaker or other group that it belongs to, and its split and length as a manifest has them."""

    file: Path
    group: str
    mark: str = ""
    seconds: float | None = None


def folders_below(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders below, the upper ones first; those that hold recordings are not entered, held-out sets passed over."""
    level = [folder]
    for _ in range(depth):
        level = sorted(path for parent in level for path in parent.iterdir() if path.is_dir())
        level = [path for path in level if not HELD_OUT.search(path.name)]
        yield from level
        level = [path for path in level if not _is_named(path, LEAVES)]


def _is_named(path: Path, names: Sequence[str]) -> bool:
    return any(path.name == name or path.name.startswith(f"{name}_") for name in names)


def named(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Folders of the first of these names that is found, of those that lie highest."""
    for name in names:
        matches = [path for path in folders if _is_named(path, [name])]
        if matches:
            return [path for path in matches if len(path.parts) == len(matches[0].parts)]
    return []


def paired_folders(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of clean and noisy folders of like names, beside each other or not: clean_trainset_28spk_wav, noisy_..."""
    by_name = {path.name: path for path in reversed(folders)}
    pairs = []
    for clean in named(folders, CLEAN):
        name = clean.name.replace("clean", "noisy")
        noisy = clean.with_name(name) if clean.with_name(name) in folders else by_name.get(name)
        if noisy:
            pairs.append((clean, noisy))
    return pairs


def pair_name(file: Path) -> str:
    """Name that a clean file and its noisy partner share."""
    synthesized = SYNTHESIZED.search(file.stem)
    return synthesized[0] if synthesized else file.stem


def audio_files(folder: Path) -> list[Path]:
    """Audio files below a folder, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE)


def speech_files(folder: Path) -> list[Source]:
    """Speech files and their speakers: from manifest.csv where there is one, else from folder and file names."""
    rows = _manifest(folder, "file", "speaker")
    if rows is None:
        return [Source(file, speaker_of(file, folder)) for file in audio_files(folder)]
    return [
        Source(folder / row["file"], row["speaker"], _mark(folder, row), _seconds(folder, row))
        for row in rows
        if (folder / row["file"]).exists() and row.get("split") != "test"
    ]


def noise_files(folder: Path) -> list[Source]:
    """Noise files, each a group of its own; a manifest.csv may mark them for a split."""
    rows = {folder / row["file"]: row for row in _manifest(folder, "file") or []}
    return [
        Source(file, str(file), _mark(folder, row), _seconds(folder, row))
        for file in audio_files(folder)
        if (row := rows.get(file, {})).get("split") != "test"
    ]


def _manifest(folder: Path, *wanted: str) -> list[dict[str, str]] | None:
    """Rows of a folder's manifest.csv; None where there is none.

    Raises:
        TrainingError: it lacks a column.
    """
    manifest = folder / MANIFEST
    if not manifest.exists():
        return None
    with manifest.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if not set(wanted) <= set(columns):
            raise TrainingError(f"{manifest}: found columns {', '.join(columns)}; wanted {' and '.join(wanted)} too")
        return list(reader)


def _seconds(folder: Path, row: dict[str, str]) -> float | None:
    try:
        return float(row["seconds"]) if row.get("seconds") else None
    except ValueError as error:
        raise TrainingError(
            f"{folder / MANIFEST}: seconds of {row['file']}: {error}; wanted seconds, or nothing"
        ) from error


def _mark(folder: Path, row: dict[str, str]) -> str:
    mark = row.get("split") or ""
    if mark not in MARKS:
        raise TrainingError(f"{folder / MANIFEST}: split of {row['file']}: found {mark!r}, wanted one of {MARKS}")
    return mark


def speaker_of(file: Path, folder: Path) -> str:
    """Name of a file's speaker, as far as names show it: by the file's, or the nearest folder's that can be one.

    Beyond that a file of `folder` itself belongs with those that begin alike up to the first underscore; any other is
    a speaker of its own.
    """
    named = SPEAKER.search(file.stem)
    if named:
        return named[0]
    inner = file.relative_to(folder)
    for parent in inner.parents[:-1]:
        if not NO_SPEAKER.fullmatch(parent.name):
            return parent.as_posix()
    if len(inner.parts) == 1 and not SYNTHESIZED.search(file.stem):
        return file.stem.split("_")[0]
    return inner.as_posix()
