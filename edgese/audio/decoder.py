"""Decoding of one part of a recording, block by block, from the clean stream that `containers` makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np

from edgese.audio import Samples
from edgese.audio.byte_view import ByteView, FileBytes
from edgese.audio.formats import AudioInfo
from edgese.audio.libsndfile import SoundFile, SoundFileError
from edgese.audio.parts import Part

_LEFT_BYTES = 1 << 16  # that a decoder may leave unread behind its end: its buffer, padding


class Decoder:
    """Decoder of a part. Use `open_part`.

    Raises:
        SoundFileError: libsndfile refuses it; from `read` as well.
    """

    n_read: int  # frames read so far
    notes: list[str]  # what could not be decoded

    def __init__(self, source: FileBytes, part: Part) -> None:
        self._view = ByteView(source.fd, part.segments)
        self._file: Any = SoundFile(self._view)
        info = _info(self._file)
        self.info = dataclasses.replace(
            info,
            container=part.container or info.container,
            n_frames=part.n_frames if info.n_frames is None else info.n_frames,
        )
        self.notes, self.n_read = [], 0
        self._is_flac = self._file.format == "FLAC"

    @property
    def sound_file(self) -> Any:
        """The `soundfile.SoundFile` that decodes, for what it says besides the samples."""
        return self._file

    def close(self) -> None:
        with contextlib.suppress(SoundFileError):  # it was only read
            self._file.close()

    def read(self, n_frames: int) -> Samples:
        """The next samples, (n, n_channels) float32, n at most `n_frames`; none at the end."""
        if self._is_flac and self.info.n_frames is not None:  # what lies behind its last frame is no business of it
            n_frames = min(n_frames, self.info.n_frames - self.n_read)
        block: Samples = self._file.read(n_frames, dtype="float32", always_2d=True)
        self.n_read += len(block)
        return block

    def n_left(self) -> int:
        """Bytes behind a FLAC's last frame that may be sound; 0 for zeros, or few enough to be none. To ask once."""
        left = self._view.size - self._view.place if self._is_flac else 0
        return left if left > _LEFT_BYTES and self._view.is_other_than(b"\0") else 0

    def reaches_last_frame(self) -> bool:
        """False if a FLAC's last sample cannot be sought; others are checked by their bytes. Before reading only."""
        wanted = self.info.n_frames
        if wanted is None or not self._is_flac:
            return True
        try:
            self._file.seek(wanted - 1)
            found = len(self._file.read(1)) == 1
            self._file.seek(0)
        except SoundFileError:
            found = False
        return found


class MpegDecoder(Decoder):
    """Decoder of MPEG frames that goes on behind one that it cannot decode, with silence in its place."""

    def __init__(self, source: FileBytes, part: Part) -> None:
        super().__init__(source, part)
        assert part.mpeg is not None
        self._source, self._stream = source, part.mpeg
        n_samples = len(part.mpeg.places) * part.mpeg.samples - part.mpeg.skipped
        n_frames = n_samples if self.info.n_frames is None else min(n_samples, self.info.n_frames)
        self.info = dataclasses.replace(self.info, n_frames=max(0, n_frames))
        self._n_lost = self._silence = 0  # samples: lost, still to be given as silence

    def read(self, n_frames: int) -> Samples:
        wanted = min(n_frames, (self.info.n_frames or 0) - self.n_read)
        while wanted > 0:
            if self._silence:
                block: Samples = np.zeros((min(wanted, self._silence), self.info.n_channels), np.float32)
                self._silence -= len(block)
                self.n_read += len(block)
            else:
                try:
                    block = super().read(wanted)
                except SoundFileError:
                    block = self._empty()
            if len(block):
                return block
            self._skip()
        return self._empty()

    def _skip(self) -> None:
        """Go on at the next frame behind the one that could not be decoded."""
        stream = self._stream
        at = self.n_read + stream.skipped
        following, begins = at // stream.samples + 1, at
        while following < len(stream.places):
            self.close()
            segments, begins = stream.segments_from(self._source, following)
            self._view = ByteView(self._source.fd, segments)
            try:
                self._file = SoundFile(self._view)
                self._file.read(max(0, at - begins), dtype="float32")
                break
            except SoundFileError:
                following += 1
        else:
            begins = at + (self.info.n_frames or 0) - self.n_read
        self._silence = max(0, begins - at)
        n_lost = following * stream.samples - at
        if not self._n_lost:
            self.notes.append("")
        self._n_lost += min(n_lost, (self.info.n_frames or 0) - self.n_read)
        lost_ms = 1000 * self._n_lost / self.info.sample_rate_hz
        self.notes[-1] = f"{lost_ms:.0f} ms of damaged MPEG frames cannot be decoded and were replaced by silence"

    def _empty(self) -> Samples:
        return np.zeros((0, self.info.n_channels), np.float32)


def open_part(source: FileBytes, part: Part) -> Decoder:
    """Decoder of a part, at its beginning."""
    return Decoder(source, part) if part.mpeg is None else MpegDecoder(source, part)


def _info(file: Any) -> AudioInfo:
    n_frames = int(file.frames)
    known = 0 <= n_frames < 1 << 62  # a FLAC stream that does not say has the largest count there is
    return AudioInfo(int(file.samplerate), int(file.channels), n_frames if known else None, file.format, file.subtype)
