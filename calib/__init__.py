"""Batches of named arrays, stored with digest and provenance; see batches.py. Knows nothing of speech."""


class CalibrationError(Exception):
    """Base of this folder's errors: batches that are missing, empty, damaged, or not those that were asked for."""
