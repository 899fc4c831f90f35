"""Comparison of a bundle's graph with the same graph exported anew, call by call on the same sound, by tensor.

The fresh graph is made from the bundle's own weights and checked against PyTorch. It runs in the suspect's runtime,
which separates a graph's fault from a runtime's, in ONNX Runtime, and in float64. How much a tensor may be off is
measured, not assumed: what the fresh graph's float32 loses to its float64 is the rounding of each tensor, more of it
after a cancellation or in a logarithm than in a sum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Generator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import VerificationError
from edgese.graphs.form import bundle_enhancer
from edgese.graphs.opening import wanted_metadata
from edgese.graphs.plan import plan_of
from edgese.graphs.write import graph_of, write_graph
from edgese.metrics.difference import largest_difference, largest_value
from edgese.verify.agreement import verify_graph
from edgese.verify.truth import pytorch_truth
from export.bundle import Bundle, Graph
from export.inspection import Anatomy, n_nodes_alike, read_anatomy, write_exposed, write_float64
from runtimes.registry import open_runtime

Arrays = Mapping[str, NDArray[Any]]

SEARCH_HOPS = 320  # 2.56 s, the loudest of the sound
USUAL = "onnxruntime"
ALIKE = 0.8  # of the nodes must be as exported anew, or the same name may mean another tensor
TINY = float(np.finfo(np.float32).tiny)  # what is smaller may become zero
ROUNDING = 2.0**-24  # of one value in float32

# How many times its rounding a tensor may be off. Measured on the shipped network, 320 hops, blocks of 1 and 16 hops.
GRAPH_MARGIN = 16.0  # the suspect from the fresh graph: sums in another order, norms split into parts gave up to 3.7
RUNTIME_MARGIN = 256.0  # another runtime from float64: OpenVINO gave 1.5, with another softplus 44, in float16 20,000


@dataclasses.dataclass(frozen=True)
class Pair:
    """Pair of the suspect graph and the fresh one, with all that it takes to run them."""

    graph: Graph
    runtime: str
    suspect: Path
    fresh: Path
    found: Anatomy  # of the suspect
    wanted: Anatomy  # of the fresh one
    states: Mapping[str, str]  # each state and its successor, as they should be
    metadata: Mapping[str, str]  # what the suspect should carry
    zeros: Arrays  # the states at a stream's start
    wave: Wave  # whole calls
    samples: int  # of a call

    @classmethod
    def prepare(cls, bundle: Bundle, graph: Graph, runtime: str, wave: Wave, folder: Path) -> Pair:
        """Export the graph anew into `folder`, where copies of both graphs will lie as well.

        Raises:
            VerificationError: the fresh graph does not agree with PyTorch either, the manifest lists other states, or
                the sound is silent.
            CheckpointError: the bundle's weights are missing or broken.
            ExportError: the suspect is no ONNX file.
        """
        label = f"{graph.file} in {runtime}"
        enhancer = bundle_enhancer(bundle, graph.variant)
        samples = graph.block * enhancer.audio.hop
        zeros = {name: state.numpy() for name, state in enhancer.initial_state().items()}
        states = {state: f"{state}_next" for state in zeros}
        if graph.states.keys() != states.keys():
            raise VerificationError(
                f"{label}: the manifest lists the states {', '.join(graph.states)}, wanted {', '.join(states)}"
            )
        metadata = wanted_metadata(bundle, graph)
        truth = pytorch_truth(enhancer, _loudest(wave, SEARCH_HOPS * enhancer.audio.hop), graph.block)
        if not truth.enhanced.any():
            raise VerificationError(f"{label}: cannot be searched: found silence, wanted sound")
        as_exported = dataclasses.replace(
            graph_of(enhancer, graph.block, graph.precision, graph.variant), file="fresh.onnx"
        )
        fresh = folder / as_exported.file
        write_graph(enhancer, as_exported, fresh, plan_of(bundle, graph.precision), metadata)
        result = verify_graph(folder, as_exported, truth, runtime=USUAL)
        if not result.passed:
            raise VerificationError(
                f"{label}: exported anew from the bundle's own weights it does not agree with PyTorch either "
                f"({'; '.join(result.failures)}): the export or {USUAL} is at fault, not this file"
            )
        suspect = bundle.graph_file(graph)
        return cls(
            *(graph, runtime, suspect, fresh, read_anatomy(suspect), read_anatomy(fresh)),
            *(states, metadata, zeros, truth.wave, samples),
        )

    @property
    def label(self) -> str:
        return f"{self.graph.file} in {self.runtime}"

    @property
    def n_hops(self) -> int:
        return len(self.wave) * self.graph.block // self.samples

    @cached_property
    def other_form(self) -> str:
        """Sentence on the suspect's other form; "" where it has the fresh one's, so that names mean the same."""
        n_alike, n_nodes = n_nodes_alike(self.wanted, self.found), len(self.wanted.nodes)
        if n_alike >= ALIKE * n_nodes:
            return ""
        return f"{n_alike} of {n_nodes} nodes are as exported anew: of another form, only outputs and states compared"


@dataclasses.dataclass(frozen=True)
class Survey:
    """Difference of each tensor in each call, as a part of what it may be: above 1 is no rounding.

    With `carried` states each graph goes on from its own; otherwise all go on from the fresh graph's, so that no call
    depends on an earlier one.
    """

    pair: Pair
    marked: frozenset[str]  # inner tensors that were outputs
    carried: bool
    of_graph: Mapping[str, list[float]]  # the suspect from the fresh graph, in the graph's order
    of_runtime: Mapping[str, list[float]]  # the fresh graph from float64, both in the suspect's runtime

    def first(self, largest_difference: Mapping[str, list[float]]) -> tuple[str, int] | None:
        """First tensor that is off, in the graph's order, or in time where states are carried, and its call."""
        calls = {
            name: next((call for call, much in enumerate(off) if much > 1), None)
            for name, off in largest_difference.items()
        }
        found = [(name, call) for name, call in calls.items() if call is not None]
        return min(found, key=lambda pair: pair[1] if self.carried else 0, default=None)


def survey(pair: Pair, marked: Collection[str], *, carried: bool) -> Survey:
    """Run all four graphs over all the sound, with the inner tensors `marked` as outputs, and compare them."""
    of_graph: dict[str, list[float]] = {}
    of_runtime: dict[str, list[float]] = {}
    rounding: dict[str, float] = {}
    for answers in calls(pair, marked, carried=carried):
        suspect, fresh, usual, exact = (answers[role] for role in ("suspect", "fresh", "usual", "exact"))
        for name in fresh.keys() & suspect.keys():
            of_graph.setdefault(name, []).append(largest_difference(fresh[name], suspect[name]))
            of_runtime.setdefault(name, []).append(largest_difference(exact[name], fresh[name]))
            own = max(largest_difference(exact[name], usual[name]), ROUNDING * largest_value(exact[name]), TINY)
            rounding[name] = max(rounding.get(name, 0.0), own)
    graph_limits = {name: GRAPH_MARGIN * max(own, *of_runtime[name]) for name, own in rounding.items()}
    in_order = (*pair.wanted.inputs, *(tensor for node in pair.wanted.nodes for tensor in node.outputs))
    names = [name for name in in_order if name in rounding]
    return Survey(
        *(pair, frozenset(marked), carried),
        of_graph={name: [_part(off, graph_limits[name]) for off in of_graph[name]] for name in names},
        of_runtime={name: [off / (RUNTIME_MARGIN * rounding[name]) for off in of_runtime[name]] for name in names},
    )


def calls(pair: Pair, marked: Collection[str], *, carried: bool) -> Generator[dict[str, dict[str, NDArray[Any]]]]:
    """Inputs and outputs of each, call by call: suspect, fresh, fresh in the usual runtime, fresh in float64."""
    folder = pair.fresh.parent
    write_float64(pair.fresh, folder / "exact.onnx")
    files = {"fresh": pair.fresh, "usual": pair.fresh, "exact": folder / "exact.onnx", "suspect": pair.suspect}
    runtimes = dict.fromkeys(files, USUAL) | {"fresh": pair.runtime, "suspect": pair.runtime}
    successors = dict.fromkeys(files, pair.states) | {"suspect": pair.graph.states}
    if pair.runtime == USUAL:
        del files["usual"]  # it is the fresh one
    with contextlib.ExitStack() as stack:
        programs = {}
        for role, file in files.items():
            write_exposed(file, folder / f"{role}.exposed.onnx", marked)
            opened = open_runtime(runtimes[role], folder / f"{role}.exposed.onnx")
            programs[role] = stack.enter_context(opened)
        states = dict.fromkeys(files, pair.zeros)
        for start in range(0, len(pair.wave), pair.samples):
            piece = {"wave": pair.wave[None, start : start + pair.samples]}
            answers = {}
            for role, program in programs.items():
                fed = {**piece, **states[role if carried else "fresh"]}
                fed = {spec.name: fed[spec.name].astype(spec.dtype) for spec in program.inputs}
                answers[role] = fed | program.run(fed)
            states = {
                role: {state: answers[role][after] for state, after in successors[role].items()} for role in files
            }
            yield {"usual": answers["fresh"], **answers}


def _part(off: float, limit: float) -> float:
    """Difference over its limit; 0 where the limit is infinite, as the fresh graph is not finite itself."""
    return 0.0 if math.isinf(limit) else off / limit


def _loudest(wave: Wave, n_samples: int) -> Wave:
    """Part of `n_samples` samples that holds most energy, of parts that begin at multiples of their length."""
    parts = [wave[start : start + n_samples] for start in range(0, max(len(wave), 1), n_samples)]
    return max(parts, key=lambda part: float(np.square(part, dtype=np.float64).sum()))
