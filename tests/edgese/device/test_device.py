"""What a board does with its bundle: packed and unpacked, changed or cut, tested, built for, measured, listened to."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from benchmarks import aarch64_selftest
from edgese.board import archive
from edgese.board.archive import unpack_archive, write_archive
from edgese.device import candidates
from edgese.device.__main__ import main
from edgese.device.content import SUMS, Content
from edgese.device.wav import WavReader, WavWriter
from edgese.errors import VerificationError
from edgese.graphs.bundles import shipped_bundle
from edgese.samples import NOISY
from export import ExportError
from export.bundle import Bundle, seal_bundle
from runtimes.base import RuntimeUnavailable, Stream
from runtimes.gpu import Device
from runtimes.ort import OnnxRuntime

from ..helpers.command_line import edgese, parsed
from ..helpers.golden_bundle import write_golden_bundle

RATE_HZ = 16_000
ROOT = Path(__file__).parents[3]

Run = Callable[..., tuple[int, str, str]]
SpeechLike = Callable[..., NDArray[np.float32]]


def packed(bundle: Bundle, folder: Path, **chosen: Any) -> Path:
    """The root of a bundle that was packed and unpacked again."""
    archive = folder / "a.tar.gz"
    write_archive(bundle, archive, **chosen)
    return unpack_archive(archive, folder / "board")


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked device bundle that passes; not to be changed."""
    folder = tmp_path_factory.mktemp("golden")
    return packed(write_golden_bundle(folder / "identity"), folder)


@pytest.fixture
def root(golden: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(golden, tmp_path / "device"))


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, unpacked; not to be changed."""
    return packed(Bundle.open(shipped_bundle("small")), tmp_path_factory.mktemp("shipped"))


@pytest.fixture
def run(golden: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("self-test", ..., root=golden)`: exit code, stdout, stderr."""

    def command(*arguments: object, root: Path = golden) -> tuple[int, str, str]:
        try:
            code = main(list(map(str, arguments)), root)
        except SystemExit as usage:
            code = int(str(usage.code))
        out, err = capsys.readouterr()
        return code, out, err

    return command


@pytest.fixture
def only_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "CANDIDATES", ("onnxruntime",))


# Packing and unpacking


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    bundle = write_golden_bundle(tmp_path / "identity")
    write_archive(bundle, tmp_path / "a.tar.gz")
    for path in bundle.path.iterdir():
        os.utime(path, (1, 1))
    (tmp_path / "elsewhere").mkdir()
    moved = Bundle.open(Path(shutil.move(bundle.path, tmp_path / "elsewhere/other")))
    write_archive(moved, tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.uid, member.gid, member.uname, member.mtime) for member in members} == {(0, 0, "", 1577836800)}
    assert {member.name for member in members if member.mode & 0o111} == {"identity.device/run"}


def test_the_licence_travels_with_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, licence = write_golden_bundle(tmp_path / "identity"), (ROOT / "LICENSE").read_text()
    assert (packed(bundle, tmp_path) / "LICENSE").read_text() == licence
    monkeypatch.setattr(archive, "clone", lambda: None)  # as installed from a wheel

    class Installed:
        def read_text(self, name: str) -> str | None:
            return licence if name == "licenses/LICENSE" else None

    monkeypatch.setattr(archive, "distribution", lambda name: Installed())
    assert archive._licence() == licence
    monkeypatch.setattr(Installed, "read_text", lambda self, name: None)
    with pytest.raises(ExportError, match="found no LICENSE"):
        write_archive(bundle, tmp_path / "without.tar.gz")


def test_only_the_chosen_graphs_are_packed_with_what_belongs_to_them(tmp_path: Path) -> None:
    source = Bundle.open(shipped_bundle("small"))
    root = packed(source, tmp_path, precisions=["fp16"], blocks=[1, 8])
    bundle = Content.open(root).bundle
    graphs = ["block1.fp16.onnx", "block8.fp16.onnx", "block1.fp16.pcs.onnx", "block8.fp16.pcs.onnx"]
    assert [graph.file for graph in bundle.graphs] == graphs
    beside = {"MODEL_CARD.md", "ATTRIBUTION.md", "reference.npz", "weights.fp16.bin"}
    assert {path.name for path in (root / "bundle").iterdir()} == {*graphs, *beside, "manifest.json"}
    assert [result["graph"] for result in bundle.manifest["verification"]["results"]] == graphs
    assert list(bundle.manifest["verification"]["limits"]) == list(bundle.manifest["precisions"]) == ["fp16"]
    assert bundle.manifest["calibration"] is None
    assert bundle.manifest["model"] == source.manifest["model"]


@pytest.mark.slow
def test_quantized_graphs_keep_the_record_of_their_calibration(shipped: Path) -> None:
    device, source = Content.open(shipped).bundle.manifest, Bundle.open(shipped_bundle("small")).manifest
    assert device["calibration"] == source["calibration"] is not None
    assert device["verification"] == source["verification"] | {"limits": device["verification"]["limits"]}
    assert set(device["verification"]["limits"]) == {"fp32", "fp16", "int8"}


@pytest.mark.parametrize(
    ("manifest", "error", "wanted"),
    [
        ({"reference": {}}, ExportError, "holds no golden vectors, a device could not test itself"),
        ({"verification": {"passed": True, "limits": {}}}, VerificationError, "sets no limits for fp32"),
        ({"verification": {"passed": False}}, VerificationError, "did not pass its verification"),
        ({"reference": {"file": "reference.npz", "digest": "0" * 64}}, Exception, "these are other batches"),
    ],
)
def test_a_bundle_that_a_device_could_not_test_is_not_packed(
    manifest: Mapping[str, Any], error: type[Exception], wanted: str, tmp_path: Path
) -> None:
    bundle = write_golden_bundle(tmp_path / "identity", **manifest)
    with pytest.raises(error, match=wanted):
        write_archive(bundle, tmp_path / "a.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]


def test_a_truncated_archive_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    write_archive(write_golden_bundle(tmp_path / "identity"), tmp_path / "whole.tar.gz")
    content = (tmp_path / "whole.tar.gz").read_bytes()
    for length in (0, 9, len(content) // 2, len(content) - 9):
        (tmp_path / "cut.tar.gz").write_bytes(content[:length])
        with pytest.raises(ExportError, match=r"cut\.tar\.gz: truncated, or no device bundle"):
            unpack_archive(tmp_path / "cut.tar.gz", tmp_path / "board")
    changed = bytearray(content)
    changed[len(content) // 2] ^= 0xFF
    (tmp_path / "cut.tar.gz").write_bytes(changed)
    with pytest.raises(ExportError):
        unpack_archive(tmp_path / "cut.tar.gz", tmp_path / "board")
    assert {path.name for path in tmp_path.iterdir()} == {"identity", "whole.tar.gz", "cut.tar.gz"}


def _member(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return member


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ([_member("a/../../evil")], "holds a/../../evil, which is no plain file below its root"),
        ([_member("/tmp/evil")], "holds /tmp/evil, which is no plain file below its root"),
        ([_member("a/link", tarfile.SYMTYPE)], "holds a/link, which is no plain file"),
        ([_member("a/link", tarfile.LNKTYPE)], "holds a/link, which is no plain file"),
        ([_member("a/pipe", tarfile.FIFOTYPE)], "holds a/pipe, which is no plain file"),
        ([_member("a/x"), _member("b/x")], "found 2 folders at its root"),
        ([_member("x")], "holds x outside of a root"),
        ([], "found 0 folders at its root"),
        ([_member("a/x")], "is .* an unpacked device bundle"),
    ],
)
def test_an_archive_that_leads_elsewhere_is_refused(
    members: list[tarfile.TarInfo], wanted: str, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO())
    with pytest.raises(ExportError, match=wanted):
        unpack_archive(tmp_path / "evil.tar.gz", tmp_path / "board")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.tar.gz"]


def _gzipped(*blocks: bytes) -> bytes:
    return gzip.compress(b"".join(block.ljust(-(-len(block) // 512) * 512, b"\0") for block in blocks))


def _header(kind: bytes, size: int) -> bytes:
    member = _member("a/x", kind)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (_gzipped(_header(tarfile.GNUTYPE_SPARSE, 300_000_000)), "holds a/x, which is no plain file"),
        (_gzipped(_header(tarfile.XHDTYPE, 1 << 40)), "holds a/x, which is no plain file|more than"),
        (
            _gzipped(_header(tarfile.XHDTYPE, 30), b"30 GNU.sparse.realsize=9999999"),
            "holds a/x, which is no plain file",
        ),
        (_gzipped(_header(tarfile.REGTYPE, 1 << 40)), "holds more than 10000 files or 2 GB"),
        (_gzipped(*[_header(tarfile.DIRTYPE, 0)] * 10_001), "holds more than 10000 files or 2 GB"),
        (_gzipped(_header(tarfile.REGTYPE, 600), b"x"), "truncated at a/x"),
        (_gzipped(b"x" * 512), "truncated, or no device bundle"),
    ],
    ids=["sparse", "long PAX header", "sparse by PAX", "long member", "many members", "cut member", "no tar"],
)
def test_an_archive_that_claims_more_than_it_holds_is_refused(content: bytes, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.tar.gz").write_bytes(content)
    with pytest.raises(ExportError, match=wanted):
        unpack_archive(tmp_path / "bomb.tar.gz", tmp_path / "board")
    assert [path.name for path in tmp_path.iterdir()] == ["bomb.tar.gz"]


def test_a_folder_that_is_there_is_not_unpacked_to(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="exists already"):
        unpack_archive(tmp_path / "a.tar.gz", tmp_path)


# The code in the archive

# Younger than JetPack 6's Python 3.10: modules, and names of older ones.
YOUNGER = {
    "asyncio": {"Runner", "TaskGroup", "timeout"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "verify"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "typing": {"LiteralString", "NotRequired", "Required", "Self", "Unpack", "assert_never", "override"},
}


def code(root: Path) -> dict[str, str]:
    files = [*root.rglob("*.py"), root / "run"]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in files}


def imported(source: str) -> set[str]:
    """Top-level packages that a source imports, also late; those of type hints are left out."""
    tree = ast.parse(source)
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = {id(inner) for node in hints for inner in ast.walk(node)}
    nodes = [node for node in ast.walk(tree) if id(node) not in left_out]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_the_code_imports_the_standard_library_numpy_and_what_is_packed(golden: Path) -> None:
    ours = {"edgese_device", "export", "calib", "runtimes"}
    own_library = {"runtimes/ort.py": {"onnxruntime"}, "runtimes/ov.py": {"openvino"}, "runtimes/pytorch.py": {"torch"}}
    sources = code(golden)
    assert {"edgese_device/device/__main__.py", "edgese_device/__main__.py", "runtimes/ort.py", "run"} <= set(sources)
    for name, source in sources.items():
        found = imported(source) - set(sys.stdlib_module_names) - ours - {"numpy"}
        assert found == own_library.get(name, set()), name
    assert imported("def f():\n try:\n  import torch.nn\n except E: pass") == {"torch"}  # it does see them


def younger(source: str) -> set[str]:
    """Names of the standard library that a source uses and Python 3.10 lacks."""
    nodes = list(ast.walk(ast.parse(source, feature_version=(3, 10))))
    used = {(n.module, alias.name) for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    used |= {(n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    found = {f"{module}.{name}" for module, name in used if name in YOUNGER.get(str(module), ())}
    found |= {n.id for n in nodes if isinstance(n, ast.Name) and n.id in ("ExceptionGroup", "BaseExceptionGroup")}
    found |= {type(n).__name__ for n in nodes if type(n).__name__ in ("TryStar", "TypeAlias")}
    return found | (imported(source) & {"tomllib"})


def test_the_code_is_python_3_10(golden: Path) -> None:
    assert {name: younger(source) for name, source in code(golden).items() if younger(source)} == {}
    late = "import enum, tomllib\nfrom typing import Self\nclass A(enum.StrEnum): pass"
    assert younger(late) == {"tomllib", "typing.Self", "enum.StrEnum"}  # it does see them


def test_pythons_that_are_too_old_can_read_that_they_are(golden: Path) -> None:
    ast.parse((golden / "run").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_running_it_loads_nothing_heavy(golden: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['run', 'self-test', '--runtime', 'onnxruntime']\n"
        f"try: runpy.run_path({str(golden / 'run')!r}, run_name='__main__')\n"
        "except SystemExit as done: assert done.code == 0, done.code\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"edgese_device", "numpy", "onnxruntime"} <= loaded
    assert not loaded & {"edgese", "torch", "onnx", "typer", "rich", "soundfile", "soxr", "scipy"}
    assert not list(golden.rglob("__pycache__"))


# Changed files


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda root: append(root / "bundle/fp32-block16.onnx"), r"fp32-block16\.onnx: changed: found SHA-256 "),
        (lambda root: append(root / "bundle/manifest.json"), r"manifest\.json: changed"),
        (lambda root: append(root / "bundle/reference.npz"), r"reference\.npz: changed"),
        (lambda root: append(root / "runtimes/base.py"), r"base\.py: changed"),
        (lambda root: (root / "bundle/fp32-block1.onnx").unlink(), r"fp32-block1\.onnx: cannot be read \(No such file"),
        (lambda root: (root / "bundle/more.onnx").touch(), r"more\.onnx: not in SHA256SUMS"),
        (lambda root: (root / SUMS).unlink(), r"SHA256SUMS: cannot be read .* an unpacked device bundle\?"),
        (lambda root: (root / SUMS).write_text("nonsense\n"), r"SHA256SUMS: damaged: found the line 'nonsense'"),
        (lambda root: (root / SUMS).write_text(f"{'0' * 64}  ../x\n"), r"names '\.\./x', which lies outside"),
        (lambda root: (root / SUMS).write_bytes(b"\xff"), r"SHA256SUMS: damaged"),
    ],
)
def test_what_is_not_as_it_was_packed_is_refused(change: Callable[[Path], object], wanted: str, root: Path) -> None:
    Content.open(root)
    change(root)
    with pytest.raises(ExportError, match=wanted):
        Content.open(root)


def test_every_command_refuses_a_changed_file_in_one_line(root: Path, run: Run, tmp_path: Path) -> None:
    append(root / "bundle/fp32-block16.onnx")
    for command in (["self-test"], ["build"], ["bench"], ["enhance", tmp_path / "a.wav", tmp_path / "b.wav"]):
        code, out, err = run(*command, root=root)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_engines_and_other_files_beside_the_content_do_no_harm(root: Path) -> None:
    (root / "engines").mkdir()
    (root / "engines/x.engine").touch()
    (root / "bench.json").touch()
    assert Content.open(root).n_files == len((root / SUMS).read_text().splitlines())


# The self-test


@pytest.mark.usefixtures("only_onnxruntime")
def test_graphs_that_give_what_they_should_pass(run: Run, golden: Path) -> None:
    code, out, _ = run("self-test")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == f"{Content.open(golden).n_files} files: as they were packed"
    assert lines[1:] == [
        "fp32-block1.onnx in onnxruntime: inf dB (limit 100), samples within 0.0e+00: passed",
        "fp32-block16.onnx in onnxruntime: inf dB (limit 100), samples within 0.0e+00: passed",
        "self-test: all 2 graphs in onnxruntime: passed",
    ]
    code, out, _ = run("self-test", "--json", "--block", 16)
    found = parsed(out.encode())
    assert (code, found["passed"], found["left_out"]) == (0, True, {})
    (trial,) = found["trials"]
    del trial["seconds"]
    wanted = {"graph": "fp32-block16.onnx", "runtime": "onnxruntime", "n_hops": 32, "snr_db": "inf", "max_abs": 0.0}
    assert trial == wanted | {"limit_db": 100.0, "failures": [], "passed": True}


@pytest.mark.usefixtures("only_onnxruntime")
def test_a_graph_beyond_its_limits_fails_the_test(run: Run, tmp_path: Path) -> None:
    root = packed(write_golden_bundle(tmp_path / "identity", golden_gain=1.001), tmp_path)
    code, out, _ = run("self-test", root=root)
    assert code == 1
    assert "fp32-block1.onnx in onnxruntime: 60.0 dB (limit 100)" in out
    assert "FAILED: differs by up to 0.0005, limit 1e-05; SNR 60.0 dB, limit 100 dB" in out
    assert out.splitlines()[-1] == "self-test: 2 of 2 graphs in onnxruntime: FAILED"
    assert json.loads(run("self-test", "--json", root=root)[1])["passed"] is False


@pytest.mark.usefixtures("only_onnxruntime")
def test_a_stream_that_keeps_its_state_over_a_reset_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stream, "reset", lambda stream: None)
    code, out, _ = run("self-test")
    assert code == 1
    assert out.count("FAILED: a stream that is reset does not start anew") == 2


@pytest.mark.usefixtures("only_onnxruntime")
def test_a_graph_that_is_not_the_one_of_the_manifest_fails(run: Run, tmp_path: Path) -> None:
    bundle = write_golden_bundle(tmp_path / "identity")
    shutil.copyfile(bundle.path / "fp32-block1.onnx", bundle.path / "fp32-block16.onnx")
    seal_bundle(bundle.path, {key: value for key, value in bundle.manifest.items() if key != "files"})
    code, out, _ = run("self-test", root=packed(Bundle.open(bundle.path), tmp_path))
    assert code == 1
    assert "FAILED: " in out
    assert "edgese.block is 1, wanted 16" in out
    assert out.splitlines()[-1] == "self-test: 1 of 2 graphs in onnxruntime: FAILED"


def test_no_runtime_is_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise RuntimeUnavailable(f"{name} cannot be loaded")

    monkeypatch.setattr(candidates, "load_runtime", missing)
    code, out, err = run("self-test")
    assert (code, out.splitlines()[-1]) == (1, "self-test: FAILED: no graph was tried")
    assert "onnxruntime is left out: onnxruntime cannot be loaded" in err
    code, _, err = run("self-test", "--runtime", "onnxruntime")
    assert (code, err) == (1, "error: onnxruntime cannot be loaded\n")
    assert run("bench")[0] == 1
    assert "no runtime opens here" in run("bench")[2]
    assert "no runtime for fp32-block16.onnx opens here: " in run("enhance", "a.wav", "b.wav")[2]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "required: COMMAND"),
        (["sing"], "invalid choice: 'sing'"),
        (["self-test", "--block", "0"], "found '0', wanted a number of at least 1"),
        (["self-test", "--runtime", "pytorch"], "invalid choice: 'pytorch'"),
        (["bench", "--seconds", "nan"], "found 'nan', wanted seconds"),
        (["bench", "--seconds", "x"], "found 'x', wanted seconds"),
        (["enhance", "a.wav"], "required: output"),
        (["enhance", "a.wav", "b.wav", "--json"], "unrecognized arguments: --json"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], wanted: str, run: Run) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert wanted in err


def test_graphs_that_are_not_there_are_named(run: Run) -> None:
    for command in ("self-test", "bench"):
        code, _, err = run(command, "--precision", "fp16", "--block", 3)
        assert code == 1
        assert "no graph of fp16, block 3; here are block 1 (fp32), block 16 (fp32)" in err


# TensorRT


class Recorded:
    """TensorRT as far as the device's commands see it: engines that are asked for are the graphs themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, Any, str]] = []

        def cached(graph: Path, folder: Path, options: Any, tell: Any, *, precision: str, rebuild: bool) -> Path:
            self.asked.append((graph.name, options, precision))
            tell(f"{graph.name}: building its engine with tensorrt 10.3.0 for Orin: there is none yet")
            return graph

        library = type(sys)("tensorrt")
        library.__version__ = "10.3.0"  # type: ignore[attr-defined]
        for place in ("edgese.device.__main__", "edgese.device.latency"):
            monkeypatch.setattr(f"{place}.tensorrt_library", lambda: library)
        for place in ("edgese.device.__main__", "edgese.device.latency"):
            monkeypatch.setattr(f"{place}.read_device", lambda: Device("Orin", "SM87", 8))
        monkeypatch.setattr("edgese.graphs.engines.cached_engine", cached)
        monkeypatch.setitem(candidates.RUNTIMES, "tensorrt", lambda: _AsTensorRt)


class _AsTensorRt(OnnxRuntime):
    name = "tensorrt"


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


def test_tensorrt_gets_engines_from_the_cache(run: Run, tensorrt: Recorded, golden: Path) -> None:
    code, out, err = run("self-test", "--runtime", "tensorrt", "--most", 3)
    assert code == 0
    assert out.splitlines()[-1] == "self-test: all 2 graphs in tensorrt: passed"
    assert "fp32-block1.onnx: building its engine with tensorrt 10.3.0 for Orin: there is none yet\n" in err
    names = [(name, precision) for name, _, precision in tensorrt.asked]
    assert names == [("fp32-block1.onnx", "fp32"), ("fp32-block16.onnx", "fp32")]
    for _, options, _ in tensorrt.asked:
        assert options.axes == {"streams": (1, 1, 3)}
        assert options.timing_cache == golden / "engines/timing.cache"


def test_every_runtime_that_opens_is_tested(run: Run, tensorrt: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "CANDIDATES", ("tensorrt", "onnxruntime"))
    code, out, _ = run("self-test")
    assert (code, out.splitlines()[-1]) == (0, "self-test: all 4 graphs in tensorrt, onnxruntime: passed")


def test_an_engine_that_cannot_be_built_fails_its_graph_only(
    run: Run, tensorrt: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: Path, *arguments: Any, **options: Any) -> Path:
        if "16" in graph.name:
            raise ExportError(f"{graph.name}: cannot be built")
        return graph

    monkeypatch.setattr("edgese.graphs.engines.cached_engine", refuse)
    code, out, _ = run("self-test", "--runtime", "tensorrt")
    assert (code, out.splitlines()[-1]) == (1, "self-test: 1 of 2 graphs in tensorrt: FAILED")
    assert "fp32-block16.onnx in tensorrt: FAILED: fp32-block16.onnx: cannot be built\n" in out
    code, out, err = run("build")
    assert code == 1
    assert "fp32-block1.onnx: there already; fp32-block1.onnx" in out
    assert "fp32-block16.onnx: FAILED: fp32-block16.onnx: cannot be built" in err
    assert run("bench", "--runtime", "tensorrt", "--seconds", 0.1)[0] == 1


@pytest.mark.parametrize("reason", ["tensorrt: no GPU", "tensorrt: found 8.6"])
def test_a_tensorrt_that_does_not_open_is_left_out_with_the_reason(
    reason: str, run: Run, tensorrt: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeUnavailable(reason)

    monkeypatch.setitem(candidates.RUNTIMES, "tensorrt", refuse)
    monkeypatch.setattr(candidates, "CANDIDATES", ("tensorrt", "onnxruntime"))
    code, out, err = run("self-test", "--block", 1)
    assert (code, out.splitlines()[-1]) == (0, "self-test: all 1 graphs in onnxruntime: passed")
    assert err == f"tensorrt is left out: {reason}\n"
    code, _, err = run("self-test", "--runtime", "tensorrt")
    assert (code, err) == (1, f"error: {reason}\n")


def test_graphs_for_cpus_are_not_given_to_tensorrt(
    run: Run, tensorrt: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_golden_bundle(tmp_path / "identity")
    graphs = [graph.entry() for graph in bundle.graphs]
    graphs[1]["precision"] = "int8-cpu"
    limits = {"passed": True, "limits": {"fp32": {"snr_db": 1.0}, "int8-cpu": {"snr_db": 1.0}}}
    seal_bundle(bundle.path, {**bundle.manifest, "graphs": graphs, "verification": limits})
    root = packed(Bundle.open(bundle.path), tmp_path)
    assert "all 1 graphs in tensorrt" in run("self-test", "--runtime", "tensorrt", root=root)[1]
    code, _, err = run("build", "--precision", "int8-cpu", root=root)
    assert (code, err.splitlines()[-1]) == (1, "build: FAILED: no graph here is for TensorRT")
    _, _, err = run("enhance", "a.wav", "b.wav", "--precision", "int8-cpu", "--runtime", "tensorrt", root=root)
    assert "fp32-block16.onnx is not for tensorrt" in err


def test_without_tensorrt_there_is_nothing_to_build(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    code, out, err = run("build")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "error: tensorrt cannot be loaded" in err
    assert "apt install python3-libnvinfer" in err


@pytest.mark.usefixtures("tensorrt")
def test_tuning_needs_a_choice_of_precisions(run: Run) -> None:
    code, _, err = run("build", "--tune")
    assert code == 1
    assert "error: --tune: found no block in two precisions" in err


def test_engines_are_built_once(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    build = ("build", "--cache", tmp_path / "engines", "--most", 2, "--block", 1)
    code, out, err = run(*build)
    assert code == 0, err
    assert out.startswith("fp32-block1.onnx: built in ")
    assert "as there is none yet; fp32-block1.tensorrt" in out
    (engine,) = (tmp_path / "engines").glob("*.streams-1-1-2.engine")
    assert run(*build)[1].startswith("fp32-block1.onnx: there already; ")
    code, out, _ = run(*build, "--force", "--json")
    (entry,) = parsed(out.encode())["engines"]
    assert (entry["graph"], entry["engine"], entry["bytes"]) == ("fp32-block1.onnx", str(engine), engine.stat().st_size)
    assert entry["told"][0].endswith("asked to")
    engine.write_bytes(b"broken")
    code, _, err = run(*build)
    assert code == 1
    assert "damaged" in err


# Latency


@pytest.mark.usefixtures("only_onnxruntime")
def test_calls_are_measured_back_to_back_and_in_real_time(run: Run) -> None:
    code, out, err = run("bench", "--json", "--block", 16, "--seconds", 0.3, "--streams", 2)
    assert code == 0
    report = parsed(out.encode())
    assert "in onnxruntime: back to back p50 " in err
    (result,) = report["results"]
    about = {"graph": "fp32-block16.onnx", "runtime": "onnxruntime", "precision": "fp32", "block": 16, "streams": 2}
    assert about.items() <= result.items()
    assert result["block_ms"] == 128
    assert (result["back"]["calls"], result["paced"]["calls"]) == (1000, 3)
    assert 0 < result["back"]["p50_ms"] <= result["back"]["p99_9_ms"] <= result["back"]["max_ms"]
    assert result["paced"]["p99_ms"] is None  # three calls cannot know it
    assert result["back"]["rtf"] > 0
    assert {"cpu", "cores", "governor", "versions", "gpu", "tensorrt"} <= set(report["machine"])
    assert report["bundle"]["name"] == "identity"
    assert report["left_out"] == report["failures"] == {}


@pytest.mark.slow
@pytest.mark.usefixtures("only_onnxruntime")
def test_latency_is_told_in_a_line_a_graph(run: Run) -> None:
    code, out, _ = run("bench", "--seconds", 0.01)
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()[:2]] == [
        "fp32-block1.onnx in onnxruntime",
        "fp32-block16.onnx in onnxruntime",
    ]


def test_more_streams_than_engines_are_built_for_are_refused(run: Run, tensorrt: Recorded) -> None:
    code, _, err = run("bench", "--runtime", "tensorrt", "--streams", 17, "--seconds", 0.1)
    assert code == 1
    assert "FAILED: streams: found 17, engines are built for 16" in err


# WAV files

SUBTYPES = ("PCM_16", "PCM_24", "PCM_32", "FLOAT")


@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_wav_files_are_read_and_written_as_soundfile_does(
    subtype: str, container: str, n_channels: int, tmp_path: Path
) -> None:
    wave = np.random.default_rng(1).uniform(-1, 1, (20_001, n_channels)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE_HZ, subtype, format=container)
    wanted, _ = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)
    with WavReader(tmp_path / "a.wav") as reader:
        info = reader.info
        found = np.concatenate(list(reader.blocks()))
    assert (info.sample_rate_hz, info.n_channels, info.n_frames, info.subtype) == (RATE_HZ, n_channels, 20_001, subtype)
    np.testing.assert_array_equal(found, wanted)
    with WavWriter(tmp_path / "b.wav", info) as writer:
        writer.write(found[:7])
        writer.write(found[7:])
        writer.publish(replace=False)
    assert writer.n_clipped == 0
    again, rate_hz = soundfile.read(tmp_path / "b.wav", dtype="float32", always_2d=True)
    assert (rate_hz, soundfile.info(tmp_path / "b.wav").subtype) == (RATE_HZ, subtype)
    np.testing.assert_array_equal(again, wanted)


def test_loud_samples_are_clipped_and_counted(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(1000, 0.5, np.float32), RATE_HZ, "PCM_24")
    with WavReader(tmp_path / "a.wav") as reader, WavWriter(tmp_path / "b.wav", reader.info) as writer:
        writer.write(np.full((1000, 1), -1.5, np.float32))
        writer.publish(replace=False)
    assert writer.n_clipped == 1000
    np.testing.assert_array_equal(soundfile.read(tmp_path / "b.wav")[0], -1.0)


def write_sound(path: Path, wave: NDArray[np.float32], subtype: str = "FLOAT", rate_hz: int = RATE_HZ) -> Path:
    soundfile.write(path, wave, rate_hz, subtype, format="WAV")
    return path


SOUND = np.random.default_rng(2).uniform(-0.5, 0.5, 5000).astype(np.float32)


def test_without_a_choice_it_takes_the_first_precision_that_there_is(tmp_path: Path, run: Run) -> None:
    root = packed(Bundle.open(shipped_bundle("small")), tmp_path, precisions=["int8", "fp16"], blocks=[1, 8])
    soundfile.write(tmp_path / "in.wav", np.full(RATE_HZ, 0.1), RATE_HZ)
    arguments = ("enhance", tmp_path / "in.wav", tmp_path / "out.wav", "--runtime", "onnxruntime")
    code, out, err = run(*arguments, root=root)
    assert (code, err) == (0, "")
    assert "block8.fp16.onnx in onnxruntime" in out
    code, _, err = run(*arguments, "--precision", "fp32", "--force", root=root)
    assert code == 1
    assert "no graph of block 1 (fp32); this bundle has 1 (fp16), 8 (fp16), " in err


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda path: None, r"in\.wav: cannot be read \(No such file"),
        (lambda path: path.mkdir(), r"in\.wav: cannot be read \(Is a directory"),
        (lambda path: path.touch(), "not a WAV file"),
        (lambda path: path.write_bytes(b"ID3" + bytes(99)), "not a WAV file"),
        (lambda path: write_sound(path, SOUND, "PCM_U8"), "found format 1 of 8 bits, wanted PCM of 16, 24 or 32"),
        (lambda path: write_sound(path, SOUND, "DOUBLE"), "found format 3 of 64 bits"),
        (lambda path: write_sound(path, SOUND[:0]), "found no samples"),
        (lambda path: write_sound(path, SOUND * np.float32(np.nan)), "found NaN or Inf"),
        (
            lambda path: os.truncate(write_sound(path, SOUND), 9000),
            "its header announces 20000 bytes of samples, found",
        ),
        (lambda path: os.truncate(write_sound(path, SOUND), 30), "truncated or damaged"),
        (lambda path: path.write_bytes(b"RIFF\0\0\0\0WAVEdata\0\0\0\0"), "its samples come before their format"),
    ],
)
def test_sound_that_cannot_be_enhanced_is_refused_in_one_line(
    make: Callable[[Path], object], wanted: str, run: Run, tmp_path: Path
) -> None:
    make(tmp_path / "in.wav")
    code, out, err = run("enhance", tmp_path / "in.wav", tmp_path / "out.wav", "--runtime", "onnxruntime")
    assert (code, out, err.count("\n")) == (1, "", 1)
    with pytest.raises(AssertionError, match=wanted):
        raise AssertionError(err)
    assert [path.name for path in tmp_path.iterdir() if path.name != "in.wav"] == []


# Enhancing


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("length", [512, 2048, 5000, 40_001])
def test_output_is_as_long_as_the_input_and_in_time_with_it(block: int, length: int, run: Run, tmp_path: Path) -> None:
    wave = np.random.default_rng(3).uniform(-0.5, 0.5, (length, 2)).astype(np.float32)
    write_sound(tmp_path / "in.wav", wave)
    arguments = ("enhance", tmp_path / "in.wav", tmp_path / "out.wav", "--runtime", "onnxruntime", "--block", block)
    code, out, _ = run(*arguments)
    assert code == 0
    assert f", 2 channels, fp32-block{block}.onnx in onnxruntime, real-time factor " in out
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], wave)
    assert run(*arguments)[0] == 1  # it is there
    assert run(*arguments, "--force")[0] == 0


def test_more_channels_than_engines_are_built_for_are_refused(run: Run, tensorrt: Recorded, tmp_path: Path) -> None:
    write_sound(tmp_path / "in.wav", np.repeat(SOUND[:, None], 3, axis=1))
    arguments = ("enhance", tmp_path / "in.wav", tmp_path / "out.wav", "--runtime", "tensorrt")
    code, _, err = run(*arguments, "--most", 2)
    assert code == 1
    assert "found 3 channels, the engines take 2: build them for more (--most 3)" in err
    assert run(*arguments)[0] == 0


def test_a_network_that_gives_nan_leaves_no_output(run: Run, tmp_path: Path) -> None:
    root = packed(write_golden_bundle(tmp_path / "identity", gain=float("inf")), tmp_path)
    write_sound(tmp_path / "in.wav", SOUND)
    code, _, err = run("enhance", tmp_path / "in.wav", tmp_path / "o.wav", "--runtime", "onnxruntime", root=root)
    assert (code, err.count("\n")) == (1, 1)
    assert "the network gave NaN or Inf: lower the input's level" in err
    assert not (tmp_path / "o.wav").exists()


def test_a_full_disk_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(writer: WavWriter, block: object) -> None:
        raise writer._partial.error(OSError(28, "No space left on device"))

    monkeypatch.setattr(WavWriter, "write", refuse)
    write_sound(tmp_path / "in.wav", SOUND)
    code, _, err = run("enhance", tmp_path / "in.wav", tmp_path / "out.wav", "--runtime", "onnxruntime")
    assert (code, err.count("\n")) == (1, 1)
    assert "No space left on device" in err
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--precision", "int8", "--block", "1"), ("--precision", "fp16", "--pcs")])
def test_it_enhances_as_edgese_does(options: tuple[str, ...], shipped: Path, run: Run, tmp_path: Path) -> None:
    wave, rate_hz = soundfile.read(NOISY, dtype="float32")
    write_sound(tmp_path / "noisy.wav", wave, rate_hz=rate_hz)
    code, *_ = run(
        "enhance", tmp_path / "noisy.wav", tmp_path / "d.wav", "--runtime", "onnxruntime", *options, root=shipped
    )
    assert code == 0
    edgese("enhance", "noisy.wav", "-o", "e.wav", "-q", "--model", "small", *options, cwd=tmp_path)
    device, _ = soundfile.read(tmp_path / "d.wav", dtype="float32")
    whole, _ = soundfile.read(tmp_path / "e.wav", dtype="float32")
    assert device.shape == whole.shape == wave.shape
    assert np.abs(device - whole).max() <= 1e-6


@pytest.mark.parametrize("options", [(), ("--narrow",)])
def test_at_other_rates_it_enhances_as_edgese_does(
    options: tuple[str, ...], shipped: Path, run: Run, tmp_path: Path
) -> None:
    wave = np.random.default_rng(4).normal(0, 0.001, (9000, 2)).astype(np.float32) + np.float32(
        0.01
    )  # quiet, an offset
    write_sound(tmp_path / "in.wav", wave, rate_hz=48_000)
    code, *_ = run(
        "enhance", tmp_path / "in.wav", tmp_path / "d.wav", "--runtime", "onnxruntime", *options, root=shipped
    )
    assert code == 0
    edgese("enhance", "in.wav", "-o", "e.wav", "-q", "--model", "small", *options, cwd=tmp_path)
    device, whole = (soundfile.read(tmp_path / name, dtype="float32")[0] for name in ("d.wav", "e.wav"))
    assert device.shape == whole.shape == wave.shape
    np.testing.assert_allclose(device, whole, rtol=0, atol=1e-6)


# As a board has it


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python 3.10, or the one here, with NumPy and ONNX Runtime and nothing else, not even what they depend on."""
    folder = tmp_path_factory.mktemp("bare")
    known = [*Path.home().glob(".pyenv/versions/3.10.*/bin/python3.10"), *filter(None, [shutil.which("python3.10")])]
    base = next(
        (path for path in known if not subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL)), sys.executable
    )
    subprocess.run([base, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run(
        [*pip, "--no-deps", "numpy<2.3", "onnxruntime<1.24"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"NumPy and ONNX Runtime cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    return python


def on_board(python: Path, root: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-I", root / "run", *arguments]
    return subprocess.run(list(map(str, command)), cwd="/", capture_output=True, text=True, timeout=300, check=False)


def test_the_shipped_bundle_tests_itself_with_numpy_and_onnxruntime_alone(bare_python: Path, shipped: Path) -> None:
    done = on_board(bare_python, shipped, "self-test")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "self-test: all 24 graphs in onnxruntime: passed"
    assert len(lines) == 1 + 24 + 1
    assert all(line.endswith(": passed") for line in lines[1:])
    missing = on_board(bare_python, shipped, "build")
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (1, "", 1)
    assert "tensorrt cannot be loaded" in missing.stderr


def test_it_enhances_the_shipped_sample_as_edgese_does(bare_python: Path, shipped: Path, tmp_path: Path) -> None:
    wave, rate_hz = soundfile.read(NOISY, dtype="float32")
    write_sound(tmp_path / "noisy.wav", wave, rate_hz=rate_hz)
    done = on_board(bare_python, shipped, "enhance", tmp_path / "noisy.wav", tmp_path / "d.wav")
    assert done.returncode == 0, done.stderr
    edgese("enhance", "noisy.wav", "-o", "e.wav", "-q", "--model", "small", cwd=tmp_path)
    device, _ = soundfile.read(tmp_path / "d.wav", dtype="float32")
    whole, _ = soundfile.read(tmp_path / "e.wav", dtype="float32")
    assert device.shape == whole.shape == wave.shape
    assert np.abs(device - whole).max() <= 1e-5  # the limit of fp32; another release of ONNX Runtime gave 7e-7


def test_a_python_without_numpy_is_told_what_is_missing(tmp_path: Path, golden: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    done = on_board(tmp_path / "venv/bin/python", golden, "self-test")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "error: NumPy cannot be loaded" in done.stderr


@pytest.mark.slow
def test_the_shipped_bundle_tests_itself_on_aarch64(shipped: Path) -> None:
    reason = aarch64_selftest.lacking()
    if reason:
        pytest.skip(reason)
    userland = ROOT / "out/aarch64"
    try:
        aarch64_selftest.make_userland(userland)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"arm64 packages cannot be fetched: {error}")
    done = aarch64_selftest.self_test(shipped, userland, ["--block", "16"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "self-test: all 6 graphs in onnxruntime: passed"


def test_an_unverified_bundle_is_not_used(root: Path) -> None:
    manifest = json.loads((root / "bundle/manifest.json").read_text())
    manifest["verification"]["passed"] = False
    seal_bundle(root / "bundle", {key: value for key, value in manifest.items() if key != "files"})
    digest = hashlib.sha256((root / "bundle/manifest.json").read_bytes()).hexdigest()
    sums = [line for line in (root / SUMS).read_text().splitlines() if not line.endswith("manifest.json")]
    (root / SUMS).write_text("\n".join([*sums, f"{digest}  bundle/manifest.json"]) + "\n")
    with pytest.raises(VerificationError, match="did not pass their verification"):
        Content.open(root)
