"""Runtimes that can open a device bundle's graphs: those that are installed, and why the others do not open."""

from __future__ import annotations

from collections.abc import Collection

from edgese.graphs.engines import TENSORRT
from runtimes.base import RuntimeUnavailable
from runtimes.registry import RUNTIMES, load_runtime, require_known

CANDIDATES = (TENSORRT, "onnxruntime", "openvino")  # the favourite first


def find_runtimes(wanted: Collection[str] = ()) -> tuple[tuple[str, ...], dict[str, str]]:
    """Names of the runtimes that open here, and for each other one the reason why not.

    Args:
        wanted: these and no others.

    Raises:
        RuntimeUnavailable: one that is wanted is unknown or does not open.
    """
    found, left_out = [], {}
    for name in wanted or [name for name in CANDIDATES if name in RUNTIMES]:
        try:
            _require(name)
        except RuntimeUnavailable as error:
            if wanted:
                raise
            left_out[name] = str(error)
        else:
            found.append(name)
    return tuple(dict.fromkeys(found)), left_out


def _require(name: str) -> None:
    require_known(name)
    if name not in CANDIDATES:
        raise RuntimeUnavailable(f"{name}: opens nothing of a device bundle, wanted {', '.join(CANDIDATES)}")
    load_runtime(name)
