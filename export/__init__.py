"""From a module to a bundle that runs without PyTorch, and on to an engine: graph.py, weights.py, bundle.py, engine.py.

Knows nothing of speech.
"""


class ExportError(Exception):
    """Base of this folder's errors: a graph that cannot be made, a bundle that is broken or not what was asked for."""
