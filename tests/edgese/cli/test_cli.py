"""The command line as a user meets it: exit codes, what goes to stdout and what to stderr, one line for each error.

Here and in the tests of single commands, one call of each command is a cold start; the others need not be.
"""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from edgese import __version__
from edgese.audio import Wave
from edgese.errors import install_command
from export.bundle import Bundle

from ..helpers.command_line import Done, edgese, one_error, parsed, run_python
from ..helpers.identity_bundle import write_identity_bundle

COMMANDS = (
    *("enhance", "listen", "serve", "evaluate", "calibrate", "export", "verify", "bench", "bundle", "push", "pull"),
    *("triton", "train", "info", "doctor"),
)
RATE_HZ = 16_000


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command is run: the tests' own files lie elsewhere."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def wave(speech_like: Callable[..., Wave]) -> Wave:
    """Half a second of samples that 16 bits hold exactly."""
    return np.round(speech_like(8_000) * 32768).astype(np.float32) / np.float32(32768)


@pytest.fixture
def noisy(folder: Path, wave: Wave) -> Path:
    path = folder / "noisy.wav"
    soundfile.write(path, wave, RATE_HZ, "PCM_16")
    return path


# Help and version


def test_version_is_told(tmp_path: Path) -> None:
    done = edgese("--version", cwd=tmp_path, cold=True)
    assert (done.stdout.decode(), done.stderr) == (f"edgese {__version__}\n", b"")


@pytest.mark.slow
def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = edgese("--help", cwd=tmp_path)
    assert done.stderr == b""
    text = done.stdout.decode()
    assert [command for command in COMMANDS if f" {command} " not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    done = edgese(command, "-h", cwd=tmp_path)
    assert done.stderr == b""
    text = done.stdout.decode()
    assert f"Usage: edgese {command}" in text
    assert "--json" in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["--nonsense"],
        ["enhance"],
        ["enhance", "--nonsense", "noisy.wav"],
        ["enhance", "noisy.wav", "--block", "0"],
        ["enhance", "noisy.wav", "--jobs", "none"],
        ["enhance", "noisy.wav", "--atten-limit", "-3"],
        ["enhance", "noisy.wav", "--atten-limit", "nan"],
        ["enhance", "noisy.wav", "--format", "BMP"],
        ["enhance", "noisy.wav", "--subtype", "PCM_17"],
        ["evaluate"],
        ["export", "--no-such-option"],
        ["train", "--data", "."],
        ["train", "--data", ".", "--output", "run", "--steps", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments: list[str], noisy: Path) -> None:
    done = edgese(*arguments, cwd=noisy.parent, code=2)
    assert "Usage: edgese" in (done.stderr + done.stdout).decode()
    assert bool(done.stdout) is not bool(arguments)  # without any arguments, help was as good as asked for
    assert names(noisy.parent) == ["noisy.wav"]


@pytest.mark.slow
def test_options_are_taken_by_their_former_names(tmp_path: Path) -> None:
    """`--out` and `--size` of train are `--output` and `--model`; `--blocks 1,4` of export is `--block 1 --block 4`."""
    pytest.importorskip("torch", reason="the [export] extra is not installed")
    done = edgese("train", "--data", ".", "--out", "run", "--size", "huge", cwd=tmp_path, code=2)
    assert "--model" in done.stderr.decode()
    assert "huge" in done.stderr.decode()
    done = edgese("export", "--blocks", "1,33", "-o", "new", cwd=tmp_path, code=1)
    assert "found [1, 33]" in one_error(done)
    done = edgese("export", "--blocks", "1,x", cwd=tmp_path, code=2)
    assert "wanted numbers such as 1,4,16" in " ".join(done.stderr.decode().split())


# Enhance


def test_a_file_is_enhanced_beside_itself(noisy: Path, wave: Wave, identity_bundle: Path) -> None:
    done = edgese("enhance", "noisy.wav", "-m", identity_bundle, cwd=noisy.parent, cold=True)
    assert done.stderr == b""
    assert done.stdout.decode().startswith("noisy.wav -> noisy.enhanced.wav: 0.5 s, 16000 Hz, 1 channel, ")
    assert done.stdout.count(b"\n") == 1
    enhanced, rate_hz = soundfile.read(noisy.with_name("noisy.enhanced.wav"), dtype="float32")
    assert rate_hz == RATE_HZ
    np.testing.assert_array_equal(enhanced, wave)
    assert names(noisy.parent) == ["noisy.enhanced.wav", "noisy.wav"]


def test_options_reach_the_output(noisy: Path, wave: Wave, halving_bundle: Path) -> None:
    """Half the amplitude, and again half of what is missing by the limit of 6 dB."""
    options = ["--atten-limit", "6.0206", "--format", "flac", "--subtype", "pcm_24", "--block", "1", "-j", "1", "-q"]
    edgese("enhance", "noisy.wav", "-o", "out/", "-m", halving_bundle, *options, cwd=noisy.parent)
    target = noisy.parent / "out" / "noisy.flac"
    enhanced, _ = soundfile.read(target, dtype="float32")
    np.testing.assert_allclose(enhanced, 0.75 * wave, atol=2**-22)
    assert soundfile.info(target).subtype == "PCM_24"


def test_a_summary_in_json(noisy: Path, identity_bundle: Path) -> None:
    done = edgese(
        "enhance", "noisy.wav", "missing.wav", "-o", "out", "-m", identity_bundle, "--json", cwd=noisy.parent, code=1
    )
    good, bad = parsed(done.stdout)["files"]
    assert (good["source"], good["target"], good["duration_s"]) == ("noisy.wav", "out/noisy.wav", 0.5)
    assert good["rtf"] > 0
    assert good["level_change_db"] == pytest.approx(0, abs=0.01)
    assert bad["source"] == "missing.wav"
    assert "found no such file" in bad["error"]


def test_a_folder_is_mirrored_and_a_bad_file_does_not_stop_the_others(
    folder: Path, wave: Wave, identity_bundle: Path
) -> None:
    for name in ("a.wav", "sub/b.flac", "sub/deep/c.ogg"):
        (folder / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / "in" / name, wave, RATE_HZ)
    (folder / "in" / "bad.wav").write_bytes(b"RIFF\x00\x00")
    (folder / "in" / "notes.txt").write_text("no sound")
    done = edgese("enhance", "in", "-o", "out", "-m", identity_bundle, cwd=folder, code=1)
    assert names(folder / "out") == ["a.wav", "sub", "sub/b.flac", "sub/deep", "sub/deep/c.ogg"]
    (error,) = done.stderr.decode().splitlines()
    assert error.startswith("error: in/bad.wav: ")
    summaries = done.stdout.decode().splitlines()
    assert [line.split(" -> ")[0] for line in summaries] == ["in/a.wav", "in/sub/b.flac", "in/sub/deep/c.ogg"]


def test_files_that_are_passed_over_are_named_and_joined_outputs_are_wrong_usage(
    noisy: Path, identity_bundle: Path
) -> None:
    folder = noisy.parent
    (folder / "talk.ac3").touch()
    done = edgese("enhance", folder, "--dry-run", "--json", "-m", identity_bundle, cwd=folder)
    assert parsed(done.stdout)["passed_over"] == [str(folder / "talk.ac3")]
    assert b"passed over, in formats that are not read: " in done.stderr
    done = edgese("enhance", noisy, noisy, "-o", "merged.wav", cwd=folder, code=2)
    assert b"Traceback" not in done.stderr
    assert not (folder / "merged.wav").exists()


def test_a_dry_run_tells_and_writes_nothing(noisy: Path, identity_bundle: Path) -> None:
    done = edgese("enhance", "noisy.wav", "-o", "deep/out.flac", "-m", identity_bundle, "--dry-run", cwd=noisy.parent)
    assert done.stderr == b""
    expected = "would write deep/out.flac from noisy.wav: 0.5 s, FLAC PCM_16, 16000 Hz, 1 channel\n"
    assert done.stdout.decode() == expected
    assert names(noisy.parent) == ["noisy.wav"]


def test_a_dry_run_finds_bad_files(noisy: Path) -> None:
    noisy.with_name("bad.wav").write_bytes(b"RIFF")
    done = edgese("enhance", "noisy.wav", "bad.wav", "-o", "out", "-n", "--json", cwd=noisy.parent, code=1)
    good, bad = parsed(done.stdout)["files"]
    assert good["target"] == "out/noisy.wav"
    assert bad["source"] == "bad.wav"
    assert done.stderr.decode() == f"error: {bad['error']}\n"
    assert names(noisy.parent) == ["bad.wav", "noisy.wav"]


@pytest.mark.parametrize("as_json", [False, True])
def test_stdin_to_stdout_is_a_wav_and_nothing_else(
    as_json: bool, noisy: Path, wave: Wave, identity_bundle: Path
) -> None:
    flags = ["--json"] if as_json else []
    done = edgese("enhance", "-", "-m", identity_bundle, *flags, cwd=noisy.parent, stdin=noisy.read_bytes())
    enhanced, rate_hz = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    assert (done.stdout[:4], rate_hz) == (b"RIFF", RATE_HZ)
    np.testing.assert_array_equal(enhanced, wave)
    if as_json:
        assert parsed(done.stderr)["files"][0]["target"] == "stdout"
    else:
        assert done.stderr.decode().startswith("stdin -> stdout: 0.5 s")
    assert names(noisy.parent) == ["noisy.wav"]


def test_an_existing_file_is_replaced_only_by_force(noisy: Path, halving_bundle: Path) -> None:
    target = noisy.with_name("out.wav")
    target.write_bytes(b"precious")
    command = ["enhance", "noisy.wav", "-o", "out.wav", "-m", halving_bundle]
    assert "exists already; replace it with --force" in one_error(edgese(*command, cwd=noisy.parent, code=1))
    assert target.read_bytes() == b"precious"
    edgese(*command, "--force", cwd=noisy.parent)
    assert soundfile.info(target).frames == 8_000


@pytest.mark.slow
def test_a_picture_is_drawn_beside_the_output(noisy: Path, identity_bundle: Path) -> None:
    pytest.importorskip("matplotlib", reason="the [plot] extra is not installed")
    done = edgese("enhance", "noisy.wav", "-o", "out.wav", "--plot", "-m", identity_bundle, cwd=noisy.parent)
    assert done.stdout.decode().rstrip().endswith("picture out.png")
    assert (noisy.parent / "out.png").read_bytes().startswith(b"\x89PNG")


# Errors: one line each


@pytest.fixture
def bad_bundles(tmp_path: Path, folder: Path) -> None:
    """In the folder: a bundle with a changed file, one that was never verified, and a manifest that is none."""
    (write_identity_bundle(folder / "changed") / "fp32-block16.onnx").write_bytes(b"other")
    write_identity_bundle(folder / "failed", verified=False)
    (folder / "none").mkdir()
    (folder / "none" / "manifest.json").write_text("{")


@pytest.mark.usefixtures("bad_bundles")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["enhance", "missing.wav", "-m", "GOOD"], "missing.wav: found no such file"),
        (["enhance", "noisy.wav", "-m", "missing"], "missing: not a bundle"),
        (["enhance", "noisy.wav", "-m", "none"], "manifest.json: not JSON"),
        (["enhance", "noisy.wav", "-m", "changed"], "fp32-block16.onnx: changed since it was exported"),
        (["enhance", "noisy.wav", "-m", "failed.unverified"], "did not pass its verification"),
        (["enhance", "noisy.wav", "-m", "GOOD", "--block", "3"], "no graph of block 3"),
        (["enhance", "noisy.wav", "-m", "GOOD", "--runtime", "abacus"], "runtime abacus: unknown"),
        (["enhance", "noisy.wav", "-m", "GOOD", "-o", "/dev/null/x.wav"], "/dev/null/x.wav: cannot be written"),
        (["enhance", "noisy.wav", "-m", "GOOD", "-o", "noisy.wav"], "is an input itself"),
        (["enhance", "noisy.wav", "-m", "GOOD", "-o", "-", "--plot"], "stdout: has no place for a plot"),
        (["enhance", "none", "-m", "GOOD"], "none: found no audio files"),
        (["enhance", "-", "-m", "GOOD"], "stdin: found an empty file"),
        (["info", "changed"], "fp32-block16.onnx: changed since it was exported"),
        (["evaluate", "--data", "missing", "-s", "GOOD"], "missing: no such folder"),
        (["export", "missing.safetensors", "-o", "out"], "missing.safetensors: no such weights file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line(arguments: list[str], message: str, noisy: Path, identity_bundle: Path) -> None:
    before = names(noisy.parent)
    arguments = [str(identity_bundle) if argument == "GOOD" else argument for argument in arguments]
    assert message in one_error(edgese(*arguments, cwd=noisy.parent, code=1))
    assert names(noisy.parent) == before


@pytest.mark.parametrize(
    "arguments", [("enhance", "\x1b]0;a"), ("enhance", "--\x1b]0;a"), ("\x1b]0;a",), ("-v", "info", "\x1b]0;a")]
)
def test_what_was_typed_steers_no_terminal(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = edgese(*arguments, cwd=tmp_path, code=1 if "enhance" in arguments and arguments[1][0] != "-" else 2)
    assert b"\\x1b]0;a" in done.stderr
    assert b"\x1b" not in done.stdout + done.stderr


def test_a_bug_keeps_its_traceback(noisy: Path, identity_bundle: Path) -> None:
    """The control: what is no user's error is not dressed up as one."""
    program = (
        "import sys, edgese.enhance.denoiser, edgese.__main__\n"
        "edgese.enhance.denoiser.Denoiser.blocks = None\n"
        f"sys.argv = ['edgese', 'enhance', 'noisy.wav', '-m', {str(identity_bundle)!r}]\n"
        "edgese.__main__.main()"
    )
    done = run_python(["-c", program], noisy.parent)
    assert done.returncode == 1
    assert b"Traceback" in done.stderr
    assert names(noisy.parent) == ["noisy.wav"]


# Evaluate and info


def write_pairs(data: Path, speech_like: Callable[..., Wave], n_pairs: int, n_samples: int) -> None:
    """Clean and noisy recordings of as many speakers."""
    rng = np.random.default_rng(0)
    for kind in ("clean", "noisy"):
        (data / kind).mkdir(parents=True)
    for index in range(n_pairs):
        clean = speech_like(n_samples, seed=index)
        soundfile.write(data / "clean" / f"p{index}.wav", clean, RATE_HZ)
        soundfile.write(data / "noisy" / f"p{index}.wav", clean + rng.normal(0, 0.03, n_samples), RATE_HZ)


@pytest.fixture
def pairs(folder: Path, speech_like: Callable[..., Wave]) -> Path:
    """Two pairs of a second and a half."""
    write_pairs(folder / "pairs", speech_like, n_pairs=2, n_samples=24_000)
    return folder / "pairs"


@pytest.mark.slow
def test_scores_in_json(folder: Path, pairs: Path, identity_bundle: Path) -> None:
    pytest.importorskip("pesq", reason="the [metrics] extra is not installed")
    done = edgese("evaluate", "--data", "pairs", "-s", identity_bundle, "-j", 1, "--json", cwd=folder, cold=True)
    assert done.stderr == b""
    (result,) = parsed(done.stdout)["systems"]
    assert [pair["name"] for pair in result["pairs"]] == ["p0", "p1"]
    assert result["failed"] == {}
    assert result["mean"]["noisy"] == result["mean"]["enhanced"]
    assert result["mean"]["noisy"]["pesq_wb"] == pytest.approx(
        np.mean([pair["noisy"]["pesq_wb"] for pair in result["pairs"]])
    )


@pytest.mark.slow
def test_scores_as_a_table_and_what_was_not_scored_fails_the_command(
    folder: Path, pairs: Path, identity_bundle: Path
) -> None:
    pytest.importorskip("pesq", reason="the [metrics] extra is not installed")
    (pairs / "noisy" / "p1.wav").write_bytes(b"RIFF")
    done = edgese("evaluate", "--data", "pairs", "-s", identity_bundle, "-j", 1, cwd=folder, code=1)
    scores, levels = done.stdout.decode().split("\n\n")
    *_, header, noisy, enhanced, gain = (line.split() for line in scores.splitlines())
    assert header[:4] == ["files", "PESQ-WB", "PESQ-NB", "STOI"]
    assert (noisy[:2], enhanced[:2], gain[0]) == (["noisy", "1/2"], ["identity", "1/2"], "gain")
    assert noisy[2:] == enhanced[2:]
    assert [line.split()[0] for line in levels.splitlines()[2:]] == ["noisy", "identity"]
    (error,) = done.stderr.decode().splitlines()
    assert error.startswith("error: p1: not scored: ")


@pytest.mark.slow
def test_info_tells_what_a_size_costs(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the [export] extra is not installed")
    done = edgese("info", "base", "--json", cwd=tmp_path, cold=True)
    assert done.stderr == b""
    facts = parsed(done.stdout)
    assert 2.2e6 < sum(facts["parameters"].values()) < 2.4e6
    assert facts["latency"] == {"samples": 512, "ms": 32.0, "overlap_samples": 384}
    assert facts["macs_per_frame"]["STFT and inverse"] == 2 * (4 * 129 * 129 + 16 * 129)


# What each command needs


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """A place for PYTHONPATH that makes an interpreter one of the base install: no training, no export, no metrics."""
    missing = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "scipy", "matplotlib", "pesq", "pystoi")
    path = tmp_path / "hidden"
    path.mkdir()
    (path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n")
    return path


def test_what_is_hidden_cannot_be_imported(hidden: Path, tmp_path: Path) -> None:
    """The control of the tests below."""
    done = run_python(["-c", "import torch"], tmp_path, path=[hidden])
    assert b"ModuleNotFoundError" in done.stderr
    done = run_python(["-c", "import importlib.util as u; print(u.find_spec('onnx'))"], tmp_path, path=[hidden])
    assert done.stdout == b"None\n"


def test_enhancing_needs_neither_torch_nor_onnx(noisy: Path, wave: Wave, identity_bundle: Path, hidden: Path) -> None:
    done = edgese("enhance", "noisy.wav", "-m", identity_bundle, cwd=noisy.parent, path=[hidden])
    assert done.stderr == b""
    np.testing.assert_array_equal(soundfile.read(noisy.with_name("noisy.enhanced.wav"), dtype="float32")[0], wave)


def test_a_bundle_tells_about_itself_without_torch(folder: Path, identity_bundle: Path, hidden: Path) -> None:
    done = edgese("info", identity_bundle, cwd=folder, path=[hidden])
    assert done.stderr == b""
    text = done.stdout.decode()
    assert "latency 32 ms (512 samples)" in text
    assert "fp32: graphs of 1, 16 hops a call\nverified against PyTorch" in text
    facts = parsed(edgese("info", identity_bundle, "--json", cwd=folder, path=[hidden]).stdout)
    assert facts == dict(Bundle.open(identity_bundle).manifest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export"], f"torch, onnx, onnxscript missing: {install_command('export')}"),
        (["train", "--data", ".", "-o", "run"], f"torch, scipy, safetensors missing: {install_command('train')}"),
        (["info", "small"], f"torch missing: {install_command('export')}"),
        (["enhance", "noisy.wav", "--plot", "-m", "GOOD"], install_command("plot")),
        (["evaluate", "--data", "pairs", "-s", "GOOD", "-j", "1"], f"pesq is missing: {install_command('metrics')}"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_missing_is_named_with_its_extra(
    arguments: list[str], message: str, noisy: Path, pairs: Path, identity_bundle: Path, hidden: Path
) -> None:
    before = names(noisy.parent)
    arguments = [str(identity_bundle) if argument == "GOOD" else argument for argument in arguments]
    assert message in one_error(edgese(*arguments, cwd=noisy.parent, code=1, path=[hidden]))
    assert names(noisy.parent) == before


# From data to sound

SETTINGS = """
steps = 2
batch = 2
validate_every = 2
[data]
segment_s = 0.125
[loss]
perceptual = 0
[model]
band_widths = [17, 80, 160]
channels = 8
layers = 1
states = 4
decay_heads = 4
chunk = 5
decoder_hidden = 8
"""


class Trained(NamedTuple):
    """A run of two steps, made by two slices, and what the command said of each."""

    run: Path
    first: Done
    second: Done


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, speech_like: Callable[..., Wave]) -> Trained:
    pytest.importorskip("torch", reason="the [train] extra is not installed")
    folder = tmp_path_factory.mktemp("trained")
    write_pairs(folder / "data", speech_like, n_pairs=3, n_samples=8_000)
    (folder / "tiny.toml").write_text(SETTINGS)
    command = ["train", "--data", "data", "--output", "runs/tiny", "--config", "tiny.toml", "--cache", "cache"]
    first = edgese(*command, "--stop-at", 1, "--json", cwd=folder, cold=True)
    return Trained(folder / "runs" / "tiny", first, edgese(*command, cwd=folder))


def test_a_slice_of_a_run_is_told_in_json(trained: Trained) -> None:
    """Before its first validation a run has no best loss, and infinity is not JSON."""
    (line,) = trained.first.stderr.decode().splitlines()
    assert line.startswith("step 1/2: loss ")
    result = parsed(trained.first.stdout)
    assert (result["step"], result["finished"]) == (1, False)


def test_the_same_command_goes_on_to_the_end(trained: Trained) -> None:
    assert trained.second.stdout.decode().startswith("done: step 2, best validation loss ")
    assert "step 2/2: loss " in trained.second.stderr.decode()
    assert {"best.pt", "config.json", "last.pt", "log.csv", "weights.safetensors"} <= set(names(trained.run))
    steps = [line.split(",")[0] for line in (trained.run / "log.csv").read_text().splitlines()]
    assert steps == ["step", "1", "2"]


@pytest.mark.parametrize(
    ("option", "value"), [("--device", "nonsense"), ("--output", "tiny.toml"), ("--cache", "tiny.toml")]
)
def test_training_where_it_cannot_be_done_is_refused_in_one_line(option: str, value: str, trained: Trained) -> None:
    """A device that is not there, files where folders are wanted."""
    options = {"--data": "data", "--output": "other", "--config": "tiny.toml", "--cache": "cache", option: value}
    arguments = [text for pair in options.items() for text in pair]
    done = edgese("train", *arguments, cwd=trained.run.parents[1], code=1)
    assert value in next(line for line in done.stderr.decode().splitlines() if line.startswith("error: "))


def test_trained_weights_are_exported_and_enhance(
    trained: Trained, noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = trained.run / "weights.safetensors"
    command = ("export", weights, "-o", "tiny.bundle", "--block", "1", "--block", "1", "--trt", "--json")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    done = edgese(*command, cwd=noisy.parent, cold=True)
    answer = parsed(done.stdout)
    assert answer["path"] == "tiny.bundle"
    assert [(result["block"], result["passed"]) for result in answer["results"]] == [(1, True)]
    said, kit = done.stderr.decode().splitlines()
    assert said.startswith("bundle: tiny.bundle (")
    assert kit.startswith("kit: tiny.bundle.device.tar.gz (")
    assert "engines are built on the device, not here (" in kit
    assert kit.endswith(answer["next"])
    assert (noisy.parent / answer["kit"]["path"]).stat().st_size == answer["kit"]["n_bytes"]
    assert Bundle.open(noisy.parent / "tiny.bundle").verified

    edgese("enhance", "noisy.wav", "-m", "tiny.bundle", cwd=noisy.parent)
    enhanced, rate_hz = soundfile.read(noisy.with_name("noisy.enhanced.wav"))
    assert (len(enhanced), rate_hz) == (8_000, RATE_HZ)
    assert np.abs(enhanced).max() > 0.01


def test_an_export_that_fails_its_verification_is_not_published_and_exits_with_1(
    trained: Trained, folder: Path
) -> None:
    """The proof is made to fail by limits that nothing can meet."""
    weights = trained.run / "weights.safetensors"
    program = (
        "import dataclasses, sys, edgese.__main__\n"
        "from edgese.verify.limits import LIMITS\n"
        "LIMITS['fp32'] = dataclasses.replace(LIMITS['fp32'], snr_db=1000)\n"
        f"sys.argv = ['edgese', 'export', {str(weights)!r}, '-o', 'out', '--block', '1']\n"
        "edgese.__main__.main()"
    )
    done = run_python(["-c", program], folder)
    assert done.returncode == 1
    (error,) = done.stderr.decode().splitlines()
    assert error.startswith(
        "error: out.unverified: does not agree with PyTorch; not published, kept under this name. "
        "block1.fp32.onnx: output:"
    )
    assert "FAILED" in done.stdout.decode()
    assert [path.name for path in folder.iterdir()] == ["out.unverified"]
    assert not Bundle.open(folder / "out.unverified").verified


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_standard_output_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "edgese", "info", "--json"]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "error: No space left on device: free space there or in the folder for temporary files (TMPDIR)"
    ]
