"""The page: built with emscripten, used in a headless Chromium, its samples against the C library's."""

from __future__ import annotations

import ctypes
import functools
import http.server
import io
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.audio import Samples, Wave
from edgese.export_bundle import export_c
from edgese.metrics.difference import snr_db
from edgese.model.enhancer import WaveformEnhancer
from edgese.native import build

from ..edgese.helpers.live import Live, live_library
from ..edgese.helpers.tiny_bundle import ONE_NETWORK
from .browser import NAMES, Browser

SOURCE = Path(__file__).parents[2] / "plugins" / "web"
SAMPLE = Path(__file__).parents[2] / "edgese" / "samples" / "noisy.flac"
WIDTHS = (320, 390, 1280)

pytestmark = [
    ONE_NETWORK,
    pytest.mark.slow,
    pytest.mark.required,
    pytest.mark.skipif(
        not (all(map(shutil.which, ("cc", "make", "emcc"))) and any(map(shutil.which, NAMES))),
        reason="needs apt-get install gcc make emscripten chromium",
    ),
]

_built: list[Path] = []


@pytest.fixture
def page(tiny_enhancer: WaveformEnhancer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the page, built as its Makefile says; the C project lies beside it, in c/."""
    if not _built:
        folder = tmp_path_factory.mktemp("page") / "web"
        shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("site", "build"))
        export_c(tiny_enhancer, folder / "c", name="tiny")
        command = ["make", "C=c", f"SAMPLE={SAMPLE}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        _built.append(folder / "site")
    return _built[0]


@pytest.fixture
def live(page: Path, tmp_path: Path) -> Callable[[int, int], Live]:
    """What the page is to do: `edgese_live` with the same weights, at a rate, with so many channels."""
    c = live_library(tmp_path, build.library())
    c.edgese_open.restype = ctypes.c_void_p
    weights = c.edgese_open(str(page.with_name("c") / "model.edgese").encode(), None)
    return lambda rate_hz, channels: Live(c, rate_hz, channels, weights)


@pytest.fixture
def server(page: Path) -> Iterator[str]:
    """Address of the page on a server that knows nothing but files."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(page))) as one:
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        yield f"http://localhost:{one.server_port}/index.html"
        one.shutdown()
        thread.join()


def downloaded(browser: Browser, selector: str) -> tuple[Samples, int]:
    """(channels, n) of a recording that the page offers, and its rate."""
    wave, rate_hz = soundfile.read(io.BytesIO(browser.fetched(selector)), dtype="float32", always_2d=True)
    return wave.T, rate_hz


def brightness(browser: Browser, canvas: str) -> float:
    """Mean brightness of a picture on the page, 0 to 255, where it was drawn."""
    script = f"""(() => {{ const shown = document.getElementById({canvas!r});
        const copy = new OffscreenCanvas(shown.width, shown.height).getContext("2d", {{ willReadFrequently: true }});
        copy.drawImage(shown, 0, 0);
        const all = copy.getImageData(0, 0, shown.width, shown.height).data;
        return all.reduce((sum, value, i) => sum + (i % 4 < 3 ? value : 0), 0) / all.length * 4 / 3; }})()"""
    return float(browser.run(script))


def test_a_recording_is_enhanced_from_the_disk_without_a_request(
    page: Path, live: Callable[[int, int], Live], speech_like: Callable[..., Wave], tmp_path: Path
) -> None:
    rate_hz = 48_000
    wave = np.stack([speech_like(60_000, seed, rate_hz) for seed in (1, 2)])
    wave += np.random.default_rng(0).normal(0, 0.01, wave.shape).astype(np.float32)
    soundfile.write(tmp_path / "speech.wav", wave.T, rate_hz, "FLOAT")
    heard = soundfile.read(tmp_path / "speech.wav", dtype="float32")[0].T
    (tmp_path / "broken.wav").write_bytes(b"RIFF, it says")
    with Browser(tmp_path / "profile") as browser:
        browser.open((page / "index.html").as_uri(), 1280, 900)
        browser.choose_file("#file", tmp_path / "speech.wav")
        browser.wait("!document.getElementById('download').hidden")
        out, found_hz = downloaded(browser, "#download")
        assert browser.run("document.getElementById('download').download") == "speech enhanced.wav"
        pictures = [brightness(browser, side) for side in ("before", "after")]
        assert min(pictures) > 40  # an empty one has 13
        assert pictures[0] != pictures[1]

        browser.run("document.getElementById('play').click()")
        browser.wait("+document.getElementById('place').value > 0.2")
        browser.run("document.querySelector('[value=before]').click()")
        browser.wait("document.getElementById('play').ariaLabel === 'Play'")  # it ended

        limit = "const slider = document.getElementById('limit'); slider.value = 6; "
        browser.run(f"{{{limit} slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change'));}}")
        browser.wait("!document.getElementById('download').hidden")
        limited, _ = downloaded(browser, "#download")

        browser.choose_file("#file", tmp_path / "broken.wav")
        browser.wait("document.getElementById('status').classList.contains('wrong')")
        assert browser.run("document.getElementById('status').innerText").startswith("broken.wav: this browser cannot")
        browser.run("document.getElementById('microphone').click()")
        browser.wait("document.getElementById('status').innerText.startsWith('Microphone: this page may not use it')")
        requests, messages = browser.requests, browser.messages
    assert messages == []
    assert {address.partition(":")[0] for address in requests} == {"file", "blob"}
    assert found_hz == rate_hz
    assert out.shape == wave.shape
    for found, limit_db in ((out, 100.0), (limited, 6.0)):
        native = live(rate_hz, 2)
        wanted = native(np.pad(heard, ((0, 0), (0, native.latency))), limit_db=limit_db)[:, native.latency :]
        np.testing.assert_allclose(found, np.clip(wanted, -1, 1), atol=1.1 / 32768)


def test_a_microphone_is_enhanced_and_recorded(
    server: str, live: Callable[[int, int], Live], speech_like: Callable[..., Wave], tmp_path: Path
) -> None:
    played = speech_like(48_000 * 3, seed=5, sample_rate_hz=48_000)
    soundfile.write(tmp_path / "microphone.wav", played, 48_000, "PCM_16")
    with Browser(tmp_path / "profile", tmp_path / "microphone.wav") as browser:
        browser.open(server, 390, 844, phone=True)
        browser.run("document.getElementById('microphone').click()")
        browser.wait("document.getElementById('time').innerText === '0:02'")
        load = browser.run("document.getElementById('load').value")
        moving = [brightness(browser, "after")]
        browser.wait("document.getElementById('time').innerText === '0:03'")
        moving.append(brightness(browser, "after"))
        browser.run("document.getElementById('microphone').click()")
        browser.wait("!document.getElementById('original').hidden")
        (before,), rate_hz = downloaded(browser, "#original")
        (after,), _ = downloaded(browser, "#download")
        requests, messages = browser.requests, browser.messages
    assert messages == []
    assert 0 < load < 1
    assert moving[0] != moving[1]
    own = server.removesuffix("index.html")
    assert all(address.startswith((own, "data:", "blob:")) for address in requests)
    assert len(before) == len(after) > 2 * rate_hz
    assert np.abs(before).max() > 0.1
    native = live(rate_hz, 1)
    wanted = native(before[None])[0, native.latency :]
    found_db = snr_db(np.clip(wanted, -1, 1), after[: len(wanted)])
    assert found_db > 50  # measured: 61 to 64; what is downloaded has 16 bits


def test_it_fits_a_phone_and_names_all_that_can_be_touched(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        for width in WIDTHS:
            browser.open((page / "index.html").as_uri(), width, 800, phone=width < 1000)
            browser.run("document.getElementById('sample').click()")
            browser.wait("!document.getElementById('download').hidden")
            page_wide = "document.documentElement.scrollWidth === document.documentElement.clientWidth"
            assert browser.run(page_wide)
            small = """[...document.querySelectorAll("button, .drop, .button, .switch label")].filter((one) =>
                one.offsetParent && one.getBoundingClientRect().height < 40).map((one) => one.outerHTML)"""
            assert browser.run(small) == []
        nodes = browser("Accessibility.getFullAXTree")["nodes"]
        named = {
            (node["role"]["value"], node["name"]["value"])
            for node in nodes
            if any(one["name"] == "focusable" and one["value"]["value"] for one in node.get("properties", []))
        }
        assert ("", "") not in named
        assert all(name for role, name in named if role != "RootWebArea")
        assert {"button", "radio", "slider", "link"} <= {role for role, _ in named}
        assert browser.messages == []
