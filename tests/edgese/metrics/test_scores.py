"""Metrics against values that follow from their definitions, slow references, and what others have published."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgese.audio import Wave
from edgese.audio.reader import read_wave
from edgese.errors import EdgeseError, install_command
from edgese.metrics import composite
from edgese.metrics import scores as metrics

pytest.importorskip("pesq", reason="the metrics extra is not installed")
pytest.importorskip("pystoi", reason="the metrics extra is not installed")
pytest.importorskip("speechmos", reason="the metrics extra is not installed")

EVAL_PAIRS = Path(__file__).parents[4] / "shared" / "data" / "eval"


def noise(seed: int, n_samples: int = 32_000) -> Wave:
    return np.asarray(np.float32(0.1) * np.random.default_rng(seed).standard_normal(n_samples, np.float32))


@pytest.fixture(scope="module")
def speech(speech_like: Callable[..., Wave]) -> Wave:
    """Two and a half seconds; a faint hiss fills the pauses, as in any recording."""
    return np.asarray(speech_like(40_000) + np.float32(1e-3) * noise(7, 40_000))


# SI-SDR and SNR


def test_si_sdr_of_orthogonal_noise_is_its_energy_ratio() -> None:
    clean, other = noise(0), noise(1)
    clean, other = clean - clean.mean(), other - other.mean()
    other = other - clean * (other @ clean) / (clean @ clean)
    scaled = other * np.sqrt((clean @ clean) / (other @ other)) * np.float32(0.1)  # 20 dB below
    assert metrics.si_sdr(clean, 3 * (clean + scaled)) == pytest.approx(20.0, abs=1e-3)


def test_si_sdr_ignores_gain_and_offset() -> None:
    clean = noise(0)
    assert metrics.si_sdr(clean, 0.25 * clean + 0.1) > 60


def test_snr_is_infinite_only_for_equal_signals() -> None:
    clean = noise(0)
    assert metrics.snr_db(clean, clean) == float("inf")
    assert metrics.snr_db(clean, clean * np.float32(0.9)) == pytest.approx(20.0, abs=1e-3)


# All together


def test_a_perfect_copy_gets_the_best_scores(speech: Wave) -> None:
    """The ends of the scales: P.862.2 and P.862.1 map their best raw score, 4.5, to 4.644 and 4.549."""
    scores = metrics.all_scores(speech, speech)
    assert tuple(scores) == metrics.NAMES
    assert scores["pesq_wb"] == pytest.approx(4.644, abs=1e-3)
    assert scores["pesq_nb"] == pytest.approx(4.549, abs=1e-3)
    assert scores["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert scores["estoi"] == pytest.approx(1.0, abs=1e-6)
    assert scores["si_sdr_db"] > 100
    assert [scores[name] for name in ("csig", "cbak", "covl")] == [5.0, 5.0, 5.0]
    assert scores["lsd_db"] == 0.0


def test_more_noise_scores_worse_in_every_metric_that_compares(speech: Wave) -> None:
    scores = [
        metrics.all_scores(speech, speech + np.float32(gain) * noise(3, len(speech)))
        for gain in (0.005, 0.02, 0.1, 0.5)
    ]
    for name, metric in metrics.METRICS.items():
        if not metric.needs_clean:
            continue  # a network that was taught by real recordings, asked about a made one
        values = [score[name] for score in scores]
        if metric.higher_is_better is None:  # the further from 0, the worse
            values = [-abs(value) for value in values]
        assert values == sorted(values, reverse=metric.higher_is_better is not False), name
        assert values[0] != values[-1], name


def test_what_is_no_number_is_refused(speech: Wave) -> None:
    broken = speech.copy()
    broken[1000] = np.nan
    with pytest.raises(EdgeseError, match="found NaN or Inf in the sound"):
        metrics.all_scores(speech, broken)


def test_recordings_of_unequal_length_are_refused(speech: Wave) -> None:
    with pytest.raises(EdgeseError, match="found 39999 samples, wanted 40000 as in the clean recording"):
        metrics.all_scores(speech, speech[:-1])


def test_the_packages_that_score_are_told_with_their_versions() -> None:
    assert metrics.packages()["pesq"] == "0.0.4"
    assert metrics.packages().keys() == {"pesq", "pystoi", "speechmos"}


@pytest.mark.parametrize("name", ["pesq", "pystoi", "speechmos"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EdgeseError, match=re.escape(f"{name} is missing: {install_command('metrics')}")):
        metrics.packages()


# PESQ


def test_silence_is_refused_by_pesq_in_one_line(speech: Wave) -> None:
    for pair in ((speech, 0 * speech), (0 * speech, speech), (0 * speech, 0 * speech)):
        with pytest.raises(EdgeseError, match="PESQ cannot score"):
            metrics.pesq_wb(*pair)


def test_what_pesq_itself_refuses_is_an_error_with_its_words(speech: Wave) -> None:
    with pytest.raises(EdgeseError, match=r"PESQ cannot score this pair \(BufferTooShortError: "):
        metrics.pesq_nb(speech[:3_000], speech[:3_000])
    click = 0 * speech
    click[20_000:20_400] = noise(0, 400)
    with pytest.raises(EdgeseError, match=r"PESQ cannot score this pair \(NoUtterancesError: No utterances detected\)"):
        metrics.pesq_wb(click, speech)


def test_more_than_a_minute_is_refused_before_the_program_writes_past_its_tables() -> None:
    long = noise(0, 61 * 16_000)
    with pytest.raises(EdgeseError, match=r"PESQ cannot score this pair \(61 s, wanted at most 60 s"):
        metrics.pesq_wb(long, long)


def test_narrowband_pesq_does_not_hear_what_a_telephone_cuts_off(speech: Wave) -> None:
    spectrum = np.fft.rfft(noise(5, len(speech)))
    spectrum[np.fft.rfftfreq(len(speech), 1 / 16_000) < 5_000] = 0
    hissing = speech + np.fft.irfft(spectrum, len(speech)).astype(np.float32)
    assert metrics.pesq_wb(speech, hissing) < 3
    assert metrics.pesq_nb(speech, hissing) > 4.4


# STOI


def test_extended_stoi_is_repeatable_in_silence_and_leaves_the_generator_alone(speech: Wave) -> None:
    """pystoi draws noise for it, and digital silence is correlated by that noise alone."""
    gated = speech.copy()
    gated[8_000:24_000] = 0
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    scores = {metrics.estoi(speech, gated) for _ in range(3)}
    assert len(scores) == 1
    np.testing.assert_equal(np.random.get_state(legacy=False), before)  # noqa: NPY002


def test_extended_stoi_is_another_metric(speech: Wave) -> None:
    noisy = speech + noise(3, len(speech))
    assert 0 < metrics.estoi(speech, noisy) < metrics.stoi(speech, noisy) < 1


def test_a_recording_too_short_for_stoi_is_an_error_and_no_score(speech: Wave) -> None:
    """The package warns and answers 1e-5, which would sink a mean."""
    for metric in (metrics.stoi, metrics.estoi):
        with pytest.raises(EdgeseError, match="STOI cannot score this pair"):
            metric(speech[:6_000], speech[:6_000])


# Log-spectral distance


@pytest.mark.parametrize("gain", [2.0, 0.5])
def test_a_change_of_level_is_its_own_log_spectral_distance(gain: float) -> None:
    clean = noise(0)
    expected = abs(20 * np.log10(gain))
    assert metrics.log_spectral_distance(clean, np.float32(gain) * clean) == pytest.approx(expected, abs=0.02)


def test_silence_is_50_db_from_a_click_and_no_further() -> None:
    """A click's spectrum is flat: each bin of the frames that hold it lies at the top of the range, or above none."""
    click = np.zeros(512, np.float32)
    click[256] = 0.5  # the window's centre
    assert metrics.log_spectral_distance(click, 0 * click) == pytest.approx(50.0)


def test_log_spectral_distance_needs_a_frame_and_sound(speech: Wave) -> None:
    with pytest.raises(EdgeseError, match="found 511 samples, wanted at least 512"):
        metrics.log_spectral_distance(speech[:511], speech[:511])
    with pytest.raises(EdgeseError, match="the clean recording is silent"):
        metrics.log_spectral_distance(0 * speech, speech)


# CSIG, CBAK, COVL and the distances they are made of


def test_ratings_are_those_of_the_authors_example() -> None:
    """The readme of composite.m, for its files sp09.wav and enhanced_logmmse.wav."""
    found = composite.ratings(pesq=2.255732, llr=0.681368, wss=49.671978, snr_db=3.991727)
    assert found == pytest.approx((3.3050, 2.6160, 2.7133), abs=5e-5)


def test_ratings_end_at_1_and_5() -> None:
    assert composite.ratings(pesq=4.64, llr=0, wss=0, snr_db=35) == (5, 5, 5)
    assert composite.ratings(pesq=1.04, llr=5, wss=300, snr_db=-10) == (1, 1, 1)


def windowed_frames(wave: Wave) -> list[NDArray[np.float64]]:
    """30 ms every 7.5 ms; composite.m leaves the last out if it ends with the recording."""
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, 481) / 481))
    n_frames = int(len(wave) / 120 - 480 / 120)
    return [wave[at * 120 : at * 120 + 480].astype(np.float64) * window for at in range(n_frames)]


def mean_of_best_95_percent(values: list[float]) -> float:
    return float(np.mean(sorted(values)[: round(0.95 * len(values))]))


@pytest.fixture(scope="module")
def pair(speech: Wave) -> tuple[Wave, Wave]:
    """A fifth of a second of speech, and what a poor system might make of it."""
    clean = speech[4_000:7_300]
    smeared = np.convolve(clean, [0.6, 0.3, -0.2], "same").astype(np.float32)
    return clean, smeared + np.float32(0.05) * noise(4, len(clean))


def test_log_likelihood_ratio_is_that_of_prediction_by_least_squares(pair: tuple[Wave, Wave]) -> None:
    def prediction_filter(frame: NDArray[np.float64]) -> NDArray[np.float64]:
        padded = np.pad(frame, 16)
        past = np.stack([padded[16 - k : 16 - k + len(frame) + 16] for k in range(1, 17)], axis=1)
        return np.concatenate([[1], -np.linalg.lstsq(past, padded[16 : 16 + len(frame) + 16], rcond=None)[0]])

    ratios = []
    for clean, enhanced in zip(*map(windowed_frames, pair), strict=True):
        own, other = (np.convolve(clean, prediction_filter(frame)) for frame in (clean, enhanced))
        ratios.append(np.log((other @ other) / (own @ own)))
    assert min(ratios) > 0
    assert composite.log_likelihood_ratio(*pair) == pytest.approx(mean_of_best_95_percent(ratios), rel=1e-6)


def test_weighted_spectral_slope_is_that_of_a_walk_over_the_bands(pair: tuple[Wave, Wave]) -> None:
    """Klatt's measure band by band, as the words of his paper and the loops of composite.m have it."""
    centres, widths = composite._CENTRES_HZ, composite._WIDTHS_HZ

    def levels(frame: NDArray[np.float64]) -> list[float]:
        power = np.abs(np.fft.fft(frame, 1024)) ** 2
        found = []
        for centre, width in zip(centres, widths, strict=True):
            distance_hz = 15.625 * (np.arange(512) - int(centre / 15.625))
            gain = 70 / width * np.exp(-11 * (distance_hz / width) ** 2)
            gain[gain <= np.exp(-30 / 4.606)] = 0
            found.append(10 * np.log10(max(np.sum(power[:512] * gain), 1e-10)))
        return found

    def weights(level: list[float]) -> list[float]:
        found = []
        for band in range(24):
            at = band
            if level[band + 1] > level[band]:
                while at < 24 and level[at + 1] > level[at]:
                    at += 1
                peak = level[at - 1]
            else:
                while at >= 0 and level[at + 1] <= level[at]:
                    at -= 1
                peak = level[at + 1]
            found.append(20 / (20 + max(level) - level[band]) / (1 + peak - level[band]))
        return found

    distances = []
    for clean, enhanced in zip(*map(windowed_frames, pair), strict=True):
        a, b = levels(clean), levels(enhanced)
        weight = [(one + other) / 2 for one, other in zip(weights(a), weights(b), strict=True)]
        squares = [((a[k + 1] - a[k]) - (b[k + 1] - b[k])) ** 2 for k in range(24)]
        distances.append(np.dot(weight, squares) / sum(weight))
    assert composite.weighted_spectral_slope(*pair) == pytest.approx(mean_of_best_95_percent(distances), rel=1e-9)


def test_each_critical_band_is_as_wide_as_the_step_to_the_next() -> None:
    """A rule that the table keeps and a slip of the pen would not."""
    assert len(composite._CENTRES_HZ) == len(composite._WIDTHS_HZ) == 25
    np.testing.assert_allclose(np.diff(composite._CENTRES_HZ), composite._WIDTHS_HZ[:-1], rtol=2e-4)


def test_segmental_snr_is_the_mean_of_limited_ratios(pair: tuple[Wave, Wave]) -> None:
    ratios = []
    for clean, enhanced in zip(*map(windowed_frames, pair), strict=True):
        ratio = 10 * np.log10(np.sum(clean**2) / np.sum((clean - enhanced) ** 2))
        ratios.append(min(max(ratio, -10.0), 35.0))
    assert len(set(ratios)) > 5
    assert composite.segmental_snr(*pair) == pytest.approx(np.mean(ratios), rel=1e-9)


@pytest.mark.parametrize(("gain", "expected"), [(1.0, 35.0), (0.9, 20.0), (1.001, 35.0), (100.0, -10.0)])
def test_segmental_snr_of_a_change_of_level(gain: float, expected: float) -> None:
    clean = noise(0)
    assert composite.segmental_snr(clean, np.float32(gain) * clean) == pytest.approx(expected, abs=1e-3)


def test_level_moves_neither_the_envelope_nor_the_slopes(speech: Wave) -> None:
    half = np.float32(0.5) * speech
    assert composite.log_likelihood_ratio(speech, half) == pytest.approx(0, abs=1e-9)
    assert composite.weighted_spectral_slope(speech, half) == pytest.approx(0, abs=1e-9)


def test_digital_silence_spoils_no_rating(speech: Wave) -> None:
    """Where the clean recording is silent there is no envelope; where the system is, it predicts nothing."""
    half_silent = speech.copy()
    half_silent[:20_000] = 0
    assert composite.log_likelihood_ratio(half_silent, half_silent) == 0
    assert composite.segmental_snr(half_silent, half_silent) < 35  # silence counts -10, as in composite.m
    pairs = ((speech, half_silent), (half_silent, speech))
    ratings = np.array([composite.composite(clean, enhanced, pesq=2.0) for clean, enhanced in pairs])
    assert np.isfinite(ratings).all()
    assert (ratings < composite.composite(speech, speech, pesq=2.0)).all()


def test_what_cannot_be_rated_is_refused(speech: Wave) -> None:
    with pytest.raises(EdgeseError, match="found 599 samples, wanted at least 600 to rate them"):
        composite.composite(speech[:599], speech[:599], pesq=4.0)
    with pytest.raises(EdgeseError, match=r"LLR cannot score this pair \(the clean recording is silent\)"):
        composite.composite(0 * speech, speech, pesq=4.0)


# Recordings that others have scored


def eval_pair(name: str, folder: str) -> tuple[Wave, Wave]:
    if not EVAL_PAIRS.is_dir():
        pytest.skip("the evaluation pairs are not on this machine (../shared/data/eval)")
    clean, other = (next((EVAL_PAIRS / kind).glob(f"{name}.*")) for kind in ("clean", folder))
    return read_wave(clean, 16_000), read_wave(other, 16_000)


@pytest.mark.parametrize(
    ("name", "folder", "llr", "wss", "snr_db"),
    [
        ("p232_014", "noisy", 1.25035, 38.8564, -1.1041),
        ("p232_014", "peers/BSRNN_sungwon23", 0.53349, 17.7910, 10.6990),
        ("p257_009", "noisy", 1.21301, 59.4858, -2.4900),
    ],
)
def test_distances_of_recordings_are_those_of_another_program(
    name: str, folder: str, llr: float, wss: float, snr_db: float
) -> None:
    """pysepm-evo 0.1.1, whose original was checked against composite.m."""
    waves = eval_pair(name, folder)
    assert composite.log_likelihood_ratio(*waves) == pytest.approx(llr, abs=1e-5)
    assert composite.weighted_spectral_slope(*waves) == pytest.approx(wss, abs=1e-4)
    assert composite.segmental_snr(*waves) == pytest.approx(snr_db, abs=1e-4)
