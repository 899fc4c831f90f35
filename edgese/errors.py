"""Errors that a user can meet and mend.

EdgeseError
├── ConfigError       a setting that cannot be: an unknown key, a value out of range
├── AudioError        a recording that cannot be read or enhanced
│   └── ServerError   one that a server did not enhance (triton/client.py)
├── OutputError       a file that cannot be written
├── CheckpointError   a checkpoint that is missing, broken or of another network
├── TrainingError     a training run that cannot go on: no data, NaN
├── VerificationError an artefact that does not agree with PyTorch
├── HubError          a bundle that cannot be fetched from the Hugging Face Hub, or sent there (graphs/hub.py)
├── ClusterError      a Ray cluster that cannot be reached (bulk/cluster.py)
├── MeasurementError  a measurement that cannot be made here (bench/probe.py)
├── JetsonError       a board that is no Jetson, or power that cannot be measured (machine/jetson.py)
└── RemoteError       a board that cannot be reached over ssh, or cannot do what is asked (board/link.py)

The three general folders raise their own base errors (ExportError, CalibrationError, RuntimeUnavailable); the command
line catches all of them and prints one line.

A message ends with its mend. One that installs something is made here, `install_command` and `pip_command`, so that it
works as it is printed: with the Python that runs, whose pip is seldom the one a shell finds first, and from the place
that edgese came from, since no package index has it.
"""

import sys
from pathlib import Path

WITH_TORCH = ("train", "export", "all", "dev")  # extras


class EdgeseError(Exception):
    """Base of all errors that a user can mend; the message names the thing, what was found and wanted, the mend."""


class ConfigError(EdgeseError):
    """A setting that is unknown, of the wrong type or out of range."""


class AudioError(EdgeseError):
    """A recording that cannot be read or enhanced, or that no sound file can hold."""


class OutputError(EdgeseError):
    """A file that cannot be written: its place, its name or the disk is in the way."""


class CheckpointError(EdgeseError):
    """A checkpoint that is missing, broken or of another network."""


class TrainingError(EdgeseError):
    """A training run that cannot start or go on."""


class VerificationError(EdgeseError):
    """An artefact that does not agree with PyTorch within its limits."""


def printable(text: str) -> str:
    """Text that steers no terminal: all but line breaks, tabs and what can be seen is escaped.

    The one way out for text from outside: names, arguments, what a board, a manifest or a library says.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def pip_command(*arguments: str) -> str:
    """A shell command line that runs this Python's pip."""
    import shlex

    return shlex.join([sys.executable, "-m", "pip", *arguments])


def clone() -> Path | None:
    """The clone that edgese runs from; None where it was copied into Python's packages or onto a board."""
    folder = Path(__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").is_file() else None


def install_command(extra: str = "") -> str:
    """The command that adds an extra of edgese, or with none edgese itself, to the Python that runs.

    From a folder, PyTorch comes in the release that constraints.txt names.
    """
    extras, folder, url = f"[{extra}]" if extra else "", clone(), ""
    editable = ["-e"] if folder is not None else []
    if folder is None:
        folder, url = _origin()
    if folder is None:
        return pip_command("install", f"edgese{extras}{url}")
    constraints = ["-c", str(folder / "constraints.txt")] if extra in WITH_TORCH else []
    return pip_command("install", *constraints, *editable, f"{folder}{extras}")


def _origin() -> tuple[Path | None, str]:
    """The folder that pip installed edgese from, or ` @ URL`; neither where it came from an index, or not by pip."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlsplit

    try:
        written = distribution("edgese").read_text("direct_url.json")  # PEP 610
    except PackageNotFoundError:
        written = None
    if written is None:
        return None, ""
    origin = json.loads(written)
    if "dir_info" in origin:
        return Path(unquote(urlsplit(origin["url"]).path)), ""
    version = origin.get("vcs_info")
    return None, f" @ {version['vcs']}+{origin['url']}@{version['commit_id']}" if version else f" @ {origin['url']}"
