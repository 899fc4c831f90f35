"""A server that speaks Triton's own gRPC service and serves a model repository with sequences, in this process.

What it does is what Triton's sources say of models with a sequence batcher and implicit state (core/src/
sequence_batch_scheduler.cc, onnxruntime_backend): configurations are read with Triton's own protobuf schema; a request
with the START flag begins from `initial_state`; each state's output is kept for its input; one without a known sequence
is refused in the same words. It joins no requests and checks no more than the sound needs.
"""
# ruff: noqa: N802 - the service's names

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

START, END = "sequence_start", "sequence_end"


def read_config(folder: Path) -> Any:
    """A model's config.pbtxt in Triton's own schema; an unknown or ill-typed field raises."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


class TritonServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The models of a repository, and the states of their sequences."""

    def __init__(self, repository: Path) -> None:
        self.configs = {folder.name: read_config(folder) for folder in sorted(repository.iterdir())}
        self._folder, self._sessions = repository, {}
        self.states: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        self.requests: list[tuple[int, bool, bool]] = []  # sequence, start, end
        self.delay_s = 0.0
        self.ready, self.damaged = True, False
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None
        self.port = 0

    def start(self) -> None:
        """Listen: at any port, or at the one that it had."""
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        """Die: no connection is left, nor any state."""
        self._server.stop(grace=None).wait()
        self.states.clear()

    # The service

    def ServerReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        entry = service_pb2.RepositoryIndexResponse.ModelIndex
        broken = entry(name="broken", version="1", state="UNAVAILABLE", reason="it did not load")
        return service_pb2.RepositoryIndexResponse(
            models=[broken, *(entry(name=name, version="1", state="READY") for name in self.configs)]
        )

    def ModelConfig(self, request: Any, context: Any) -> Any:
        self._require(request.name, context)
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    def ModelInfer(self, request: Any, context: Any) -> Any:
        config = self._require(request.model_name, context)
        asked = request.parameters
        sequence = asked["sequence_id"].int64_param if "sequence_id" in asked else 0
        start, end = (asked[flag].bool_param if flag in asked else False for flag in (START, END))
        self.requests.append((sequence, start, end))
        time.sleep(self.delay_s)
        where = f"inference request for sequence {sequence} to model '{config.name}'"
        if not sequence:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{where} must specify a non-zero correlation ID")
        (tensor,), (raw,) = request.inputs, request.raw_input_contents
        (wave,) = config.input
        if (tensor.name, list(tensor.shape), tensor.datatype) != (wave.name, [1, *wave.dims], "FP32"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected shape for input '{tensor.name}'")
        key = (config.name, sequence)
        with self._lock:
            if start:
                zeros = [(state, state.initial_state[0]) for state in config.sequence_batching.state]
                assert all(initial.zero_data for _, initial in zeros)
                self.states[key] = {s.input_name: np.zeros([1, *i.dims], np.float32) for s, i in zeros}
            if key not in self.states:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"{where} must specify the START flag on the first request of the sequence",
                )
            feeds = {wave.name: np.frombuffer(raw, np.float32).reshape(1, -1), **self.states[key]}
            session = self._session(config.name)
            names = [output.name for output in session.get_outputs()]
            results = dict(zip(names, session.run(names, feeds), strict=True))
            self.states[key] = {s.input_name: results[s.output_name] for s in config.sequence_batching.state}
            if end:
                del self.states[key]
        (output,) = config.output
        found = results[output.name][:, :-1] if self.damaged else results[output.name]
        given = service_pb2.ModelInferResponse(model_name=config.name, raw_output_contents=[found.tobytes()])
        given.outputs.add(name=output.name, datatype="FP32", shape=found.shape)
        return given

    def _require(self, name: str, context: Any) -> Any:
        if name not in self.configs:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return self.configs[name]

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            file = self._folder / name / "1" / self.configs[name].default_model_filename
            self._sessions[name] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return self._sessions[name]


@contextmanager
def triton_server(repository: Path) -> Iterator[TritonServer]:
    """A server of this repository that listens while the block runs."""
    server = TritonServer(repository)
    server.start()
    try:
        yield server
    finally:
        server.stop()
