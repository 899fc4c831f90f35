"""Batches of named arrays (batches.py), ranges of a graph's tensors over them (ranges.py), 8-bit products (qdq.py).

Knows nothing of speech.

Importing this package or batches.py needs NumPy only.
"""

import os

# On Linux, onnxruntime 1.32 reports every session to Microsoft, and leaves a number in the home, from its import on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class CalibrationError(Exception):
    """Base of this folder's errors.

    Batches that are missing, empty, damaged, or not those that were asked for; graphs, tensors or nodes that cannot be
    calibrated; graphs that are not quantized as they should be.
    """
