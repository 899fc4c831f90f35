"""Readers of files that hold one value each, as a kernel's do: the value, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

SHOWN = 40  # characters of what was found where something else was wanted


def read_text(path: Path) -> tuple[str | None, str]:
    """Text of a file, without white space and zero bytes around it; or None and the reason why there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except (OSError, TypeError) as error:  # TypeError: what Python's buffered reader makes of EAGAIN
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no answer now"
        return None, f"{path}: cannot be read ({reason})"
    return (text, "") if text else (None, f"{path}: empty")


def read_integer(path: Path) -> tuple[int | None, str]:
    """Integer that a file holds and nothing else; or None and the reason why there is none."""
    text, reason = read_text(path)
    if text is None:
        return None, reason
    try:
        return int(text), ""
    except ValueError:
        return None, f"{path}: found {text[:SHOWN]!r}, wanted an integer"


def numbered(folder: Path, prefix: str) -> list[Path]:
    """Paths `prefix0`, `prefix1`, ..., `prefix10` of a folder, in the order of their numbers."""
    found = [path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))
