"""A bundle's graphs as models in a repository of NVIDIA Triton Inference Server, the states kept by the server.

    REPOSITORY/mbs-net-base.fp32.block1/config.pbtxt     derived from the manifest
    REPOSITORY/mbs-net-base.fp32.block1/1/model.onnx     the bundle's graph, unchanged, and its weights beside it

A stream of sound is a sequence of requests. Its states are Triton's implicit states: each `..._next` output is kept and
fed to its input with the next request of the sequence. The server itself sets them to `initial_state`, zeros, when a
request carries the START flag (`UpdateImplicitState` in core/src/sequence_batch_scheduler.cc), so the graph takes no
control inputs, which both core and backends leave optional. Requests of different sequences are joined to one call by
the strategy `oldest`, whose queue waits for a part of a hop at most.

There is no `model_warmup`: its requests belong to no sequence, and a backend that then stores a state gets an error, on
which the model is not loaded (`TRITONBACKEND_StateNew` in core/src/backend_model.cc). The client warms up instead.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgese.errors import OutputError
from edgese.graphs.audio_facts import audio_facts
from edgese.graphs.bundles import audio_config, is_trained
from edgese.graphs.engines import TENSORRT, is_for
from edgese.graphs.opening import ENGINE_STREAMS, engine_folder, wanted_metadata
from edgese.graphs.precision import Precision
from edgese.graphs.segments import Segments
from edgese.triton.serving import Backend, Device, Serving
from export import ExportError
from export.bundle import Bundle, Graph
from export.staging import StagedFolder
from runtimes.engine_sidecar import EngineSidecar
from runtimes.tensor_spec import TensorSpec

CONFIG = "config.pbtxt"
PREFIX = "edgese."  # of the parameters by which a client knows our models, and what they take
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}
_IDLE_S = 30  # a sequence without requests is forgotten after this


@dataclasses.dataclass(frozen=True)
class Name:
    """A bare word of the protobuf text format: an enum's value."""

    text: str


def model_name(bundle: Bundle, graph: Graph, serving: Serving) -> str:
    """Name of a graph's model: `mbs-net-base.fp32.block1`; `.pcs` and `.trt` where it is so."""
    trt = "trt" if serving.backend == Backend.TENSORRT else ""
    return ".".join(filter(None, [bundle.file_name, graph.precision, graph.variant, f"block{graph.block}", trt]))


def choose_graphs(bundle: Bundle, precisions: Sequence[str], blocks: Sequence[int], *, pcs: bool) -> list[Graph]:
    """Graphs of a bundle to serve: those asked for, or all.

    Raises:
        ExportError: there are none such, or the network looks ahead and so has no streams.
    """
    if Segments.of(bundle.manifest) is not None:
        raise ExportError(f"{bundle.path}: its network looks ahead and has no streams; Triton is given streams only")
    found = [
        graph
        for graph in bundle.graphs
        if graph.precision in (precisions or [graph.precision])
        and graph.block in (blocks or [graph.block])
        and graph.variant == ("pcs" if pcs else "")
    ]
    if not found:
        offered = ", ".join(
            sorted({f"{graph.precision} {graph.variant} block {graph.block}" for graph in bundle.graphs})
        )
        raise ExportError(f"{bundle.path}: found none of the graphs asked for; it has {offered}")
    return found


def write_repository(
    bundle: Bundle,
    folder: Path,
    graphs: Sequence[Graph],
    serving: Serving,
    *,
    replace: bool = False,
    on_message: Callable[[str], None],
) -> list[Path]:
    """Folders of the models in `folder`, each there whole or not at all; others that lie there stay.

    Args:
        replace: models of ours that lie there under these names may be replaced.
        on_message: gets one line before a TensorRT engine is built.

    Raises:
        OutputError: a name is taken, or the place cannot be written to.
        ExportError: no TensorRT here that a server could load engines of, or a graph it cannot take.
    """
    if serving.backend == Backend.TENSORRT and (serving.streams > ENGINE_STREAMS or serving.device == Device.CPU):
        raise OutputError(f"TensorRT: takes {ENGINE_STREAMS} streams in a call at most, on a GPU: see to the options")
    written = []
    for graph in graphs:
        target = folder / model_name(bundle, graph, serving)
        _require_free(target, replace)
        config = config_text(bundle, graph, serving)
        plan = _engine(bundle, graph, on_message) if serving.backend == Backend.TENSORRT else None
        try:
            with StagedFolder(folder) as staged:
                version = staged.path / "1"
                version.mkdir()
                (staged.path / CONFIG).write_text(config, encoding="utf-8")
                if plan is not None:
                    shutil.copyfile(plan, version / "model.plan")
                else:
                    shutil.copyfile(bundle.graph_file(graph), version / "model.onnx")
                    for weights in bundle.weight_files(graph):
                        (version / weights).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(bundle.file(weights), version / weights)
                staged.publish(target, replace=replace)
        except OSError as error:
            raise OutputError(
                f"{target}: cannot be written ({error.strerror or error}); choose another place"
            ) from error
        written.append(target)
    return written


def config_text(bundle: Bundle, graph: Graph, serving: Serving) -> str:
    """The model's config.pbtxt: what the server is told of a graph, all of it from the manifest.

    Raises:
        OutputError: the delay leaves nothing of the hop.
        ExportError: a state whose size the manifest leaves open.
    """
    hop_ms = 1000 * audio_config(bundle).hop / audio_config(bundle).sample_rate_hz
    if not 0 <= serving.delay_ms < hop_ms:
        raise OutputError(
            f"--delay-ms: found {serving.delay_ms:g}, wanted 0 or more, and less than a hop's {hop_ms:g} ms"
        )
    inputs = {spec.name: spec for spec in graph.inputs}
    outputs = [spec for spec in graph.outputs if spec.name not in graph.states.values()]
    config: dict[str, Any] = {
        "name": model_name(bundle, graph, serving),
        **_BACKENDS[serving.backend],
        "max_batch_size": serving.streams,
        "input": [_tensor(spec) for spec in graph.inputs if spec.name not in graph.states],
        "output": [_tensor(spec) for spec in outputs],
        "sequence_batching": {
            "max_sequence_idle_microseconds": 1_000_000 * _IDLE_S,
            "oldest": {
                "max_candidate_sequences": serving.streams,
                "max_queue_delay_microseconds": round(1000 * serving.delay_ms * graph.block),
            },
            "state": [_state(inputs[state], successor) for state, successor in graph.states.items()],
        },
        "instance_group": [{"count": serving.instances, "kind": Name(f"KIND_{serving.device.name}")}],
        "parameters": [
            {"key": k, "value": {"string_value": v}} for k, v in _parameters(bundle, graph, serving).items()
        ],
    }
    if (
        graph.precision in [precision.value for precision in Precision if precision.quantized]
        and serving.backend == Backend.ONNXRUNTIME
    ):
        # Its fused product saturates on CPUs without VNNI, and Triton has no way to session.x64quantprecision.
        config["optimization"] = {"graph": {"level": -1}}
    return "".join(_lines(config))


_BACKENDS: Mapping[Backend, Mapping[str, str]] = {
    Backend.ONNXRUNTIME: {
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
    },
    Backend.TENSORRT: {"platform": "tensorrt_plan", "backend": "tensorrt", "default_model_filename": "model.plan"},
}


def _parameters(bundle: Bundle, graph: Graph, serving: Serving) -> dict[str, str]:
    """What a client must know of the sound, and which graph of which weights this is; threads of ONNX Runtime."""
    audio = audio_config(bundle)
    facts = {
        "audio": json.dumps({"sample_rate_hz": audio.sample_rate_hz, "n_fft": audio.n_fft, "hop": audio.hop}),
        "overlap_samples": str(audio_facts(bundle).overlap_samples),
        "trained": json.dumps(is_trained(bundle)),
    }
    ours = wanted_metadata(bundle, graph) | {f"{PREFIX}{key}": value for key, value in facts.items()}
    one_thread = serving.backend == Backend.ONNXRUNTIME and serving.device == Device.CPU
    return ours | ({"intra_op_thread_count": "1"} if one_thread else {})


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """Name, type and sizes of a tensor without its first axis, the streams: the batch is Triton's."""
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape[1:]]
    if spec.dtype not in _TYPES or isinstance(spec.shape[0], int) or not sizes:
        raise ExportError(f"{spec}: wanted a first axis for the streams, and one of {', '.join(_TYPES)}")
    return {"name": spec.name, "data_type": Name(_TYPES[spec.dtype]), "dims": sizes}


def _state(spec: TensorSpec, successor: str) -> dict[str, Any]:
    tensor = _tensor(spec)
    if -1 in tensor["dims"]:
        raise ExportError(f"state {spec}: wanted its sizes given, but for the streams")
    name, sizes = tensor.pop("name"), tensor["dims"]
    if math.prod(sizes) == 0:
        raise ExportError(f"state {spec}: found it empty, wanted none such")
    zeros = {"name": f"{name} zero", **tensor, "zero_data": True}
    return {"input_name": name, "output_name": successor, **tensor, "initial_state": [zeros]}


def _lines(fields: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Lines of the protobuf text format: a mapping is a message, a list of them a repeated field."""
    for key, value in fields.items():
        messages = value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]
        for one in messages:
            if isinstance(one, Mapping):
                yield f"{indent}{key} {{\n"
                yield from _lines(one, f"{indent}  ")
                yield f"{indent}}}\n"
            else:
                yield f"{indent}{key}: {_scalar(one)}\n"


def _scalar(value: Any) -> str:
    """A value as the text format has it; its strings take JSON's escapes of ASCII, and bytes above as UTF-8."""
    if isinstance(value, Name):
        return value.text
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def _engine(bundle: Bundle, graph: Graph, on_message: Callable[[str], None]) -> Path:
    """A plan that Triton's TensorRT backend loads, built here: a server needs this TensorRT and this GPU."""
    if not is_for(graph, TENSORRT):
        raise ExportError(f"{graph.file}: TensorRT takes symmetric int8 only: leave out --precision {graph.precision}")
    plan = engine_folder(bundle).engine(bundle, graph, on_message)
    library = EngineSidecar.read(plan).library
    if library != TENSORRT:
        raise ExportError(
            f"{plan}: built by {library}, which Triton cannot load; build it where its TensorRT is installed"
        )
    return plan


def _require_free(target: Path, replace: bool) -> None:
    """Refuse a name that is taken, but for a model of ours that may be replaced."""
    if not target.exists():
        return
    if not replace:
        raise OutputError(f"{target}: exists already; replace it with --force, or choose another place")
    config = target / CONFIG
    if not config.is_file() or f'"{PREFIX}bundle"' not in config.read_text(encoding="utf-8", errors="replace"):
        raise OutputError(f"{target}: exists and is no model that edgese wrote; it is not replaced, move it away")
