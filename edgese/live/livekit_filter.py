"""A noise filter for LiveKit agents: what a participant says is enhanced before voice detection and recognition.

    from edgese.live.livekit_filter import EdgeseProcessor

    await session.start(
        room=room, agent=agent, room_input_options=RoomInputOptions(noise_cancellation=EdgeseProcessor(model="small"))
    )

Or with `livekit.rtc` alone: `rtc.AudioStream(track, noise_cancellation=EdgeseProcessor())`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgese.errors import install_command
from edgese.live.stream import Joined, StreamBatch
from runtimes.base import RuntimeUnavailable

try:
    from livekit import rtc
except ImportError as error:
    raise RuntimeUnavailable(f"livekit is missing: {install_command('livekit')}") from error


class EdgeseProcessor(rtc.FrameProcessor[rtc.AudioFrame]):
    """Processor for `noise_cancellation`; one for each audio stream.

    The network is opened here; a stream begins with the first frame, and anew when the rate, the channels or the track
    change. Frames come out as long as they came in, `latency_ms` of edgese.Stream later. It computes in the caller's
    thread, which is the event loop's: `runtime="native"` or `model="small"` keep that short.

    Args:
        options: as `edgese.Stream` has them: model, runtime, attenuation_limit_db, ...

    Raises: as `edgese.Stream`.
    """

    def __init__(self, **options: Any) -> None:
        self._batch = StreamBatch(**options)
        self._joined: Joined | None = None
        self._enabled = True

    @property
    def enabled(self) -> bool:
        """Whether frames are enhanced; LiveKit passes them by where it is False."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        if value and not self._enabled:
            self._begin_anew()
        self._enabled = value

    def _on_stream_info_updated(self, *, room_name: str, participant_identity: str, publication_sid: str) -> None:
        self._begin_anew()

    def _on_stream_info_cleared(self) -> None:
        self._begin_anew()

    def _process(self, frame: rtc.AudioFrame) -> rtc.AudioFrame:
        joined = self._joined
        if joined is None or (joined.sample_rate_hz, joined.channels) != (frame.sample_rate, frame.num_channels):
            self._begin_anew()
            joined = self._joined = self._batch.join(frame.sample_rate, frame.num_channels)
        samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
        enhanced = self._batch.process({joined: samples})[joined]
        return rtc.AudioFrame(
            enhanced.tobytes(),
            frame.sample_rate,
            frame.num_channels,
            frame.samples_per_channel,
            userdata=frame.userdata,
        )

    def _close(self) -> None:
        self._begin_anew()
        self._batch.close()

    def _begin_anew(self) -> None:
        if self._joined is not None:
            self._batch.drop(self._joined)
            self._joined = None
