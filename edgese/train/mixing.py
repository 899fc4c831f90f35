"""Making of training examples: a talker, a room, noises, a level. Example i depends on seed, split and i only.

The target is the speech as the room and the recording chain make it sound, without the noise: a mask cannot give back
what a room smeared or a band limit took, so both stand in the target as well. Clipping alone is on the noisy side only.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy import fft, signal

from edgese.audio import Wave
from edgese.config import DataConfig
from edgese.train.decoded import DecodedRecordings
from edgese.train.noises import coloured, decibels, log_uniform, spectral_envelope, stages, synthetic_noise, unit_power
from edgese.train.rooms import Room

SILENCE_DBFS = -60.0
Shares = Sequence[tuple[Path, float]]  # of what is drawn, by the folder that it is drawn from
FULL_LEVEL = 0.1  # -20 dBFS: the level of a mixture at a gain of 0 dB
LONGEST_T60_S = 0.8  # of a room that speech is heard in; babble may fill a hall


def numbered_generator(seed: int, split: int, index: int) -> np.random.Generator:
    """Random generator of one example; no other seed, split (0 training, 1 validation) or index shares its stream."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(split, index)))


def validation_config(config: DataConfig) -> DataConfig:
    """Settings without the augmentations that test recordings lack: validation is to measure quality, not the mix."""
    return dataclasses.replace(
        config,
        near_clean_probability=0.0,
        speech_speed_probability=0.0,
        speech_tilt_probability=0.0,
        band_limit_probability=0.0,
        clipping_probability=0.0,
        remix_probability=0.0,
    )


class Talkers:
    """Speech recordings by speaker, to draw talkers from."""

    def __init__(self, recordings: DecodedRecordings, speakers: Sequence[str], shares: Shares = ()) -> None:
        """Group recordings by speaker.

        Args:
            shares: of what is drawn, by folder; a speaker of several such folders counts as one in each.
        """
        self.recordings = recordings
        grouped: dict[tuple[str, Path | None], list[int]] = defaultdict(list)
        for index, speaker in enumerate(speakers):
            grouped[speaker, _folder_of(recordings.files[index], shares)].append(index)
        self.by_speaker = list(grouped.values())
        # the square root lies between "every speaker alike" and "every minute alike": few speakers hold most minutes
        seconds = [float(sum(recordings.length(index) for index in group)) for group in self.by_speaker]
        self._share = _shared([folder for _, folder in grouped], np.sqrt(seconds), shares)

    def probabilities(self) -> NDArray[np.float64]:
        """Probability of each recording to be drawn for a talker."""
        found = np.zeros(len(self.recordings))
        for share, group in zip(self._share, self.by_speaker, strict=True):
            found[group] = share / len(group)
        return found

    def pick(self, rng: np.random.Generator, other_than: int | None = None) -> int:
        """Number of a random speaker; not `other_than`, where there is anybody else."""
        chosen = int(rng.choice(len(self.by_speaker), p=self._share))
        if chosen == other_than and len(self.by_speaker) > 1:
            chosen = (chosen + int(rng.integers(1, len(self.by_speaker)))) % len(self.by_speaker)
        return chosen

    def talk(self, rng: np.random.Generator, speaker: int, length: int, *, lead_in: bool) -> Wave:
        """Speech of one speaker, (length,): utterances one after another, with pauses between them.

        Args:
            lead_in: start at a random place of a recording, and now and then only after some silence.
        """
        group = self.by_speaker[speaker]
        wave = np.zeros(length, dtype=np.float32)
        place = int(rng.integers(length // 2)) if lead_in and rng.random() < 0.3 else 0
        while place < length:
            choice = group[int(rng.integers(len(group)))]
            spare = self.recordings.length(choice) - length
            start = int(rng.integers(spare + 1)) if spare > 0 and lead_in else 0
            piece = self.recordings.read(choice, start, length)
            level = _rms(piece)  # also of what no longer fits: its first samples are noise
            piece = piece[: length - place]
            wave[place : place + len(piece)] = piece * np.float32(FULL_LEVEL / level)
            place += len(piece) + int(rng.integers(1, length // 4))
        return wave


class MixedExamples:
    """Examples of one speaker and up to three noises (recorded, babble or synthetic) at a random SNR and level."""

    def __init__(
        self,
        speech: DecodedRecordings,
        speakers: Sequence[str],
        noise: DecodedRecordings,
        rooms: Sequence[Room],
        config: DataConfig,
        sample_rate_hz: int,
        *,
        seed: int,
        split: int,
        speech_shares: Shares = (),
        noise_shares: Shares = (),
    ) -> None:
        self.speech, self.noise, self.config, self.sample_rate_hz = speech, noise, config, sample_rate_hz
        self.seed, self.split, self.length = seed, split, round(config.segment_s * sample_rate_hz)
        self.talkers = Talkers(speech, speakers, speech_shares)
        self.rooms = [room.response for room in rooms if room.t60_s <= LONGEST_T60_S]
        self.halls = [room.response for room in rooms]
        self.noise_probabilities = _noise_share(noise, noise_shares)

    def __call__(self, index: int) -> tuple[Wave, Wave]:
        rng, config = numbered_generator(self.seed, self.split, index), self.config
        speaker = self.talkers.pick(rng)
        clean = self._speech(rng, speaker)
        noise = self._noise(rng, speaker)
        for _ in range(2):
            if rng.random() >= config.another_noise_probability:
                break
            noise = noise + self._noise(rng, speaker) * decibels(rng.uniform(-15, 0))
        near_clean = rng.random() < config.near_clean_probability
        snr_db = rng.uniform(*(config.near_clean_snr_db if near_clean else config.snr_db))
        noise = noise * (np.float32(_active_level(clean) / _rms(noise)) * decibels(-snr_db))
        noisy = clean + noise
        if rng.random() < config.band_limit_probability:
            noisy, clean = _band_limited(rng, noisy, clean)
        gain = np.float32(FULL_LEVEL / _rms(noisy)) * decibels(rng.uniform(*config.gain_db))
        noisy, clean = noisy * gain, clean * gain
        if rng.random() < config.clipping_probability:
            noisy = _clipped(rng, noisy)
        return _limit(noisy, clean)

    def _speech(self, rng: np.random.Generator, speaker: int) -> Wave:
        config = self.config
        speed = rng.uniform(*config.speech_speed) if rng.random() < config.speech_speed_probability else 1.0
        length = self.length if speed == 1 else int(self.length * speed) + 1
        wave = self.talkers.talk(rng, speaker, length, lead_in=config.offset)
        if speed != 1:
            wave = _fit(_faster(wave, speed), self.length)
        if rng.random() < config.speech_tilt_probability:
            wave = _tilt(rng, wave)
        if self.rooms and rng.random() < config.reverb_probability:
            wave = _convolve(wave, self.rooms[int(rng.integers(len(self.rooms)))])
        return wave

    def _noise(self, rng: np.random.Generator, speaker: int) -> Wave:
        """One noise at unit power; babble is of talkers other than `speaker`."""
        config, kind = self.config, rng.random()
        if kind < config.babble_probability:
            wave = self._babble(rng, speaker)
        elif kind < config.babble_probability + config.synthetic_probability:
            wave = synthetic_noise(rng, self.length, self.sample_rate_hz)
        else:
            wave = self._recorded(rng)
        if rng.random() < config.noise_stages_probability:
            wave = unit_power(wave * stages(rng, self.length, self.sample_rate_hz))
        return wave

    def _recorded(self, rng: np.random.Generator) -> Wave:
        config = self.config
        choice = int(rng.choice(len(self.noise), p=self.noise_probabilities))
        speed = rng.uniform(*config.noise_speed) if rng.random() < config.noise_speed_probability else 1.0
        length = self.length if speed == 1 else int(self.length * speed) + 1
        spare = self.noise.length(choice) - length
        start = int(rng.integers(spare + 1)) if spare > 0 and config.offset else 0
        wave = self.noise.read(choice, start, length)
        if speed != 1:
            wave = _faster(wave, speed)
        wave = _fit(wave, self.length, repeat=True)
        if rng.random() < config.noise_reversal_probability:
            wave = wave[::-1]
        if rng.random() < config.noise_colour_probability:
            wave = _coloured_anew(rng, wave, self.sample_rate_hz)
        return unit_power(wave)

    def _babble(self, rng: np.random.Generator, speaker: int) -> Wave:
        """Babble of 3 to 12 talkers at several distances, each at its own place; sometimes a crowd, or far away."""
        spectrum = np.zeros(self.length // 2 + 1, dtype=np.complex64)
        in_rooms = bool(self.halls) and rng.random() < 0.8
        for _ in range(int(rng.integers(3, 13))):
            talker = self.talkers.talk(rng, self.talkers.pick(rng, other_than=speaker), self.length, lead_in=True)
            part = fft.rfft(talker * decibels(rng.uniform(-12, 0)))
            if in_rooms:  # round and round: the room rings from the first sample on
                part *= fft.rfft(self.halls[int(rng.integers(len(self.halls)))][: self.length], self.length)
            spectrum += part
        if rng.random() < 0.5:
            tilt_db = rng.uniform(-5, 0)
            spectrum *= spectral_envelope(rng, len(spectrum), self.sample_rate_hz, tilt_db, spread_db=3)
        wave = unit_power(fft.irfft(spectrum, self.length))
        for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.4 else 0):  # a crowd: the same again, at other times
            wave = wave + np.roll(wave, int(rng.integers(self.length))) * decibels(rng.uniform(-6, 0))
        tone = coloured(rng, self.length, self.sample_rate_hz, tilt_db=(-9, -3)) * decibels(rng.uniform(-30, -3))
        return unit_power(unit_power(wave) + tone)


class PairedExamples:
    """Examples from recorded (noisy, clean) pairs, at random places and gains; some with the noise of another pair."""

    def __init__(
        self,
        noisy: DecodedRecordings,
        clean: DecodedRecordings,
        config: DataConfig,
        sample_rate_hz: int,
        *,
        seed: int,
        split: int,
    ) -> None:
        self.noisy, self.clean, self.config = noisy, clean, config
        self.seed, self.split, self.length = seed, split, round(config.segment_s * sample_rate_hz)

    def __call__(self, index: int) -> tuple[Wave, Wave]:
        rng, config = numbered_generator(self.seed, self.split, index), self.config
        noisy, clean = self._segment(rng)
        if rng.random() < config.remix_probability:
            noise = np.subtract(*self._segment(rng))
            noisy = clean + noise * decibels(rng.uniform(-3, 3))
        gain = decibels(rng.uniform(*config.gain_db))
        return _limit(noisy * gain, clean * gain)

    def _segment(self, rng: np.random.Generator) -> tuple[Wave, Wave]:
        choice = int(rng.integers(len(self.clean)))
        spare = self.clean.length(choice) - self.length
        start = int(rng.integers(spare + 1)) if spare > 0 and self.config.offset else 0
        noisy, clean = (_fit(store.read(choice, start, self.length), self.length) for store in (self.noisy, self.clean))
        return noisy, clean


def _root_share(amounts: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    roots = np.sqrt(np.asarray(amounts, dtype=float))
    return np.asarray(roots / roots.sum())


def _folder_of(file: Path, shares: Shares) -> Path | None:
    """Innermost of the folders with a share of their own that a file lies in."""
    inside = [folder for folder, _ in shares if folder in file.parents]
    return max(inside, key=lambda folder: len(folder.parts), default=None)


def _shared(folders: Sequence[Path | None], weights: NDArray[np.float64], shares: Shares) -> NDArray[np.float64]:
    """Probabilities in proportion to `weights`, those of a folder with a share of its own adding up to it.

    What is left belongs to the others, and so does the share of a folder that has nothing here.

    Args:
        folders: that each lies in, of those with a share; None: of none.
    """
    here = set(folders)
    wanted: dict[Path | None, float] = {folder: share for folder, share in shares if folder in here}
    rest = 1 - sum(wanted.values())
    probabilities = np.array(weights, dtype=float)
    for folder in here:
        members = np.array([other == folder for other in folders])
        probabilities[members] *= wanted.get(folder, rest) / probabilities[members].sum()
    return np.asarray(probabilities / probabilities.sum())


def _noise_share(noise: DecodedRecordings, shares: Shares = ()) -> NDArray[np.float64]:
    """Probability of each recording: by the root of its folder's seconds, then of its own within the folder.

    A large collection of short events would else drown the few long recordings of places.
    """
    folders: dict[Path, list[int]] = defaultdict(list)
    for index, file in enumerate(noise.files):
        folders[file.parent].append(index)
    share = np.zeros(len(noise))
    lengths = noise.lengths.astype(float)
    of_folders = _root_share([float(lengths[members].sum()) for members in folders.values()])
    for members, of_folder in zip(folders.values(), of_folders, strict=True):
        share[members] = of_folder * _root_share(lengths[members])
    return _shared([_folder_of(file, shares) for file in noise.files], share, shares)


def _rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave)))) + 1e-9


def _active_level(wave: Wave, frame: int = 320) -> float:
    """Root mean square of the frames that are not silent: pauses do not change the SNR."""
    frames = wave[: len(wave) // frame * frame].reshape(-1, frame)
    power = (frames**2).mean(axis=1)
    active = power > max(power.max() * 1e-4, 10 ** (SILENCE_DBFS / 10))
    return float(np.sqrt(power[active].mean())) if active.any() else 1e-3


def _fit(wave: Wave, length: int, *, repeat: bool = False) -> Wave:
    """Wave of exactly `length` samples: cut, repeated or filled up with zeros."""
    if repeat and 0 < len(wave) < length:
        wave = np.tile(wave, -(-length // len(wave)))
    return np.pad(wave[:length], (0, max(0, length - len(wave))))


def _limit(noisy: Wave, clean: Wave) -> tuple[Wave, Wave]:
    """Both waves, scaled down together where one of them would leave [-1, 1]."""
    peak = max(float(np.abs(noisy).max()), float(np.abs(clean).max()), 1.0)
    return (noisy / peak).astype(np.float32), (clean / peak).astype(np.float32)


def _faster(wave: Wave, speed: float) -> Wave:
    """Wave `speed` times as fast and as high, as a tape would play it."""
    return np.asarray(soxr.resample(wave, speed, 1.0, quality="LQ"), dtype=np.float32)


def _convolve(wave: Wave, room: Wave) -> Wave:
    return np.asarray(signal.fftconvolve(wave, room)[: len(wave)], dtype=np.float32)


def _tilt(rng: np.random.Generator, wave: Wave) -> Wave:
    """Wave as by another microphone: a first-order slope, brighter or darker by up to 9 dB from end to end."""
    slope = rng.uniform(-0.5, 0.5)
    return np.asarray(signal.lfilter([1, -slope], [1], wave), dtype=np.float32)


def _coloured_anew(rng: np.random.Generator, wave: Wave, sample_rate_hz: int) -> Wave:
    """Noise as through another wall, microphone, distance: a smooth random spectrum on top of its own."""
    spectrum = fft.rfft(wave)
    gains = spectral_envelope(rng, len(spectrum), sample_rate_hz, rng.uniform(-3, 2), spread_db=4)
    return np.asarray(fft.irfft(spectrum * gains, len(wave)), dtype=np.float32)


def _band_limited(rng: np.random.Generator, *waves: Wave) -> tuple[Wave, ...]:
    """Waves through one low-pass, as a codec or a lower rate leaves them: 40 to 95 % of the band."""
    n_bins = len(waves[0]) // 2 + 1
    edge = rng.uniform(0.4, 0.95)
    gains = np.clip((edge - np.linspace(0, 1, n_bins)) / 0.03 + 0.5, 0, 1).astype(np.float32)
    return tuple(np.asarray(fft.irfft(fft.rfft(wave) * gains, len(wave)), dtype=np.float32) for wave in waves)


def _clipped(rng: np.random.Generator, wave: Wave) -> Wave:
    """Wave with the loudest 0.03 to 1 % of its samples clipped."""
    share = log_uniform(rng, 3e-4, 1e-2)
    peak = np.quantile(np.abs(wave), 1 - share)
    return wave.clip(-peak, peak)
