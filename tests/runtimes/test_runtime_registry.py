"""The registry: names, light import, and libraries that are not installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtimes.base import RuntimeUnavailable
from runtimes.registry import ON_GPU, RUNTIMES, open_runtime


def test_an_unknown_runtime_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeUnavailable,
        match="runtime tensor: unknown; known here: native, onnxruntime, onnxruntime-cuda, onnxr",
    ):
        open_runtime("tensor", tmp_path / "a.onnx")


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
    heavy = "{'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'typer'}"
    code = f"import sys, runtimes, runtimes.registry; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(RUNTIMES) == {"onnxruntime", "native", "openvino", "pytorch", *ON_GPU}


@pytest.mark.parametrize("module", ["runtimes.ort", "runtimes.ov", "calib.ranges", "calib.qdq"])
def test_nothing_is_sent_and_nothing_left_at_home(module: str, tmp_path: Path) -> None:
    """Whoever wants ONNX Runtime's telemetry sets its variable himself."""
    code = f"import {module}, os; print(os.environ.get('ORT_DISABLE_TELEMETRY'))"
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    plain = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain | home)
    assert list(tmp_path.iterdir()) == []
    assert done.stdout.strip() == ("None" if module == "runtimes.ov" else "1")
