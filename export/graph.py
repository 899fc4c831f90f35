"""Export of a module to one ONNX file: plain operators of one opset, weights folded, names chosen by the caller."""

from __future__ import annotations

import ast
import contextlib
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnx_ir.passes.common
import onnxscript.optimizer
import torch
from torch import Tensor, nn

from export import ExportError
from export.inspection import MODULE
from export.lstm import as_one_node, translations

OPSET = 20  # the newest that TensorRT 10.3 of JetPack 6 reads
_SCOPES = "pkg.torch.onnx.name_scopes"  # PyTorch's own: paths of all modules around a node, and the node itself


def write_onnx(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    onnx_path: Path,
    *,
    dynamic_axes: Mapping[str, Mapping[int, str]],
    metadata: Mapping[str, str],
    opset: int = OPSET,
) -> None:
    """Write a module as a self-contained ONNX file that has passed onnx's full check.

    Weights that PyTorch transposes in every call are stored transposed. Each node notes the submodule that it came from
    (`export.inspection.MODULE`). Equal inputs give equal bytes.

    Args:
        module: in eval mode; takes its tensors by position, in the order of `inputs`, returns them in the order of
            `outputs`. State is passed in and returned: a module that changes its own buffers is refused.
        inputs: name -> example tensor; its shape and dtype count, its values do not.
        dynamic_axes: input name -> axis -> name of the dynamic axis; the same name means the same size.
        metadata: entries that runtimes compare before they run the graph.

    Raises:
        ExportError: the module cannot be captured as it stands, or needs more than plain ONNX operators.
    """
    if onnx_path.suffix != ".onnx":
        raise ExportError(f"{onnx_path}: the file name must end in .onnx")
    if module.training:
        raise ExportError(f"{onnx_path}: the module is in training mode; call module.eval() first")
    examples = _examples(inputs, dynamic_axes)
    shapes = _dynamic_shapes(module, inputs, dynamic_axes)
    with _quiet():
        program = _capture(module, examples, shapes, outputs, onnx_path)
        model = _translate(program, shapes, opset, onnx_path)
        _simplify(model)
    _name(model, tuple(inputs), outputs)
    model.metadata_props.update(metadata)
    proto = onnx_ir.serde.serialize_model(model)
    _check(proto, opset, onnx_path)
    onnx_path.write_bytes(proto.SerializeToString(deterministic=True))


def _examples(inputs: Mapping[str, Tensor], dynamic_axes: Mapping[str, Mapping[int, str]]) -> tuple[Tensor, ...]:
    """The examples, at least 2 long on dynamic axes: torch.export takes a size of 1 for a constant."""
    sizes: dict[str, tuple[int, str]] = {}
    for name, axes in dynamic_axes.items():
        if name not in inputs:
            raise ExportError(f"dynamic_axes: {name} is not an input; inputs: {', '.join(inputs)}")
        for axis, label in axes.items():
            if not 0 <= axis < inputs[name].ndim:
                raise ExportError(f"dynamic_axes: {name} has {inputs[name].ndim} axes, there is no axis {axis}")
            size = inputs[name].shape[axis]
            first, where = sizes.setdefault(label, (size, name))
            if size != first:
                raise ExportError(f"{name}: axis {label} has size {size}, but size {first} in {where}")
    examples = dict(inputs)
    for name, axes in dynamic_axes.items():
        for axis in axes:
            if examples[name].shape[axis] == 1:
                examples[name] = torch.cat([examples[name]] * 2, axis)
    return tuple(examples.values())


def _dynamic_shapes(
    module: nn.Module, inputs: Mapping[str, Tensor], dynamic_axes: Mapping[str, Mapping[int, str]]
) -> dict[str, Any]:
    """The dynamic shapes for torch.export: argument of forward -> its axes, or a tuple of such for `*args`."""
    labels = dict.fromkeys(label for axes in dynamic_axes.values() for label in axes.values())
    try:
        dims = {label: torch.export.Dim(label) for label in labels}
    except AssertionError as error:
        raise ExportError(f"dynamic_axes: {error}; wanted names such as 'streams'") from error
    shapes = [{axis: dims[label] for axis, label in dynamic_axes.get(name, {}).items()} for name in inputs]
    try:
        return dict(inspect.signature(module.forward).bind(*shapes).arguments)
    except TypeError as error:
        raise ExportError(f"{type(module).__name__}: does not take {len(inputs)} inputs: {error}") from error


def _capture(
    module: nn.Module, examples: tuple[Tensor, ...], shapes: dict[str, Any], outputs: Sequence[str], onnx_path: Path
) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), as_one_node():
            program = torch.export.export(module, examples, dynamic_shapes=shapes)
    except Exception as error:  # torch promises no kinds of error here
        raise ExportError(f"{onnx_path}: torch.export cannot capture the module: {_one_line(error)}") from error
    found = len(program.graph_signature.user_outputs)
    if found != len(outputs):
        raise ExportError(
            f"{onnx_path}: the module returns {found} tensors, wanted {len(outputs)}: {', '.join(outputs)}"
        )
    return program


def _translate(
    program: torch.export.ExportedProgram, shapes: dict[str, Any], opset: int, onnx_path: Path
) -> onnx_ir.Model:
    try:
        translated = torch.onnx.export(
            program,
            opset_version=opset,
            dynamic_shapes=shapes,  # only its names are used: the program is captured already
            dynamo=True,
            custom_translation_table=translations(),
            optimize=False,  # done in _simplify, without limits of size
            verbose=False,
        )
    except Exception as error:  # torch promises no kinds of error here
        raise ExportError(f"{onnx_path}: PyTorch cannot translate the module to ONNX: {_one_line(error)}") from error
    if translated is None or translated.exported_program is None:
        raise ExportError(f"{onnx_path}: PyTorch translated the module to nothing")
    signature = translated.exported_program.graph_signature  # here, since capturing alone does not see all changes
    changed = ", ".join((*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()))
    if changed:
        raise ExportError(f"{onnx_path}: the module changes {changed} in place; make it an input and an output")
    return translated.model


def _simplify(model: onnx_ir.Model) -> None:
    """Fold all that is constant, inline functions, drop what is unused, and keep of PyTorch's notes the module only."""
    onnxscript.optimizer.optimize_ir(model, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
    modules = [_module(node) for node in model.graph]
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(model)
    for node, module in zip(model.graph, modules, strict=True):
        if module:
            node.metadata_props[MODULE] = module
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.name = "graph"


def _module(node: onnx_ir.Node) -> str:
    """Path of the submodule that a node came from; one made in simplifying belongs with what it reads."""
    if _SCOPES in node.metadata_props:
        path: str = ast.literal_eval(node.metadata_props[_SCOPES])[-2]
        return path
    makers = (value.producer() for value in node.inputs if value is not None)
    return next((_module(maker) for maker in makers if maker is not None), "")


def _name(model: onnx_ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs the caller's names; whatever bears one of them inside the graph gets another."""
    for value, name in zip((*model.graph.inputs, *model.graph.outputs), (*inputs, *outputs), strict=True):
        value.name = name
    onnx_ir.passes.common.NameFixPass()(model)


def _check(proto: onnx.ModelProto, opset: int, onnx_path: Path) -> None:
    """Refuse what is not plain and valid ONNX of the opset asked for, or has shapes that do not agree."""
    found = {entry.domain: entry.version for entry in proto.opset_import}
    if found != {"": opset}:
        raise ExportError(f"{onnx_path}: the graph needs opsets {found}, wanted opset {opset} of plain ONNX only")
    if proto.functions:
        names = ", ".join(function.name for function in proto.functions)
        raise ExportError(f"{onnx_path}: functions are left that no runtime knows: {names}")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{onnx_path}: not valid ONNX: {_one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what PyTorch is known to say about itself while it exports, and nothing else."""

    def not_torchvision(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()

    registry_log = logging.getLogger("torch.onnx._internal.exporter._registration")
    registry_log.addFilter(not_torchvision)  # it looks for operators of torchvision, which nobody asked for
    try:
        with warnings.catch_warnings():
            # PyTorch copies its own tree specifications, and warns itself of how it does so.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            # One name for the axes of several inputs is what we want: they have the same size.
            warnings.filterwarnings("ignore", r"# The axis name: .* will not be used", UserWarning)
            # PyTorch uses its own deprecated decorator when it first handles a scan.
            warnings.filterwarnings("ignore", "`torch.jit.script", DeprecationWarning)
            yield
    finally:
        registry_log.removeFilter(not_torchvision)


def _one_line(error: BaseException) -> str:
    """The message of the first cause: PyTorch wraps it in advice on how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 500 else text[:500] + " ..."
