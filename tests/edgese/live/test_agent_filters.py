"""Filters for pipecat and LiveKit agents, on the base classes of the real packages.

Neither is among the packages for development (pipecat-ai brings a hundred others): install them to run these tests.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgese
from edgese.errors import AudioError


def noise(n: int, channels: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.random.default_rng(0).normal(0, 3000, (n, channels)).astype(np.int16)


def streamed(bundle: Path, wave: Any, rate_hz: int) -> Any:
    """What the filters are to give, block lengths being of no matter."""
    with edgese.Stream(rate_hz, wave.shape[1], model=bundle) as stream:
        return stream.process(wave)


# pipecat


def test_pipecat_hears_what_a_stream_gives(halving_bundle: Path) -> None:
    base = pytest.importorskip("pipecat.audio.filters.base_audio_filter", reason="needs pipecat-ai (extra pipecat)")
    from pipecat.frames.frames import FilterEnableFrame

    from edgese.live.pipecat_filter import EdgeseFilter

    wave, wanted = noise(4000, 2), streamed(halving_bundle, noise(4000, 2), 24_000)

    async def scenario() -> None:
        found = EdgeseFilter(channels=2, model=halving_bundle)
        assert isinstance(found, base.BaseAudioFilter)
        assert await found.filter(wave.tobytes()) == wave.tobytes()  # not started: as pipecat's own
        await found.start(24_000)
        for _ in range(2):
            parts = [await found.filter(block.tobytes()) for block in np.array_split(wave, 9)]
            assert [len(part) for part in parts] == [4 * len(block) for block in np.array_split(wave, 9)]
            np.testing.assert_array_equal(np.frombuffer(b"".join(parts), np.int16).reshape(-1, 2), wanted)
            with pytest.raises(AudioError, match="3 bytes, wanted whole int16 samples of 2 channels"):
                await found.filter(b"123")
            await found.process_frame(FilterEnableFrame(enable=False))
            assert await found.filter(wave.tobytes()) == wave.tobytes()
            await found.process_frame(FilterEnableFrame(enable=True))  # anew, from silence
        await found.stop()
        await found.stop()

    asyncio.run(scenario())


def test_a_pipecat_transport_takes_the_filter(halving_bundle: Path) -> None:
    pytest.importorskip("pipecat", reason="needs pipecat-ai (extra pipecat)")
    from pipecat.transports.base_transport import TransportParams

    from edgese.live.pipecat_filter import EdgeseFilter

    found = EdgeseFilter(model=halving_bundle)
    assert TransportParams(audio_in_enabled=True, audio_in_filter=found).audio_in_filter is found


# LiveKit


def test_livekit_hears_what_a_stream_gives(halving_bundle: Path) -> None:
    rtc = pytest.importorskip("livekit.rtc", reason="needs livekit (extra livekit)")

    from edgese.live.livekit_filter import EdgeseProcessor

    def frames(wave: Any, rate_hz: int) -> list[Any]:
        blocks = np.array_split(wave, 9)
        return [rtc.AudioFrame(b.tobytes(), rate_hz, b.shape[1], len(b), userdata={"at": 1}) for b in blocks]

    processor = EdgeseProcessor(model=halving_bundle)
    assert isinstance(processor, rtc.FrameProcessor)
    assert processor.enabled
    for rate_hz, channels in ((48_000, 1), (24_000, 2)):  # another track
        wave = noise(4000, channels)
        wanted = streamed(halving_bundle, wave, rate_hz)
        for _ in range(2):
            found = [processor._process(frame) for frame in frames(wave, rate_hz)]
            for got, frame in zip(found, frames(wave, rate_hz), strict=True):
                assert (got.samples_per_channel, got.num_channels, got.sample_rate, got.userdata) == (
                    frame.samples_per_channel, channels, rate_hz, {"at": 1},
                )  # fmt: skip
            whole = np.concatenate([np.frombuffer(frame.data, np.int16) for frame in found]).reshape(-1, channels)
            np.testing.assert_array_equal(whole, wanted)
            processor._on_stream_info_updated(room_name="r", participant_identity="p", publication_sid="s")
    processor.enabled = False
    assert not processor.enabled
    processor._close()
    processor._close()


@pytest.mark.parametrize("name", ["pipecat", "livekit"])
def test_without_the_package_the_command_that_installs_it_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    from runtimes.base import RuntimeUnavailable

    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"edgese.live.{name}_filter", raising=False)
    with pytest.raises(RuntimeUnavailable, match=rf"is missing: .*\[{name}\]"):
        importlib.import_module(f"edgese.live.{name}_filter")
