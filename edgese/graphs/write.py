"""Writing of a network's graphs: their inputs and outputs, and their ONNX files in any precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from calib.qdq import ASYMMETRIC, SYMMETRIC, Candidate, candidates, write_quantized
from calib.ranges import Range
from edgese.graphs.form import exported_form, graph_states, step_of
from edgese.graphs.plan import Plan
from edgese.graphs.precision import Precision
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import products
from export import ExportError
from export.bundle import Graph
from export.graph import write_onnx
from export.inspection import Anatomy, read_anatomy
from runtimes.base import TensorSpec

SCHEMES = {Precision.INT8: SYMMETRIC, Precision.INT8_CPU: ASYMMETRIC}

_NETWORK = "enhancer.network."  # where a graph's modules have what a network calls its own


def graph_of(enhancer: WaveformEnhancer, block: int, precision: str = "fp32", variant: str = "") -> Graph:
    """Description of a graph of `block` hops: file name, inputs, outputs and states. The file is not written.

    The graph of a network that is not causal takes a segment of so many hops, and has no states.
    """
    states, kind = graph_states(enhancer), "block" if enhancer.network.causal else "segment"
    successors = {state: f"{state}_next" for state in states}
    shapes = {
        "wave": ("streams", block * enhancer.audio.hop),
        **{name: ("streams", *state.shape[1:]) for name, state in states.items()},
    }
    return Graph(
        file=".".join(filter(None, (f"{kind}{block}", precision, variant, "onnx"))),
        precision=precision,
        block=block,
        inputs=tuple(TensorSpec(tensor, shape, "float32") for tensor, shape in shapes.items()),
        outputs=(
            TensorSpec("enhanced", shapes["wave"], "float32"),
            *(TensorSpec(successors[state], shapes[state], "float32") for state in states),
        ),
        states=successors,
        variant=variant,
    )


def write_graph(
    enhancer: WaveformEnhancer, graph: Graph, path: Path, plan: Plan, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a graph as ONNX: half precision as PyTorch casts it, INT8 as Q/DQ nodes around the products.

    Args:
        graph: its precision says how the products of `plan.ranges` are quantized.

    Raises:
        ExportError: the network cannot be exported, or lacks a product that the plan names.
        CalibrationError: a range that is no range.
    """
    lacking = set(plan.half) - products(enhancer.network).keys()
    if lacking:
        raise ExportError(f"{path}: has no product {', '.join(sorted(lacking))} to take in half precision")
    inputs = {"wave": torch.zeros(1, graph.block * enhancer.audio.hop), **graph_states(enhancer)}
    with exported_form(enhancer, plan.half):
        write_onnx(
            step_of(enhancer),
            inputs,
            [spec.name for spec in graph.outputs],
            path,
            dynamic_axes={tensor: {0: "streams"} for tensor in inputs},
            metadata=metadata or {},
        )
    if plan.ranges:
        quantize_graph(enhancer, path, path, plan.ranges, Precision(graph.precision))


def quantize_graph(
    enhancer: WaveformEnhancer, source: Path, target: Path, ranges: Mapping[str, Range], precision: Precision
) -> None:
    """Write a graph of the network once more, with these of its products in INT8.

    Raises:
        ExportError: the graph lacks a product that is named, or does not have it in float32.
        CalibrationError: a range that is no range.
    """
    found = quantizable(source, enhancer)
    lacking = ranges.keys() - found.keys()
    if lacking:
        raise ExportError(f"{source}: has no product {', '.join(sorted(lacking))} to quantize, only {', '.join(found)}")
    nodes = [found[product].node for product in ranges]
    by_tensor = {found[product].activation: wanted for product, wanted in ranges.items()}
    write_quantized(source, target, nodes, by_tensor, SCHEMES[precision])


def quantizable(onnx_path: Path, enhancer: WaveformEnhancer) -> dict[str, Candidate]:
    """Products of a graph that are still float32 and that INT8 can take, by the paths of their modules."""
    product = product_nodes(read_anatomy(onnx_path), enhancer)
    return {product[found.node]: found for found in candidates(onnx_path) if found.node in product}


def product_nodes(anatomy: Anatomy, enhancer: WaveformEnhancer) -> dict[str, str]:
    """Map from a graph's MatMul nodes to the network's products; those of the DFT and of the scan are none."""
    known = products(enhancer.network)
    modules = {node.name: node.module.removeprefix(_NETWORK) for node in anatomy.nodes if node.operator == "MatMul"}
    return {node: module for node, module in modules.items() if module in known}
