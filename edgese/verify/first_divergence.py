"""Search for a graph's first divergence from PyTorch: the node, its layer, and what is wrong with it.

    print(first_divergence(bundle, graph, "onnxruntime", noisy))

The graph is run beside the same graph exported anew (side_by_side.py), with all inner tensors as outputs. Fed the same
states, no call depends on an earlier one: of the tensors that are ever off, the first in the graph's order is the
cause, since all that its node reads agrees. What is off only when each carries its own states is what they carry.
A difference too small for that, lost in the rounding of its own tensor, is looked for where a node or a weight is not
as it was exported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import CheckpointError, VerificationError
from edgese.metrics.difference import TensorError, largest_difference, largest_value, tensor_error
from edgese.verify.side_by_side import Arrays, Pair, Survey, calls, survey
from export import ExportError
from export.bundle import Bundle, Graph
from export.inspection import Anatomy, Node, first_difference, node_difference
from export.staging import temporary_folder
from runtimes.base import RuntimeUnavailable

SAME = 1e-3  # of its largest value: another state is never that near


@dataclasses.dataclass(frozen=True)
class Divergence:
    """First tensor that is not what it should be, and what is known of the node that gives it."""

    graph: str
    runtime: str
    hop: int  # from 0: the first at which it shows, or the worst where it never shows by itself
    node: str
    operator: str  # "" for what is fed, which no node gives
    module: str  # of PyTorch, such as network.blocks.0.in_proj; for a state, what it comes from
    tensor: str
    inputs: tuple[str, ...]
    error: TensorError | None  # from what it should be, in that hop's call; None: there is nothing to compare
    why: str
    structure: str  # the first difference in structure from the graph exported anew; "" if there is none to add

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines to print: where, which node, how far off, why."""
        source = f"node: {self.operator} {self.node}({', '.join(self.inputs)}) -> " if self.operator else "input: "
        return (
            f"first differs in {self.module or 'the waveform enhancer'}, at hop {self.hop}",
            f"  {source}{self.tensor}",
            f"  error: {_error_in_words(self.error)}",
            f"  why: {self.why}",
            *([f"  structure: {self.structure}"] if self.structure else []),
        )

    def __str__(self) -> str:
        return "\n".join(self.lines)


def first_divergence(
    bundle: Bundle, graph: Graph, runtime: str, wave: Wave, on_progress: Callable[[str], None] | None = None
) -> Divergence:
    """Search for the first tensor of a graph that differs from what the bundle's weights give.

    For a graph that failed its verification. Takes about half a minute.

    Args:
        wave: (n_samples,) at the network's rate; its loudest 320 hops are used.
        on_progress: called with the name of each step.

    Raises:
        VerificationError: no divergence can be found; the message says what is known.
    """
    report = on_progress or (lambda step: None)
    label = f"{graph.file} in {runtime}"
    if runtime == "pytorch":
        raise VerificationError(
            f"{label}: PyTorch runs no file of the bundle and shows no inner tensors; search in another runtime"
        )
    try:
        with temporary_folder() as folder:
            report(f"{label}: exported anew")
            pair = Pair.prepare(bundle, graph, runtime, wave, folder)
            return _interface(pair) or _search(pair, report)
    except (RuntimeUnavailable, ExportError, CheckpointError) as error:
        raise VerificationError(f"{label}: cannot be searched: {error}") from error


# The search


@dataclasses.dataclass(frozen=True)
class _Parting:
    """Tensor that is off, and the call in which it is."""

    survey: Survey
    tensor: str
    call: int
    of_runtime: bool = False  # the fresh graph is off as well
    notes: tuple[str, ...] = ()


def _search(pair: Pair, report: Callable[[str], None]) -> Divergence:
    inner = set() if pair.other_form else pair.wanted.makers.keys() & pair.found.makers.keys()
    n_tensors = len(inner | pair.wanted.outputs.keys())
    report(f"{pair.label}: {n_tensors} tensors compared")
    fed_the_same = survey(pair, inner, carried=False)
    parting = _off(fed_the_same) or _off(survey(pair, inner, carried=True), fed_the_same)
    if parting is None and inner:
        parting = _hidden(pair, inner, report)
    parting = parting or _slightly_off(fed_the_same, None, "nothing else differs")
    if parting is None:
        raise VerificationError(f"{pair.label}: {'; '.join(_known(pair, n_tensors))}")
    return _described(pair, parting)


def _off(found: Survey, fed_the_same: Survey | None = None) -> _Parting | None:
    """First tensor that is off in the graph, else in the runtime; None if none is.

    Where its node is as exported, the cause before it is taken instead, if one is found.
    """
    pair = found.pair
    if first := found.first(found.of_graph):
        tensor, call = first
        if not _faults(pair, tensor) and pair.graph.states.get(tensor) == pair.states.get(tensor):
            grown = f"it grows beyond that first at {tensor}{_of_module(pair, tensor)}"
            before = _ancestors(pair.found, tensor) if fed_the_same is None else None
            cause = _slightly_off(fed_the_same or found, before, grown)
            if cause is not None:
                return cause
        return _Parting(found, tensor, call)
    if first := found.first(found.of_runtime):
        return _Parting(found, *first, of_runtime=True)
    return None


def _slightly_off(found: Survey, among: Collection[str] | None, note: str) -> _Parting | None:
    """Tensor that differs most of those whose node or weight is not as exported; None if there is none."""
    pair = found.pair
    suspects = {
        name: max(off)
        for name, off in found.of_graph.items()
        if max(off) > 0 and (among is None or name in among) and _faults(pair, name)
    }
    if not suspects:
        return None
    tensor = max(suspects, key=suspects.__getitem__)
    call = int(np.argmax(found.of_graph[tensor]))
    return _Parting(found, tensor, call, notes=("no more than another order of sums would give", note))


def _hidden(pair: Pair, inner: Collection[str], report: Callable[[str], None]) -> _Parting | None:
    """Tensor that is off only while inner tensors are no outputs, sought with as few outputs as show where; or None."""

    def off(marked: Collection[str]) -> _Parting | None:
        return _off(survey(pair, marked, carried=False)) or _off(survey(pair, marked, carried=True))

    report(f"{pair.label}: without inner tensors as outputs")
    bare = off(())
    if bare is None:
        return None
    report(f"{pair.label}: with the tensors between layers as outputs")
    parting = off(_between_layers(pair.wanted) & set(inner)) or bare
    note = f"with all tensors as outputs it agrees: {pair.runtime} errs where it fuses nodes"
    return dataclasses.replace(parting, notes=(*parting.notes, note))


def _between_layers(anatomy: Anatomy) -> set[str]:
    """Names of the tensors that are given in one layer and read in another."""
    return {
        tensor
        for node in anatomy.nodes
        for tensor in node.inputs
        if tensor in anatomy.makers and _layer(anatomy.makers[tensor]) != _layer(node)
    }


def _layer(node: Node) -> str:
    """Name of a node's layer: network.blocks.0 for whatever is part of it."""
    return ".".join(_module(node).split(".")[:3])


def _module(node: Node) -> str:
    return node.module.removeprefix("enhancer").removeprefix(".")  # StreamStep's name for what it wraps


def _ancestors(anatomy: Anatomy, tensor: str) -> set[str]:
    """Names of all tensors that a tensor is computed from, directly or not."""
    found: set[str] = set()
    waiting = [tensor]
    while waiting:
        node = anatomy.makers.get(waiting.pop())
        new = set(node.inputs) - found if node else set()
        found |= new
        waiting += new
    return found


# What is wrong with a node


def _faults(pair: Pair, tensor: str) -> list[str]:
    """Faults of the node that gives a tensor, against the exported one: other weights, operator or inputs."""
    if pair.other_form:
        return []
    return [*_changed_weights(pair, tensor), *filter(None, [node_difference(pair.wanted, pair.found, tensor)])]


def _changed_weights(pair: Pair, tensor: str) -> list[str]:
    ours, theirs = (anatomy.makers.get(tensor) for anatomy in (pair.wanted, pair.found))
    changed = []
    held = (_held(pair.wanted, ours), _held(pair.found, theirs)) if ours and theirs else ((), ())
    for name, other in zip(*held, strict=False):  # of unequal number: structure
        if name not in pair.wanted.weights or other not in pair.found.weights:
            continue
        wanted, found = pair.wanted.weights[name], pair.found.weights[other]
        if wanted.shape != found.shape:
            changed.append(f"weight {other}: found shape {found.shape}, wanted {wanted.shape}")
        elif not np.array_equal(wanted, found):
            n_changed = int(np.count_nonzero(wanted != found))
            changed.append(
                f"weight {other} differs from the bundle's in {n_changed} of {wanted.size} values: "
                f"{_error_in_words(tensor_error(other, wanted, found))}"
            )
    return changed


def _held(anatomy: Anatomy, node: Node) -> list[str]:
    """Names of a node's inputs; in place of a dequantized weight, the inputs of its DequantizeLinear."""
    held: list[str] = []
    for tensor in node.inputs:
        maker = anatomy.makers.get(tensor)
        constant = maker is not None and all(name in anatomy.weights for name in maker.inputs if name)
        held += maker.inputs if maker is not None and constant else [tensor]
    return held


# What is said


def _interface(pair: Pair) -> Divergence | None:
    """Divergence at the first input or output that the suspect lacks, has in another type, or has besides; or None."""
    for kind, wanted, found in (
        ("input", pair.wanted.inputs, pair.found.inputs),
        ("output", pair.wanted.outputs, pair.found.outputs),
    ):
        for tensor in (*wanted, *found):
            if wanted.get(tensor) != found.get(tensor):
                inside = kind == "output" and tensor not in found and tensor in pair.found.makers
                why = f"{kind} {tensor}: found {found.get(tensor, 'none')}, wanted {wanted.get(tensor, 'none')}"
                return _divergence(pair, tensor, 0, None, why + inside * "; it is computed, but not given")
    return None


def _described(pair: Pair, parting: _Parting) -> Divergence:
    found = parting.survey
    with contextlib.closing(calls(pair, found.marked, carried=found.carried)) as replayed:
        answers = next(itertools.islice(replayed, parting.call, None))
    wanted, given = ("exact", "fresh") if parting.of_runtime else ("fresh", "suspect")
    arrays = answers[wanted][parting.tensor], answers[given][parting.tensor]
    error = tensor_error(parting.tensor, *arrays) if arrays[0].shape == arrays[1].shape else None
    if parting.of_runtime:
        why = [f"as exported anew, but {pair.runtime} gives other values than float64: its arithmetic differs"]
    else:
        why = _reasons(pair, parting.tensor, found.carried, answers["fresh"], answers["suspect"])
    why += [*parting.notes, *_wrong_metadata(pair), *filter(None, [pair.other_form])]
    return _divergence(pair, parting.tensor, parting.call * pair.graph.block, error, "; ".join(why))


def _reasons(pair: Pair, tensor: str, carried: bool, fresh: Arrays, suspect: Arrays) -> list[str]:
    reasons = []
    if fresh[tensor].shape != suspect[tensor].shape:
        reasons.append(f"found shape {suspect[tensor].shape}, wanted {fresh[tensor].shape}")
    if tensor in pair.states and pair.graph.states[tensor] != pair.states[tensor]:
        reasons.append(f"the manifest feeds it from {pair.graph.states[tensor]}, wanted {pair.states[tensor]}")
    reasons += [
        f"it holds what belongs to {other}: states are swapped"
        for kind in (list(pair.states), list(pair.states.values()))
        for other in kind
        if tensor in kind and other != tensor and _same(fresh[other], suspect[tensor])
    ]
    reasons += _faults(pair, tensor)
    if carried and not reasons:
        reasons.append("fed the same states it is never off: small differences gather in what is carried")
    return reasons or ["its operator, inputs and weights are as exported anew"]


def _same(wanted: NDArray[Any], found: NDArray[Any]) -> bool:
    return bool(wanted.any()) and largest_difference(wanted, found) <= SAME * largest_value(wanted)


def _divergence(pair: Pair, tensor: str, hop: int, error: TensorError | None, why: str) -> Divergence:
    nothing = Node("", "", (), ())
    ours = pair.wanted.makers.get(pair.states.get(tensor, tensor), nothing)
    node = nothing if tensor in pair.wanted.inputs else pair.found.makers.get(tensor, ours)
    structure = first_difference(pair.wanted, pair.found)
    return Divergence(
        *(pair.graph.file, pair.runtime, hop, node.name, node.operator, _module(ours), tensor, node.inputs, error),
        why=why,
        structure="" if structure in why else structure,
    )


def _of_module(pair: Pair, tensor: str) -> str:
    maker = pair.wanted.makers.get(pair.states.get(tensor, tensor))
    return f" in {_module(maker)}" if maker and _module(maker) else ""


def _known(pair: Pair, n_tensors: int) -> list[str]:
    """Lines on what is known of a graph whose tensors all agree."""
    weights = {} if pair.other_form else pair.wanted.weights
    without_effect = [
        f"weight {name} differs from the bundle's, without effect here"
        for name, wanted in weights.items()
        if not np.array_equal(wanted, pair.found.weights.get(name, wanted))
    ]
    structure = filter(None, [pair.other_form, first_difference(pair.wanted, pair.found)])
    faults = [*_wrong_metadata(pair), *without_effect, *structure]
    return [
        f"no tensor differs: {n_tensors} compared over {pair.n_hops} hops, fed the same states and carrying their own",
        *(faults or ["the graph is as exported anew; what failed lies outside of it, or shows in other sound only"]),
    ]


def _wrong_metadata(pair: Pair) -> list[str]:
    found = pair.found.metadata
    return [
        f"its metadata says {key} is {found.get(key, 'missing')}, wanted {wanted}"
        for key, wanted in pair.metadata.items()
        if found.get(key) != wanted
    ]


def _error_in_words(error: TensorError | None) -> str:
    if error is None:
        return "nothing to compare"
    if error.n_bad:
        return f"{error.n_bad} values are NaN or Inf"
    return (
        f"up to {error.max_abs:.2g}, {error.relative:.2g} of the largest value (mean {error.mean_abs:.2g}, "
        f"cosine {error.cosine:.6f})"
    )
