"""Readers of what comes from outside: good inputs for each, and what it may raise for others."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .mutations import mutated_bytes, mutated_json

LONGEST_REFUSAL = 20_000  # characters: a message is for reading

Make = Callable[[random.Random], bytes]
Read = Callable[[bytes], object]


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader: `make` gives an input for a generator's state, `read` reads it and may raise `refusals`, no more."""

    make: Make
    read: Read
    refusals: tuple[type[Exception], ...]


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _tone(n_samples: int = 3000) -> Any:
    return (0.1 * np.sin(np.arange(n_samples) * 0.2)).astype(np.float32)


def audio(folder: Path) -> Target:
    """Files of sound, as `edgese enhance` reads them."""
    import soundfile

    from edgese.audio.reader import AudioReader
    from edgese.errors import AudioError

    kinds = [("WAV", "PCM_16"), ("WAVEX", "FLOAT"), ("RF64", "PCM_24"), ("W64", "PCM_16"), ("FLAC", "PCM_16")]
    kinds += [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16"), ("AU", "PCM_16")]
    seeds = []
    for container, subtype in [*kinds, ("CAF", "PCM_16")]:
        stream = io.BytesIO()
        soundfile.write(stream, _tone(), 16_000, format=container, subtype=subtype)
        seeds.append(stream.getvalue())

    def read(content: bytes) -> None:
        with AudioReader(_file(folder, "a.wav", content)) as reader:
            for block in reader.blocks():
                assert np.isfinite(block).all()
                assert block.shape[1] == reader.info.n_channels

    return Target(lambda rng: mutated_bytes(seeds, rng), read, (AudioError,))


def device_wav(folder: Path) -> Target:
    """WAV files, as a board reads them."""
    import soundfile

    from edgese.device.wav import WavReader
    from edgese.errors import AudioError

    seeds = []
    for container, subtype in (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("WAV", "PCM_32")):
        stream = io.BytesIO()
        soundfile.write(stream, np.stack([_tone(), _tone()], 1), 16_000, format=container, subtype=subtype)
        seeds.append(stream.getvalue())

    def read(content: bytes) -> None:
        with WavReader(_file(folder, "a.wav", content)) as reader:
            assert sum(len(block) for block in reader.blocks()) == reader.info.n_frames

    return Target(lambda rng: mutated_bytes(seeds, rng), read, (AudioError,))


def manifest(folder: Path) -> Target:
    """manifest.json of a bundle whose files are right, and all that commands take from it."""
    from edgese.errors import EdgeseError
    from edgese.graphs.audio_facts import audio_facts
    from edgese.graphs.bundles import audio_config, choose_graph, is_trained, shipped_bundle
    from edgese.graphs.opening import wanted_metadata
    from edgese.graphs.plan import plan_of
    from edgese.graphs.segments import Segments, network_name
    from edgese.graphs.streaming import samples
    from export import ExportError
    from export.bundle import Bundle

    path = shipped_bundle()
    seed = json.loads((path / "manifest.json").read_text())
    bundle = _linked(path, folder, seed)

    def read(content: bytes) -> None:
        (bundle / "manifest.json").write_bytes(content)
        opened = Bundle.open(bundle)
        str((opened.verified, is_trained(opened), network_name(opened.manifest), Segments.of(opened.manifest)))
        str((audio_config(opened), audio_facts(opened), choose_graph(opened)))
        for graph in opened.graphs:
            str((samples(graph, 1), opened.graph_file(graph), wanted_metadata(opened, graph)))
            plan_of(opened, graph.precision)

    return Target(lambda rng: mutated_json(seed, rng), read, (ExportError, EdgeseError))


def _linked(path: Path, folder: Path, manifest: dict[str, Any]) -> Path:
    """A bundle beside the shipped one, with two graphs of it; the manifest is cut to them."""
    manifest["graphs"] = [graph for graph in manifest["graphs"] if graph["block"] == 1][:2]
    keep = {graph["file"] for graph in manifest["graphs"]} | {"weights.fp32.bin", "weights.fp16.bin", "reference.npz"}
    manifest["files"] = {name: digest for name, digest in manifest["files"].items() if name in keep}
    manifest["precisions"] = {"fp32": manifest["precisions"]["fp32"]}
    manifest["verification"]["results"] = manifest["verification"]["results"][:1]
    bundle = folder / "bundle"
    bundle.mkdir(exist_ok=True)
    for name in manifest["files"]:
        if not (bundle / name).exists():
            os.link(path / name, bundle / name) if _same_disk(path, bundle) else _file(
                bundle, name, (path / name).read_bytes()
            )
    return bundle


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def graph(folder: Path) -> Target:
    """ONNX files, by the readers that need no library; then by ONNX Runtime what those let pass."""
    from edgese.graphs.bundles import shipped_bundle
    from runtimes.base import RuntimeUnavailable
    from runtimes.onnx_file import read_onnx_file, read_onnx_header
    from runtimes.registry import open_runtime

    seeds = [(shipped_bundle() / "block1.fp32.onnx").read_bytes(), b"\x08\x0a\x3a\x04\x0a\x02\x22\x00"]
    _file(folder, "weights.fp32.bin", (shipped_bundle() / "weights.fp32.bin").read_bytes())

    def read(content: bytes) -> None:
        path = _file(folder, "a.onnx", content)
        read_onnx_header(path)
        read_onnx_file(path)
        open_runtime("onnxruntime", path).close()

    return Target(lambda rng: mutated_bytes(seeds, rng), read, (RuntimeUnavailable,))


def archive(folder: Path) -> Target:
    """Device archives: the tar inside changed, or what compresses it."""
    from calib import CalibrationError
    from edgese.board.archive import unpack_archive
    from edgese.errors import EdgeseError
    from export import ExportError
    from export.bundle import Graph, seal_bundle
    from export.manifest import KEYS

    (folder / "toy").mkdir()
    graph = Graph(_file(folder / "toy", "a.onnx", b"x" * 700).name, "fp32", 1, (), (), {})
    facts: dict[str, Any] = {key: {} for key in KEYS} | {"name": "toy", "graphs": [graph], "calibration": None}
    seal_bundle(folder / "toy", facts | {"verification": {"passed": True}, "latency": {"samples": 1, "ms": 1}})
    files = {f"bundle/{path.name}": path.read_bytes() for path in (folder / "toy").iterdir()} | {"run": b"x"}

    def packed(files: dict[str, bytes]) -> bytes:
        sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as stream:
            for name, content in ({"SHA256SUMS": sums.encode()} | files).items():
                member = tarfile.TarInfo(f"a/{name}")
                member.size = len(content)
                stream.addfile(member, io.BytesIO(content))
        return tar.getvalue()

    plain = packed(files)

    def make(rng: random.Random) -> bytes:
        way = rng.random()
        if way < 0.15:
            return mutated_bytes([gzip.compress(plain, mtime=0)], rng)
        if way < 0.45:  # one file changed, its sums right unless they are the file
            name = rng.choice([*files, "SHA256SUMS"])
            changed = packed(files | {name: mutated_bytes(list(files.values()), rng)})
            return gzip.compress(changed, 1, mtime=0)
        content = bytearray(mutated_bytes([plain], rng))
        for at in range(0, len(content) - 511, 512):  # right checksums, so that more than these are read
            if content[at + 257 : at + 262] == b"ustar" and rng.random() < 0.9:
                content[at + 156] = ord(rng.choice("0000005" + "17xgLKSV"))
                content[at + 148 : at + 156] = b"        "
                content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
        return gzip.compress(bytes(content), 1, mtime=0)

    def read(content: bytes) -> None:
        unpack_archive(_file(folder, "a.tar.gz", content), folder / "unpacked")
        shutil.rmtree(folder / "unpacked")

    return Target(make, read, (ExportError, EdgeseError, CalibrationError))


def npz(folder: Path) -> Target:
    """Files of batches: what is zipped changed, or the zip."""
    from calib import CalibrationError
    from calib.batches import read_batches, write_batches

    path = folder / "seed.npz"
    write_batches(
        path, [{"x": np.ones((2, 3), np.float32), "y": np.arange(4)}, {"x": np.zeros(2, np.float16)}], {"a": 1}
    )
    with zipfile.ZipFile(path) as zipped:
        members = {name: zipped.read(name) for name in zipped.namelist()}
    whole = path.read_bytes()

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return mutated_bytes([whole], rng)
        changed, stream = dict(members), io.BytesIO()
        name = rng.choice(list(changed))
        changed[name] = mutated_bytes(list(members.values()), rng)
        packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(stream, "w", packing) as zipped:
            for member, content in changed.items():
                zipped.writestr(member, content)
        return stream.getvalue()

    return Target(make, lambda content: read_batches(_file(folder, "a.npz", content)), (CalibrationError,))


def toml(folder: Path) -> Target:
    """Settings of a training run."""
    from edgese.config import read_train_config
    from edgese.errors import ConfigError

    text = """seed = 3\nsteps = 20000\nlearning_rate = 2e-3\nprecision = "float32"\n[audio]\nsample_rate_hz = 16000
n_fft = 512\nhop = 128\n[model]\nsize = "small"\nchannels = 64\nlayers = 2\nband_widths = [257]\n[data]\nsegment_s = 2.0
snr_db = [-5.0, 20.0]\nmade_rooms = 3\n[loss]\nperceptual = 0.2\n"""
    words = ["[", "{", "nan", "inf", "9" * 5000, "1e999", "[" * 100_000, "true", "''", "-1", "1979-05-27", "[257, 1e9]"]

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.4:
            return mutated_bytes([text.encode()], rng)
        lines = text.splitlines()
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(lines))
            value = rng.choice([*words, str(rng.choice((10**18, 10**400, -5, 2**31, 0.5)))])
            lines[at] = f"{lines[at].partition('=')[0]}= {value}"
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    return Target(make, lambda content: read_train_config(_file(folder, "a.toml", content)), (ConfigError,))


def weights(folder: Path) -> Target:
    """Files of weights: the header's JSON changed, the settings in it, or bytes."""
    import torch

    from edgese.config import AudioConfig, to_dict
    from edgese.errors import CheckpointError
    from edgese.model.checkpoint import load_enhancer, save_weights
    from edgese.model.registry import build
    from edgese.networks import MbsConfig

    torch.set_num_threads(1)
    tiny = MbsConfig(channels=8, layers=1, states=2, dt_rank=1, decoder_hidden=8, chunk=2)
    path = folder / "seed.safetensors"
    enhancer = build(tiny, AudioConfig())
    save_weights(path, enhancer, enhancer.state_dict())
    whole = path.read_bytes()
    (size,) = struct.unpack_from("<Q", whole)
    header, content = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    settings = {"audio": to_dict(enhancer.audio), "model": to_dict(tiny)}

    def make(rng: random.Random) -> bytes:
        way = rng.random()
        if way < 0.2:
            return mutated_bytes([whole], rng)
        if way < 0.5:
            changed = mutated_json(header, rng)
        else:
            text = mutated_json(settings, rng).decode("utf-8", "replace")
            changed = json.dumps(header | {"__metadata__": {"edgese": text}}).encode()
        return struct.pack("<Q", len(changed)) + changed + content

    def read(content: bytes) -> None:
        load_enhancer(_file(folder, "a.safetensors", content))

    return Target(make, read, (CheckpointError,))


def agent(folder: Path) -> Target:
    """Frames that come from a board, through the link's own code."""
    from edgese.board.agent import ANSWER, BEAT, DATA, ERR, OUT, Frames, packed
    from edgese.board.link import Link, RemoteError
    from edgese.board.session import Session

    answers: dict[str, dict[str, Any]] = {
        "look": {"python": "3.10", "modules": {"numpy": True}, "home": "/x", "there": True, "free": 1, "part": 0},
        "run": {"code": 0},
        "get": {"bytes": 5, "sha256": "0" * 64},
        "put": {},
        "leave": {"kept": 1},
    }

    class Wire(Link):
        def __init__(self, content: bytes) -> None:
            self.host, self._frames, self._requests, self._said = "board", Frames(), 0, []
            self._content = [content[at : at + 997] for at in range(0, len(content), 997)]

        def send(self, kind: bytes, content: bytes = b"") -> None:
            """Nobody reads it."""

        def close(self, patience_s: float = 0) -> None:
            """Nothing is open."""

        def _read(self, seconds: float) -> bytes | None:
            return self._content.pop(0) if self._content else b""

        def _lost(self) -> Any:
            return RemoteError("the link was lost")

    kinds = (OUT, ERR, DATA, BEAT, ANSWER)

    def make(rng: random.Random) -> bytes:
        do = rng.choice(list(answers))
        answer = json.dumps({"id": 1, **answers[do]}).encode()
        if rng.random() < 0.8:
            answer = mutated_json({"id": 1, **answers[do]}, rng)
        parts = [packed(rng.choice(kinds), rng.randbytes(rng.choice((0, 5, 3000)))) for _ in range(rng.randrange(3))]
        content = b"".join([*parts, packed(ANSWER, answer)])
        return do.encode().ljust(8) + (mutated_bytes([content], rng) if rng.random() < 0.4 else content)

    def read(content: bytes) -> None:
        do, link = content[:8].decode().strip(), Wire(content[8:])
        session = Session("board", on_message=str)
        lines = session._lines()
        taken = session._at_most(2000, "of a file")
        if do == "put":
            session._link = link
            session.facts = {"home": "/x"}
            session._put(_file(folder, "sent", bytes(300)), "x", "x", private=True)
        else:
            link.request(do, on_out=taken, on_err=lines.add, on_data=taken)

    return Target(make, read, (RemoteError,))


def results(folder: Path) -> Target:
    """JSON that commands print on a board, and the tables that the desk prints of it."""
    from edgese.board.answers import parse_result
    from edgese.cli.board import print_bench, print_self_test
    from export.schema import SchemaError

    machine = {"cpu": "x", "board": None, "cores": 2, "system": "Linux"}
    machine["versions"] = {"python": "3", "numpy": "2", "onnxruntime": "1"}
    trial = {"graph": "a", "runtime": "b", "snr_db": 100.0, "limit_db": 40.0, "failures": ["x"], "passed": True}
    times: dict[str, Any] = {f"{name}_ms": 1.5 for name in ("p50", "p90", "p99", "max")}
    timing = times | {"calls": 5, "rtf": 0.5, "missed": 0}
    result = {"runtime": "a", "precision": "fp32", "block": 1, "streams": 1, "back": timing, "paced": timing}
    result["energy"] = {"joules_per_audio_s": 1.0, "mean_w": 2.0}
    state = {"power_mode": "15W", "jetson_clocks": None, "temperatures_c": {"cpu": 40.5, "gpu": None}}
    board = {"l4t": "R36", "jetpack": None, "tensorrt": "10", "cuda": "12"}
    seeds: dict[str, dict[str, Any]] = {
        "self-test": {"passed": True, "trials": [trial], "left_out": {"tensorrt": "none"}},
        "runtimes": {"found": ["onnxruntime"], "left_out": {}, "machine": machine},
        "build": {"engines": [{}], "failed": 0},
        "bench": {
            **{"machine": machine, "results": [result], "left_out": {}, "failures": {"a": "b"}, "board": board},
            **{"before": state, "after": copy.deepcopy(state), "throttled": ["x"], "missing": {"a": "b"}},
            "idle": {"rails": "VDD_IN", "mean_w": 1.0},
        },
    }

    def make(rng: random.Random) -> bytes:
        command = rng.choice(list(seeds))
        return command.encode().ljust(12) + mutated_json(seeds[command], rng)

    def read(content: bytes) -> None:
        command, printed = content[:12].decode().strip(), content[12:].decode(errors="replace")
        found = parse_result(printed, command)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            if command == "self-test":
                print_self_test({**found, "machine": machine}, "name", "board")
            elif command == "bench":
                print_bench({"bench": found, "self_test": seeds["self-test"]}, "name", "board")
        assert all(c.isprintable() or c in "\n\t" for c in out.getvalue())

    return Target(make, read, (SchemaError,))


def sidecar(folder: Path) -> Target:
    """What stands beside an engine in the cache."""
    from runtimes.base import ArtefactError
    from runtimes.engine_sidecar import EngineSidecar

    tensor = {"name": "x", "shape": ["n", 3], "dtype": "float32"}
    seed = {
        "schema_version": 1,
        "key": {"tensorrt": "tensorrt 10.3.0", "device": "Orin SM87"},
        "engine": {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1},
        "graph": {"inputs": [tensor], "outputs": [tensor], "metadata": {"a": "b"}},
    }

    def read(content: bytes) -> None:
        _file(folder, "a.engine.json", content)
        EngineSidecar.read(_file(folder, "a.engine", b"x")).read_engine()

    return Target(lambda rng: mutated_json(seed, rng), read, (ArtefactError,))


def stream_messages(folder: Path) -> Target:
    """First messages of a client, and samples as floats, as `edgese serve` reads them."""
    from edgese.errors import AudioError, ConfigError
    from edgese.serve.protocol import StreamFormat, is_flush

    wanted = {"rate": 48_000, "channels": 2, "format": "float32"}

    def make(rng: random.Random) -> bytes:
        return mutated_json(wanted, rng) if rng.random() < 0.5 else mutated_bytes([_tone(64).tobytes()], rng)

    def read(content: bytes) -> object:
        if content.lstrip()[:1] in (b"{", b"["):
            text = content.decode(errors="replace")
            return is_flush(text), StreamFormat.from_message(text)
        return StreamFormat(format="float32").samples(content)

    return Target(make, read, (AudioError, ConfigError))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "audio": audio,
    "device-wav": device_wav,
    "manifest": manifest,
    "graph": graph,
    "archive": archive,
    "npz": npz,
    "toml": toml,
    "weights": weights,
    "agent": agent,
    "results": results,
    "sidecar": sidecar,
    "messages": stream_messages,
}


def input_of(name: str, target: Target, seed: int, index: int) -> bytes:
    """The input with this number, the same in every run with this seed."""
    return target.make(random.Random(f"{seed} {name} {index}"))


def outcome(target: Target, content: bytes) -> str:
    """ "refused" or "read"; whatever else a reader does is its fault and is raised."""
    try:
        target.read(content)
    except target.refusals as error:
        if len(str(error)) > LONGEST_REFUSAL:
            raise ValueError(f"a refusal of {len(str(error))} characters") from error
        return "refused"
    return "read"
