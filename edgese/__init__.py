"""Speech enhancement from training to real time on an edge device. Importing this package loads nothing heavy."""

__version__ = "0.1.0"
