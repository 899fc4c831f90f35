"""The LADSPA plugin: in the hosts that people have, and in one that lets it make no system call."""

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

from edgese.audio import Wave
from edgese.export_bundle import export_c
from edgese.model.enhancer import WaveformEnhancer
from edgese.native import build

from ..edgese.helpers.live import Live, live_library
from ..edgese.helpers.tiny_bundle import ONE_NETWORK

SOURCE = Path(__file__).parents[2] / "plugins" / "ladspa"
HOSTS = ("analyseplugin", "applyplugin")
PIPEWIRE = ("pipewire", "wireplumber", "pw-cat", "pw-link", "dbus-run-session")
RATE_HZ = 48_000
QUANTUM = 1024  # samples that PipeWire takes at a time
HEARD = 16_000  # samples that are compared, a third of a second
SESSIONS = 4  # a sound server on a busy machine loses samples: then it is heard again

pytestmark = [
    ONE_NETWORK,
    pytest.mark.slow,
    pytest.mark.required,
    pytest.mark.skipif(
        not all(map(shutil.which, ("cc", "make", *HOSTS))), reason="needs apt-get install gcc make ladspa-sdk"
    ),
]

_built: list[Path] = []


def run(*command: object, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    whole = {**os.environ, "LADSPA_PATH": str(folder), **(environment or {})}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=whole, timeout=300)


@pytest.fixture
def plugin(tiny_enhancer: WaveformEnhancer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with edgese.so, built as its Makefile says, and the C project c/ that it was built of."""
    if not _built:
        folder = tmp_path_factory.mktemp("ladspa") / "ladspa"
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("*.so"))
        export_c(tiny_enhancer, folder / "c", name="tiny")
        made = run("make", "C=c", "CFLAGS=-O1 -Werror", folder=folder)
        assert made.returncode == 0, made.stderr
        _built.append(folder)
    return _built[0]


@pytest.fixture
def live(plugin: Path, tmp_path: Path) -> Callable[[int, int], Live]:
    """What the plugin is to do: `edgese_live` with the same weights, at a rate, with so many channels."""
    c = live_library(tmp_path, build.library())
    c.edgese_open.restype = ctypes.c_void_p
    weights = c.edgese_open(str(plugin / "c" / "model.edgese").encode(), None)
    return lambda rate_hz, channels: Live(c, rate_hz, channels, weights)


def test_the_hosts_of_the_sdk_know_and_run_it(plugin: Path, live: Callable[[int, int], Live]) -> None:
    told = run("analyseplugin", "edgese.so", folder=plugin).stdout
    for label, sides in (("edgese_mono", ("",)), ("edgese_stereo", (" left", " right"))):
        (part,) = (part for part in told.split("Plugin Name") if f'"{label}"' in part)
        assert "Environment: Normal or Hard Real-Time" in part
        assert '"Attenuation limit (dB)" input, control, 0 to 100, default 100' in part
        assert '"Mix" input, control, 0 to 1, default 1' in part
        assert '"latency" output, control' in part
        for side in sides:
            assert f'"Input{side}" input, audio' in part
            assert f'"Output{side}" output, audio' in part
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 30_000)).astype(np.float32)
    for rate_hz, channels, values in ((44_100, 2, (12, 1)), (RATE_HZ, 1, (100, 0.5))):
        soundfile.write(plugin / "in.wav", wave[:channels].T, rate_hz, "PCM_16")
        heard, _ = soundfile.read(plugin / "in.wav", dtype="float32", always_2d=True)
        label = "edgese_stereo" if channels == 2 else "edgese_mono"
        done = run("applyplugin", "in.wav", "out.wav", "edgese.so", label, *values, folder=plugin)
        assert done.returncode == 0, done.stdout + done.stderr
        out, _ = soundfile.read(plugin / "out.wav", dtype="float32", always_2d=True)
        wanted = live(rate_hz, channels)(heard.T, limit_db=values[0], mix=values[1])
        np.testing.assert_allclose(out.T, wanted, atol=1.1 / 32768)
        assert np.abs(out).max() > 0.1


def test_cmake_builds_the_same(plugin: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake: apt-get install cmake")
    options = (f"-DC={plugin / 'c'}", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror")
    for command in (("cmake", "-S", SOURCE, "-B", tmp_path, *options), ("cmake", "--build", tmp_path)):
        done = run(*command, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    told = [run("analyseplugin", "edgese.so", folder=folder).stdout for folder in (plugin, tmp_path)]
    assert told[0] == told[1] != ""


def test_a_missing_project_is_named(plugin: Path) -> None:
    failed = run("make", "C=nowhere", folder=plugin)
    assert failed.returncode == 2
    assert "nowhere: no C project; write one (edgese export --c FOLDER) and name it: make C=FOLDER" in failed.stderr


@pytest.mark.parametrize("checked", ["sanitizers", "system calls"])
def test_running_makes_no_call_of_the_system_and_no_mistake_in_memory(
    plugin: Path, live: Callable[[int, int], Live], tmp_path: Path, checked: str
) -> None:
    (tmp_path / "host.c").write_text(HOST)
    if checked == "sanitizers":
        flags = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    else:
        flags = [
            "-DSTRICT",
            *(f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "aligned_alloc", "free")),
        ]
    c = plugin / "c"
    sources = ("host.c", SOURCE / "edgese_ladspa.c", c / "edgese_live.c", build.library())
    weights = f'-DWEIGHTS="{c / "model.edgese"}"'
    built = run("cc", "-std=gnu11", "-O1", f"-I{c}", weights, *flags, *sources, "-o", "host", "-lm", folder=tmp_path)
    assert built.returncode == 0, built.stderr
    done = run("./host", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = np.fromfile(tmp_path / "out.f32", np.float32)
    # the host's own noise: a generator of congruences
    state, wave = 1, []
    for _ in range(out.size):
        state = (state * 1_664_525 + 1_013_904_223) % 2**32
        wave.append(np.float32(state / 2**32 - 0.5))
    np.testing.assert_allclose(out, live(RATE_HZ, 1)(np.array(wave, np.float32)[None])[0], atol=1e-6)


# Runs the mono plugin in calls of changing length, in place, under seccomp's strict mode: read, write and exit are all
# that the kernel then lets pass, or it kills the process; calls for memory are counted.
HOST = """
#include <fcntl.h>
#include <ladspa.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static long calls = 0;
#ifdef STRICT
#define COUNTED(type, name, parameters, arguments) \\
    type __real_##name parameters;                 \\
    type __wrap_##name parameters { calls++; return __real_##name arguments; }
COUNTED(void *, malloc, (size_t n), (n))
COUNTED(void *, calloc, (size_t n, size_t m), (n, m))
COUNTED(void *, realloc, (void *p, size_t n), (p, n))
COUNTED(void *, aligned_alloc, (size_t a, size_t n), (a, n))
COUNTED(void, free, (void *p), (p))
#endif

static float sound[24000];

int main(void)
{
    const LADSPA_Descriptor *d = ladspa_descriptor(0);
    float limit = 100, mix = 1, latency = 0;
    int file = open("out.f32", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    unsigned state = 1;
    long before;
    LADSPA_Handle h = d->instantiate(d, 48000);
    if (!h || ladspa_descriptor(2) || d->instantiate(d, 8000))
        return 2;
    for (int i = 0; i < 24000; i++) {
        state = state * 1664525u + 1013904223u;
        sound[i] = (float)(state / 4294967296.0 - 0.5);
    }
    d->connect_port(h, 0, &limit);
    d->connect_port(h, 1, &mix);
    d->connect_port(h, 2, &latency);
    d->activate(h);
    before = calls;
#ifdef STRICT
    if (before < 10 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
        return 3;
#endif
    for (unsigned long at = 0, n = 1; at < 24000; at += n, n = n * 3 % 1021) {
        if (n > 24000 - at)
            n = 24000 - at;
        d->connect_port(h, 3, sound + at);
        d->connect_port(h, 4, sound + at);
        d->run(h, n);
    }
    if (calls != before || latency != 1869)
        syscall(SYS_exit, 4);
    if (write(file, sound, sizeof sound) != (ssize_t)sizeof sound)
        syscall(SYS_exit, 5);
#ifndef STRICT
    d->cleanup(h);
    return 0;
#endif
    syscall(SYS_exit, 0);
}
"""

# A room to play into and a microphone in it, for a machine without a sound card.
ROOM = """
context.objects = [
    { factory = adapter args = { factory.name = support.null-audio-sink
        node.name = room media.class = Audio/Sink audio.position = [ MONO ] } }
    { factory = adapter args = { factory.name = support.null-audio-sink
        node.name = microphone media.class = Audio/Source/Virtual audio.position = [ MONO ] } }
]
"""
SESSION = """
pipewire & pipewire=$!
sleep 1
wireplumber & wireplumber=$!
for try in $(seq 50); do pw-link room:monitor_MONO microphone:input_MONO && break; sleep 0.2; done
pw-record --target edgese.microphone --rate 48000 --channels 1 --format f32 out.wav & out=$!
pw-record --target microphone --rate 48000 --channels 1 --format f32 raw.wav & raw=$!
for try in $(seq 50); do [ "$(pw-link -l | grep -c 'capture_MONO')" -ge 5 ] && break; sleep 0.2; done
pw-cat -p --target room played.wav
sleep 0.3
kill -INT $out $raw
wait $out $raw
kill $wireplumber $pipewire
wait $wireplumber $pipewire
true
"""


@pytest.mark.skipif(not all(map(shutil.which, PIPEWIRE)), reason="needs apt-get install pipewire wireplumber dbus")
def test_a_microphone_of_pipewire_is_enhanced(
    plugin: Path, live: Callable[[int, int], Live], speech_like: Callable[..., Wave], tmp_path: Path
) -> None:
    configuration, place = tmp_path / "config" / "pipewire" / "pipewire.conf.d", tmp_path / "run"
    configuration.mkdir(parents=True)
    place.mkdir(mode=0o700)
    shutil.copy(SOURCE / "edgese-microphone.conf", configuration)
    (configuration / "room.conf").write_text(ROOM)
    played = speech_like(2 * RATE_HZ, seed=4, sample_rate_hz=RATE_HZ)
    soundfile.write(tmp_path / "played.wav", played, RATE_HZ, "FLOAT")
    environment = {"XDG_RUNTIME_DIR": str(place), "XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": str(tmp_path)}
    environment["LADSPA_PATH"] = str(plugin)
    for _ in range(SESSIONS):
        session = run("dbus-run-session", "--", "sh", "-c", SESSION, folder=tmp_path, environment=environment)
        assert (tmp_path / "out.wav").is_file(), session.stdout + session.stderr
        raw, out = (soundfile.read(tmp_path / name, dtype="float32")[0] for name in ("raw.wav", "out.wav"))
        start = found_at(played, raw)
        if np.array_equal(raw[start : start + HEARD], played[:HEARD]) and is_enhanced(played, out, live, start):
            return
    pytest.fail(f"what was recorded is not what the plugin makes of what was played\n{session.stdout}{session.stderr}")


def is_enhanced(played: Wave, out: Wave, live: Callable[[int, int], Live], start: int) -> bool:
    """True if a recording holds what the plugin makes of a sound, after some silence.

    Both recordings began at a call each, and the plugin some calls before: how many, no one tells.
    """
    for silence in range(QUANTUM, 200 * QUANTUM, QUANTUM):
        whole = np.concatenate([np.zeros(silence, np.float32), played[:HEARD]])
        wanted = live(RATE_HZ, 1)(whole[None])[0, silence:]
        if any(
            np.array_equal(out[begun : begun + HEARD], wanted)
            for begun in range(start % QUANTUM, len(out) - HEARD, QUANTUM)
        ):
            return True
    return False


def found_at(part: Wave, whole: Wave) -> int:
    """Where a recording holds the start of a sound, after silence."""
    return int(np.flatnonzero(whole)[0] - np.flatnonzero(part)[0])
