"""Hostile inputs made from good ones: bytes and JSON values, changed at random by a generator with a seed."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from typing import Any

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
NUMBERS = (b"0", b"-1", b"1e30", b"-1e308", b"1e999", b"nan", b"inf", b"9" * 20, b"9" * 400, b"9" * 5000, b"1" * 18)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**18, 10**30, 10**400, 0.5, -0.0, 1e30, 1e308),
    *("", "\0", "a\0b", "../../x", "/etc/passwd", "\x1b]0;title\x07", "\ud800", "[/b]", "nan", "x" * 100_000),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [1, 2, 3], ["a"], [1e30], list(range(300))),
)


def mutated_bytes(seeds: list[bytes], rng: random.Random) -> bytes:
    """One of the seeds with one to six changes."""
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _change(content, rng, seeds)
    return bytes(content)


def mutated_json(seed: Any, rng: random.Random) -> bytes:
    """JSON of a value in which one to three places are changed, missing or nested, or whose bytes are changed."""
    kind = rng.random()
    if kind < 0.15:
        return mutated_bytes([json.dumps(seed).encode()], rng)
    value = copy.deepcopy(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value = _changed(value, rng)
    text = json.dumps(value)
    if kind < 0.2:
        text = text.replace("null", rng.choice(("NaN", "Infinity", "-Infinity", "9" * 5000, "[" * 100_000)), 1)
    elif kind < 0.23:
        deep = rng.choice((20, 100, 900, 5000, 200_000))
        text = '{"a":' * deep + text + "}" * deep
    return text.encode()


def _change(content: bytearray, rng: random.Random, seeds: list[bytes]) -> None:
    at = rng.randrange(len(content) + 1) if rng.random() < 0.5 else rng.randrange(min(len(content), 200) + 1)
    size = rng.choice((1, 2, 4, 8, 16, 100, 1000))
    way = rng.randrange(9)
    if way == 0 and at < len(content):
        content[at] ^= 1 << rng.randrange(8)
    elif way == 1:
        content[at : at + size] = rng.randbytes(size)
    elif way == 2:
        width, order = rng.choice((("B", 1), ("H", 2), ("I", 4), ("Q", 8))), rng.choice("<>")
        content[at : at + width[1]] = struct.pack(order + width[0], rng.choice(EXTREMES) % (1 << 8 * width[1]))
    elif way == 3:
        del content[at : at + size]
    elif way == 4:
        content[at:at] = content[at : at + size] * rng.choice((1, 2, 50))
    elif way == 5:
        del content[at:]
    elif way == 6:
        other = rng.choice(seeds)
        start = rng.randrange(len(other) + 1)
        content[at : at + size] = other[start : start + size]
    elif way == 7:
        content[at:at] = bytes([rng.choice((0, 0x20, 0x5B, 0x7B, 0xFF))]) * rng.choice((1, 100, 10_000))
    else:
        numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
        if numbers:
            found = rng.choice(numbers)
            content[found.start() : found.end()] = rng.choice(NUMBERS)


def _changed(value: Any, rng: random.Random) -> Any:
    """The same value with one place changed; each step down chooses a child."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return copy.deepcopy(rng.choice(HOSTILE))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    way = rng.random()
    if way < 0.1:
        del value[key]
    elif way < 0.15 and isinstance(value, dict):
        value[rng.choice(("more", "", "\0", "../x", "a" * 5000))] = copy.deepcopy(rng.choice(HOSTILE))
    elif way < 0.2 and isinstance(value, list):
        value.extend(copy.deepcopy(value[key]) for _ in range(rng.choice((1, 100))))
    else:
        value[key] = _changed(value[key], rng)
    return value
