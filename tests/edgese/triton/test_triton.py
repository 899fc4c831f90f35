"""Bundles as model repositories of Triton, and streams on a server of Triton's protocol, its faults included."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgese.enhance.denoiser import Denoiser
from edgese.errors import ConfigError, OutputError, install_command
from edgese.graphs.engines import EngineFolder
from edgese.graphs.precision import Precision
from edgese.triton.repository import choose_graphs, config_text, write_repository
from edgese.triton.serving import Backend, Device, Serving
from export import ExportError
from export.bundle import Bundle, Graph

from ..helpers.command_line import edgese, one_error, parsed
from ..helpers.data_folders import SpeechLike
from ..helpers.identity_bundle import LAG

pytest.importorskip("tritonclient.grpc", reason="the [triton] extra is not installed")

from edgese.triton.client import (
    DeadlineMissed,
    Sequence,
    SequenceLost,
    Server,
    ServerError,
    TritonDenoiser,
    TritonStream,
)

from ..helpers.triton_server import TritonServer, read_config, triton_server

HOP = 128
LATE = 511


def lay_out(bundle: Bundle, folder: Path, serving: Serving | None = None, **options: bool) -> list[Path]:
    graphs = choose_graphs(bundle, [], [], pcs=False)
    return write_repository(bundle, folder, graphs, serving or Serving(), on_message=pytest.fail, **options)


@pytest.fixture(scope="module")
def repository(halving_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of a bundle that delays by 384 samples and halves."""
    folder = tmp_path_factory.mktemp("repository")
    lay_out(Bundle.open(halving_bundle), folder)
    return folder


@pytest.fixture
def server(repository: Path) -> Iterator[TritonServer]:
    with triton_server(repository) as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[Server]:
    with Server(f"localhost:{server.port}") as connected:
        yield connected


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, 1_000).astype(np.float32)


# The repository


def graph_of(bundle: Bundle, config: object) -> Graph:
    return next(graph for graph in bundle.graphs if f".{graph.precision}.block{graph.block}" in config.name)


@pytest.mark.parametrize("backend", Backend)
def test_a_configuration_is_in_tritons_schema_and_says_what_the_graph_is(backend: Backend, tmp_path: Path) -> None:
    """Of the shipped bundle, for each of its graphs: names, types, sizes without the batch, states and their zeros."""
    from edgese.graphs.bundles import shipped_bundle

    bundle = Bundle.open(shipped_bundle("small"))
    for graph in bundle.graphs:
        (tmp_path / "config.pbtxt").write_text(config_text(bundle, graph, Serving(backend, streams=32, instances=3)))
        config = read_config(tmp_path)
        assert (config.backend, config.max_batch_size) == (backend.value, 32)
        specs = {spec.name: list(spec.shape[1:]) for spec in (*graph.inputs, *graph.outputs)}
        states = config.sequence_batching.state
        tensors = {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)}
        of_states = {name: list(one.dims) for one in states for name in (one.input_name, one.output_name)}
        assert tensors | of_states == specs
        assert {one.input_name: one.output_name for one in states} == graph.states
        assert {*tensors} == {"wave", "enhanced"}
        for one in states:
            (initial,) = one.initial_state
            assert (initial.zero_data, list(initial.dims), initial.data_type) == (True, list(one.dims), one.data_type)
            assert initial.name
        batcher = config.sequence_batching.oldest
        assert batcher.max_candidate_sequences == 32
        assert 0 < batcher.max_queue_delay_microseconds < 8_000 * graph.block
        assert config.instance_group[0].count == 3
        assert not config.model_warmup
        int8_on_ort = graph.precision == "int8" and backend == Backend.ONNXRUNTIME
        assert config.optimization.graph.level == (-1 if int8_on_ort else 0)


def test_a_field_that_triton_does_not_know_would_be_seen(repository: Path, tmp_path: Path) -> None:
    """The control of the schema."""
    config = next(repository.iterdir()) / "config.pbtxt"
    (tmp_path / "config.pbtxt").write_text(config.read_text().replace("max_batch_size", "most_batches"))
    with pytest.raises(Exception, match="most_batches"):
        read_config(tmp_path)


def test_where_it_runs_is_told(halving_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(halving_bundle)
    (folder, _) = lay_out(bundle, tmp_path, Serving(device=Device.CPU))
    config = read_config(folder)
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    with pytest.raises(OutputError, match="less than a hop's 8 ms"):
        lay_out(bundle, tmp_path / "late", Serving(delay_ms=8))
    with pytest.raises(OutputError, match="256 streams"):
        lay_out(bundle, tmp_path / "many", Serving(Backend.TENSORRT, streams=257))


def test_models_of_others_are_never_replaced(halving_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(halving_bundle)
    first, *_ = lay_out(bundle, tmp_path)
    with pytest.raises(OutputError, match="exists already; replace it with --force"):
        lay_out(bundle, tmp_path)
    lay_out(bundle, tmp_path, replace=True)
    (first / "config.pbtxt").write_text('name: "identity.fp32.block1"\nbackend: "python"\n')
    with pytest.raises(OutputError, match="no model that edgese wrote"):
        lay_out(bundle, tmp_path, replace=True)


def test_engines_are_laid_out_if_triton_can_load_them(
    halving_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is a stand-in: no machine of these tests builds one for a server."""
    plan = tmp_path / "block.engine"
    plan.write_bytes(b"plan")
    sidecar = {
        "schema_version": 1,
        "key": {"tensorrt": "tensorrt 10.16.0", "device": "SM90"},
        "engine": {"sha256": "", "bytes": 4},
        "graph": {"inputs": [], "outputs": [], "metadata": {}},
    }
    monkeypatch.setattr(EngineFolder, "engine", lambda *args: plan)
    plan.with_name("block.engine.json").write_text(json.dumps(sidecar))
    folder, _ = lay_out(Bundle.open(halving_bundle), tmp_path / "models", Serving(Backend.TENSORRT))
    assert folder.name == "identity.fp32.block1.trt"
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"
    assert read_config(folder).platform == "tensorrt_plan"
    sidecar["key"]["tensorrt"] = "tensorrt_rtx 1.7"
    plan.with_name("block.engine.json").write_text(json.dumps(sidecar))
    with pytest.raises(ExportError, match="built by tensorrt_rtx, which Triton cannot load"):
        lay_out(Bundle.open(halving_bundle), tmp_path / "rtx", Serving(Backend.TENSORRT))


def test_a_network_that_looks_ahead_is_refused(identity_bundle: Path) -> None:
    bundle = Bundle.open(identity_bundle)
    segments = {"causal": False, "segments": {"samples": 4096, "overlap_samples": 512, "edge_samples": 64}}
    ahead = Bundle(bundle.path, {**bundle.manifest, **segments}, bundle.graphs)
    with pytest.raises(ExportError, match="looks ahead"):
        choose_graphs(ahead, [], [], pcs=False)
    with pytest.raises(ExportError, match="it has fp32"):
        choose_graphs(bundle, ["fp16"], [], pcs=False)


# Streams


def test_a_stream_gives_what_the_graph_gives_however_it_is_cut(client: Server, noise: np.ndarray) -> None:
    """The graph delays by 384 samples and halves; over one connection, from zero states, cut anyhow."""
    stream = TritonStream(client, client.choose(block=1))
    assert stream.latency_samples == LATE == LAG + HOP - 1
    wanted = np.concatenate([np.zeros(LATE, np.float32), 0.5 * noise])
    for cuts in ([1, 2, 300, 301, 900], [500]):
        blocks = np.split(noise, cuts)
        pieces = [stream.process(block) for block in blocks]
        assert list(map(len, pieces)) == list(map(len, blocks))
        np.testing.assert_array_equal(np.concatenate([*pieces, stream.flush()]), wanted)


def test_reset_forgets_what_was_heard(client: Server, server: TritonServer, noise: np.ndarray) -> None:
    stream = TritonStream(client, client.choose(block=1))
    stream.process(noise)
    stream.reset()
    assert not server.states  # the place on the server is free again
    np.testing.assert_array_equal(stream.process(noise[:LATE]), np.zeros(LATE))


def test_streams_beside_each_other_do_not_mix(client: Server, noise: np.ndarray) -> None:
    one, other = (TritonStream(client, client.choose(block=1)) for _ in range(2))
    heard = [(one.process(noise[at : at + HOP]), other.process(-noise[at : at + HOP])) for at in range(0, 896, HOP)]
    ones, others = map(np.concatenate, zip(*heard, strict=True))
    np.testing.assert_array_equal(ones, -others)
    np.testing.assert_array_equal(ones[LATE:], 0.5 * noise[: 896 - LATE])


def test_every_sequence_starts_once_and_ends(client: Server, server: TritonServer, noise: np.ndarray) -> None:
    TritonStream(client, client.choose(block=1)).flush()
    sequences = {sequence for sequence, _, _ in server.requests}
    for sequence in sequences:
        flags = [(start, end) for one, start, end in server.requests if one == sequence]
        assert [start for start, _ in flags] == [True] + [False] * (len(flags) - 1)
        assert flags[-1][1]
    assert len(sequences) == 2  # the one that warms up, and the sound's
    assert 0 not in sequences


def test_recordings_are_enhanced_as_here(server: TritonServer, halving_bundle: Path, speech_like: SpeechLike) -> None:
    sound = np.stack([speech_like(5_000, seed) for seed in range(2)], axis=1)
    with TritonDenoiser(f"localhost:{server.port}") as there, Denoiser(Bundle.open(halving_bundle)) as here:
        given, wanted = (list(denoiser.blocks([sound[:300], sound[300:]], 2)) for denoiser in (there, here))
    np.testing.assert_array_equal(np.concatenate(given)[:5_000], np.concatenate(wanted)[:5_000])
    assert not server.states


@pytest.mark.slow
def test_the_network_on_the_server_gives_what_it_gives_here(
    bundle: Bundle, tmp_path: Path, speech_like: SpeechLike
) -> None:
    """The tiny network, with states that matter, in both its blocks."""
    lay_out(bundle, tmp_path)
    sound = speech_like(4_000)[:, None]
    with triton_server(tmp_path) as server:
        for block in {graph.block for graph in bundle.graphs}:
            with (
                TritonDenoiser(f"localhost:{server.port}", block=block) as there,
                Denoiser(bundle, block=block) as here,
            ):
                given, wanted = (np.concatenate(list(one.blocks([sound], 1))) for one in (there, here))
            np.testing.assert_allclose(given[:4_000], wanted[:4_000], atol=1e-6)


# Faults


def test_a_server_that_restarts_in_the_middle_is_an_error_and_no_new_beginning(
    client: Server, server: TritonServer, noise: np.ndarray
) -> None:
    stream = TritonStream(client, client.choose(block=1))
    stream.process(noise)
    server.stop()
    with pytest.raises(ServerError, match="cannot be reached"):
        stream.process(noise)
    server.start()
    while True:  # gRPC waits a little before it connects again
        with pytest.raises(ServerError) as caught:
            stream.process(noise[:HOP])
        if isinstance(caught.value, SequenceLost):
            break
        assert "cannot be reached" in str(caught.value)
        time.sleep(0.05)
    stream.reset()
    np.testing.assert_array_equal(stream.process(noise)[LATE:], 0.5 * noise[:-LATE])


def test_a_sequence_that_the_server_forgot_is_lost_until_reset(
    client: Server, server: TritonServer, noise: np.ndarray
) -> None:
    stream = TritonStream(client, client.choose(block=1))
    stream.process(noise)
    server.states.clear()
    for _ in range(2):  # it stays lost
        with pytest.raises(SequenceLost, match="lost this stream: it was started anew, or got nothing for 30 s"):
            stream.process(noise[:HOP])
    stream.reset()
    np.testing.assert_array_equal(stream.process(noise)[LATE:], 0.5 * noise[:-LATE])


def test_a_missed_deadline_is_told_and_the_stream_may_go_on(
    client: Server, server: TritonServer, noise: np.ndarray
) -> None:
    """Without growing late: the samples of the call that failed are lost, those after it come when they should."""
    stream = TritonStream(client, client.choose(block=1), deadline_s=0.2)
    stream.process(noise[:HOP])
    server.delay_s = 0.6
    with pytest.raises(DeadlineMissed, match="no answer within 200 ms"):
        stream.process(noise[HOP : 2 * HOP])
    server.delay_s = 0.0
    time.sleep(1)  # the late one has been computed: the server takes requests of a sequence one after the other
    after = stream.process(noise[2 * HOP :])
    np.testing.assert_array_equal(after[LATE:], 0.5 * noise[2 * HOP : -LATE])


def test_what_the_server_lacks_is_told_with_what_it_has(client: Server) -> None:
    has = r"it has identity\.fp32\.block1, identity\.fp32\.block16: see to"
    for options in ({"bundle": "other"}, {"block": 3}, {"precision": Precision.FP16}, {"pcs": True}):
        with pytest.raises(ServerError, match=f"has no such model; {has}"):
            client.choose(**options)
    assert client.choose().graph.block == 16


def test_a_model_that_was_unloaded_meanwhile_is_unknown(client: Server, server: TritonServer) -> None:
    model = client.choose(block=1)
    del server.configs[model.name]
    with pytest.raises(ServerError, match="Request for unknown model"):
        Sequence(client, model, 5)(np.zeros((1, HOP), np.float32))


def test_an_answer_of_another_size_is_refused(client: Server, server: TritonServer) -> None:
    server.damaged = True
    with pytest.raises(ServerError, match=r"found float32 of \(1, 127\), wanted float32 of \(1, 128\)"):
        TritonStream(client, client.choose(block=1))


def test_a_damaged_configuration_and_a_server_that_is_not_ready(client: Server, server: TritonServer) -> None:
    config = next(iter(server.configs.values()))
    for key, value in {"edgese.block": "1000000000000", "edgese.audio": "{"}.items():
        config.parameters[key].string_value = value
        with pytest.raises(ServerError, match="its configuration is not as edgese writes it"):
            client.models()
    server.ready = False
    with pytest.raises(ServerError, match="not ready"):
        Server(client.address)


@pytest.mark.parametrize("address", ["", "http://host:8000", "host:port", "grpc://", "host:8001/path", "host:99999"])
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="wanted one such as localhost:8001"):
        Server(address)


# Commands


def test_commands_lay_out_and_enhance(halving_bundle: Path, tmp_path: Path, speech_like: SpeechLike) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    made = parsed(edgese("triton", halving_bundle, "--block", 16, "--json", cwd=folder).stdout)
    assert made == {"path": "models", "models": ["identity.fp32.block16"]}
    sound = np.round(speech_like(4_000) * 32768).astype(np.float32) / 32768
    soundfile.write(folder / "noisy.wav", sound, 16_000, "FLOAT")
    shutil.copy(folder / "noisy.wav", folder / "more.wav")
    with triton_server(folder / "models") as server:
        arguments = ["enhance", "noisy.wav", "more.wav", "-o", "out", "--server", f"localhost:{server.port}"]
        edgese(*arguments, cwd=folder)
    for name in ("noisy.wav", "more.wav"):
        np.testing.assert_array_equal(soundfile.read(folder / "out" / name, dtype="float32")[0], 0.5 * sound)
    assert "cannot be reached" in one_error(edgese(*arguments, "-f", cwd=folder, code=1))


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "noisy.wav", np.zeros(4_000), 16_000)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['tritonclient'] = None\n")
    done = edgese("enhance", "noisy.wav", "--server", "localhost:8001", cwd=tmp_path, code=1, path=[hidden])
    assert one_error(done).endswith(install_command("triton"))
