"""A noise filter for pipecat: what a transport hears is enhanced before voice detection and recognition.

from edgese.live.pipecat_filter import EdgeseFilter

params = TransportParams(audio_in_enabled=True, audio_in_filter=EdgeseFilter(model="small"))
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from edgese.errors import AudioError, install_command
from edgese.live.stream import Stream
from runtimes.base import RuntimeUnavailable

try:
    from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
    from pipecat.frames.frames import FilterControlFrame, FilterEnableFrame
except ImportError as error:
    raise RuntimeUnavailable(f"pipecat-ai is missing: {install_command('pipecat')}") from error


class EdgeseFilter(BaseAudioFilter):
    """Filter for `audio_in_filter` of a transport's parameters; one for each transport.

    What comes out is as long as what came in, `latency_ms` of edgese.Stream later. It computes in a thread, so that the
    event loop is free meanwhile. `FilterEnableFrame(enable=False)` lets sound pass as it is.

    Args:
        channels: `audio_in_channels` of the transport.
        options: as `edgese.Stream` has them: model, runtime, attenuation_limit_db, ...
    """

    def __init__(self, *, channels: int = 1, **options: Any) -> None:
        self._channels, self._options = channels, options
        self._stream: Stream | None = None
        self._enabled = True

    async def start(self, sample_rate: int) -> None:
        """Open the network for the transport's rate. Errors: as `edgese.Stream`."""
        await self.stop()
        self._stream = await asyncio.to_thread(Stream, sample_rate, self._channels, **self._options)

    async def stop(self) -> None:
        """Free the network."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    async def process_frame(self, frame: FilterControlFrame) -> None:
        """Switch on or off by a `FilterEnableFrame`."""
        if isinstance(frame, FilterEnableFrame):
            if frame.enable and not self._enabled and self._stream is not None:
                self._stream.reset()  # it would begin with what it held when it was switched off
            self._enabled = frame.enable

    async def filter(self, audio: bytes) -> bytes:
        """As many int16 samples, enhanced.

        Raises:
            AudioError: no whole samples.
        """
        if self._stream is None or not self._enabled or not audio:
            return audio
        if len(audio) % (2 * self._channels):
            raise AudioError(f"audio: {len(audio)} bytes, wanted whole int16 samples of {self._channels} channels")
        samples = np.frombuffer(audio, np.int16).reshape(-1, self._channels)
        enhanced = await asyncio.to_thread(self._stream.process, samples)
        return enhanced.tobytes()
