"""Export of a module to a bundle that runs without PyTorch (graph, weights, bundle), and on to engines (engine).

Knows nothing of speech.
"""


class ExportError(Exception):
    """Base of this folder's errors: a graph that cannot be made, a bundle that is broken or not what was asked for."""
