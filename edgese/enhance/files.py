"""Enhancement of files: one, or many on all cores; each output appears whole or not at all.

jobs = plan_jobs(["noisy.wav"], EnhanceOptions())
with stopping_on_signals() as stop:
    outcomes = enhance_files(jobs, denoiser_factory(shipped_bundle(), jobs[0].options), stop=stop)
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from edgese.atomic_file import PartialFile, require_place, require_space
from edgese.audio import Samples
from edgese.audio.formats import AudioInfo, choose_format, require_writable, size_bytes
from edgese.audio.media import MEDIA, MediaReader, MediaWriter, media_info, open_reader, open_writer
from edgese.audio.pipes import send_to_stdout, spool_stdin
from edgese.audio.reader import AudioReader
from edgese.audio.writer import AudioWriter
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.excerpt import before_after
from edgese.enhance.jobs import EnhanceOptions, Job
from edgese.enhance.signal_path import Enhancer, denoise
from edgese.errors import AudioError, OutputError
from edgese.graphs.bundles import open_verified
from edgese.machine.processes import n_cores
from edgese.machine.streams import stdout_fd
from export.staging import temporary_folder

_SILENCE_DBFS = -200.0
Progress = Callable[[Job, float, "float | None"], None]  # job, seconds done, seconds in all if known


class Stopped(AudioError):  # noqa: N818 - nothing went wrong
    """Error where the user or the system asked to stop before this file was done; nothing of it was left."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Facts of one enhanced file: format, duration, levels, warnings."""

    source: str
    target: str
    plot: str | None
    duration_s: float
    processing_s: float  # reading, resampling, network and writing together
    sample_rate_hz: int
    channels: int
    container: str
    subtype: str
    level_in_dbfs: float  # RMS of all channels; a sine at full scale has -3.01
    level_out_dbfs: float
    n_clipped: int
    warnings: tuple[str, ...]

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of processing for a second of sound."""
        return self.processing_s / self.duration_s

    @property
    def level_change_db(self) -> float:
        return self.level_out_dbfs - self.level_in_dbfs


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Summary of a job, or the error that ended it."""

    job: Job
    summary: Summary | None = None
    error: AudioError | OutputError | None = None


@dataclasses.dataclass(frozen=True)
class Preview:
    """Formats that would be read and written for a job, from the input's header."""

    job: Job
    source: AudioInfo
    target: AudioInfo


def preview(job: Job, promised: dict[int, int] | None = None) -> Preview:
    """Preview of what `enhance_file` would read and write; stdin cannot be looked at without being read.

    Args:
        promised: bytes that the outputs before this one take, by file system; this one's are added.

    Raises:
        AudioError: what the header shows to be wrong.
        OutputError: a name that no file can have, a folder that cannot be written to, or no space for it.
    """
    if job.source is None:
        raise AudioError("stdin: cannot be looked at without being read: name a file")
    for target in (job.target, job.plot):
        if target is not None:
            require_place(target)
    with open_reader(job.source) as reader:
        info = _target_info(job, reader)
        if job.target is not None:
            require_space(job.target, size_bytes(info), promised)
        return Preview(job, reader.info, info)


def enhance_file(
    job: Job, denoiser: Enhancer, progress: Progress | None = None, stop: threading.Event | None = None
) -> Summary:
    """Enhance one file; its output appears whole under its name, or not at all.

    Args:
        progress: called after each block, about once a second of sound.
        stop: when set, the file is given up at the next block.

    Raises:
        AudioError: bad input, a format that cannot hold such sound, or stopped (`Stopped`).
        OutputError: an output that exists or cannot be written.
    """
    started = time.perf_counter()
    stop = stop or threading.Event()
    with contextlib.ExitStack() as stack:
        source, target = _places(job, stack, stop)
        _require_running(job, stop)
        reader = open_reader(source, job.source_name)
        stack.enter_context(reader)
        info = _target_info(job, reader)
        require_space(target, size_bytes(info))
        alike = job.options.preview_s is None
        writer = open_writer(target, info, job.target_name, reader, mode=_mode(job.source), alike=alike)
        stack.enter_context(writer)
        denoiser.prepare(source, job.source_name, stop)
        given_back = np.float32(reader.scale if info.subtype in ("FLOAT", "DOUBLE") else 1.0)
        level_in, level_out = _Level(), _Level()
        options, rate_hz = job.options, info.sample_rate_hz
        limit_db, narrow = options.atten_limit_db, options.narrow
        if options.preview_s is None:
            noisy = level_in.meter(reader.blocks())
            clean = denoise(noisy, rate_hz, info.n_channels, denoiser, limit_db, narrow=narrow)
        else:
            clean = before_after(source, job.source_name, rate_hz, options.preview_s, denoiser, limit_db, narrow)
            writer.write(next(iter(level_in.meter(clean))) * given_back)
            writer.write(next(clean))
        for block in level_out.meter(clean):
            _require_running(job, stop)
            if not math.isfinite(level_out.energy):
                raise AudioError(
                    f"{job.source_name}: the network gave NaN or Inf after {writer.n_written / info.sample_rate_hz:.2f}"
                    f" s; its input reaches {level_in.peak:.3g}, wanted about 1 at most: lower its level"
                )
            writer.write(block if given_back == 1 else block * given_back)
            if progress is not None:
                progress(job, writer.n_written / info.sample_rate_hz, reader.info.duration_s)
        writer.finish()
        processing_s = time.perf_counter() - started
        plot = stack.enter_context(_plotted(job, source, writer.path)) if job.plot is not None else None
        _require_running(job, stop)
        writer.publish(replace=job.options.force)
        if plot is not None:
            plot.publish(replace=job.options.force)
        if job.target is None:
            send_to_stdout(target)
        return Summary(
            source=job.source_name,
            target=job.target_name,
            plot=None if plot is None else plot.name,
            duration_s=writer.n_written / info.sample_rate_hz,
            processing_s=processing_s,
            sample_rate_hz=info.sample_rate_hz,
            channels=info.n_channels,
            container=info.container,
            subtype=info.subtype,
            level_in_dbfs=level_in.dbfs,
            level_out_dbfs=level_out.dbfs,
            n_clipped=writer.n_clipped,
            warnings=tuple(_warnings(reader, writer, denoiser, float(given_back), silent=not level_in.peak)),
        )


def enhance_files(
    jobs: Sequence[Job],
    open_denoiser: Callable[[], Enhancer],
    *,
    n_workers: int | None = None,
    progress: Progress | None = None,
    done: Callable[[Outcome], None] | None = None,
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Enhance files on several cores; one that fails does not keep the others from being done.

    Args:
        open_denoiser: called once for each worker, which closes what it gets.
        n_workers: files at a time; None: one for each core this process may use.
        progress, done: called from the workers' threads.
        stop: when set, files under way are given up and the others not begun.

    Returns:
        One outcome for each job, in their order.

    Raises:
        ExportError, RuntimeUnavailable: no worker can run; files under way are given up, those done stay.
    """
    stop = stop or threading.Event()
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(jobs)):
        waiting.put(index)
    outcomes: dict[int, Outcome] = {}

    def work() -> None:
        with open_denoiser() as denoiser, contextlib.suppress(queue.Empty):
            while True:
                index = waiting.get_nowait()
                job = jobs[index]
                try:
                    outcome = Outcome(job, summary=enhance_file(job, denoiser, progress, stop))
                except (AudioError, OutputError) as error:
                    outcome = Outcome(job, error=error)
                outcomes[index] = outcome
                if done is not None:
                    done(outcome)

    n_threads = min(n_workers or n_cores(), len(jobs))
    if n_threads:
        with ThreadPoolExecutor(n_threads, thread_name_prefix="enhance") as pool:
            try:
                for worker in as_completed([pool.submit(work) for _ in range(n_threads)]):
                    worker.result()
            except BaseException:  # Ctrl-C, too: leaving the pool waits until every worker has tidied up
                stop.set()
                raise
    return [outcomes[index] for index in range(len(jobs))]


def denoiser_factory(bundle_path: Path, options: EnhanceOptions) -> Callable[[], Denoiser]:
    """Function that opens a denoiser, for `enhance_files`; the bundle is read and checked here, once.

    Raises: as `open_verified`.
    """
    bundle = open_verified(bundle_path)
    return lambda: Denoiser(
        bundle, runtime=options.runtime, block=options.block, precision=options.precision, pcs=options.pcs
    )


class _Level:
    """Meter of the energy and peak of the blocks that pass."""

    def __init__(self) -> None:
        self.energy = 0.0
        self.peak = 0.0
        self.n_samples = 0

    def meter(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            flat = block.astype(np.float64).ravel()
            self.energy += float(np.square(flat).sum())  # no dot product: BLAS would keep a second core spinning
            self.peak = max(self.peak, float(np.abs(flat).max(initial=0.0)))
            self.n_samples += flat.size
            yield block

    @property
    def dbfs(self) -> float:
        mean = self.energy / max(1, self.n_samples)
        return 10 * math.log10(mean) if mean > 10 ** (_SILENCE_DBFS / 10) else _SILENCE_DBFS


def _places(job: Job, stack: contextlib.ExitStack, stop: threading.Event) -> tuple[Path, Path]:
    """Paths to read and to write; temporary files stand in for stdin and stdout, as headers need seeking."""
    if job.source is not None and job.target is not None:
        return job.source, job.target
    try:
        folder = stack.enter_context(temporary_folder())
    except OSError as error:
        raise AudioError(f"{job.source_name}: no place for temporary files ({error}): set TMPDIR") from error
    source = job.source or folder / "stdin"
    if job.source is None:
        spool_stdin(source, stop)
    if job.target is None and os.isatty(stdout_fd()):
        raise AudioError("stdout: found a terminal, wanted a file or pipe, as in: edgese enhance - < in.wav > out.wav")
    return source, job.target or folder / "stdout"


def _target_info(job: Job, reader: AudioReader | MediaReader) -> AudioInfo:
    suffix = job.target.suffix.lower() if job.target is not None else ""
    if suffix in MEDIA and job.options.container is None and job.options.subtype is None:
        return media_info(reader, suffix)
    source = reader.info
    try:
        info = choose_format(source, suffix, job.options.container, job.options.subtype)
    except AudioError as error:
        raise AudioError(f"{job.target_name}: {error}") from error
    require_writable(job.target_name, info)
    return info


@contextlib.contextmanager
def _plotted(job: Job, source: Path, enhanced: Path) -> Iterator[PartialFile]:
    from edgese.enhance.plot import write_comparison

    assert job.plot is not None
    with PartialFile(job.plot, mode=_mode(job.source)) as partial:
        try:
            write_comparison(source, enhanced, partial.path)
        except OSError as error:
            raise partial.error(error) from error
        yield partial


def _mode(source: Path | None) -> int | None:
    """Permissions of a recording, which its output has at most: what is private stays so."""
    try:
        return None if source is None else stat.S_IMODE(source.stat().st_mode)
    except OSError:  # it has gone since it was opened
        return 0o600


def _require_running(job: Job, stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped(f"{job.source_name}: stopped before it was done; nothing was left of its output")


def _warnings(
    reader: AudioReader | MediaReader,
    writer: AudioWriter | MediaWriter,
    denoiser: Enhancer,
    given_back: float,
    *,
    silent: bool,
) -> Iterator[str]:
    if not denoiser.trained:
        yield "the network is UNTRAINED, made to measure its speed: this sound means nothing"
    if writer.n_clipped:
        yield (
            f"{writer.n_clipped} samples were clipped at full scale: lower the input's level, or write floats, "
            "as in --subtype FLOAT"
        )
    yield from reader.notes
    if reader.scale != 1:
        yield f"the output is {'multiplied again' if given_back != 1 else 'left so: its samples cannot exceed 1'}"
    if silent:
        yield "the input is silent, nothing but zeros, and so is the output: check the recording"
    if writer.not_kept:
        yield f"not kept in {writer.info.container}: {', '.join(writer.not_kept)}"
    if writer.info.container == "MP3":
        yield "MP3 is written: players that ignore its gapless tag will shift and pad it"
