"""Plan of `edgese enhance`: the output of each input, made or refused before any sound is touched."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from edgese.atomic_file import shown
from edgese.audio.formats import CONTAINERS, FORMATS, READABLE, SUBTYPES, UNREADABLE
from edgese.audio.media import DECODED, MEDIA, have_ffmpeg
from edgese.errors import AudioError, ConfigError
from edgese.graphs.precision import Precision

MOST_PREVIEW_S = 120.0


@dataclasses.dataclass(frozen=True)
class EnhanceOptions:
    """Options of `edgese enhance`, one field each."""

    output: str | None = None  # file, folder, "-" for stdout; None: beside the input
    force: bool = False  # existing files may be replaced
    atten_limit_db: float | None = None  # never attenuate by more; None: no limit
    container: str | None = None  # of the output, one of audio.CONTAINERS; None: by suffix, else the input's
    subtype: str | None = None  # of the output, one of audio.SUBTYPES; None: the input's
    runtime: str = "onnxruntime"
    block: int | None = None  # frames a call; None: the largest graph of the bundle
    jobs: int | None = None  # files at a time; None: one for each core
    precision: Precision = Precision.FP32  # of the graphs
    pcs: bool = False  # the graphs with perceptual contrast stretching
    narrow: bool = False  # nothing above the network's band
    preview_s: float | None = None  # write so many seconds, before and after, instead of the whole
    plot: bool = False  # before/after spectrograms beside the output

    def __post_init__(self) -> None:
        limit = self.atten_limit_db
        if limit is not None and not (math.isfinite(limit) and limit >= 0):
            raise ConfigError(f"--atten-limit: found {limit}, wanted 0 or more decibels, such as 12")
        if self.preview_s is not None and not 0.1 <= self.preview_s <= MOST_PREVIEW_S:
            raise ConfigError(f"--preview: found {self.preview_s:g}, wanted 0.1 to {MOST_PREVIEW_S:g} seconds")
        if self.preview_s is not None and self.plot:
            raise ConfigError("--plot: draws whole recordings, found --preview: choose one of them")
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"--jobs: found {self.jobs}, wanted at least 1")
        for what, value, known in (("container", self.container, CONTAINERS), ("subtype", self.subtype, SUBTYPES)):
            if value is not None and value not in known:
                raise ConfigError(f"{what}: found {value!r}, wanted one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class Job:
    """One input file, its output and the options."""

    source: Path | None  # None: stdin
    target: Path | None  # None: stdout
    plot: Path | None
    options: EnhanceOptions

    @property
    def source_name(self) -> str:
        return "stdin" if self.source is None else shown(self.source)

    @property
    def target_name(self) -> str:
        return "stdout" if self.target is None else shown(self.target)


def plan_jobs(inputs: Sequence[str], options: EnhanceOptions) -> list[Job]:
    """One job for each input file; folders are walked and mirrored. Nothing is written or decoded.

    Without an output, `a.wav` becomes `a.enhanced.wav` beside it, the folder `x` becomes `x.enhanced/`, and stdin goes
    to stdout; a preview becomes `a.preview.wav`. With one, a single file goes to that file or into that folder; folders
    and several files go into that folder under their own names. MP3 becomes WAV unless the output's name says .mp3:
    most players shift and pad MP3.
    An input that is missing gets its job like any other, and fails when it is done.

    Where inputs would share an output, those whose suffix changes keep their whole names: `talk.mp3` becomes
    `talk.mp3.wav` beside `talk.wav`.

    Raises:
        ConfigError: an output that is named like a file, for several inputs.
        AudioError: an output that is also an input (through links, too), that two inputs share, that exists and may
            not be replaced, that is no file, or whose format is not known; a folder without audio files.
    """
    if not inputs:
        raise AudioError("no input: name a file, a folder, or - for stdin")
    if "" in inputs:
        raise AudioError("input: found an empty name, wanted a file, a folder, or - for stdin")
    if list(inputs).count("-") > 1:
        raise AudioError("stdin: named more than once, can be read only once")
    jobs: list[Job] = []
    plots: set[Path] = set()
    for source, target in _apart(list(_pairs(inputs, options))):
        plot = _plot_path(target, plots) if options.plot else None
        plots |= {plot} if plot is not None else set()
        jobs.append(Job(source, target, plot, options))
    _check_targets(jobs, options.force)
    return jobs


def passed_over(inputs: Sequence[str]) -> list[Path]:
    """Files of the input folders that hold sound, by their names, in formats that are not read."""
    return [
        file
        for text in inputs
        if text != "-" and _is_folder(Path(text))
        for file in _files(Path(text))
        if file.suffix.lower() in UNREADABLE and file.suffix.lower() not in _taken()
    ]


def _pairs(inputs: Sequence[str], options: EnhanceOptions) -> Iterator[tuple[Path | None, Path | None]]:
    """Pairs of source and target; None stands for stdin and stdout."""
    folder = _output_folder(inputs, options)
    for text in inputs:
        source = Path(text)
        if text != "-" and _is_folder(source):
            root = folder if folder is not None else _beside(source)
            if folder is not None and len(inputs) > 1:
                root /= source.resolve().name
            for file in _audio_files(source, root):
                yield file, root / file.relative_to(source).with_name(output_name(file, options))
        elif folder is not None:
            stem = "stdin" if text == "-" else _stem(source)
            yield (None if text == "-" else source), folder / (stem + _suffix(source, options))
        elif options.output not in (None, "-"):
            target = Path(str(options.output))
            _check_suffix(target, options)
            yield (None if text == "-" else source), target
        elif text == "-" or options.output == "-":
            yield (None if text == "-" else source), None
        else:
            made = "enhanced" if options.preview_s is None else "preview"
            yield source, source.with_name(f"{_stem(source)}.{made}{_suffix(source, options)}")


def _apart(pairs: Sequence[tuple[Path | None, Path | None]]) -> Iterator[tuple[Path | None, Path | None]]:
    """The same pairs; of those that share an output, the ones whose suffix changes keep their input's whole name."""
    sharing = Counter(target for _, target in pairs)
    for source, target in pairs:
        if source is not None and target is not None and sharing[target] > 1 and source.suffix != target.suffix:
            yield source, target.with_name(source.name + target.name.removeprefix(_stem(source)))
        else:
            yield source, target


def _output_folder(inputs: Sequence[str], options: EnhanceOptions) -> Path | None:
    """Folder that all outputs go to; None: they go beside the inputs, to the one file named, or to stdout."""
    output = options.output
    if output is None:
        return None
    several = len(inputs) > 1 or (inputs[0] != "-" and _is_folder(Path(inputs[0])))
    if output == "-":
        if several:
            raise AudioError("stdout: takes one file, found several inputs or a folder: give a folder with -o")
        return None
    if not output:
        raise AudioError("-o: found an empty name, wanted a file, a folder, or - for stdout")
    path = Path(output)
    if several and _stat(path) is not None and not _is_folder(path):
        raise AudioError(f"{shown(path)}: found a file, wanted a folder, as there are several files to write")
    if several and path.suffix.lower() in READABLE and not output.endswith(os.sep) and not _is_folder(path):
        raise ConfigError(
            f"-o {shown(path)}: found the name of a file, wanted a folder, as there are several files to write: "
            f"recordings are not joined; if it shall be a folder, end it with {os.sep}"
        )
    return path if several or output.endswith(os.sep) or _is_folder(path) else None


def output_name(source: Path, options: EnhanceOptions) -> str:
    """File name of an output that lies in another folder than its input."""
    return _stem(source) + _suffix(source, options)


def _stem(source: Path) -> str:
    """File name without its suffix, if that names an audio format: `talk.3` is all name."""
    return source.stem if source.suffix.lower() in (*READABLE, *UNREADABLE) else source.name


def _suffix(source: Path, options: EnhanceOptions) -> str:
    """Suffix of an output whose name is made from its input's."""
    own = source.suffix if source.suffix.lower() in FORMATS else ".wav"
    if options.preview_s is not None and options.container is None:
        return ".wav"
    if options.container is None and options.subtype is None and have_ffmpeg() and source.suffix.lower() in MEDIA:
        return source.suffix
    if options.container is not None:
        if FORMATS[own.lower()][0] == options.container:
            return own
        return next(suffix for suffix, (container, _) in FORMATS.items() if container == options.container)
    return ".wav" if own.lower() == ".mp3" else own


def _check_suffix(target: Path, options: EnhanceOptions) -> None:
    by_suffix = FORMATS.get(target.suffix.lower(), (None, None))[0]
    if options.container is None and options.subtype is None and target.suffix.lower() in MEDIA:
        return  # the writer says what is missing
    if options.container is None and by_suffix is None:
        raise AudioError(
            f"{shown(target)}: its suffix names no audio format, wanted one of {', '.join(FORMATS)}, "
            "or a / at its end to make it a folder"
        )
    if None not in (options.container, by_suffix) and {options.container, by_suffix} not in (
        {options.container},
        {"WAV", "RF64"},
    ):
        raise AudioError(
            f"{shown(target)}: the name says {by_suffix}, the container asked for is {options.container}: choose one"
        )


def _plot_path(target: Path | None, taken: Collection[Path]) -> Path:
    if target is None:
        raise AudioError("stdout: has no place for a plot beside it: name an output file with -o, or leave --plot out")
    plot = target.with_suffix(".png")
    return plot if plot not in taken else target.with_name(f"{target.name}.png")


def _check_targets(jobs: Sequence[Job], force: bool) -> None:
    sources = {key for job in jobs if job.source is not None for key in _identities(job.source)}
    taken: dict[str, Job] = {}
    existing: list[Path] = []
    for job in jobs:
        for target in (job.target, job.plot):
            if target is None:
                continue
            if _identities(target) & sources:
                raise AudioError(f"{shown(target)}: is an input itself, it would be lost: choose another output")
            other = taken.setdefault(os.path.realpath(target), job)
            if other is not job:
                raise AudioError(
                    f"{shown(target)}: both {other.source_name} and {job.source_name} would be written there: "
                    "enhance them one by one, or into two folders"
                )
            if _is_taken(target):
                if _stat(target) is not None and not target.is_file():
                    raise AudioError(f"{shown(target)}: found a folder, pipe or device, wanted the name of a file")
                existing.append(target)
    if existing and not force:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise AudioError(f"{shown(existing[0])}{more}: exists already; replace it with --force, or choose another -o")


def _identities(path: Path) -> set[object]:
    """Keys that two names of one file share: the place they resolve to and, for hard links, the inode."""
    found = _stat(path)
    return {os.path.realpath(path)} | ({(found.st_dev, found.st_ino)} if found else set())


def _taken() -> tuple[str, ...]:
    """Suffixes of the files that are taken from a folder."""
    return (*READABLE, *DECODED) if have_ffmpeg() else READABLE


def _audio_files(folder: Path, output: Path) -> list[Path]:
    """Audio files below `folder` by suffix, sorted; neither hidden ones nor those below `output`."""
    found = [file for file in _files(folder, output) if file.suffix.lower() in _taken()]
    if not found:
        others = sorted(file for file in _files(folder, output) if file.suffix.lower() in UNREADABLE)
        seen = f" but {shown(others[0].name)}, which is not read" if others else ""
        raise AudioError(f"{shown(folder)}: found no audio files{seen}, wanted some that end in {', '.join(READABLE)}")
    return found


def _files(folder: Path, output: Path | None = None) -> Iterator[Path]:
    """Files below `folder`, sorted folder by folder; neither hidden ones nor those below `output`."""

    def refuse(error: OSError) -> None:
        raise AudioError(f"{shown(str(error.filename))}: cannot be listed ({error.strerror}): change its permissions")

    own = None if output is None else os.path.realpath(output)
    for place, folders, files in os.walk(folder, onerror=refuse):
        here = Path(place)
        folders[:] = sorted(name for name in folders if name[0] != "." and os.path.realpath(here / name) != own)
        yield from (here / name for name in sorted(files) if name[0] != ".")


def _beside(folder: Path) -> Path:
    """Folder `x.enhanced` beside `x`, also where the name is only to be found by resolving, as in `.`."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    if not named.name:
        raise AudioError(f"{shown(folder)}: has no place beside it: name an output folder with -o")
    return named.with_name(f"{named.name}.enhanced")


def _is_folder(path: Path) -> bool:
    found = _stat(path)
    return found is not None and path.is_dir()


def _is_taken(path: Path) -> bool:
    """True if the name is given, be it to a link that leads nowhere."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _stat(path: Path) -> os.stat_result | None:
    """Status of a file; None where nothing can be found, whatever the reason: reading or writing names it later."""
    try:
        return path.stat()
    except (OSError, ValueError):
        return None
