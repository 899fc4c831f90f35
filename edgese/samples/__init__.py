"""Sound that comes with edgese: a noisy recording and the clean one under it (README.md beside this file)."""

from pathlib import Path

NOISY = Path(__file__).parent / "noisy.flac"
CLEAN = Path(__file__).parent / "clean.flac"
