"""What an import loads: a device has no torch, and nobody waits seconds for `--help`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEVER = ("torch", "onnx", "onnxruntime", "onnxscript", "scipy", "matplotlib", "tensorboard", "pesq", "pystoi")

LIGHT = {
    "edgese": (*NEVER, "typer", "rich", "soundfile", "numpy"),
    "runtimes": (*NEVER, "typer", "rich", "soundfile"),
    "runtimes.base": (*NEVER, "typer", "rich", "soundfile"),
    "runtimes.registry": (*NEVER, "typer", "rich", "soundfile"),
    "calib.batches": (*NEVER, "typer", "rich", "soundfile"),
    "export": (*NEVER, "typer", "rich", "soundfile"),
    "export.bundle": (*NEVER, "typer", "rich", "soundfile"),
    "edgese.config": (*NEVER, "typer", "rich", "soundfile"),
    "edgese.cli.app": (*NEVER, "soundfile", "numpy"),
    "edgese.__main__": (*NEVER, "typer", "rich", "soundfile", "numpy"),
    "edgese.enhance.denoiser": (*NEVER, "typer"),
    "edgese.metrics.scores": NEVER,
}


def loaded_by(statement: str) -> set[str]:
    """Top-level names in `sys.modules` after a statement, in a fresh interpreter that has nothing to complain of."""
    program = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LIGHT)
def test_import_is_light(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert module.partition(".")[0] in loaded
    assert sorted(loaded & set(LIGHT[module])) == []


def test_a_heavy_import_would_be_noticed() -> None:
    pytest.importorskip("scipy", reason="the [train] extra is not installed")
    assert {"scipy", "numpy"} <= loaded_by("import edgese\nimport scipy.signal")
