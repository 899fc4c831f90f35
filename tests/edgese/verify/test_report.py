"""The report: one page that needs nothing else, says all that was found, and cannot make a failure look like a pass."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import io
import itertools
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("jinja2", reason="the [report] extra is not installed")

from edgese.errors import EdgeseError, install_command
from edgese.graphs.bundles import shipped_bundle
from edgese.metrics.difference import TensorError
from edgese.metrics.pairs import Recording, read_recordings
from edgese.metrics.scores import WaveError
from edgese.verify.findings import Check, Listener, Proof, Streamed, Verification
from edgese.verify.prove import prove
from edgese.verify.report.page import render, write_report
from edgese.verify.report.plots import DIFFERENCE_DBFS, EXCERPT_S, latencies, timelines
from edgese.verify.report.tables import failures, fixed, from_one, margins, scientific, signed
from export.bundle import Bundle, Graph

RATE_HZ, HOP = 16_000, 128
VOID = {"meta", "img", "br", "link", "hr", "input"}
HELD = Check("delay", True, "384 samples", "384 samples")
BROKEN = Check("drift", False, "SNR 61.2 dB in the first tenth, 38.1 in the worst", "SNR >= 40 dB in every tenth")


class Page(HTMLParser):
    """What a browser would see: elements, their text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []  # the tags around it, and a text
        self.feed(text)
        self.close()
        assert self.open == [], "tags that are never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in {tag}"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((tuple(self.open), " ".join(data.split())))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags: str) -> str:
        """All that is written, or what is written inside of these tags."""
        return " ".join(text for around, text in self.texts if set(tags) <= set(around) and "style" not in around)

    @property
    def words(self) -> str:
        """All that is written, but styles and scripts."""
        return " ".join(text for around, text in self.texts if not {"style", "script"} & set(around))


# Verifications, made up


def graph(block: int = 1, precision: str = "fp32", variant: str = "", file: str | None = None) -> Graph:
    name = ".".join(filter(None, (f"block{block}", precision, variant, "onnx")))
    return Graph(file or name, precision, block, (), (), {}, variant)


def streamed(snr_db: float = 115.0, n_hops: int = 3008, **changes: Any) -> Streamed:
    bad = math.isnan(snr_db)
    error = TensorError("enhanced", 8e-7, 4e-8, 1e-6, 1 - 1e-12, 0)
    if bad:
        error = TensorError("enhanced", math.nan, math.nan, math.nan, math.nan, 12)
    wave = WaveError(math.nan if bad else 10 ** (-snr_db / 20), snr_db, snr_db, 1e-5)
    fields = {
        "n_hops": n_hops,
        "tensors": (error, dataclasses.replace(error, tensor="ssm_0", relative=math.nan if bad else 2e-6)),
        "tensors_float64": (error, dataclasses.replace(error, tensor="ssm_0")),
        "wave": wave,
        "wave_float64": wave,
        "pytorch_float64": WaveError(1e-7, 136.6, 136.5, 1e-6),
        "tenths_db": tuple(snr_db - 0.1 * at for at in range(10)),
        "after_hours_db": snr_db - 3,
        "difference_dbfs": np.full(round(n_hops * HOP / RATE_HZ), math.nan if bad else -30 - snr_db),
        "call_s": np.linspace(0.5e-3, 1.5e-3, n_hops),
    }
    return Streamed(**{**fields, **changes})


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Quiet noise that comes and goes."""
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(seed).standard_normal(len(times))
    return (0.005 * noise * (1 + np.sin(6 * times))).astype(np.float32)


def proof(
    of: Graph | None = None, runtime: str = "onnxruntime", checks: tuple[Check, ...] = (HELD,), **changes: Any
) -> Proof:
    fields = {"streamed": streamed(), "listeners": (Listener("first", 1.643, 1.642, 0.8307, 0.8306),)}
    return Proof(of or graph(), runtime, checks, **{**fields, "excerpt": speech(1.0) * np.float32(1.001), **changes})


def verification(*proofs: Proof, checks: tuple[Check, ...] = (), seconds: float = 1.0, **changes: Any) -> Verification:
    audio = {"sample_rate_hz": RATE_HZ, "n_fft": 512, "hop": HOP, "n_bins": 257}
    proofs = proofs or (proof(), proof(graph(8)))
    fields = {
        "bundle": Bundle(Path("made-up"), {"name": "made-up", "audio": audio}, tuple(p.graph for p in proofs)),
        "minutes": 10.0,
        "checks": checks,
        "proofs": proofs,
        "recordings": (Recording("first", speech(seconds, 1), speech(seconds, 2), "ab" * 32),),
        "pytorch": {p.graph.variant: speech(seconds) for p in proofs},
        "provenance": {"bundle": "made-up", "files": {"model_1.onnx": "cd" * 32}, "made": "2026-01-02T03:04:05+00:00"},
    }
    return Verification(**{**fields, **changes})


def page(*proofs: Proof, **changes: Any) -> Page:
    return Page(render(verification(*proofs, **changes)))


def rows(found: Page) -> list[str]:
    """The text of each row of each table."""
    parts = re.findall(r"<tr>(.*?)</tr>", found.source, flags=re.DOTALL)
    return [" | ".join(text for _, text in Page(f"<table><tr>{part}</tr></table>").texts) for part in parts]


def players(found: Page) -> dict[str, np.ndarray]:
    sounds = {}
    for audio in found.all("audio"):
        kind, _, content = str(audio["src"]).partition(",")
        assert kind == "data:audio/flac;base64"
        wave, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(content)))
        assert rate_hz == RATE_HZ
        sounds[str(audio["aria-label"])] = wave
    return sounds


FAILING = (
    proof(),
    proof(graph(8), checks=(HELD, BROKEN)),
    proof(graph(16), checks=(Check("runs", False, "cannot be opened", "no error"),), streamed=None, excerpt=None),
    proof(graph(4), checks=(), streamed=None, listeners=(), excerpt=None),
)
TOGETHER = Check("random blocks of fp32", False, "SNR 12.0 dB", "SNR >= 100 dB")


# One file, whole and strict


def test_a_report_is_a_page_and_the_same_facts_as_json(tmp_path: Path) -> None:
    made = verification(*FAILING)
    html = write_report(made, tmp_path / "new" / "folder")
    assert html == tmp_path / "new" / "folder" / "report.html"
    assert sorted(path.name for path in html.parent.iterdir()) == ["report.html", "report.json"]
    assert html.read_text(encoding="utf-8") == render(made)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads((html.parent / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == json.loads(json.dumps(made.entry()))
    assert read["passed"] is False


def test_numbers_that_are_not_finite_are_still_strict_json(tmp_path: Path) -> None:
    html = write_report(verification(proof(streamed=streamed(math.nan)), proof(streamed=streamed(math.inf))), tmp_path)
    text = html.with_suffix(".json").read_text(encoding="utf-8")
    assert not re.search(r"[ \[](NaN|-?Infinity)", text)
    assert [one["wave"]["snr_db"] for one in json.loads(text)["graphs"]] == ["nan", "inf"]


def test_an_older_report_is_replaced(tmp_path: Path) -> None:
    write_report(verification(*FAILING), tmp_path)
    html = write_report(verification(), tmp_path)
    assert "PASSED" in html.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["passed"] is True
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_to_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EdgeseError, match=r"^\S*file/reports: the report cannot be written \(\w[^)]*\); free space or"):
        write_report(verification(), tmp_path / "file" / "reports")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_page_that_cannot_get_its_name_leaves_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(EdgeseError, match=r"the report cannot be written \(\w[^)]*\)"):
        write_report(verification(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"report.html", "report.json"}
    assert list((tmp_path / "report.html").iterdir()) == []


def test_without_jinja2_the_mend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "edgese.verify.report.page")
    with pytest.raises(EdgeseError, match=rf"jinja2 is missing .*: {re.escape(install_command('report'))}"):
        importlib.import_module("edgese.verify.report.page")


@pytest.mark.parametrize("made", [verification(), verification(*FAILING, checks=(TOGETHER,))], ids=["passed", "failed"])
def test_the_page_loads_nothing_and_every_link_leads_somewhere(made: Verification) -> None:
    found = Page(render(made))
    links = [
        str(value) for _, attributes in found.elements for name, value in attributes.items() if name in ("href", "src")
    ]
    assert len(links) > 10
    assert all(link.startswith(("data:", "#")) for link in links)
    without_media = re.sub(r"data:[^\"]*", "", found.source)
    assert not re.search(r"//\w|@import|url\(|srcset|fetch|<link|<iframe", without_media)
    (policy,) = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none';")
    (script,) = re.findall(r"<script>(.*?)</script>", found.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert str(policy).endswith(f"script-src 'sha256-{digest}'")  # no other script runs, none inline
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)


@pytest.mark.parametrize("made", [verification(), verification(*FAILING, checks=(TOGETHER,))], ids=["passed", "failed"])
def test_the_page_can_be_read_aloud(made: Verification) -> None:
    found = Page(render(made))
    assert found.all("html") == [{"lang": "en"}]
    assert found.text("title")
    headings = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    assert len(found.all("caption")) == len(found.all("table")) > 0
    assert all(cell.get("scope") for cell in found.all("th"))
    assert all(image["alt"] for image in found.all("img"))
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in found.all("svg"))
    assert all(audio["aria-label"] for audio in found.all("audio"))
    regions = [div["aria-label"] for div in found.all("div") if div.get("role") == "region"]
    assert len(set(regions)) == len(regions) == len(found.all("table"))


def test_a_report_of_ten_minutes_stays_small() -> None:
    blocks, minutes = (1, 4, 8, 16), 75_008
    made = verification(
        *(
            proof(
                graph(block, variant=variant),
                checks=(HELD,) * 13,
                streamed=streamed(n_hops=minutes, call_s=np.linspace(1e-3, 9e-3, minutes // block)),
                listeners=tuple(Listener(f"file {at}", 3.0, 3.0, 0.9, 0.9) for at in range(10)),
                excerpt=speech(30) * np.float32(1.001),
            )
            for variant in ("", "pcs")
            for block in blocks
        ),
        seconds=30,
    )
    text = render(made)
    assert len(text) < 2.5e6
    assert len(re.sub(r"data:[^\"]*", "", text)) < 200e3
    assert {len(wave) for wave in players(Page(text)).values()} == {round(EXCERPT_S * RATE_HZ)}


# The verdict


def test_what_holds_is_said_to_have_passed() -> None:
    found = page(checks=(dataclasses.replace(TOGETHER, passed=True),))
    assert found.text("h1") == "PASSED"
    assert "PASSED" in found.text("title")
    assert "FAILED" not in found.words
    assert "All 3 checks hold" in found.text("header")
    assert "2 graphs in onnxruntime" in found.text("header")
    assert "24 s (3,008 hops) streamed" in found.text("header")
    assert all("open" not in details for details in found.all("details"))


def test_a_failure_comes_first_and_is_named_with_what_was_found_and_wanted() -> None:
    found = page(*FAILING, checks=(TOGETHER,))
    assert found.text("h1") == "FAILED"
    assert "FAILED" in found.text("title")
    assert "PASSED" not in found.source
    assert "4 failures among 5 checks" in found.text("header")
    listed = found.source[found.source.index('id="failures"') : found.source.index("<nav")]
    assert found.source.index('id="failures"') < found.source.index('id="summary"')
    assert [text for around, text in found.texts if "li" in around and "strong" in around] == [
        *("random blocks of fp32", "drift", "runs", "checks"),
    ]
    for text in (TOGETHER.found, BROKEN.found, BROKEN.wanted, "cannot be opened", "block8.fp32.onnx in onnxruntime"):
        assert text.replace(">", "&gt;") in listed
    assert "block1.fp32.onnx" not in listed
    assert ["open" in details for details in found.all("details")] == [False, True, True, True]


def test_a_graph_that_could_not_be_run_shows_why() -> None:
    found = page(*FAILING)
    summary = [row for row in rows(found) if "Not run" in row]
    assert summary == [
        "block16.fp32.onnx | onnxruntime | ✗ FAILED | Not run: cannot be opened | 0/1",
        "block4.fp32.onnx | onnxruntime | ✗ FAILED | Not run: nothing was tried | 0/0",
    ]
    assert "Nothing was tried." in found.words


def test_where_nothing_could_be_run_the_page_still_stands() -> None:
    found = page(dataclasses.replace(FAILING[2], listeners=()))
    assert found.text("h1") == "FAILED"
    assert "nothing streamed" in found.text("header")
    assert found.words.count("No graph was streamed.") == 2
    assert set(players(found)) == {"Noisy", "Clean", "PyTorch"}


def test_nothing_at_all_is_no_pass() -> None:
    empty = dataclasses.replace(verification(), proofs=())
    assert [failure.what for failure in failures(empty)] == ["graphs that were tried"]
    found = Page(render(empty))
    assert found.text("h1") == "FAILED"
    assert "No graph was tried." in found.words


# The tables


def test_every_check_of_every_graph_is_there_with_its_verdict() -> None:
    checks = tuple(Check(f"check {at}", at % 3 > 0, f"found {at}", f"wanted {at}") for at in range(7))
    found = page(proof(checks=checks), proof(graph(8), checks=checks[::-1]), checks=checks[:2])
    expected = [
        f"{check.name} | {'✓ passed' if check.passed else '✗ FAILED'} | {check.found} | {check.wanted}"
        for check in (*checks[:2], *checks, *checks[::-1])
    ]
    assert [row for row in rows(found) if row.startswith("check ")] == expected


def test_the_summary_holds_each_graph_s_numbers() -> None:
    found = rows(page(proof(graph(8, "fp16", "pcs"), "openvino", streamed=streamed(61.25)), proof(listeners=())))
    assert "block8.fp16.pcs.onnx | openvino | ✓ passed | 61.2 | 8.7e-04 | 61.2 | 61.2, 60.4 | +0.0010 | 1/1" in found
    dash = "\N{EN DASH}"
    assert f"block1.fp32.onnx | onnxruntime | ✓ passed | 115.0 | 1.8e-06 | 115.0 | 115.0, 114.1 | {dash} | 1/1" in found


def test_tensors_waveforms_and_listeners_are_there() -> None:
    found = rows(page(proof()))
    numbers = "8.0e-07 | 4.0e-08 | 2.0e-06 | 1.0e-12 | 0 | 8.0e-07 | 4.0e-08 | 1.0e-06 | 1.0e-12 | 0"
    assert f"ssm_0 | {numbers}" in found
    assert "PyTorch with float64 | 1.0e-07 | 136.6 | 136.5 | 1.0e-06" in found
    minus = "\N{MINUS SIGN}"
    assert f"first | 1.643 | 1.642 | {minus}0.0010 | 0.8307 | 0.8306 | {minus}0.0001" in found
    assert "SNR | " + " | ".join(f"{115 - 0.1 * at:.1f}" for at in range(10)) in found


def test_what_is_not_finite_is_written_in_words() -> None:
    found = page(
        proof(streamed=streamed(math.nan), listeners=(Listener("first", 1.6, math.nan, 0.8, math.nan),)),
        proof(graph(8), streamed=streamed(math.inf)),
    )
    assert not re.search(r"\b(nan|inf)\b", found.words)
    summary = rows(found)[1:3]
    assert summary[0] == "block1.fp32.onnx | onnxruntime | ✓ passed | NaN | NaN | NaN | NaN, NaN | NaN | 1/1"
    assert "| infinite | 0 | infinite | infinite, infinite |" in summary[1]
    assert "enhanced | NaN | NaN | NaN | NaN | 12 |" in " ".join(rows(found))


def test_margins_name_the_worst_graph_of_each_precision() -> None:
    proofs = [
        proof(streamed=streamed(115.0)),
        proof(graph(8), streamed=streamed(104.0)),
        proof(graph(4), streamed=streamed(math.inf, tenths_db=(90.0, *[math.inf] * 9)), listeners=()),
        proof(graph(1, "fp16"), streamed=streamed(61.0)),
        proof(graph(8, "fp16"), streamed=streamed(math.nan)),
    ]
    plain = {margin.what: margin for margin in margins("fp32", proofs)}
    assert len(plain) == 7
    snr = plain["SNR against PyTorch"]
    assert (snr.limit, snr.worst, snr.where) == ("≥ 100 dB", "104.0 dB", "block8.fp32.onnx in onnxruntime")
    assert plain["SNR after hours, projected"].worst == "101.0 dB"
    assert plain["PESQ-WB lost, mean"].worst == "+0.0010"
    half = {margin.what: margin for margin in margins("fp16", proofs)}
    assert half["SNR against PyTorch"].worst == "NaN"
    assert half["SNR against PyTorch"].where == "block8.fp16.onnx in onnxruntime"
    assert half["Difference of a sample"].limit == "none"
    unrun = margins("fp32", [proof(streamed=None, listeners=())])
    assert {margin.worst for margin in unrun} == {"not measured"}


def test_limits_are_there_with_their_reasons() -> None:
    found = page(proof(), proof(graph(1, "fp16"), streamed=streamed(61.0)))
    assert "Another order of sums, no more" in found.words
    assert "11 bits of mantissa" in found.words
    assert "11 bits of mantissa" not in page(proof()).words
    unknown = page(proof(graph(1, "int3"), checks=(BROKEN,), streamed=None, excerpt=None, listeners=()))
    assert "No graph has a precision that limits are set for." in unknown.words


def test_provenance_of_any_shape_is_there() -> None:
    machine = {"cpu": "EPYC", "extensions": ["avx2", "fma"], "versions": {"python": "3.11"}, "board": None}
    found = page(
        proof(), provenance={"manifest_sha256": "ef" * 32, "machine": machine, "files": {"a_b.onnx": "12" * 32}}
    )
    for text in ("ef" * 32, "EPYC", "avx2, fma", "python", "3.11", "a_b.onnx", "12" * 32, "Machine"):
        assert text in found.text("dl")


@pytest.mark.parametrize(
    "nasty", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "a & b"]
)
def test_names_are_text_and_nothing_else(nasty: str) -> None:
    made = verification(
        proof(graph(file=nasty), nasty, (Check(nasty, False, nasty, nasty),), listeners=(Listener(nasty, 1, 1, 1, 1),)),
        checks=(Check(nasty, False, nasty, nasty),),
    )
    made = dataclasses.replace(
        made,
        bundle=dataclasses.replace(made.bundle, manifest={**made.bundle.manifest, "name": nasty}),
        recordings=(dataclasses.replace(made.recordings[0], name=nasty),),
        provenance={nasty: nasty, "files": {nasty: nasty}},
    )
    found = Page(render(made))
    assert len(found.all("script")) == 1
    assert not any("onerror" in attributes for _, attributes in found.elements)
    assert nasty in found.text("title")
    assert found.words.count(nasty) >= 12
    assert any(nasty in str(drawing["aria-label"]) for drawing in found.all("svg"))


# What is seen and heard


def test_players_hold_what_was_recorded_and_made() -> None:
    found = players(page(proof(excerpt=speech(1.0, 7)), seconds=1.0))
    minus = "\N{MINUS SIGN}"
    assert list(found) == ["Noisy", "Clean", "PyTorch", "onnxruntime FP32", f"onnxruntime FP32 {minus} PyTorch"]
    for name, seed in (("Clean", 1), ("Noisy", 2), ("PyTorch", 0), ("onnxruntime FP32", 7)):
        assert np.allclose(found[name], speech(1.0, seed), atol=2**-15)


def test_a_difference_is_played_as_loud_as_the_page_says() -> None:
    pytorch = speech(1.0)
    apart = (1e-6 * speech(1.0, 5)).astype(np.float32)
    found = page(proof(excerpt=pytorch + apart))
    (gain_db,) = map(int, re.findall(r"played (\d+) dB louder", found.words))
    wave = players(found)["onnxruntime FP32 \N{MINUS SIGN} PyTorch"]
    exact = ((pytorch + apart) - pytorch).astype(np.float64)  # as float32 holds it
    assert np.allclose(wave, exact * 10 ** (gain_db / 20), atol=1e-4)
    assert 20 * np.log10(np.sqrt(np.mean(wave**2))) == pytest.approx(DIFFERENCE_DBFS, abs=1.1)
    assert np.abs(wave).max() < 1


def test_a_difference_with_a_peak_is_not_clipped_and_a_large_one_is_softened() -> None:
    pytorch = speech(1.0)
    click = pytorch.copy()
    click[500] += np.float32(0.5)
    name = "onnxruntime FP32 \N{MINUS SIGN} PyTorch"
    clicked = page(proof(excerpt=click))
    assert "played 6 dB louder" in clicked.words
    assert np.abs(players(clicked)[name]).max() == pytest.approx(0.5 * 10 ** (6 / 20), abs=1e-3)
    found = page(proof(excerpt=pytorch + 3 * np.sign(speech(1.0, 3))))
    assert "dB softer" in found.words
    assert "Clipped in the player" in found.words  # the graph's own
    assert np.abs(players(found)[name]).max() < 1


def test_loud_sounds_share_one_gain() -> None:
    loud = Recording("first", 16 * speech(1.0, 1), np.clip(320 * speech(1.0, 2), -1.9, 1.9), "ab" * 32)
    found = page(proof(), recordings=(loud,))
    assert "All are played \N{MINUS SIGN}6 dB" in found.words
    heard = players(found)
    assert 0.9 < np.abs(heard["Noisy"]).max() < 1
    assert np.allclose(heard["Clean"], loud.clean * 10 ** (-6 / 20), atol=2**-15)


def test_what_is_equal_or_no_number_is_said_instead_of_shown() -> None:
    equal = page(proof(excerpt=speech(1.0), streamed=streamed(math.inf, difference_dbfs=np.full(24, -200.0))))
    assert "No sample differs" in equal.words
    assert len(players(equal)) == 4
    assert "Nothing to draw: no second holds a finite difference." in equal.words
    assert "Nothing to draw: no tenth has a finite SNR." in equal.words
    broken = speech(1.0)
    broken[100] = np.nan
    bad = page(proof(excerpt=broken, streamed=streamed(math.nan)))
    assert "It holds NaN or Inf: nothing to show or to play" in bad.words
    assert set(players(bad)) == {"Noisy", "Clean", "PyTorch"}


def test_one_graph_stands_for_each_runtime_precision_and_variant() -> None:
    found = page(
        proof(graph(1)),
        proof(graph(8), streamed=streamed(104.0)),
        proof(graph(1, variant="pcs")),
        proof(graph(1, "fp16"), streamed=streamed(61.0)),
        proof(graph(8, "fp16"), streamed=streamed(math.nan)),
        proof(graph(1), "openvino"),
        proof(graph(8), "openvino", streamed=None, excerpt=None),
    )
    made = [name for name in players(found) if "FP" in name and "PyTorch" not in name]
    assert made == ["onnxruntime FP32", "onnxruntime FP32 with pcs", "onnxruntime FP16", "openvino FP32"]
    assert "block8.fp32.onnx, the lowest SNR of 2 graphs" in found.words
    assert "block8.fp16.onnx, the lowest SNR of 2 graphs" in found.words  # NaN is lower than any
    assert len(found.all("img")) == len(found.all("audio")) == 12


# Time


def test_the_error_over_time_is_drawn_for_each_runtime_with_its_limits() -> None:
    long = streamed(61.0, n_hops=75_008)
    first, second = timelines(
        [proof(), proof(graph(8)), proof(graph(1, "fp16"), "openvino", streamed=long), proof(streamed=None)]
    )
    assert (first.runtime, second.runtime) == ("onnxruntime", "openvino")
    assert [name for _, name in first.legend] == ["block1.fp32.onnx", "block8.fp32.onnx"]
    assert (first.point_s, second.point_s) == (1, 3)
    assert first.level is not None
    assert second.level is not None
    assert first.level.x.ticks[-1].label == "20 s"
    assert second.level.x.ticks[-1].label == "10 min"
    assert "from \N{MINUS SIGN}145 to \N{MINUS SIGN}145 dBFS" in first.level.alt
    assert second.tenths is not None
    assert [look for look, _ in second.tenths.paths] == ["limit", "s0"]
    assert second.tenths.y.low == 40  # the limit of FP16 is on the axis


def test_calls_are_counted_against_the_deadline_of_their_block() -> None:
    calls = np.array([1e-3] * 97 + [9e-3, 10e-3, 70e-3])
    audio = {"hop": HOP, "sample_rate_hz": RATE_HZ}
    one, eight = latencies(
        [proof(streamed=streamed(call_s=calls)), proof(graph(8), streamed=streamed(call_s=calls))], audio
    )
    assert (one.deadline_ms, one.n_late, eight.deadline_ms, eight.n_late) == (8, 3, 64, 1)
    assert (one.n_calls, one.median_ms, one.largest_ms) == (100, pytest.approx(1), pytest.approx(70))
    assert one.p99_ms == pytest.approx(10.6)
    assert one.plot.x == eight.plot.x
    found = page(proof(streamed=streamed(call_s=calls)))
    assert "neither pinned to a core nor paced" in found.words
    assert "block1.fp32.onnx | onnxruntime | 100 | 1.00 | 10.60 | 70.00 | 8 | 3" in rows(found)


# Numbers


def test_numbers_are_written_as_they_are_read() -> None:
    minus = "\N{MINUS SIGN}"
    assert [fixed(value) for value in (115.24, -0.04, -3.0, None)] == ["115.2", "0.0", f"{minus}3.0", "\N{EN DASH}"]
    assert [signed(value) for value in (0.00123, -0.00123, 0.00001, math.nan)] == [
        "+0.0012",
        f"{minus}0.0012",
        "0.0000",
        "NaN",
    ]
    assert [scientific(value) for value in (8.27e-7, 0.0, math.nan, -math.inf)] == [
        "8.3e-07",
        "0",
        "NaN",
        f"{minus}infinite",
    ]
    assert [from_one(value) for value in (1 + 2e-16, 1 - 1e-12, -1.0, math.nan)] == ["0", "1.0e-12", "2.0e+00", "NaN"]


# The whole


def test_a_graph_of_the_shipped_bundle_gets_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgese.verify.reference.VERIFICATION_HOPS", 400)
    bundle = Bundle.open(shipped_bundle("small"))
    bundle = dataclasses.replace(bundle, graphs=(bundle.graph(block=16),))
    (sample,) = read_recordings(None)
    part = slice(RATE_HZ, 4 * RATE_HZ)
    sample = dataclasses.replace(sample, clean=sample.clean[part], noisy=sample.noisy[part])
    made = prove(bundle, recordings=[sample], minutes=0)
    html = write_report(made, tmp_path)
    found = Page(html.read_text(encoding="utf-8"))
    assert found.text("h1") == "PASSED"
    written = rows(found)
    assert len(made.proofs[0].checks) > 10
    for check in (*made.checks, *made.proofs[0].checks):
        assert f"{check.name} | ✓ passed | {check.found} | {check.wanted}" in written
    assert len(players(found)) == 5
    assert html.stat().st_size < 2.5e6
