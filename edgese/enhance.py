"""Noisy recordings made clean: waveform -> runtime -> waveform, one path for every runtime, in constant memory.

    jobs = plan(["noisy.wav"], EnhanceOptions())
    with stopping_on_signals() as stop:
        outcomes = enhance_files(jobs, denoiser_factory(shipped_bundle(), jobs[0].options), stop=stop)

The network hears 16 kHz: what it gives back at higher rates holds nothing above 8 kHz, unless an attenuation limit
lets a part of the input through. Channels are enhanced apart, as streams of one graph. Output and input have the same
length and are aligned to a fraction of a sample, at any rate. No PyTorch and no onnx are needed. A network that is not
causal hears overlapped segments (segments.py); all else is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgese.audio import (
    AudioInfo,
    AudioReader,
    AudioWriter,
    Samples,
    choose_format,
    resampled,
    send_to_stdout,
    spool_stdin,
)
from edgese.config import AudioConfig, from_dict
from edgese.errors import AudioError, VerificationError
from edgese.jobs import EnhanceOptions as EnhanceOptions
from edgese.jobs import Job as Job
from edgese.jobs import plan as plan
from edgese.opening import open_graph
from edgese.partial import PartialFile
from edgese.precision import Precision
from edgese.segments import Segments, require_streaming_form
from export.bundle import Bundle, ExportError, Graph

if TYPE_CHECKING:
    from typing_extensions import Self

SAMPLE = Path(__file__).parent / "samples" / "noisy.flac"  # comes with this package; clean.flac beside it

_TAIL = 64  # samples beyond the end that the resampler may ask for
_SILENCE_DBFS = -200.0

Progress = Callable[[Job, float, "float | None"], None]  # job, seconds done, seconds in all if known


class Stopped(AudioError):  # noqa: N818 - nothing went wrong
    """The user or the system asked to stop before this file was done; nothing of it was left."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of one file."""

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
    """A job's summary, or the error that ended it."""

    job: Job
    summary: Summary | None = None
    error: AudioError | None = None


@dataclasses.dataclass(frozen=True)
class Preview:
    """What would be read and written, from the input's header."""

    job: Job
    source: AudioInfo
    target: AudioInfo


def shipped_bundle() -> Path:
    """Where the bundle lies that comes with this package."""
    return Path(__file__).parent / "weights" / "mbs-net-small"


class Enhancer(Protocol):
    """What makes blocks of a recording clean: a runtime here (`Denoiser`), or a board (edgese.remote.denoiser)."""

    config: AudioConfig
    trained: bool

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def prepare(self, source: Path, name: str, stop: threading.Event) -> None: ...
    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]: ...


def audio_config(bundle: Bundle) -> AudioConfig:
    """How the network hears.

    Raises:
        ExportError: the manifest does not say.
    """
    try:
        audio = {key: bundle.manifest["audio"][key] for key in ("sample_rate_hz", "n_fft", "hop")}
    except (KeyError, TypeError) as error:
        raise ExportError(f"{bundle.path}: the manifest's audio lacks {error}; export the bundle again") from error
    return from_dict(AudioConfig, audio, "audio.")


def is_trained(bundle: Bundle) -> bool:
    """Whether its sound means anything: `edgese export --model` exports networks before training."""
    return bool(bundle.manifest.get("trained", True))


def choose_graph(
    bundle: Bundle, *, block: int | None = None, precision: Precision = Precision.FP32, pcs: bool = False
) -> Graph:
    """The graph that enhances; for the arguments, see `Denoiser`.

    Raises:
        ExportError: the bundle has no such graph, or no streaming form.
    """
    if block is not None:
        require_streaming_form(bundle, [block])
    variant = "pcs" if pcs else ""
    same = [graph for graph in bundle.graphs if (graph.precision, graph.variant) == (precision, variant)]
    if not same and (pcs or precision != Precision.FP32):
        wanted = f"{precision.value} with PCS" if pcs else precision.value
        options = "".join([f" --precision {precision.value}" * (precision != Precision.FP32), " --pcs" * pcs])
        raise ExportError(
            f"{bundle.path}: found no graphs in {wanted}, wanted some; make a bundle that has them "
            f"(edgese export{options}) and name it (--model)"
        )
    largest = max((graph.block for graph in same), default=0)
    return bundle.graph(block=largest if block is None else block, precision=precision.value, variant=variant)


class Denoiser:
    """A bundle's graph open in a runtime, on one thread. A context manager.

    Args:
        runtime: a name that `runtimes.registry` knows.
        block: frames that one call takes; None: the largest graph of the bundle, or its segment.
        precision: of the graph.
        pcs: take the graphs with perceptual contrast stretching (edgese.model.pcs).

    Raises:
        ExportError: the bundle has no such graph, no streaming form, or does not say what a frame is.
        RuntimeUnavailable: the runtime is missing or cannot open the graph.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        runtime: str = "onnxruntime",
        block: int | None = None,
        precision: Precision = Precision.FP32,
        pcs: bool = False,
    ) -> None:
        self.config = audio_config(bundle)
        self.trained = is_trained(bundle)
        self._segments = Segments.of(bundle.manifest)
        graph = choose_graph(bundle, block=block, precision=precision, pcs=pcs)
        self.block_samples = graph.block * self.config.hop
        self._states = dict(graph.states)
        self._open = contextlib.ExitStack()
        self._runtime = self._open.enter_context(open_graph(bundle, graph, runtime))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def prepare(self, source: Path, name: str, stop: threading.Event) -> None:
        """Nothing: it hears a recording block by block."""

    def blocks(self, blocks: Iterable[Samples], n_channels: int) -> Iterator[Samples]:
        """The enhanced sound of blocks at the network's rate, in time with them, and some silence after their end.

        Args:
            blocks: (n, n_channels) float32 of any n.

        Yields:
            (n, n_channels) float32; the first sample belongs to the first that came in.
        """
        stream = self._runtime.stream(self._states, streams=n_channels)
        if self._segments is not None:
            yield from self._segments.joined(blocks, n_channels, lambda segment: stream({"wave": segment})["enhanced"])
            yield np.zeros((_TAIL, n_channels), np.float32)
            return
        size = self.block_samples
        skip = self.config.overlap  # the graph's output runs this far behind its input
        end = np.zeros((skip + _TAIL + size - 1, n_channels), np.float32)  # drives out whatever is still inside
        waiting = np.zeros((n_channels, 0), np.float32)
        for block in _then(blocks, end):
            waiting = np.concatenate([waiting, block.T], axis=1)
            calls = range(0, waiting.shape[1] - size + 1, size)
            done = [stream({"wave": np.ascontiguousarray(waiting[:, at : at + size])})["enhanced"] for at in calls]
            waiting = waiting[:, len(done) * size :]
            if done:
                wave = np.concatenate(done, axis=1)
                yield wave[:, skip:].T
                skip = max(0, skip - wave.shape[1])


def denoise(
    blocks: Iterable[Samples],
    rate_hz: int,
    n_channels: int,
    denoiser: Enhancer,
    atten_limit_db: float | None = None,
) -> Iterator[Samples]:
    """The enhanced sound of a stream of blocks at any rate: same length in all, aligned, cut into other blocks.

    Args:
        blocks: (n, n_channels) float32 in [-1, 1] at `rate_hz`.
        atten_limit_db: mix so much of the input in that nothing is attenuated by more: enhanced +
            10^(-limit / 20) * (input - enhanced). The input comes with all its frequencies.
    """
    dry_gain = 0.0 if atten_limit_db is None else 10.0 ** (-atten_limit_db / 20)
    dry = _Queue()
    model_hz = denoiser.config.sample_rate_hz
    heard = resampled(dry.keep(blocks), rate_hz, model_hz, n_channels)
    for wet in resampled(denoiser.blocks(heard, n_channels), model_hz, rate_hz, n_channels):
        enhanced = wet[: dry.n_frames]  # behind the end, the network only answers the silence that drove it out
        if len(enhanced):
            clean = dry.take(len(enhanced))
            yield enhanced + np.float32(dry_gain) * (clean - enhanced) if dry_gain else enhanced
    assert dry.n_frames == 0, "the output is shorter than the input"


def preview(job: Job) -> Preview:
    """What `enhance_file` would read and write; stdin cannot be looked at without being read.

    Raises:
        AudioError: what the header shows to be wrong.
    """
    if job.source is None:
        raise AudioError("stdin: cannot be looked at without being read: name a file")
    with AudioReader(job.source) as reader:
        return Preview(job, reader.info, _target_info(job, reader.info))


def enhance_file(
    job: Job, denoiser: Enhancer, progress: Progress | None = None, stop: threading.Event | None = None
) -> Summary:
    """Enhance one file; its output appears whole under its name, or not at all.

    Args:
        progress: called after each block, about once a second of sound.
        stop: when set, the file is given up at the next block.

    Raises:
        AudioError: bad input, an output that cannot be written, or stopped (`Stopped`).
    """
    started = time.perf_counter()
    stop = stop or threading.Event()
    with contextlib.ExitStack() as stack:
        source, target = _places(job, stack, stop)
        _require_running(job, stop)
        reader = stack.enter_context(AudioReader(source, job.source_name))
        info = _target_info(job, reader.info)
        writer = stack.enter_context(AudioWriter(target, info, job.target_name))
        denoiser.prepare(source, job.source_name, stop)
        level_in, level_out = _Level(), _Level()
        noisy = level_in.meter(reader.blocks())
        clean = denoise(noisy, info.sample_rate_hz, info.n_channels, denoiser, job.options.atten_limit_db)
        for block in level_out.meter(clean):
            _require_running(job, stop)
            if not math.isfinite(level_out.energy):
                raise AudioError(
                    f"{job.source_name}: the network gave NaN or Inf after {writer.n_written / info.sample_rate_hz:.2f}"
                    f" s; its input reaches {level_in.peak:.3g}, wanted about 1 at most: lower its level"
                )
            writer.write(block)
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
            warnings=tuple(_warnings(reader, writer, denoiser)),
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
                except AudioError as error:
                    outcome = Outcome(job, error=error)
                outcomes[index] = outcome
                if done is not None:
                    done(outcome)

    n_threads = min(n_workers or _n_cores(), len(jobs))
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
    """What `enhance_files` opens its denoisers with; the bundle is read and checked here, once.

    Raises: as `open_verified`.
    """
    bundle = open_verified(bundle_path)
    return lambda: Denoiser(
        bundle, runtime=options.runtime, block=options.block, precision=options.precision, pcs=options.pcs
    )


def open_verified(bundle_path: Path) -> Bundle:
    """A bundle whose sound can be trusted.

    Raises:
        ExportError: no bundle there, or a damaged one.
        VerificationError: the bundle was never shown to agree with PyTorch.
    """
    bundle = Bundle.open(bundle_path)
    if not bundle.verified:
        raise VerificationError(
            f"{bundle_path}: this bundle did not pass its verification, its sound cannot be trusted: export it again"
        )
    return bundle


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, so that work ends tidily; a second signal acts as it always does.

    For the main thread only, which alone may set handlers.
    """
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Level:
    """Energy and peak of the blocks that pass."""

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


class _Queue:
    """Frames that came in and wait for what becomes of them."""

    def __init__(self) -> None:
        self._blocks: deque[Samples] = deque()
        self.n_frames = 0

    def keep(self, blocks: Iterable[Samples]) -> Iterator[Samples]:
        for block in blocks:
            self._blocks.append(block)
            self.n_frames += len(block)
            yield block

    def take(self, n_frames: int) -> Samples:
        """The oldest frames, (n_frames, n_channels); no more than there are."""
        self.n_frames -= n_frames
        taken = []
        while n_frames:
            block = self._blocks.popleft()
            taken.append(block[:n_frames])
            if len(block) > n_frames:
                self._blocks.appendleft(block[n_frames:])
            n_frames -= len(taken[-1])
        return np.concatenate(taken)


def _n_cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _then(blocks: Iterable[Samples], last: Samples) -> Iterator[Samples]:
    yield from blocks
    yield last


def _places(job: Job, stack: contextlib.ExitStack, stop: threading.Event) -> tuple[Path, Path]:
    """Files to read and to write; temporary ones stand in for stdin and stdout, as headers need seeking."""
    if job.source is not None and job.target is not None:
        return job.source, job.target
    try:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgese-")))
    except OSError as error:
        raise AudioError(f"{job.source_name}: no place for temporary files ({error}): set TMPDIR") from error
    source = job.source or folder / "stdin"
    if job.source is None:
        spool_stdin(source, stop)
    if job.target is None and os.isatty(1):
        raise AudioError("stdout: found a terminal, wanted a file or pipe, as in: edgese enhance - < in.wav > out.wav")
    return source, job.target or folder / "stdout"


def _target_info(job: Job, source: AudioInfo) -> AudioInfo:
    suffix = job.target.suffix.lower() if job.target is not None else ""
    return choose_format(source, suffix, job.options.container, job.options.subtype)


@contextlib.contextmanager
def _plotted(job: Job, source: Path, enhanced: Path) -> Iterator[PartialFile]:
    from edgese.plot import write_comparison

    assert job.plot is not None
    with PartialFile(job.plot) as partial:
        try:
            write_comparison(source, enhanced, partial.path)
        except OSError as error:
            raise partial.error(error) from error
        yield partial


def _require_running(job: Job, stop: threading.Event) -> None:
    if stop.is_set():
        raise Stopped(f"{job.source_name}: stopped before it was done; nothing was left of its output")


def _warnings(reader: AudioReader, writer: AudioWriter, denoiser: Enhancer) -> Iterator[str]:
    if not denoiser.trained:
        yield "the network is UNTRAINED, made to measure its speed: this sound means nothing"
    if writer.n_clipped:
        yield (
            f"{writer.n_clipped} samples were clipped at full scale: lower the input's level, or write floats, "
            "as in --subtype FLOAT"
        )
    announced_s, found_s = reader.info.duration_s, reader.n_read / reader.info.sample_rate_hz
    if announced_s is not None and found_s < 0.99 * announced_s:
        yield f"the input ends at {found_s:.2f} s, its header suggests {announced_s:.2f} s: it may be truncated"
    if writer.info.container == "MP3":
        yield "MP3 is written: players that ignore its gapless tag will shift and pad it"
