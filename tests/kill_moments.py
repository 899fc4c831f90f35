"""Kill -9 at random moments of what writes files, and what it must have left: `make kill`.

    python -m tests.kill_moments [--moments 200] [--seed 0] [--only NAME] [FOLDER]

Every second moment is a point in time; the others are just before a change of the file system, the Nth of as many as an
undisturbed run makes, so that the narrow places between two of them are met. After each moment nothing torn may lie
under a final name. After every third, the command runs to its end: then its results are those of a run that nothing
disturbed, byte for byte, and nothing else is left, in the folder, in the one for temporary files or on the board.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import soundfile
import torch

from calib.batches import read_batches
from edgese.config import AudioConfig
from edgese.model.checkpoint import load_checkpoint, load_enhancer, save_weights
from edgese.model.registry import build
from edgese.networks import MbsConfig
from export.bundle import Bundle

from .edgese.helpers.golden_bundle import write_golden_bundle
from .edgese.helpers.ssh_board import LACKING, SshBoard, ssh_board, wait_until
from .edgese.helpers.warm_python import WarmPython

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 1800.0  # of a run on a busy machine; what hangs is ended
SHARES = {"enhance": 0.4, "calibrate": 0.16, "remote": 0.18, "train": 0.18, "export": 0.08}  # by what a run takes

# Counts the changes that a command makes below a folder; ends it just before one of them, or tells their number.
_COUNTED = """\
import os, shutil, sys
below, last, told, graphs = {below!r}, {last!r}, {told!r}, {graphs!r}
if graphs:  # the conversion by PyTorch, seconds of work that end in one file, is done once
    import edgese.graphs.write as module
    convert = module.write_onnx
    def write_onnx(*arguments, **options):
        (path,) = (argument for argument in arguments if isinstance(argument, os.PathLike))
        made = os.path.join(graphs, os.path.basename(path))
        if os.path.exists(made):
            shutil.copyfile(made, path)
        else:
            convert(*arguments, **options)
            shutil.copyfile(path, made)
    module.write_onnx = write_onnx
count = 0
def changes(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        return [path] if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else []
    names = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree")
    return arguments[:2] if event in names else []
def hook(event, arguments):
    global count
    for path in changes(event, arguments):
        if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(below):
            count += 1
            if count == last:
                os.kill(os.getpid(), 9)
            return
sys.addaudithook(hook)
import runpy
sys.argv[1:] = {arguments!r}
try:
    runpy.run_module("edgese", run_name="__main__", alter_sys=True)
finally:
    if told:
        below = "\\0"
        with open(told, "w") as file:
            file.write(str(count))
"""


class Torn(AssertionError):  # noqa: N818 - what it found
    """What a killed process has left and must not have."""


@dataclasses.dataclass
class Subject:
    """A command, and what it must have left."""

    name: str
    arguments: list[str]
    work: Path  # where it writes
    check_whole: Callable[[Path], None]  # raises where something torn lies under a final name
    results: Callable[[Path], object]  # to be equal in every run that ended
    converts: bool = False  # a network to ONNX
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    reset: Callable[[Path], object] = lambda work: None  # before it is begun anew, once it has ended
    other_end: Callable[[], None] | None = None  # kills what runs on the board: the command then has to do with that


@dataclasses.dataclass
class Count:
    """Moments of one subject."""

    in_time: int = 0
    at_a_change: int = 0
    other_end: int = 0
    ended_before: int = 0
    ends: int = 0  # runs to the end, each compared with the undisturbed one
    left: int = 0  # staged files and folders that a killed run left and the next one swept


class Runs:
    """Runs of one subject in a folder of its own."""

    def __init__(self, subject: Subject, folder: Path, python: WarmPython) -> None:
        self.subject, self.python = subject, python
        self.tmp, self.told = folder / "tmp", folder / "told"
        self.tmp.mkdir()
        self.graphs = folder.parent / f"graphs-{folder.name}" if subject.converts else None
        if self.graphs:
            self.graphs.mkdir()
        self.folder = folder
        self.environment = (
            os.environ
            | {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.tmp), "XDG_CACHE_HOME": str(folder / "cache")}
            | dict(subject.environment)
        )

    def run(self, *, last: int = 0, seconds: float = TIMEOUT_S) -> int | None:
        """Exit code; None where it was killed."""
        told = str(self.told) if not last else ""
        code = _COUNTED.format(
            below=f"{self.folder}/",
            last=last,
            told=told,
            graphs=str(self.graphs or ""),
            arguments=self.subject.arguments,
        )
        try:
            done = self.python.run(["-c", code], self.folder, self.environment, b"", seconds)
        except subprocess.TimeoutExpired:
            if seconds == TIMEOUT_S:
                raise
            return None
        if done.returncode == -9:
            return None
        if done.returncode or b"Traceback" in done.stderr:
            raise Torn(f"{self.subject.name}: exit code {done.returncode}: {done.stderr.decode()[-1500:]}")
        return done.returncode

    def undisturbed(self) -> object:
        self.run()
        self.check()
        left = self.staged()
        if left:
            raise Torn(f"{self.subject.name}: {', '.join(left)} is still there after a whole run")
        return self.subject.results(self.subject.work)

    def check(self) -> None:
        try:
            self.subject.check_whole(self.subject.work)
        except Exception as error:
            raise Torn(f"{self.subject.name}: {type(error).__name__}: {error}") from error

    def staged(self) -> list[str]:
        """What lies in the folders without being a result."""
        found = [path for path in self.subject.work.rglob("*") if path.name.startswith(".edgese-")]
        return sorted(str(path.relative_to(self.folder)) for path in (*found, *self.tmp.iterdir()))


def kill_at_moments(runs: Runs, n_moments: int, rng: random.Random) -> Count:
    """Kill a subject at moments, and look.

    Raises:
        Torn: what it left is not what it must be.
    """
    subject, count = runs.subject, Count()
    wanted = runs.undisturbed()
    n_changes = int(runs.told.read_text())
    subject.reset(subject.work)
    began = time.monotonic()
    if runs.undisturbed() != wanted:
        raise Torn(f"{subject.name}: two undisturbed runs differ")
    seconds = time.monotonic() - began
    subject.reset(subject.work)
    for moment in range(n_moments):
        timer = None
        if moment % 2:
            killed = runs.run(last=rng.randint(1, n_changes)) is None
            count.at_a_change += 1
        elif subject.other_end is not None and moment % 4 == 2:
            timer = threading.Timer(rng.uniform(0, seconds), subject.other_end)
            timer.start()
            runs.run()  # it connects again
            timer.join()
            killed = False
            count.other_end += 1
        else:
            killed = runs.run(seconds=rng.uniform(0, seconds)) is None
            count.in_time += 1
        runs.check()
        count.ended_before += not killed and timer is None
        count.left += len(runs.staged())
        if not killed or moment % 3 == 2 or moment == n_moments - 1:
            if runs.undisturbed() != wanted:
                raise Torn(f"{subject.name}: after moment {moment}, its results are not those of an undisturbed run")
            count.ends += 1
            subject.reset(subject.work)
    return count


# Subjects


def files_below(work: Path) -> dict[str, bytes]:
    """Content of all final files, by name."""
    found = (path for path in work.rglob("*") if path.is_file() and ".edgese-" not in str(path.relative_to(work)))
    return {path.relative_to(work).as_posix(): path.read_bytes() for path in sorted(found)}


def enhance_subject(folder: Path) -> Subject:
    noisy = folder / "noisy"
    noisy.mkdir()
    rng = np.random.default_rng(0)
    for number, suffix in enumerate(("wav", "flac", "aiff", "wav")):
        soundfile.write(noisy / f"{number}.{suffix}", 0.1 * rng.standard_normal((16_000 * (1 + number), 1)), 16_000)
        (noisy / f"{number}.{suffix}").chmod(0o600)
    bundle = write_golden_bundle(folder / "identity")
    known: dict[str, bytes] = {}

    def check_whole(work: Path) -> None:
        found = files_below(work)
        known.update({name: found[name] for name in found if name not in known})  # the first run is undisturbed
        torn = [name for name, content in found.items() if content != known[name]]
        open_ones = [name for name in found if (work / name).stat().st_mode & 0o077]
        assert not torn, f"torn: {torn}"
        assert not open_ones, f"readable for others: {open_ones}"

    arguments = ["enhance", str(noisy), "-o", str(folder / "work"), "-m", str(bundle.path), "--force", "-j", "2"]

    def reset(work: Path) -> None:
        if int(time.monotonic() * 1000) % 2:  # else they are replaced
            shutil.rmtree(work)
            work.mkdir()

    return Subject("enhance", arguments, folder / "work", check_whole, files_below, reset=reset)


def _tiny_weights(path: Path) -> Path:
    torch.manual_seed(1)
    config = MbsConfig(channels=8, layers=2, states=4, decay_heads=4, chunk=5, decoder_hidden=8)
    enhancer = build(config, AudioConfig())
    save_weights(path, enhancer, enhancer.state_dict())
    return path


def _tiny_data(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for kind, level in (("clean", 0.0), ("noisy", 0.05)):
        (folder / kind).mkdir(parents=True)
        for speaker, take in itertools.product(range(4), range(2)):
            wave = 0.2 * np.sin(2 * np.pi * (150 + 40 * speaker) * np.arange(24_000) / 16_000)
            wave += level * rng.standard_normal(len(wave))
            soundfile.write(folder / kind / f"p{speaker}_{take}.wav", wave, 16_000)
    return folder


def train_subject(folder: Path) -> Subject:
    data, work = _tiny_data(folder / "data"), folder / "work"
    config = folder / "config.toml"
    config.write_text(
        "steps = 6\nbatch = 2\nvalidate_every = 6\ncheckpoint_every = 1\n[model]\nchannels = 8\nlayers = 2\n"
        "states = 4\ndecay_heads = 4\nchunk = 5\ndecoder_hidden = 8\nband_widths = [17, 80, 160]\n"
        "[data]\nsegment_s = 0.125\n[loss]\nperceptual = 0\n"
    )

    def check_whole(work: Path) -> None:
        for path in work.glob("*.pt"):
            load_checkpoint(path)
        for path in work.glob("*.safetensors"):
            load_enhancer(path)
        for path in work.glob("config.json"):
            json.loads(path.read_text())

    def results(work: Path) -> object:
        with (work / "log.csv").open(newline="") as lines:
            rows = [{key: row[key] for key in row if key != "audio_per_second"} for row in csv.DictReader(lines)]
        names = {path.name for path in work.iterdir()} - {"last.prev.pt", "curves.png"}
        return rows, (work / "weights.safetensors").read_bytes(), names

    def reset(work: Path) -> None:
        shutil.rmtree(work)
        work.mkdir()

    arguments = ["train", "--data", str(data), "-o", str(work), "--config", str(config), "-q"]
    return Subject("train", [*arguments, "--cache", str(folder / "cache")], work, check_whole, results, reset=reset)


def export_subject(folder: Path) -> Subject:
    weights, work = _tiny_weights(folder / "tiny.safetensors"), folder / "work"
    ours = work / "b.partial"  # of the user's
    ours.mkdir(parents=True)
    (ours / "thesis.txt").write_text("x")

    def check_whole(work: Path) -> None:
        assert (ours / "thesis.txt").read_text() == "x"
        assert Bundle.open(work / "b").verified  # also while it is replaced

    def results(work: Path) -> object:
        return {name: content for name, content in files_below(work).items() if not name.endswith("manifest.json")}

    arguments = ["export", str(weights), "-o", str(work / "b"), "--block", "1", "--force", "-q"]
    return Subject("export", arguments, work, check_whole, results, converts=True)


def calibrate_subject(folder: Path) -> Subject:
    weights, data = _tiny_weights(folder / "tiny.safetensors"), _tiny_data(folder / "data")
    target = folder / "work" / "c.npz"

    def check_whole(work: Path) -> None:
        read_batches(target)

    arguments = ["calibrate", str(weights), "--data", str(data), "-o", str(target), "--force", "-q"]
    arguments += ["--cache", str(folder / "cache"), "--batches", "1", "--streams", "2"]
    return Subject(
        *("calibrate", arguments, folder / "work", check_whole, lambda work: read_batches(target).digest),
        converts=True,
    )


def remote_subject(folder: Path, board: SshBoard) -> Subject:
    home = folder / "work"
    (home / ".cache" / "edgese").mkdir(parents=True)
    board.log_in(home)
    bundle = write_golden_bundle(folder / "identity")
    arguments = ["verify", str(bundle.path), "--host", "board", "--runtime", "onnxruntime"]

    def kept(work: Path) -> dict[str, Path]:
        return {path.name: path for path in board.kept.iterdir() if path.name not in ("lock", "engines")}

    def check_whole(work: Path) -> None:
        wait_until(lambda: not board.processes(), 30)
        for name, path in kept(work).items():
            if name.startswith("identity.device-") and path.is_dir() and not name.endswith(".unpacking"):
                subprocess.run(
                    ["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=path / "identity.device", check=True
                )  # the next session would copy it anew

    def results(work: Path) -> object:
        return sorted(kept(work))

    def reset(work: Path) -> None:
        for path in kept(work).values():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def kill_there() -> None:
        for process in board.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    return Subject(
        *("remote", arguments, home, check_whole, results),
        environment={"EDGESE_SSH": board.ssh},
        reset=reset,
        other_end=kill_there,
    )


@contextlib.contextmanager
def subjects(folder: Path, python: WarmPython, names: list[str]) -> Iterator[Iterator[Runs]]:
    """Each subject in a folder of its own, made when it is its turn."""
    makers: dict[str, Callable[[Path], Subject]] = {
        "enhance": enhance_subject,
        "train": train_subject,
        "export": export_subject,
        "calibrate": calibrate_subject,
    }
    with contextlib.ExitStack() as stack:

        def made() -> Iterator[Runs]:
            for name in names:
                place = folder / name
                (place / "work").mkdir(parents=True)
                if name == "remote":
                    (place / "board").mkdir()
                    board = stack.enter_context(ssh_board(place / "board"))
                    subject = remote_subject(place, board)
                else:
                    subject = makers[name](place)
                yield Runs(subject, place, python)

        yield made()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="for what the commands write; default: a temporary one")
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SHARES, action="append")
    options = parser.parse_args()
    names = options.only or list(SHARES)
    if LACKING and "remote" in names:
        sys.exit(f"error: {LACKING}")
    whole = sum(SHARES[name] for name in names)
    os.environ["OMP_NUM_THREADS"] = "1"  # networks this small lose by more, most of all on a busy machine
    python = WarmPython(str(ROOT))
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kill-")))
        runs_of_all = stack.enter_context(subjects(folder.resolve(), python, names))
        for runs in runs_of_all:
            name = runs.subject.name
            n_moments = round(options.moments * SHARES[name] / whole)
            began = time.monotonic()
            try:
                count = kill_at_moments(runs, n_moments, random.Random(f"{options.seed} {name}"))
            except Torn as torn:
                sys.stdout.write(f"FAILED {torn}\n")
                return 1
            took = f"{time.monotonic() - began:.0f} s"
            sys.stdout.write(f"passed {name}: {n_moments} moments, {took}: {dataclasses.asdict(count)}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
