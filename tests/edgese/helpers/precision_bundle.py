"""The tiny network's bundle in every precision, made once, and what it takes to make and to change it."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import edgese.graphs.write
from calib.batches import Batches, write_batches
from calib.ranges import Range, find_ranges
from edgese.export_bundle import export_bundle, require_passed
from edgese.graphs.plan import Plan
from edgese.graphs.precision import Precision
from edgese.graphs.write import graph_of, quantizable, write_graph
from edgese.model.enhancer import WaveformEnhancer
from edgese.model.product import products
from edgese.quantize.calibration import read_calibration, weights_digest
from export.bundle import Bundle, seal_bundle
from export.graph import write_onnx

from .made_once import made_once
from .tiny_bundle import HOP, NAME, Change, tiny_bundle

BLOCKS = (1, 3)  # those of the tiny bundle
CALIBRATED = 3  # hops of a calibration's batch
LEFT_HAND = ("fusions.0.mix", "fusions.1.mix")  # their weight stands on the left: not for INT8
IN_HALF = (*LEFT_HAND, "blocks.1.out_proj", "magnitude_head", "phase_decoder.last")  # not in INT8 in `int8`
IN_FLOAT = (*LEFT_HAND, "split.product")  # nor in `int8-cpu`

SpeechLike = Callable[..., NDArray[np.float32]]

_written: dict[tuple[Any, ...], Path] = {}
_bundles: list[Bundle] = []
_calibrations: list[Batches] = []


def write_once(bundle: Bundle, folders: pytest.TempPathFactory) -> Callable[..., None]:
    """Stands in for `write_onnx`: each graph of the tiny network is translated but once, float32 not at all.

    The weights are those of the fixture `tiny_enhancer`, whatever a test has done to them.
    """

    def write(module: Any, inputs: Any, outputs: Any, path: Path, *, dynamic_axes: Any, metadata: Any) -> None:
        half = tuple(name for name, product in products(module.enhancer.network).items() if product.in_half)
        block = inputs["wave"].shape[1] // HOP
        key = (block, half)
        if not half:
            _written[key] = bundle.path / bundle.graph(block=block).file
        elif key not in _written:
            content = " ".join((weights_digest(module.enhancer), *half))
            name = f"written-{block}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"

            def make(folder: Path) -> None:
                write_onnx(module, inputs, outputs, folder / "graph.onnx", dynamic_axes=dynamic_axes, metadata={})

            _written[key] = made_once(name, make, folders) / "graph.onnx"
        model = onnx.load(_written[key])
        del model.metadata_props[:]
        helper.set_model_props(model, dict(metadata))
        onnx.save(model, path)

    return write


@torch.no_grad()
def write_calibration(path: Path, enhancer: WaveformEnhancer, speech_like: SpeechLike, block: int = CALIBRATED) -> Path:
    """Eight batches of two streams, out of a run over two seconds of each, as `read_calibration` wants them."""
    waves = torch.from_numpy(np.stack([speech_like(260 * HOP, seed=seed) for seed in (5, 6)]))
    batches, states = [], enhancer.initial_state(len(waves))
    for hop in range(32, 260, 32):
        _, states = enhancer(waves[:, (hop - 32) * HOP : hop * HOP], states)
        batch = {"wave": waves[:, hop * HOP : (hop + block) * HOP], **states}
        batches.append({name: tensor.numpy().copy() for name, tensor in batch.items()})
    provenance = {
        "kind": "calibration of a waveform enhancer",
        "block": block,
        "weights": weights_digest(enhancer),
    }
    write_batches(path, batches, provenance)
    return path


def calibration(enhancer: WaveformEnhancer, folders: pytest.TempPathFactory, speech_like: SpeechLike) -> Batches:
    """That of the tiny network, as it is read."""
    if not _calibrations:
        path = write_calibration(folders.mktemp("calibration") / "c.npz", enhancer, speech_like)
        _calibrations.append(read_calibration(path, enhancer))
    return _calibrations[0]


def make_ranges(enhancer: WaveformEnhancer, batches: Batches, float32: Path, *, symmetric: bool) -> dict[str, Range]:
    """Of what each product meets that INT8 could take; the network's float32 graph is left at `float32`."""
    write_graph(enhancer, graph_of(enhancer, CALIBRATED), float32, Plan())
    tensors = {product: found.activation for product, found in quantizable(float32, enhancer).items()}
    ranges = find_ranges(float32, batches.batches, set(tensors.values()), symmetric=symmetric)
    return {product: ranges[tensor] for product, tensor in tensors.items()}


def precision_bundle(
    enhancer: WaveformEnhancer, folders: pytest.TempPathFactory, speech_like: SpeechLike, quick: pytest.MonkeyPatch
) -> Bundle:
    """The tiny network in fp32, fp16, int8 and int8-cpu, of 1 and 3 hops; shared, so never to be changed.

    PESQ has chosen nothing: INT8 is in all products that can be, but for a few, so that both kinds are there.
    """
    quick.setattr(edgese.graphs.write, "write_onnx", write_once(tiny_bundle(enhancer, folders), folders))

    def make(folder: Path) -> None:
        batches = calibration(enhancer, folders, speech_like)
        every = tuple(products(enhancer.network))

        def ranges_without(others: Collection[str], *, symmetric: bool) -> dict[str, Range]:
            ranges = make_ranges(enhancer, batches, folder / "float32.onnx", symmetric=symmetric)
            return {name: found for name, found in ranges.items() if name not in others}

        plans = {
            Precision.FP16: Plan(half=every),
            Precision.INT8: Plan(
                tuple(name for name in every if name in IN_HALF),
                ranges_without(IN_HALF, symmetric=True),
                batches.digest,
            ),
            Precision.INT8_CPU: Plan((), ranges_without(IN_FLOAT, symmetric=False), batches.digest),
        }
        with pytest.MonkeyPatch.context() as short:
            short.setattr("edgese.export_bundle.VERIFICATION_HOPS", 300)
            weights = tiny_bundle(enhancer, folders).path.with_name("tiny.safetensors")
            exported = export_bundle(
                *(weights, folder / "quantized.bundle"), name=NAME, blocks=BLOCKS, plans=plans, calibration=batches
            )
        require_passed(exported)

    if not _bundles:
        _bundles.append(Bundle.open(made_once("quantized", make, folders) / "quantized.bundle"))
    return _bundles[0]


def resealed(
    bundle: Bundle,
    folder: Path,
    precision: str,
    change: Change | None = None,
    manifest: Mapping[str, Any] | None = None,
    block: int = BLOCKS[-1],
) -> Bundle:
    """One graph of the bundle beside the one in fp32, changed and sealed again as if it were right."""
    shutil.copytree(bundle.path, folder)
    graphs = [bundle.graph(block=block, precision=name) for name in dict.fromkeys(("fp32", precision))]
    path = folder / graphs[-1].file
    model = onnx.load(path)
    if change is not None:
        change(model)
    onnx.save(model, path)
    seal_bundle(folder, {**bundle.manifest, **(manifest or {}), "graphs": graphs})
    return Bundle.open(folder)


def planned(bundle: Bundle, precision: str, **changes: Any) -> dict[str, Any]:
    """For `resealed`: the manifest's entries with another plan for one precision."""
    plan = dataclasses.replace(Plan.from_entry(bundle.manifest["precisions"][precision]), **changes)
    return {"precisions": {**bundle.manifest["precisions"], precision: plan.entry()}}


# Surgery


def node_of(model: onnx.ModelProto, module: str, operator: str = "MatMul") -> onnx.NodeProto:
    """The first node of this kind that came from a module of the network."""
    path = f"enhancer.network.{module}"
    return next(
        node
        for node in model.graph.node
        if node.op_type == operator and path in {entry.value for entry in node.metadata_props}
    )


def maker(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    (node,) = (node for node in model.graph.node if tensor in node.output)
    return node


def held(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """An initializer's values."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor).copy()


def put(model: onnx.ModelProto, name: str, value: Any) -> None:
    """Other values for an initializer, or a new one, of any type."""
    forget_types(model, name)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name == name]:
        model.graph.initializer.remove(tensor)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def round_input(model: onnx.ModelProto, tensor: str) -> None:
    """What reads a tensor reads it rounded to FP16."""
    readers = [node for node in model.graph.node if tensor in node.input]
    at = min(list(model.graph.node).index(node) for node in readers)
    for node in readers:
        node.input[:] = [f"{tensor}_rounded" if name == tensor else name for name in node.input]
    down = helper.make_node("Cast", [tensor], [f"{tensor}_half"], name=f"{tensor}_down", to=TensorProto.FLOAT16)
    up = helper.make_node("Cast", [f"{tensor}_half"], [f"{tensor}_rounded"], name=f"{tensor}_up", to=TensorProto.FLOAT)
    model.graph.node.insert(at, up)
    model.graph.node.insert(at, down)


def compute_in_half(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """A node of one input computes in FP16, between two Casts."""
    at = list(model.graph.node).index(node)
    tensor, given = node.input[0], node.output[0]
    node.input[0], node.output[0] = f"{given}_in", f"{given}_out"
    up = helper.make_node("Cast", [f"{given}_out"], [given], name=f"{given}_up", to=TensorProto.FLOAT)
    down = helper.make_node("Cast", [tensor], [f"{given}_in"], name=f"{given}_down", to=TensorProto.FLOAT16)
    model.graph.node.insert(at + 1, up)
    model.graph.node.insert(at, down)
    forget_types(model, given)


def forget_types(model: onnx.ModelProto, tensor: str) -> None:
    """What is noted of a tensor: it may be inferred anew."""
    for value in [value for value in model.graph.value_info if value.name == tensor]:
        model.graph.value_info.remove(value)
