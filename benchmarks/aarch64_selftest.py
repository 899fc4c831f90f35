"""Self-test of a device bundle in an emulated aarch64 userland: the code and ONNX Runtime's ARM kernels, no board.

    python -m benchmarks.aarch64_selftest [--archive FILE] [--root out/aarch64] [--block 1 ... for the self-test]

The userland is Debian's Python 3.11 for arm64, fetched by apt-get into a folder of its own (this system's apt is left
as it is, no root needed), with the aarch64 wheels of NumPy and ONNX Runtime; qemu-user runs it. Values only: what
calls take under an emulator says nothing of a board. Without qemu it is skipped with a reason, exit code 0.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from edgese.board.archive import unpack_archive, write_archive
from edgese.graphs.bundles import shipped_bundle
from export.bundle import Bundle

SOURCE = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian bookworm main\n"
PACKAGES = ("python3.11", "libstdc++6")  # and all that they depend on
WHEELS = ("numpy<2", "onnxruntime>=1.20,<1.24")  # releases that were seen to run under qemu-user; 1.24.4 does, too
TAGS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
DONE = "made"

_EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")


def lacking() -> str | None:
    """Reason why the self-test cannot be run here, with the mend; None if it can."""
    if emulator() is None:
        return "qemu-aarch64 is missing: apt-get install qemu-user"
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    return f"{', '.join(missing)} missing: a Debian system makes the arm64 userland" if missing else None


def emulator() -> str | None:
    """Path of the emulator; None if there is none."""
    return next(filter(None, map(shutil.which, _EMULATORS)), None)


def make_userland(root: Path) -> None:
    """Install Python, NumPy and ONNX Runtime for aarch64 in the folder `root`, unless they are there.

    Raises:
        subprocess.CalledProcessError: the packages cannot be fetched.
    """
    if (root / DONE).is_file():
        return
    shutil.rmtree(root, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="edgese-") as name:
        folder = Path(name)
        settings = _apt_settings(folder)
        _run("apt-get", *settings, "update")
        _run("apt-get", *settings, "install", "--yes", "--download-only", *PACKAGES)
        root.mkdir(parents=True)
        for package in sorted((folder / "archives").glob("*.deb")):
            _run("dpkg", "-x", package, root)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--only-binary=:all:"]
        tags = [part for tag in TAGS for part in ("--platform", tag)]
        _run(*pip, "--no-deps", "--python-version", "3.11", *tags, "-d", folder / "wheels", *WHEELS)
        for wheel in (folder / "wheels").glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(root / "usr/lib/python3/dist-packages")
    (root / DONE).touch()


def self_test(bundle_root: Path, userland: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the self-test of an unpacked device bundle under the emulator; returns the process."""
    python = userland / "usr/bin/python3.11"
    command = [emulator(), "-L", userland, python, "-I", bundle_root / "run", "self-test", *arguments]
    return subprocess.run(list(map(str, command)), env={}, capture_output=True, text=True, timeout=1800, check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="default: one of the shipped bundle, made for this")
    parser.add_argument("--root", type=Path, default=Path("out/aarch64"), help="where the userland is kept")
    options, passed_on = parser.parse_known_args()
    reason = lacking()
    if reason:
        print(f"skipped: {reason}")
        return
    userland = options.root.resolve()
    make_userland(userland)
    with tempfile.TemporaryDirectory(prefix="edgese-") as name:
        archive = options.archive
        if archive is None:
            archive = Path(name) / "shipped.tar.gz"
            write_archive(Bundle.open(shipped_bundle()), archive)
        unpacked = unpack_archive(archive, Path(name) / "unpacked")
        began = time.perf_counter()
        done = self_test(unpacked, userland, passed_on)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        print(f"aarch64 under {emulator()}: {time.perf_counter() - began:.0f} s, exit code {done.returncode}")
    sys.exit(done.returncode)


def _apt_settings(folder: Path) -> list[str]:
    """Options for an apt-get that knows of arm64 only and keeps everything in `folder`."""
    for place in ("lists/partial", "archives/partial"):
        (folder / place).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(SOURCE, encoding="utf-8")
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "true",
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, timeout=600)


if __name__ == "__main__":
    main()
