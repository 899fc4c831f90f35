"""Bulk enhancement on Ray: a task for each recording, or each piece of a long one; a lost node costs its tasks only.

    with ray_cluster("auto") as cores:
        results = enhance_items(items, bundle, options, cores=cores, done=print)

What is there already is not done again: a run that was killed is taken up by starting it once more. edgese must be
installed on every node; the bundle goes there with the tasks. No cluster is started or ended here but one of this
machine's cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgese.bulk.pieces import PIECE_S, Joined, Pieces, cut, run, wants_pieces
from edgese.bulk.places import Item, deliver, fetch, is_there, local_path, remove_folder
from edgese.enhance.denoiser import Denoiser
from edgese.enhance.files import Summary, enhance_file
from edgese.enhance.jobs import EnhanceOptions, Job
from edgese.enhance.signal_path import Enhancer
from edgese.errors import EdgeseError, install_command
from edgese.graphs.bundles import open_verified
from export import ExportError
from export.bundle import Bundle
from export.files import sha256_of
from export.manifest import MANIFEST
from export.staging import temporary_folder
from runtimes.errors import RuntimeUnavailable

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise EdgeseError(f"ray is missing ({error}): {install_command('ray')}") from error

LOCAL, AUTO = (
    "local",
    "auto",
)  # addresses: a cluster of this machine's cores, made and ended here; the one that is running
_TRIES = 5  # of a task whose node or process is lost
_AHEAD = 3  # tasks that wait for each core, so that none is without work

_USER_ERRORS = (EdgeseError, ExportError, RuntimeUnavailable)


class ClusterError(EdgeseError):
    """A cluster that cannot be reached, or does not do its work."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an item: enhanced, left as it was there, or the reason why not."""

    item: Item
    summary: Summary | None = None
    error: str | None = None

    @property
    def was_there(self) -> bool:
        return self.summary is None and self.error is None


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[int]:
    """A connection to a cluster; gives the number of its cores.

    Raises:
        ClusterError: it cannot be reached.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "ignore_reinit_error": True}
    try:
        if address == LOCAL:
            ray.init(include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call, unused-ignore]
        cores = int(resources.get("CPU", 0))
    except (RayError, ConnectionError, ValueError, RuntimeError, OSError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ClusterError(
            f"--ray {address}: no cluster answers there ({first}); wanted `{LOCAL}`, `{AUTO}` where one runs, or its "
            "address, as ray://host:10001"
        ) from error
    try:
        yield cores
    finally:
        ray.shutdown()


def enhance_items(
    items: Sequence[Item],
    bundle: Bundle,
    options: EnhanceOptions,
    *,
    cores: int,
    done: Callable[[Result], None] = lambda result: None,
    stop: threading.Event | None = None,
    piece_s: float = PIECE_S,
) -> list[Result]:
    """Enhance recordings on the cluster that is connected; those that fail keep no other from being done.

    Args:
        done: called with each result, as it comes.
        stop: when set, nothing more is begun, and what runs is given up.
        piece_s: seconds of sound in a piece of a long recording.

    Returns:
        A result for each item that was done or failed, in their order; after a stop, not for all.
    """
    stop = stop or threading.Event()
    files = {name: bundle.file(name).read_bytes() for name in bundle.manifest["files"]}
    files[MANIFEST] = (bundle.path / MANIFEST).read_bytes()
    work = _Work(sha256_of(bundle.path / MANIFEST), options, piece_s)
    sent = [ray.put(files)]  # in a list: a task asks for it only if its process has not opened the bundle yet
    whole, piece, join = (_task(function) for function in (_enhance, _run_piece, _join))
    waiting, results = deque(range(len(items))), dict[int, Result]()
    running: dict[Any, int] = {}
    while (waiting or running) and not stop.is_set():
        while waiting and len(running) < max(1, cores) * _AHEAD:
            index = waiting.popleft()
            running[whole.remote(items[index], work, sent)] = index
        ready, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
        for reference in ready:
            index = running.pop(reference)
            found = _found(reference, items[index])
            if isinstance(found, Pieces):
                before = None
                for number in range(found.n_pieces):
                    before = piece.remote(found, number, work, sent, before)
                running[join.remote(items[index], found, work, sent, before)] = index
                continue
            results[index] = found
            done(found)
    for reference in running:
        ray.cancel(reference, force=True)
    return [results[index] for index in sorted(results)]


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is the same for all tasks."""

    digest: str  # of the bundle's manifest
    options: EnhanceOptions
    piece_s: float


def _task(function: Callable[..., Any]) -> Any:
    return ray.remote(num_cpus=1, max_retries=_TRIES)(function)


def _found(reference: Any, item: Item) -> Result | Pieces:
    """What a task gave; one that was lost with its node or process too often is a failure of its item."""
    try:
        found: Result | Pieces = ray.get(reference)
    except RayError as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()
        return Result(item, error=f"{item.source}: its task was lost {_TRIES + 1} times, or failed: {reason[-1]}")
    return found


def _enhance(item: Item, work: _Work, sent: list[Any]) -> Result | Pieces:
    """Enhance a recording, unless its output is there; a long one is only cut."""
    try:
        if not work.options.force and is_there(item.target):
            return Result(item)
        opened = _opened(work, sent)
        with temporary_folder() as folder:
            source = fetch(item.source, folder)
            try:
                if wants_pieces(opened.bundle, source, item.source, work.piece_s):
                    return cut(item, source, opened.bundle, work.options, work.piece_s)
                return _written(item, source, opened.denoiser(work), work, folder)
            except _USER_ERRORS as error:
                return Result(item, error=str(error).replace(str(source), item.source))
    except _USER_ERRORS as error:
        return Result(item, error=str(error))


def _run_piece(pieces: Pieces, index: int, work: _Work, sent: list[Any], before: str | None) -> str | None:
    """Enhance a piece after the one `before`, whose result this waits for: an error goes on to the end."""
    if before is not None:
        return before
    try:
        run(pieces, index, _opened(work, sent).bundle, work.options)
    except _USER_ERRORS as error:
        return str(error)
    return None


def _join(item: Item, pieces: Pieces, work: _Work, sent: list[Any], before: str | None) -> Result:
    """Write a recording whose pieces are done, then remove these."""
    if before is not None:
        return Result(item, error=f"{item.source}: {before}")
    try:
        with temporary_folder() as folder:
            source = fetch(item.source, folder)
            result = _written(item, source, Joined(pieces, _opened(work, sent).bundle), work, folder)
        remove_folder(pieces.folder)
    except _USER_ERRORS as error:
        return Result(item, error=str(error))
    return result


def _written(item: Item, source: Path, enhancer: Enhancer, work: _Work, folder: Path) -> Result:
    own = local_path(item.target)
    target = own or folder / "enhanced" / Path(item.target).name
    summary = enhance_file(Job(source, target, None, work.options), enhancer)
    if own is None:
        deliver(target, item.target)
    return Result(item, dataclasses.replace(summary, source=item.source, target=item.target))


class _Opened:
    """A bundle as it lies on this node for this process, and its denoiser once one was asked for."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgese-bundle-")
        for name, content in files.items():
            path = Path(self._folder.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.bundle = open_verified(Path(self._folder.name))
        self._denoiser: Denoiser | None = None

    def denoiser(self, work: _Work) -> Denoiser:
        options = work.options
        if self._denoiser is None:
            chosen: dict[str, Any] = {"block": options.block, "precision": options.precision, "pcs": options.pcs}
            self._denoiser = Denoiser(self.bundle, runtime=options.runtime, **chosen)
        return self._denoiser


_here: dict[tuple[str, str], _Opened] = {}  # of this process, by bundle and options


def _opened(work: _Work, sent: list[Any]) -> _Opened:
    key = (work.digest, repr(work.options))
    if key not in _here:
        _here.clear()
        _here[key] = _Opened(ray.get(sent[0]))
    return _here[key]
