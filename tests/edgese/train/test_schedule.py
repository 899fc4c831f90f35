"""Learning rates by step: warm-up, a constant rate and its fall, half a cosine."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from edgese.config import TrainConfig
from edgese.train.schedule import Fall, learning_rate, planned_fall

CONFIG = TrainConfig(steps=110, warmup_steps=10, learning_rate=1.0)


def test_constant_rate_falls_as_one_minus_a_root_at_the_end() -> None:
    config = dataclasses.replace(CONFIG, fall=0.5)
    fall = planned_fall(config)
    assert fall == Fall(55, 110)
    rates = [learning_rate(step, config, fall) for step in range(111)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10:56] == [1.0] * 46
    assert rates[56:] == pytest.approx([1 - math.sqrt(share / 55) for share in range(1, 56)])
    assert learning_rate(500, config, fall) == 0


def test_rate_stays_where_no_fall_is_known_or_wanted() -> None:
    assert learning_rate(10**6, CONFIG, None) == 1.0
    assert learning_rate(109, CONFIG, planned_fall(dataclasses.replace(CONFIG, fall=0))) == 1.0


def test_learning_rate_warms_up_then_falls_as_half_a_cosine() -> None:
    config = dataclasses.replace(CONFIG, schedule="cosine")
    assert planned_fall(config) is None
    rates = [learning_rate(step, config, None) for step in range(111)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[60] == pytest.approx(0.01 + 0.99 / 2)
    assert rates[110] == pytest.approx(0.01)
    assert all(np.diff(rates[10:]) < 0)
    assert learning_rate(0, dataclasses.replace(config, warmup_steps=0), None) == 1.0
    assert learning_rate(500, dataclasses.replace(config, warmup_steps=110), None) == pytest.approx(0.01)
