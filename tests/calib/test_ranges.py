"""Ranges and histograms over batches, on a small hand-made graph whose values NumPy knows."""

from __future__ import annotations

import contextlib
import io
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator

from calib import CalibrationError
from calib.ranges import METHODS, PERCENTILE, Range, find_ranges, histograms, read_model

Array = NDArray[Any]
Batches = list[dict[str, Array]]

EACH_METHOD = pytest.mark.parametrize(  # onnxruntime takes half a second for the entropy of a tensor
    "method", [pytest.param(name, marks=pytest.mark.slow if name == "entropy" else ()) for name in METHODS]
)

WEIGHT = np.array([[0.5, -1, 0], [0, 2, 0.25], [1, 1, 1], [-3, 0, 0.125]], np.float32)


def small_model() -> onnx.ModelProto:
    """y = relu(x @ weight) + before, over any number of streams; beside it what gives NaN, zeros, integers, halves."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["hidden"], name="product"),
        helper.make_node("Relu", ["hidden"], ["gate"], name="relu"),
        helper.make_node("Add", ["gate", "before"], ["y"], name="add"),
        helper.make_node("Log", ["hidden"], ["broken"], name="log"),
        helper.make_node("Sub", ["hidden", "hidden"], ["nothing"], name="sub"),
        helper.make_node("ArgMax", ["hidden"], ["place"], name="place", axis=-1),
        helper.make_node("Cast", ["hidden"], ["half"], name="cast", to=TensorProto.FLOAT16),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["streams", 4]),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, ["streams", 3]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["streams", 3])],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def small(tmp_path: Path) -> Path:
    onnx.save(small_model(), tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def make_batches(*n_streams: int) -> Batches:
    rng = np.random.default_rng(3)
    return [
        {
            "x": rng.standard_normal((streams, 4), dtype=np.float32),
            "before": rng.standard_normal((streams, 3), dtype=np.float32),
        }
        for streams in n_streams
    ]


def of_x(*values: Array) -> Batches:
    """Batches that give these values, (n_streams * 4,) each, to the input x, which is a tensor like any other."""
    return [
        {"x": array.astype(np.float32).reshape(-1, 4), "before": np.zeros((len(array) // 4, 3), np.float32)}
        for array in values
    ]


def heavy_tailed(n: int = 40_000) -> Array:
    return np.random.default_rng(0).standard_t(2.5, n).astype(np.float32)


# Ranges


def test_minmax_is_the_extremes_over_all_batches(small: Path) -> None:
    batches = make_batches(5, 1, 9)
    hidden = np.concatenate([batch["x"] @ WEIGHT for batch in batches])
    everything = {
        "hidden": hidden,
        "gate": np.maximum(hidden, 0),
        "y": np.maximum(hidden, 0) + np.concatenate([batch["before"] for batch in batches]),
        "x": np.concatenate([batch["x"] for batch in batches]),
    }
    found = find_ranges(small, batches, everything, symmetric=False)
    assert list(found) == list(everything)
    for name, array in everything.items():
        assert (found[name].low, found[name].high) == pytest.approx((array.min(), array.max()), rel=1e-6)
    assert found["gate"].low == 0


def test_symmetric_ranges_take_the_larger_side(small: Path) -> None:
    batches, names = make_batches(5, 2), ["hidden", "gate", "x", "before"]
    one_sided = find_ranges(small, batches, names, symmetric=False)
    assert {-found.low > found.high for found in one_sided.values()} == {True, False}
    for name, found in find_ranges(small, batches, names).items():
        bound = max(-one_sided[name].low, one_sided[name].high)
        assert (found.low, found.high) == (-bound, bound)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Batches) -> None:
        self.rest = iter(batches)

    def get_next(self) -> Any:
        return next(self.rest, None)


@pytest.mark.parametrize("symmetric", [True, False])
@EACH_METHOD
def test_ranges_are_those_of_the_calibrators_of_onnxruntime(
    small: Path, tmp_path: Path, method: str, symmetric: bool
) -> None:
    """On one batch, where these have no other histogram than ours; their first bin starts at the smallest magnitude."""
    batches = make_batches(4000)
    with contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            small,
            ["MatMul"],
            augmented_model_path=str(tmp_path / "augmented.onnx"),
            calibrate_method={"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy}.get(
                method, CalibrationMethod.Percentile
            ),
            extra_options={"symmetric": symmetric, "num_bins": 2049 if method == "entropy" else 2048},
        )
        calibrator.collect_data(_Reader(batches))
        wanted = calibrator.compute_data()["hidden"].range_value
    low, high = (float(np.asarray(bound).item()) for bound in wanted)
    if symmetric:
        low, high = -max(-low, high), max(-low, high)
    found = find_ranges(small, batches, ["hidden"], method=method, symmetric=symmetric)["hidden"]
    bin_width = (high - low) / 2048 if method == "percentile" else 0
    assert (found.low, found.high) == pytest.approx((low, high), abs=bin_width, rel=1e-6)


def test_percentile_clips_one_value_in_a_hundred_thousand(small: Path) -> None:
    values = np.random.default_rng(1).standard_normal(600_000).astype(np.float32)
    batches = of_x(*np.split(values, 6))
    found = find_ranges(small, batches, ["x"], method="percentile")["x"]
    magnitudes = np.abs(values)
    largest = float(magnitudes.max())
    assert found.high == pytest.approx(np.percentile(magnitudes, PERCENTILE), abs=2 * largest / 2048)
    assert found.high < 0.98 * largest
    sides = find_ranges(small, batches, ["x"], method="percentile", symmetric=False)["x"]
    assert sides.low == pytest.approx(np.percentile(values, (100 - PERCENTILE) / 2), abs=4 * largest / 2048)
    assert sides.high == pytest.approx(np.percentile(values, (100 + PERCENTILE) / 2), abs=4 * largest / 2048)
    assert -sides.low != sides.high


@pytest.mark.slow
def test_entropy_clips_a_heavy_tail_and_no_even_spread(small: Path) -> None:
    heavy, even = heavy_tailed(), np.linspace(-2, 2, 40_000)
    entropy, minmax = (
        [find_ranges(small, of_x(values), ["x"], method=method)["x"].high for values in (heavy, even)]
        for method in ("entropy", "minmax")
    )
    assert 3 * np.abs(heavy).mean() < entropy[0] < 0.6 * minmax[0]
    assert entropy[1] > 0.95 * minmax[1]


@pytest.mark.parametrize("symmetric", [True, False])
@EACH_METHOD
def test_the_order_of_batches_does_not_matter(small: Path, method: str, symmetric: bool) -> None:
    """onnxruntime's histograms start with the first batch: a million bins for one that is a thousand times louder."""
    batches = of_x(heavy_tailed(4000) * np.float32(1e-6), heavy_tailed(4000), np.full(400, 0.5))
    forth, back = (
        find_ranges(small, order, ["x"], method=method, symmetric=symmetric)["x"] for order in (batches, batches[::-1])
    )
    assert forth == back
    assert forth.high > 1


@EACH_METHOD
def test_equal_inputs_give_equal_ranges(small: Path, method: str) -> None:
    batches = make_batches(50, 70)
    first, second = (find_ranges(small, batches, ["hidden"], method=method) for _ in range(2))
    assert first == second


def test_half_precision_tensors_have_ranges(small: Path) -> None:
    batches = make_batches(50)
    hidden = (batches[0]["x"] @ WEIGHT).astype(np.float16)
    for method in METHODS:
        found = find_ranges(small, batches, ["half"], method=method)["half"]
        assert 0.9 * np.abs(hidden).max() < found.high <= np.abs(hidden).max()


def test_weights_may_lie_beside_the_graph(tmp_path: Path, small: Path) -> None:
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(small), outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    batches = make_batches(5)
    assert find_ranges(outside, batches, ["hidden"]) == find_ranges(small, batches, ["hidden"])
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CalibrationError, match=r"outside\.onnx: cannot be read as ONNX"):
        find_ranges(outside, batches, ["hidden"])
    assert read_model(outside, weights=False).graph.node[0].name == "product"


@pytest.mark.slow
def test_activations_of_one_batch_are_held_at_a_time(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Array]] = []
    most = 0

    class Watching:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.session = open_session(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.session, name)

        def run(self, names: list[str], feeds: dict[str, Array]) -> list[Array]:
            nonlocal most
            most = max(most, sum(reference() is not None for reference in alive))
            results: list[Array] = self.session.run(names, feeds)
            alive.extend(weakref.ref(array) for array in results)
            return results

    open_session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", Watching)
    for method in METHODS:
        find_ranges(small, make_batches(*[20] * 10), ["hidden", "y"], method=method)
    histograms(small, make_batches(*[20] * 10), ["hidden", "y"])
    assert len(alive) == (10 + 20 + 20 + 20) * 2
    assert most <= 1  # the last one of the batch before


@EACH_METHOD
def test_nothing_is_printed_logged_or_left_behind(
    small: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    handlers = list(logging.getLogger().handlers)
    find_ranges(small, make_batches(5), ["hidden"], method=method)
    assert list(tmp_path.iterdir()) == [small]
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("method", "n_runs"), [("minmax", 3), pytest.param("entropy", 6, marks=pytest.mark.slow), ("percentile", 6)]
)
def test_progress_counts_the_runs_of_the_graph(
    small: Path, method: str, n_runs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        print(done)  # noqa: T201
        told.append((done, total))

    find_ranges(small, make_batches(5, 6, 7), ["hidden", "x"], method=method, on_progress=tell)
    assert told == [(done, n_runs) for done in range(1, n_runs + 1)]
    assert len(capsys.readouterr().out.split()) == n_runs  # what onnxruntime prints is swallowed, not what others do


# Histograms


def test_histograms_count_every_value(small: Path) -> None:
    batches = make_batches(50, 30)
    hidden = np.concatenate([batch["x"] @ WEIGHT for batch in batches])
    found = histograms(small, batches, ["hidden", "x"], bins=16)
    assert list(found) == ["hidden", "x"]
    wanted, edges = np.histogram(hidden.astype(np.float64), 16)
    np.testing.assert_array_equal(found["hidden"].counts, wanted)
    np.testing.assert_allclose(found["hidden"].edges, edges, rtol=1e-6)
    assert found["x"].counts.sum() == 80 * 4
    assert [array.dtype.name for array in (found["x"].counts, found["x"].edges)] == ["int64", "float64"]


def test_histograms_are_of_256_bins_between_the_extremes(small: Path) -> None:
    batches = of_x(heavy_tailed(4000), np.full(40, 0.5))
    found = histograms(small, batches, ["x"])["x"]
    assert (len(found.counts), len(found.edges)) == (256, 257)
    assert (found.edges[0], found.edges[-1]) == (batches[0]["x"].min(), batches[0]["x"].max())
    assert found.counts.sum() == 4040


def test_a_constant_has_a_histogram(small: Path) -> None:
    found = histograms(small, of_x(np.full(40, 0.5)), ["x"], bins=3)["x"]
    np.testing.assert_array_equal(found.counts, [0, 40, 0])
    assert found.edges[0] < 0.5 < found.edges[-1]


# What is refused


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (["hidden", "hiden"], "no tensor hiden in the graph"),
        (["weight"], "weight is a weight, wanted a tensor that the inputs change"),
        (["place"], "place is of dtype int64, wanted floats"),
        (["broken"], "batch 0: broken holds NaN or Inf"),
        (["hidden", "nothing"], "nothing is zero in all batches"),
        ([], "no tensors are named"),
    ],
)
def test_tensors_without_a_range_are_refused(small: Path, tensors: list[str], message: str) -> None:
    for method in METHODS:
        with pytest.raises(CalibrationError, match=rf"small\.onnx: {message}"):
            find_ranges(small, make_batches(5), tensors, method=method)
    with pytest.raises(CalibrationError, match=rf"small\.onnx: {message}"):
        histograms(small, make_batches(5), tensors)


def changed(change: Callable[[dict[str, Array]], object]) -> Batches:
    batches = make_batches(5, 5)
    change(batches[1])
    return batches


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches, wanted at least one"),
        (changed(lambda batch: batch.pop("before")), "batch 1: found the inputs x, wanted before, x"),
        (changed(lambda batch: batch.update(more=batch["x"])), "batch 1: found the inputs before, more, x, wanted"),
        (changed(lambda batch: batch.clear()), "batch 1: found the inputs none, wanted before, x"),
        (
            changed(lambda batch: batch.update(x=batch["x"].astype(np.float64))),
            "batch 1: x is of dtype float64, wanted float32",
        ),
        (changed(lambda batch: batch.update(x=batch["x"][:, :3])), r"x has shape \(5, 3\), wanted \(streams, 4\)"),
        (changed(lambda batch: batch.update(x=batch["x"][0])), r"x has shape \(4,\), wanted \(streams, 4\)"),
        (
            changed(lambda batch: batch.update(before=batch["before"][:2])),
            "batch 1: axis streams has size 2 in before, but 5 in x; wanted one size",
        ),
        (
            changed(lambda batch: batch.update(x=batch["x"][:0], before=batch["before"][:0])),
            r"batch 1: hidden is empty, shape \(0, 3\)",
        ),
        (changed(lambda batch: batch["x"].fill(np.inf)), "batch 1: hidden holds NaN or Inf"),
    ],
)
def test_batches_that_do_not_fit_are_refused(small: Path, batches: Batches, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        find_ranges(small, batches, ["hidden"])


def test_a_method_that_is_not_known_is_refused(small: Path) -> None:
    with pytest.raises(CalibrationError, match="method: found 'mean', wanted one of minmax, entropy, percentile"):
        find_ranges(small, make_batches(5), ["hidden"], method="mean")


def test_a_clipped_range_that_leaves_nothing_is_refused(small: Path) -> None:
    values = np.zeros(400_000)
    values[17] = 3
    with pytest.raises(CalibrationError, match=r"x: percentile leaves the range .* of 0.0 to 3.0.*; use minmax"):
        find_ranges(small, of_x(values), ["x"], method="percentile")
    assert find_ranges(small, of_x(values), ["x"])["x"] == Range(-3, 3)


@pytest.mark.parametrize("content", [b"", b"noise" * 50])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "none.onnx").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"none\.onnx: (cannot be read as ONNX|no tensor hidden)"):
        find_ranges(tmp_path / "none.onnx", make_batches(5), ["hidden"])


def test_a_graph_that_onnxruntime_does_not_know_is_refused(tmp_path: Path) -> None:
    model = small_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "strange.onnx")
    with pytest.raises(CalibrationError, match=r"strange\.onnx: onnxruntime cannot open it"):
        find_ranges(tmp_path / "strange.onnx", make_batches(5), ["hidden"])


def test_a_number_of_bins_below_one_is_refused(small: Path) -> None:
    with pytest.raises(CalibrationError, match="bins: found 0, wanted at least 1"):
        histograms(small, make_batches(5), ["hidden"], bins=0)


@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, np.inf), (-np.inf, 0), (np.nan, 1), (0, np.nan)])
def test_a_range_is_two_finite_numbers_in_order(low: float, high: float) -> None:
    assert Range(2, 2).low == 2
    with pytest.raises(CalibrationError, match="wanted two finite numbers in order"):
        Range(low, high)
