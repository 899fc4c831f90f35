"""Recording of what was heard beside what became of it, in one file: the channels before, then the channels after."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

import numpy as np

from edgese.atomic_file import shown
from edgese.audio import Samples
from edgese.audio.formats import AudioInfo
from edgese.audio.writer import AudioWriter
from edgese.errors import EdgeseError, OutputError

CONTAINERS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16")}


class Recorder:
    """Recorder that writes in a thread of its own. A context manager: the file is there when it ends, whole.

    Attributes:
        error: why it has stopped; None: it has not.

    Raises:
        OutputError, AudioError: the file cannot be.
    """

    def __init__(self, path: Path, rate_hz: int, channels: int, *, replace: bool = False) -> None:
        if path.exists() and not replace:
            raise OutputError(f"{shown(path)}: exists; choose another name, or --force to replace it")
        self._replace = replace
        container, subtype = CONTAINERS.get(path.suffix.lower(), CONTAINERS[".wav"])
        info = AudioInfo(rate_hz, 2 * channels, None, container, subtype)
        self._writer = AudioWriter(path, info)
        self._waiting: queue.SimpleQueue[Samples | None] = queue.SimpleQueue()
        self.error: EdgeseError | None = None
        self._thread = threading.Thread(target=self._write, name="edgese-recorder")
        self._thread.start()

    def __call__(self, before: Samples, after: Samples) -> None:
        """Take frames, aligned; it never waits for the disk."""
        if self.error is None:
            self._waiting.put(np.concatenate([before, after], axis=1))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        try:
            if self.error is None:
                self._writer.finish()
                self._writer.publish(replace=self._replace)
        finally:
            self._writer.close()

    def _write(self) -> None:
        while (frames := self._waiting.get()) is not None:
            try:
                if self.error is None:
                    self._writer.write(frames)
            except EdgeseError as error:
                self.error = error
