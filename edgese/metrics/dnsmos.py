"""DNSMOS P.835: ratings predicted by a network from the enhanced recording alone, without a clean one.

Reddy, Gopal & Cutler 2022, "DNSMOS P.835: a non-intrusive perceptual objective speech quality metric to evaluate noise
suppressors", ICASSP. The network is the one of the DNS challenges, `sig_bak_ovr.onnx`, from the package `speechmos`
(MIT, Microsoft). It is opened as a file: the package's own module also imports librosa and requests, for a rating that
is not taken here. How a recording is cut and the polynomials that bring the network's values to ratings are those of
that module (version 0.0.1.1); a test holds both against it.

The ratings depend on level: a recording at -40 dBFS is rated lower than the same one at -26.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgese.audio import Wave
from edgese.errors import EdgeseError, install_command
from runtimes.base import Runtime
from runtimes.registry import open_runtime

SAMPLE_RATE_HZ = 16_000
_WINDOW = 144_160  # samples that the network takes, 9.01 s
_HOP = SAMPLE_RATE_HZ
_PACKAGE, _FILE = "speechmos", "dnsmos_models/sig_bak_ovr.onnx"
_POLYNOMIALS = (  # of SIG, BAK and OVRL: highest power first
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class Ratings(NamedTuple):
    """Predicted opinion scores of the speech, of the background and overall, each from 1 (bad) to 5 (excellent)."""

    sig: float
    bak: float
    ovrl: float


def dnsmos(wave: Wave) -> Ratings:
    """Mean ratings over windows of 9.01 s, one each second; what is shorter is repeated until it fills one.

    Args:
        wave: (n_samples,) at 16 kHz; what lies outside [-1, 1] is clipped, as it would be in a file.

    Raises:
        EdgeseError: the package is missing, or there are no samples.
    """
    if not len(wave):
        raise EdgeseError("DNSMOS cannot score this recording (found no samples)")
    network = _network()
    sound = np.clip(wave, -1, 1).astype(np.float32)
    while len(sound) < _WINDOW:
        sound = np.concatenate([sound, sound])
    n_windows = int(len(sound) // _HOP - _WINDOW / _HOP) + 1  # whole seconds count, as in the package
    cuts = (sound[None, at * _HOP : at * _HOP + _WINDOW] for at in range(n_windows))
    raw = np.stack([network.run({"input_1": cut})["Identity:0"][0] for cut in cuts])
    columns = zip(_POLYNOMIALS, raw.T.astype(np.float64), strict=True)
    return Ratings(*(float(np.polyval(polynomial, values).mean()) for polynomial, values in columns))


@functools.cache
def _network() -> Runtime:
    """The network, open in ONNX Runtime on one thread: recordings are scored in a process for each core."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise EdgeseError(f"{_PACKAGE} is missing: {install_command('metrics')}")
    return open_runtime("onnxruntime", Path(found.submodule_search_locations[0]) / _FILE)
