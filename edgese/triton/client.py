"""Streams of sound on a Triton server that has our models (repository.py): gRPC, one sequence of requests a stream.

    with Server("localhost:8001") as server:
        stream = TritonStream(server, server.choose(block=1), deadline_s=0.008)
        while microphone: play(stream.process(samples))
        play(stream.flush())

The states live in the server. When it is started anew, or forgets a stream that sent nothing for long, they are gone:
that is an error (`SequenceLost`), never a new beginning in the middle of somebody's speech; `reset` begins anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from edgese.audio import Samples, Wave
from edgese.config import AudioConfig, from_dict
from edgese.enhance.signal_path import RESAMPLER_TAIL
from edgese.errors import AudioError, ConfigError, EdgeseError, install_command
from edgese.graphs.precision import Precision
from edgese.graphs.streaming import aligned_blocks
from edgese.triton.repository import PREFIX
from export.bundle import Graph
from export.manifest import MOST_BLOCK
from runtimes.base import Arrays
from runtimes.tensor_spec import TensorSpec

try:
    import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException
except ImportError as error:
    raise EdgeseError(f"tritonclient is missing ({error}): {install_command('triton')}") from error

if TYPE_CHECKING:
    from typing_extensions import Self

TIMEOUT_S = 60.0  # for one request of a recording
_OPEN_S = 10.0  # for the first answers
_LOST = "must specify the START flag"  # Enqueue in core/src/sequence_batch_scheduler.cc


class ServerError(AudioError):
    """A recording or stream that a server did not enhance."""


class SequenceLost(ServerError):  # noqa: N818 - it says what the user meets
    """A stream whose states the server no longer has."""


class DeadlineMissed(ServerError):  # noqa: N818
    """A block that the server did not give back in time; the stream may go on with the next."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One of our models on a server, by what its configuration says."""

    name: str
    bundle: str
    graph: Graph  # what goes over the line: `wave` in, `enhanced` out
    audio: AudioConfig
    overlap_samples: int  # by which the output runs behind the input
    trained: bool
    idle_s: float  # after which the server forgets a stream that sends nothing


class Server:
    """A connection to a server. A context manager.

    Args:
        address: `host:port`, or `grpc://host:port`, or `grpcs://host:port` with TLS.

    Raises:
        ServerError: nothing answers there, or no Triton that is ready.
        ConfigError: it is no such address.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address if "://" in address else f"grpc://{address}")
        try:
            port = parts.port or 8001
        except ValueError:
            port = 0
        if parts.scheme not in ("grpc", "grpcs") or not parts.hostname or not port or parts.path.strip("/"):
            raise ConfigError(f"--server {address}: found no host and port of gRPC, wanted one such as localhost:8001")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.address = f"{host}:{port}"
        self._client: Any = triton.InferenceServerClient(self.address, ssl=parts.scheme == "grpcs")
        try:
            with _named(self.address):
                ready = self._client.is_server_ready(client_timeout=_OPEN_S)
            if not ready:
                raise ServerError(
                    f"{self.address}: a Triton that is not ready; see to its log, some model did not load"
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; closing twice is harmless."""
        self._client.close()

    def models(self) -> list[Model]:
        """The models of ours that are ready there.

        Raises:
            ServerError: the server does not answer, or a model's configuration is damaged.
        """
        with _named(self.address):
            index = self._client.get_model_repository_index(client_timeout=_OPEN_S)
            ready = [entry.name for entry in index.models if entry.state == "READY"]
            configs = [self._client.get_model_config(name, client_timeout=_OPEN_S).config for name in ready]
        return [_model(self.address, config) for config in configs if f"{PREFIX}bundle" in config.parameters]

    def choose(
        self,
        bundle: str | None = None,
        *,
        block: int | None = None,
        precision: Precision = Precision.FP32,
        pcs: bool = False,
    ) -> Model:
        """The model that enhances with these options; for block, precision and pcs, see `Denoiser`.

        Args:
            bundle: its name; None: the only one there.

        Raises:
            ServerError: there is none, or there are several.
        """
        models = self.models()
        wanted = (precision.value, "pcs" if pcs else "")
        fit = [
            model
            for model in models
            if (model.graph.precision, model.graph.variant) == wanted
            and model.bundle == (bundle or model.bundle)
            and model.graph.block == (block or model.graph.block)
        ]
        offered = ", ".join(model.name for model in models) or "none of ours"
        if not fit:
            raise ServerError(
                f"{self.address}: has no such model; it has {offered}: see to --model, --block, --precision"
            )
        if len({model.bundle for model in fit}) > 1:
            raise ServerError(f"{self.address}: has several bundles ({offered}): name one with --model")
        return max(fit, key=lambda model: (model.graph.block, model.name))

    def infer(self, model: Model, wave: Wave, timeout_s: float, *, sequence: int, start: bool, end: bool) -> Wave:
        """`enhanced` for one call's `wave`, both (1, n_samples) float32."""
        tensor = triton.InferInput("wave", wave.shape, "FP32")
        tensor.set_data_from_numpy(np.ascontiguousarray(wave, np.float32))
        output = [triton.InferRequestedOutput("enhanced")]
        flags = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end}
        with _named(f"{self.address}: {model.name}", model, timeout_s):
            result = self._client.infer(model.name, [tensor], outputs=output, client_timeout=timeout_s, **flags)
        enhanced: Wave | None = result.as_numpy("enhanced")
        if enhanced is None or enhanced.shape != wave.shape or enhanced.dtype != np.float32:
            found = "nothing" if enhanced is None else f"{enhanced.dtype} of {enhanced.shape}"
            raise ServerError(f"{self.address}: {model.name}: found {found}, wanted float32 of {wave.shape}")
        return enhanced


class Sequence:
    """Calls in sequence whose states the server keeps, from zero at the first.

    A call that fails leaves it unknown whether the server has taken it in.
    """

    def __init__(self, server: Server, model: Model, timeout_s: float) -> None:
        self._server, self._model, self._timeout_s = server, model, timeout_s
        self.shape = (1, model.graph.block * model.audio.hop)
        self._id, self.is_open = secrets.randbits(63) | 1, False

    def __call__(self, wave: Wave, *, end: bool = False) -> Wave:
        """The enhanced wave, (1, n_samples); with `end`, the server forgets the sequence after this call."""
        start, self.is_open = not self.is_open, True
        enhanced = self._server.infer(self._model, wave, self._timeout_s, sequence=self._id, start=start, end=end)
        self.is_open = not end
        return enhanced

    def close(self) -> None:
        """Give the place on the server free; one that cannot be reached frees it by itself."""
        if self.is_open:
            with contextlib.suppress(ServerError):
                self(np.zeros(self.shape, np.float32), end=True)
        self._id, self.is_open = secrets.randbits(63) | 1, False


class TritonStream:
    """A stream of sound at the network's rate on a server, with the interface of `edgese.Stream`.

    Opening one sends a call of silence before, so that the server's first work delays no sound.

    Args:
        deadline_s: the longest that a call may take; where it does, its sound is lost (`DeadlineMissed`).
    """

    def __init__(self, server: Server, model: Model, *, deadline_s: float = TIMEOUT_S) -> None:
        warm = Sequence(server, model, TIMEOUT_S)
        warm(np.zeros(warm.shape, np.float32), end=True)
        self._sequence = Sequence(server, model, deadline_s)
        self._size = self._sequence.shape[1]
        # Samples from one's arrival to its coming out: the overlap, and the rest of the block that is gathered first.
        self.latency_samples = model.overlap_samples + self._size - 1
        self._waiting, self._done = self._silence(0), self._silence(self._size - 1)

    def process(self, samples: Wave) -> Wave:
        """As many enhanced samples as came in, (n,) float32, `latency_samples` later.

        Raises:
            DeadlineMissed: a block came too late, the sound of this call is lost; the next goes on with what follows.
            SequenceLost: the server has lost the states; `reset` begins anew.
            ServerError: the server failed, or cannot be reached.
        """
        waiting = np.concatenate([self._waiting, samples.astype(np.float32, copy=False)])
        n_whole = len(waiting) - len(waiting) % self._size
        self._waiting, enhanced = waiting[n_whole:], self._silence(n_whole)
        try:
            for at in range(0, n_whole, self._size):
                enhanced[at : at + self._size] = self._sequence(waiting[None, at : at + self._size])[0]
        finally:  # as many samples have passed as came in, also in a call that fails
            done = np.concatenate([self._done, enhanced])
            given, self._done = done[: len(samples)], done[len(samples) :]
        return given

    def flush(self) -> Wave:
        """The `latency_samples` samples that are still inside, driven out by silence; the stream then begins anew.

        Raises: as `process`.
        """
        rest = self.process(self._silence(self.latency_samples))
        self.reset()
        return rest

    def reset(self) -> None:
        """Begin anew with the next samples, from zero states."""
        self._sequence.close()
        self._waiting, self._done = self._silence(0), self._silence(self._size - 1)

    @staticmethod
    def _silence(n_samples: int) -> Wave:
        return np.zeros(n_samples, np.float32)


class TritonDenoiser:
    """Denoiser of recordings on a server, a sequence for each channel. A context manager.

    Args:
        bundle, block, precision, pcs: as for `Server.choose`.

    Raises:
        ServerError: nothing answers, or it has no such model.
    """

    def __init__(
        self,
        address: str,
        bundle: str | None = None,
        *,
        block: int | None = None,
        precision: Precision = Precision.FP32,
        pcs: bool = False,
    ) -> None:
        self._server = Server(address)
        try:
            self._model = self._server.choose(bundle, block=block, precision=precision, pcs=pcs)
        except BaseException:
            self._server.close()
            raise
        self.config, self.trained = self._model.audio, self._model.trained
        self._name = self._model.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.close()

    def prepare(self, source: Path, name: str, stop: threading.Event) -> None:
        """Note the recording's name, for errors: it is enhanced block by block, in `blocks`."""
        self._name = name

    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]:
        """Enhanced sound of blocks at the network's rate, aligned with them; see `Denoiser.blocks`."""
        sequences = [Sequence(self._server, self._model, TIMEOUT_S) for _ in range(n_channels)]
        with ThreadPoolExecutor(n_channels, thread_name_prefix="triton") as pool:

            def call(feeds: Arrays) -> Arrays:
                waves = [feeds["wave"][i : i + 1] for i in range(n_channels)]
                enhanced = pool.map(lambda sequence, wave: sequence(wave), sequences, waves)
                return {"enhanced": np.concatenate(list(enhanced))}

            try:
                yield from aligned_blocks(
                    blocks, call, self._model.graph, n_channels, self._model.overlap_samples, RESAMPLER_TAIL
                )
            except ServerError as error:
                raise type(error)(f"{self._name}: {error}") from error
            finally:
                for sequence in sequences:
                    sequence.close()


def _model(address: str, config: Any) -> Model:
    said = {key.removeprefix(PREFIX): value.string_value for key, value in config.parameters.items()}
    try:
        audio = from_dict(AudioConfig, json.loads(said["audio"]), "audio.")
        block, overlap = int(said["block"]), int(said["overlap_samples"])
        if not (1 <= block <= MOST_BLOCK and 0 <= overlap <= audio.n_fft):
            raise ValueError(f"a block of {block} hops, an overlap of {overlap} samples")
        specs = {name: (TensorSpec(name, ("streams", block * audio.hop), "float32"),) for name in ("wave", "enhanced")}
        return Model(
            config.name,
            said["bundle"],
            Graph(config.name, said["precision"], block, specs["wave"], specs["enhanced"], {}, said.get("variant", "")),
            audio,
            overlap,
            bool(json.loads(said["trained"])),
            config.sequence_batching.max_sequence_idle_microseconds / 1e6,
        )
    except (LookupError, ValueError, TypeError, ConfigError) as error:
        raise ServerError(
            f"{address}: {config.name}: its configuration is not as edgese writes it ({error}); lay it out again"
        ) from error


@contextlib.contextmanager
def _named(what: str, model: Model | None = None, timeout_s: float = _OPEN_S) -> Iterator[None]:
    """Turn the library's errors into one line with its mend."""
    try:
        yield
    except InferenceServerException as error:
        said = (error.message() or "no reason given").splitlines()[0]
        if model is not None and _LOST in said:
            raise SequenceLost(
                f"{what}: the server has lost this stream: it was started anew, or got nothing for "
                f"{model.idle_s:.0f} s; what came until then is lost with it, begin anew"
            ) from error
        if error.status() == "StatusCode.DEADLINE_EXCEEDED":
            raise DeadlineMissed(
                f"{what}: no answer within {1000 * timeout_s:.0f} ms; fewer streams, more instances or a larger block"
            ) from error
        if error.status() == "StatusCode.UNAVAILABLE":
            raise ServerError(
                f"{what}: cannot be reached ({said}); is the server up, and its gRPC port open?"
            ) from error
        raise ServerError(f"{what}: {said}") from error
