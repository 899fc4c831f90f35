"""Writer of audio files, block by block; a file appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgese.atomic_file import PartialFile, shown
from edgese.audio import Samples
from edgese.audio.formats import INTEGER_BITS, LOSSY, AudioInfo, cannot_hold, require_writable
from edgese.audio.libsndfile import SoundFile, SoundFileError
from edgese.audio.metadata import WITH_CHUNKS, Metadata, append_chunks, in_words, write_texts
from edgese.audio.reader import AudioReader
from edgese.errors import AudioError, OutputError

if TYPE_CHECKING:
    from typing_extensions import Self

_VORBIS_FRAMES = 4096  # libvorbis keeps what it is given on the thread's stack


class AudioWriter:
    """Writer of an audio file, which appears under its name when `publish` is called, or not at all.

    A context manager. Integer subtypes are rounded and clipped at full scale; `n_clipped` counts the samples.

    Args:
        target: where the file shall appear.
        info: its format; `n_frames` is not used.
        name: how messages call it, the path by default.
        mode: permissions that the file has at most; None: the usual ones.
        metadata: to be kept as far as the format has a place for it; `not_kept` names the rest.

    Raises:
        OutputError: the place cannot be written to.
        AudioError: the format cannot hold such audio.
    """

    n_written: int  # frames
    n_clipped: int  # samples, of all channels
    not_kept: list[str]  # metadata, in words; all is known when it is finished

    def __init__(
        self,
        target: Path,
        info: AudioInfo,
        name: str | None = None,
        *,
        mode: int | None = None,
        metadata: Metadata | None = None,
    ) -> None:
        self.name = name or shown(target)
        self.info = info
        self.n_written = 0
        self.n_clipped = 0
        self._metadata = metadata or Metadata()
        self.not_kept = list(self._metadata.others)
        require_writable(self.name, info)
        self._partial = PartialFile(target, self.name, mode=mode)
        self._file: Any = None
        try:
            self._file = self._open_sound()
            self._write_texts()
        except BaseException:
            self._partial.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file unless it was published; closing twice is harmless."""
        if self._file is not None:
            with contextlib.suppress(SoundFileError):  # it is thrown away
                self._file.close()
            self._file = None
        self._partial.close()

    @property
    def path(self) -> Path:
        """Path of the unfinished file until it is published."""
        return self._partial.path

    def write(self, block: Samples) -> None:
        """Append (n, n_channels) float32.

        Raises:
            OutputError: the disk is full.
            AudioError: the format cannot hold such audio.
        """
        encoded = self._encoded(block)
        step = _VORBIS_FRAMES if self.info.container == "OGG" else max(1, len(encoded))
        try:
            for start in range(0, len(encoded), step):
                self._file.write(encoded[start : start + step])
        except (SoundFileError, AssertionError) as error:  # soundfile asserts that all was written
            raise self._failure(error) from error
        self.n_written += len(block)

    def finish(self) -> None:
        """Complete the file and read back how long it is.

        Raises:
            OutputError: the disk is full, or the file does not hold what was written.
        """
        try:
            file, self._file = self._file, None
            file.close()
            self._write_chunks()
        except SoundFileError as error:
            raise self._failure(error) from error
        except OSError as error:
            raise self._partial.error(error) from error
        try:
            with AudioReader(self.path, self.name) as written:
                n_frames = written.info.n_frames if self.info.container != "MP3" else written.count()
                if self.info.container != "MP3":  # whose texts libsndfile puts where only players look
                    self.not_kept += [name for name in self._metadata.texts if name not in written.metadata.texts]
        except AudioError as error:
            found = str(error).removeprefix(f"{self.name}: ").partition(";")[0]
            raise OutputError(
                f"{self.name}: what was written cannot be read back ({found}); nothing was left there: free space or "
                "choose another format"
            ) from error
        if n_frames != self.n_written:
            raise OutputError(
                f"{self.name}: {self.n_written} frames were written, {n_frames or 0} can be read back; "
                "nothing was left there: free space or choose another format"
            )

    def publish(self, *, replace: bool) -> None:
        """Give the finished file its name; see `PartialFile.publish`."""
        self._partial.publish(replace=replace)

    def _encoded(self, block: Samples) -> NDArray[Any]:
        subtype = self.info.subtype
        if subtype in ("FLOAT", "DOUBLE", *LOSSY):
            return block
        self.n_clipped += int(np.count_nonzero(np.abs(block) > 1.0))
        bits = INTEGER_BITS.get(subtype)
        if bits is None:
            limited: Samples = block.clip(-1.0, 1.0)
            return limited
        full = 2.0 ** (bits - 1)  # libsndfile would scale by one step less and cut off instead of rounding
        steps = np.rint(block.astype(np.float64) * full)
        return (np.minimum(np.maximum(steps, -full), full - 1) * 2.0 ** (32 - bits)).astype(np.int32)

    def _write_texts(self) -> None:
        texts, names = self._metadata.texts, [name for name, _ in self._metadata.chunks]
        if self.info.container not in WITH_CHUNKS:
            self.not_kept += in_words([name for name in names if name != b"LIST" or not texts])
        elif b"LIST" in names:
            return  # the texts are in there, as they were
        write_texts(self._file, texts)

    def _write_chunks(self) -> None:
        chunks = self._metadata.chunks
        takes_them = self.info.container in WITH_CHUNKS
        if chunks and takes_them and not append_chunks(self._partial.fd, chunks):
            self.not_kept += in_words([name for name, _ in chunks])

    def _open_sound(self) -> Any:
        info = self.info
        try:
            return SoundFile(
                self._partial.fd,
                "w",
                info.sample_rate_hz,
                info.n_channels,
                info.subtype,
                format=info.container,
                closefd=False,
            )
        except (SoundFileError, ValueError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> AudioError | OutputError:
        """Error of a failed write: the file system's reason if it refuses, as libsndfile says only "System error"."""
        try:
            os.lseek(self._partial.fd, 0, os.SEEK_END)
            os.write(self._partial.fd, bytes(1 << 16))
            os.write(self._partial.fd, bytes(1 << 16))  # the first may fill up what is left and only be cut short
        except OSError as refusal:
            return self._partial.error(refusal)
        return cannot_hold(self.name, self.info, error)
