"""What happens above 8 kHz: speech and noise at 48 kHz through `enhance`, levels by band in speech and in pauses.

    python -m benchmarks.whole_band [CLEAN_FOLDER] [--model base] [--files 6] [--plot FILE.png]

Speech at 16 kHz gets an upper band made of noise that follows the energy of its own 4.5 to 7.2 kHz, as consonants do,
at -4 dB. Without a folder a voice is synthesised at 48 kHz: pulses through formants, and hisses from 3 to 16 kHz. Noise
is wide, falling with frequency (a pole at 0.7), with hum of 50 Hz. Levels are those of 8.3 to 15.5 kHz, in frames of
10 ms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy import signal

from edgese.audio.resampler import resample
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.signal_path import denoise
from edgese.graphs.bundles import bundle_path, open_verified

RATE_HZ = 48_000
ABOVE, BELOW = (8_300, 15_500), (4_500, 7_200)
Wave = NDArray[np.float64]


def banded(wave: Wave, low_hz: float, high_hz: float) -> Wave:
    return np.asarray(signal.sosfilt(signal.butter(8, [low_hz, high_hz], "band", fs=RATE_HZ, output="sos"), wave))


def powers(wave: Wave, low_hz: float, high_hz: float) -> Wave:
    """Mean power of a band in frames of 10 ms."""
    squares = banded(wave, low_hz, high_hz) ** 2
    return np.asarray(squares[: len(squares) // 480 * 480].reshape(-1, 480).mean(1))


def widened(speech: Wave, rng: np.random.Generator) -> Wave:
    """Speech at 16 kHz as speech at 48 kHz with an upper band made for it, half a second of pause on both sides."""
    padded = np.pad(speech, 8000).astype(np.float32)[:, None]
    wave = np.concatenate(list(resample([padded], 16_000, RATE_HZ, 1)))[:, 0].astype(np.float64)
    smooth = signal.butter(2, 60, fs=RATE_HZ, output="sos")
    envelope = np.sqrt(np.maximum(signal.sosfilt(smooth, banded(wave, *BELOW) ** 2), 0))
    hiss = banded(rng.standard_normal(len(wave)), 7_600, 16_000)
    return np.asarray(wave + 0.6 * envelope * hiss / hiss.std())


def synthesised(rng: np.random.Generator, seconds: float = 8.0) -> Wave:
    """A voice at 48 kHz: hiss, vowel, pause, again and again."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = np.cumsum(110 + 25 * np.sin(2 * np.pi * 0.6 * time)) / RATE_HZ
    voice = np.diff(np.floor(phase), prepend=0.0)
    for hz, width_hz in ((600, 80), (1400, 100), (2600, 150), (3600, 250)):
        radius = np.exp(-np.pi * width_hz / RATE_HZ)
        voice = signal.lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * hz / RATE_HZ), radius**2], voice)
    turn = time % 1.0
    vowel, hissing = (turn > 0.25) & (turn < 0.6), (turn > 0.1) & (turn < 0.24)
    smooth = signal.butter(1, 30, fs=RATE_HZ, output="sos")
    hiss = banded(rng.standard_normal(len(time)), 3_000, 16_000)
    voiced = signal.sosfilt(smooth, vowel.astype(float)) * voice / voice.std()
    return np.asarray(0.05 * (voiced + 0.5 * signal.sosfilt(smooth, hissing.astype(float)) * hiss / hiss.std()))


def noise(n_samples: int, rng: np.random.Generator) -> Wave:
    wide = signal.lfilter([1], [1, -0.7], rng.standard_normal(n_samples))
    hum = np.sin(2 * np.pi * 50 * np.arange(n_samples) / RATE_HZ)
    return np.asarray(wide / wide.std() + 0.3 * hum)


def measure(clean: Wave, noisy: Wave, enhanced: Wave) -> list[float]:
    """Level of speech above and below 8 kHz, change in pauses above, change of the error above; all in dB."""
    above = [powers(wave, *ABOVE) for wave in (clean, noisy, enhanced)]
    below = [powers(wave, *BELOW) for wave in (clean, enhanced)]

    def speaks(power: Wave) -> NDArray[np.bool_]:
        return np.asarray(power > 10**-1.5 * np.sort(power)[-max(3, len(power) // 50) :].mean())

    every = powers(clean, 60, 15_500)
    pause = np.convolve(every, np.ones(10) / 10, "same") < 1e-3 * every.mean()

    def db(first: Wave, second: Wave) -> float:
        return float(10 * np.log10(first.mean() / second.mean()))

    heard, low = speaks(above[0]), speaks(below[0])
    error = powers(enhanced - clean, *ABOVE), powers(noisy - clean, *ABOVE)
    return [
        db(above[2][heard], above[0][heard]),
        db(below[1][low], below[0][low]),
        db(above[2][pause], above[1][pause]),
        db(*error),
    ]


def draw(path: Path, waves: list[tuple[str, Wave]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(waves), 1, figsize=(9, 2.6 * len(waves)), sharex=True, layout="constrained")
    for axis, (title, wave) in zip(axes, waves, strict=True):
        floor = 1e-7 * np.random.default_rng(0).standard_normal(len(wave))
        axis.specgram(wave + floor, NFFT=1024, Fs=RATE_HZ, noverlap=768, vmin=-140, vmax=-50)
        axis.set(title=title, ylabel="Hz")
        axis.axhline(8000, color="white", linewidth=0.5, linestyle=":")
    axes[-1].set_xlabel("s")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--files", type=int, default=6)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    if options.folder is None:
        speech = [synthesised(rng)]
    else:
        files = sorted(options.folder.iterdir())
        speech = [widened(soundfile.read(file)[0], rng) for file in files[:: max(1, len(files) // options.files)]]
    print(f"{len(speech)} recordings at 48 kHz; dB, means\n")
    print("| SNR | speech above 8 kHz | speech at 4.5 - 7.2 kHz | pauses above 8 kHz | error above 8 kHz |")
    print("|---|---|---|---|---|")
    with Denoiser(open_verified(bundle_path(options.model))) as denoiser:
        for snr_db in (20, 10, 3):
            rows = []
            for clean in speech:
                added = noise(len(clean), rng)
                noisy = clean + added * clean.std() / added.std() * 10 ** (-snr_db / 20)
                blocks = denoise([noisy.astype(np.float32)[:, None]], RATE_HZ, 1, denoiser)
                enhanced = np.concatenate(list(blocks))[:, 0].astype(np.float64)
                rows.append(measure(clean, noisy, enhanced))
            if options.plot and snr_db == 10:
                draw(options.plot, [("clean", clean), ("noisy, 10 dB", noisy), ("enhanced", enhanced)])
            print(f"| {snr_db} dB | " + " | ".join(f"{value:+.1f}" for value in np.mean(rows, 0)) + " |", flush=True)


if __name__ == "__main__":
    main()
