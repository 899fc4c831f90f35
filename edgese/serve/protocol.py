"""What client and server say to each other: the stream that is wanted, samples as bytes, answers.

client                                            server
ws://HOST:PORT/?rate=48000&format=float32
or, as first message, {"rate": 48000, ...}        {"type": "ready", "rate": 48000, ..., "latency_samples": 1867}
bytes: little-endian samples, channels in turn    bytes: as many, enhanced, latency_samples later
{"type": "flush"}                                 bytes: the last latency_samples; {"type": "flushed"}
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio.reader import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ
from edgese.errors import AudioError, ConfigError

FLUSH, FLUSHED = {"type": "flush"}, json.dumps({"type": "flushed"})
TYPES: dict[str, np.dtype[Any]] = {"int16": np.dtype("<i2"), "float32": np.dtype("<f4")}
LOUDEST = 100.0  # 40 dB above full scale: no sound, but integers or bytes read as floats
_KEYS = ("rate", "channels", "format")


@dataclasses.dataclass(frozen=True)
class StreamFormat:
    """Samples of one stream.

    Raises:
        ConfigError: a value out of range.
    """

    rate: int = 16_000
    channels: int = 1
    format: str = "int16"

    def __post_init__(self) -> None:
        for name, least, most in (("rate", MIN_RATE_HZ, MAX_RATE_HZ), ("channels", 1, MAX_CHANNELS)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"{name}: found {_shown(value)}, wanted {least} to {most}")
        if self.format not in tuple(TYPES):  # a list is in no dict
            raise ConfigError(f"format: found {_shown(self.format)}, wanted {' or '.join(TYPES)}")

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> StreamFormat:
        """The format that a query names, defaults where it is silent.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        numbers = {key: int(value) for key, value in query.items() if value.isdecimal() and len(value) < 9}
        return cls._from({**query, **numbers})

    @classmethod
    def from_message(cls, message: str) -> StreamFormat:
        """The format that a first message names, as JSON.

        Raises:
            ConfigError: no JSON object, an unknown key, or a value out of range.
        """
        try:
            found = json.loads(message)
        except (ValueError, RecursionError) as error:
            raise ConfigError('first message: not JSON; wanted such as {"rate": 48000}, or samples') from error
        if not isinstance(found, dict):
            raise ConfigError('first message: not a JSON object; wanted such as {"rate": 48000}, or samples')
        return cls._from(found)

    @classmethod
    def _from(cls, found: Mapping[str, Any]) -> StreamFormat:
        unknown = sorted(set(found) - set(_KEYS))
        if unknown:
            raise ConfigError(f"{_shown(unknown[0])}: unknown; wanted {', '.join(_KEYS)}")
        return cls(**found)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of all channels."""
        return TYPES[self.format].itemsize * self.channels

    def samples(self, message: bytes) -> NDArray[Any]:
        """A message's samples, (n, channels) float32 or int16.

        Raises:
            AudioError: no whole number of samples, NaN, Inf, or far beyond [-1, 1].
        """
        if len(message) % self.frame_bytes:
            raise AudioError(f"message: {len(message)} bytes, wanted whole samples of {self.frame_bytes} bytes")
        samples = np.frombuffer(message, TYPES[self.format]).reshape(-1, self.channels)
        if self.format == "float32" and not (np.abs(samples) <= LOUDEST).all():  # NaN is not <= either
            raise AudioError("message: NaN, Inf or far too loud, wanted little-endian float32 in [-1, 1]")
        return samples.astype(samples.dtype.newbyteorder("="), copy=False)

    def message(self, samples: NDArray[Any]) -> bytes:
        """Samples as a message."""
        return samples.astype(TYPES[self.format], copy=False).tobytes()

    def ready(self, latency_samples: int) -> str:
        """The server's first message."""
        return json.dumps({"type": "ready", **dataclasses.asdict(self), "latency_samples": latency_samples})


def is_flush(message: str) -> bool:
    """Whether a text message asks for the rest of the sound."""
    try:
        return bool(json.loads(message) == FLUSH)
    except (ValueError, RecursionError):
        return False


def _shown(value: object) -> str:
    """A value of a client's in a message, the beginning of it where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
