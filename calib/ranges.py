"""Ranges and histograms of the values that tensors inside an ONNX graph take when it runs over given batches.

    ranges = find_ranges(onnx_path, batches, ["hidden", "gate"], method="minmax")

The statistics are those of onnxruntime's calibrators, and where a range is clipped, its own code finds it. Only their
sessions are not used, which keep the activations of all batches, write files beside the graph and print. Three more
traps of theirs are closed here, by a first pass that finds the extremes: a histogram that is sized by the first batch
grows by as much as a later batch is louder; it loses what is smaller than all of the first batch; and NaN is skipped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization.calibrate import HistogramCollector

from calib import CalibrationError

METHODS = ("minmax", "entropy", "percentile")

PERCENTILE = 99.999  # onnxruntime's own choice: one value in 100,000 is clipped, all sides together

_LEVELS = 128  # magnitudes that entropy compares with; with 128 bins, onnxruntime's default, it could clip nothing
_BINS = {"entropy": 2049, "percentile": 2048}  # odd for entropy: onnxruntime then clips both sides alike

_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_FLOATS = ("float16", "float32", "float64")

Batch = Mapping[str, NDArray[Any]]
Values = Callable[[], Iterator[tuple[str, NDArray[np.float32]]]]


@dataclasses.dataclass(frozen=True)
class Range:
    """The values from `low` to `high`, both finite, in the unit of the tensor."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise CalibrationError(f"range: found {self.low} to {self.high}, wanted two finite numbers in order")


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of values in equal bins: `counts[i]` lie from `edges[i]` up to `edges[i + 1]`, the last edge included."""

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]


def read_model(onnx_path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The ONNX model in a file.

    Args:
        weights: read those that lie in a file beside it as well.

    Raises:
        CalibrationError: not an ONNX file, or its weights' file is missing.
    """
    try:
        return onnx.load(onnx_path, load_external_data=weights)
    except Exception as error:  # protobuf's own errors and onnx's share no base but Exception
        raise CalibrationError(f"{onnx_path}: cannot be read as ONNX ({error}); export or fetch it again") from error


def find_ranges(
    onnx_path: Path,
    batches: Sequence[Batch],
    tensors: Collection[str],
    *,
    method: str = "minmax",
    symmetric: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Range]:
    """The range of each tensor's values over all batches.

    Holds the activations of one batch at a time. Equal inputs give equal ranges. Minmax runs the graph over the
    batches once, the other methods twice.

    Args:
        batches: each holds all inputs of the graph by name, and nothing else.
        tensors: names of inputs or of inner tensors, of floats.
        method: "minmax": the extremes; "entropy": clipped where 128 magnitudes describe the distribution best;
            "percentile": clipped to `PERCENTILE` of all values.
        symmetric: as wide below zero as above.
        on_progress: called with the runs of the graph that are done and the runs in all.

    Raises:
        CalibrationError: a tensor that is not in the graph, holds no floats, is always zero or is not finite; no
            batches, or one that does not fit the graph; a method that is not known.
    """
    if method not in METHODS:
        raise CalibrationError(f"method: found {method!r}, wanted one of {', '.join(METHODS)}")
    n_runs = len(batches) * (1 if method == "minmax" else 2)
    values = _values(onnx_path, batches, tensors, n_runs, on_progress or (lambda done, total: None))
    extremes = _extremes(values, onnx_path)
    found = extremes if method == "minmax" else _clipped(values, extremes, method, symmetric)
    ranges = {}
    for name, (low, high) in found.items():
        if symmetric:
            high = max(-low, high)
            low = -high
        if method != "minmax" and not low < high:
            raise CalibrationError(
                f"{onnx_path}: {name}: {method} leaves the range {low} to {high} of {extremes[name][0]} to "
                f"{extremes[name][1]}: nearly all values lie in one place; use minmax"
            )
        ranges[name] = Range(low, high)
    return ranges


def histograms(
    onnx_path: Path, batches: Sequence[Batch], tensors: Collection[str], *, bins: int = 256
) -> dict[str, Histogram]:
    """A histogram of each tensor's values over all batches, between its extremes; for a picture.

    Holds the activations of one batch at a time; runs the graph over the batches twice.

    Args:
        batches, tensors: as for `find_ranges`.

    Raises:
        CalibrationError: as `find_ranges`; a number of bins below 1.
    """
    if bins < 1:
        raise CalibrationError(f"bins: found {bins}, wanted at least 1")
    values = _values(onnx_path, batches, tensors, 2 * len(batches), lambda done, total: None)
    extremes = _extremes(values, onnx_path)
    edges = {name: np.histogram_bin_edges([], bins, extremes[name]).astype(np.float64) for name in extremes}
    counts = {name: np.zeros(bins, np.int64) for name in extremes}
    for name, array in values():
        # In float64, and by the extremes instead of the edges: NumPy then computes the bin and does not search it.
        counts[name] += np.histogram(array.astype(np.float64), bins, extremes[name])[0]
    return {name: Histogram(counts[name], edges[name]) for name in extremes}


def _extremes(values: Values, onnx_path: Path) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each tensor."""
    extremes: dict[str, tuple[float, float]] = {}
    for name, array in values():
        low, high = extremes.get(name, (math.inf, -math.inf))
        extremes[name] = min(low, float(array.min())), max(high, float(array.max()))
    for name, (low, high) in extremes.items():
        if low == high == 0:
            raise CalibrationError(f"{onnx_path}: {name} is zero in all batches, wanted batches that give it a range")
    return extremes


def _clipped(
    values: Values, extremes: Mapping[str, tuple[float, float]], method: str, symmetric: bool
) -> dict[str, tuple[float, float]]:
    """Ranges by onnxruntime's collector, its histograms laid out before it sees the first value."""
    n_bins = _BINS[method]
    collector = HistogramCollector(
        method=method,
        symmetric=symmetric,
        num_bins=n_bins,
        num_quantized_bins=_LEVELS,
        percentile=PERCENTILE,
        scenario="same",
    )
    of_magnitudes = method == "percentile" and symmetric
    for name, (low, high) in extremes.items():
        bound = np.float32(max(-low, high))
        edges = np.linspace(0 if of_magnitudes else -bound, bound, n_bins + 1, dtype=np.float32)
        state = (np.zeros(n_bins, np.int64), edges, np.float32(low), np.float32(high))
        collector.histogram_dict[name] = state if of_magnitudes else (*state, bound)
    for name, array in values():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            collector.collect({name: array})
    with contextlib.redirect_stdout(io.StringIO()):
        found = collector.compute_collection_result()
    return {name: (float(found[name][0]), float(found[name][1])) for name in extremes}


def _values(
    onnx_path: Path,
    batches: Sequence[Batch],
    tensors: Collection[str],
    n_runs: int,
    on_progress: Callable[[int, int], None],
) -> Values:
    """A function that runs the graph over all batches and gives the tensors' values, batch by batch."""
    if not batches:
        raise CalibrationError(f"{onnx_path}: no batches, wanted at least one")
    if not tensors:
        raise CalibrationError(f"{onnx_path}: no tensors are named, wanted at least one")
    names = list(dict.fromkeys(tensors))
    session = _open(onnx_path, names)
    fed = {node.name: _dtype(node) for node in session.get_inputs()}
    given = {node.name: _dtype(node) for node in session.get_outputs() if node.name in names}
    for name in names:
        dtype = given.get(name) or fed[name]
        if dtype not in _FLOATS:
            raise CalibrationError(f"{onnx_path}: {name} is of dtype {dtype}, wanted floats")
    for index, batch in enumerate(batches):
        _check_fit(f"{onnx_path}: batch {index}", batch, session.get_inputs())
    done = 0

    def values() -> Iterator[tuple[str, NDArray[np.float32]]]:
        nonlocal done
        for index, batch in enumerate(batches):
            where = f"{onnx_path}: batch {index}"
            try:
                results = session.run(list(given), dict(batch)) if given else []
            except Exception as error:  # its own classes share no base but Exception
                raise CalibrationError(f"{where}: the run failed ({_first_line(error)})") from error
            arrays = dict(zip(given, results, strict=True))
            del results
            for name in names:
                array = np.asarray(arrays.pop(name) if name in given else batch[name], np.float32)
                if array.size == 0:
                    raise CalibrationError(f"{where}: {name} is empty, shape {array.shape}")
                if not np.isfinite(array).all():
                    raise CalibrationError(f"{where}: {name} holds NaN or Inf, wanted finite numbers")
                yield name, array
            done += 1
            on_progress(done, n_runs)

    return values


def _open(onnx_path: Path, tensors: Sequence[str]) -> Any:
    """A session that gives the inner tensors among those named; inputs need not be given, they are known."""
    model = read_model(onnx_path)
    inputs = {value.name for value in model.graph.input}
    inner = {name for node in model.graph.node for name in node.output if name}
    weights = {tensor.name for tensor in model.graph.initializer}
    for name in tensors:
        if name in weights:
            raise CalibrationError(f"{onnx_path}: {name} is a weight, wanted a tensor that the inputs change")
        if name not in inputs | inner:
            raise CalibrationError(f"{onnx_path}: no tensor {name} in the graph; take its name from the graph's nodes")
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in tensors if name in inner and name not in outputs
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # the graph as written
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what matters is raised as well; nothing is printed
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes share no base but Exception
        raise CalibrationError(f"{onnx_path}: onnxruntime cannot open it ({_first_line(error)})") from error


def _check_fit(where: str, batch: Batch, inputs: Sequence[Any]) -> None:
    """Refuse a batch whose names, dtypes or shapes are not the graph's; a named axis has one size in all inputs."""
    wanted = [node.name for node in inputs]
    if set(batch) != set(wanted):
        raise CalibrationError(f"{where}: found the inputs {_listed(sorted(batch))}, wanted {_listed(sorted(wanted))}")
    sizes: dict[str, tuple[int, str]] = {}
    for node in inputs:
        array = batch[node.name]
        if array.dtype != _dtype(node):
            raise CalibrationError(f"{where}: {node.name} is of dtype {array.dtype}, wanted {_dtype(node)}")
        fits = array.ndim == len(node.shape) and all(
            size == wanted_size or not isinstance(wanted_size, int)
            for size, wanted_size in zip(array.shape, node.shape, strict=True)
        )
        if not fits:
            axes = ", ".join(str(size if size is not None else "any") for size in node.shape)
            raise CalibrationError(f"{where}: {node.name} has shape {array.shape}, wanted ({axes})")
        for size, axis in zip(array.shape, node.shape, strict=True):
            if isinstance(axis, str):
                first, owner = sizes.setdefault(axis, (size, node.name))
                if size != first:
                    raise CalibrationError(
                        f"{where}: axis {axis} has size {size} in {node.name}, but {first} in {owner}; wanted one size"
                    )


def _dtype(node: Any) -> str:
    return _DTYPES.get(node.type, str(node.type))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
