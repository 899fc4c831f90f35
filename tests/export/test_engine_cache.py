"""Engines kept on disk: built once, built anew with a line that says why, refused if damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export import ExportError
from export.engine import BuildOptions
from export.engine_cache import cached_engine
from runtimes.gpu import Device

from ..runtimes.tensorrt_double import tensorrt_double

N = BuildOptions({"n": (1, 2, 4)})


def message(*fields: tuple[int, bytes]) -> bytes:
    """A protobuf message of short fields."""
    return b"".join(bytes([number << 3 | 2, len(content)]) + content for number, content in fields)


def write_graph(path: Path, name: bytes = b"negate") -> Path:
    """An ONNX file, as far as building reads it: a node, and a tensor with its values in weights.bin."""
    tensor = message((8, b"w"), (13, message((1, b"location"), (2, b"weights.bin"))))
    path.write_bytes(message((7, message((1, message((3, name), (4, b"Neg"))), (5, tensor)))))
    return path


class Cache:
    """A graph, its cache and what was told; `ask` gives the engine's content."""

    def __init__(self, folder: Path) -> None:
        self.graph, self.folder, self.told = write_graph(folder / "toy.onnx"), folder / "cache", list[str]()
        (folder / "weights.bin").write_bytes(b"1234")
        self.library = tensorrt_double(plan=b"first")

    def ask(self, options: BuildOptions = N, *, plan: bytes | None = None, **arguments: Any) -> bytes:
        library = arguments.pop("library", None) or (tensorrt_double(plan=plan) if plan else self.library)
        path = cached_engine(self.graph, self.folder, options, self.told.append, library=library, **arguments)
        return path.read_bytes()

    @property
    def engine(self) -> Path:
        return self.folder / "toy.tensorrt.n-1-2-4.engine"

    @property
    def sidecar(self) -> Path:
        return self.folder / "toy.tensorrt.n-1-2-4.engine.json"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr("export.engine_cache.read_device", lambda: Device("Orin", "SM87", 8))
    return Cache(tmp_path)


@pytest.fixture
def filled(cache: Cache) -> Cache:
    assert cache.ask() == b"first"
    cache.told.clear()
    return cache


def test_first_engine_is_built_with_one_line_and_a_sidecar(cache: Cache) -> None:
    assert cache.ask(precision="fp16") == b"first"
    (line,) = cache.told
    assert line == (
        "toy.onnx: building its engine with tensorrt 10.3.0 for Orin (SM87, 8 multiprocessors): there is none yet"
    )
    record = json.loads(cache.sidecar.read_text())
    assert record["key"]["tensorrt"] == "tensorrt 10.3.0"
    assert record["key"]["precision"] == "fp16"
    assert record["key"]["axes"] == {"n": [1, 2, 4]}
    assert set(record["key"]["weights"]) == {"weights.bin"}
    assert (record["engine"]["bytes"], record["layers"]) == (5, 7)
    assert record["built"].endswith("+00:00")
    assert record["host"]
    assert sorted(path.name for path in cache.folder.iterdir()) == sorted(
        [cache.engine.name, cache.sidecar.name, f"{cache.engine.name}.lock"]
    )


def test_engine_that_fits_is_taken_silently(filled: Cache) -> None:
    assert filled.ask(plan=b"second") == b"first"
    assert filled.told == []
    assert filled.library.seen["builds"] == 1


def test_other_axes_have_an_engine_of_their_own(filled: Cache) -> None:
    assert filled.ask(BuildOptions({"n": (1, 1, 8)}), plan=b"second") == b"second"
    assert "there is none yet" in filled.told[0]
    assert filled.ask(plan=b"third") == b"first"


def another_device(monkeypatch: pytest.MonkeyPatch, device: Device | None) -> None:
    monkeypatch.setattr("export.engine_cache.read_device", lambda: device)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda cache, patch: write_graph(cache.graph, b"other"), "it is of another graph"),
        (lambda cache, patch: (cache.graph.parent / "weights.bin").write_bytes(b"4321"), "it is of other weights"),
        (
            lambda cache, patch: setattr(cache, "library", tensorrt_double(version="10.16.1")),
            "it is by tensorrt 10.3.0, here is tensorrt 10.16.1",
        ),
        (
            lambda cache, patch: another_device(patch, Device("Orin", "SM87", 16)),
            "it is for Orin (SM87, 8 multiprocessors), wanted for Orin (SM87, 16 multiprocessors)",
        ),
        (
            lambda cache, patch: another_device(patch, None),
            "it is for Orin (SM87, 8 multiprocessors), wanted for no GPU in particular",
        ),
        (
            lambda cache, patch: patch.setattr("platform.machine", lambda: "riscv64"),
            f"it is by a {os.uname().machine} machine, this is riscv64",
        ),
    ],
)
def test_stale_or_foreign_engine_is_built_anew_with_a_line_that_says_why(
    change: Callable[[Cache, pytest.MonkeyPatch], object], why: str, filled: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(filled, monkeypatch)
    filled.library = tensorrt_double(version=filled.library.__version__, plan=b"second")
    assert filled.ask() == b"second"
    (line,) = filled.told
    assert line.endswith(f": {why}")
    assert filled.ask(plan=None) == b"second"
    assert len(filled.told) == 1


def test_other_precision_or_workspace_is_built_anew(filled: Cache) -> None:
    assert filled.ask(plan=b"second", precision="int8") == b"second"
    assert filled.told[-1].endswith("it is in unknown precision, wanted int8")
    options = BuildOptions(N.axes, workspace_bytes=9)
    assert filled.ask(options, plan=b"third", precision="int8") == b"third"
    assert filled.told[-1].endswith("it has no limit of workspace, wanted 9 bytes")


def test_rtx_is_kept_apart_and_by_the_capability_asked_for(filled: Cache) -> None:
    rtx = tensorrt_double("tensorrt_rtx", "1.7.1.116", plan=b"rtx")
    assert filled.ask(BuildOptions(N.axes, compute_capability="SM86"), library=rtx) == b"rtx"
    assert filled.told[-1].endswith("with tensorrt_rtx 1.7.1.116 for SM86: there is none yet")
    assert filled.ask() == b"first"


@pytest.mark.parametrize("content", [b"fir", b"FIRST", b""])
def test_damaged_engine_is_refused_until_it_is_built_anew(content: bytes, filled: Cache) -> None:
    filled.engine.write_bytes(content)
    with pytest.raises(ExportError, match=r"engine: damaged: .* delete it, or build it anew \(--force\)"):
        filled.ask(plan=b"second")
    assert filled.engine.read_bytes() == content
    assert filled.ask(plan=b"second", rebuild=True) == b"second"
    assert filled.told[-1].endswith(": asked to")
    assert filled.ask(plan=b"third") == b"second"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "\x00",
        '{"schema_version": 2, "key": {}, "engine": {"bytes": 1, "sha256": ""}}',
        '{"schema_version": 1, "key": [], "engine": {"bytes": 1, "sha256": ""}}',
        '{"schema_version": 1, "key": {}, "engine": {}}',
        '{"schema_version": 1, "key": {}, "engine": null}',
    ],
)
def test_damaged_sidecar_is_refused(content: str, filled: Cache) -> None:
    filled.sidecar.write_text(content)
    with pytest.raises(ExportError, match=r"engine\.json: damaged"):
        filled.ask(plan=b"second")
    assert filled.ask(plan=b"second", rebuild=True) == b"second"


def test_engine_that_was_not_finished_is_built_anew(filled: Cache) -> None:
    filled.sidecar.unlink()
    assert filled.ask(plan=b"second") == b"second"
    assert filled.told[-1].endswith("the one there was not finished")


def test_cache_that_cannot_be_written_is_a_clear_error(cache: Cache) -> None:
    cache.folder.write_text("a file")
    with pytest.raises(ExportError, match=r"cache: engines cannot be kept there \(.*\); choose another cache"):
        cache.ask()


def test_cache_that_cannot_be_written_still_gives_what_it_holds(filled: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.engine_cache._Entry.locked", None)
    assert filled.ask() == b"first"


def test_full_disk_leaves_no_partial_engine(filled: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="No space left on device"):
        filled.ask(plan=b"second", rebuild=True)
    monkeypatch.undo()
    assert filled.engine.read_bytes() == b"first"
    assert [path.name for path in filled.folder.iterdir() if path.name.startswith(".")] == []
    assert not filled.sidecar.exists()  # so the next call builds


def test_build_that_fails_leaves_the_engine_as_it_was(filled: Cache) -> None:
    before = filled.sidecar.read_bytes()
    with pytest.raises(ExportError, match="cannot build it"):
        filled.ask(library=tensorrt_double(plan=None), rebuild=True)
    assert (filled.engine.read_bytes(), filled.sidecar.read_bytes()) == (b"first", before)


ASK = """
import sys, time; from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.runtimes.tensorrt_double import tensorrt_double
from export.engine_cache import BuildOptions, cached_engine
library = tensorrt_double(plan=sys.argv[3].encode() * 1_000_000)
print("ready", flush=True); sys.stdin.read(1)
path = cached_engine(Path(sys.argv[2]), Path(sys.argv[2]).parent / "cache", BuildOptions({"n": (1, 2, 4)}), print,
                     library=library, on_progress=lambda *step: time.sleep(0.2))
print(len(path.read_bytes()), path.read_bytes()[:1], library.seen.get("builds", 0))
"""


def test_processes_at_once_share_one_build(cache: Cache) -> None:
    arguments = [sys.executable, "-c", ASK, str(Path(__file__).parents[2]), str(cache.graph)]
    processes = [
        subprocess.Popen([*arguments, number], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for number in "123"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("!")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({line.rpartition(" ")[0] for *_, line in said}) == 1  # all have the same engine, whole
    assert sorted(line.rpartition(" ")[2] for *_, line in said) == ["0", "0", "1"]  # builds
    assert sum("another process builds it; waiting" in line for lines in said for line in lines) == 2


def test_the_sidecar_says_what_the_engine_does_not_keep(tmp_path: Path) -> None:
    """Read without the onnx package; the same as with it."""
    onnx = pytest.importorskip("onnx", reason="makes the graph")
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 4, 2])
    scalar = helper.make_tensor_value_info("s", TensorProto.INT64, [])
    node = helper.make_node("Neg", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "toy", [x, scalar], [y]))
    helper.set_model_props(model, {"toy.name": "negate", "toy.empty": ""})
    onnx.save(model, tmp_path / "toy.onnx")
    path = cached_engine(tmp_path / "toy.onnx", tmp_path, N, lambda line: None, library=tensorrt_double())
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["graph"] == {
        "inputs": [
            {"name": "x", "shape": ["n", 4, "x_2"], "dtype": "float32"},
            {"name": "s", "shape": [], "dtype": "int64"},
        ],
        "outputs": [{"name": "y", "shape": ["n", 4, 2], "dtype": "float16"}],
        "metadata": {"toy.name": "negate", "toy.empty": ""},
    }


def test_a_graph_of_other_things_than_tensors_gets_no_engine(tmp_path: Path) -> None:
    info = message((1, b"words"), (2, message((4, b""))))  # a sequence
    graph = message((1, message((3, b"n"), (4, b"Neg"))), (11, info))
    (tmp_path / "toy.onnx").write_bytes(message((7, graph)))
    with pytest.raises(ExportError, match="words is no tensor of float32"):
        cached_engine(tmp_path / "toy.onnx", tmp_path, N, print, library=tensorrt_double())
