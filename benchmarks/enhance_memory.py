"""Peak memory of `edgese enhance` on one minute and on one hour of sound; the bar is a difference below 20 MB.

    python -m benchmarks.enhance_memory

The files are generated in a temporary folder (115 MB for the hour at 16 kHz mono) and removed. What is measured is the
resident memory of the whole process, libraries included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import Row, Usage, enhance_command, parser, report, run_measured, verdict
from benchmarks.sound import write_sound
from edgese.machine.host import describe

BAR_MB = 20.0


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, help="a bundle; default: the shipped one")
    arguments.add_argument("--short", type=float, default=60.0, help="seconds of the short file")
    arguments.add_argument("--long", type=float, default=3600.0, help="seconds of the long file")
    arguments.add_argument("--rate", type=int, default=16_000, help="sample rate in Hz")
    arguments.add_argument("--channels", type=int, default=1)
    options = arguments.parse_args()
    machine = describe()
    command = enhance_command(options.model)
    lengths = (options.short, options.long)
    with tempfile.TemporaryDirectory() as folder:

        def measure(seconds: float) -> Usage:
            return enhance_generated(command, Path(folder), seconds, options.rate, options.channels)

        measure(2.0)  # writes Python's bytecode, fills caches
        usages = [measure(seconds) for seconds in lengths]
    rows: list[Row] = [
        {"sound_s": length, "peak_mb": usage.peak_mb, "wall_s": usage.wall_s, "times_real_time": length / usage.wall_s}
        for length, usage in zip(lengths, usages, strict=True)
    ]
    short_mb, long_mb = (usage.peak_mb for usage in usages)
    if short_mb is None or long_mb is None:
        raise SystemExit("edgese enhance took less memory than this benchmark itself: its peak is not known")
    found = f"{long_mb - short_mb:+.1f} MB, ratio {long_mb / short_mb:.3f}"
    bar = f"peaks for {lengths[1]:g} s and {lengths[0]:g} s differ by less than {BAR_MB:g} MB"
    note = verdict(bar, found, abs(long_mb - short_mb) < BAR_MB)
    report("enhance_memory", machine, rows, [note], as_json=options.json)


def enhance_generated(command: Sequence[str], folder: Path, seconds: float, rate_hz: int, channels: int) -> Usage:
    """Time and memory of the command on a file of this length; both files are removed."""
    noisy, clean = folder / "noisy.wav", folder / "clean.wav"
    write_sound(noisy, seconds, rate_hz=rate_hz, channels=channels)
    usage = run_measured([*command, str(noisy), "-o", str(clean)])
    noisy.unlink()
    clean.unlink()
    return usage


if __name__ == "__main__":
    main()
