"""Every form of the selective scan against the sequential reference in float64: values, states and gradients."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from edgese.model.scan import (
    Scan,
    chunked_scan,
    full_scan,
    looped_scan,
    prefix_scan,
    reference_scan,
    unrolled_scan,
)

# Greatest error relative to the greatest value of the tensor compared, 250 frames; measured: see the right column.
TOLERANCE = {
    ("values", torch.float64): 1e-12,  # 7e-16
    ("gradients", torch.float64): 1e-11,  # 6e-15
    ("values", torch.float32): 1e-5,  # 1e-6
    ("gradients", torch.float32): 1e-4,  # 1.1e-5
}

FORMS: dict[str, Scan] = {
    "full": full_scan,
    "unrolled": unrolled_scan,
    "prefix": prefix_scan,
    "looped": looped_scan,  # what it does where nothing is exported; the operator itself: below
    "chunked-1": chunked_scan(1),
    "chunked-5": chunked_scan(5),
    "chunked-32": chunked_scan(32),
}
ARGUMENTS = ("u", "dt", "a", "b", "c", "h")


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of one scan; the letters are those of scan.py."""

    T: int
    H: int
    M: int
    S: int = 3
    D: int = 6
    N: int = 4


MAMBA = Size(T=0, H=6, M=4)
MAMBA_2 = Size(T=0, H=2, M=1)
PARAMETRISATIONS = {
    "per-channel": MAMBA,
    "per-head": MAMBA_2,
    "per-head, a head for each channel": dataclasses.replace(MAMBA_2, H=6),
    "per-head, one state": dataclasses.replace(MAMBA_2, N=1),
    "per-head and state": dataclasses.replace(MAMBA_2, M=4),
}

forms = pytest.mark.parametrize("form", FORMS)
parametrisations = pytest.mark.parametrize("kind", PARAMETRISATIONS)


def arguments(kind: str, frames: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    """Random arguments with a state that is not zero, step sizes as in training, decays from slow to instant."""
    size = dataclasses.replace(PARAMETRISATIONS[kind], T=frames)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = {
        "u": normal(size.S, size.T, size.D),
        "dt": 0.2 * torch.nn.functional.softplus(normal(size.S, size.T, size.H)),
        "a": -torch.exp(1.5 * normal(size.M, size.H)),
        "b": normal(size.S, size.T, size.N),
        "c": normal(size.S, size.T, size.N),
        "h": normal(size.S, size.N, size.D),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def relative_error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach()
    return float((found - wanted).abs().max() / wanted.abs().max())


def gradients(scan: Scan, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Gradients of a fixed random combination of outputs and last state, as float64."""
    y, h = scan(*given.values())
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in (y, h)]
    total = (y.double() * weights[0]).sum() + (h.double() * weights[1]).sum()
    return torch.autograd.grad(total, tuple(given.values()))


def gradients_of_part(block: dict[str, Tensor], part: int) -> tuple[Tensor, ...]:
    """As `gradients` by the reference, with the weights that the part has where two are scanned together."""
    y, h = reference_scan(*block.values())
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(2, *tensor.shape, generator=generator, dtype=torch.float64)[part] for tensor in (y, h)]
    return torch.autograd.grad((y * weights[0]).sum() + (h * weights[1]).sum(), tuple(block.values()))


def test_reference_is_the_recurrence_written_out() -> None:
    given = {name: tensor.detach() for name, tensor in arguments("per-head", frames=3).items()}
    u, dt, a, b, c, h = given.values()
    y, last = reference_scan(u, dt, a, b, c, h)
    for s in range(3):
        for d in range(6):
            head, states = d // 3, h[s, :, d].tolist()
            for t in range(3):
                decay = float(torch.exp(dt[s, t, head] * a[0, head]))
                fed = float(dt[s, t, head] * u[s, t, d])
                states = [decay * state + float(b[s, t, n]) * fed for n, state in enumerate(states)]
                expected = sum(float(c[s, t, n]) * state for n, state in enumerate(states))
                assert float(y[s, t, d]) == pytest.approx(expected, abs=1e-12)
            assert last[s, :, d].tolist() == pytest.approx(states, abs=1e-12)


@forms
@parametrisations
@pytest.mark.parametrize("frames", [1, 4, 5, 32, 47])
def test_form_equals_the_reference_in_values_and_gradients(form: str, kind: str, frames: int) -> None:
    given = arguments(kind, frames)
    found, wanted = FORMS[form](*given.values()), reference_scan(*given.values())
    for name, ours, theirs in zip(("y", "h"), found, wanted, strict=True):
        assert ours.shape == theirs.shape, name
        assert relative_error(ours, theirs) <= TOLERANCE["values", torch.float64], name
    for name, ours, theirs in zip(
        ARGUMENTS, gradients(FORMS[form], given), gradients(reference_scan, given), strict=True
    ):
        assert ours.shape == theirs.shape, name
        assert relative_error(ours, theirs) <= TOLERANCE["gradients", torch.float64], name


@forms
@parametrisations
def test_form_in_float32_stays_near_the_float64_reference(form: str, kind: str) -> None:
    given = arguments(kind, frames=250, dtype=torch.float32)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in given.items()}
    found, wanted = FORMS[form](*given.values()), reference_scan(*exact.values())
    for name, ours, theirs in zip(("y", "h"), found, wanted, strict=True):
        assert ours.dtype == torch.float32, name
        assert relative_error(ours, theirs) <= TOLERANCE["values", torch.float32], name
    for name, ours, theirs in zip(
        ARGUMENTS, gradients(FORMS[form], given), gradients(reference_scan, exact), strict=True
    ):
        assert relative_error(ours, theirs) <= TOLERANCE["gradients", torch.float32], name


@forms
@parametrisations
@pytest.mark.parametrize("split", [1, 5, 13])
def test_state_carried_across_a_split_changes_nothing(form: str, kind: str, split: int) -> None:
    u, dt, a, b, c, h = arguments(kind, frames=17).values()
    scan = FORMS[form]
    whole, last = scan(u, dt, a, b, c, h)
    first, between = scan(u[:, :split], dt[:, :split], a, b[:, :split], c[:, :split], h)
    second, after = scan(u[:, split:], dt[:, split:], a, b[:, split:], c[:, split:], between)
    assert relative_error(torch.cat([first, second], dim=1), whole) <= TOLERANCE["values", torch.float64]
    assert relative_error(after, last) <= TOLERANCE["values", torch.float64]


@forms
def test_blocks_scanned_in_one_call_equal_blocks_scanned_alone(form: str) -> None:
    """Rates with axes in front of their own belong to some of the sequences only."""
    blocks = [arguments("per-channel", frames=17, seed=seed) for seed in (0, 1)]
    together = {name: torch.stack([block[name].detach() for block in blocks]) for name in ARGUMENTS}
    together["a"] = together["a"][:, None]  # (2, 1, M, H): for every sequence of its block
    together = {name: tensor.requires_grad_() for name, tensor in together.items()}
    for tensor, *alone in zip(
        gradients(FORMS[form], together),
        *(gradients_of_part(block, part) for part, block in enumerate(blocks)),
        strict=True,
    ):
        wanted = torch.stack(alone).reshape(tensor.shape)
        assert relative_error(tensor, wanted) <= TOLERANCE["gradients", torch.float64]
    y, h = FORMS[form](*together.values())
    for part, block in enumerate(blocks):
        for ours, theirs in zip((y[part], h[part]), reference_scan(*block.values()), strict=True):
            assert relative_error(ours, theirs) <= TOLERANCE["values", torch.float64]


@pytest.mark.slow
@parametrisations
def test_the_exported_loop_equals_the_reference_and_is_one_operator(kind: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
            return looped_scan(*tensors)

    given = tuple(tensor.detach() for tensor in arguments(kind, frames=9).values())
    program = torch.export.export(Module(), given)
    operators = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert operators.count(torch.ops.higher_order.scan) == 1
    assert len(operators) < 50  # whatever the number of frames
    for ours, theirs in zip(program.module()(*given), reference_scan(*given), strict=True):
        assert relative_error(ours, theirs) <= TOLERANCE["values", torch.float64]


@parametrisations
def test_gradients_flow_through_a_carried_state(kind: str) -> None:
    """Truncated training would hide a wrong gradient of the state that a scan is given."""

    def in_two_parts(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        first, between = chunked_scan(5)(u[:, :7], dt[:, :7], a, b[:, :7], c[:, :7], h)
        second, last = chunked_scan(5)(u[:, 7:], dt[:, 7:], a, b[:, 7:], c[:, 7:], between)
        return torch.cat([first, second], dim=1), last

    given = arguments(kind, frames=17)
    for name, ours, theirs in zip(
        ARGUMENTS, gradients(in_two_parts, given), gradients(reference_scan, given), strict=True
    ):
        assert relative_error(ours, theirs) <= TOLERANCE["gradients", torch.float64], name


@parametrisations
@pytest.mark.parametrize("frames", [1, 7])
def test_gradcheck_of_the_chunked_scan(kind: str, frames: int) -> None:
    given = tuple(arguments(kind, frames).values())
    assert torch.autograd.gradcheck(chunked_scan(3), given, fast_mode=frames > 1)


@forms
@parametrisations
def test_no_form_changes_its_arguments(form: str, kind: str) -> None:
    given = arguments(kind, frames=7)
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    gradients(FORMS[form], given)
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name]), name


@forms
@parametrisations
def test_instant_and_vanishing_decay_stay_finite(form: str, kind: str) -> None:
    for rate in (1e-6, 1e4):
        given = arguments(kind, frames=47, dtype=torch.float32)
        given["a"] = torch.full_like(given["a"], -rate).requires_grad_()
        y, h = FORMS[form](*given.values())
        assert torch.isfinite(y).all()
        assert torch.isfinite(h).all()
        assert all(torch.isfinite(gradient).all() for gradient in gradients(FORMS[form], given))


def test_chunked_scan_per_channel_keeps_at_most_an_eighth_of_what_the_full_one_keeps() -> None:
    """What lies between forward and backward pass; the peak is measured in benchmarks/. Measured: a fifteenth."""

    def kept_bytes(scan: Scan) -> int:
        storages: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        u, dt, b, c = (torch.rand(1, 250, width, requires_grad=True) for width in (128, 128, 12, 12))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = scan(u, dt, -torch.rand(12, 128), b, c, torch.zeros(1, 12, 128))
        assert all(tensor.requires_grad for tensor in outputs)
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())

    assert 0 < 8 * kept_bytes(chunked_scan(32)) <= kept_bytes(full_scan)


def test_a_wrong_scan_would_be_noticed() -> None:
    """The control: one frame's decay left out is far beyond every tolerance."""

    def forgetful(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        shorter = dt.clone()
        shorter[:, 20] *= 0.5
        return unrolled_scan(u, shorter, a, b, c, h)

    given = arguments("per-channel", frames=47)
    errors = [
        relative_error(ours, theirs)
        for ours, theirs in zip(forgetful(*given.values()), reference_scan(*given.values()), strict=True)
    ]
    assert errors[0] > 100 * TOLERANCE["values", torch.float32]


@pytest.mark.gpu
@pytest.mark.parametrize("own_rates", [False, True])
@pytest.mark.parametrize(("channels", "states", "frames", "chunk"), [(5, 3, 13, 4), (128, 12, 250, 32), (200, 4, 9, 3)])
def test_the_kernels_of_a_gpu_equal_the_reference_in_values_and_gradients(
    channels: int, states: int, frames: int, chunk: int, own_rates: bool
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU with Triton")
    from edgese.model.scan_triton import TritonScan

    n = 6
    rng = torch.Generator().manual_seed(3)
    sizes = [(n, frames, channels)] * 2 + [(n, states, channels)[not own_rates :]]
    sizes += [(n, frames, states)] * 2 + [(n, states, channels)]
    given = [torch.randn(size, generator=rng) for size in sizes]
    given[1], given[2] = 0.1 * given[1].abs(), -given[2].abs()
    wanted = [tensor.double().requires_grad_() for tensor in given]
    found = [tensor.cuda().requires_grad_() for tensor in given]
    assert type(chunked_scan(chunk)(*found)[0].grad_fn.next_functions[0][0]).__name__ == "TritonScanBackward"
    answers = []
    for tensors, (y, h) in ((found, TritonScan.apply(chunk, *found)), (wanted, reference_scan(*wanted))):
        (y.sin().sum() + h.sum()).backward()
        answers.append([y.detach(), h.detach(), *(tensor.grad for tensor in tensors)])
    for ours, truth in zip(*answers, strict=True):
        assert (
            relative_error(ours.cpu().double(), truth) < 3e-5
        )  # H200: one gradient over 250 frames was off by 1.15e-5
