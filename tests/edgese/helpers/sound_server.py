"""A PulseAudio server of the test's own, with a microphone and a loudspeaker that are made of nothing."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("pulseaudio", "pacat")
SINKS = ("microphone", "speaker")
RATE_HZ = 48_000
START_S = 60.0  # at most


def missing() -> str:
    """What is not installed here and has to be; "" where nothing is."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if ctypes.util.find_library("portaudio") is None:
        absent.append("libportaudio2")
    if not any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        absent.append("libasound2-plugins")
    return f"needs {', '.join(absent)}: apt-get install pulseaudio libportaudio2 libasound2-plugins" if absent else ""


class SoundServer:
    """A server that runs. What is played into the sink `microphone` is what the device `microphone` hears.

    Attributes:
        environment: in which programs find it, by the ALSA devices `microphone` and `speaker`.
    """

    def __init__(self, folder: Path) -> None:
        socket = folder / "native"
        socket.unlink(missing_ok=True)
        script, alsa = folder / "start.pa", folder / "asound.conf"
        sinks = (f"load-module module-null-sink sink_name={name} rate={RATE_HZ} channels=1" for name in SINKS)
        protocol = f"load-module module-native-protocol-unix socket={socket} auth-anonymous=1"
        script.write_text("\n".join([*sinks, protocol, ""]))
        alsa.write_text(
            "</usr/share/alsa/alsa.conf>\n"
            "pcm.microphone { type pulse device microphone.monitor }\n"
            "pcm.speaker { type pulse device speaker }\n"
        )
        home = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "PULSE_RUNTIME_PATH": str(folder / "run")}
        self.environment = os.environ | {"PULSE_SERVER": f"unix:{socket}", "ALSA_CONFIG_PATH": str(alsa)}
        command = ["pulseaudio", "-n", "-F", str(script), "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"]
        self._process = subprocess.Popen(command, env=os.environ | home, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + START_S
        while not socket.exists():
            assert self._process.poll() is None, "pulseaudio ended"
            assert time.monotonic() < ends, "pulseaudio does not start"
            time.sleep(0.05)

    def play(self, wave: bytes, sink: str) -> None:
        """Play float samples to their end."""
        command = ["pacat", "--playback", f"--device={sink}", "--raw", f"--rate={RATE_HZ}", "--channels=1"]
        subprocess.run([*command, "--format=float32le"], env=self.environment, input=wave, check=True, timeout=START_S)

    @contextlib.contextmanager
    def recorded(self, source: str, path: Path) -> Iterator[None]:
        """Float samples of a source in a file, while the context lasts."""
        command = ["pacat", "--record", f"--device={source}", "--raw", f"--rate={RATE_HZ}", "--channels=1"]
        command += ["--latency-msec=20", "--format=float32le", str(path)]
        with subprocess.Popen(command, env=self.environment) as process:
            try:
                yield
            finally:
                process.terminate()

    def close(self) -> None:
        """End it; closing twice is harmless."""
        self._process.terminate()
        self._process.wait(START_S)
