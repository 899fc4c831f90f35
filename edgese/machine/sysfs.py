"""Files in which a kernel or an installation tells one thing each: read, or the reason why not."""

from __future__ import annotations

from pathlib import Path

SHOWN = 40  # characters of what was found where something else was wanted


def read_text(path: Path) -> tuple[str | None, str]:
    """What a file holds, without the white space and zero bytes around it; or None and why there is nothing."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except (OSError, TypeError) as error:  # TypeError: what Python's buffered reader makes of EAGAIN
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "no answer now"
        return None, f"{path}: cannot be read ({reason})"
    return (text, "") if text else (None, f"{path}: empty")


def read_integer(path: Path) -> tuple[int | None, str]:
    """The number that a file holds and nothing else; or None and why there is none."""
    text, reason = read_text(path)
    if text is None:
        return None, reason
    try:
        return int(text), ""
    except ValueError:
        return None, f"{path}: found {text[:SHOWN]!r}, wanted an integer"


def numbered(folder: Path, prefix: str) -> list[Path]:
    """`prefix0`, `prefix1`, ..., `prefix10` in that order."""
    found = [path for path in folder.glob(f"{prefix}*") if path.name.removeprefix(prefix).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(prefix)))
