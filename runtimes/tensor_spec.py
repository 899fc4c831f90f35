"""Name, shape and dtype of a graph's inputs and outputs; needs the standard library only, as reading a bundle does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; a string in `shape` names a dynamic axis, `dtype` is NumPy's name."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {shape_text(self.shape)} {self.dtype}"

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> TensorSpec:
        """The spec that `dataclasses.asdict` made a mapping of, also after a way through JSON."""
        return cls(entry["name"], tuple(entry["shape"]), entry["dtype"])

    def bind(self, axes: Mapping[str, int]) -> TensorSpec:
        """This spec with the dynamic axes that `axes` names set to their sizes; the others stay dynamic."""
        return dataclasses.replace(self, shape=tuple(axes.get(d, d) if isinstance(d, str) else d for d in self.shape))

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """The shape if it holds no dynamic axis, else None."""
        sizes = tuple(d for d in self.shape if isinstance(d, int))
        return sizes if len(sizes) == len(self.shape) else None


def shape_text(shape: Sequence[int | str]) -> str:
    """A shape as messages show it: "(streams, 128)"."""
    return f"({', '.join(str(d) for d in shape)})"
