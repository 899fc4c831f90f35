"""`edgese doctor`: what it finds where all is well, and what it says of each thing that is not."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edgese import doctor
from edgese.doctor import Finding, board_findings, examine, judge_jetpack
from edgese.errors import install_command, pip_command
from runtimes.base import RuntimeUnavailable
from runtimes.registry import RUNTIMES

from .helpers.board_trees import TREES, write_tree
from .helpers.command_line import edgese

Installed = Callable[[str], "str | None"]


def with_versions(**versions: str | None) -> Installed:
    """What is installed here, but for these."""

    def version(name: str) -> str | None:
        key = name.replace("-", "_")
        if key in versions:
            return versions[key]
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    return version


@pytest.fixture(autouse=True)
def no_runtime_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except where a test is about that."""
    monkeypatch.setattr(doctor, "RUNTIMES", {})


def finding(part: str, installed: Installed | None = None) -> Finding:
    (found,) = (found for found in examine(installed) if found.part == part)
    return found


def test_a_whole_installation_has_nothing_wrong() -> None:
    found = examine()
    assert [one.part for one in found if one.state == "wrong"] == []
    assert "numpy" in finding("base install").found
    assert all("24 graphs" in finding(f"shipped bundle {name}").found for name in ("base", "small"))


def test_a_missing_base_package_is_wrong() -> None:
    found = finding("base install", with_versions(soxr=None))
    assert found.state == "wrong"
    assert "missing: soxr" in found.found
    assert found.mend == install_command()


def test_a_missing_extra_is_absent_and_says_how_to_get_it() -> None:
    found = finding("[metrics]", with_versions(pesq=None))
    assert (found.state, found.mend) == ("absent", install_command("metrics"))
    assert "pystoi" in found.found
    assert found.found.endswith("missing: pesq")


def test_a_version_that_is_too_old_is_wrong_even_in_an_extra() -> None:
    found = finding("[export]", with_versions(onnx="1.12.0"))
    assert found.state == "wrong"
    assert "onnx 1.12.0, wanted >=1.18" in found.found


def test_two_packages_of_one_module_are_wrong() -> None:
    found = finding("onnxruntime and onnxruntime-gpu", with_versions(onnxruntime_gpu="1.20.0"))
    assert found.state == "wrong"
    assert found.mend.startswith(pip_command("uninstall", "onnxruntime", "onnxruntime-gpu"))


def test_a_damaged_bundle_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "shipped_bundle", lambda name: tmp_path)
    found = finding("shipped bundle base")
    assert found.state == "wrong"
    assert str(tmp_path) in found.found
    assert found.mend == f"git -C {Path(doctor.__file__).parents[1]} checkout -- edgese/weights"


def raising(error: Exception) -> Callable[[], None]:
    def load() -> None:
        raise error

    return load


@pytest.mark.slow
def test_a_runtime_that_is_not_installed_is_absent_and_one_that_fails_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*artefact: object, **options: object) -> None:
        raise RuntimeUnavailable("pytorch: the run failed")

    missing = raising(RuntimeUnavailable("openvino cannot be loaded"))
    openers = {"openvino": missing, "pytorch": lambda: broken, "onnxruntime": RUNTIMES["onnxruntime"]}
    openers["onnxruntime-tensorrt"] = lambda: broken  # offered by every onnxruntime-gpu, with or without TensorRT
    for name, opener in openers.items():
        monkeypatch.setitem(RUNTIMES, name, opener)
    monkeypatch.setattr(doctor, "RUNTIMES", openers)
    found = {one.part: one for one in examine()}
    absent, wrong, ok, offered = (found[f"runtime {name}"] for name in openers)
    assert (absent.state, absent.mend) == ("absent", install_command("openvino"))
    assert (wrong.state, wrong.found) == ("wrong", "pytorch: the run failed")
    assert (ok.state, ok.mend) == ("ok", "")
    assert (offered.state, offered.found) == ("absent", "pytorch: the run failed")


@pytest.mark.parametrize(
    ("release", "tensorrt", "state", "told"),
    [
        ("R36.4.3", "10.3.0", "ok", "JetPack 6.1 or 6.2 (R36.4.3) with tensorrt 10.3.0"),
        ("R36.4.3", "10.7.0", "wrong", "tensorrt 10.7.0, wanted ==10.3.*"),
        ("R36.4.0", None, "wrong", "without TensorRT's Python package"),
        ("R38.4.0", "10.13.3.9", "ok", "JetPack 7 (R38.4.0)"),
        ("R38.4.0", "11.3.0", "wrong", "tensorrt 11.3.0, wanted"),
        ("R38.4.0", "11.4.0.106", "wrong", "tensorrt 11.4.0.106, wanted"),
        ("R39.1", "11.4.1", "ok", "tensorrt 11.4.1"),
        ("R35.4.1", "8.5.2", "wrong", "found system R35.4.1, wanted R36.4 or later"),
        (None, "10.3.0", "wrong", "found system unknown"),
    ],
)
def test_jetpack_and_tensorrt_go_together_or_do_not(
    release: str | None, tensorrt: str | None, state: str, told: str
) -> None:
    found = judge_jetpack(release, tensorrt)
    assert found.state == state
    assert told in found.found
    assert bool(found.mend) is (state == "wrong")


@pytest.mark.parametrize("name", TREES)
def test_a_board_tells_its_versions_and_clocks(name: str, tmp_path: Path) -> None:
    tree = TREES[name]
    versions, clocks = board_findings(write_tree(tmp_path, name))
    assert tree.model in versions.found
    for package in ("nvidia-jetpack", "tensorrt"):
        assert tree.packages.get(package, "") in versions.found
    locked = all(lowest == highest for _, _, lowest, highest in (*tree.policies.values(), *tree.gpus.values()))
    assert ("clocks locked" in clocks.found) is locked
    assert ("sudo jetson_clocks" in clocks.mend) is not locked
    assert tree.modes[tree.mode] in clocks.found
    assert all(f"policy{number}" in clocks.found for number in tree.policies)


def test_a_board_without_jetpack_says_what_is_missing(tmp_path: Path) -> None:
    root = write_tree(tmp_path, "orin-nano")
    (root / "var/lib/dpkg/status").write_text("")
    versions, _ = board_findings(root)
    assert versions.state == "absent"
    assert "JetPack: " in versions.found
    assert "apt install nvidia-jetpack" in versions.mend


def test_elsewhere_there_is_no_board_to_tell_of(tmp_path: Path) -> None:
    assert list(board_findings(tmp_path)) == []


@pytest.mark.slow
def test_the_command_prints_each_part_with_its_mend(tmp_path: Path) -> None:
    lines = edgese("doctor", cwd=tmp_path, cold=True).stdout.decode().splitlines()
    assert lines[-1] == "nothing is wrong"
    assert any(line.split()[:3] == ["ok", "runtime", "onnxruntime"] for line in lines)
    told = json.loads(edgese("doctor", "--json", cwd=tmp_path).stdout)
    assert {"part", "state", "found", "mend"} == told[0].keys()
    assert {one["state"] for one in told} <= {"ok", "absent"}


def test_ssh_is_only_needed_for_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/ssh")
    assert (finding("ssh").state, finding("ssh").found) == ("ok", "/usr/bin/ssh")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert (finding("ssh").state, finding("ssh").mend) == ("absent", "apt install openssh-client")
