"""The registry: names, light import, and libraries that are not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtimes.base import RuntimeUnavailable
from runtimes.registry import RUNTIMES, open_runtime


def test_an_unknown_runtime_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeUnavailable, match="runtime tensorrt: unknown; known here: onnxruntime, openvino, pytorch"
    ):
        open_runtime("tensorrt", tmp_path / "a.onnx")


def test_fewer_threads_than_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="threads: found 0, wanted at least 1"):
        open_runtime("onnxruntime", tmp_path / "a.onnx", threads=0)


@pytest.mark.parametrize(
    ("name", "library", "module"),
    [
        ("onnxruntime", "onnxruntime", "runtimes.ort"),
        ("openvino", "openvino", "runtimes.ov"),
        ("pytorch", "torch", "runtimes.pytorch"),
    ],
)
def test_a_library_that_is_missing_is_one_plain_error(
    name: str, library: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artefact = tmp_path / "a.onnx"
    artefact.write_bytes(b"never read")
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(RuntimeUnavailable, match=f"{library} cannot be loaded .*install {library}"):
        open_runtime(name, artefact)


def test_the_registry_loads_no_runtime_until_one_is_opened() -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'openvino', 'typer'}"
    code = f"import sys, runtimes, runtimes.registry; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(RUNTIMES) == {"onnxruntime", "openvino", "pytorch"}
