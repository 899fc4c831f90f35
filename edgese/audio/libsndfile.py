"""Bindings to libsndfile and soxr, loaded once; `AudioError` with the mend where they cannot be."""

from __future__ import annotations

from typing import Any

from edgese.errors import AudioError, pip_command
from edgese.machine.streams import libraries_silenced

try:
    import soundfile
    import soxr as soxr
except (ImportError, OSError) as error:  # OSError: the wheel found no libsndfile on this platform
    raise AudioError(
        f"soundfile or soxr cannot be loaded ({error}): {pip_command('install', 'soundfile', 'soxr')}; "
        "on Debian also libsndfile1"
    ) from error

SoundFileError = soundfile.SoundFileError


class SoundFile(soundfile.SoundFile):  # type: ignore[misc,unused-ignore]  # untyped in older releases
    """Sound file that is read and written without seeking: soundfile seeks after each call, which no codec needs.

    Nothing that libsndfile and its decoders print reaches the terminal.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with libraries_silenced():
            super().__init__(*arguments, **options)

    def read(self, *arguments: Any, **options: Any) -> Any:
        with libraries_silenced():
            return super().read(*arguments, **options)

    def seek(self, *arguments: Any, **options: Any) -> Any:
        with libraries_silenced():
            return super().seek(*arguments, **options)

    def seekable(self) -> bool:
        return False


def reason(error: Exception) -> str:
    """The reason that libsndfile gives, on one line."""
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".").removeprefix("Error : ")


def holds(container: str, subtype: str | None) -> bool:
    """True if libsndfile can write the subtype in the container: it lists MP3 in a WAV, but only reads that."""
    known: bool = soundfile.check_format(container, subtype)
    return known and (subtype != "MPEG_LAYER_III" or container == "MP3")


def default_subtype(container: str) -> str:
    """The subtype that libsndfile writes in a container if none is named."""
    return str(soundfile.default_subtype(container))
