"""A headless Chromium, driven through its DevTools pipe: no driver and no package are needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_S = 120


class Browser:
    """A page of Chromium; a context manager.

    Args:
        folder: of its profile.
        microphone: a WAV file that it hears, over and over; without one the microphone is refused.
    """

    def __init__(self, folder: Path, microphone: Path | None = None) -> None:
        program = next(path for name in NAMES if (path := shutil.which(name)))
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
            "--autoplay-policy=no-user-gesture-required", "--no-first-run", "--disable-background-networking",
            f"--user-data-dir={folder}", "--use-fake-device-for-media-stream",
        ]  # fmt: skip
        if microphone:
            options += ["--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"]
        else:
            options += ["--deny-permission-prompts"]
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}', program, *options, "about:blank"],
            pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands)
        os.close(answers)
        self._buffer, self._last, self._session = b"", 0, ""
        self.messages: list[str] = []  # errors, warnings and what is logged
        self.requests: list[str] = []  # addresses that were asked for
        (target,) = (one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self._session = ""
            self("Browser.close")
        os.close(self._commands)
        os.close(self._answers)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __call__(self, method: str, **parameters: object) -> dict[str, Any]:
        """Answer to a command of the DevTools protocol."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE_S)
            piece = os.read(self._answers, 1 << 20) if ready else b""
            assert piece, "Chromium does not answer"
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _note(self, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(" ".join(str(value.get("value")) for value in about["args"]))
        elif method == "Log.entryAdded":
            self.messages.append(about["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])

    def open(self, address: str, width: int, height: int, *, phone: bool = False) -> None:
        """Load a page in a window of so many CSS pixels."""
        ratio = 2 if phone else 1
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=ratio, mobile=phone)
        self("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """Value of a JavaScript expression, a promise's when it is kept; as if the user had touched the page."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Return when a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE_S
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition} never came: {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def choose_file(self, selector: str, file: Path) -> None:
        root = self("DOM.getDocument")["root"]["nodeId"]
        node = self("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def fetched(self, selector: str) -> bytes:
        """What a link of the page leads to."""
        script = f"""fetch(document.querySelector({selector!r}).href).then((answer) => answer.arrayBuffer()).then(
            (all) => btoa(Array.from(new Uint8Array(all), (byte) => String.fromCharCode(byte)).join("")))"""
        return base64.b64decode(self.run(script))

    def picture(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"]))
