"""A network of one's own, from a folder outside: the documented example all the way, and what can be wrong with one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.contract import require_contract
from edgese.errors import ConfigError, VerificationError
from edgese.model.enhancer import StreamStep, WaveformEnhancer
from edgese.model.network import Network
from edgese.model.registry import build
from edgese.networks import MODELS, NETWORKS, PLUGINS, ModelConfig, find_model, plug_in
from edgese.samples import NOISY

from .helpers.command_line import edgese, one_error, parsed
from .helpers.data_folders import SpeechLike, write_mixing

EXAMPLE = Path(__file__).parents[2] / "examples" / "gru_mask.py"
PLUGIN = ("--plugin", "gru_mask.py")
BROKEN = "import nothing_of_that_name\n"
STREAMING = 1e-5  # greatest difference of samples, float32, for any split of a stream; measured: 6e-8
SETTINGS = """
batch = 2
validate_every = 2
data.segment_s = 0.4
loss.perceptual = 0.0

[model]
size = "gru-mask"
channels = 8
layers = 1
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, speech_like: SpeechLike) -> Path:
    """A folder outside the repository: the example's file, and weights that it was trained to in two steps."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "gru_mask.py").write_bytes(EXAMPLE.read_bytes())
    (folder / "run.toml").write_text(SETTINGS)
    write_mixing(folder / "data", speech_like)
    data = ("--data", "data", "--cache", "cache", "--config", "run.toml")
    edgese(*PLUGIN, "train", *data, "--output", "run", "--steps", 2, "--quiet", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def bundle(desk: Path) -> Path:
    done = edgese(*PLUGIN, "export", "run/weights.safetensors", "-o", "mine", "--block", 2, "--quiet", cwd=desk)
    assert "passed" in done.stdout.decode()
    return desk / "mine"


@pytest.fixture
def gru_mask(monkeypatch: pytest.MonkeyPatch) -> Iterator[WaveformEnhancer]:
    """The example's network, untrained but with a mask that moves; what it registers is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv(PLUGINS, "")
    with mock.patch.dict(NETWORKS), mock.patch.dict(MODELS):
        plug_in(str(EXAMPLE))
        plug_in(str(EXAMPLE))  # the same again is harmless
        torch.manual_seed(1)
        enhancer = build(find_model("gru-mask"), AudioConfig()).eval()
        with torch.no_grad():
            enhancer.network.decoder.weight.mul_(30)
        yield enhancer
    del sys.modules["gru_mask"]


# The example


def test_the_example_has_at_most_60_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_example_streams_as_it_hears_a_whole_and_keeps_the_contract(
    gru_mask: WaveformEnhancer, speech_like: SpeechLike
) -> None:
    require_contract(gru_mask)
    wave = torch.from_numpy(speech_like(60 * 128, seed=2))[None]
    step, states = StreamStep(gru_mask), tuple(gru_mask.initial_state().values())
    assert step.names == ("analysis", "synthesis", "gru_0", "gru_1")
    pieces = []
    with torch.no_grad():
        whole, _ = gru_mask(wave, gru_mask.initial_state())
        for piece in wave.split(128, dim=1):
            output, *states = step(piece, *states)
            pieces.append(output)
    assert (torch.cat(pieces, dim=1) - whole).abs().max() <= STREAMING


def test_the_example_hears_the_level_and_is_robust_to_it(gru_mask: WaveformEnhancer, speech_like: SpeechLike) -> None:
    wave = torch.from_numpy(speech_like(60 * 128, seed=2))[None]
    wave = wave / wave.abs().max()
    for level_db in range(-40, 1, 10):
        quiet = wave * 10 ** (level_db / 20)
        output = gru_mask.enhance(quiet)
        assert torch.isfinite(output).all()
        assert 0 < output.square().mean() <= 2 ** (2 / 0.3) * quiet.square().mean()
    assert not gru_mask.enhance(0 * wave).any()
    loud = gru_mask.enhance(wave)
    assert (100 * gru_mask.enhance(0.01 * wave) - loud).abs().max() > 0.01 * loud.abs().max()


def test_the_example_is_verified_in_an_own_process(bundle: Path, desk: Path) -> None:
    done = edgese(*PLUGIN, "verify", bundle, "--minutes", 0, "--quiet", "--json", cwd=desk)
    told = parsed(done.stdout)
    assert told["passed"]
    assert [graph["graph"] for graph in told["graphs"]] == ["block2.fp32.onnx"]


def test_the_example_is_measured_in_processes_that_build_it_too(bundle: Path, desk: Path) -> None:
    """PyTorch's program is made from the weights, by the network's own code, in the process that measures."""
    short = ("--runtime", "pytorch", "--seconds", 0.1, "--repeat", 1, "--json")
    done = edgese("--plugin", "gru_mask", "bench", bundle, *short, cwd=desk)  # a module's name this time
    (result,) = parsed(done.stdout)["results"]
    assert (result["runtime"], result["block"]) == ("pytorch", 2)


def test_the_example_enhances_files_and_needs_no_plugin_for_it(bundle: Path, desk: Path) -> None:
    edgese("enhance", NOISY, "--model", bundle, "-o", desk / "clean.wav", "--quiet", cwd=desk)
    found, rate_hz = soundfile.read(desk / "clean.wav")
    noisy, _ = soundfile.read(NOISY)
    assert (rate_hz, found.shape) == (16_000, noisy.shape)
    assert np.isfinite(found).all()
    assert found.any()


def test_the_example_is_listed_and_described(desk: Path) -> None:
    entry = parsed(edgese(*PLUGIN, "models", "--json", cwd=desk, cold=True).stdout)["gru-mask"]
    assert (entry["network"], entry["causal"], entry["latency_ms"]) == ("gru-mask", True, 32.0)
    described = parsed(edgese(*PLUGIN, "info", "gru-mask", "--json", cwd=desk).stdout)
    assert sum(described["parameters"].values()) == entry["parameters"]
    assert sum(described["macs_per_frame"].values()) * 125 == entry["macs_per_second"]


def test_without_its_plugin_the_weights_are_refused_and_the_option_is_named(desk: Path) -> None:
    line = one_error(edgese("export", "run/weights.safetensors", "-o", "other", "--quiet", cwd=desk, code=1))
    assert "name: found 'gru-mask', wanted one of mbs-net" in line
    assert "one of your own is named by --plugin" in line


# Installed packages


def install(folder: Path, source: str) -> Path:
    """A distribution as pip leaves it, whose entry point names a module of this source."""
    metadata = folder / "gru_nets-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: gru-nets\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[edgese.networks]\ngru = gru_nets\n")
    (folder / "gru_nets.py").write_text(source)
    return folder


@pytest.mark.slow
def test_an_installed_package_is_asked_for_a_name_that_is_not_known(tmp_path: Path) -> None:
    site = install(tmp_path / "site", EXAMPLE.read_text(encoding="utf-8"))
    assert parsed(edgese("info", "gru-mask", "--json", cwd=tmp_path, path=[site]).stdout)["name"] == "gru-mask"


def test_a_broken_package_is_named_where_it_might_have_helped_and_disturbs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site", BROKEN))
    assert find_model("small") == MODELS["small"]
    with pytest.raises(ConfigError, match=r"'smal', wanted one of base, small.*; gru-nets: its network gru: cannot be"):
        find_model("smal")


@pytest.mark.slow
def test_models_are_a_table_and_a_broken_package_is_a_warning(tmp_path: Path) -> None:
    site = install(tmp_path / "site", BROKEN)
    done = edgese("models", cwd=tmp_path, path=[site])
    title, header, *rows = done.stdout.decode().splitlines()
    assert title == "models, by the names that --model takes"
    assert header.split("  ")[1] == "model"
    found = {row.split()[0]: row.split()[1:] for row in rows}
    own = {name for name, config in MODELS.items() if NETWORKS[config.name].code.startswith("edgese.model.")}
    assert found.keys() == own  # tests of other files register more, in this process
    count = sum(parameter.numel() for parameter in build(MODELS["small"], AudioConfig()).parameters())
    assert found["small"][:4] == ["mbs-net", "yes", "32", f"{count:,}"]
    (warning,) = done.stderr.decode().splitlines()
    assert warning.startswith("warning: gru-nets: its network gru: cannot be imported: ModuleNotFoundError in ")


# What can be wrong with a plugin


@pytest.mark.parametrize(
    ("named", "source", "message"),
    [
        ("missing.py", None, "--plugin missing.py: found no such file, wanted a .py file or the name of a module"),
        ("missing_module", None, "--plugin missing_module: cannot be imported: ModuleNotFoundError: No module named"),
        ("readme.txt", "", "--plugin readme.txt: found no such file, wanted a .py file or the name of a module"),
        ("syntax.py", "x = 1\ndef f(:\n", r"cannot be imported: SyntaxError in \S+syntax.py, line 2: "),
        ("lacks.py", "\nimport no_such_library\n", r"ModuleNotFoundError in \S+lacks.py, line 2: No module named"),
        ("leaves.py", "import sys\nsys.exit('I am a script')\n", r"SystemExit in \S+leaves.py, line 2: I am a script"),
        ("idle.py", "x = 1\n", "--plugin idle.py: registers nothing, wanted a call of edgese.networks.register"),
        ("json.py", "x = 1\n", r"--plugin json.py: json is the name of \S+ too; rename the file"),
        ("sys.py", "x = 1\n", "--plugin sys.py: sys is the name of Python itself too; rename the file"),
        (
            "taken.py",
            "from edgese.networks import MbsConfig, register\nregister('mbs-net', MbsConfig, 'taken:Net', {})\n",
            "ConfigError in .*: network mbs-net: registered already",
        ),
    ],
)
def test_a_plugin_that_cannot_be_used_is_one_line(named: str, source: str | None, message: str, tmp_path: Path) -> None:
    if source is not None:
        (tmp_path / named).write_text(source)
    folder = tmp_path if named not in ("json.py", "sys.py") else tmp_path / "elsewhere"
    folder.mkdir(exist_ok=True)  # in the folder itself, json.py would take the place of Python's own
    plugin = named if folder == tmp_path else f"../{named}"
    line = one_error(edgese("--plugin", plugin, "info", "small", cwd=folder, code=1))
    assert re.search(message.replace("--plugin ", "--plugin (../)?"), line), line


@pytest.mark.slow
def test_code_that_is_not_where_it_was_registered_is_one_line(tmp_path: Path) -> None:
    source = EXAMPLE.read_text(encoding="utf-8").replace("{__name__}:GruMask", "{__name__}:GruMsk")
    (tmp_path / "gru_mask.py").write_text(source)
    done = edgese(*PLUGIN, "models", cwd=tmp_path, code=1)
    assert one_error(done).startswith("error: network gru-mask: gru_mask:GruMsk cannot be loaded")


@pytest.mark.parametrize("text", ["nojson", "[]", "{}", '{"modules": 3, "folders": []}', "[" * 100_000])
def test_an_environment_that_names_no_plugins_as_edgese_does(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLUGINS, text)
    with pytest.raises(ConfigError, match=r"EDGESE_PLUGINS: found .*: unset EDGESE_PLUGINS"):
        find_model("nothing of that name")


# A network that cheats


@pytest.fixture
def cheat(desk: Path) -> tuple[str, str]:
    """The option that plugs in the example with a line more: it hears one frame early and says that it is causal."""
    honest = EXAMPLE.read_text(encoding="utf-8")
    start = "        y, after = self.split("
    assert honest.count(start) == 1
    (desk / "cheating").mkdir(exist_ok=True)
    shifted = "        x = torch.cat([x[:, 1:], x[:, -1:]], 1)\n"
    (desk / "cheating" / "gru_mask.py").write_text(honest.replace(start, shifted + start))
    return ("--plugin", "../cheating/gru_mask.py")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "../data", "--cache", "../cache", "--config", "../run.toml", "--output", "made"],
        ["export", "../run/weights.safetensors", "-o", "made"],
        ["verify", "../mine", "--minutes", "0"],
    ],
    ids=lambda command: command[0],
)
def test_a_network_that_looks_ahead_is_refused_with_the_reason(
    command: list[str], cheat: tuple[str, str], bundle: Path, desk: Path
) -> None:
    (desk / "work").mkdir(exist_ok=True)
    done = edgese(*cheat, *command, "--quiet", cwd=desk / "work", code=1)
    (line,) = (line for line in done.stderr.decode().splitlines() if line.startswith("error: "))
    assert "network gru-mask: looks ahead: a change in frame 3 shows 1 earlier, in frame 2" in line
    assert done.stdout == b""
    assert not list((desk / "work").rglob("*.onnx"))
    assert not list((desk / "work").rglob("*.safetensors"))


# The contract, one clause after the other


class Smooth(Network):
    """An honest network in a few lines: the mean of this frame and of what is remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.config = ModelConfig(name="smooth")

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        return {"memory": torch.zeros(streams, 257, 2)}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        memory, frames = state["memory"], []
        for frame in x.unbind(1):
            memory = (memory + frame) / 2
            frames.append(memory)
        return torch.stack(frames, 1), {"memory": memory}


class LooksAhead(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(nn.functional.pad(x[:, 2:], (0, 0, 0, 0, 0, 2)), state)


class NormOverTime(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x / x.std(dim=1, keepdim=True).clamp_min(1e-3), state)


class Forgets(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = super().forward(x, self.initial_state(len(x)))
        return y, after


class MixesStreams(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x + 0.01 * x.mean(dim=0, keepdim=True), state)


class ChangesItsState(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = super().forward(x, state)
        state["memory"].copy_(after["memory"])
        return y, after


class LosesItsState(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x, state)[0], {}


class GrowsItsState(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = super().forward(x, state)
        return y, {"memory": torch.cat([after["memory"], after["memory"]], -1)}


class OneStream(Smooth):
    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        return {"memory": torch.zeros(1, 257, 2)}


class Double(Smooth):
    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        return {"memory": torch.zeros(streams, 257, 2, dtype=torch.float64)}


class MasksOnly(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = super().forward(x, state)
        return y[..., :1], after


class GivesNaN(Smooth):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, after = super().forward(x, state)
        return torch.log(-y.abs()), after


class NotCausalWithState(Smooth):
    causal = False


class NotCausal(LooksAhead):
    causal = False

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        return {}

    def forward(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x, Smooth.initial_state(self, len(x)))[0], {}


@pytest.mark.parametrize("kind", [Smooth, NotCausal])
def test_honest_networks_keep_the_contract_and_their_mode(kind: type[Network]) -> None:
    enhancer = WaveformEnhancer(kind(), AudioConfig()).train()
    require_contract(enhancer)
    assert enhancer.training
    assert enhancer.network.training


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (LooksAhead, "looks ahead: a change in frame 3 shows 2 earlier, in frame 1"),
        (NormOverTime, "looks ahead: a change in frame 3 shows 3 earlier, in frame 0"),
        (Forgets, r"a stream cut into 1, 4, 1, 16, 18 frames differs from the whole by 0\.\d+ of its largest value"),
        (MixesStreams, "the sound of one stream changes another"),
        (ChangesItsState, "state memory: changed in place"),
        (LosesItsState, r"state memory after 40 frames: found none, wanted \(2, 257, 2\) float32"),
        (GrowsItsState, r"state memory after 40 frames: found \(2, 257, 4\) float32, wanted \(2, 257, 2\) float32"),
        (OneStream, r"state memory: found \(1, 257, 2\) float32, wanted float32 zeros, first axis 2 streams"),
        (Double, r"state memory: found \(2, 257, 2\) float64"),
        (MasksOnly, r"its output: found \(2, 40, 257, 1\) float32, wanted \(2, 40, 257, 2\) float32"),
        (GivesNaN, "its output: found .* all of it finite"),
        (NotCausalWithState, "has the states memory, wanted none of one that is not causal"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_clause_of_the_contract_can_fail(kind: type[Network], message: str) -> None:
    with pytest.raises(VerificationError, match=f"network smooth: {message}"):
        require_contract(WaveformEnhancer(kind(), AudioConfig()))
