"""The package as others get it: a wheel that holds what it needs and nothing else, and every way to install it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from edgese import __version__

pytestmark = pytest.mark.slow  # builds wheels and makes environments

ROOT = Path(__file__).parents[1]
FOLDERS = ("edgese", "export", "calib", "runtimes")
SHIPPED = ("edgese/weights/mbs-net-base", "edgese/weights/mbs-net-small")


def run(*command: object, cwd: Path) -> str:
    """What a command prints; it is not told of this tree, and it must succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: object, cwd: Path, python: Path = Path(sys.executable)) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", *arguments, cwd=cwd)


def files(folder: Path) -> set[str]:
    """All but what Python itself leaves there."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder.parent).as_posix() for path in found}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as it is cloned: no builds, no environments."""
    copy = tmp_path_factory.mktemp("tree") / "edgese"
    copy.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", tree, "--no-deps", "--no-build-isolation", "-w", folder, cwd=folder)
    (built,) = folder.iterdir()
    shutil.rmtree(tree / "build")
    return built


def environment(folder: Path, *, borrowing: bool) -> Path:
    """The interpreter of a new environment without pip; `borrowing`: it finds what is installed in this one, too.

    What is only linked into this environment, as an editable install of this very project is, it does not find.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    if borrowing:
        (own,) = (folder / "lib").glob("python*/site-packages")
        (own / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return python


def versions_told(python: Path, cwd: Path) -> set[str]:
    """By the command and by the module."""
    return {run(*command, "--version", cwd=cwd) for command in ([python.with_name("edgese")], [python, "-m", "edgese"])}


def place_of_edgese(python: Path, cwd: Path) -> Path:
    return Path(run(python, "-c", "import edgese; print(edgese.__file__)", cwd=cwd).strip()).resolve()


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected: set[str] = set().union(*(files(ROOT / folder) for folder in FOLDERS))
    assert inside == expected
    assert {name.split("/")[0] for name in inside} == set(FOLDERS)
    assert {"edgese/py.typed", "edgese/samples/noisy.flac", "edgese/samples/clean.flac"} <= inside


@pytest.mark.parametrize("folder", SHIPPED)
def test_the_wheel_holds_the_weights(wheel: Path, folder: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name.removeprefix(f"{folder}/") for name in archive.namelist() if name.startswith(f"{folder}/")}
    assert {
        "manifest.json",
        "model.safetensors",
        "weights.fp32.bin",
        "reference.npz",
        "MODEL_CARD.md",
        "ATTRIBUTION.md",
    } <= inside
    assert any(name.endswith(".onnx") for name in inside)


def test_every_dependency_of_the_tests_has_a_tested_version() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    listed = project.partition("dependencies = [")[2].partition("[project.scripts]")[0]
    wanted = {_plain(name) for name in re.findall(r'"([A-Za-z0-9_-]+)(?:[>=]=|\[)', listed)}
    wanted -= {"edgese", "pipecat-ai"}  # the latter with its hundred packages is in neither `all` nor `dev`
    for path in ROOT.glob("constraints-*.txt"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        tested = {_plain(name): version for name, _, version in (line.partition("==") for line in lines)}
        assert all(tested.values()), path
        missing = wanted - set(tested)
        assert missing <= {"tomli"}, path  # of Python 3.10 alone
        assert f"torch=={tested['torch']}\n" in (ROOT / "constraints.txt").read_text()


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    assert wheel.name == f"edgese-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"edgese-{__version__}.dist-info/METADATA").decode()
        scripts = archive.read(f"edgese-{__version__}.dist-info/entry_points.txt").decode()
        assert f"edgese-{__version__}.dist-info/licenses/LICENSE" in archive.namelist()
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "edgese = edgese.__main__:main" in scripts
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert not [line for line in base if "torch" in line or line.startswith("Requires-Dist: onnx>")]


def test_the_module_runs_from_the_root_without_being_installed(tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", borrowing=True)
    assert run(python, "-m", "edgese", "--version", cwd=ROOT) == f"edgese {__version__}\n"
    assert place_of_edgese(python, ROOT) == ROOT / "edgese" / "__init__.py"


def test_a_plain_install_works_anywhere(tree: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "venv", borrowing=True)
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", tree, cwd=tmp_path, python=python)
    shutil.rmtree(tree / "build", ignore_errors=True)
    assert versions_told(python, tmp_path) == {f"edgese {__version__}\n"}
    assert place_of_edgese(python, tmp_path).is_relative_to(tmp_path)


def test_an_editable_install_works_anywhere_and_follows_the_tree(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "edgese-copy"
    shutil.copytree(tree, copy)
    python = environment(tmp_path / "venv", borrowing=True)
    pip("install", "--no-deps", "--no-build-isolation", "--no-index", "-e", copy, cwd=tmp_path, python=python)
    assert versions_told(python, tmp_path) == {f"edgese {__version__}\n"}
    assert place_of_edgese(python, tmp_path) == (copy / "edgese" / "__init__.py").resolve()
    source = copy / "edgese" / "__init__.py"
    source.write_text(source.read_text().replace(__version__, "9.9.9"))
    assert run(python, "-m", "edgese", "--version", cwd=tmp_path) == "edgese 9.9.9\n"


@pytest.mark.slow
def test_the_wheel_alone_enhances_the_shipped_sample_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With what it depends on, and nothing else: no PyTorch, no onnx. Asks the package index."""
    python = environment(tmp_path / "venv", borrowing=False)
    pip("install", wheel, cwd=tmp_path, python=python)
    installed = place_of_edgese(python, tmp_path).parent
    assert installed.is_relative_to(tmp_path)
    found = "import importlib.util as u; print([name for name in ('torch', 'onnx') if u.find_spec(name)])"
    assert run(python, "-c", found, cwd=tmp_path) == "[]\n"
    sample = installed / "samples" / "noisy.flac"
    told = run(python.with_name("edgese"), "enhance", sample, "-o", "enhanced.flac", cwd=tmp_path)
    assert told.startswith(f"{sample} -> enhanced.flac: 8.8 s, 16000 Hz, 1 channel, ")
    lengths = "import soundfile, sys; print(*(soundfile.info(name).frames for name in sys.argv[1:]))"
    assert run(python, "-c", lengths, sample, "enhanced.flac", cwd=tmp_path) == "141576 141576\n"
