"""Long recordings in pieces: each starts from the states where the one before it ended.

    cut       the recording as the network hears it (16 kHz, lifted), in pieces of whole calls
    run       one piece through the network; its states are kept for the next, so the sum is one unbroken stream
    join      the recording once more, the network's output taken from the pieces: formats, rates, levels as ever

All that lies between the tasks is in the output's place, in a folder whose name is a digest of recording, bundle and
options: a task that is lost, or a run that was killed, is taken up at the last finished piece.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import posixpath
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgese.audio import Samples
from edgese.audio.frame_queue import cut_anew
from edgese.audio.reader import AudioReader
from edgese.audio.resampler import resample
from edgese.bulk.places import Item, is_there, load_arrays, save_arrays
from edgese.config import AudioConfig
from edgese.enhance.jobs import EnhanceOptions
from edgese.enhance.lift import Lift
from edgese.enhance.signal_path import RESAMPLER_TAIL
from edgese.graphs.bundles import audio_config, choose_graph, is_trained
from edgese.graphs.opening import open_graph
from edgese.graphs.segments import Segments
from edgese.graphs.streaming import samples
from export.bundle import Bundle
from export.files import sha256_of

if TYPE_CHECKING:
    from typing_extensions import Self

PIECE_S = 600.0  # of sound
FOLDER = ".edgese-pieces"  # in the output's folder


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces of one recording; `folder` is their place."""

    folder: str
    n_pieces: int


def wants_pieces(bundle: Bundle, source: Path, name: str, piece_s: float) -> bool:
    """True if a recording is long enough to be cut; only networks with states can be.

    Raises:
        AudioError: what `AudioReader` refuses.
    """
    if Segments.of(bundle.manifest) is not None:
        return False
    with AudioReader(source, name) as reader:
        return (reader.info.duration_s or 0.0) > 1.5 * piece_s


def cut(item: Item, source: Path, bundle: Bundle, options: EnhanceOptions, piece_s: float) -> Pieces:
    """Cut what the network will hear into pieces, unless that is done.

    Raises:
        AudioError: what `AudioReader` refuses.
        OutputError: the output's place cannot be written to.
    """
    how = [options.runtime, options.block, options.precision.value, options.pcs, piece_s]
    facts = [item.target, sha256_of(source), bundle.manifest["files"], how]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = posixpath.join(posixpath.dirname(item.target), FOLDER, key)
    done = posixpath.join(folder, "cut.npz")
    if not is_there(done):
        config = audio_config(bundle)
        graph = choose_graph(bundle, block=options.block, precision=options.precision, pcs=options.pcs)
        size = samples(graph, graph.block)
        whole = max(1, round(piece_s * config.sample_rate_hz / size)) * size
        with AudioReader(source, item.source) as reader:
            info = reader.info
            noisy = resample(reader.blocks(), info.sample_rate_hz, config.sample_rate_hz, info.n_channels)
            heard = Lift(config.sample_rate_hz, info.n_channels).raised(noisy, way_back=False)
            silence = np.zeros((config.overlap + RESAMPLER_TAIL + size - 1, info.n_channels), np.float32)
            n_pieces = 0
            for block in cut_anew(itertools.chain(heard, [silence]), whole):
                piece = block[: len(block) // size * size]
                if not len(piece):
                    break
                save_arrays(_place(folder, n_pieces, "heard"), {"wave": piece})
                n_pieces += 1
        save_arrays(done, {"n_pieces": np.array(n_pieces)})
    return Pieces(folder, int(load_arrays(done)["n_pieces"]))


def run(pieces: Pieces, index: int, bundle: Bundle, options: EnhanceOptions) -> None:
    """Enhance one piece, the one before it being done, unless it is done itself.

    Raises:
        OutputError: the pieces' place cannot be read or written to.
    """
    target = _place(pieces.folder, index, "enhanced")
    if is_there(target):
        return
    wave = load_arrays(_place(pieces.folder, index, "heard"))["wave"]  # (n, channels)
    graph = choose_graph(bundle, block=options.block, precision=options.precision, pcs=options.pcs)
    size = samples(graph, graph.block)
    with open_graph(bundle, graph, options.runtime) as runtime:
        stream = runtime.stream(graph.states, streams=wave.shape[1])
        if index:
            before = load_arrays(_place(pieces.folder, index - 1, "enhanced"))
            stream.load({name: before[name] for name in graph.states})
        calls = (np.ascontiguousarray(wave[at : at + size].T) for at in range(0, len(wave), size))
        enhanced = np.concatenate([stream({"wave": call})["enhanced"].T for call in calls])
        save_arrays(target, {"wave_enhanced": enhanced, **stream.states})


class Joined:
    """Enhancer of a recording whose network output lies in pieces; see `Enhancer`. A context manager."""

    def __init__(self, pieces: Pieces, bundle: Bundle) -> None:
        self.config: AudioConfig = audio_config(bundle)
        self.trained = is_trained(bundle)
        self._pieces = pieces

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Do nothing: no piece is held open."""

    def prepare(self, source: Path, name: str, stop: threading.Event) -> None:
        """Do nothing: all is prepared."""

    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]:
        """The pieces' sound, cut as the recording's blocks are, and what is behind their end."""
        skip, waiting = self.config.overlap, np.zeros((0, n_channels), np.float32)
        given = (
            load_arrays(_place(self._pieces.folder, index, "enhanced"))["wave_enhanced"]
            for index in range(self._pieces.n_pieces)
        )
        for block in blocks:
            while len(waiting) < len(block) + skip:
                waiting = np.concatenate([waiting, next(given)])
            yield waiting[skip : skip + len(block)]
            waiting, skip = waiting[skip + len(block) :], 0
        yield np.concatenate([waiting, *given])


def _place(folder: str, index: int, what: str) -> str:
    return posixpath.join(folder, f"{index:05d}.{what}.npz")
