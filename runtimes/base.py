"""The contract of every runtime: named arrays in, named arrays out, checked once here; and streams that keep state."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtimes.errors import ArtefactError as ArtefactError  # part of the contract, needed without NumPy too
from runtimes.errors import FeedError as FeedError
from runtimes.errors import RuntimeUnavailable as RuntimeUnavailable
from runtimes.tensor_spec import TensorSpec as TensorSpec
from runtimes.tensor_spec import shape_text

if TYPE_CHECKING:
    from typing_extensions import Self

Arrays = Mapping[str, NDArray[Any]]


class Runtime(ABC):
    """An open artefact. Use it as a context manager, or close it; a closed one refuses to run.

    A subclass sets the four attributes and implements `_run` and `_free`; all checks stand in this class.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    _closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what the artefact holds; closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._free()

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs by name: fresh, writable arrays, finished on the device. No state is kept.

        Args:
            feeds: one array for each of `inputs`; a dynamic axis must have one size in all of them.

        Raises:
            FeedError: a name, dtype or shape that does not fit.
            RuntimeUnavailable: closed, or the runtime failed.
        """
        self.require_open()
        check_feeds(feeds, self.inputs)
        return self._run(feeds)

    def stream(self, states: Mapping[str, str], **axes: int) -> Stream:
        """A stream that carries states from call to call, zero at its start.

        Args:
            states: name of each state's input -> name of the output that holds its successor.
            axes: sizes of dynamic axes, such as `streams=2`; the states' shapes must be complete with them.

        Raises:
            FeedError: a name that the graph lacks, a state and its successor that differ, a size that is not given.
        """
        return Stream(self, states, axes)

    def require_open(self) -> None:
        """Raise RuntimeUnavailable where this is closed."""
        if self._closed:
            raise RuntimeUnavailable(f"{self.name}: this runtime is closed; open the artefact again")

    @abstractmethod
    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """Run checked feeds; every result fresh and writable, sharing memory with nothing."""

    @abstractmethod
    def _free(self) -> None:
        """Drop what holds the device's memory."""


class Stream:
    """Calls of one runtime in sequence, each starting from the states where the last one ended.

    This form holds the states as arrays on the host; a runtime that can keep them on its device overrides
    `_step` and `_live`. A call that fails leaves the states as they were.
    """

    def __init__(self, runtime: Runtime, states: Mapping[str, str], axes: Mapping[str, int]) -> None:
        runtime.require_open()
        _check_axes(runtime, axes)
        inputs = {spec.name: spec.bind(axes) for spec in runtime.inputs}
        outputs = {spec.name: spec.bind(axes) for spec in runtime.outputs}
        _check_states(states, inputs, outputs)
        successors = set(states.values())
        self.inputs = tuple(spec for name, spec in inputs.items() if name not in states)
        self.outputs = tuple(spec for name, spec in outputs.items() if name not in successors)
        self._runtime = runtime
        self._successors = dict(states)
        self._state_specs = tuple(inputs[name] for name in states)
        self._states: dict[str, NDArray[Any]] = {spec.name: zeros(spec) for spec in self._state_specs}

    def __call__(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """All outputs but the states, as fresh arrays; `feeds` holds all inputs but the states.

        Raises:
            FeedError: a name, dtype or shape that does not fit.
            RuntimeUnavailable: closed, or the runtime failed.
        """
        self._runtime.require_open()
        check_feeds(feeds, self.inputs)
        return self._step(feeds)

    @property
    def states(self) -> dict[str, NDArray[Any]]:
        """The states that the next call starts from, by input name: copies."""
        return {name: array.copy() for name, array in self._live().items()}

    def load(self, states: Arrays) -> None:
        """Continue from these states, copied in: all of them, by input name.

        Raises:
            FeedError: a name, dtype or shape that does not fit.
        """
        check_feeds(states, self._state_specs)
        for name, array in self._live().items():
            np.copyto(array, states[name])

    def reset(self) -> None:
        """Start anew: all states zero."""
        for array in self._live().values():
            array.fill(0)

    def _live(self) -> dict[str, NDArray[Any]]:
        """The arrays, by input name, that the next call reads; writing to them changes the state."""
        return self._states

    def _step(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        results = self._runtime._run({**feeds, **self._states})
        self._states = {name: results.pop(successor) for name, successor in self._successors.items()}
        return results


_dtype_name = functools.cache(str)  # NumPy makes the name anew each time, which for a hop is long


def check_feeds(feeds: Arrays, specs: Sequence[TensorSpec]) -> None:
    """Raise FeedError unless `feeds` holds exactly the arrays that `specs` describe."""
    if len(feeds) != len(specs) or any(spec.name not in feeds for spec in specs):
        known = {spec.name for spec in specs}
        missing = ", ".join(str(spec) for spec in specs if spec.name not in feeds)
        unknown = ", ".join(name for name in feeds if name not in known)
        found = "; ".join(text for text in (missing and f"missing {missing}", unknown and f"unknown {unknown}") if text)
        raise FeedError(f"feeds: {found}; wanted {', '.join(sorted(known)) or 'none'}")
    axes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        array = feeds[spec.name]
        if not isinstance(array, np.ndarray):
            raise FeedError(f"{spec.name}: found {type(array).__name__}, wanted a NumPy array of {spec.dtype}")
        if _dtype_name(array.dtype) != spec.dtype:
            raise FeedError(f"{spec.name}: found {array.dtype}, wanted {spec.dtype}; convert it with astype")
        if array.shape != spec.shape:
            _check_shape(array.shape, spec, axes)


def zeros(spec: TensorSpec) -> NDArray[Any]:
    """Zeros of a spec's shape and dtype.

    Raises:
        FeedError: an axis is still dynamic.
    """
    if spec.sizes is None:
        free = ", ".join(dict.fromkeys(d for d in spec.shape if isinstance(d, str)))
        raise FeedError(f"{spec.name}: the size of axis {free} is not given; name it, as in stream(states, {free}=1)")
    return np.zeros(spec.sizes, spec.dtype)


def _check_shape(found: tuple[int, ...], spec: TensorSpec, axes: dict[str, tuple[int, str]]) -> None:
    """Compare axis by axis; `axes` gathers the size of each dynamic axis and the input it was first seen in."""
    fits = len(found) == len(spec.shape)
    for size, wanted in zip(found, spec.shape, strict=False):
        if isinstance(wanted, int):
            fits = fits and size == wanted
        elif size < 1:
            raise FeedError(f"{spec.name}: axis {wanted} is empty in {shape_text(found)}, wanted at least 1")
        elif fits and axes.setdefault(wanted, (size, spec.name))[0] != size:
            size_before, where = axes[wanted]
            raise FeedError(f"{spec.name}: axis {wanted} has size {size}, but size {size_before} in {where}")
    if not fits:
        raise FeedError(f"{spec.name}: found shape {shape_text(found)}, wanted {shape_text(spec.shape)}")


def _check_axes(runtime: Runtime, axes: Mapping[str, int]) -> None:
    known = {d for spec in (*runtime.inputs, *runtime.outputs) for d in spec.shape if isinstance(d, str)}
    for axis, size in axes.items():
        if axis not in known:
            raise FeedError(f"axis {axis}: not in this graph; its dynamic axes: {', '.join(sorted(known)) or 'none'}")
        if size < 1:
            raise FeedError(f"axis {axis}: found size {size}, wanted at least 1")


def _check_states(
    states: Mapping[str, str], inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> None:
    if len(set(states.values())) != len(states):
        raise FeedError(f"states: two of them share a successor, wanted one output each: {dict(states)}")
    for name, successor in states.items():
        if name not in inputs:
            raise FeedError(f"state {name}: not an input; inputs: {', '.join(inputs)}")
        if successor not in outputs:
            raise FeedError(f"state {name}: its successor {successor} is not an output; outputs: {', '.join(outputs)}")
        before, after = inputs[name], outputs[successor]
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise FeedError(f"state {name}: its successor differs: found {after}, wanted {before}")
