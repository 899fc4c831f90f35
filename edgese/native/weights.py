"""Weights files of the C library (`NAME.edgese`): written from a `.safetensors` file with NumPy alone.

    bytes        content
    0 - 63       "edgese\\r\\n", version, number of tensors, bytes in all (64 bits), bytes of metadata, four of nothing,
                 SHA-256 of all that comes from 64 on
    64 - 127     sizes, as `_sizes` lists them, and the compression's exponent
    128 -        width of each band
                 a line for each tensor: name (64 bytes), type, axes, size of four axes, offset (64 bits)
                 metadata, a JSON object
                 tensors, each from a multiple of 64 on

All numbers are little-endian, whole ones of 32 bits where nothing is said. Tensors have the names and shapes that they
have in PyTorch. Products may be float16, or INT8 with a scale for each output (`NAME.scale`): what is multiplied stays
float32 in either, so that a file is smaller and read faster, and nothing else is rounded.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgese.config import AudioConfig, from_dict
from edgese.errors import CheckpointError, ConfigError
from edgese.model.pcs_constants import FLOOR, OUTPUT_GAIN, exponents, scale
from edgese.networks import MbsConfig, ModelConfig

SUFFIX = ".edgese"
STORED = ("fp32", "fp16", "int8")  # how a file may hold the products' weights

_MAGIC = b"edgese\r\n"
_VERSION = 1
_ALIGNED = 64
_TYPES = {"float32": 0, "float16": 1, "int8": 2}
_PREFIX = "network."
_HIDDEN = ("magnitude_decoder.hidden_weight", "phase_decoder.hidden_weight")  # (K, D, hidden)

Tensors = dict[str, NDArray[Any]]


class OtherNetworkError(CheckpointError):
    """The C library does not run such a network."""


def native_weights(source: Path, *, stored: str = "fp32", metadata: Mapping[str, str] | None = None) -> bytes:
    """Content of a weights file of the C library, from a `.safetensors` file of edgese.

    Args:
        stored: how the products' weights are held, one of `STORED`.
        metadata: what the file is to carry.

    Raises:
        CheckpointError: the file is missing or broken, or lacks a tensor.
        OtherNetworkError: it holds another network than MBS-Net, or one whose bands are mixed by attention.
    """
    audio, model, tensors = _read(source)
    held: Tensors = {}
    for name, tensor in tensors.items():
        held |= _stored(name, tensor, stored, model) if _is_product(name) else {name: tensor}
    constants = np.array([scale(audio), FLOOR, OUTPUT_GAIN], np.float32)
    held |= {"pcs.exponents": exponents(audio).astype(np.float32), "pcs.constants": constants}
    text = json.dumps({**(metadata or {}), "stored": stored}, sort_keys=True).encode()
    start = 128 + 4 * model.n_bands
    offset = start + 96 * len(held) + len(text)
    table, data = b"", b""
    for name, tensor in held.items():
        offset += -offset % _ALIGNED
        shape = (*tensor.shape, 0, 0, 0, 0)[:4]
        table += struct.pack("<64s6IQ", name.encode(), _TYPES[str(tensor.dtype)], tensor.ndim, *shape, offset)
        offset += tensor.nbytes
    place = start + len(table) + len(text)
    chunks = []
    for tensor in held.values():
        chunks += [bytes(-place % _ALIGNED), tensor.tobytes()]
        place += sum(map(len, chunks[-2:]))
    data = b"".join(chunks)
    sizes = struct.pack("<14If4x", *_sizes(audio, model), model.compression)
    body = sizes + struct.pack(f"<{model.n_bands}I", *model.band_widths) + table + text + data
    head = struct.pack("<8sIIQI4x", _MAGIC, _VERSION, len(held), _ALIGNED + len(body), len(text))
    return head + hashlib.sha256(body).digest() + body


def _sizes(audio: AudioConfig, model: MbsConfig) -> Iterator[int]:
    by_head = model.decay_heads > 0
    yield from (audio.sample_rate_hz, audio.n_fft, audio.hop, model.n_bands, model.channels, model.inner, model.states)
    yield model.decay_heads or model.inner
    yield 0 if by_head else model.dt_rank
    yield 1 if by_head else model.states  # rows of decay rates
    yield from (model.conv_width, model.layers, model.layers if model.fusion == "each" else 1, model.decoder_hidden)


def _is_product(name: str) -> bool:
    """True for the weights of the products with a band's or a block's vector; the mixing of bands stays float32."""
    ends = ("proj.weight", "channels.weight", "head.weight", "decoder.weight")
    return name.endswith(ends) or name in ("split.weight", *_HIDDEN)


def _stored(name: str, tensor: NDArray[np.float32], stored: str, model: MbsConfig) -> Tensors:
    if stored == "fp32":
        return {name: tensor}
    if stored == "fp16":
        return {name: tensor.astype(np.float16)}
    largest = np.abs(tensor).max(axis=1 if name in ("split.weight", *_HIDDEN) else -1)  # a sum's axis
    if name == "split.weight":  # (F, 3, D): a band's sum goes over its bins too
        starts = np.cumsum((0, *model.band_widths[:-1]))
        largest = np.maximum.reduceat(largest, starts, axis=0)
    steps = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    if name == "split.weight":
        wide = np.repeat(steps, model.band_widths, axis=0)[:, None]
    else:
        wide = steps[:, None] if name in _HIDDEN else steps[..., None]
    rounded = np.clip(np.rint(tensor / wide), -127, 127).astype(np.int8)
    return {name: rounded, f"{name}.scale": steps}


def _read(source: Path) -> tuple[AudioConfig, MbsConfig, Tensors]:
    """Settings and float32 tensors of a `.safetensors` file (8 bytes of length, a JSON header, the data)."""
    try:
        content = source.read_bytes()
        (length,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + length])
        settings = json.loads(header.pop("__metadata__")["edgese"])
        audio = from_dict(AudioConfig, settings["audio"])
        model = from_dict(ModelConfig, settings["model"])
        data = memoryview(content)[8 + length :]
        tensors = {
            name.removeprefix(_PREFIX): _tensor(entry, data) for name, entry in header.items() if name[:8] == _PREFIX
        }
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, ConfigError) as error:
        raise CheckpointError(f"{source}: not a weights file of edgese ({type(error).__name__}: {error})") from error
    if not isinstance(model, MbsConfig):
        raise OtherNetworkError(f"{source}: holds {model.name}; the C library runs mbs-net, choose another runtime")
    if model.fusion == "attention":
        raise OtherNetworkError(
            f"{source}: its bands are mixed by attention, which the C library does not run; choose another runtime"
        )
    return audio, model, tensors


def _tensor(entry: Mapping[str, Any], data: memoryview) -> NDArray[np.float32]:
    if entry["dtype"] != "F32":
        raise ValueError(f"found {entry['dtype']}, wanted F32")
    begin, end = entry["data_offsets"]
    shape = tuple(map(int, entry["shape"]))
    if end - begin != 4 * math.prod(shape):
        raise ValueError(f"found {end - begin} bytes for the shape {shape}")
    return np.frombuffer(data[begin:end], "<f4").reshape(shape)
