"""The training pack: what travels, in what shards, and slices that go on elsewhere to the result of one whole run."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgese.config import TrainConfig, read_train_config, to_dict
from edgese.train.data import open_data

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
RATE_HZ = 16_000
CONFIG = """
steps = 5
batch = 2
warmup_steps = 2
validate_every = 3
checkpoint_every = 2
start_from = ""

[model]
band_widths = [17, 80, 160]
channels = 8
states = 4
decay_heads = 4
chunk = 5
decoder_hidden = 8

[data]
segment_s = 0.125

[loss]
perceptual = 0
"""


@pytest.fixture(scope="module")
def script() -> Any:
    """The module; scripts/ is in no package."""
    spec = importlib.util.spec_from_file_location("training_pack", ROOT / "scripts" / "training_pack.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "training_pack", module)
        spec.loader.exec_module(module)
        yield module


def write(path: Path, wave: np.ndarray, subtype: str = "PCM_16", rate_hz: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate_hz, subtype=subtype)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speech_like: Callable[..., np.ndarray]) -> Path:
    """Speech in WAV with a manifest, noise in several forms, a room, and sets that must stay at home."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = []
    for speaker in range(5):
        name = f"s{speaker}/take.v{speaker}.WAV"
        write(folder / "train_speech" / name, speech_like(12_000, seed=speaker))
        rows.append([name, f"speaker {speaker}", "read, aloud"])
    with (folder / "train_speech" / "manifest.csv").open("w", newline="") as lines:
        csv.writer(lines).writerows([["file", "speaker", "what"], *rows])
    noise = folder / "train_noise"
    for subtype in ("PCM_U8", "PCM_24", "FLOAT"):
        write(noise / f"{subtype}.wav", rng.normal(0, 0.05, (4000, 2)), subtype, 44_100)
    write(noise / "fan.flac", rng.normal(0, 0.05, 9000))
    write(noise / "rain.ogg", rng.normal(0, 0.05, 9000), "VORBIS")
    write(folder / "rir" / "room.wav", rng.normal(0, 0.3, 2000) * np.exp(-np.arange(2000) / 300))
    write(folder / "eval" / "clean" / "a.wav", speech_like(9000, seed=9))
    write(folder / "eval" / "noisy" / "a.wav", speech_like(9000, seed=9) / 2)
    write(folder / "testset" / "speech" / "b.wav", speech_like(9000, seed=8))
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "run.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def packed(script: Any, data: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack with evaluation pairs, in shards that hold about two of the recordings each."""
    out: Path = tmp_path_factory.mktemp("packs") / "pack"
    script.pack(data, config, out, data / "eval", script.Given(), 60_000, None)
    return out


def members(pack: Path, pattern: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(pack.glob(pattern)):
        with tarfile.open(path) as tar:
            for info in tar:
                assert info.name not in found
                assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
                content = tar.extractfile(info)
                assert content
                found[info.name] = content.read()
    return found


def unpacked(pack: Path, folder: Path) -> Path:
    for name, content in (members(pack, "data-*.tar") | members(pack, "eval-*.tar")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# What travels


def test_recordings_for_training_travel_and_held_out_sets_stay(packed: Path) -> None:
    assert list(members(packed, "data-*.tar")) == [
        "rir/room.flac",
        *("train_noise/FLOAT.wav", "train_noise/PCM_24.flac", "train_noise/PCM_U8.flac"),  # FLAC holds no floats
        *("train_noise/fan.flac", "train_noise/rain.ogg"),
        "train_speech/manifest.csv",
        *(f"train_speech/s{speaker}/take.v{speaker}.flac" for speaker in range(5)),
    ]
    assert list(members(packed, "eval-*.tar")) == ["eval/clean/a.flac", "eval/noisy/a.flac"]


def test_shards_are_full_and_not_larger_than_asked_for(packed: Path) -> None:
    shards = sorted(packed.glob("data-*.tar"))
    assert [shard.name for shard in shards] == [f"data-{number:02}.tar" for number in range(len(shards))]
    assert len(shards) >= 3
    sizes = [shard.stat().st_size for shard in shards]
    assert max(sizes) <= 60_000
    first_of_next = [next(iter(members(shard.parent, shard.name).values())) for shard in shards[1:]]
    for size, content in zip(sizes, first_of_next, strict=False):
        assert size + len(content) > 60_000 - 2 * tarfile.RECORDSIZE


def test_compressed_recordings_are_copied_others_keep_their_samples(data: Path, packed: Path, tmp_path: Path) -> None:
    folder = unpacked(packed, tmp_path)
    for name in ("train_noise/fan.flac", "train_noise/rain.ogg", "train_noise/FLOAT.wav"):
        assert (folder / name).read_bytes() == (data / name).read_bytes()
    sources = [
        *(data / "train_noise").glob("PCM_*.wav"),
        *(data / "train_speech").rglob("*.WAV"),
        data / "rir/room.wav",
    ]
    assert len(sources) == 8
    for source in sources:
        wanted, rate_hz = soundfile.read(source, dtype="int32")
        found, found_rate_hz = soundfile.read(folder / source.relative_to(data).with_suffix(".flac"), dtype="int32")
        assert np.array_equal(found, wanted), source.name
        assert found_rate_hz == rate_hz


def test_manifest_names_the_packed_files_and_keeps_the_rest(packed: Path) -> None:
    rows = list(csv.reader(members(packed, "data-*.tar")["train_speech/manifest.csv"].decode().splitlines()))
    speakers = [[f"s{number}/take.v{number}.flac", f"speaker {number}", "read, aloud"] for number in range(5)]
    assert rows == [["file", "speaker", "what"], *speakers]


def test_unpacked_recordings_give_the_same_examples(data: Path, config: Path, packed: Path, tmp_path: Path) -> None:
    settings = read_train_config(config)
    both = [
        open_data(folder, settings.data, RATE_HZ, 0, tmp_path / "cache")
        for folder in (data, unpacked(packed, tmp_path / "unpacked"))
    ]
    assert both[0].description == both[1].description
    assert both[0].description["speakers"] == 5  # the manifest counts
    for index in range(20):
        for wanted, found in zip(both[0].train(index), both[1].train(index), strict=True):
            assert np.array_equal(found, wanted)


def test_equal_inputs_give_equal_bytes(script: Any, data: Path, config: Path, packed: Path, tmp_path: Path) -> None:
    script.pack(data, config, tmp_path / "again", data / "eval", script.Given(), 60_000, None)
    names = sorted(path.name for path in packed.iterdir())
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (packed / name).read_bytes(), name


def test_manifest_tells_size_and_digest_of_each_part(packed: Path) -> None:
    parts = json.loads((packed / "MANIFEST.json").read_text())["parts"]
    assert [part["file"] for part in parts] == sorted(path.name for path in packed.glob("*.tar"))
    for part in parts:
        content = (packed / part["file"]).read_bytes()
        assert (part["bytes"], part["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_source_holds_program_and_config_but_no_weights_and_no_tests(config: Path, packed: Path) -> None:
    source = members(packed, "source.tar")
    assert {name.partition("/")[0] for name in source} == {
        *("edgese", "export", "calib", "runtimes"),
        *("config.toml", "config.json"),
    }
    assert source["edgese/train/loop.py"] == (ROOT / "edgese/train/loop.py").read_bytes()
    assert not [name for name in source if name.endswith((".safetensors", ".onnx", ".pyc")) or "weights/" in name]
    assert source["config.toml"].decode() == CONFIG
    assert json.loads(source["config.json"]) == to_dict(read_train_config(config))


def test_weights_to_start_from_travel_and_the_config_names_them(
    script: Any, data: Path, config: Path, tmp_path: Path
) -> None:
    from edgese.model.checkpoint import save_weights
    from edgese.model.registry import build

    settings = read_train_config(config)
    enhancer = build(settings.model, settings.audio)
    save_weights(tmp_path / "mine.safetensors", enhancer, enhancer.state_dict())
    (tmp_path / "run.toml").write_text(CONFIG.replace('start_from = ""', 'start_from = "/elsewhere/mine.safetensors"'))
    given = script.Given(tmp_path / "mine.safetensors", teacher=tmp_path / "mine.safetensors")
    script.pack(data, tmp_path / "run.toml", tmp_path / "pack", None, given, MIB, None)
    source = members(tmp_path / "pack", "source.tar")
    assert source["start.safetensors"] == source["teacher.safetensors"] == (tmp_path / "mine.safetensors").read_bytes()
    (tmp_path / "packed.toml").write_bytes(source["config.toml"])
    packed = dataclasses.replace(settings, start_from="start.safetensors", teacher="teacher.safetensors")
    assert read_train_config(tmp_path / "packed.toml") == packed

    wider = CONFIG.replace("channels = 8", "channels = 16")
    (tmp_path / "wider.toml").write_text(wider)
    with pytest.raises(script.PackError, match=r"mine\.safetensors: weights of another model"):
        script.pack(data, tmp_path / "wider.toml", tmp_path / "no", None, given, MIB, None)


def write_wheel(folder: Path, name: str, requires: str = "") -> None:
    folder.mkdir(exist_ok=True)
    lines = [f"Requires-Dist: {requires}"] if requires else []
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for file, content in {
            "METADATA": "\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines]),
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            wheel.writestr(f"{name}-1.0.dist-info/{file}", content)


@pytest.mark.slow
def test_wheels_travel_but_for_what_the_machine_has(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An index of made wheels, without pesq; no network."""
    index = tmp_path / "index"
    for name in ("numpy", "safetensors", "typer", "rich", "soxr", "cffi", "tomli"):
        write_wheel(index, name)
    write_wheel(index, "soundfile", "cffi")
    write_wheel(index, "pystoi", "numpy")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    assert script.download_wheels(tmp_path / "wheels", "3.10", TrainConfig()) == ["pesq"]
    found = sorted(path.name.partition("-")[0] for path in (tmp_path / "wheels").iterdir())
    assert found == ["cffi", "pystoi", "rich", "safetensors", "soundfile", "soxr", "tomli", "typer"]

    (index / "soxr-1.0-py3-none-any.whl").unlink()
    with pytest.raises(script.PackError, match=r"for Python 3\.12: .*soxr.* mend the network, .* or --no-wheels"):
        script.download_wheels(tmp_path / "none", "3.12", TrainConfig())


# What cannot be packed


def test_recording_larger_than_a_shard_is_refused_with_a_mend(
    script: Any, data: Path, config: Path, tmp_path: Path
) -> None:
    with pytest.raises(script.PackError, match=r"found 0\.\d MiB, wanted less than .* raise --shard-mb, or cut"):
        script.pack(data, config, tmp_path / "pack", None, script.Given(), 30_000, None)
    assert list(tmp_path.iterdir()) == []  # nothing half made is left


def test_two_recordings_of_one_packed_name_are_refused(script: Any, tmp_path: Path) -> None:
    for suffix in ("wav", "flac"):
        write(tmp_path / "speech" / f"a.{suffix}", np.zeros(600))
    with pytest.raises(script.PackError, match=r"a\.wav: would be packed under one name with a\.flac; rename one"):
        script.plan_training(tmp_path)


def test_broken_recording_is_named(script: Any, tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(script.PackError, match=r"a\.wav: cannot be read \(.*\); mend or remove it"):
        script.plan_training(tmp_path)


def test_weights_that_only_this_machine_has_are_refused(script: Any, data: Path, tmp_path: Path) -> None:
    for setting, option in (("start_from", "--start-from"), ("teacher", "--teacher")):
        (tmp_path / "run.toml").write_text(f'{setting} = "/elsewhere/w.safetensors"')
        with pytest.raises(script.PackError, match=rf"{setting} is /elsewhere/w.safetensors.* give .* {option}"):
            script.pack(data, tmp_path / "run.toml", tmp_path / "pack", None, script.Given(), MIB, None)


def run(*command: object, cwd: Path, python: Path = Path(sys.executable)) -> subprocess.CompletedProcess[str]:
    """A command that finds this Python as python3, and does not know of this tree."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_mistake_is_one_line_and_a_folder_is_never_replaced(data: Path, config: Path, tmp_path: Path) -> None:
    script = (sys.executable, "-m", "scripts.training_pack", "--no-wheels", "--config", config, "--out", tmp_path)
    done = run(*script, "--data", data, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path}: exists already; remove it, or choose another --out\n"
    done = run(*script[:-1], tmp_path / "pack", "--data", tmp_path, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {tmp_path}: found no folder of recordings, wanted speech/ and noise/, or clean/ and noisy/\n"
    )


# Slices


def copied(pack: Path, folder: Path, *, without: str = "") -> Path:
    return Path(shutil.copytree(pack, folder / "pack", ignore=shutil.ignore_patterns(without)))


def slice_of(pack: Path, minutes: str, results: str = "results") -> subprocess.CompletedProcess[str]:
    return run("bash", pack / "slice.sh", minutes, results, "cpu", cwd=pack.parent)


def test_damaged_part_is_refused(packed: Path, tmp_path: Path) -> None:
    pack = copied(packed, tmp_path)
    damaged = bytearray((pack / "data-01.tar").read_bytes())
    damaged[1000] ^= 1
    (pack / "data-01.tar").write_bytes(damaged)
    done = slice_of(pack, "0")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {pack}/data-01.tar: found SHA-256 ")
    assert "damaged on its way; bring it again" in done.stderr


def test_training_waits_until_all_parts_have_arrived(packed: Path, tmp_path: Path) -> None:
    pack = copied(packed, tmp_path, without="data-01.tar")
    done = slice_of(pack, "1")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {pack}: missing: data-01.tar; bring them and call again, or give 0 minutes to unpack\n"
    )
    done = slice_of(pack, "0")
    assert (done.returncode, done.stdout) == (0, "still to come: data-01.tar\n")  # the others lie there already


@pytest.mark.parametrize("arguments", [[], ["9"], ["soon", "results"], ["-1", "results"]])
def test_wrong_use_says_what_is_wanted(arguments: list[str], packed: Path, tmp_path: Path) -> None:
    done = run("bash", packed / "slice.sh", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"error: slice.sh: found '{' '.join(arguments)}', wanted MINUTES RESULTS_DIR [DEVICE]"
    )
    assert list(tmp_path.iterdir()) == []


def losses(log: Path) -> list[dict[str, str]]:
    with log.open(newline="") as lines:
        return [row | {"audio_per_second": ""} for row in csv.DictReader(lines)]


@pytest.mark.slow
def test_slices_on_two_machines_end_like_one_run(data: Path, config: Path, packed: Path, tmp_path: Path) -> None:
    """The first stops after a step; the second starts from a fresh copy and what the first has handed back."""
    from edgese.train.loop import train

    settings = read_train_config(config)
    train(settings, open_data(data, settings.data, RATE_HZ, settings.seed, tmp_path / "cache"), tmp_path / "whole")

    first, second = tmp_path / "first", tmp_path / "second"
    pack = copied(packed, first, without="data-0[1-9].tar")
    delivered = slice_of(pack, "0")
    assert (delivered.returncode, delivered.stderr) == (0, "")
    for part in packed.glob("data-*.tar"):
        shutil.copy(part, pack)
    (pack / "data-00.tar").unlink()  # it is unpacked
    script = (pack / "slice.sh").read_text()
    assert "PART_BYTES=$((15 << 20))" in script
    (pack / "slice.sh").write_text(script.replace("PART_BYTES=$((15 << 20))", "PART_BYTES=15000"))
    one = slice_of(pack, "0.001")
    assert one.returncode == 0, one.stderr
    assert "stopped at step 1 of 5" in one.stdout
    parts = sorted(path.name for path in (first / "results").glob("last.pt.*"))
    assert len(parts) > 5
    assert [part.rpartition(".")[2] for part in parts] == [f"{at:02}of{len(parts)}" for at in range(1, len(parts) + 1)]
    assert one.stderr.endswith(
        f"warning: last.pt: {len(parts)} parts, wanted at most 5; make sure that all can be carried away\n"
    )
    assert sorted(path.name for path in (first / "results").iterdir()) == ["config.json", *parts, "log.csv"]

    pack = copied(packed, second)
    shutil.copytree(first / "results", pack / "resume")
    two = slice_of(pack, "5")
    assert two.returncode == 0, two.stderr
    assert "from step 1 on cpu" in two.stdout
    assert "step 5/5: loss " in two.stderr  # validation is told where there is no terminal
    assert "done: step 5" in two.stdout
    found, wanted = losses(second / "results/log.csv"), losses(tmp_path / "whole/log.csv")
    assert [row["step"] for row in found] == [str(step) for step in range(1, 6)]
    assert found == wanted
    for name in ("weights.safetensors", "config.json"):
        assert (second / "results" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    foreign = copied(packed, tmp_path / "third")
    shutil.copytree(first / "results", foreign / "resume")
    for broken, complaint in (("last.pt", "found last.pt with SHA-256"), ("config.json", "its config.json is not")):
        victim = next((foreign / "resume").glob(f"{broken}*"))
        victim.write_bytes(victim.read_bytes()[:-1])
        refused = slice_of(foreign, "5")
        assert refused.returncode == 1
        assert complaint in refused.stderr
        assert "all results of one slice" in refused.stderr
