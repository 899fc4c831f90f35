"""Denoiser that runs on a board: each recording goes there as a WAV at the network's rate and comes back clean.

Reading, resampling, alignment, attenuation limit and writing stay where they are for every runtime (edgese/enhance);
only the network's input and output cross the link. Memory does not grow with a recording's length: what comes back lies
in a temporary file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgese.audio import Samples
from edgese.audio.formats import AudioInfo
from edgese.audio.media import open_reader
from edgese.audio.resampler import resample
from edgese.audio.writer import AudioWriter
from edgese.board.commands import Chosen, require_self_test_passed
from edgese.board.link import RemoteError, RemoteStopped
from edgese.board.session import Session
from edgese.device.wav import WavInfo, WavReader
from edgese.enhance.files import Stopped
from edgese.enhance.lift import Lift
from edgese.errors import AudioError
from edgese.graphs.bundles import audio_config, choose_graph, is_trained
from edgese.graphs.precision import Precision
from export.bundle import Bundle
from export.staging import temporary_folder

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_SAMPLES = 1_000_000_000  # of 4 bytes: sizes in a WAV have 32 bits
_HEADER_BYTES = 4096  # that a WAV's header may have more than another's
_SENT, _CLEAN = "noisy.wav", "clean.wav"  # names there


class RemoteDenoiser:
    """A graph of a bundle on a board, which has passed its self-test there. A context manager.

    Args:
        session: open; it is not closed with this.
        runtime: one there, by name; None: the first that opens, TensorRT before others.
        block, precision, pcs: as for `edgese.enhance.denoiser.Denoiser`.

    Raises:
        ExportError: the bundle has no such graph.
        RemoteError: the board cannot be made ready, or its self-test failed.
    """

    def __init__(
        self,
        session: Session,
        bundle: Bundle,
        *,
        runtime: str | None = None,
        block: int | None = None,
        precision: Precision = Precision.FP32,
        pcs: bool = False,
    ) -> None:
        self.config = audio_config(bundle)
        self.trained = is_trained(bundle)
        graph = choose_graph(bundle, block=block, precision=precision, pcs=pcs)
        wanted = [runtime] if runtime else []
        session.place(bundle, wanted)
        runtime = session.runtimes(wanted)["found"][0]
        chosen = Chosen([runtime], [graph.precision], [graph.block])
        require_self_test_passed(session.host, session.result("self-test", "--json", *chosen.all))
        self._session = session
        self._options = [*chosen.all, *(["--pcs"] if pcs else []), "--force"]
        self._open = contextlib.ExitStack()
        self._folder = self._open.enter_context(temporary_folder())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def prepare(self, source: Path, name: str, stop: threading.Event) -> None:
        """Have a recording enhanced on the board; `blocks` then gives the result.

        Args:
            source: of any format and rate.
            name: how messages call it.

        Raises:
            AudioError: what `AudioReader` refuses, or the board.
            Stopped: the user asked to.
            RemoteError: the board cannot be reached any more.
        """
        sent = self._folder / _SENT
        n_channels = self._write(source, name, sent, stop)
        try:
            there = self._session.send(sent, _SENT)
            most = ["--most", max(16, n_channels)]
            ran = self._session.run("enhance", there, self._session.path(_CLEAN), *self._options, *most)
            if ran.code:
                raise AudioError(f"{name}: on {self._session.host}: {ran.reason.removeprefix(f'{there}: ')}")
            self._session.fetch(_CLEAN, self._folder / _CLEAN, sent.stat().st_size + _HEADER_BYTES)
            self._require_same_form(sent, name)
        except RemoteStopped as error:
            raise Stopped(f"{name}: stopped before it was done; nothing was left of its output") from error

    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]:
        """Enhanced blocks of the prepared recording, as long as its own blocks, then one window of silence.

        Args:
            blocks: the same recording once more at the network's rate; only its lengths count.

        Yields:
            (n, n_channels) float32.
        """
        waiting = np.zeros((0, n_channels), np.float32)
        with WavReader(self._folder / _CLEAN) as reader:
            clean = reader.blocks()
            for block in blocks:
                while len(waiting) < len(block):
                    waiting = np.concatenate([waiting, next(clean)])
                yield waiting[: len(block)]
                waiting = waiting[len(block) :]
        yield np.zeros((self.config.n_fft, n_channels), np.float32)  # for the resampler, which asks beyond the end

    def _require_same_form(self, sent: Path, name: str) -> None:
        """Raise RemoteError unless what came back has the length, channels and rate of what was sent."""
        with WavReader(sent) as reader:
            wanted = reader.info
        try:
            with WavReader(self._folder / _CLEAN) as reader:
                found = reader.info
        except AudioError as error:
            raise RemoteError(f"{self._session.host}: {name} came back as no WAV ({error}): run this again") from error
        if found != wanted:
            raise RemoteError(
                f"{self._session.host}: {name} came back as {_in_words(found)}, wanted {_in_words(wanted)}: is it "
                "edgese that runs there? remove what it keeps (--no-keep) and run this again"
            )

    def _write(self, source: Path, name: str, target: Path, stop: threading.Event) -> int:
        """Write a recording at the network's rate as a WAV of floats; returns its number of channels."""
        rate_hz = self.config.sample_rate_hz
        with open_reader(source, name) as reader:
            info = AudioInfo(rate_hz, reader.info.n_channels, None, "WAV", "FLOAT")
            with AudioWriter(target, info, name) as writer:
                noisy = resample(reader.blocks(), reader.info.sample_rate_hz, rate_hz, info.n_channels)
                # `denoise` lifts the recording once more, and takes it back
                for block in Lift(rate_hz, info.n_channels).raised(noisy, way_back=False):
                    if stop.is_set():
                        raise Stopped(f"{name}: stopped before it was done; nothing was left of its output")
                    writer.write(block)
                    if writer.n_written * info.n_channels > _MOST_SAMPLES:
                        raise AudioError(f"{name}: too long for the WAV that goes to the board: split it")
                if not writer.n_written:  # resampling takes a sample or two of a recording that has no more
                    writer.write(np.zeros((1, info.n_channels), np.float32))
                writer.finish()
                writer.publish(replace=True)
            return info.n_channels


def _in_words(info: WavInfo) -> str:
    return f"{info.n_frames} samples of {info.n_channels} channels, {info.sample_rate_hz} Hz, {info.subtype}"
