"""Plan of a precision: the products of a network in half precision and in INT8, as a bundle's manifest keeps it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from calib.ranges import Range
from edgese.graphs.precision import Precision
from export import ExportError
from export.bundle import Bundle


@dataclasses.dataclass(frozen=True)
class Plan:
    """Products in half precision and products in INT8, by the paths of their modules in the network."""

    half: tuple[str, ...] = ()
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)  # of each INT8 product's activations
    calibration: str | None = None  # digest of the batches that the ranges come from
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # for the manifest: how it was found

    def entry(self) -> dict[str, Any]:
        """Plain values for the manifest; `from_entry` restores an equal plan."""
        ranges = {product: [found.low, found.high] for product, found in self.ranges.items()}
        return {"half": list(self.half), "int8": ranges, "calibration": self.calibration, "facts": dict(self.facts)}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Plan:
        ranges = {product: Range(float(low), float(high)) for product, (low, high) in entry["int8"].items()}
        return cls(tuple(entry["half"]), ranges, entry["calibration"], entry["facts"])


def plan_of(bundle: Bundle, precision: str) -> Plan:
    """Plan by which a bundle's graphs of this precision were made, from its manifest.

    Raises:
        ExportError: the manifest does not say it.
    """
    if precision == Precision.FP32:
        return Plan()
    try:
        return Plan.from_entry(bundle.manifest["precisions"][precision])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{bundle.path}: the manifest does not say how its {precision} graphs were made ({error}); export it again"
        ) from error
