"""The registry: names, light import, and libraries that are not installed."""

import re
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
    ("name", "library"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("pytorch", "torch")]
)
def test_a_library_that_is_missing_is_one_plain_error(name: str, library: str, tmp_path: Path) -> None:
    """In an interpreter of its own, where nothing has loaded the library before it is hidden."""
    artefact = tmp_path / "a.onnx"
    artefact.write_bytes(b"never read")
    code = (
        "import sys, pathlib\n"
        f"sys.modules[{library!r}] = None\n"
        "from runtimes.base import RuntimeUnavailable\n"
        "from runtimes.registry import open_runtime\n"
        "try:\n"
        f"    open_runtime({name!r}, pathlib.Path({str(artefact)!r}))\n"
        "except RuntimeUnavailable as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(f"{library} cannot be loaded .*install {library}", done.stdout.strip())


def test_the_registry_loads_no_runtime_until_one_is_opened() -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'openvino', 'typer'}"
    code = f"import sys, runtimes, runtimes.registry; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(RUNTIMES) == {"onnxruntime", "openvino", "pytorch"}
