"""Training pack: all that a run needs on a machine with a GPU and PyTorch but no network, in parts that can travel.

    python -m scripts.training_pack --data DATA --config TOML --out PACK [--eval EVAL] [--start-from WEIGHTS]

    data-00.tar ...  what training reads of DATA, and eval-00.tar ... the pairs of EVAL
    source.tar       edgese and its wheels, the config, the weights to start from
    slice.sh         the one command of a slice: checks, unpacks, goes on, trains, hands back what the next one needs
    MANIFEST.json    size and SHA-256 of each part
    README.md        what to do, in order

Equal inputs give equal bytes. Recordings are copied; WAV and its like become FLAC where that loses nothing.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import soundfile
import typer

from edgese import __version__
from edgese.audio.formats import READABLE
from edgese.config import TrainConfig, read_train_config, to_dict
from edgese.errors import EdgeseError, TrainingError
from edgese.train.sources import DEPTH, HELD_OUT, LEAVES
from export.staging import StagedFolder, temporary_folder

ROOT = Path(__file__).parents[1]
PACKAGES = ("edgese", "export", "calib", "runtimes")
NOT_SOURCE = ("__pycache__", "weights")

NEEDED = ("soundfile", "soxr", "safetensors", "typer", "rich")
FOR_SCORES = ("pesq", "pystoi")  # a pack is whole without them: scores can be made where the results are taken
THERE = ("numpy", "scipy", "torch")  # expected on the machine
GLIBCS = (5, 12, 17, 24, 26, 27, 28)  # minor versions of 2.N that wheels are made for; pip wants each one named

MIB = 1 << 20
COMPRESSED = (".flac", ".ogg", ".oga", ".opus", ".mp3")
MANIFEST = "manifest.csv"
FLAC_SUBTYPES = {"PCM_S8": "PCM_S8", "PCM_U8": "PCM_S8", "PCM_16": "PCM_16", "PCM_24": "PCM_24"}
FLAC_CHANNELS, FLAC_RATE_HZ = 8, 655_350

Plan = dict[str, Path]  # a file's name inside a tar -> the file it is made of
Member = tuple[str, bytes]  # a file's name inside a tar, and its content


class PackError(EdgeseError):
    """Error where a pack cannot be made."""


@dataclasses.dataclass(frozen=True)
class Part:
    """File of the pack, as MANIFEST.json has it."""

    file: str
    bytes: int
    sha256: str


def main(
    data: Annotated[Path, typer.Option(help="A folder that `edgese train` takes.")],
    config: Annotated[Path, typer.Option(help="Settings in TOML.")],
    out: Annotated[Path, typer.Option(help="The pack's folder.")],
    evaluation: Annotated[Path | None, typer.Option("--eval", help="Folder with clean/ and noisy/.")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Weights to begin with, or the trunk.pt of a run to go on from.")
    ] = None,
    teacher: Annotated[Path | None, typer.Option(help="Weights of a network to learn from.")] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="MiB that a shard of recordings has at most.")] = 56,
    python: Annotated[str, typer.Option(help="Python of the machine, for the wheels.")] = "3.12",
    wheels: Annotated[bool, typer.Option(help="Pack the libraries that a machine with PyTorch may lack.")] = True,
) -> None:
    """Write a training pack for a machine that has a GPU and PyTorch but no network."""
    try:
        given = Given(start_from, teacher)
        parts, lacking = pack(data, config, out, evaluation, given, shard_mb * MIB, python if wheels else None)
    except EdgeseError as error:
        sys.exit(f"error: {error}")
    for part in parts:
        typer.echo(f"{part.file:12} {part.bytes / MIB:6.1f} MiB")
    for name in lacking:
        typer.echo(f"no wheel of {name} for Python {python}: scores are made where the results are taken")
    typer.echo(f"next: a rehearsal here, bash {out}/slice.sh 0 RESULTS; then {out}/README.md")


@dataclasses.dataclass(frozen=True)
class Given:
    """Files besides the data that a run reads, by the names of the settings that name them."""

    start_from: Path | None = None
    teacher: Path | None = None


def pack(
    data: Path,
    config: Path,
    out: Path,
    evaluation: Path | None,
    given: Given,
    shard_bytes: int,
    python: str | None,
) -> tuple[list[Part], list[str]]:
    """Write the folder `out`, whole or not at all.

    Args:
        python: version that the wheels are for; None leaves them out.

    Returns:
        The parts, and the packages for scores that have no wheels.

    Raises:
        EdgeseError: settings, weights or recordings that cannot be packed; no wheels; `out` exists.
    """
    if os.path.lexists(out):
        raise PackError(f"{out}: exists already; remove it, or choose another --out")
    try:
        plans = {"data": plan_training(data)} | ({"eval": plan_evaluation(evaluation)} if evaluation else {})
        with StagedFolder(out.parent) as staged:
            with temporary_folder() as scratch:
                wheels = scratch / "wheels"
                settings = list(_settings(config, given, scratch))
                lacking = download_wheels(wheels, python, read_train_config(config)) if python else []
                _write_tar(staged.path / "source.tar", [*settings, *_source(), *_files(wheels, "wheels/")])
            for name, plan in plans.items():
                write_shards(staged.path, name, contents(plan), shard_bytes)
            parts = [_part(path) for path in sorted(staged.path.glob("*.tar"))]
            manifest = {"edgese": __version__, "python": python, "parts": [dataclasses.asdict(part) for part in parts]}
            (staged.path / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n")
            (staged.path / "slice.sh").write_text(SLICE)
            (staged.path / "README.md").write_text(_readme(data, python, lacking))
            staged.publish(out, replace=False)
    except OSError as error:
        raise PackError(f"{error.filename or out}: {error.strerror}; mend that, or choose another --out") from error
    return parts, lacking


# Recordings


def plan_training(data: Path) -> Plan:
    """Plan of the files that training may read of a folder: all but held-out sets, as `open_data` knows them by name.

    Raises:
        PackError: there is nothing, a recording cannot be read, or two would have one name.
    """
    folders = sorted(_named_folders(data, DEPTH)) if data.is_dir() else []
    if not folders:
        raise PackError(f"{data}: found no folder of recordings, wanted speech/ and noise/, or clean/ and noisy/")
    return {name: file for folder in folders for name, file in _plan(folder, data, "").items()}


def plan_evaluation(folder: Path) -> Plan:
    """Plan of clean and noisy recordings under eval/, a name that training passes over.

    Raises:
        PackError: as `plan_training`.
    """
    return _plan(folder / "clean", folder, "eval/") | _plan(folder / "noisy", folder, "eval/")


def contents(plan: Plan) -> Iterator[Member]:
    """Names and contents of the planned files, read and adapted one by one."""
    renamed = {file: Path(name).name for name, file in plan.items() if Path(name).name != file.name}
    for name, file in sorted(plan.items()):
        if file.name == MANIFEST:
            yield name, _manifest(file, renamed)
        else:
            yield name, _flac(file) if file in renamed else file.read_bytes()


def _named_folders(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not HELD_OUT.search(path.name):
            if any(path.name == name or path.name.startswith(f"{name}_") for name in LEAVES):
                yield path
            elif depth > 1:
                yield from _named_folders(path, depth - 1)


def _plan(folder: Path, root: Path, prefix: str) -> Plan:
    """Plan of all recordings and manifests below a folder, by their names relative to `root`."""
    plan: Plan = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in READABLE or file.name == MANIFEST:
            packed = file.with_suffix(".flac") if _fits_flac(file) else file
            name = prefix + packed.relative_to(root).as_posix()
            if name in plan:
                raise PackError(f"{file}: would be packed under one name with {plan[name].name}; rename one of them")
            plan[name] = file
    if all(file.name == MANIFEST for file in plan.values()):
        raise PackError(f"{folder}: found no recordings; bring some, or remove the folder")
    return plan


def _fits_flac(file: Path) -> bool:
    """True if a file is uncompressed, and FLAC can hold the same samples."""
    if file.name == MANIFEST or file.suffix.lower() in COMPRESSED:
        return False
    try:
        info = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        raise PackError(f"{file}: cannot be read ({error.error_string}); mend or remove it") from error
    return info.subtype in FLAC_SUBTYPES and info.channels <= FLAC_CHANNELS and info.samplerate <= FLAC_RATE_HZ


def _flac(file: Path) -> bytes:
    """FLAC of a file's samples at the same rate; through int32, which holds them exactly."""
    samples, rate_hz = soundfile.read(file, dtype="int32")
    content = io.BytesIO()
    soundfile.write(content, samples, rate_hz, format="FLAC", subtype=FLAC_SUBTYPES[soundfile.info(file).subtype])
    return content.getvalue()


def _manifest(path: Path, renamed: dict[Path, str]) -> bytes:
    """Content of a manifest with the packed names in its column `file`; as it is where they are the same."""
    content = path.read_bytes()
    try:
        header, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
    except ValueError as error:
        raise PackError(f"{path}: not a table in UTF-8 ({error}); mend or remove it") from error
    column = header.index("file") if "file" in header else len(header)
    changed = False
    for row in rows:
        file = path.parent / row[column] if column < len(row) else path
        if file in renamed:
            row[column], changed = Path(row[column]).with_name(renamed[file]).as_posix(), True
    if not changed:
        return content
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


# Tars of equal bytes


def write_shards(folder: Path, name: str, members: Iterable[Member], most_bytes: int) -> None:
    """Write NAME-00.tar, NAME-01.tar, ... of at most `most_bytes` each, filled in the members' order.

    Raises:
        PackError: a member that no shard can hold.
    """
    waiting: list[Member] = []
    size, number = 0, 0
    for member, content in members:
        cost = len(_header(member, content)) + _padded(len(content), tarfile.BLOCKSIZE)
        if _tar_bytes(cost) > most_bytes:
            found, wanted = f"{len(content) / MIB:.1f} MiB", f"less than the {most_bytes / MIB:.1f} MiB of a shard"
            raise PackError(f"{member}: found {found}, wanted {wanted}: raise --shard-mb, or cut the recording in two")
        if _tar_bytes(size + cost) > most_bytes:
            _write_tar(folder / f"{name}-{number:02}.tar", waiting)
            waiting, size, number = [], 0, number + 1
        waiting.append((member, content))
        size += cost
    _write_tar(folder / f"{name}-{number:02}.tar", waiting)


def _write_tar(path: Path, members: Iterable[Member]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            tar.addfile(_info(name, content), io.BytesIO(content))


def _info(name: str, content: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # its times and owners are zero
    info.size, info.mode = len(content), 0o644
    return info


def _header(name: str, content: bytes) -> bytes:
    return _info(name, content).tobuf(tarfile.GNU_FORMAT)


def _tar_bytes(content: int) -> int:
    return _padded(content + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _part(path: Path) -> Part:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return Part(path.name, path.stat().st_size, digest.hexdigest())


# Program, settings, libraries


def _source() -> Iterator[Member]:
    for package in PACKAGES:
        yield from _files(ROOT / package, f"{package}/")


def _files(folder: Path, prefix: str) -> Iterator[Member]:
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.is_file() and not set(inner.parts) & set(NOT_SOURCE):
            yield prefix + inner.as_posix(), path.read_bytes()


def _settings(path: Path, given: Given, scratch: Path) -> Iterator[Member]:
    """Members config.toml, as it is or with the packed files named, these files, and the run's config.json.

    Raises:
        EdgeseError: settings that cannot be, or weights that are not theirs.
    """
    config, text = read_train_config(path), path.read_text(encoding="utf-8")
    for setting, file in dataclasses.asdict(given).items():
        named = getattr(config, setting)
        if named and not file:
            raise PackError(
                f"{path}: {setting} is {named}, which the pack does not hold: "
                f"give the file with --{setting.replace('_', '-')}, or remove the setting"
            )
        if not file:
            continue
        _require_usable(path, config, setting, file)
        name = f"{setting.partition('_')[0]}{file.suffix}"
        yield name, file.read_bytes()
        text = f'{setting} = "{name}"\n' + re.sub(rf"(?m)^\W*{setting}\W*=.*\n?", "", text)
        changed = scratch / "config.toml"
        changed.write_text(text, encoding="utf-8")
        config = dataclasses.replace(config, **{setting: name})
        assert read_train_config(changed) == config
    yield "config.toml", text.encode()
    yield "config.json", json.dumps(to_dict(config), indent=2).encode()


def _require_usable(path: Path, config: TrainConfig, setting: str, file: Path) -> None:
    """Refuse weights that a run with these settings would refuse."""
    from edgese.train.distillation import Teacher
    from edgese.train.loop import starting_enhancer

    try:
        if setting == "teacher":
            Teacher(file, config.audio, "cpu", bfloat16=False)
        else:
            starting_enhancer(config, file)  # of a trunk.pt, the averages
    except TrainingError as error:
        raise PackError(f"{error} of {path}") from error


def download_wheels(folder: Path, python: str, config: TrainConfig) -> list[str]:
    """Fetch wheels of the libraries that training needs and of their own, except THERE; returns the missing ones.

    Only those for scores may be missing.

    Raises:
        PackError: pip finds no wheels, or no network.
    """
    needed = [
        *NEEDED,
        *(["tomli"] if python == "3.10" else []),
        *(["pyroomacoustics"] if config.data.made_rooms else []),
    ]
    reason = _pip_download(needed, python, folder)
    if reason:
        raise PackError(
            f"wheels of {', '.join(needed)} for Python {python}: {reason}; mend the network, give another --python, "
            "or --no-wheels where the machine has them"
        )
    lacking = [name for name in FOR_SCORES if _pip_download([name], python, folder)]
    for wheel in folder.glob("*.whl"):
        if wheel.name.partition("-")[0].lower() in THERE:
            wheel.unlink()
    return lacking


def _pip_download(names: Sequence[str], python: str, folder: Path) -> str:
    """Reason why pip could not download; "" if it could."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBCS]
    platforms += [f"manylinux{year}_x86_64" for year in ("1", "2010", "2014")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip() or "pip failed").splitlines()[-1]


def _readme(data: Path, python: str | None, lacking: Sequence[str]) -> str:
    needs = f"Python {python}" if python else "Python, the libraries of `edgese train`"
    where = "at home, since the pack has no " + " and ".join(lacking) if lacking else "there or at home"
    return README.format(name=data.resolve().name, version=__version__, needs=needs, where=where)


README = """\
# Training pack: {name}, edgese {version}

1. The machine: Linux on x86-64, {needs}, PyTorch, NumPy and SciPy. It needs no network.
2. Bring slice.sh and MANIFEST.json there, and the tars: all at once, or some at a time into the same folder.
3. After each delivery `bash slice.sh 0 RESULTS`: it checks and unpacks what is there into a folder beside the pack,
   its name and `.work`, and says what is still to come. Unpacked tars may go. With all of them it decodes.
4. A slice: `bash slice.sh 9 RESULTS cuda`. The minutes count from the start of the script; saving comes on top.
5. Carry RESULTS away: weights.safetensors (best so far), log.csv, config.json, last.pt in parts.
6. On the same machine the same command goes on. Elsewhere put the files of RESULTS into resume/ beside slice.sh first.
7. "done" is said at the last step. Scores, {where}:
   `edgese export weights.safetensors -o BUNDLE`, then `edgese evaluate --model BUNDLE --data EVAL`.
"""

SLICE = r"""#!/usr/bin/env bash
# One slice of a training run: bash slice.sh MINUTES RESULTS_DIR [DEVICE]; see README.md.
# The pack is only read: it may be delivered anew. What is made lies beside it, in a folder of its name and ".work".
set -euo pipefail

PART_BYTES=$((15 << 20))  # of last.pt; a way back may take no larger files
MOST_PARTS=5

fail() { echo "error: $*" >&2; exit 1; }

[[ $# -ge 2 && $# -le 3 && $1 =~ ^[0-9]+([.][0-9]+)?$ ]] ||
  fail "slice.sh: found '$*', wanted MINUTES RESULTS_DIR [DEVICE], such as 9 results cuda; 0 minutes only prepare"
minutes=$1 device=${3:-cuda}
pack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$pack.work
mkdir -p "$2" "$work"/{done,data,source,run}
results=$(cd "$2" && pwd)

# What has arrived is checked and unpacked, once.
[[ -e $work/MANIFEST.json ]] || cp "$pack/MANIFEST.json" "$work/"
cmp -s "$pack/MANIFEST.json" "$work/MANIFEST.json" ||
  fail "$work: made by another pack; remove it, or put this pack into a folder of another name"
parts=$(python3 -c '
import json, sys
for part in json.load(open(sys.argv[1]))["parts"]: print(part["sha256"], part["file"])
' "$pack/MANIFEST.json")
missing=
while read -r wanted part; do
  [[ ! -e $work/done/$part ]] || continue
  if [[ ! -e $pack/$part ]]; then
    [[ $part == eval-* ]] || missing+=" $part"
    continue
  fi
  found=$(sha256sum "$pack/$part" | cut -d " " -f 1)
  [[ $found == "$wanted" ]] ||
    fail "$pack/$part: found SHA-256 ${found:0:12}, wanted ${wanted:0:12}: it was damaged on its way; bring it again"
  into=data
  [[ $part != source.tar ]] || into=source
  tar -xf "$pack/$part" --no-same-owner -C "$work/$into"
  touch "$work/done/$part"
  echo "unpacked $part"
done <<<"$parts"
if [[ $missing ]]; then
  [[ $minutes =~ ^[0.]+$ ]] || fail "$pack: missing:$missing; bring them and call again, or give 0 minutes to unpack"
  echo "still to come:$missing"
  exit 0
fi

# An earlier slice's results are gone on with where they are further than what is here.
cd "$work/source"
run=$work/run resume=$pack/resume
step_of() { tail -n 1 "$1/log.csv" | grep -oE "^[0-9]+" || echo 0; }
own_step=0
[[ ! -e $run/last.pt ]] || own_step=$(step_of "$run")
if [[ -d $resume ]]; then
  whole="wanted all results of one slice, and no others: bring them again, or remove the folder"
  [[ -e $resume/log.csv ]] || fail "$resume: found no log.csv, $whole"
  cmp -s "$resume/config.json" config.json || fail "$resume: its config.json is not that of this pack, $whole"
  if [[ $(step_of "$resume") -gt $own_step ]]; then
    parts=("$resume"/last.pt.*)
    wanted=$(basename "${parts[0]}" | cut -d . -f 3)
    found=$({ cat "${parts[@]}" 2>/dev/null || true; } | tee "$run/joined.tmp" | sha256sum | cut -c 1-12)
    [[ $found == "$wanted" ]] || fail "$resume: found last.pt with SHA-256 $found, wanted $wanted, $whole"
    for name in log.csv config.json weights.safetensors; do
      [[ ! -e $resume/$name ]] || cp "$resume/$name" "$run/"
    done
    mv "$run/joined.tmp" "$run/last.pt"
    own_step=$(step_of "$run")
  fi
fi

# Libraries and decoded recordings are made once too.
if [[ -d wheels && ! -e $work/done/wheels ]]; then
  echo "installing wheels, into $work alone"
  python3 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --upgrade \
    --target "$work/site" wheels/*.whl ||
    fail "$work/source/wheels: not for $(python3 --version) on $(uname -m); make the pack with another --python"
  touch "$work/done/wheels"
fi
export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [[ ! -e $work/done/decoded ]]; then
  echo "decoding recordings, once"
  python3 - <<'END'
import sys
from pathlib import Path

from edgese.config import read_train_config
from edgese.errors import EdgeseError, TrainingError
from edgese.train.data import open_data

try:
    config = read_train_config(Path("config.toml"))
    open_data(Path("../data"), config.data, config.audio.sample_rate_hz, config.seed, Path("../cache"))
except EdgeseError as error:
    sys.exit(f"error: {error}")
END
  touch "$work/done/decoded"
fi
if [[ $minutes =~ ^[0.]+$ ]]; then
  echo "prepared, at step $own_step"
  exit 0
fi

left=$(awk -v all="$minutes" -v used="$SECONDS" 'BEGIN { left = all - used / 60; print(left > 0 ? left : 0) }')
echo "from step $own_step on $device, for $left minutes after $SECONDS s of preparing"
status=0
python3 -m edgese train --data ../data --config config.toml --out "$run" --cache ../cache \
  --device "$device" --minutes "$left" || status=$?

# Also after a failure: the last checkpoint stands.
if [[ -e $run/last.pt ]]; then
  rm -f "$results"/last.pt.*
  for name in weights.safetensors log.csv config.json; do
    [[ ! -e $run/$name ]] || cp "$run/$name" "$results/"
  done
  bytes=$(wc -c <"$run/last.pt") digest=$(sha256sum <"$run/last.pt" | cut -c 1-12)
  count=$(((bytes + PART_BYTES - 1) / PART_BYTES))
  split --bytes "$PART_BYTES" --numeric-suffixes=1 --additional-suffix="of$count" \
    "$run/last.pt" "$results/last.pt.$digest."
  echo "results: step $(step_of "$run") in $results, last.pt in $count parts"
  ((count <= MOST_PARTS)) ||
    echo "warning: last.pt: $count parts, wanted at most $MOST_PARTS; make sure that all can be carried away" >&2
fi
exit "$status"
"""

if __name__ == "__main__":
    typer.run(main)
