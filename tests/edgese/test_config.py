"""Settings: what TOML says is what a run gets, and what cannot be is refused with the name of the setting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgese.config import AudioConfig, DataConfig, LossConfig, TrainConfig, from_dict, read_train_config, to_dict
from edgese.errors import ConfigError
from edgese.networks import MODELS, MbsConfig

OTHER = TrainConfig(
    model=dataclasses.replace(MODELS["base"], channels=24, fusion="once", compression=0.5),
    data=DataConfig(segment_s=3, snr_db=(-2.5, 7.0), offset=False, share=(("noise/a b", 0.5), ("speech", 0.25))),
    loss=LossConfig(magnitude=0.5, waveform=0.0),
    seed=7,
    steps=12,
    learning_rate=1e-4,
)


def as_toml(values: dict[str, Any], table: str = "") -> str:
    """Plain values as TOML; scalars and lists look as they do in JSON."""
    quoted = {json.dumps(key) if " " in key or "/" in key else key: value for key, value in values.items()}
    scalars = [f"{key} = {json.dumps(value)}" for key, value in quoted.items() if not isinstance(value, dict)]
    tables = [as_toml(value, f"{table}{key}.") for key, value in values.items() if isinstance(value, dict)]
    return "\n".join([f"[{table[:-1]}]" if table else "", *scalars, *tables]) + "\n"


def write_toml(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("config", [TrainConfig(), OTHER], ids=["defaults", "other"])
def test_toml_round_trip(config: TrainConfig, tmp_path: Path) -> None:
    assert read_train_config(write_toml(tmp_path, as_toml(to_dict(config)))) == config


@pytest.mark.parametrize("config", [AudioConfig(hop=256), OTHER.model, OTHER.data, OTHER.loss, OTHER])
def test_json_round_trip(config: Any) -> None:
    assert from_dict(type(config), json.loads(json.dumps(to_dict(config)))) == config


def test_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert read_train_config(write_toml(tmp_path, "")) == TrainConfig() == read_train_config(None)


def test_file_changes_only_what_it_names(tmp_path: Path) -> None:
    config = read_train_config(write_toml(tmp_path, "seed = 3\nlearning_rate = 1\n[data]\nsnr_db = [0, 5]\n"))
    expected = dataclasses.replace(
        TrainConfig(), seed=3, learning_rate=1.0, data=dataclasses.replace(DataConfig(), snr_db=(0.0, 5.0))
    )
    assert config == expected
    assert isinstance(config.learning_rate, float)
    assert all(isinstance(bound, float) for bound in config.data.snr_db)


def test_batch_and_rate_go_with_the_size_where_nothing_else_is_said(tmp_path: Path) -> None:
    base = read_train_config(write_toml(tmp_path, 'batch = 4\n[model]\nsize = "base"\n'))
    assert (base.batch, base.learning_rate) == (4, 1.5e-3)
    assert read_train_config(None, {"model": {"size": "base"}}).batch == 32
    small = read_train_config(tmp_path / "run.toml", {"model": {"size": "small"}, "seed": 9})
    assert (small.batch, small.learning_rate, small.seed) == (4, TrainConfig().learning_rate, 9)
    wider = read_train_config(None, {"model": {"size": "base", "channels": 64}})
    assert wider.batch == TrainConfig().batch


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("share = 0.5", r"data\.share: found 0\.5, wanted a table of settings"),
        ('share = {a = "half"}', r"data\.share\.a: found 'half', wanted float"),
        ("share = {a = 1.5}", r"data\.share\.a: found 1\.5, wanted \[0, 1\]"),
    ],
)
def test_shares_are_numbers_by_folder(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_train_config(write_toml(tmp_path, f"[data]\n{text}\n"))


def test_model_table_changes_only_what_it_names(tmp_path: Path) -> None:
    config = read_train_config(write_toml(tmp_path, "[model]\nchunk = 8\n"))
    assert config.model == dataclasses.replace(TrainConfig().model, chunk=8)


@pytest.mark.parametrize("size", MODELS)
def test_size_is_what_other_keys_of_the_model_table_change(size: str, tmp_path: Path) -> None:
    config = read_train_config(write_toml(tmp_path, f'[model]\ncompression = 0.5\nsize = "{size}"\n'))
    assert config.model == dataclasses.replace(MODELS[size], compression=0.5)


@pytest.mark.parametrize("size", ['"huge"', "3", '["small"]', "{ a = 1 }"])
def test_unknown_size_is_refused_with_the_known_ones(size: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.size: found .*, wanted one of base, small"):
        read_train_config(write_toml(tmp_path, f"[model]\nsize = {size}\n"))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("stepz = 3", "stepz"),
        ("[model]\nchanels = 3", r"model\.chanels"),
        ("[audio]\nhop_ms = 8", r"audio\.hop_ms"),
        ('size = "small"', "size"),  # belongs into [model]
        ('[data]\nsize = "small"', r"data\.size"),
        ("[optimizer]\nbeta = 0.9", "optimizer"),
    ],
)
def test_unknown_key_is_refused_with_its_path(text: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: unknown setting; known here: \w+") as refusal:
        read_train_config(write_toml(tmp_path, text))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 1.5", "steps: found 1.5, wanted int"),
        ('steps = "many"', "steps: found 'many', wanted int"),
        ("steps = true", "steps: found True, wanted int"),
        ("learning_rate = true", "learning_rate: found True, wanted float"),
        ('learning_rate = "fast"', "learning_rate: found 'fast', wanted float"),
        ("learning_rate = [0.1]", "learning_rate: found [0.1], wanted float"),
        ("model = 3", "model: found 3, wanted a table of settings"),
        ("[seed]\na = 1", "seed: found {'a': 1}, wanted int"),
        ("[data]\nsnr_db = 3", "data.snr_db: found 3, wanted tuple"),
        ('[data]\nsnr_db = [0, "x"]', "data.snr_db[1]: found 'x', wanted float"),
        ("[data]\noffset = 1", "data.offset: found 1, wanted bool"),
        ("[model]\nfusion = 1", "model.fusion: found 1, wanted str"),
        ("[model]\nband_widths = [2.5]", "model.band_widths[0]: found 2.5, wanted int"),
    ],
)
def test_wrong_type_is_refused_with_path_found_and_wanted(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_train_config(write_toml(tmp_path, text))
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("steps = 0", "steps"),
        ("batch = 0", "batch"),
        ("validate_every = 0", "validate_every"),
        ("checkpoint_every = -1", "checkpoint_every"),
        ("learning_rate = 0", "learning_rate"),
        ("learning_rate = nan", "learning_rate"),
        ("ema_decay = 1.0", "ema_decay"),
        ("workers = -1", "workers"),
        ("seed = -1", "seed"),
        ("clip_norm = 0", "clip_norm"),
        ("weight_decay = -0.1", "weight_decay"),
        ("[audio]\nsample_rate_hz = 0", "sample_rate_hz"),
        ("[audio]\nn_fft = 511", "n_fft"),
        ("[audio]\nhop = 100", "hop"),
        ("[audio]\nhop = 512", "hop"),
        ("[audio]\nn_fft = 256", r"model\.band_widths"),
        ("[model]\nchannels = 0", r"model\.channels"),
        ("[model]\nlayers = 0", r"model\.layers"),
        ("[model]\nchunk = 0", r"model\.chunk"),
        ("[model]\nchannels = 8\ndecay_heads = 3", r"model\.decay_heads"),
        ("[model]\ndecay_heads = -1", r"model\.decay_heads"),
        ('[model]\nfusion = "never"', r"model\.fusion"),
        ("[model]\ncompression = 0", r"model\.compression"),
        ("[model]\ncompression = 1.1", r"model\.compression"),
        ("[model]\nband_widths = [0, 257]", r"model\.band_widths"),
        ("[model]\nband_widths = [256]", r"model\.band_widths"),
        ("[model]\nband_widths = []", r"model\.band_widths"),
        ('schedule = "linear"', "schedule"),
        ("fall = 1.1", "fall"),
        ('teacher = "w.safetensors"\n[loss]\ndistillation = 0', "teacher"),
        ("[data]\nsegment_s = 0", r"data\.segment_s"),
        ("[data]\nsegment_s = inf", r"data\.segment_s"),
        ("[data]\nsegment_s = 0.01", r"data\.segment_s"),  # shorter than one window
        ("[data]\nsnr_db = [5, 0]", r"data\.snr_db"),
        ("[data]\nsnr_db = [5]", r"data\.snr_db"),
        ("[data]\ngain_db = [0, 1, 2]", r"data\.gain_db"),
        ("[data]\ngain_db = [nan, 0]", r"data\.gain_db"),
        ("[data]\nreverb_probability = 1.5", r"data\.reverb_probability"),
        ("[data]\nvalidation_share = -0.1", r"data\.validation_share"),
        ("[loss]\nmagnitude = -1", "loss"),
        ("[loss]\nmagnitude = 0\ncomplex = 0\nwaveform = 0\nperceptual = 0\nband_level = 0", "loss"),
    ],
)
def test_value_out_of_range_is_refused_by_name(text: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{name}") as refusal:
        read_train_config(write_toml(tmp_path, text))
    assert "\n" not in str(refusal.value)


def test_missing_file_is_one_line_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        read_train_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_train_config(tmp_path)


@pytest.mark.parametrize("content", [b"steps = ", b"steps 3", b"\xff\xfe\x00", b"a = 1\na = 2"])
def test_what_is_no_toml_is_one_line_with_its_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml: not a TOML file \(") as refusal:
        read_train_config(path)
    assert "\n" not in str(refusal.value)


def test_configs_cannot_be_changed_after_they_are_checked() -> None:
    for config in (AudioConfig(), MbsConfig(), DataConfig(), LossConfig(), TrainConfig()):
        name = dataclasses.fields(config)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)


def test_derived_values_of_the_signal_contract() -> None:
    audio = AudioConfig()
    assert (audio.n_bins, audio.overlap, audio.latency_samples) == (257, 384, 512)
    assert (audio.hop_ms, audio.latency_ms) == (8.0, 32.0)


def test_default_bands_are_those_of_the_design() -> None:
    model = MbsConfig()
    assert model.band_widths == (2, *(3,) * 10, *(8,) * 12, *(18,) * 6, 21)
    assert (model.n_bands, model.n_bins, model.inner) == (30, 257, 128)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (AudioConfig, {"sample_rate_hz": 10**30}, "sample_rate_hz: found 10+, wanted 1000 to 768000"),
        (AudioConfig, {"sample_rate_hz": 1e30}, r"sample_rate_hz: found 1e\+30, wanted int"),
        (AudioConfig, {"n_fft": 2**40}, "n_fft: found 1099511627776, wanted 4 to 8192"),
        (AudioConfig, [], r"settings: found \[\], wanted a table of settings"),
        (MbsConfig, {"channels": 10**18}, "model.channels: found 10+, wanted 1 to 8192"),
        (MbsConfig, {"layers": 257}, "model.layers: found 257, wanted 1 to 256"),
        (MbsConfig, {"band_widths": [10**18]}, "model.band_widths: bins: found 10+, wanted 1 to 4097"),
        (MbsConfig, {"band_widths": [1] * 5000}, "model.band_widths: bands: found 5000, wanted 1 to 4096"),
        (MbsConfig, {"band_widths": []}, "model.band_widths: bands: found 0, wanted 1 to 4096"),
        (DataConfig, {"segment_s": 1e18}, r"segment_s: found 1e\+18, wanted more than 0, at most 600"),
        (DataConfig, {"snr_db": [0.0, float("inf")]}, r"snr_db\[1\]: found inf, wanted a finite number"),
        (TrainConfig, {"learning_rate": 10**400}, "learning_rate: found inf, wanted a finite number"),
        (TrainConfig, {"batch": 10**9}, "batch: found 1000000000, wanted 1 to 65536"),
    ],
)
def test_numbers_that_nothing_could_be_built_with_are_refused(kind: type[Any], values: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(kind, values)


def test_settings_that_are_nested_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match=r"deep\.toml: not a TOML file"):
        read_train_config(tmp_path / "deep.toml")
