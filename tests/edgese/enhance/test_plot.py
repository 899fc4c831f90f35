"""Learning curves: whatever columns a log has, a picture; what is no log is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgese.errors import EdgeseError
from edgese.train.curves import write_learning_curves

RUN = """\
step,loss,magnitude,complex,waveform,phase,learning_rate,gradient_norm,audio_per_second,validation_loss,validation_si_sdr_db
25,1.00639,0.517618,1.3817,0.371313,,0.00025,0.14501,25.0092,,
50,0.754459,0.308295,1.2296,0.386425,,0.0005,0.265675,25.6864,0.471874,6.0198
75,0.539443,0.247275,0.729976,0.365873,,0.00075,0.159011,25.8484,,
100,0.190895,0.12633,0.366271,0.123419,,0.001,0.120614,24.888,0.408648,7.96003
"""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def panels(figure: Figure) -> dict[str, Axes]:
    return {axis.get_title(loc="left"): axis for axis in figure.axes}


def labels(axis: Axes) -> list[str]:
    """Of the curves, the faint ones behind them left out."""
    return [str(line.get_label()) for line in axis.lines if not str(line.get_label()).startswith("_")]


def write_log(folder: Path, text: str) -> Path:
    log = folder / "log.csv"
    log.write_text(text, encoding="utf-8")
    return log


def test_a_run_s_log_becomes_a_png(tmp_path: Path, drawn: list[Figure]) -> None:
    png = tmp_path / "curves.png"
    write_learning_curves(write_log(tmp_path, RUN), png)
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    (figure,) = drawn
    found = panels(figure)
    assert list(found) == ["loss", "terms of the loss", "dB", "learning rate"]
    assert labels(found["loss"]) == ["loss", "validation_loss\nbest 0.4086 at 100"]
    assert labels(found["terms of the loss"]) == ["magnitude", "complex", "waveform"]
    assert [axis.get_yscale() for axis in found.values()] == ["log", "log", "linear", "linear"]


def test_scores_of_other_kinds_get_panels_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    log = write_log(
        tmp_path,
        "step,loss,adversarial,gradient_norm,steps_per_second,validation_pesq_wb,validation_stoi\n"
        "1,3,-1,9,8,,\n2,2.5,-2,9,8,1.7,0.8\n3,2,1,9,8,1.9,0.7\n",
    )
    write_learning_curves(log, tmp_path / "curves.png")
    found = panels(drawn[0])
    assert list(found) == ["loss", "terms of the loss", "pesq_wb", "stoi"]
    assert labels(found["terms of the loss"]) == ["adversarial"]
    assert labels(found["pesq_wb"]) == ["validation_pesq_wb\nbest 1.9 at 3"]
    assert labels(found["stoi"]) == ["validation_stoi\nbest 0.8 at 2"]
    assert found["terms of the loss"].get_yscale() == "linear"  # it has negative values
    assert np.array_equal(found["pesq_wb"].lines[0].get_xydata(), [[2, 1.7], [3, 1.9]])


def test_training_losses_are_means_over_their_neighbours_with_all_values_behind(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    values = 2 + np.random.default_rng(0).standard_normal(200)
    rows = "".join(f"{25 * at},{value:.6f}\n" for at, value in enumerate(values))
    write_learning_curves(write_log(tmp_path, "step,loss\n" + rows), tmp_path / "curves.png")
    smooth, raw = (line.get_ydata() for line in drawn[0].axes[0].lines)
    assert np.allclose(raw, values, atol=1e-6)
    assert smooth[100] == pytest.approx(values[98:103].mean(), abs=1e-6)  # a fortieth of the run around it
    assert smooth[0] == pytest.approx(values[:3].mean(), abs=1e-6)
    assert smooth[-1] == pytest.approx(values[-3:].mean(), abs=1e-6)


def test_rows_that_end_early_and_values_that_are_not_finite_are_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    log = write_log(tmp_path, "step,loss,learning_rate,validation_loss\n1,1,0.1,\n2,nan,0.2,0.5\n3,2\n4,3,,inf\n")
    write_learning_curves(log, tmp_path / "curves.png")
    found = panels(drawn[0])
    raw, validation = (found["loss"].lines[at] for at in (1, 2))
    assert np.array_equal(raw.get_xydata(), [[1, 1], [3, 2], [4, 3]])
    assert np.array_equal(validation.get_xydata(), [[2, 0.5]])
    assert np.array_equal(found["learning rate"].lines[0].get_xydata(), [[1, 0.1], [2, 0.2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found no steps, wanted the log.csv"),
        ("step,loss\n", "found no steps"),
        ("time,loss\n1,2\n", "found no steps"),
        ("step\n1\n2\n", "found no curve to draw"),
        ("step,loss,gradient_norm\n1,,3\n", "found no curve to draw"),
        ("step,loss\n1,two\n", r"column loss: .*'two'; wanted numbers"),
    ],
)
def test_what_is_no_log_is_named_and_leaves_no_picture(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeseError, match=rf"log\.csv: .*{message}"):
        write_learning_curves(write_log(tmp_path, text), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("content", [None, b"step,loss\n\xff\xfe,1\n"], ids=["missing", "not text"])
def test_what_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    if content is not None:
        log.write_bytes(content)
    with pytest.raises(EdgeseError, match=r"log\.csv: cannot be read as CSV"):
        write_learning_curves(log, tmp_path / "curves.png")
