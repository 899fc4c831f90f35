"""Calibration: inputs and states of a network in real streams, drawn from training data, and their ranges.

    batches, provenance = draw_batches(enhancer, folder, Drawing(), cache)
    digest = write_calibration(Path("calibration.npz"), batches, provenance)
    spans = compare_ranges(enhancer, batches)

Each row of a batch is a stream of its own: training examples brought to a level drawn for the row, run from zero states
for 1 to 8 s, then the states at that moment and the next `block` hops of sound. Streams are begun anew for every batch:
so many examples, SNRs and levels are met as there are rows, none of them is used twice, and no row depends on another.
Zero states instead would calibrate for the first 128 ms of a stream only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from calib import CalibrationError
from calib.batches import Batches, read_batches, write_batches
from calib.ranges import METHODS, Histogram, Range, find_ranges, histograms
from edgese import __version__
from edgese.atomic_file import PartialFile
from edgese.audio import Wave
from edgese.config import DataConfig, TrainConfig
from edgese.errors import ConfigError
from edgese.graphs.plan import Plan
from edgese.graphs.write import graph_of, quantizable, write_graph
from edgese.metrics.difference import snr_db
from edgese.model.checkpoint import packed_weights
from edgese.model.enhancer import WaveformEnhancer
from export.staging import temporary_folder

if TYPE_CHECKING:
    from edgese.train.data import Examples

Batch = dict[str, NDArray[Any]]
Progress = Callable[[int, int], None]

STRIDE = 64  # hops that the enhancer takes at once: bounds memory, 8 MB a tensor for 8 streams of the shipped network
MOST_BYTES = 1 << 30  # of all batches: they are held in memory, and in one file
SPLIT_SEED = TrainConfig.seed  # who is held out must not depend on the drawing's seed, and be as in training
_TOOLS = ("torch", "numpy", "scipy", "soundfile", "soxr")
_KIND = "calibration of a waveform enhancer"


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Settings of a drawing. Levels are of peaks: at the root mean square of -3 dBFS any speech would be clipped."""

    n_streams: int = 8  # of a batch
    n_batches: int = 16
    block: int = 16  # hops of a batch
    seed: int = 0
    warm_up_s: tuple[float, float] = (1.0, 8.0)  # drawn evenly, in whole hops, for each stream
    peak_dbfs: tuple[float, float] = (-40.0, -3.0)  # drawn evenly for each stream

    def __post_init__(self) -> None:
        for name in ("n_streams", "n_batches", "block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted at least 1")
        if self.seed < 0:
            raise ConfigError(f"seed: found {self.seed}, wanted 0 or more")
        low, high = self.warm_up_s
        if not 0 <= low <= high < math.inf:
            raise ConfigError(f"warm_up_s: found {self.warm_up_s}, wanted (low, high), none of them negative")
        low, high = self.peak_dbfs
        if not -math.inf < low <= high <= 0:
            raise ConfigError(f"peak_dbfs: found {self.peak_dbfs}, wanted (low, high), at most 0: more is clipped")


@dataclasses.dataclass(frozen=True)
class Span:
    """Values of one product's input over all batches: lowest, highest, histogram, and the range of each method."""

    product: str  # path of the module in the network
    tensor: str  # its input in the graph; products may share it
    extent: Range  # lowest and highest value
    chosen: Mapping[str, Range]  # by method, symmetric
    histogram: Histogram

    def entry(self) -> dict[str, Any]:
        """Plain values for JSON."""
        chosen = {method: [found.low, found.high] for method, found in self.chosen.items()}
        return {"tensor": self.tensor, "extent": [self.extent.low, self.extent.high], **chosen}


@dataclasses.dataclass(frozen=True)
class _Row:
    """Facts of one stream: its warm-up, level and examples."""

    warm_up: int  # hops
    peak_dbfs: float
    snrs_db: tuple[float, ...]  # of each example; -inf without speech, inf without noise
    n_silent: int  # examples without any sound


def draw_batches(
    enhancer: WaveformEnhancer,
    data: Path,
    drawing: Drawing,
    cache: Path,
    on_progress: Progress | None = None,
    on_decoding: Progress | None = None,
) -> tuple[list[Batch], dict[str, Any]]:
    """Batches of a float32 streaming run over the training split of a data folder, and their provenance.

    Equal arguments give equal batches on one machine with one number of threads.

    Args:
        data: a folder as `edgese.train.data.open_data` takes it.
        cache: where decoded recordings are kept.
        on_progress: called with the streams run so far, and all.
        on_decoding: called with the recordings decoded so far, and all, where the cache does not hold them yet.

    Returns:
        Batches of exactly the inputs of a graph of `block` hops, float32: "wave" (n_streams, block * hop) in [-1, 1]
        and the states of `WaveformEnhancer.initial_state`; and the provenance, which JSON can hold.

    Raises:
        TrainingError, AudioError: the folder holds no such data, or a recording cannot be read.
        CalibrationError: there is nothing but silence, or the network is not causal.
        ConfigError: so many batches that they would take more than a gigabyte.
    """
    from edgese.train.data import open_data  # which needs SciPy; to read a calibration takes none

    if not enhancer.network.causal:
        raise CalibrationError(
            f"{enhancer.network.config.name} looks ahead: it has no streams whose states could be drawn, and INT8 is "
            "not made for it: choose a causal network, or fp16"
        )
    _require_size(enhancer, drawing)
    audio = enhancer.audio
    warm_ups = [round(seconds * audio.sample_rate_hz / audio.hop) for seconds in drawing.warm_up_s]
    # examples as long as the longest stream: none is cut short by another, unless its recording is
    config = DataConfig(segment_s=(warm_ups[1] + drawing.block) * audio.hop_ms / 1000)
    sets = open_data(data, config, audio.sample_rate_hz, SPLIT_SEED, cache, on_decoding)
    rng = np.random.default_rng(drawing.seed)
    rows: list[_Row] = []
    batches = []
    for batch in range(drawing.n_batches):
        waves = []
        for _ in range(drawing.n_streams):
            wave, row = _draw_row(sets.train, rng, int(rng.integers(warm_ups[0], warm_ups[1] + 1)), drawing, audio.hop)
            waves.append(wave)
            rows.append(row)
        batches.append(_stream(enhancer, waves, [row.warm_up for row in rows[-len(waves) :]]))
        if on_progress:
            on_progress((batch + 1) * drawing.n_streams, drawing.n_batches * drawing.n_streams)
    if not any(row.snrs_db for row in rows):
        raise CalibrationError(f"{data}: found nothing but silence in {len(rows)} streams, wanted speech and noise")
    return batches, _provenance(enhancer, data, sets.description, drawing, rows)


def require_target(path: Path, *, replace: bool) -> None:
    """Check before minutes of work that a calibration can be written to `path`.

    Raises:
        CalibrationError: the file has another suffix, exists and must not be replaced, or its folder is missing.
    """
    if path.suffix != ".npz":
        raise CalibrationError(f"{path}: the file name must end in .npz")
    if path.is_dir():
        raise CalibrationError(f"{path}: is a folder, wanted a file; choose another -o")
    if os.path.lexists(path) and not replace:
        raise CalibrationError(f"{path}: exists already; replace it with --force, or choose another -o")
    if not path.parent.is_dir():
        raise CalibrationError(f"{path}: found no folder {path.parent}; make it, or choose another -o")


def write_calibration(
    path: Path, batches: Sequence[Batch], provenance: Mapping[str, Any], *, replace: bool = False
) -> str:
    """Store what `draw_batches` gave; returns the digest of the batches.

    Raises:
        CalibrationError: as `require_target`, or there is nothing to store.
        OutputError: the file cannot be written; an older one is as it was.
    """
    require_target(path, replace=replace)
    with PartialFile(path) as partial:
        try:
            with open(partial.fd, "wb", closefd=False) as stream:  # a descriptor has no path
                digest = write_batches(path, batches, provenance, stream=stream)
        except OSError as error:
            raise partial.error(error) from error
        partial.publish(replace=replace)
    return digest


def read_calibration(path: Path, enhancer: WaveformEnhancer) -> Batches:
    """Stored batches, checked against the network: states are of one network and one set of weights only.

    Raises:
        CalibrationError: the file is missing, damaged, no calibration, or one of another network.
    """
    stored = read_batches(path)
    if stored.provenance.get("kind") != _KIND:
        raise CalibrationError(f"{path}: these are batches of something else; wanted those of `edgese calibrate`")
    wanted = {name: tuple(state.shape[1:]) for name, state in enhancer.initial_state().items()}
    wanted = {"wave": (stored.provenance["block"] * enhancer.audio.hop,)} | wanted
    for index, batch in enumerate(stored.batches):
        found = {name: array.shape[1:] for name, array in batch.items()}
        for name in (*wanted, *found):
            if found.get(name) != wanted.get(name):
                raise CalibrationError(
                    f"{path}: batch {index}: {name} is of shape {found.get(name)} a stream, wanted {wanted.get(name)}: "
                    "it was made with another network; run `edgese calibrate` with this one"
                )
    weights = weights_digest(enhancer)
    if stored.provenance["weights"] != weights:
        raise CalibrationError(
            f"{path}: made with the weights {stored.provenance['weights'][:16]}, wanted {weights[:16]}: "
            "run `edgese calibrate` with these weights"
        )
    return stored


def weights_digest(enhancer: WaveformEnhancer) -> str:
    """SHA-256 of a network's weights file as a bundle has it, whatever file they came from."""
    return hashlib.sha256(packed_weights(enhancer, enhancer.state_dict())).hexdigest()


def compare_ranges(
    enhancer: WaveformEnhancer, batches: Sequence[Batch], on_progress: Progress | None = None
) -> tuple[Span, ...]:
    """Values and ranges of the input of each product that INT8 can take, over the batches, in the graph's order.

    Args:
        on_progress: called with the passes over all batches that are done, and all.

    Raises:
        CalibrationError: the batches are not of this network, or a product's input is always zero.
        ExportError: the network cannot be exported.
    """
    report = on_progress or (lambda done, total: None)
    n_passes = len(METHODS) + 2
    block = batches[0]["wave"].shape[1] // enhancer.audio.hop
    with temporary_folder() as folder:
        path = folder / "graph.onnx"
        write_graph(enhancer, graph_of(enhancer, block), path, Plan())
        tensors = {product: found.activation for product, found in quantizable(path, enhancer).items()}
        if not tensors:
            raise CalibrationError("the network has no product that INT8 can take; nothing to calibrate")
        wanted = list(dict.fromkeys(tensors.values()))
        extents = find_ranges(path, batches, wanted, method="minmax", symmetric=False)
        report(1, n_passes)
        chosen = {}
        for done, method in enumerate(METHODS):
            chosen[method] = find_ranges(path, batches, wanted, method=method)
            report(2 + done, n_passes)
        counted = histograms(path, batches, wanted)
        report(n_passes, n_passes)
    return tuple(
        Span(
            *(product, tensor, extents[tensor]),
            chosen={method: found[tensor] for method, found in chosen.items()},
            histogram=counted[tensor],
        )
        for product, tensor in tensors.items()
    )


def _require_size(enhancer: WaveformEnhancer, drawing: Drawing) -> None:
    row = 4 * (drawing.block * enhancer.audio.hop + sum(state.numel() for state in enhancer.initial_state().values()))
    n_bytes = row * drawing.n_streams * drawing.n_batches
    if n_bytes > MOST_BYTES:
        raise ConfigError(
            f"{drawing.n_batches} batches of {drawing.n_streams} streams: they would take {n_bytes / 1e6:,.0f} MB, "
            f"wanted at most {MOST_BYTES / 1e6:,.0f} MB: choose fewer"
        )


def _draw_row(
    examples: Examples, rng: np.random.Generator, warm_up: int, drawing: Drawing, hop: int
) -> tuple[Wave, _Row]:
    """Sound of a stream, ((warm_up + block) * hop,): examples of one level in turn, mostly a single one; its facts."""
    n_samples = (warm_up + drawing.block) * hop
    peak_dbfs = float(rng.uniform(*drawing.peak_dbfs))
    pieces: list[Wave] = []
    snrs, n_silent = [], 0
    while sum(map(len, pieces)) < n_samples:
        noisy, clean = examples(int(rng.integers(2**31)))
        # a recording shorter than an example has been filled up with zeros, which no stream holds: the next one follows
        filled = len(np.trim_zeros(noisy, "b")) or len(noisy)
        noisy, clean = noisy[:filled], clean[:filled]
        peak = float(np.abs(noisy).max())
        pieces.append(noisy * np.float32(10 ** (peak_dbfs / 20) / (peak or 1.0)))
        if peak == 0:
            n_silent += 1
        else:
            snrs.append(snr_db(clean, noisy) if clean.any() else -math.inf)
    wave = np.concatenate(pieces)[:n_samples].astype(np.float32)
    return wave, _Row(warm_up, peak_dbfs, tuple(snrs), n_silent)


@torch.no_grad()
def _stream(enhancer: WaveformEnhancer, waves: Sequence[Wave], warm_ups: Sequence[int]) -> Batch:
    """Batch of all streams, run from zero states on; each one's states are kept when its warm-up (hops) is over."""
    hop = enhancer.audio.hop
    order = sorted(range(len(waves)), key=lambda row: warm_ups[row])
    sound = np.zeros((len(waves), max(warm_ups) * hop), np.float32)
    for place, row in enumerate(order):
        sound[place, : warm_ups[row] * hop] = waves[row][: warm_ups[row] * hop]
    state, now = enhancer.initial_state(len(waves)), 0
    kept: dict[int, dict[str, NDArray[np.float32]]] = {}
    for place, row in enumerate(order):
        for start in range(now, warm_ups[row], STRIDE):
            stop = min(start + STRIDE, warm_ups[row])
            _, state = enhancer(torch.from_numpy(sound[place:, start * hop : stop * hop]), state)
        now = warm_ups[row]
        kept[row] = {name: tensor[0].cpu().numpy().copy() for name, tensor in state.items()}
        state = {name: tensor[1:] for name, tensor in state.items()}  # those that go on
    new = np.stack([wave[warm_up * hop :] for wave, warm_up in zip(waves, warm_ups, strict=True)])
    return {"wave": new} | {name: np.stack([kept[row][name] for row in range(len(waves))]) for name in kept[0]}


def _provenance(
    enhancer: WaveformEnhancer, data: Path, description: Mapping[str, object], drawing: Drawing, rows: Sequence[_Row]
) -> dict[str, Any]:
    audio = enhancer.audio
    snrs = [snr for row in rows for snr in row.snrs_db]
    low, high = drawing.warm_up_s
    return {
        "kind": _KIND,
        "tools": {"edgese": __version__, "python": platform.python_version()}
        | {tool: importlib.metadata.version(tool) for tool in _TOOLS},
        "weights": weights_digest(enhancer),
        "sample_rate_hz": audio.sample_rate_hz,
        "hop": audio.hop,
        "block": drawing.block,
        "data": {"folder": data.resolve().name, "split": "training", "split_seed": SPLIT_SEED, **description},
        "seed": drawing.seed,
        "batches": drawing.n_batches,
        "streams": drawing.n_streams,
        "hops": len(rows) * drawing.block,
        "examples": len(snrs) + sum(row.n_silent for row in rows),
        "heard_s": round(sum(row.warm_up + drawing.block for row in rows) * audio.hop_ms / 1000, 3),  # warm-up included
        "states": f"of a float32 streaming run, after {low:.1f} to {high:.1f} s",
        "warm_up_s": [round(row.warm_up * audio.hop_ms / 1000, 3) for row in rows],  # each stream's
        "peak_dbfs": [round(row.peak_dbfs, 2) for row in rows],  # each stream's, which each of its examples reaches
        "snr_db": [round(snr, 2) for snr in snrs if math.isfinite(snr)],  # each example's, pauses included
        "without_speech": sum(snr == -math.inf for snr in snrs),
        "without_noise": sum(snr == math.inf for snr in snrs),
        "silent": sum(row.n_silent for row in rows),
    }
