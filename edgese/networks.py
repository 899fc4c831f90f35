"""Registry of networks by name: settings, sizes and code of each, and registration of a network from outside.

    MODELS["small"]                                   # settings by the name that --model takes
    register("gru-mask", GruConfig, "my_network:GruMask", {"gru-mask": GruConfig()})

    [project.entry-points."edgese.networks"]          # in a package's pyproject.toml: no --plugin is needed
    my-network = "my_package.networks"

Settings say all that a weights file needs to be built again; PyTorch is loaded when a network is (model/registry.py).
What `--plugin` named reaches the processes that a command starts through an environment variable. It names code and
changes no numbers. They ask for it, and for installed packages, only where a name is not known otherwise. To add a
network of one's own: docs/networks.md.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import os
import reprlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from edgese.errors import ConfigError

ENTRY_POINTS = "edgese.networks"  # group of entry points that installed packages offer networks by
PLUGINS = "EDGESE_PLUGINS"  # JSON: the modules named to this process or its parents, and where they are looked for

logger = logging.getLogger(__name__)

# Widths in bins of the 30 bands over 257 bins (31.25 Hz a bin): fine where speech harmonics lie, wide above.
BAND_WIDTHS_257: tuple[int, ...] = (2, *(3,) * 10, *(8,) * 12, *(18,) * 6, 21)
BAND_WIDTHS_ORIGINAL: tuple[int, ...] = (2, *(3,) * 10, *(8,) * 12, *(16,) * 7, 17)  # 31 of them


MOST_BANDS = 1 << 12
MOST_BINS = (1 << 12) + 1  # of a frame
MOST_SIZE = 1 << 13  # of any one size of a network: channels, states, units; ten times what the largest known has
MOST_LAYERS = 1 << 8


def require(holds: bool, message: str) -> None:
    """Raise ConfigError with this message unless `holds`."""
    if not holds:
        raise ConfigError(message)


def require_within(name: str, value: int, least: int, most: int) -> None:
    """Raise ConfigError unless a setting lies in this range; it may come from a file that nobody has looked at."""
    fits = isinstance(value, int) and least <= value <= most
    require(fits, f"{name}: found {str(value)[:40]}, wanted {least} to {most}")


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """Sample rate, window and hop of the network's frames. All sound inside edgese is mono float32 in [-1, 1]."""

    sample_rate_hz: int = 16_000
    n_fft: int = 512
    hop: int = 128

    def __post_init__(self) -> None:
        require_within("sample_rate_hz", self.sample_rate_hz, 1000, 768_000)
        require_within("n_fft", self.n_fft, 4, 2 * (MOST_BINS - 1))
        require(self.n_fft % 4 == 0, f"n_fft: found {self.n_fft}, wanted a multiple of 4")
        fits = isinstance(self.hop, int) and 1 <= self.hop <= self.n_fft // 2 and self.n_fft % self.hop == 0
        require(fits, f"hop: found {self.hop}, wanted a divisor of n_fft = {self.n_fft}, at most half of it")

    @property
    def n_bins(self) -> int:
        """Frequency bins of one frame, F = n_fft // 2 + 1."""
        return self.n_fft // 2 + 1

    @property
    def overlap(self) -> int:
        """Samples that two neighbouring frames share; also the delay of the output behind the input."""
        return self.n_fft - self.hop

    @property
    def hop_ms(self) -> float:
        return 1000.0 * self.hop / self.sample_rate_hz

    @property
    def latency_samples(self) -> int:
        """Algorithmic latency: the overlap behind which the output runs and the hop that must first be gathered."""
        return self.overlap + self.hop

    @property
    def latency_ms(self) -> float:
        return 1000.0 * self.latency_samples / self.sample_rate_hz


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Settings that every network has; a network's own come on top, each with a default."""

    name: str = "mbs-net"  # under which the network is registered
    band_widths: tuple[int, ...] = BAND_WIDTHS_257
    compression: float = 0.3  # exponent of the magnitude the network sees, and its training objective compares

    def __post_init__(self) -> None:
        require_within("model.band_widths: bands", self.n_bands, 1, MOST_BANDS)
        require(all(width >= 1 for width in self.band_widths), "model.band_widths: every band needs at least one bin")
        require_within("model.band_widths: bins", self.n_bins, 1, MOST_BINS)
        require(0 < self.compression <= 1, f"model.compression: found {self.compression}, wanted (0, 1]")

    @property
    def n_bands(self) -> int:
        return len(self.band_widths)

    @property
    def n_bins(self) -> int:
        return sum(self.band_widths)

    def require_sizes(self, *names: str, least: int = 1) -> None:
        """Raise ConfigError for a size of the network that is too small, or larger than any can be."""
        for name in names:
            most = MOST_LAYERS if name == "layers" else MOST_SIZE
            require_within(f"model.{name}", getattr(self, name), least, most)


@dataclasses.dataclass(frozen=True)
class MbsConfig(ModelConfig):
    """Settings of MBS-Net; the defaults are its size `base`."""

    channels: int = 128  # D
    layers: int = 4  # L
    states: int = 12  # N
    dt_rank: int = 8  # rank of the step-size projection; unused where decay_heads is set
    decay_heads: int = 8  # 0: one decay per channel and state (Mamba); H > 0: one per head (Mamba-2)
    conv_width: int = 4
    expand: int = 1
    chunk: int = 32  # frames that the training scan keeps in memory at a time
    # bands are mixed with fixed weights after the last layer or each; after each, with weights that follow the sound
    fusion: Literal["once", "each", "attention"] = "each"
    decoder_hidden: int = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_sizes("channels", "layers", "states", "dt_rank", "conv_width", "expand", "chunk", "decoder_hidden")
        self.require_sizes("decay_heads", least=0)
        require(
            self.decay_heads == 0 or self.inner % self.decay_heads == 0,
            f"model.decay_heads: found {self.decay_heads}, wanted 0 or a divisor of {self.inner} inner channels",
        )
        require(
            self.fusion in ("once", "each", "attention"),
            f"model.fusion: found {self.fusion!r}, wanted 'once', 'each' or 'attention'",
        )
        require(
            self.fusion != "attention" or self.channels % 16 == 0,
            f"model.channels: found {self.channels}, wanted a multiple of 16 for fusion = 'attention'",
        )

    @property
    def inner(self) -> int:
        """Channels inside a Mamba block, expand * D."""
        return self.expand * self.channels


@dataclasses.dataclass(frozen=True)
class DbTransformConfig(ModelConfig):
    """Settings of DB-Transform; with the defaults 4.1 million parameters."""

    name: str = "db-transform"
    causal: bool = False  # temporal convolutions and mask taps see past frames only, and the network streams
    channels: int = 128  # D
    layers: int = 6  # L
    heads: int = 4  # H of the attention across bands; each has two maps
    scales: tuple[int, ...] = (3, 7, 15)  # frames that the parallel convolutions over time are wide
    gate_hidden: int = 32
    feedforward: int = 256
    decoder_hidden: int = 488

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_sizes("channels", "layers", "heads", "gate_hidden", "feedforward", "decoder_hidden")
        require(
            self.channels % (2 * self.heads) == 0,
            f"model.heads: found {self.heads}, wanted half a divisor of {self.channels} channels: each has two maps",
        )
        require(
            bool(self.scales) and all(1 <= scale < MOST_SIZE and scale % 2 for scale in self.scales),
            f"model.scales: found {self.scales}, wanted odd numbers of frames, which have a middle",
        )


@dataclasses.dataclass(frozen=True)
class BsrnnConfig(ModelConfig):
    """Settings of BSRNN; the defaults are its size `bsrnn`."""

    name: str = "bsrnn"
    causal: bool = False  # False: as published, takes a segment as a whole
    channels: int = 64  # D
    layers: int = 5  # L, each an LSTM over time and one over bands
    hidden: int = 128  # H, units of an LSTM in each direction
    decoder_hidden: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_sizes("channels", "layers", "hidden", "decoder_hidden")


@dataclasses.dataclass(frozen=True)
class OriginalConfig(ModelConfig):
    """Settings of the network that MBS-Net came from: 7.3 M parameters (edgese/model/mbs_net_original.py)."""

    name: str = "mbs-net-original"
    band_widths: tuple[int, ...] = BAND_WIDTHS_ORIGINAL
    channels: int = 128  # D
    layers: int = 4  # L over time in each branch; one more across the bands follows
    states: int = 16  # N
    dt_rank: int = 16
    conv_width: int = 4
    expand: int = 2
    chunk: int = 0  # frames that the training scan keeps in memory at a time; 0: all, as the original
    head_hidden: int = 256
    decoder_hidden: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_sizes(
            "channels", "layers", "states", "dt_rank", "conv_width", "expand", "head_hidden", "decoder_hidden"
        )
        self.require_sizes("chunk", least=0)

    @property
    def inner(self) -> int:
        """Channels inside a Mamba block, expand * D."""
        return self.expand * self.channels

    @property
    def decay_heads(self) -> int:
        """Number of decay heads, 0: a decay per channel and state."""
        return 0


@dataclasses.dataclass(frozen=True)
class Registered:
    """Class of a network's settings, and the place of its code."""

    config: type[ModelConfig]
    code: str  # "module:Class", imported when a network is built


NETWORKS: dict[str, Registered] = {}
MODELS: dict[str, ModelConfig] = {}

Entry = TypeVar("Entry")


def register(name: str, config: type[ModelConfig], code: str, models: Mapping[str, ModelConfig]) -> None:
    """Make a network known to every command.

    Args:
        name: that `config` has as the default of its `name`; weights and bundles carry it.
        code: "module:Class" of a `edgese.model.network.Network` that is built from such settings.
        models: settings by the names that `--model` and `size` take.

    Raises:
        ConfigError: another network has that name, or another model one of these; settings of another name.
    """
    entry = Registered(config, code)
    require(NETWORKS.get(name, entry) == entry, f"network {name}: registered already, as {NETWORKS.get(name)}")
    require(config.name == name, f"network {name}: its settings are those of {config.name!r}: give `name` that default")
    for model, settings in models.items():
        require(type(settings) is config, f"model {model}: its settings are no {config.__name__}")
        require(MODELS.get(model, settings) == settings, f"model {model}: there is another of that name")
    NETWORKS[name] = entry
    MODELS.update(models)


def plug_in(named: str) -> None:
    """Register the networks of a .py file or a module (`--plugin`), for the processes that this one starts too.

    Raises:
        ConfigError: it is not there, cannot be imported, or registers nothing.
    """
    before = len(NETWORKS) + len(MODELS)
    is_new = import_plugin(named)
    if is_new and len(NETWORKS) + len(MODELS) == before:
        raise ConfigError(f"--plugin {named}: registers nothing, wanted a call of edgese.networks.register")


def all_models() -> tuple[dict[str, ModelConfig], list[str]]:
    """Settings by name of the model, installed packages' included, and the reasons why some cannot be used."""
    failures = list(import_others())
    return MODELS, failures


def find_model(name: object, where: str = "model.size") -> ModelConfig:
    """Settings of the model that `--model` and `size` name.

    Raises:
        ConfigError: no model has that name.
    """
    return _find(name, MODELS, where)


def config_class(name: object, where: str = "model.name") -> type[ModelConfig]:
    """Class of a network's settings.

    Raises:
        ConfigError: no network has that name.
    """
    return _find(name, NETWORKS, where).config


def _find(name: object, known: Mapping[str, Entry], where: str) -> Entry:
    """Entry that is known by a name; plugins that were not imported yet are imported before it is refused."""
    known_by_now = isinstance(name, str) and name in known
    failures = [] if known_by_now else list(import_others())
    if not isinstance(name, str) or name not in known:
        wanted = f"wanted one of {', '.join(known)}; one of your own is named by --plugin"
        raise ConfigError("; ".join([f"{where}: found {reprlib.repr(name)}, {wanted}", *failures]))
    return known[name]


# Code from outside


def import_plugin(named: str) -> bool:
    """Import a .py file or a module, here and in the processes that this one starts; False: it was imported before.

    A file is imported under its stem, its folder last in `sys.path`: files beside it are found and hide nothing.

    Raises:
        ConfigError: there is no such file or module, it cannot be imported, or another module has its name.
    """
    label, path = f"--plugin {named}", Path(named)
    is_file = path.suffix == ".py" or path.is_file()
    name = path.stem if is_file else named
    if is_file and (path.suffix != ".py" or not path.is_file()):
        raise ConfigError(f"{label}: found no such file, wanted a .py file or the name of a module")
    is_new = name not in sys.modules
    if is_file:
        _look_in([str(path.resolve().parent)])
    _import(label, name)
    if is_file:
        other = getattr(sys.modules[name], "__file__", None) or "Python itself"
        if Path(other).resolve() != path.resolve():
            raise ConfigError(f"{label}: {name} is the name of {other} too; rename the file")
    modules = dict.fromkeys([*_inherited()["modules"], name])
    folders = [str(Path(folder).resolve()) for folder in sys.path]  # a child may be started elsewhere
    os.environ[PLUGINS] = json.dumps({"modules": list(modules), "folders": folders})
    return is_new


def import_others() -> Iterator[str]:
    """Import plugins named to this process's parents and those of installed packages; yields the failures."""
    from importlib.metadata import entry_points  # late: most commands know all names

    inherited = _inherited()
    _look_in(inherited["folders"])
    offered = {name: f"--plugin {name}" for name in inherited["modules"]}
    for point in entry_points(group=ENTRY_POINTS):
        package = point.dist.name if point.dist else "an installed package"
        offered.setdefault(point.module, f"{package}: its network {point.name}")
    for name, label in offered.items():
        try:
            _import(label, name)
        except ConfigError as error:
            yield str(error)


def _inherited() -> dict[str, list[str]]:
    """What the environment says of plugins: `modules` and `folders`.

    Raises:
        ConfigError: it says something else.
    """
    text = os.environ.get(PLUGINS) or '{"modules": [], "folders": []}'
    try:
        found = json.loads(text)
        if all(isinstance(name, str) for key in ("modules", "folders") for name in found[key]):
            return {key: list(found[key]) for key in ("modules", "folders")}
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    raise ConfigError(
        f"{PLUGINS}: found {reprlib.repr(text)}, wanted what edgese itself sets for the processes that it starts: "
        f"unset {PLUGINS}, and name plugins by --plugin"
    )


def _look_in(folders: list[str]) -> None:
    sys.path += [folder for folder in folders if folder not in sys.path]


def _import(label: str, name: str) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever its code does
        logger.info("%s cannot be imported", label, exc_info=True)
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = (error.filename, error.lineno) if isinstance(error, SyntaxError) else (last.filename, last.lineno)
        where = "" if str(place[0]).startswith("<") else " in {}, line {}".format(*place)
        what = " ".join(str(error).split())
        raise ConfigError(f"{label}: cannot be imported: {type(error).__name__}{where}: {what}") from error


# The family

register(
    "mbs-net",
    MbsConfig,
    "edgese.model.mbs_net:MbsNet",
    {
        "base": MbsConfig(),
        "small": MbsConfig(channels=64, layers=2, states=16, chunk=16, decoder_hidden=64),
    },
)
register(
    "db-transform",
    DbTransformConfig,
    "edgese.model.db_transform:DbTransform",
    {"db-transform": DbTransformConfig(), "db-transform-causal": DbTransformConfig(causal=True)},
)
register(
    "bsrnn",
    BsrnnConfig,
    "edgese.model.bsrnn:Bsrnn",
    {"bsrnn": BsrnnConfig(), "bsrnn-causal": BsrnnConfig(causal=True)},
)
register(
    "mbs-net-original",
    OriginalConfig,
    "edgese.model.mbs_net_original:MbsNetOriginal",
    {"mbs-net-original": OriginalConfig()},
)
