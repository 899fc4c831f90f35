"""Every form of the LSTM against its equations in float64: values, states and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgese.model.lstm import Lstm, State, reference_lstm
from edgese.model.network import Form
from export.lstm import as_one_node

# Greatest error relative to the greatest value of the tensor compared, 50 steps; measured: see the right column.
TOLERANCE = {
    ("values", torch.float64): 1e-12,  # 5e-16
    ("gradients", torch.float64): 1e-11,  # 1e-15
    ("values", torch.float32): 1e-5,  # 3e-7
    ("gradients", torch.float32): 1e-4,  # 1e-6
}
FORMS: tuple[Form, ...] = ("train", "export")
INPUTS, HIDDEN, SEQUENCES = 3, 5, 4

forms = pytest.mark.parametrize("form", FORMS)
both = pytest.mark.parametrize("bidirectional", [False, True], ids=["forwards", "both ways"])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def made(bidirectional: bool, dtype: torch.dtype = torch.float64, form: Form = "train") -> Lstm:
    """A seeded layer whose gates open and close: three times the weights that PyTorch begins with."""
    torch.manual_seed(1)
    lstm = Lstm(INPUTS, HIDDEN, bidirectional=bidirectional)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter.mul_(3)
    lstm.form = form
    return lstm.to(dtype)


def arguments(bidirectional: bool, steps: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, State]:
    """An input and a state that is not zero."""
    generator = torch.Generator().manual_seed(steps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    directions = 2 if bidirectional else 1
    h, c = normal(directions, SEQUENCES, HIDDEN), normal(directions, SEQUENCES, HIDDEN)
    return normal(steps, SEQUENCES, INPUTS), (h, c)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max() / wanted.abs().max())


def test_reference_is_the_equations_of_one_unit() -> None:
    """Two steps of one unit by hand; rows of the weights are the gates i, f, z, o."""
    w, u = torch.tensor([[0.1], [0.2], [0.3], [0.4]]), torch.tensor([[-0.5], [0.6], [-0.7], [0.8]])
    w_bias, u_bias = torch.tensor([0.01, 0.02, 0.03, 0.04]), torch.tensor([0.1, -0.1, 0.2, -0.2])
    x, h, c = (1.5, -2.0), 0.3, -0.4
    found, (found_h, found_c) = reference_lstm(
        torch.tensor(x)[:, None, None], (torch.tensor([[[h]]]), torch.tensor([[[c]]])), [w, u, w_bias, u_bias]
    )

    def sigmoid(value: float) -> float:
        return 1 / (1 + np.exp(-value))

    for step in range(2):
        i = sigmoid(0.1 * x[step] - 0.5 * h + 0.11)
        f = sigmoid(0.2 * x[step] + 0.6 * h - 0.08)
        z = np.tanh(0.3 * x[step] - 0.7 * h + 0.23)
        o = sigmoid(0.4 * x[step] + 0.8 * h - 0.16)
        c = f * c + i * z
        h = o * np.tanh(c)
        assert float(found[step]) == pytest.approx(h, abs=1e-7)
    assert float(found_h) == pytest.approx(h, abs=1e-7)
    assert float(found_c) == pytest.approx(c, abs=1e-7)


@both
def test_reference_is_what_pytorch_calls_an_lstm(bidirectional: bool) -> None:
    lstm, (x, state) = made(bidirectional), arguments(bidirectional, 7)
    plain = nn.LSTM(INPUTS, HIDDEN, bidirectional=bidirectional).double()
    plain.load_state_dict(lstm.state_dict())
    wanted, wanted_state = plain(x, state)
    found, found_state = reference_lstm(x, state, lstm.weights())
    for tensor, expected in zip((found, *found_state), (wanted, *wanted_state), strict=True):
        assert relative_error(tensor, expected) < 1e-12


@forms
@both
@dtypes
@pytest.mark.parametrize("steps", [1, 2, 50])
def test_forms_have_the_references_values_and_states(
    form: Form, bidirectional: bool, dtype: torch.dtype, steps: int
) -> None:
    lstm, (x, state) = made(bidirectional, dtype, form), arguments(bidirectional, steps, dtype)
    found, found_state = lstm(x, state)
    wanted, wanted_state = reference_lstm(x, state, lstm.weights())
    assert found.dtype == dtype
    for tensor, expected in zip((found, *found_state), (wanted, *wanted_state), strict=True):
        assert tensor.shape == expected.shape
        assert relative_error(tensor, expected) <= TOLERANCE["values", dtype]


@forms
@both
@dtypes
@pytest.mark.parametrize("steps", [1, 50])
def test_forms_have_the_references_gradients(form: Form, bidirectional: bool, dtype: torch.dtype, steps: int) -> None:
    gradients = []
    for chosen in (form, "exact"):
        lstm, (x, state) = made(bidirectional, dtype, chosen), arguments(bidirectional, steps, dtype)
        y, (h, c) = lstm(x, state)
        (y.square().sum() + (h * c).sum()).backward()
        gradients.append([tensor.grad for tensor in (x, *state, *lstm.parameters())])
    for found, wanted in zip(*gradients, strict=True):
        assert wanted.any()
        assert relative_error(found, wanted) <= TOLERANCE["gradients", dtype]


@forms
@both
def test_no_state_means_zeros(form: Form, bidirectional: bool) -> None:
    lstm, (x, state) = made(bidirectional, form=form), arguments(bidirectional, 6)
    nothing = tuple(torch.zeros_like(tensor) for tensor in state)
    assert torch.equal(lstm(x)[0], lstm(x, nothing)[0])
    assert not torch.equal(lstm(x)[0], lstm(x, state)[0])


def test_an_exported_step_after_another_is_the_whole() -> None:
    x, state = arguments(False, 20)
    whole, (h, c) = made(False)(x, state)
    lstm, steps = made(False, form="export"), []
    for x_t in x.split(1):
        y, state = lstm(x_t, state)
        steps.append(y)
    torch.testing.assert_close(torch.cat(steps), whole)
    torch.testing.assert_close(state, (h, c))


@both
def test_autocast_leaves_the_recurrence_in_float32(bidirectional: bool) -> None:
    lstm, (x, state) = made(bidirectional, torch.float32), arguments(bidirectional, 50, torch.float32)
    wanted, _ = lstm(x, state)
    with torch.autocast("cpu", torch.bfloat16):
        found, (h, _) = lstm(x, state)
    assert found.dtype == h.dtype == torch.float32
    assert torch.equal(found, wanted)


@both
@pytest.mark.parametrize("form", [*FORMS, "exact"])
def test_macs_are_those_of_the_gates(bidirectional: bool, form: Form) -> None:
    """And what the counter sees and does not see adds up to them, whichever kernel PyTorch takes."""
    lstm = made(bidirectional, torch.float32, form)
    directions = 2 if bidirectional else 1
    assert lstm.macs(7) == 7 * directions * 4 * HIDDEN * (INPUTS + HIDDEN)
    assert lstm.macs(7, sequences=3) == 3 * lstm.macs(7)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        lstm(torch.zeros(7, 3, INPUTS))
    assert counter.get_total_flops() // 2 + lstm.uncounted_macs(7, 3) == lstm.macs(7, 3)


def called(lstm: Lstm, x: Tensor) -> set[str]:
    """What a program of this layer calls; it must give the layer's values."""
    program = torch.export.export(lstm, (x,))
    torch.testing.assert_close(program.module()(x)[0], lstm(x)[0])
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_only_what_becomes_onnx_is_captured_as_our_own_operator() -> None:
    """A program of PyTorch has PyTorch's operators: it is opened where nobody has imported ours."""
    lstm, x = made(True, torch.float32, "export").eval(), torch.randn(4, SEQUENCES, INPUTS)
    assert "aten.lstm.input" in called(lstm, x)
    with torch.no_grad(), as_one_node():
        found = called(lstm, x)
    assert "edgese_export.lstm.default" in found
    assert not any("aten.lstm" in name for name in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bidirectional", "steps", "nodes"),
    [(False, 1, 0), (False, 8, 1), (False, 40, 1), (True, 1, 1), (True, 30, 1), (True, 40, 1)],
)
def test_a_graph_has_one_node_for_many_steps_and_none_for_one(
    bidirectional: bool, steps: int, nodes: int, tmp_path: Path
) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from export.graph import write_onnx

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = made(bidirectional, torch.float32, "export")

        def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, (h, c) = self.lstm(x, (h, c))
            return y, h, c

    module, path = Flat().eval(), tmp_path / "lstm.onnx"
    x, (h, c) = arguments(bidirectional, steps, torch.float32)
    feeds = {name: tensor.detach() for name, tensor in {"x": x, "h": h, "c": c}.items()}
    axes = {name: {1: "streams"} for name in feeds}
    write_onnx(module, feeds, ["y", "h_next", "c_next"], path, dynamic_axes=axes, metadata={})
    assert sum(node.op_type == "LSTM" for node in onnx.load(path).graph.node) == nodes
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    wanted, wanted_state = reference_lstm(x, (h, c), module.lstm.weights())
    for array, expected in zip(found, (wanted, *wanted_state), strict=True):
        assert relative_error(torch.from_numpy(array), expected) <= TOLERANCE["values", torch.float32]
    again, _ = module.lstm(x, (h, c))  # exporting leaves the module as it was
    assert relative_error(again, wanted) <= TOLERANCE["values", torch.float32]
