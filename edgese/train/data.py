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

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.config import DataConfig
from edgese.errors import TrainingError
from edgese.train.decoded import DecodedRecordings, Progress
from edgese.train.inventory import Kind, Material
from edgese.train.mixing import MixedExamples, PairedExamples, Shares, validation_config
from edgese.train.rooms import Room, make_rooms, read_rooms
from edgese.train.sources import (
    MANIFEST,
    MARKS,
    NOISE,
    ROOMS,
    SPEECH,
    Source,
    audio_files,
    folders_below,
    named,
    noise_files,
    pair_name,
    paired_folders,
    speaker_of,
    speech_files,
)

logger = logging.getLogger(__name__)

_MOST_NAMED = 100  # recordings in a message
TRAINING, VALIDATION = 0, 1  # splits, as examples are numbered by them
MOST_ROOMS = 1000  # of a large collection, kept in memory; more teach nothing new


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
    materials: tuple[Material, ...] = ()  # what they are made of
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
    found = list(folders_below(folder))
    opening = _Opening(folder, found, config, sample_rate_hz, seed, cache, progress)
    pairs = paired_folders(found)
    if pairs:
        return opening.pairs(pairs)
    speech, noise = named(found, SPEECH), named(found, NOISE)
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

    folder: Path
    found: Sequence[Path]  # the folders below it
    config: DataConfig
    sample_rate_hz: int
    seed: int
    cache: Path
    progress: Progress | None

    def pairs(self, folders: Sequence[tuple[Path, Path]]) -> DataSets:
        noisy_of: dict[Path, Path] = {}
        sources: dict[Path, Source] = {}
        unpaired: list[Path] = []
        for clean_folder, noisy_folder in folders:
            noisy_files = {pair_name(file): file for file in audio_files(noisy_folder)}
            clean_files = {pair_name(file): file for file in audio_files(clean_folder)}
            unpaired += [clean_files.get(name) or noisy_files[name] for name in clean_files.keys() ^ noisy_files.keys()]
            for file in clean_files.values():
                if pair_name(file) in noisy_files:
                    noisy_of[file] = noisy_files[pair_name(file)]
                    sources[file] = Source(file, speaker_of(file, clean_folder))
        if not noisy_of:
            raise TrainingError(f"{folders[0][0]}: found no recording that {folders[0][1]} has too, wanted equal names")
        _warn(
            "are left out, which only one of the clean and noisy folders has", [str(file) for file in sorted(unpaired)]
        )
        noisy, clean = self._load(list(noisy_of.values())), self._load(list(noisy_of))
        whole, lost = _whole(noisy, clean)
        noisy, clean = noisy.subset(whole), clean.subset(whole)
        usable = [sources[file] for file in clean.files]
        _require_equal_lengths(noisy, clean)
        parts, held_out = self._split_speakers(folders[0][0], usable)

        def examples(split: int, config: DataConfig) -> PairedExamples:
            part = noisy.subset(parts[split]), clean.subset(parts[split])
            return PairedExamples(*part, config, self.sample_rate_hz, seed=self.seed, split=split)

        sides: tuple[tuple[Kind, DecodedRecordings], ...] = (("clean", clean), ("noisy", noisy))
        n_speakers = len({source.group for source in usable})
        counts: dict[str, object] = {"clean": len(clean), "speakers": n_speakers, **held_out, **lost}
        left_out = {"unpaired": len(unpaired)} if unpaired else {}
        ignored = {"ignored": noise[0].name} if (noise := named(self.found, NOISE)) else {}
        return DataSets(
            examples(TRAINING, self.config),
            examples(VALIDATION, validation_config(self.config)),
            {"layout": "pairs", **counts, **left_out, **ignored},
            tuple(
                self._material(kind, recordings, usable, parts[TRAINING], np.full(len(parts[TRAINING]), 1.0))
                for kind, recordings in sides
            ),
            _digest("pairs", noisy.digest, clean.digest, [source.group for source in sources.values()]),
        )

    def mixing(self, speech_folders: Sequence[Path], noise_folders: Sequence[Path]) -> DataSets:
        spoken = [source for folder in speech_folders for source in speech_files(folder)]
        noises = [source for folder in noise_folders for source in noise_files(folder)]
        for sources, found in ((spoken, speech_folders[0]), (noises, noise_folders[0])):
            if not sources:
                raise TrainingError(f"{found}: found no audio files, wanted some")
        speech, noise = (self._load([source.file for source in sources]) for sources in (spoken, noises))
        all_speakers, marks = [source.group for source in spoken], [source.mark for source in (*spoken, *noises)]
        rooms, rooms_digest, broken_rooms = self._rooms()
        usable, lost_speech = _whole(speech)
        usable_noise, lost_noise = _whole(noise)
        speech, noise = speech.subset(usable), noise.subset(usable_noise)
        spoken, noises = [spoken[index] for index in usable], [noises[index] for index in usable_noise]
        speakers = [source.group for source in spoken]
        speech_parts, held_out = self._split_speakers(speech_folders[0], spoken)
        noise_parts = self._split("noises", noise_folders[0], noises)
        speech_shares, noise_shares = self._shares(speech.files, noise.files)

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
                speech_shares=speech_shares,
                noise_shares=noise_shares,
            )

        counts = {"speech": len(speech), "speakers": len(set(speakers)), "noise": len(noise), "rooms": len(rooms)}
        train = examples(TRAINING, self.config)
        materials = (
            self._material("speech", speech, spoken, speech_parts[TRAINING], train.talkers.probabilities()),
            self._material("noise", noise, noises, noise_parts[TRAINING], train.noise_probabilities),
        )
        n_lost = sum(lost.get("passed over", 0) for lost in (lost_speech, lost_noise)) + len(broken_rooms)
        return DataSets(
            train,
            examples(VALIDATION, validation_config(self.config)),
            {"layout": "mixing", **counts, **held_out, **({"passed over": n_lost} if n_lost else {})},
            materials,
            _digest("mixing", speech.digest, all_speakers, noise.digest, rooms_digest, marks),
        )

    def _material(
        self,
        kind: Kind,
        recordings: DecodedRecordings,
        sources: Sequence[Source],
        trained_on: Sequence[int],
        weights: NDArray[np.float64],
    ) -> Material:
        """Recordings of one kind for the inventory; `weights` of those that are trained on."""
        share = np.zeros(len(recordings))
        share[list(trained_on)] = weights / weights.sum()
        groups, seconds = [source.group for source in sources], [source.seconds for source in sources]
        return Material(kind, self.folder, recordings, groups, seconds, share)

    def _load(self, files: Sequence[Path]) -> DecodedRecordings:
        return DecodedRecordings(files, self.sample_rate_hz, self.cache, self.progress)

    def _rooms(self) -> tuple[list[Room], str, list[str]]:
        """Rooms, the digest of their recordings, and why others cannot be used."""
        rooms: list[Room] = []
        digests: list[str] = []
        broken: list[str] = []
        for folder in named(self.found, ROOMS):
            files = audio_files(folder)
            if len(files) > MOST_ROOMS:
                chosen = np.random.default_rng([self.seed, 1]).choice(len(files), MOST_ROOMS, replace=False)
                files = [files[index] for index in sorted(chosen)]
            read, unread = read_rooms(files, folder / MANIFEST, self.sample_rate_hz)
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

    def _shares(self, *kinds: Sequence[Path]) -> list[Shares]:
        """Shares of the folders that the settings name, by what they hold.

        Raises:
            TrainingError: a folder holds no recording of these, or those of one kind want more than there is.
        """
        shares: list[list[tuple[Path, float]]] = [[] for _ in kinds]
        for name, share in self.config.share:
            folder = self.folder / name
            of = [number for number, files in enumerate(kinds) if any(folder in file.parents for file in files)]
            if not of:
                raise TrainingError(f"data.share: found {name!r}, wanted a folder below {self.folder} with recordings")
            for number in of:
                shares[number].append((folder, share))
        for of_kind in shares:
            total = sum(share for _, share in of_kind)
            if total > 1 + 1e-9:
                names = ", ".join(str(folder.relative_to(self.folder)) for folder, _ in of_kind)
                raise TrainingError(f"data.share: found {total:g} for {names} together, wanted at most 1")
        return list(shares)

    def _split_speakers(
        self, folder: Path, sources: Sequence[Source]
    ) -> tuple[tuple[list[int], list[int]], dict[str, str]]:
        """Numbers of the files for training and for validation, by speaker; by recording where there is but one.

        The second value says so, for the description.
        """
        if len({source.group for source in sources}) > 1:
            return self._split("speakers", folder, sources), {}
        alone = [dataclasses.replace(source, group=str(number)) for number, source in enumerate(sources)]
        return self._split("recordings", folder, alone), {"held out": "recordings of the one speaker"}

    def _split(self, what: str, folder: Path, sources: Sequence[Source]) -> tuple[list[int], list[int]]:
        """Numbers of the files for training and for validation; all files of a group lie in one of the two.

        What a manifest marks for one of them is in that one, with its whole group. Where it marks some for validation,
        those are the validation; else some groups are drawn for it.
        """
        marks = {mark: {source.group for source in sources if source.mark == mark} for mark in MARKS}
        both = sorted(marks["train"] & marks["validation"])
        if both:
            raise TrainingError(
                f"{folder / MANIFEST}: {both[0]} has recordings of both splits, wanted {what} in train or in validation"
            )
        counts = Counter(source.group for source in sources)
        held_out = marks["validation"] or self._drawn(counts, marks["train"], len(sources))
        if not held_out or len(counts) <= len(held_out):
            marked = f", {len(marks['train'])} of them marked for training" if marks["train"] else ""
            raise TrainingError(
                f"{folder}: found {len(counts)} {what}{marked}, wanted at least {max(1, len(held_out)) + 1}, "
                f"{max(1, len(held_out))} of them for validation"
            )
        parts: tuple[list[int], list[int]] = ([], [])
        for index, source in enumerate(sources):
            parts[source.group in held_out].append(index)
        return parts

    def _drawn(self, counts: Counter[str], never: set[str], n_files: int) -> set[str]:
        """Groups drawn for validation, of those that may be."""
        shuffled = np.random.default_rng([self.seed, 0]).permutation(sorted(counts)).tolist()
        # a few speakers hold most of some corpora: those stay in training
        shuffled.sort(key=lambda name: counts[name] > 4 * n_files / len(counts))
        free = [name for name in shuffled if name not in never]
        return set(free[: max(1, round(self.config.validation_share * len(free)))])


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
        first = "; ".join(recordings[:_MOST_NAMED])
        logger.warning("%d recording%s %s: %s%s", len(recordings), "s" * (len(recordings) > 1), what, first, more)


def _digest(*facts: object) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _require_equal_lengths(noisy: DecodedRecordings, clean: DecodedRecordings) -> None:
    for index, (file, partner) in enumerate(zip(noisy.files, clean.files, strict=True)):
        if noisy.length(index) != clean.length(index):
            raise TrainingError(
                f"{file}: found {noisy.length(index)} samples, wanted {clean.length(index)} as in {partner}: "
                "the two must be in time with each other; remove both, or mend them"
            )
