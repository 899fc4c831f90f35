"""All settings of edgese: frozen dataclasses with defaults, validated when made, read from TOML.

Letters used throughout the package: B batch (streams), T frames, F frequency bins, K bands, D channels,
N states per channel, L layers, H decay heads.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from edgese.errors import ConfigError
from edgese.networks import MODELS, ModelConfig, config_class, find_model, require, require_within
from edgese.networks import AudioConfig as AudioConfig  # stands there for boards, which have no TOML


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the training objective's terms; 0 leaves a term out. Terms: losses.py; choice: docs/training.md."""

    magnitude: float = 1.0
    complex: float = 0.3
    waveform: float = 0.5
    perceptual: float = 0.05
    phase: float = 0.0
    multi_resolution: float = 0.0
    band_level: float = 0.05
    distillation: float = 2.0  # where there is a teacher

    def __post_init__(self) -> None:
        weights = dataclasses.astuple(self)
        alone = dataclasses.astuple(self)[:-1]
        require(min(weights) >= 0 and max(alone) > 0, "loss: weights must not be negative and one must be positive")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Settings of the making of training examples; see mixing.py. Speeds are factors, as of a tape."""

    segment_s: float = 2.0
    snr_db: tuple[float, float] = (-5.0, 20.0)
    near_clean_probability: float = 0.04  # of an SNR out of the range below: a good recording must stay as it is
    near_clean_snr_db: tuple[float, float] = (25.0, 45.0)
    gain_db: tuple[float, float] = (-25.0, 5.0)
    offset: bool = True  # speech and noise start at random places
    speech_speed_probability: float = 0.25
    speech_speed: tuple[float, float] = (0.9, 1.1)
    speech_tilt_probability: float = 0.3  # a brighter or darker microphone
    reverb_probability: float = 0.2
    babble_probability: float = 0.2  # of a noise; what is neither babble nor synthetic is recorded
    synthetic_probability: float = 0.25
    another_noise_probability: float = 0.4  # of a second noise, and then of a third
    noise_speed_probability: float = 0.4
    noise_speed: tuple[float, float] = (0.7, 1.4)
    noise_reversal_probability: float = 0.2
    noise_colour_probability: float = 0.5
    noise_stages_probability: float = 0.2  # of a noise that comes, goes or passes by
    band_limit_probability: float = 0.03
    clipping_probability: float = 0.03
    remix_probability: float = 0.5  # recorded pairs only: speech of one with the noise of another
    share: tuple[tuple[str, float], ...] = dataclasses.field(
        default=(), metadata={"table": 0.0}
    )  # see docs/training.md
    made_rooms: int = 0  # rooms made by pyroomacoustics where the data has none
    validation_share: float = 0.05  # of speakers and of noise recordings, kept out of training

    def __post_init__(self) -> None:
        require(0 < self.segment_s <= 600, f"data.segment_s: found {self.segment_s}, wanted more than 0, at most 600")
        for name in ("snr_db", "near_clean_snr_db", "gain_db", "speech_speed", "noise_speed"):
            pair = getattr(self, name)
            require(len(pair) == 2 and pair[0] <= pair[1], f"data.{name}: found {pair}, wanted [low, high]")
        for name in ("speech_speed", "noise_speed"):
            low, high = getattr(self, name)
            require(low >= 0.25 and high <= 4, f"data.{name}: found {(low, high)}, wanted factors of 0.25 to 4")
        for field in dataclasses.fields(self):
            if field.name.endswith(("_probability", "_share")):
                value = getattr(self, field.name)
                require(0 <= value <= 1, f"data.{field.name}: found {value}, wanted [0, 1]")
        both = self.babble_probability + self.synthetic_probability
        require(both <= 1, f"data.babble_probability, synthetic_probability: found {both:g} together, wanted at most 1")
        for folder, share in self.share:
            require(0 <= share <= 1, f"data.share.{folder}: found {share}, wanted [0, 1]")
        require_within("data.made_rooms", self.made_rooms, 0, 100_000)


_AUDIO = AudioConfig()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run: all that changes its numbers."""

    audio: AudioConfig = _AUDIO
    model: ModelConfig = MODELS["small"]
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    seed: int = 0
    steps: int = 20_000
    batch: int = 8  # this and the rate: of `small`; RECIPES has those of other sizes
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    schedule: Literal["constant", "cosine"] = "constant"  # of the learning rate, after the warm-up
    fall: float = 0.3  # share of the run, at its end, in which a constant rate falls
    weight_decay: float = 0.01
    clip_norm: float = 5.0
    ema_decay: float = 0.999
    validate_every: int = 250
    checkpoint_every: int = 250
    workers: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"  # of products; scan and losses stay float32
    compile: bool = False  # torch.compile: fewer passes over memory, a minute of waiting first
    start_from: str = ""  # weights to begin with instead of random ones; of a run's trunk.pt, its whole state
    teacher: str = ""  # weights (.safetensors) of another network to learn from besides the clean speech

    def __post_init__(self) -> None:
        require(
            self.model.n_bins == self.audio.n_bins,
            f"model.band_widths: they cover {self.model.n_bins} bins, the signal has {self.audio.n_bins}",
        )
        for name in ("steps", "batch", "validate_every", "checkpoint_every"):
            require_within(name, getattr(self, name), 1, 1 << 16 if name == "batch" else 10**9)
        shortest_s = self.audio.latency_ms / 1000
        require(
            self.data.segment_s >= shortest_s,
            f"data.segment_s: found {self.data.segment_s}, wanted at least one window, {shortest_s} s",
        )
        if self.loss.perceptual > 0:  # P.862's frames and intervals, see perceptual.py
            require(
                self.audio.sample_rate_hz == 16_000,
                f"audio.sample_rate_hz: found {self.audio.sample_rate_hz}, wanted 16000 for loss.perceptual",
            )
            whole = int(self.data.segment_s * self.audio.sample_rate_hz) // self.audio.hop * self.audio.hop
            require(
                whole - self.audio.overlap >= 512 + 19 * 256,
                f"data.segment_s: found {self.data.segment_s}, wanted 0.4 s or more for loss.perceptual (or 0 of it)",
            )
        for name in ("learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, f"{name}: found {getattr(self, name)}, wanted a positive number")
        require(self.weight_decay >= 0, f"weight_decay: found {self.weight_decay}, wanted 0 or more")
        require_within("seed", self.seed, 0, (1 << 63) - 1)
        require(0 <= self.ema_decay < 1, f"ema_decay: found {self.ema_decay}, wanted [0, 1)")
        require_within("workers", self.workers, 0, 1024)
        require(
            self.schedule in ("constant", "cosine"),
            f"schedule: found {self.schedule!r}, wanted 'constant' or 'cosine'",
        )
        require(0 <= self.fall <= 1, f"fall: found {self.fall}, wanted [0, 1]")
        require(
            not self.teacher or self.loss.distillation > 0,
            "teacher: found one, and loss.distillation = 0: give that a weight, or no teacher",
        )
        require(
            self.precision in ("float32", "bfloat16"),
            f"precision: found {self.precision!r}, wanted 'float32' or 'bfloat16'",
        )


Config = TypeVar("Config")


def from_dict(kind: type[Config], values: Mapping[str, Any], where: str = "", base: Config | None = None) -> Config:
    """Config of a class from plain values (TOML, JSON, a checkpoint), nested tables included.

    Args:
        where: name of the table, for messages.
        base: what keys that are left out keep; the defaults of `kind` where it is None.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where.rstrip('.') or 'settings'}: found {reprlib.repr(values)}, wanted a table of settings"
        )
    if issubclass(kind, ModelConfig):
        kind, base, values = _network(kind, base, values, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    defaults = {name: _default(field) for name, field in fields.items()}
    made: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}{key}"
        if key not in fields:
            raise ConfigError(f"{path}: unknown setting; known here: {', '.join(sorted(fields))}")
        default = defaults[key]
        if "table" in fields[key].metadata:
            made[key] = _pairs(path, value, fields[key].metadata["table"])
        elif dataclasses.is_dataclass(default):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}: found {reprlib.repr(value)}, wanted a table of settings")
            made[key] = from_dict(type(default), value, f"{path}.", default)
        else:
            made[key] = _convert(path, value, default)
    if base is not None:
        made = {field: getattr(base, field) for field in fields} | made
    return kind(**made)


def _network(kind: Any, base: Any, values: Mapping[str, Any], where: str) -> tuple[Any, Any, Mapping[str, Any]]:
    """Class, base and values of a network's settings; keys left out take the base's, or the class's defaults."""
    values = dict(values)
    if "size" in values:
        base = find_model(values.pop("size"), f"{where}size")
        kind = type(base)
    own = base.name if base is not None else kind.name
    name = values.get("name", own)
    if name != own:
        kind, base = config_class(name, f"{where}name"), None
    return (config_class(name, f"{where}name") if kind is ModelConfig else kind), base, values


def to_dict(config: AudioConfig | ModelConfig | LossConfig | DataConfig | TrainConfig) -> dict[str, Any]:
    """Plain values of a config, for JSON; `from_dict` restores an equal one."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple) and value and isinstance(value[0], tuple):  # a table
            return dict(value)
        return list(value) if isinstance(value, tuple) else value

    result: dict[str, Any] = plain(dataclasses.asdict(config))
    return result


# What a size is trained with unless told otherwise, where that differs from the defaults: as its weights were made.
RECIPES: dict[str, dict[str, Any]] = {"base": {"batch": 32, "learning_rate": 1.5e-3, "clip_norm": 1.0}}


def read_train_config(path: Path | None, changes: Mapping[str, Any] | None = None) -> TrainConfig:
    """Settings of a training run from a TOML file.

    What neither gives is that of the network's size in `RECIPES`, else the default.

    Args:
        path: None: nothing is set but the changes.
        changes: plain values that come before the file's, such as `{"steps": 9, "model": {"size": "base"}}`.

    Raises:
        ConfigError: the file is missing, not TOML, or holds a setting that cannot be.
    """
    values = (_toml(path) if path else {}) | dict(changes or {})
    model = values.get("model", {})
    network = from_dict(ModelConfig, model, "model.", TrainConfig().model) if isinstance(model, Mapping) else None
    recipe = next((dict(RECIPES[name]) for name in RECIPES if MODELS[name] == network), {})
    return from_dict(TrainConfig, recipe | values)


def _toml(path: Path) -> dict[str, Any]:
    """Values of a TOML file."""
    try:
        import tomllib  # Python 3.11+
    except ModuleNotFoundError:
        import tomli as tomllib
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of thousands of digits; too deep
        raise ConfigError(f"{path}: not a TOML file ({error})") from error
    return values


def _default(field: dataclasses.Field[Any]) -> Any:
    assert field.default is not dataclasses.MISSING, "every setting has a default"
    return field.default


def _pairs(path: str, value: Any, default: Any) -> tuple[tuple[str, Any], ...]:
    """Entries of a table of settings whose names are free, in the order of the names; default: the type of each."""
    if value == []:  # an empty one, of to_dict
        return ()
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path}: found {reprlib.repr(value)}, wanted a table of settings")
    return tuple((str(key), _convert(f"{path}.{key}", item, default)) for key, item in sorted(value.items()))


def _convert(path: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_convert(f"{path}[{index}]", item, default[0]) for index, item in enumerate(value))
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 10**300 else math.inf
    if type(value) is not type(default):
        raise ConfigError(f"{path}: found {reprlib.repr(value)}, wanted {type(default).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: found {value}, wanted a finite number")
    return value
