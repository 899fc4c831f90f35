"""Speech enhancement from training to real time on an edge device. Importing this package loads nothing heavy.

stream = edgese.Stream(48_000)      # see edgese/live/stream.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgese.live.stream import Stream, StreamBatch

__version__ = "0.1.0"
__all__ = ("Stream", "StreamBatch", "__version__")


def __getattr__(name: str) -> Any:
    if name in ("Stream", "StreamBatch"):
        from edgese.live import stream

        return getattr(stream, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
