"""Formats and samples of `edgese serve`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgese.errors import AudioError, ConfigError
from edgese.serve.protocol import StreamFormat, is_flush


def test_a_query_and_a_message_name_the_same_format() -> None:
    wanted = StreamFormat(48_000, 2, "float32")
    assert StreamFormat.from_query({"rate": "48000", "channels": "2", "format": "float32"}) == wanted
    assert StreamFormat.from_message('{"rate": 48000, "channels": 2, "format": "float32"}') == wanted
    assert StreamFormat.from_message("{}") == StreamFormat.from_query({}) == StreamFormat(16_000, 1, "int16")
    assert json.loads(wanted.ready(7)) == {
        "type": "ready", "rate": 48_000, "channels": 2, "format": "float32", "latency_samples": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"rate": "fast"}, "rate: found 'fast', wanted 4000 to 384000"),
        ({"rate": "16000.0"}, "rate: found '16000.0'"),
        ({"rate": "9" * 5000}, "rate: found '9999"),
        ({"channels": "0"}, "channels: found 0"),
        ({"format": "int24"}, "format: found 'int24', wanted int16 or float32"),
        ({"speed": "1"}, "'speed': unknown; wanted rate, channels, format"),
    ],
)
def test_a_query_that_cannot_be_is_refused(query: dict[str, str], found: str) -> None:
    with pytest.raises(ConfigError, match=found) as refused:
        StreamFormat.from_query(query)
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize(
    "message",
    [
        "",
        "[1]",
        "{",
        '{"rate": true}',
        '{"rate": null}',
        '{"rate": 1e9}',
        '{"format": ["int16"]}',
        '{"a": 1}',
        "[" * 9999,
    ],
)
def test_a_first_message_that_cannot_be_is_refused(message: str) -> None:
    with pytest.raises(ConfigError):
        StreamFormat.from_message(message)
    assert not is_flush(message)


def test_samples_go_there_and_back() -> None:
    for name, samples in (("int16", np.array([[1, -2], [3, 4]], np.int16)), ("float32", np.ones((3, 2), np.float32))):
        wanted = StreamFormat(channels=2, format=name)
        found = wanted.samples(wanted.message(samples))
        np.testing.assert_array_equal(found, samples)
        assert found.dtype == samples.dtype
    assert StreamFormat().samples(b"").shape == (0, 1)
    assert StreamFormat().message(np.array([258], np.int16)) == b"\x02\x01"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 101.0, 3e38])
def test_floats_that_are_no_sound_are_refused(value: float) -> None:
    wanted = StreamFormat(format="float32")
    with pytest.raises(AudioError, match="NaN, Inf or far too loud"):
        wanted.samples(np.array([0, value], np.float32).tobytes())
    with pytest.raises(AudioError, match="6 bytes, wanted whole samples of 4 bytes"):
        wanted.samples(b"123456")
