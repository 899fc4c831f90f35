"""Errors that a user can meet and mend.

EdgeseError
├── ConfigError       a setting that cannot be: an unknown key, a value out of range
├── AudioError        a file that cannot be read, enhanced or written
├── CheckpointError   a checkpoint that is missing, broken or of another network
├── TrainingError     a training run that cannot go on: no data, NaN
├── VerificationError an artefact that does not agree with PyTorch
├── MeasurementError  a measurement that cannot be made here (bench/probe.py)
├── JetsonError       a machine that is no Jetson, or power that cannot be measured (machine/jetson.py)
└── RemoteError       a board that cannot be reached over ssh, or cannot do what is asked (board/link.py)

The three general folders raise their own base errors (ExportError, CalibrationError, RuntimeUnavailable); the command
line catches all of them and prints one line.
"""


class EdgeseError(Exception):
    """Base of all errors that a user can mend; the message names the thing, what was found and wanted, the mend."""


class ConfigError(EdgeseError):
    """A setting that cannot be."""


class AudioError(EdgeseError):
    """A file or signal that cannot be read, enhanced or written."""


class CheckpointError(EdgeseError):
    """A checkpoint that is missing, broken or of another network."""


class TrainingError(EdgeseError):
    """A training run that cannot start or go on."""


class VerificationError(EdgeseError):
    """An artefact that does not agree with PyTorch within its limits."""
