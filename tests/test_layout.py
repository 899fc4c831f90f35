"""Who may import whom (docs/architecture.md), read from the syntax of all modules; no module is imported for it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("edgese", "export", "calib", "runtimes")

MAY_IMPORT = {
    "edgese": {"edgese", "export", "calib", "runtimes"},
    "export": {"export", "runtimes"},
    "calib": {"calib"},
    "runtimes": {"runtimes"},
}

# Every package and root file of edgese, in the order in which they stand on each other: each imports only what stands
# to its right. What is new is given its place here.
ORDER = (
    "__main__", "cli", "board", "quantize", "train", "evaluate", "export_bundle", "doctor", "device", "serve", "listen",
    "live", "bulk", "triton", "enhance", "verify", "bench", "graphs", "native", "contract", "model", "metrics", "audio",
    "config", "networks", "pictures", "machine", "atomic_file", "samples", "errors",
)  # fmt: skip
MOST_ROOT_FILES = 10

# Loaded by nothing but the file that is about it: the file's importers decide when it is paid for.
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "openvino", "tensorrt", "tensorrt_rtx", "typer")
HEAVY_AT_IMPORT = {
    "runtimes.pytorch": {"torch"},
    "runtimes.ort": {"onnxruntime"},
    "runtimes.ov": {"openvino"},
    "export.graph": {"torch", "onnx", "onnxscript"},
    "export.inspection": {"onnx"},
    "export.lstm": {"torch"},
    "export.weights": {"onnx"},
    "calib.ranges": {"onnx", "onnxruntime"},
    "calib.qdq": {"onnx", "onnxruntime"},
}


class Import(NamedTuple):
    """`importer` imports `imported`; `at_once`: when it is itself imported, not only when a function runs."""

    importer: str
    imported: str
    at_once: bool


def read_imports(root: Path, folders: Sequence[str] = FOLDERS) -> list[Import]:
    """All imports of all modules below `root`."""
    sources = {file.relative_to(root): file for folder in folders for file in sorted((root / folder).rglob("*.py"))}
    modules = {_module_name(path) for path in sources}
    texts = {path: file.read_text(encoding="utf-8") for path, file in sources.items()}
    return [found for path, text in texts.items() for found in _imports(path, text, modules)]


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, source: str, modules: set[str]) -> Iterator[Import]:
    importer = _module_name(path)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node, at_once in _statements(ast.parse(source), at_once=True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, at_once)
        elif isinstance(node, ast.ImportFrom):
            start = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(importer, inner if inner in modules else base, at_once)


def _statements(node: ast.AST, at_once: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for inner in child.body:
                yield inner, False
                yield from _statements(inner, False)
            for inner in child.orelse:
                yield inner, at_once
                yield from _statements(inner, at_once)
            continue
        yield child, at_once
        yield from _statements(child, at_once and not later)


def top(module: str) -> str:
    return module.partition(".")[0]


def folder_violations(imports: Sequence[Import]) -> list[str]:
    """Imports of one of our folders by another that must know nothing of it, type hints and late imports included."""
    return [
        f"{found.importer} imports {found.imported}"
        for found in imports
        if top(found.imported) in FOLDERS and top(found.imported) not in MAY_IMPORT[top(found.importer)]
    ]


def heavy_violations(imports: Sequence[Import]) -> list[str]:
    """Heavy libraries loaded by the mere import of a module in the three general folders that is not about them."""
    return [
        f"{found.importer} loads {found.imported}"
        for found in imports
        if found.at_once
        and top(found.importer) != "edgese"
        and top(found.imported) in HEAVY
        and top(found.imported) not in HEAVY_AT_IMPORT.get(found.importer, set())
    ]


def place_of(module: str) -> int:
    """Where a module of edgese stands in `ORDER`; `edgese` itself, which holds the version, beyond its end."""
    _, _, rest = module.partition(".")
    return ORDER.index(rest.partition(".")[0]) if rest else len(ORDER)


def order_violations(imports: Sequence[Import]) -> list[str]:
    """Imports inside edgese, from one package or root file to another, that point to the left.

    `edgese` itself may offer names of its packages, which are imported when somebody asks for one.
    """
    inside = [found for found in imports if top(found.importer) == top(found.imported) == "edgese"]
    return [
        f"{found.importer} imports {found.imported}"
        for found in inside
        if (found.importer != "edgese" or found.at_once)
        and found.importer.split(".")[:2] != found.imported.split(".")[:2]
        and place_of(found.imported) <= place_of(found.importer)
    ]


def private_names(root: Path, folders: Sequence[str] = FOLDERS) -> list[str]:
    """Names with a leading underscore that one of our modules takes from another."""
    found = []
    for file in (file for folder in folders for file in sorted((root / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and top(node.module) in FOLDERS:
                private = [alias.name for alias in node.names if alias.name.startswith("_") and alias.name[:2] != "__"]
                found += [f"{file.relative_to(root).as_posix()} imports {node.module}.{name}" for name in private]
    return found


def cycles(imports: Sequence[Import]) -> list[str]:
    """Modules of ours that import each other in a circle, late imports and type hints included."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        if top(found.imported) in FOLDERS and found.imported != found.importer:
            graph.setdefault(found.importer, set()).add(found.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(ROOT)


def test_folders_import_in_the_allowed_direction_only(imports: list[Import]) -> None:
    assert folder_violations(imports) == []


def test_packages_of_edgese_import_to_the_right_only(imports: list[Import]) -> None:
    assert order_violations(imports) == []


def test_no_modules_import_each_other_in_a_circle(imports: list[Import]) -> None:
    assert cycles(imports) == []


def test_heavy_libraries_are_loaded_only_by_the_files_about_them(imports: list[Import]) -> None:
    assert heavy_violations(imports) == []


def test_no_module_takes_a_private_name_from_another() -> None:
    assert private_names(ROOT) == []


def test_a_private_name_taken_from_another_module_is_detected(tmp_path: Path) -> None:
    source = "from edgese import __version__\nfrom edgese.errors import AudioError, _hidden\nfrom numpy import _core"
    written(tmp_path, {"edgese/audio/reader.py": source})
    assert private_names(tmp_path) == ["edgese/audio/reader.py imports edgese.errors._hidden"]


def test_nothing_imports_tests_or_benchmarks(imports: list[Import]) -> None:
    assert [found for found in imports if top(found.imported) in ("tests", "benchmarks")] == []


def test_few_files_lie_in_edgese_itself() -> None:
    found = sorted(path.stem for path in (ROOT / "edgese").glob("*.py"))
    assert len(found) <= MOST_ROOT_FILES, found


def test_the_map_sees_what_it_should(imports: list[Import]) -> None:
    """Known imports of each kind: an empty list of violations then means something."""
    assert Import("edgese.model.registry", "edgese.model.enhancer", at_once=True) in imports
    assert (
        Import("edgese.model.enhancer", "edgese.model.stft", at_once=True) in imports
    )  # from edgese.model import stft
    assert Import("edgese.__main__", "edgese.cli.app", at_once=False) in imports
    assert Import("runtimes.pytorch", "torch", at_once=True) in imports  # inside try
    assert Import("runtimes.registry", "runtimes.ort", at_once=False) in imports
    assert {top(found.importer) for found in imports} == set(FOLDERS)
    found_modules = {found.importer for found in imports} | {found.imported for found in imports}
    assert {module.split(".")[1] for module in found_modules if module.startswith("edgese.")} == set(ORDER)


def written(root: Path, sources: dict[str, str]) -> list[Import]:
    """The imports of a made-up tree."""
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return read_imports(root)


@pytest.mark.parametrize(
    ("name", "source", "violation"),
    [
        ("runtimes/ort.py", "import edgese.audio.reader", "runtimes.ort imports edgese.audio.reader"),
        ("runtimes/ort.py", "def f():\n    from export import bundle", "runtimes.ort imports export"),
        ("runtimes/ort.py", "if TYPE_CHECKING:\n    from export import x", "runtimes.ort imports export"),
        ("calib/batches.py", "from runtimes.base import Runtime", "calib.batches imports runtimes.base"),
        ("calib/batches.py", "try:\n    import export\nexcept ImportError:\n    pass", "calib.batches imports export"),
        ("export/graph.py", "from edgese import config", "export.graph imports edgese"),
        ("export/graph.py", "class A:\n    import calib", "export.graph imports calib"),
        ("export/deep/__init__.py", "from edgese.config import x", "export.deep imports edgese.config"),
    ],
)
def test_forbidden_folder_is_detected(name: str, source: str, violation: str, tmp_path: Path) -> None:
    assert folder_violations(written(tmp_path, {name: source})) == [violation]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("runtimes/base.py", "import torch"),
        ("runtimes/ort.py", "from torch.nn import Module"),
        ("runtimes/ort.py", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("calib/batches.py", "with x:\n    import torch.nn as nn"),
        ("export/bundle.py", "if True:\n    import onnx"),
        ("runtimes/registry.py", "class A:\n    import onnxruntime"),
    ],
)
def test_forbidden_heavy_import_is_detected(name: str, source: str, tmp_path: Path) -> None:
    assert len(heavy_violations(written(tmp_path, {name: source}))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("runtimes/pytorch.py", "import torch"),
        ("runtimes/base.py", "def f():\n    import torch"),
        ("calib/batches.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("calib/batches.py", "from calib import CalibrationError\nimport torchlike"),
        ("edgese/train/loop.py", "import torch"),
        ("edgese/train/loop.py", "import export.bundle, calib.batches, runtimes.base"),
        ("export/engine.py", "from runtimes.base import TensorSpec\nfrom . import bundle"),
    ],
)
def test_allowed_import_is_not_reported(name: str, source: str, tmp_path: Path) -> None:
    imports = written(tmp_path, {name: source})
    assert folder_violations(imports) == heavy_violations(imports) == order_violations(imports) == cycles(imports) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("edgese/config.py", "from edgese.audio.reader import AudioReader"),
        ("edgese/config.py", "from . import audio"),
        ("edgese/model/scan.py", "from edgese import train"),
        ("edgese/model/scan.py", "from ..enhance import Denoiser"),
        ("edgese/model/stft.py", "def f():\n    import edgese.verify.agreement"),
        ("edgese/enhance/denoiser.py", "from edgese.cli.app import app"),
        ("edgese/cli/app.py", "from edgese.__main__ import main"),
    ],
)
def test_import_to_the_left_is_detected(name: str, source: str, tmp_path: Path) -> None:
    others = {f"edgese/{package}/__init__.py": "" for package in ("audio", "train", "cli")}
    assert len(order_violations(written(tmp_path, others | {name: source}))) == 1


def test_circle_is_detected(tmp_path: Path) -> None:
    late, hidden = "def f():\n    import edgese.atomic_file", "from edgese.audio import reader"
    imports = written(tmp_path, {"edgese/audio/reader.py": late, "edgese/atomic_file.py": hidden})
    assert set(cycles(imports)) == {"edgese.audio.reader", "edgese.atomic_file"}
