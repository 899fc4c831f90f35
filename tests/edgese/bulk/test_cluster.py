"""Bulk enhancement on a Ray cluster of several processes on this machine, one of whose nodes is killed meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgese.enhance.jobs import EnhanceOptions
from edgese.errors import install_command
from export.bundle import Bundle

from ..helpers.command_line import ROOT, edgese, one_error, parsed
from ..helpers.data_folders import SpeechLike

pytest.importorskip("ray", reason="the [ray] extra is not installed")

from edgese.bulk.cluster import ClusterError, Result, enhance_items, ray_cluster
from edgese.bulk.places import Item, list_items

pytestmark = [
    pytest.mark.slow,  # Ray starts a dozen processes
    # Ray's own: sockets and files that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

MOST_S = 200.0  # for all files: a cluster that hangs is stopped, and the test fails
OPTIONS = EnhanceOptions(subtype="FLOAT")
PIECE_S = 1.0
LONG = "long.wav"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without cores and two nodes of one core; `nodes.kill()` kills one of these as a power cut would."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    victim = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    cluster.kill = lambda: cluster.remove_node(victim, allow_graceful=False)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def recordings(tmp_path: Path, speech_like: SpeechLike) -> dict[str, np.ndarray]:
    """Sound by file name, in a folder `noisy`: short ones, a long one, and one that is no sound."""
    (tmp_path / "noisy").mkdir()
    sounds = {f"{index}.wav": speech_like(16_000, index) for index in range(8)} | {LONG: speech_like(48_000, 9)}
    for name, sound in sounds.items():
        soundfile.write(tmp_path / "noisy" / name, sound, 16_000, "FLOAT")
    (tmp_path / "noisy" / "broken.wav").write_bytes(b"RIFF")
    return sounds


def enhanced(items: list[Item], bundle: Bundle, address: str, kill: Any = None, stop_after: int = 0) -> list[Result]:
    """Results of a run in which something happens when two recordings, or `stop_after`, are done."""
    stop, n_done = threading.Event(), []

    def done(result: Result) -> None:
        n_done.append(result)
        if len(n_done) == 2 and kill is not None:
            kill()
        if len(n_done) == stop_after:
            stop.set()

    timer = threading.Timer(MOST_S, stop.set)
    timer.start()
    try:
        with ray_cluster(address) as cores:
            assert cores == 2
            return enhance_items(items, bundle, OPTIONS, cores=cores, done=done, stop=stop, piece_s=PIECE_S)
    finally:
        timer.cancel()


def test_a_lost_node_and_a_stopped_run_cost_no_recording(
    nodes: Any, recordings: dict[str, np.ndarray], halving_bundle: Path, tmp_path: Path
) -> None:
    """Stopped after three; then all, with a node killed in the middle: none is done twice, every output is whole."""
    bundle = Bundle.open(halving_bundle)
    items = list_items([str(tmp_path / "noisy")], str(tmp_path / "clean"), OPTIONS)
    assert len(items) == len(recordings) + 1
    first = enhanced(items, bundle, nodes.address, stop_after=3)
    assert len(first) < len(items)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "clean").glob("*.wav")}
    results = enhanced(items, bundle, nodes.address, kill=nodes.kill)
    assert len(nodes.list_all_nodes()) == 2  # the head and the one that was left
    assert [result.item for result in results] == items
    failed = [result.error for result in results if result.error]
    assert len(failed) == 1
    assert failed[0].startswith(f"{tmp_path}/noisy/broken.wav: ")
    assert {Path(result.item.target).name for result in results if result.was_there} == before.keys() != set()
    for name, sound in recordings.items():
        given = soundfile.read(tmp_path / "clean" / name, dtype="float32")[0]
        np.testing.assert_array_equal(given, 0.5 * sound)
        assert before.get(name) in (None, (tmp_path / "clean" / name).stat().st_mtime_ns)
    left = {path.name for path in (tmp_path / "clean").iterdir()}
    assert left == recordings.keys()  # no pieces, nothing half done


def test_the_command_starts_a_cluster_of_its_own(
    recordings: dict[str, np.ndarray], halving_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("noisy/0.wav\nnoisy/broken.wav\n")
    arguments = ["@list.txt", "-o", "clean", "-m", halving_bundle, "--subtype", "FLOAT", "--ray", "local"]
    done = edgese("enhance", *arguments, "--json", cwd=tmp_path, code=1)
    good, bad = parsed(done.stdout)["files"]
    assert (good["target"], good["duration_s"], good["was_there"]) == ("clean/0.wav", 1.0, False)
    assert bad["error"].startswith("noisy/broken.wav: ")
    assert done.stderr.decode().splitlines()[-1] == f"error: {bad['error']}"
    given = soundfile.read(tmp_path / "clean" / "0.wav", dtype="float32")[0]
    np.testing.assert_array_equal(given, 0.5 * recordings["0.wav"])


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, halving_bundle: Path) -> None:
    with pytest.raises(ClusterError, match="--ray auto: no cluster answers there"), ray_cluster("auto"):
        pass
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    done = edgese("enhance", "a.wav", "--ray", "local", cwd=tmp_path, code=2)
    assert "wanted -o with a folder or its URI" in " ".join(done.stderr.decode().split())


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    done = edgese("enhance", "a.wav", "-o", "out", "--ray", "local", cwd=tmp_path, code=1, path=[tmp_path / "hidden"])
    assert one_error(done).endswith(install_command("ray"))
