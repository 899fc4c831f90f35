"""TensorRT's package: the one that is taken, what is said where there is none, and the log that all objects share."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtimes.base import RuntimeUnavailable
from runtimes.tensorrt_package import library_name, shown_lines, tensorrt_library, tensorrt_log
from runtimes.trt import require_tensorrt

from .tensorrt_double import ABSENT, USED, VERSIONS, surface, tensorrt_double

ROOT = Path(__file__).parents[2]


def refusal(*arguments: Any) -> str:
    with pytest.raises(RuntimeUnavailable) as caught:
        tensorrt_library(*arguments)
    return str(caught.value)


def test_a_missing_tensorrt_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    said = refusal()
    assert said.startswith("tensorrt cannot be loaded (")
    assert "; tensorrt_rtx cannot be loaded (" in said
    assert "JetPack brings it" in said
    assert "apt install python3-libnvinfer" in said
    assert said.endswith(f"without a board: {sys.executable} -m pip install tensorrt_rtx")
    said = refusal("tensorrt_rtx")
    assert said.startswith("tensorrt_rtx cannot be loaded (")
    assert said.endswith(f"): {sys.executable} -m pip install tensorrt_rtx")


def test_tensorrt_is_taken_before_rtx_and_each_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, for_rtx = tensorrt_double(), tensorrt_double(*VERSIONS[-1])
    monkeypatch.setitem(sys.modules, "tensorrt", plain)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", for_rtx)
    assert tensorrt_library() is plain
    assert tensorrt_library("tensorrt_rtx") is for_rtx
    with pytest.raises(RuntimeUnavailable, match="onnx: not a TensorRT, wanted one of tensorrt, tensorrt_rtx"):
        tensorrt_library("onnx")


def test_tensorrt_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double(version="8.6.2"))
    with pytest.raises(RuntimeUnavailable, match=r"found 8\.6\.2, wanted 10\.3 or later"):
        tensorrt_library()
    with pytest.raises(RuntimeUnavailable, match=r"found 8\.6\.2, wanted 10\.3 or later"):
        require_tensorrt()


def test_a_log_holds_warnings_and_errors_of_all_objects_and_says_what_came_since() -> None:
    library: Any = tensorrt_double()
    log = tensorrt_log(library)
    assert tensorrt_log(library) is log
    assert tensorrt_log(tensorrt_double()) is not log
    for severity, message in ((3, "information"), (2, "a  warning\n"), (2, "WARNING The logger passed into x differs")):
        log.logger.log(severity, message)
    before = log.n_lines
    assert log.since(0) == ["a warning"]
    for index in range(20):
        log.logger.log(1, f"error {index}")
    assert log.since(before) == [f"error {index}" for index in range(20)]
    assert shown_lines(log.since(before)) == "".join(f"\n  log: error {index}" for index in range(12, 20))
    assert log.since(log.n_lines) == []
    for _ in range(5000):
        log.logger.log(1, "the same")
    assert log.since(before) == ["the same"] * 1000
    log.logger.log(1, "the last")
    assert log.since(log.n_lines - 1) == ["the last"]


def test_a_package_is_named_with_its_version() -> None:
    assert library_name(tensorrt_double()) == "tensorrt 10.3.0"


# The doubles


@pytest.mark.parametrize("version", VERSIONS)
def test_a_double_has_what_its_version_has(version: tuple[str, str]) -> None:
    assert set(surface(tensorrt_double(*version))) == set(USED) - ABSENT[version]


def check_double(version: tuple[str, str], real: dict[str, list[list[str]]]) -> None:
    """Names and arguments of the double are those of the real package."""
    double = surface(tensorrt_double(*version))
    assert set(double) == set(real)
    for name, forms in double.items():
        assert forms == [] or forms[0] in real[name], name


@pytest.mark.required
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="needs TensorRT for RTX: pip install tensorrt_rtx"
)
def test_tensorrt_for_rtx_has_what_its_double_has() -> None:
    check_double(VERSIONS[-1], surface(importlib.import_module("tensorrt_rtx")))


@pytest.mark.required
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_bindings") is None or not shutil.which("cc"),
    reason="needs a C compiler and TensorRT's bindings: pip install tensorrt_cu13_bindings",
)
def test_tensorrt_s_own_bindings_have_what_their_double_has(tmp_path: Path) -> None:
    """In a process of its own: over empty libraries, TensorRT can be looked at and no more."""
    source = (
        "import json, sys, pathlib\n"
        "from tests.runtimes.tensorrt_double import load_bindings, surface\n"
        "library = load_bindings(pathlib.Path(sys.argv[1]))\n"
        "print(json.dumps([library.__version__, surface(library)]))"
    )
    command = [sys.executable, "-c", source, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found, real = json.loads(done.stdout)
    check_double(("tensorrt", found) if ("tensorrt", found) in ABSENT else ("tensorrt", "11.4.0.106"), real)
