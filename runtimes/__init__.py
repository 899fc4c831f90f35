"""Runtimes behind one contract: open an artefact, feed named arrays, get named arrays; see base.py.

This folder needs NumPy and the runtime that is opened, nothing else, and knows nothing of what the arrays mean.
"""
