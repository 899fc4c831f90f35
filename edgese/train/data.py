"""Training data of a folder: its layout, speakers, and the split into training and validation.

Folders are known by their names, up to three levels down; whatever is named after a test, evaluation or validation set
is passed over. Two layouts are understood:

    pairs    clean and noisy recordings of the same names: VoiceBank+DEMAND as distributed (clean_trainset_28spk_wav and
             noisy_trainset_28spk_wav, the 56-speaker set, or both), clean/ and noisy/
    mixing   speech and noise, mixed on the fly: speech/ and noise/, train_speech/ and train_noise/, the DNS challenges'
             clean_fullband/ and noise_fullband/ or clean/ and noise/; rooms from rir/ or impulse_responses/

Where a folder holds both, the pairs are used and the noise is not, as the description says: a published recipe on
VoiceBank+DEMAND must not change because a noise folder lies beside it.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from edgese.audio import Wave
from edgese.audio.formats import READABLE
from edgese.config import DataConfig
from edgese.errors import TrainingError
from edgese.train.decoded import DecodedRecordings, Progress
from edgese.train.mixing import MixedExamples, PairedExamples, validation_config
from edgese.train.rooms import Room, make_rooms, read_rooms

logger = logging.getLogger(__name__)

_MOST_NAMED = 100  # recordings in a message
TRAINING, VALIDATION = 0, 1  # splits, as examples are numbered by them
DEPTH = 3
MOST_ROOMS = 1000  # of a large collection, kept in memory; more teach nothing new

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


class Examples(Protocol):
    """Numbered (noisy, clean) pairs of float32 waves in [-1, 1], in time with each other and equally long."""

    def __call__(self, index: int) -> tuple[Wave, Wave]: ...


@dataclasses.dataclass(frozen=True)
class DataSets:
    """Examples for training and for validation; their speakers and noise recordings are disjoint.

    Of one speaker alone, the recordings are.
    """

    train: Examples
    validation: Examples
    description: dict[str, object]
    digest: str = ""  # of the recordings and of whose they are: equal digests give equal examples; "" where unknown


def open_data(
    folder: Path, config: DataConfig, sample_rate_hz: int, seed: int, cache: Path, progress: Progress | None = None
) -> DataSets:
    """Training and validation examples of a data folder, in whichever layout it has.

    Args:
        cache: where decoded recordings are kept; the first call decodes, which `progress` (done, total files) follows.

    Raises:
        TrainingError: the folder is missing, has neither layout, or holds too little.
        AudioError: none of the recordings can be used; a warning names those that cannot where others can.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: no such folder; wanted clean and noisy recordings, or speech and noise")
    found = list(_folders(folder))
    opening = _Opening(found, config, sample_rate_hz, seed, cache, progress)
    pairs = _paired_folders(found)
    if pairs:
        return opening.pairs(pairs)
    speech, noise = _named(found, SPEECH), _named(found, NOISE)
    if speech and noise:
        return opening.mixing(speech, noise)
    names = sorted(path.name for path in folder.iterdir())[:8]
    missing = "speech but no noise in " if speech else "noise but no speech in " if noise else ""
    raise TrainingError(
        f"{folder}: found {missing}{names}, wanted clean/ and noisy/ (VoiceBank+DEMAND's clean_trainset_* and "
        "noisy_trainset_*), or speech/ and noise/ (the DNS challenges' clean_fullband/ and noise_fullband/)"
    )


@dataclasses.dataclass(frozen=True)
class _Opening:
    """Settings of one call of `open_data`, and the opening of either layout."""

    found: Sequence[Path]  # the folders below the one that was given
    config: DataConfig
    sample_rate_hz: int
    seed: int
    cache: Path
    progress: Progress | None

    def pairs(self, folders: Sequence[tuple[Path, Path]]) -> DataSets:
        noisy_of: dict[Path, Path] = {}
        speaker_of: dict[Path, str] = {}
        unpaired: list[Path] = []
        for clean_folder, noisy_folder in folders:
            noisy_files = {_pair_name(file): file for file in _audio_files(noisy_folder)}
            clean_files = {_pair_name(file): file for file in _audio_files(clean_folder)}
            unpaired += [clean_files.get(name) or noisy_files[name] for name in clean_files.keys() ^ noisy_files.keys()]
            for file in clean_files.values():
                if _pair_name(file) in noisy_files:
                    noisy_of[file] = noisy_files[_pair_name(file)]
                    speaker_of[file] = _speaker(file, clean_folder)
        if not noisy_of:
            raise TrainingError(f"{folders[0][0]}: found no recording that {folders[0][1]} has too, wanted equal names")
        _warn(
            "are left out, which only one of the clean and noisy folders has", [str(file) for file in sorted(unpaired)]
        )
        noisy, clean = self._load(list(noisy_of.values())), self._load(list(noisy_of))
        whole, lost = _whole(noisy, clean)
        noisy, clean = noisy.subset(whole), clean.subset(whole)
        speakers = [speaker_of[file] for file in clean.files]
        _require_equal_lengths(noisy, clean)
        parts, held_out = self._split_speakers(folders[0][0], speakers)

        def examples(split: int, config: DataConfig) -> PairedExamples:
            part = noisy.subset(parts[split]), clean.subset(parts[split])
            return PairedExamples(*part, config, self.sample_rate_hz, seed=self.seed, split=split)

        counts: dict[str, object] = {"clean": len(clean), "speakers": len(set(speakers)), **held_out, **lost}
        left_out = {"unpaired": len(unpaired)} if unpaired else {}
        ignored = {"ignored": noise[0].name} if (noise := _named(self.found, NOISE)) else {}
        return DataSets(
            examples(TRAINING, self.config),
            examples(VALIDATION, validation_config(self.config)),
            {"layout": "pairs", **counts, **left_out, **ignored},
            _digest("pairs", noisy.digest, clean.digest, list(speaker_of.values())),
        )

    def mixing(self, speech_folders: Sequence[Path], noise_folders: Sequence[Path]) -> DataSets:
        spoken = [pair for folder in speech_folders for pair in _speech_files(folder)]
        noise_files = [file for folder in noise_folders for file in _audio_files(folder)]
        for files, found in (([file for file, _ in spoken], speech_folders[0]), (noise_files, noise_folders[0])):
            if not files:
                raise TrainingError(f"{found}: found no audio files, wanted some")
        speech, noise = self._load([file for file, _ in spoken]), self._load(noise_files)
        rooms, rooms_digest, broken_rooms = self._rooms()
        usable, lost_speech = _whole(speech)
        usable_noise, lost_noise = _whole(noise)
        speech, noise = speech.subset(usable), noise.subset(usable_noise)
        speakers = [spoken[index][1] for index in usable]
        speech_parts, held_out = self._split_speakers(speech_folders[0], speakers)
        noise_parts = self._split("noises", noise_folders[0], [str(file) for file in noise.files])

        def examples(split: int, config: DataConfig) -> MixedExamples:
            return MixedExamples(
                speech.subset(speech_parts[split]),
                [speakers[index] for index in speech_parts[split]],
                noise.subset(noise_parts[split]),
                rooms,
                config,
                self.sample_rate_hz,
                seed=self.seed,
                split=split,
            )

        counts = {"speech": len(speech), "speakers": len(set(speakers)), "noise": len(noise), "rooms": len(rooms)}
        n_lost = sum(lost.get("passed over", 0) for lost in (lost_speech, lost_noise)) + len(broken_rooms)
        return DataSets(
            examples(TRAINING, self.config),
            examples(VALIDATION, validation_config(self.config)),
            {"layout": "mixing", **counts, **held_out, **({"passed over": n_lost} if n_lost else {})},
            _digest("mixing", speech.digest, [speaker for _, speaker in spoken], noise.digest, rooms_digest),
        )

    def _load(self, files: Sequence[Path]) -> DecodedRecordings:
        return DecodedRecordings(files, self.sample_rate_hz, self.cache, self.progress)

    def _rooms(self) -> tuple[list[Room], str, list[str]]:
        """Rooms, the digest of their recordings, and why others cannot be used."""
        rooms: list[Room] = []
        digests: list[str] = []
        broken: list[str] = []
        for folder in _named(self.found, ROOMS):
            files = _audio_files(folder)
            if len(files) > MOST_ROOMS:
                chosen = np.random.default_rng([self.seed, 1]).choice(len(files), MOST_ROOMS, replace=False)
                files = [files[index] for index in sorted(chosen)]
            read, unread = read_rooms(files, folder / "manifest.csv", self.sample_rate_hz)
            rooms, broken = rooms + read, broken + unread
            digests += [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        if not rooms and self.config.made_rooms:
            rooms = make_rooms(self.config.made_rooms, self.sample_rate_hz, self.seed, self.cache)
        _warn("cannot be used and are passed over", broken)
        return (
            rooms,
            _digest(len(rooms), digests),
            broken,
        )  # made ones follow from the settings, to a machine's last bit

    def _split_speakers(
        self, folder: Path, speakers: Sequence[str]
    ) -> tuple[tuple[list[int], list[int]], dict[str, str]]:
        """Numbers of the files for training and for validation, by speaker; by recording where there is but one.

        The second value says so, for the description.
        """
        if len(set(speakers)) > 1:
            return self._split("speakers", folder, speakers), {}
        parts = self._split("recordings", folder, [str(index) for index in range(len(speakers))])
        return parts, {"held out": "recordings of the one speaker"}

    def _split(self, what: str, folder: Path, groups: Sequence[str]) -> tuple[list[int], list[int]]:
        """Numbers of the files for training and for validation; all files of a group lie in one of the two."""
        counts = Counter(groups)
        n_held_out = max(1, round(self.config.validation_share * len(counts)))
        if len(counts) <= n_held_out:
            raise TrainingError(f"{folder}: found {len(counts)} {what}, wanted at least {n_held_out + 1}")
        shuffled = np.random.default_rng([self.seed, 0]).permutation(sorted(counts)).tolist()
        # a few speakers hold most of some corpora: those stay in training
        shuffled.sort(key=lambda name: counts[name] > 4 * len(groups) / len(counts))
        held_out = set(shuffled[:n_held_out])
        parts: tuple[list[int], list[int]] = ([], [])
        for index, group in enumerate(groups):
            parts[group in held_out].append(index)
        return parts


def _whole(*sides: DecodedRecordings) -> tuple[list[int], dict[str, int]]:
    """Numbers of the recordings that can be used on all sides, and how many are passed over, for the description."""
    broken = {number for side in sides for number in side.broken}
    _warn("cannot be used and are passed over", [reason for side in sides for reason in side.broken.values()])
    whole = [number for number in range(len(sides[0])) if number not in broken]
    if not whole:
        raise TrainingError(f"{sides[0].files[0].parent}: found no recording that can be used")
    return whole, {"passed over": len(broken)} if broken else {}


def _warn(what: str, recordings: Sequence[str]) -> None:
    """Name recordings, all at once: whoever mends one mends all."""
    if recordings:
        more = f"; and {len(recordings) - _MOST_NAMED} more" if len(recordings) > _MOST_NAMED else ""
        named = "; ".join(recordings[:_MOST_NAMED])
        logger.warning("%d recording%s %s: %s%s", len(recordings), "s" * (len(recordings) > 1), what, named, more)


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _folders(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders below, the upper ones first; those that hold recordings are not entered, held-out sets passed over."""
    level = [folder]
    for _ in range(depth):
        level = sorted(path for parent in level for path in parent.iterdir() if path.is_dir())
        level = [path for path in level if not HELD_OUT.search(path.name)]
        yield from level
        level = [path for path in level if not _is_named(path, LEAVES)]


def _is_named(path: Path, names: Sequence[str]) -> bool:
    return any(path.name == name or path.name.startswith(f"{name}_") for name in names)


def _named(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Folders of the first of these names that is found, of those that lie highest."""
    for name in names:
        matches = [path for path in folders if _is_named(path, [name])]
        if matches:
            return [path for path in matches if len(path.parts) == len(matches[0].parts)]
    return []


def _paired_folders(folders: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of clean and noisy folders of like names, beside each other or not: clean_trainset_28spk_wav, noisy_..."""
    by_name = {path.name: path for path in reversed(folders)}
    pairs = []
    for clean in _named(folders, CLEAN):
        name = clean.name.replace("clean", "noisy")
        noisy = clean.with_name(name) if clean.with_name(name) in folders else by_name.get(name)
        if noisy:
            pairs.append((clean, noisy))
    return pairs


def _pair_name(file: Path) -> str:
    synthesized = SYNTHESIZED.search(file.stem)
    return synthesized[0] if synthesized else file.stem


def _audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in READABLE)


def _speech_files(folder: Path) -> list[tuple[Path, str]]:
    """Speech files and their speakers: from manifest.csv where there is one, else from folder and file names."""
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        return [(file, _speaker(file, folder)) for file in _audio_files(folder)]
    with manifest.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        columns = reader.fieldnames or []
        if not {"file", "speaker"} <= set(columns):
            raise TrainingError(f"{manifest}: found columns {', '.join(columns)}; wanted file and speaker too")
        rows = [row for row in reader if (folder / row["file"]).exists()]
    return [(folder / row["file"], row["speaker"]) for row in rows]


def _speaker(file: Path, folder: Path) -> str:
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


def _require_equal_lengths(noisy: DecodedRecordings, clean: DecodedRecordings) -> None:
    for index, (file, partner) in enumerate(zip(noisy.files, clean.files, strict=True)):
        if noisy.length(index) != clean.length(index):
            raise TrainingError(
                f"{file}: found {noisy.length(index)} samples, wanted {clean.length(index)} as in {partner}: "
                "the two must be in time with each other; remove both, or mend them"
            )
