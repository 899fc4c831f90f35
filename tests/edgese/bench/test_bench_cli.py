"""`edgese bench` as a user meets it: one short run in real processes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgese.machine.host import allowed_cores, describe

from ..helpers.command_line import edgese, one_error, parsed
from ..helpers.identity_bundle import write_identity_bundle

SHORT = ("--block", "1", "--runtime", "onnxruntime", "--seconds", "0.1", "--repeat", "2")


@pytest.mark.slow
def test_a_run_prints_tables_and_what_to_use(identity_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    core = allowed_cores()[0]
    done = edgese("bench", identity_bundle, *SHORT, "--core", core, "--plot", "pictures", cwd=tmp_path)
    lines = done.stdout.decode().splitlines()
    assert lines[0].startswith(f"identity on core {core}: ")
    assert "onnxruntime 1" in lines[1]
    assert lines[3] == "a call of 1 stream on one core, ms; 2 turns of 0.1 s; spread: of p50 and p99 between turns"
    back, paced = lines[5].split(), lines[6].split()
    assert back[:5] == ["onnxruntime", "fp32", "1", "back", "1000"]
    assert paced[:2] == ["paced", "26"]
    assert paced[5:7] == ["-", "-"]  # so few calls know neither p99 nor p99.9
    assert any(line.startswith("lowest latency: nothing that was measured") for line in lines)
    assert any(line.startswith("most streams: ") for line in lines)
    assert [Path(line.removeprefix("picture: ")).name for line in lines[-2:]] == ["latency.png", "streams.png"]
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["latency.png", "streams.png"]
    assert {line.partition(":")[0] for line in done.stderr.decode().splitlines()} <= {"warning", "measuring"}


@pytest.mark.slow
def test_json_is_one_object_with_everything(identity_bundle: Path, tmp_path: Path) -> None:
    done = edgese("bench", identity_bundle, *SHORT, "--streams", "3", "--json", cwd=tmp_path, cold=True)
    entry = parsed(done.stdout)
    assert (entry["device"], entry["settings"]["streams"], entry["left_out"]) == ("cpu", 3, {})
    (result,) = entry["results"]
    assert (result["runtime"], result["block"], result["streams"]) == ("onnxruntime", 1, 3)
    assert [turn["calls"] for turn in result["paced"]["repeats"]] == [13, 13]
    assert len(result["cold_start"]) == 2
    assert len(result["one_core"]["points"]) >= 1
    assert [advice["purpose"] for advice in entry["recommendation"]] == ["lowest latency", "most streams"]
    assert [f"warning: {warning}" for warning in entry["warnings"]] == done.stderr.decode().splitlines()


@pytest.mark.slow
def test_a_runtime_that_was_asked_for_and_is_missing_is_an_error(identity_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "onnxruntime.py").write_text("raise ImportError('taken away')")
    done = edgese("bench", identity_bundle, *SHORT, cwd=tmp_path, code=1, path=[broken])
    assert one_error(done).startswith("error: onnxruntime cannot be loaded")


@pytest.mark.skipif(describe().board is not None, reason="this machine is a Jetson")
def test_no_other_machine_passes_for_a_jetson(identity_bundle: Path, tmp_path: Path) -> None:
    done = edgese("bench", identity_bundle, "--device", "jetson", "--json", cwd=tmp_path, code=1)
    line = one_error(done)
    assert line.startswith("error: --device jetson: this machine is no Jetson")
    assert "run edgese bench on the board" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "tensorrt"], "tensorrt: does not compute on --device cpu: see --device cuda"),
        (["--runtime", "abacus"], "runtime abacus: unknown; known here: native, onnxruntime"),
        (["--block", "3"], "no graph of block 3; this bundle has block 1 (fp32), block 16 (fp32)"),
        (["--precision", "int4"], "no graph of int4; this bundle has"),
        (["--core", "4096"], "--core: found 4096, wanted one that this process may use"),
        (["--plot", "taken"], "taken: cannot be made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], message: str, identity_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    done = edgese("bench", identity_bundle, *arguments, cwd=tmp_path, code=1)
    assert message in one_error(done)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "missing: not a bundle"),
        (["--model", "changed"], "fp32-block16.onnx: changed since it was exported"),  # as it was called once
    ],
)
def test_a_bundle_that_cannot_be_opened_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (write_identity_bundle(tmp_path / "changed") / "fp32-block16.onnx").write_bytes(b"other")
    assert message in one_error(edgese("bench", *arguments, cwd=tmp_path, code=1))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--device", "tpu"],
        ["--block", "0"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--host", "jetson.local"],
        ["a", "-m", "b"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    done = edgese("bench", *arguments, cwd=tmp_path, code=2)
    assert done.stdout == b""
    assert "Usage: edgese bench" in done.stderr.decode()
