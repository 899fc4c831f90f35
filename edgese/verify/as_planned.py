"""Check that a graph is rounded as its bundle's plan says: which products in half precision or INT8, and no others.

A wrong scale or one more operation in half precision may cost so little in the sound that is verified that no limit
notices; here it is found in the graph's file, whatever its samples show.
"""

from __future__ import annotations

import math

import numpy as np

from calib import CalibrationError
from calib.qdq import QuantizedProduct, read_quantized
from calib.ranges import Range
from edgese.graphs.plan import Plan, plan_of
from edgese.graphs.precision import Precision
from edgese.graphs.write import SCHEMES, product_nodes
from edgese.model.enhancer import WaveformEnhancer
from edgese.verify.findings import Check
from export import ExportError
from export.bundle import Bundle, Graph
from export.inspection import Anatomy, Node, half_nodes, read_anatomy

_SAME = 1e-6  # of a scale, which is stored in float32
_HALF_STEP = 0.501  # of a weight's scale


def rounded_as_planned(bundle: Bundle, graph: Graph, enhancer: WaveformEnhancer) -> Check:
    """Check that half precision and INT8 stand where the manifest says, with its ranges and float32's weights.

    Args:
        enhancer: the bundle's network, which knows its products.
    """
    wanted = "nothing but float32" if graph.precision == Precision.FP32 else "what the manifest says, and no more"
    try:
        plan = plan_of(bundle, graph.precision)
        anatomy = read_anatomy(bundle.graph_file(graph))
        product = product_nodes(anatomy, enhancer)
        problems = _half_problems(bundle, graph, plan, product)
        if graph.precision == Precision.FP32:
            problems += _int8_problems(bundle, graph, plan, product, {})
        else:
            float32 = read_anatomy(bundle.graph_file(bundle.graph(block=graph.block, variant=graph.variant)))
            weights = _weights(float32, product_nodes(float32, enhancer))
            problems += _half_weight_problems(_weights(anatomy, product), weights, plan)
            problems += _int8_problems(bundle, graph, plan, product, weights)
    except (ExportError, CalibrationError) as error:
        return Check("precision of products", False, str(error), wanted)
    found = f"{len(plan.half)} products in half precision, {len(plan.ranges)} in INT8, all else in float32"
    return Check("precision of products", not problems, "; ".join(problems) or found, wanted)


def _half_problems(bundle: Bundle, graph: Graph, plan: Plan, product: dict[str, str]) -> list[str]:
    nodes = half_nodes(bundle.graph_file(graph))
    in_half = [node for node in nodes if node.name in product]
    found = {product[node.name] for node in in_half}
    read, given = ({tensor for node in in_half for tensor in getattr(node, kind)} for kind in ("inputs", "outputs"))

    def serves(node: Node) -> bool:
        """True for a Cast to a product's input or back from its output; any other one rounds something else."""
        return node.operator == "Cast" and (node.outputs[0] in read or node.inputs[0] in given)

    strange = [node for node in nodes if node not in in_half and not serves(node)]
    return [
        *(f"{node} of {node.module or 'the graph'} in half precision" for node in strange),
        *(f"{name} in half precision" for name in sorted(found - set(plan.half))),
        *(f"{name} not in half precision" for name in sorted(set(plan.half) - found)),
    ]


def _half_weight_problems(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], plan: Plan) -> list[str]:
    return [
        f"{name}: weights that are not those in float32, rounded"
        for name in sorted(wanted.keys() & set(plan.half))
        if name not in found or not np.array_equal(found[name], wanted[name].astype(np.float16))
    ]


def _int8_problems(
    bundle: Bundle, graph: Graph, plan: Plan, product: dict[str, str], weights: dict[str, np.ndarray]
) -> list[str]:
    quantized = {product.get(found.node, found.node): found for found in read_quantized(bundle.graph_file(graph))}
    problems = [f"{name} in INT8" for name in sorted(quantized.keys() - plan.ranges.keys())]
    problems += [f"{name} not in INT8" for name in sorted(plan.ranges.keys() - quantized.keys())]
    for name in sorted(quantized.keys() & plan.ranges.keys()):
        problems += _scale_problems(name, quantized[name], plan.ranges[name], graph.precision)
        problems += _weight_problems(name, quantized[name], weights[name])
    return problems


def _scale_problems(name: str, found: QuantizedProduct, wanted: Range, precision: str) -> list[str]:
    scheme = SCHEMES[Precision(precision)]
    low, high = min(wanted.low, 0), max(wanted.high, 0)
    scale = max(-low, high) / 127 if scheme.symmetric else (high - low) / 255
    zero, leeway = (0, 0) if scheme.symmetric else (round(-low / scale), 1)  # the quantizer divides in float32
    if found.activation_dtype != scheme.activations:
        return [f"{name}: activations in {found.activation_dtype}, not {scheme.activations}"]
    if not math.isclose(found.activation_scale, scale, rel_tol=_SAME):
        return [f"{name}: a step of {found.activation_scale:.6g}, but the manifest's range makes it {scale:.6g}"]
    if abs(found.zero_point - zero) > leeway:
        return [f"{name}: the zero point {found.zero_point}, but the manifest's range makes it {zero}"]
    return []


def _weight_problems(name: str, found: QuantizedProduct, wanted: np.ndarray) -> list[str]:
    if found.weight.shape != wanted.shape:
        return [f"{name}: weights of shape {found.weight.shape}, not {wanted.shape}"]
    own = found.weight_axis  # the axis that has a scale for each of its places; None: one scale for all
    scale = found.weight_scale.reshape([-1 if axis == own else 1 for axis in range(wanted.ndim)])
    steps = float((np.abs(found.dequantized - wanted) / scale).max())
    if steps > _HALF_STEP:
        return [f"{name}: weights {steps:.2f} steps from those in float32, not half a step"]
    others = tuple(axis for axis in range(wanted.ndim) if axis != own)
    largest = np.abs(wanted).max(axis=others, keepdims=True)
    widest = float((127 * scale / largest)[largest > 0].max(initial=0.0))  # a column of zeros has any scale
    return [f"{name}: weights in steps {widest:.2f} times as wide as 8 bits have"] if widest > 1 + _SAME else []


def _weights(anatomy: Anatomy, product: dict[str, str]) -> dict[str, np.ndarray]:
    """Weight that each product multiplies with, by its name, on whichever side it stands."""
    return {
        product[node.name]: anatomy.weights[tensor]
        for node in anatomy.nodes
        for tensor in node.inputs
        if node.name in product and tensor in anatomy.weights
    }
