"""Forms of what comes back from a board, and its limits: a board that is broken, or somebody else's, is not believed.

Checked where it comes in: the agent's answers (agent.py) and the JSON that the bundle's commands print there
(edgese/device). What passes may be used and printed as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from export.schema import (
    Form,
    check,
    either,
    fields,
    flag,
    list_of,
    map_of,
    maybe,
    number,
    parse_json,
    plain,
    text,
    whole,
)

MOST_ANSWER = 1 << 20  # bytes of one frame; a command's output and files come in smaller ones
MOST_OUT = 16_000_000  # bytes that a command may print: the longest, of bench, has 0.1 MB
MOST_ERR = 64_000_000  # bytes that it may say on stderr, building engines included
MOST_LINE = 1 << 16  # bytes of one line on stderr
KEPT_LINES = 100  # of them, for messages

_SIZE = whole(0, 1 << 62)
_COUNT = whole(0, 10**12)
_WORD = text(1000)
_NUMBER = either(number(), text(20))  # what is not finite comes as a word
_DIGEST = text(64, "[0-9a-f]{64}", "a SHA-256")

_ANSWERS: dict[str, dict[str, Form]] = {
    "look": {
        "python": _WORD,
        "modules": map_of(flag),
        "home": text(4096, "/[^\x00]*", "a folder's path"),
        "there": flag,
        "free": _SIZE,
        "part": _SIZE,
    },
    "put": {},
    "unpack": {},
    "run": {"code": whole(-255, 255)},
    "get": {"bytes": _SIZE, "sha256": _DIGEST},
    "leave": {"kept": _SIZE},
}
_ID = {"id": whole(0, 1 << 62)}
_ERROR = fields(_ID | {"error": text()})

_MACHINE = fields(
    {
        "cpu": _WORD,
        "board": maybe(_WORD),
        "cores": whole(0, 1 << 20),
        "system": _WORD,
        "versions": fields(dict.fromkeys(("python", "numpy", "onnxruntime"), _WORD), others=_WORD),
    },
    others=plain,
)
_LEFT_OUT = map_of(text())
_TRIAL = fields(
    {
        "graph": _WORD,
        "runtime": _WORD,
        "snr_db": _NUMBER,
        "limit_db": _NUMBER,
        "failures": list_of(text()),
        "passed": flag,
    },
    others=plain,
)
_MILLISECONDS = {f"{name}_ms": maybe(number()) for name in ("p50", "p90", "p99", "p99_9", "max")}
_TIMING = fields({"calls": _COUNT, "rtf": number(), "missed": _COUNT} | _MILLISECONDS, others=plain)
_ENERGY = fields({"joules_per_audio_s": number(), "mean_w": number()}, others=plain)
_RESULT = fields(
    {
        "runtime": _WORD,
        "precision": _WORD,
        "block": _COUNT,
        "streams": _COUNT,
        "back": _TIMING,
        "paced": maybe(_TIMING),
        "energy": maybe(_ENERGY),
    },
    others=plain,
)
_BOARD = fields({name: maybe(_WORD) for name in ("l4t", "jetpack", "tensorrt", "cuda")}, others=plain)
_STATE = fields(
    {"power_mode": maybe(_WORD), "jetson_clocks": maybe(flag), "temperatures_c": map_of(maybe(number()))}, others=plain
)
_RESULTS: Mapping[str, Form] = {
    "runtimes": fields({"found": list_of(_WORD, most=20), "left_out": _LEFT_OUT, "machine": _MACHINE}),
    "self-test": fields({"passed": flag, "trials": list_of(_TRIAL), "left_out": _LEFT_OUT}),
    "build": fields({"engines": list_of(map_of(plain)), "failed": _COUNT}),
    "bench": fields(
        {
            "machine": _MACHINE,
            "results": list_of(_RESULT),
            "left_out": _LEFT_OUT,
            "failures": map_of(text()),
            "board": _BOARD,  # a Jetson: no other is measured
            "before": _STATE,
            "after": _STATE,
            "throttled": maybe(list_of(text())),
            "idle": maybe(fields({"rails": _WORD, "mean_w": number()}, others=plain)),
            "missing": map_of(text()),
        },
        others=plain,
    ),
}


def parse_answer(content: bytes, do: str, number: int) -> dict[str, Any] | None:
    """Answer to the request of this kind and number, or its one key `error`; None: it answers an older request.

    Raises:
        SchemaError: it has not the form of such an answer.
    """
    answer = parse_json(content)
    check(answer, fields(_ID, others=plain))
    if answer["id"] != number:
        return None
    check(answer, _ERROR if "error" in answer else fields(_ID | _ANSWERS[do]))
    del answer["id"]
    found: dict[str, Any] = answer
    return found


def parse_have(content: bytes, n_bytes: int) -> int:
    """Number of bytes of a file that are there, as a board reports while it takes `n_bytes`.

    Raises:
        SchemaError: it says anything else.
    """
    report = parse_json(content)
    check(report, fields({"have": whole(0, n_bytes)}))
    have: int = report["have"]
    return have


def parse_result(printed: str, command: str) -> dict[str, Any]:
    """Result that a command printed there as JSON.

    Raises:
        SchemaError: it printed none, or not of the form of this command's results.
    """
    result = parse_json(printed)
    check(result, _RESULTS[command])
    found: dict[str, Any] = result
    return found
