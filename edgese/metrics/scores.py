"""Scores of an enhanced recording against the clean one: listening quality, intelligibility and distance.

PESQ: ITU-T P.862.2 (wideband) and P.862.1 (narrowband), package `pesq`. STOI: Taal et al. 2011, extended: Jensen &
Taal 2016, package `pystoi`. SI-SDR: Le Roux et al. 2019, eq. 6. CSIG, CBAK, COVL: Hu & Loizou 2008, see composite.py.
Log-spectral distance: Gray & Markel 1976. SIG, BAK, OVRL: dnsmos.py, the only ones that need no clean recording. Level
by octave: band_levels.py. All take float waves at 16 kHz, in time with each other and equally long.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import math
import warnings
from collections.abc import Iterator
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.errors import EdgeseError, VerificationError, install_command
from edgese.metrics.band_levels import CENTRES_HZ, band_levels_db
from edgese.metrics.composite import composite
from edgese.metrics.difference import snr_db, tensor_error
from edgese.metrics.dnsmos import dnsmos

SAMPLE_RATE_HZ = 16_000


@dataclasses.dataclass(frozen=True)
class Metric:
    """Title, definition and number format of a metric."""

    title: str
    definition: str
    digits: int = 2  # behind the point, in a table
    higher_is_better: bool | None = True  # None: the nearer to 0, the better
    needs_clean: bool = True


METRICS = {
    "pesq_wb": Metric("PESQ-WB", "ITU-T P.862.2, wideband, MOS-LQO"),
    "pesq_nb": Metric("PESQ-NB", "ITU-T P.862.1, narrowband at 16 kHz, MOS-LQO"),
    "stoi": Metric("STOI", "Taal et al. 2011", digits=3),
    "estoi": Metric("ESTOI", "extended STOI, Jensen & Taal 2016", digits=3),
    "si_sdr_db": Metric("SI-SDR dB", "Le Roux et al. 2019, means removed"),
    "csig": Metric("CSIG", "Hu & Loizou 2008, from PESQ-WB"),
    "cbak": Metric("CBAK", "Hu & Loizou 2008, from PESQ-WB"),
    "covl": Metric("COVL", "Hu & Loizou 2008, from PESQ-WB"),
    "lsd_db": Metric(
        "LSD dB", "RMS log-spectral distance, 32 ms Hann frames, 50 dB deep, mean over frames", higher_is_better=False
    ),
    "dnsmos_sig": Metric("SIG", "DNSMOS P.835, speech alone, Reddy et al. 2022", needs_clean=False),
    "dnsmos_bak": Metric("BAK", "DNSMOS P.835, background alone", needs_clean=False),
    "dnsmos_ovrl": Metric("OVRL", "DNSMOS P.835, overall", needs_clean=False),
    **{
        f"level_{centre}_hz_db": Metric(
            f"{centre} Hz", "level of speech over the clean one, octave band", digits=1, higher_is_better=None
        )
        for centre in CENTRES_HZ
    },
}
NAMES = tuple(METRICS)

_LEVELS = tuple(name for name, metric in METRICS.items() if metric.higher_is_better is None)
_MAX_PESQ_S = 60.0  # its C program has room for 50 utterances and writes past it: wrong scores, or a crash
_LSD_FRAME = 512
_LSD_HOP = 128
_LSD_RANGE_DB = 50.0


def packages() -> dict[str, str]:
    """Versions of the packages that compute scores, by name.

    Raises:
        EdgeseError: one is missing.
    """
    return {name: importlib.metadata.version(_package(name).__name__) for name in ("pesq", "pystoi", "speechmos")}


def pesq_wb(clean: Wave, enhanced: Wave) -> float:
    """Wideband PESQ, a listening quality of 1.04 to 4.64 (MOS-LQO).

    Raises:
        EdgeseError: the package is missing, or PESQ finds no utterance or no sound, or the pair is too long for it.
    """
    return _pesq(clean, enhanced, "wb")


def pesq_nb(clean: Wave, enhanced: Wave) -> float:
    """Narrowband PESQ, a listening quality over a telephone of 1.02 to 4.55 (MOS-LQO).

    P.862 takes 8 and 16 kHz and limits the band itself. We stay at 16 kHz, as others do: no resampler has a say. The
    same pairs brought to 8 kHz score 0.06 to 0.12 higher (measured on eight VoiceBank+DEMAND pairs, soxr).

    Raises:
        EdgeseError: as `pesq_wb`.
    """
    return _pesq(clean, enhanced, "nb")


def stoi(clean: Wave, enhanced: Wave) -> float:
    """Short-time objective intelligibility, 0 to 1.

    Raises:
        EdgeseError: the package is missing, or less than 0.4 s is not silent.
    """
    return _stoi(clean, enhanced, extended=False)


def estoi(clean: Wave, enhanced: Wave) -> float:
    """Extended STOI, 0 to 1, which is sensitive to modulated noise, too; repeatable.

    Raises:
        EdgeseError: as `stoi`.
    """
    with _seeded():
        return _stoi(clean, enhanced, extended=True)


def si_sdr(clean: Wave, enhanced: Wave) -> float:
    """Scale-invariant signal-to-distortion ratio in dB; means are removed first."""
    target = clean.astype(np.float64) - clean.mean(dtype=np.float64)
    estimate = enhanced.astype(np.float64) - enhanced.mean(dtype=np.float64)
    projected = target * (estimate @ target) / (target @ target + 1e-12)
    rest = estimate - projected
    return float(10 * np.log10((projected @ projected + 1e-12) / (rest @ rest + 1e-12)))


def log_spectral_distance(clean: Wave, enhanced: Wave) -> float:
    """Mean over frames of the root mean square over frequency of the difference of levels, in dB; 0 is best.

    Gray & Markel 1976 for one frame. Levels end 50 dB below the largest of the clean recording, as in Cohen & Berdugo
    2001: else digital silence would decide.

    Raises:
        EdgeseError: shorter than a frame, or the clean recording is silent.
    """
    spectra = [_power_spectra(wave) for wave in (clean, enhanced)]
    floor = spectra[0].max() * 10 ** (-_LSD_RANGE_DB / 10)
    if floor == 0:
        raise EdgeseError("LSD cannot score this pair (the clean recording is silent)")
    levels = [10 * np.log10(np.maximum(power, floor)) for power in spectra]
    return float(np.sqrt(np.mean((levels[0] - levels[1]) ** 2, axis=1)).mean())


def all_scores(clean: Wave, enhanced: Wave) -> dict[str, float]:
    """Scores of all metrics by their names in `NAMES`.

    Raises:
        EdgeseError: one of them cannot be computed.
    """
    if len(clean) != len(enhanced):
        raise EdgeseError(f"found {len(enhanced)} samples, wanted {len(clean)} as in the clean recording")
    if not np.isfinite(clean).all():
        raise EdgeseError("found NaN or Inf in the sound, wanted numbers")
    alone = scores_without_clean(enhanced)
    quality = pesq_wb(clean, enhanced)
    scores = {
        "pesq_wb": quality,
        "pesq_nb": pesq_nb(clean, enhanced),
        "stoi": stoi(clean, enhanced),
        "estoi": estoi(clean, enhanced),
        "si_sdr_db": si_sdr(clean, enhanced),
        **composite(clean, enhanced, quality)._asdict(),
        "lsd_db": log_spectral_distance(clean, enhanced),
        **alone,
        **dict(zip(_LEVELS, band_levels_db(clean, enhanced), strict=True)),
    }
    assert tuple(scores) == NAMES
    return _finite(scores)


def scores_without_clean(wave: Wave) -> dict[str, float]:
    """Scores that need no clean recording, by their names in `NAMES`.

    Raises:
        EdgeseError: they cannot be computed.
    """
    if not np.isfinite(wave).all():
        raise EdgeseError("found NaN or Inf in the sound, wanted numbers")
    return _finite({f"dnsmos_{name}": rating for name, rating in dnsmos(wave)._asdict().items()})


def _finite(scores: dict[str, float]) -> dict[str, float]:
    for name, score in scores.items():
        if not math.isfinite(score):
            raise EdgeseError(f"{METRICS[name].title} cannot score this recording (it gives {score})")
    return scores


def _pesq(clean: Wave, enhanced: Wave, mode: str) -> float:
    pesq = _package("pesq")
    if not (clean.any() and enhanced.any()):
        raise EdgeseError("PESQ cannot score this pair (one of them is silent, and it divides by the level)")
    if not (np.isfinite(clean).all() and np.isfinite(enhanced).all()):
        raise EdgeseError("PESQ cannot score this pair (found NaN or Inf, wanted numbers)")
    if len(clean) > _MAX_PESQ_S * SAMPLE_RATE_HZ:
        raise EdgeseError(
            f"PESQ cannot score this pair ({len(clean) / SAMPLE_RATE_HZ:.0f} s, wanted at most {_MAX_PESQ_S:.0f} s; "
            "P.862 is made for 8 to 30 s): cut it"
        )
    try:
        return float(pesq.pesq(SAMPLE_RATE_HZ, clean, enhanced, mode))
    except pesq.PesqError as error:
        reason = b" ".join(error.args).decode()  # its messages are bytes
        raise EdgeseError(f"PESQ cannot score this pair ({type(error).__name__}: {reason})") from error


def _stoi(clean: Wave, enhanced: Wave, *, extended: bool) -> float:
    pystoi = _package("pystoi")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it would go on and answer 1e-5
        try:
            return float(pystoi.stoi(clean, enhanced, SAMPLE_RATE_HZ, extended=extended))
        except RuntimeWarning as error:
            raise EdgeseError(f"STOI cannot score this pair ({error})") from error


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seed NumPy's global generator meanwhile: pystoi adds noise of rounding size, which decides in digital silence."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _power_spectra(wave: Wave) -> NDArray[np.float64]:
    """Power spectra of frames of 32 ms, 8 ms apart, under a Hann window, (n_frames, n_bins)."""
    if len(wave) < _LSD_FRAME:
        raise EdgeseError(f"LSD cannot score this pair (found {len(wave)} samples, wanted at least {_LSD_FRAME})")
    frames = np.lib.stride_tricks.sliding_window_view(wave.astype(np.float64), _LSD_FRAME)[::_LSD_HOP]
    return np.asarray(np.abs(np.fft.rfft(frames * np.hanning(_LSD_FRAME + 1)[:-1])) ** 2)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EdgeseError(f"{name} is missing: {install_command('metrics')}") from error


@dataclasses.dataclass(frozen=True)
class WaveError:
    """Difference of one waveform from the one that was wanted."""

    max_abs: float
    snr_db: float  # infinite where they are equal
    si_sdr_db: float
    lsd_db: float  # log-spectral distance


def wave_error(wanted: Wave, found: Wave) -> WaveError:
    """Difference of a waveform from the one that was wanted, both of one length at 16 kHz.

    Raises:
        VerificationError: other lengths, or the wanted one is silent or shorter than 32 ms.
    """
    error = tensor_error("waveform", wanted, found)
    if error.n_bad:
        return WaveError(math.nan, math.nan, math.nan, math.nan)
    try:
        distance_db = log_spectral_distance(wanted, found)
    except EdgeseError as reason:
        raise VerificationError(f"waveform: nothing to compare with: {reason}") from reason
    return WaveError(error.max_abs, snr_db(wanted, found), si_sdr(wanted, found), distance_db)
