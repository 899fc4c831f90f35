"""Files of `write_onnx`, read by onnx and run by ONNX Runtime; and what it refuses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from export import ExportError
from export.graph import write_onnx
from export.inspection import MODULE
from runtimes.registry import open_runtime

STREAMS = {name: {0: "streams"} for name in ("x", "past", "level")}
EXAMPLES = {"x": torch.zeros(2, 3, 4), "past": torch.zeros(2, 1, 4), "level": torch.zeros(2, 16)}
OUTPUTS = ["y", "past_next", "level_next"]


class Toy(nn.Module):
    """Frames in, frames out: a two-frame convolution, a leaky sum of 16 channels, a small decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 16)
        self.decay = nn.Parameter(torch.linspace(0.5, 0.95, 16))
        self.decode = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        past, level = states
        frames = torch.cat([past, x], 1)
        mixed = self.mix(torch.cat([frames[:, 1:], frames[:, :-1]], -1))
        levels = []
        for t in range(x.shape[1]):
            level = self.decay * level + mixed[:, t]
            levels.append(level)
        return self.decode(torch.stack(levels, 1)), frames[:, -1:], level


def make_toy(seed: int = 0) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Toy().eval()


def write(
    path: Path,
    module: nn.Module | None = None,
    inputs: Mapping[str, Tensor] = EXAMPLES,
    outputs: Sequence[str] = OUTPUTS,
    dynamic_axes: Mapping[str, Mapping[int, str]] = STREAMS,
    **options: Any,
) -> onnx.ModelProto:
    write_onnx(
        module or make_toy(),
        inputs,
        outputs,
        path,
        dynamic_axes=dynamic_axes,
        metadata={"toy.name": "leaky", "toy.block": "3"},
        **options,
    )
    return onnx.load(path)


@pytest.fixture(scope="module")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    write(path)
    return path


@pytest.fixture(scope="module")
def toy(toy_path: Path) -> onnx.ModelProto:
    return onnx.load(toy_path)


def shapes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, list[int | str]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


def test_names_order_and_shapes_are_those_of_the_caller(toy: onnx.ModelProto) -> None:
    assert shapes(toy.graph.input) == {"x": ["streams", 3, 4], "past": ["streams", 1, 4], "level": ["streams", 16]}
    assert [value.name for value in toy.graph.input] == list(EXAMPLES)
    assert shapes(toy.graph.output) == {
        "y": ["streams", 3, 4],
        "past_next": ["streams", 1, 4],
        "level_next": ["streams", 16],
    }
    assert [value.name for value in toy.graph.output] == OUTPUTS


def test_the_graph_is_plain_onnx_of_one_opset(toy: onnx.ModelProto) -> None:
    assert [(entry.domain, entry.version) for entry in toy.opset_import] == [("", 20)]
    assert not toy.functions
    assert {node.domain for node in toy.graph.node} == {""}


def test_metadata_is_embedded(toy: onnx.ModelProto) -> None:
    assert {entry.key: entry.value for entry in toy.metadata_props} == {"toy.name": "leaky", "toy.block": "3"}


def test_weights_are_stored_transposed_so_that_products_are_plain(toy: onnx.ModelProto) -> None:
    assert "Transpose" not in {node.op_type for node in toy.graph.node}
    stored = {tensor.name: list(tensor.dims) for tensor in toy.graph.initializer}
    products = [stored[node.input[1]] for node in toy.graph.node if node.op_type == "MatMul"]
    assert products == [[8, 16], [16, 64], [64, 4]]


def test_nothing_in_the_graph_is_unused_and_nothing_noted_but_modules(toy: onnx.ModelProto) -> None:
    read = {name for node in toy.graph.node for name in node.input}
    wanted = read | {value.name for value in toy.graph.output}
    assert all(any(name in wanted for name in node.output) for node in toy.graph.node)
    assert {tensor.name for tensor in toy.graph.initializer} <= read
    assert not any(node.doc_string for node in toy.graph.node)
    assert {entry.key for node in toy.graph.node for entry in node.metadata_props} == {MODULE}
    assert __file__.encode() not in toy.SerializeToString()


def test_each_node_notes_the_module_that_it_came_from(toy: onnx.ModelProto) -> None:
    notes = [{entry.key: entry.value for entry in node.metadata_props} for node in toy.graph.node]
    products = [note for node, note in zip(toy.graph.node, notes, strict=True) if node.op_type == "MatMul"]
    assert products == [{MODULE: "mix"}, {MODULE: "decode.0"}, {MODULE: "decode.2"}]
    top = [note for node, note in zip(toy.graph.node, notes, strict=True) if node.op_type == "Concat"]
    assert top
    assert all(note == {} for note in top)  # made by the module itself, which has no path


def test_the_file_is_self_contained(toy_path: Path, toy: onnx.ModelProto) -> None:
    assert list(toy_path.parent.iterdir()) == [toy_path]
    assert not any(tensor.external_data for tensor in toy.graph.initializer)


@pytest.mark.parametrize("streams", [1, 2, 5])
def test_the_graph_agrees_with_the_module_for_any_number_of_streams(toy_path: Path, streams: int) -> None:
    rng = np.random.default_rng(0)
    feeds = {
        name: rng.standard_normal((streams, *tensor.shape[1:]), dtype=np.float32) for name, tensor in EXAMPLES.items()
    }
    with torch.no_grad():
        wanted = make_toy()(*(torch.from_numpy(array) for array in feeds.values()))
    with open_runtime("onnxruntime", toy_path, metadata={"toy.name": "leaky"}) as runtime:
        found = runtime.run(feeds)
    for name, tensor in zip(OUTPUTS, wanted, strict=True):
        np.testing.assert_allclose(found[name], tensor.numpy(), rtol=0, atol=2e-6)  # measured: 2.4e-7


@pytest.mark.slow
def test_equal_modules_give_equal_bytes(tmp_path: Path, toy_path: Path) -> None:
    write(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == toy_path.read_bytes()


@pytest.mark.slow
def test_examples_of_one_stream_leave_the_axis_dynamic(tmp_path: Path, toy_path: Path) -> None:
    write(tmp_path / "one.onnx", inputs={name: tensor[:1] for name, tensor in EXAMPLES.items()})
    assert (tmp_path / "one.onnx").read_bytes() == toy_path.read_bytes()


@pytest.mark.slow
def test_a_graph_without_dynamic_axes_is_all_numbers(tmp_path: Path) -> None:
    graph = write(tmp_path / "static.onnx", dynamic_axes={}).graph
    assert shapes(graph.input)["x"] == [2, 3, 4]
    assert shapes(graph.output)["y"] == [2, 3, 4]


@pytest.mark.slow
def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = make_toy()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    write(tmp_path / "toy.onnx", module)
    assert not module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.slow
def test_exporting_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "toy.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_state_handed_through_and_an_input_not_read_stay_in_the_graph(tmp_path: Path) -> None:
    class Through(nn.Module):
        def forward(self, x: Tensor, kept: Tensor, unread: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, kept

    inputs = {"x": torch.zeros(2, 3), "kept": torch.zeros(2, 5), "unread": torch.zeros(2, 1)}
    path = tmp_path / "through.onnx"
    graph = write(path, Through().eval(), inputs, ["y", "kept_next"], {name: {0: "streams"} for name in inputs}).graph
    assert [value.name for value in graph.input] == list(inputs)
    with open_runtime("onnxruntime", path) as runtime:
        stream = runtime.stream({"kept": "kept_next"}, streams=1)
        stream.load({"kept": np.full((1, 5), 3, np.float32)})
        for _ in range(3):
            stream({"x": np.zeros((1, 3), np.float32), "unread": np.zeros((1, 1), np.float32)})
        np.testing.assert_array_equal(stream.states["kept"], np.full((1, 5), 3))


@pytest.mark.slow
def test_names_of_the_caller_win_over_names_inside_the_module(tmp_path: Path) -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.full((4,), 3.0))
            self.y = nn.Parameter(torch.full((4,), 5.0))

        def forward(self, add: Tensor, mul: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            total = add + self.x
            return total * mul, total + self.y, total + self.y

    path = tmp_path / "clash.onnx"
    inputs = {"x": torch.zeros(2, 4), "add": torch.zeros(2, 4)}
    write(path, Clash().eval(), inputs, ["y", "mul", "add_1"], {})
    with open_runtime("onnxruntime", path) as runtime:
        assert [spec.name for spec in runtime.inputs] == ["x", "add"]
        found = runtime.run({"x": np.ones((2, 4), np.float32), "add": np.full((2, 4), 2, np.float32)})
    assert {name: array[0, 0] for name, array in found.items()} == {"y": 8, "mul": 9, "add_1": 9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"x": EXAMPLES["x"]}, "dynamic_axes": {}}, "torch.export cannot capture the module"),
        ({"outputs": ["y", "past_next"]}, "returns 3 tensors, wanted 2: y, past_next"),
        ({"dynamic_axes": {"wave": {0: "streams"}}}, "dynamic_axes: wave is not an input; inputs: x, past, level"),
        ({"dynamic_axes": {"level": {2: "streams"}}}, "dynamic_axes: level has 2 axes, there is no axis 2"),
        ({"dynamic_axes": {"x": {0: "a b"}}}, "dynamic_axes: .*wanted names such as 'streams'"),
        ({"dynamic_axes": {"x": {0: "streams"}, "level": {1: "streams"}}}, "axis streams has size 16, but size 2 in x"),
    ],
)
def test_what_does_not_fit_the_module_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        write(tmp_path / "toy.onnx", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_forward_of_another_number_of_inputs_is_refused(tmp_path: Path) -> None:
    inputs = {"x": torch.zeros(2, 4), "more": torch.zeros(2, 4)}
    with pytest.raises(ExportError, match="Linear: does not take 2 inputs"):
        write(tmp_path / "toy.onnx", nn.Linear(4, 4).eval(), inputs, ["y"], {})


def test_a_module_that_fixes_a_dynamic_axis_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(2.0)[:, None]

    with pytest.raises(ExportError, match=r"torch\.export cannot capture the module.*streams"):
        write(tmp_path / "fixed.onnx", Fixed().eval(), {"x": torch.zeros(2, 4)}, ["y"], {"x": {0: "streams"}})


def test_a_module_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"training mode; call module\.eval\(\) first"):
        write(tmp_path / "toy.onnx", make_toy().train())


@pytest.mark.slow
def test_a_module_that_keeps_state_in_a_buffer_is_refused(tmp_path: Path) -> None:
    class Counter(nn.Module):
        total: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x.sum(0))
            return x + self.total

    with pytest.raises(ExportError, match="the module changes total in place; make it an input and an output"):
        write(tmp_path / "counter.onnx", Counter().eval(), {"x": torch.zeros(2, 4)}, ["y"], {})


@pytest.mark.slow
def test_a_module_that_changes_its_input_is_refused(tmp_path: Path) -> None:
    class Doubler(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mul_(2) + 1

    with pytest.raises(ExportError, match=r"the module changes .* in place; make it an input and an output"):
        write(tmp_path / "doubler.onnx", Doubler().eval(), {"x": torch.zeros(2, 4)}, ["y"], {})


@pytest.mark.slow
def test_a_scan_over_any_number_of_frames_is_written_as_one_node(tmp_path: Path) -> None:
    class Scanned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decay = nn.Parameter(torch.linspace(0.1, 0.9, 6))

        def forward(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
            def step(level: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
                level = self.decay * level + frame
                return level, level * 2

            level, levels = scan(step, level, x, dim=1)
            return levels, level

    path = tmp_path / "scan.onnx"
    inputs = {"x": torch.zeros(2, 5, 6), "level": torch.zeros(2, 6)}
    axes = {"x": {0: "streams", 1: "frames"}, "level": {0: "streams"}}
    model = write(path, Scanned().eval(), inputs, ["y", "level_next"], axes)
    assert [node.op_type for node in model.graph.node].count("Scan") == 1
    x = np.random.default_rng(0).standard_normal((3, 9, 6), dtype=np.float32)
    with torch.no_grad():
        wanted = Scanned()(torch.from_numpy(x), torch.zeros(3, 6))[0].numpy()
    with open_runtime("onnxruntime", path) as runtime:
        stream = runtime.stream({"level": "level_next"}, streams=3)
        found = np.concatenate([stream({"x": part})["y"] for part in np.split(x, [1, 4], axis=1)], 1)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_refused(tmp_path: Path) -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.special.airy_ai(x)
            return result

    with pytest.raises(ExportError, match="cannot translate the module to ONNX"):
        write(tmp_path / "special.onnx", Special().eval(), {"x": torch.zeros(2, 4)}, ["y"], {})
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_does_not_end_in_onnx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"toy\.pt: the file name must end in \.onnx"):
        write(tmp_path / "toy.pt")


@pytest.mark.slow
def test_an_opset_that_is_not_reached_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"wanted opset 30|cannot translate"):
        write(tmp_path / "toy.onnx", opset=30)
