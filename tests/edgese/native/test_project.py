"""The C project: built by each compiler without a warning, under the sanitizers, and run as its README says."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from edgese.audio import Wave
from edgese.errors import OutputError
from edgese.export_bundle import export_c
from edgese.graphs.precision import Precision
from edgese.model.enhancer import WaveformEnhancer
from edgese.native import build

from ..helpers.live import Live, live_library
from ..helpers.tiny_bundle import ONE_NETWORK

pytestmark = [
    ONE_NETWORK,
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"),
]

STRICT = "-O1 -Werror"
SANITIZED = f"{STRICT} -g -fsanitize=address,undefined -fno-sanitize-recover=all"


def run(*command: object, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.fixture
def project(tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> Path:
    export_c(tiny_enhancer, tmp_path / "project", name="tiny")
    return tmp_path / "project"


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "flags"), [("gcc", SANITIZED), ("clang", STRICT)])
def test_the_project_builds_tests_itself_and_enhances(
    project: Path, tiny_enhancer: WaveformEnhancer, speech_like: Callable[..., Wave], compiler: str, flags: str
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}: apt-get install {compiler}")
    built = run("make", f"CC={compiler}", f"CFLAGS={flags}", folder=project)
    assert built.returncode == 0, built.stderr
    tested = run("./selftest", folder=project)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert tested.stdout.count("passed") >= 2

    n_samples = 3 * 16_000 + 77
    wave = np.stack([speech_like(n_samples, seed=1), speech_like(n_samples, seed=2)], 1)
    for subtype, tolerance in (("FLOAT", 1e-5), ("PCM_16", 1.1 / 32768)):
        soundfile.write(project / "in.wav", wave, 16_000, subtype)
        heard, _ = soundfile.read(project / "in.wav", dtype="float32")
        done = run("./enhance", "in.wav", "out.wav", folder=project)
        assert (done.returncode, done.stderr) == (0, "")
        found, rate_hz = soundfile.read(project / "out.wav", dtype="float32")
        wanted = tiny_enhancer.enhance(torch.from_numpy(heard.T.copy())).numpy().T
        assert rate_hz == 16_000
        assert found.shape == wave.shape
        np.testing.assert_allclose(found, np.clip(wanted, -1, 1) if subtype == "PCM_16" else wanted, atol=tolerance)

    weights = (project / "model.edgese").read_bytes()
    (project / "cut.edgese").write_bytes(weights[:-5])
    (project / "short.wav").write_bytes((project / "in.wav").read_bytes()[:-100])
    soundfile.write(project / "fast.wav", wave, 48_000, "FLOAT")
    assert run("./enhance", "fast.wav", "out.wav", folder=project).returncode == 0
    found, rate_hz = soundfile.read(project / "out.wav")
    assert (rate_hz, found.shape) == (48_000, wave.shape)
    c = live_library(project, build.library())
    c.edgese_open.restype = ctypes.c_void_p
    live = Live(c, 48_000, 2, c.edgese_open(str(project / "model.edgese").encode(), None))
    heard = np.pad(wave.T, ((0, 0), (0, live.latency)))
    np.testing.assert_allclose(found.T, live(heard)[:, live.latency :], atol=1e-5)
    soundfile.write(project / "slow.wav", wave, 8000)
    for arguments, message in (
        (("in.wav", "out2.wav", "cut.edgese"), "error: cut.edgese: found"),
        (("slow.wav", "out2.wav"), "error: slow.wav: found 8000 Hz and 2 channels, wanted 16000 Hz or more"),
        (("model.edgese", "out2.wav"), "error: model.edgese: not a WAV file"),
        (("short.wav", "out2.wav"), "error: short.wav: the input ends before"),
        (("none.wav", "out2.wav"), "error: none.wav: cannot be read"),
    ):
        done = run("./enhance", *arguments, folder=project)
        assert done.returncode == 1
        assert done.stderr.startswith(message), done.stderr
        assert not (project / "out2.wav").exists()


@pytest.mark.slow
@pytest.mark.required
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind: apt-get install valgrind")
def test_valgrind_finds_nothing(project: Path) -> None:
    assert run("make", "selftest", "CFLAGS=-O1 -g", folder=project).returncode == 0
    options = ("--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all", "-q")
    found = run("valgrind", *options, "./selftest", folder=project)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.slow
def test_a_self_test_that_fails_says_so(project: Path, tiny_enhancer: WaveformEnhancer) -> None:
    with torch.no_grad():
        tiny_enhancer.state_dict()["network.split.weight"].mul_(1.001)
    export_c(tiny_enhancer, project.with_name("off"), name="off", precision=Precision.FP32)
    shutil.copy(project.with_name("off") / "model.edgese", project / "off.edgese")
    assert run("make", "selftest", "CFLAGS=-O1", folder=project).returncode == 0
    failed = run("./selftest", "off.edgese", folder=project)
    assert failed.returncode == 1
    assert "FAILED" in failed.stdout


@pytest.mark.slow
def test_processing_allocates_nothing_and_c_plus_plus_may_call_it(project: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++: apt-get install g++")
    (project / "count.cpp").write_text(COUNTING)
    assert run("make", "edgese.o", "CFLAGS=-O1", folder=project).returncode == 0
    wrapped = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "aligned_alloc", "free")]
    flags = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", *wrapped)
    built = run(compiler, *flags, "count.cpp", "edgese.o", "-o", "count", "-lm", folder=project)
    assert built.returncode == 0, built.stderr
    counted = run("./count", folder=project)
    assert counted.stdout == "0 while it runs, some before\n", counted.stdout + counted.stderr


COUNTING = """
#include "edgese.h"

#include <cstdio>
#include <cstdlib>

static long calls = 0;

extern "C" {
#define COUNTED(type, name, parameters, arguments) \\
    type __real_##name parameters;                 \\
    type __wrap_##name parameters { calls++; return __real_##name arguments; }
COUNTED(void *, malloc, (size_t n), (n))
COUNTED(void *, calloc, (size_t n, size_t m), (n, m))
COUNTED(void *, realloc, (void *p, size_t n), (p, n))
COUNTED(void *, aligned_alloc, (size_t a, size_t n), (a, n))
COUNTED(void, free, (void *p), (p))
}

int main()
{
    char error[EDGESE_ERROR_SIZE];
    edgese_weights *weights = edgese_open("model.edgese", error);
    edgese_stream *stream = edgese_start(weights, 8, EDGESE_PCS, error);
    const long before = calls;
    static float in[128 * 20], out[128 * 20];
    edgese_process(stream, in, out, 20);
    edgese_reset(stream);
    const long during = calls - before;
    edgese_stop(stream);
    edgese_close(weights);
    std::printf("%ld while it runs, %s before\\n", during, before ? "some" : "none");
    return 0;
}
"""


def test_a_folder_that_is_taken_is_refused(project: Path, tiny_enhancer: WaveformEnhancer, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"exists already; .* \(--force\)"):
        export_c(tiny_enhancer, project, name="tiny")
    export_c(tiny_enhancer, project, name="tiny", replace=True)
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="exists already and is no C project"):
        export_c(tiny_enhancer, tmp_path / "mine", name="tiny", replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "project"]
