"""`edgese models`: the networks that can be trained and exported by name, with their cost."""

from __future__ import annotations

import json
from typing import Any

from edgese.cli.terminal import Json, print_table, require, say


def models_command(as_json: Json = False) -> None:
    """List the networks that have a name, your own among them: causality, latency, parameters, operations."""
    require("torch", extra="export")
    from edgese.networks import all_models

    models, failures = all_models()
    entries = {name: _entry(settings) for name, settings in models.items()}
    for failure in failures:
        say(f"warning: {failure}", err=True)
    if as_json:
        say(json.dumps(entries, indent=2))
        return
    rows = [
        [
            name,
            entry["network"],
            "yes" if entry["causal"] else "no",
            "-" if entry["latency_ms"] is None else f"{entry['latency_ms']:.0f}",
            f"{entry['parameters']:,}",
            f"{entry['macs_per_second'] / 1e9:.2f}",
        ]
        for name, entry in entries.items()
    ]
    header = ["model", "network", "causal", "latency ms", "parameters", "GMAC a second"]
    print_table("models, by the names that --model takes", header, rows)


def _entry(settings: Any) -> dict[str, Any]:
    from edgese.config import AudioConfig
    from edgese.graphs.facts import network_facts
    from edgese.model.registry import build

    enhancer = build(settings, AudioConfig())
    audio, facts = enhancer.audio, network_facts(enhancer)
    return {
        "network": settings.name,
        "causal": enhancer.network.causal,
        "latency_ms": audio.latency_ms if enhancer.network.causal else None,  # one that is not hears a segment first
        "parameters": sum(facts["parameters"].values()),
        "macs_per_second": round(sum(facts["macs_per_frame"].values()) * audio.sample_rate_hz / audio.hop),
    }
