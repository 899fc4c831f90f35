"""Streams for programs: any rate, any number of channels, any block, NumPy in and out.

    import edgese

    stream = edgese.Stream(48_000)                   # rate of the samples; one channel
    for block in microphone:                         # (n,) float32 or int16, n as it comes
        loudspeaker.write(stream.process(block))     # as many samples, stream.latency_samples later
    loudspeaker.write(stream.flush())                # the rest

One stream is used by one thread at a time; several streams by as many threads. `StreamBatch` advances many streams, of
any rates, in one call, for servers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Samples, Wave
from edgese.audio.reader import MAX_CHANNELS, MAX_RATE_HZ, MIN_RATE_HZ
from edgese.enhance.signal_path import share_of_input
from edgese.errors import AudioError, ConfigError
from edgese.graphs.bundles import audio_config, bundle_path, choose_graph, open_verified
from edgese.graphs.opening import open_graph
from edgese.graphs.precision import Precision
from edgese.live.front import Front

if TYPE_CHECKING:
    from typing_extensions import Self

    from runtimes.base import Runtime
    from runtimes.base import Stream as RuntimeStream

NATIVE = "native"  # a runtime whose streams advance one by one, on as many threads as there are

Block = NDArray[Any]  # (n,) or (n, channels) of float32, float64 or int16


class _Opened:
    """A bundle's graph of one hop, open in a runtime; the settings that all streams of it share."""

    def __init__(
        self,
        model: str | Path | None,
        runtime: str,
        precision: str,
        pcs: bool,
        attenuation_limit_db: float | None,
        narrow: bool,
        threads: int = 1,
    ) -> None:
        limit = attenuation_limit_db
        if limit is not None and not (math.isfinite(limit) and limit >= 0):
            raise ConfigError(f"attenuation_limit_db: found {limit}, wanted 0 or more decibels, such as 12")
        try:
            wanted = Precision(precision)
        except ValueError as error:
            known = ", ".join(one.value for one in Precision)
            raise ConfigError(f"precision: found {precision!r}, wanted one of {known}") from error
        self.dry_gain = share_of_input(limit)
        self.narrow = narrow
        bundle = open_verified(bundle_path(None if model is None else Path(model)))
        self.config = audio_config(bundle)
        self.graph = choose_graph(bundle, block=1, precision=wanted, pcs=pcs)
        self._open = contextlib.ExitStack()
        self.runtime: Runtime = self._open.enter_context(open_graph(bundle, self.graph, runtime, threads=threads))

    def front(self, sample_rate_hz: int, channels: int) -> Front:
        if not isinstance(sample_rate_hz, int) or not MIN_RATE_HZ <= sample_rate_hz <= MAX_RATE_HZ:
            raise ConfigError(f"sample_rate_hz: found {sample_rate_hz!r}, wanted {MIN_RATE_HZ} to {MAX_RATE_HZ}")
        if not isinstance(channels, int) or not 1 <= channels <= MAX_CHANNELS:
            raise ConfigError(f"channels: found {channels!r}, wanted 1 to {MAX_CHANNELS}")
        return Front(sample_rate_hz, channels, self.config, self.dry_gain, self.narrow)

    def stream(self, channels: int) -> RuntimeStream:
        return self.runtime.stream(self.graph.states, streams=channels)

    def close(self) -> None:
        self._open.close()


class Stream:
    """Enhancer of one live stream. A context manager; closing it frees the network.

    What comes out equals `edgese enhance` of the same sound, `latency_samples` later, to 1e-5; only quiet sound is
    lifted later, as a live stream cannot look ahead (edgese/enhance/lift.py).

    Args:
        sample_rate_hz: of the samples that come in and go out, 4,000 to 384,000.
        channels: each is enhanced by itself.
        model: folder of a bundle, or the name of one that is shipped; None: the default.
        runtime: onnxruntime, native, openvino, ...: any that this machine has.
        precision: fp32, fp16 or int8; the bundle must have it.
        attenuation_limit_db: attenuate nothing by more than this; None: no limit.
        narrow: leave out what lies above the network's band.
        pcs: perceptual contrast stretching; the bundle must have it.

    Attributes:
        latency_samples: samples by which the output runs behind the input: the network's 32 ms, and at other rates
            than its own the resamplers' 7.

    Raises:
        ConfigError: an argument out of range.
        ExportError, VerificationError: no bundle, a damaged one, one without such a graph, one never verified.
        RuntimeUnavailable: the runtime is missing or cannot open the graph.
    """

    def __init__(
        self,
        sample_rate_hz: int,
        channels: int = 1,
        *,
        model: str | Path | None = None,
        runtime: str = "onnxruntime",
        precision: str = "fp32",
        attenuation_limit_db: float | None = None,
        narrow: bool = False,
        pcs: bool = False,
    ) -> None:
        self._opened = _Opened(model, runtime, precision, pcs, attenuation_limit_db, narrow)
        try:
            self._port = _Port(self._opened.front(sample_rate_hz, channels), channels)
            self._stream = self._opened.stream(channels)
        except BaseException:
            self._opened.close()
            raise
        self.sample_rate_hz, self.channels = sample_rate_hz, channels
        self.latency_samples = self._port.front.latency_samples

    @property
    def latency_ms(self) -> float:
        """`latency_samples` in milliseconds."""
        return 1000 * self.latency_samples / self.sample_rate_hz

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the network; closing twice is harmless."""
        self._opened.close()

    def process(self, samples: Block) -> Block:
        """As many samples as came in, of the same shape and type, enhanced, `latency_samples` later.

        Args:
            samples: (n,) for one channel, or (n, channels), of any n: float32 or float64 in [-1, 1], or int16.

        Raises:
            AudioError: another shape or type, NaN or Inf.
            RuntimeUnavailable: closed, or the runtime failed.
        """
        self._port.put(samples)
        self._advance()
        return self._port.take(samples)

    def flush(self) -> Block:
        """The last `latency_samples` samples, shaped and typed as the last block; then the stream begins anew.

        Raises:
            RuntimeUnavailable: closed, or the runtime failed.
        """
        self._port.front.end()
        self._advance()
        rest = self._port.finish()
        self.reset()
        return rest

    def reset(self) -> None:
        """Forget all sound, as if nothing had come in yet."""
        self._port.front.reset()
        self._stream.reset()

    def _advance(self) -> None:
        _advance(self._port.front, self._stream)


class StreamBatch:
    """Enhancer of many live streams that advance together; streams join and leave at any time. A context manager.

        batch = edgese.StreamBatch()
        call = batch.join(16_000)
        for blocks in arrivals:                      # {call: samples, ...}, of whoever has some
            answers = batch.process(blocks)          # {call: samples, ...}
        rest = batch.leave(call)

    Used by one thread at a time. Hops of all streams that have one go through the network in one call; the native
    runtime advances them on `threads` threads instead.

    Args:
        threads: that compute.
        Others and errors: as for `Stream`; they hold for all streams.
    """

    def __init__(
        self,
        *,
        model: str | Path | None = None,
        runtime: str = "onnxruntime",
        precision: str = "fp32",
        attenuation_limit_db: float | None = None,
        narrow: bool = False,
        pcs: bool = False,
        threads: int = 1,
    ) -> None:
        if not isinstance(threads, int) or not 1 <= threads <= 1024:
            raise ConfigError(f"threads: found {threads!r}, wanted 1 to 1024")
        self._opened = _Opened(model, runtime, precision, pcs, attenuation_limit_db, narrow, threads)
        self._rows = None if self._opened.runtime.name == NATIVE else _Rows(self._opened)
        self._threads = threads
        more = self._rows is None and threads > 1  # beside the caller's thread
        self._pool = ThreadPoolExecutor(threads - 1, "edgese-batch") if more else None
        self._joined: dict[Joined, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the network and end all streams; closing twice is harmless."""
        self._joined.clear()
        if self._pool is not None:
            self._pool.shutdown()
        self._opened.close()

    def __len__(self) -> int:
        """Streams that have joined and not left."""
        return len(self._joined)

    def join(self, sample_rate_hz: int, channels: int = 1) -> Joined:
        """A new stream of this rate and number of channels.

        Raises:
            ConfigError: a rate or number out of range.
            RuntimeUnavailable: closed, or no memory for it.
        """
        port = _Port(self._opened.front(sample_rate_hz, channels), channels)
        stream = self._opened.stream(channels) if self._rows is None else self._rows.add(channels)
        joined = Joined(port, stream, sample_rate_hz, channels)
        self._joined[joined] = None
        return joined

    def process(self, blocks: Mapping[Joined, Block]) -> dict[Joined, Block]:
        """For each stream's samples as many, as `Stream.process` gives them; a block that is refused disturbs nobody.

        Raises:
            AudioError: a block of another shape or type, NaN or Inf; nothing was taken of any.
            FailedStreamsError: the network gave NaN or Inf for some; it holds the answers of the others.
            ConfigError: a stream that has left, or is another batch's.
            RuntimeUnavailable: closed, or the runtime failed.
        """
        for joined, samples in blocks.items():
            self._require_joined(joined)
            joined.port.require(samples)
        for joined, samples in blocks.items():
            joined.port.put(samples)
        self._advance(list(blocks))
        answers: dict[Joined, Block] = {}
        failed: dict[Joined, AudioError] = {}
        for joined, samples in blocks.items():
            try:
                answers[joined] = joined.port.take(samples)
            except AudioError as error:
                failed[joined] = error
        if failed:
            raise FailedStreamsError(answers, failed)
        return answers

    def leave(self, joined: Joined) -> Block:
        """The last `latency_samples` samples of a stream, which is then gone.

        Raises: as `process`.
        """
        self._require_joined(joined)
        joined.port.front.end()
        self._advance([joined])
        self.drop(joined)
        return joined.port.finish()

    def drop(self, joined: Joined) -> None:
        """Remove a stream whose rest nobody wants; one that has left is left so."""
        if joined in self._joined:
            del self._joined[joined]
            if self._rows is not None:
                self._rows.remove(joined.stream)

    def _require_joined(self, joined: Joined) -> None:
        if joined not in self._joined:
            raise ConfigError("stream: it has left, or is another batch's; wanted one that join() of this batch gave")

    def _advance(self, streams: list[Joined]) -> None:
        if self._rows is None:
            n_shares = min(self._threads, len(streams))
            own, *others = (streams[first::n_shares] for first in range(n_shares)) if streams else ([],)
            elsewhere = [self._pool.submit(_advance_alone, share) for share in others] if self._pool else []
            try:
                _advance_alone(own)
            finally:
                wait(elsewhere)
            for share in elsewhere:
                share.result()
            return
        while ready := [joined for joined in streams if joined.port.front.n_hops]:
            hops = [joined.port.front.take_hop() for joined in ready]
            enhanced = self._rows.step(np.concatenate([joined.stream for joined in ready]), np.concatenate(hops))
            ends = np.cumsum([len(hop) for hop in hops])[:-1]
            for joined, part in zip(ready, np.split(enhanced, ends), strict=True):
                joined.port.front.put_hop(part)


class Joined:
    """A stream of a `StreamBatch`.

    Attributes:
        sample_rate_hz, channels: of its samples.
        latency_samples: samples by which its output runs behind its input.
    """

    def __init__(self, port: _Port, stream: Any, sample_rate_hz: int, channels: int) -> None:
        self.port, self.stream = port, stream
        self.sample_rate_hz, self.channels = sample_rate_hz, channels
        self.latency_samples = port.front.latency_samples


class FailedStreamsError(AudioError):
    """Some streams of a batch gave NaN or Inf: they are of no more use, the others are as they should be.

    Attributes:
        answers: of the others, as `StreamBatch.process` gives them.
        failed: stream -> its error.
    """

    def __init__(self, answers: dict[Joined, Block], failed: dict[Joined, AudioError]) -> None:
        super().__init__(f"{len(failed)} of {len(answers) + len(failed)} streams: {next(iter(failed.values()))}")
        self.answers, self.failed = answers, failed


def _advance(front: Front, stream: RuntimeStream) -> None:
    """Take all hops that wait through the network."""
    while front.n_hops:
        front.put_hop(stream({"wave": front.take_hop()})["enhanced"])


def _advance_alone(streams: list[Joined]) -> None:
    for joined in streams:
        _advance(joined.port.front, joined.stream)


class _Rows:
    """States of all streams of a batch, a row for each channel, beside the runtime."""

    def __init__(self, opened: _Opened) -> None:
        self._opened = opened
        self._states: dict[str, NDArray[Any]] = {}
        self._free: list[int] = []
        self._n_rows = 0

    def add(self, channels: int) -> NDArray[np.int64]:
        """Numbers of new rows, their states zero."""
        if len(self._free) < channels:
            self._grow(max(2 * self._n_rows, self._n_rows + channels))
        rows = np.array([self._free.pop() for _ in range(channels)])
        for states in self._states.values():
            states[rows] = 0
        return rows

    def remove(self, rows: NDArray[np.int64]) -> None:
        self._free.extend(rows.tolist())

    def step(self, rows: NDArray[np.int64], wave: Wave) -> Wave:
        """The network's answer to one hop of each of these rows, (rows, hop)."""
        graph, runtime = self._opened.graph, self._opened.runtime
        feeds = {name: states[rows] for name, states in self._states.items()}
        results = runtime.run({"wave": wave, **feeds})
        for name, successor in graph.states.items():
            self._states[name][rows] = results[successor]
        enhanced: Wave = results["enhanced"]
        return enhanced

    def _grow(self, n_rows: int) -> None:
        zeros = self._opened.runtime.stream(self._opened.graph.states, streams=n_rows).states
        for name, states in self._states.items():
            zeros[name][: len(states)] = states
        self._states = zeros
        self._free.extend(reversed(range(self._n_rows, n_rows)))
        self._n_rows = n_rows


class _Port:
    """Border of one stream: shapes and types of the user's arrays, the signal path in float32 (n, channels)."""

    def __init__(self, front: Front, channels: int) -> None:
        self.front, self._channels = front, channels
        self._like: Block = np.zeros(0, np.float32) if channels == 1 else np.zeros((0, channels), np.float32)

    def require(self, samples: Block) -> None:
        """Raise AudioError unless this is a block of this stream."""
        shapes = f"(n, {self._channels})" if self._channels > 1 else "(n,) or (n, 1)"
        if not isinstance(samples, np.ndarray):
            raise AudioError(
                f"samples: found {type(samples).__name__}, wanted a NumPy array {shapes} of float32 or int16"
            )
        if samples.dtype not in (np.float32, np.float64, np.int16):
            raise AudioError(
                f"samples: found {samples.dtype}, wanted float32, float64 or int16: convert them with astype"
            )
        fits = samples.shape[1:] == (self._channels,) or (samples.ndim == 1 and self._channels == 1)
        if not fits:
            raise AudioError(f"samples: found shape {samples.shape}, wanted {shapes}")
        if samples.dtype != np.int16 and not np.isfinite(samples).all():
            raise AudioError("samples: found NaN or Inf, wanted samples in [-1, 1]")

    def put(self, samples: Block) -> None:
        self.require(samples)
        self._like = samples[:0]
        scale = 1 / 32768 if samples.dtype == np.int16 else 1
        block: Samples = (samples.reshape(-1, self._channels) * np.float32(scale)).astype(np.float32)
        if len(block):
            self.front.feed(block)

    def take(self, samples: Block) -> Block:
        """The next output, as many samples as these and like them."""
        return self._as(self.front.take(len(samples)))

    def finish(self) -> Block:
        """The rest, like the last block, when the network has answered the end."""
        self.front.finish()
        return self._as(self.front.take(self.front.latency_samples))

    def _as(self, block: Samples) -> Block:
        if not np.isfinite(block).all():
            raise AudioError("the network gave NaN or Inf: lower the level of the samples, wanted in [-1, 1]")
        shaped = block.reshape(-1, *self._like.shape[1:])
        if self._like.dtype == np.int16:
            return np.clip(np.rint(shaped * 32768), -32768, 32767).astype(np.int16)
        return shaped.astype(self._like.dtype)
