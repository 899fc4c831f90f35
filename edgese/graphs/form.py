"""Form and variant of the network in a bundle's graphs, and that form as a program of PyTorch."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from edgese.graphs.plan import plan_of
from edgese.graphs.precision import Precision
from edgese.model.checkpoint import load_enhancer
from edgese.model.enhancer import SegmentStep, StreamStep, WaveformEnhancer
from edgese.model.product import use_half
from export import ExportError
from export.bundle import WEIGHTS, Bundle, Graph
from runtimes.pytorch import write_program as save_program


@contextlib.contextmanager
def exported_form(enhancer: WaveformEnhancer, half: Collection[str] = ()) -> Iterator[None]:
    """Put the network in its exported form: unrolled scan, DFT as a product, the products `half` in half precision."""
    enhancer.network.use_form("export")
    enhancer.transform.form = "matmul"
    use_half(enhancer.network, half)
    try:
        yield
    finally:
        use_half(enhancer.network, ())
        enhancer.network.use_form("train")
        enhancer.transform.form = "fft"


def step_of(enhancer: WaveformEnhancer) -> StreamStep | SegmentStep:
    """Module that a graph is exported from: a causal network as a stream with its states, another as a segment."""
    return (StreamStep if enhancer.network.causal else SegmentStep)(enhancer).eval()


def graph_states(enhancer: WaveformEnhancer) -> dict[str, Tensor]:
    """Zero states of one stream, in the order of a graph's inputs; a network that is not causal has none."""
    return enhancer.initial_state() if enhancer.network.causal else {}


class _Tupled(nn.Module):
    """Step whose outputs are a tuple, as PyTorch's programs have them, also where there is but one."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, wave: Tensor) -> tuple[Tensor]:
        return (self.step(wave),)


def write_program(bundle: Bundle, graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a graph's own form as a program of PyTorch, made from the bundle's weights.

    Raises:
        ExportError: a precision that only the graph has.
        CheckpointError: the bundle's weights are missing or broken.
    """
    if Precision(graph.precision).quantized:
        found = f"found {graph.precision}, which PyTorch does not run"
        raise ExportError(f"{graph.file}: {found}; choose another runtime, or graphs in fp32 or fp16")
    enhancer = bundle_enhancer(bundle, graph.variant)
    with exported_form(enhancer, plan_of(bundle, graph.precision).half):
        step = step_of(enhancer)
        program = step if enhancer.network.causal else _Tupled(step)
        save_program(program, graph.inputs, graph.outputs, path, metadata)


def bundle_enhancer(bundle: Bundle, variant: str = "") -> WaveformEnhancer:
    """Network that a bundle's graphs of this variant were made from.

    Raises:
        CheckpointError: the bundle's weights are missing or broken.
    """
    return with_variant(load_enhancer(bundle.file(WEIGHTS)), variant)


def with_variant(enhancer: WaveformEnhancer, variant: str) -> WaveformEnhancer:
    """Enhancer with what the variant adds; weights are shared."""
    return WaveformEnhancer(enhancer.network, enhancer.audio, pcs=True).eval() if variant == "pcs" else enhancer
