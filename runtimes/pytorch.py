"""PyTorch: runs a module, or a program saved from one by `write_program`; the reference for every other runtime."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from runtimes.base import Arrays, ArtefactError, Runtime, RuntimeUnavailable, TensorSpec, zeros

try:
    import torch
except ImportError as error:
    raise RuntimeUnavailable(f"torch cannot be loaded ({error}): install torch") from error

_SPECS = "runtime.json"  # names, shapes and metadata, which a saved program does not keep; a file in its archive


class PytorchRuntime(Runtime):
    """A module that takes its inputs by position and returns a tuple, run on the CPU without gradients."""

    name = "pytorch"

    def __init__(self, artefact: Path, *, threads: int = 1) -> None:
        """Open a `.pt2` written by `write_program`. Like any file of PyTorch: open only those you trust.

        Raises:
            ArtefactError: the file is missing, broken, or not written by `write_program`.
        """
        _check_archive(artefact)
        texts = {_SPECS: ""}
        try:
            program = torch.export.load(artefact, extra_files=texts)
            saved = json.loads(texts[_SPECS])
            inputs, outputs = (_from_entries(saved[key]) for key in ("inputs", "outputs"))
            self._set_up(program.module(), inputs, outputs, saved["metadata"], threads)
        except Exception as error:  # torch promises no kinds of error here
            raise ArtefactError(
                f"{artefact}: not a program of write_program ({type(error).__name__}: {error}); write it again"
            ) from error

    @classmethod
    def from_module(
        cls,
        module: torch.nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        metadata: Mapping[str, str] | None = None,
        *,
        threads: int = 1,
    ) -> PytorchRuntime:
        """A runtime over a live module, which is neither copied nor changed; put it in eval mode first.

        Args:
            module: takes one tensor per entry of `inputs`, by position; returns a tuple, one per entry of `outputs`.
        """
        runtime = cls.__new__(cls)
        runtime._set_up(module, inputs, outputs, metadata or {}, threads)
        return runtime

    def _set_up(
        self,
        module: torch.nn.Module,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        threads: int,
    ) -> None:
        self.inputs, self.outputs, self.metadata = tuple(inputs), tuple(outputs), dict(metadata)
        self._module: torch.nn.Module | None = module
        self._threads = threads

    def _run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        assert self._module is not None  # run() has checked that this is open
        tensors = [torch.from_numpy(feeds[spec.name].copy()) for spec in self.inputs]  # results may share them
        try:
            with _threads(self._threads), torch.inference_mode():
                results = self._module(*tensors)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise RuntimeUnavailable(f"pytorch: the run failed ({error})") from error
        if not isinstance(results, tuple) or len(results) != len(self.outputs):
            found = f"a tuple of {len(results)}" if isinstance(results, tuple) else type(results).__name__
            raise RuntimeUnavailable(f"pytorch: the module returned {found}, wanted a tuple of {len(self.outputs)}")
        return {spec.name: value.detach().numpy().copy() for spec, value in zip(self.outputs, results, strict=True)}

    def _free(self) -> None:
        self._module = None


def write_program(
    module: torch.nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    program_path: Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Save a module as a `.pt2` that `PytorchRuntime` opens without the module's code.

    Args:
        module: in eval mode; see `PytorchRuntime.from_module`.

    Raises:
        ArtefactError: the file's name does not end in .pt2, or torch.export cannot capture the module.
    """
    if program_path.suffix != ".pt2":
        raise ArtefactError(f"{program_path}: the file name must end in .pt2")
    names = dict.fromkeys(d for spec in inputs for d in spec.shape if isinstance(d, str))
    dims = {name: torch.export.Dim(name) for name in names}
    # torch.export bakes in a size of 1, and takes equal sizes for one axis: each gets its own, from 2 on.
    sizes = {name: 2 + index for index, name in enumerate(names)}
    examples = tuple(torch.from_numpy(zeros(spec.bind(sizes))) for spec in inputs)
    shapes = [{axis: dims[d] for axis, d in enumerate(spec.shape) if isinstance(d, str)} for spec in inputs]
    try:
        arguments = dict(inspect.signature(module.forward).bind(*shapes).arguments)
        with torch.no_grad():
            program = torch.export.export(module, examples, dynamic_shapes=arguments)
    except Exception as error:  # torch promises no kinds of error here
        raise ArtefactError(f"{program_path}: torch.export cannot capture the module ({error})") from error
    saved = {
        "inputs": [dataclasses.asdict(spec) for spec in inputs],
        "outputs": [dataclasses.asdict(spec) for spec in outputs],
        "metadata": dict(metadata or {}),
    }
    torch.export.save(program, program_path, extra_files={_SPECS: json.dumps(saved)})


def _from_entries(entries: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(map(TensorSpec.from_entry, entries))


def _check_archive(artefact: Path) -> None:
    """Refuse a damaged `.pt2` by the checksums of its zip archive, before PyTorch logs a page about it."""
    try:
        with zipfile.ZipFile(artefact) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise ArtefactError(f"{artefact}: not a .pt2 archive ({error}); write or fetch it again") from error
    if damaged is not None:
        raise ArtefactError(f"{artefact}: damaged at {damaged}; write or fetch it again")


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set PyTorch's thread count for a call only: it is one for the process, and nobody else's numbers may change."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
