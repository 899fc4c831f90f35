"""`edgese info`: parameters, operations and latency of a network or a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgese.cli.terminal import Json, print_table, require, say


def info_command(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="BUNDLE|WEIGHTS|NAME",
            help="A bundle, a weights file, or a name that `edgese models` lists. Default: the shipped bundle.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print parameters, operations and latency of a network or a bundle, part by part."""
    facts = _bundle_facts(Path(what) if what else None) or _network_facts(str(what))
    if as_json:
        say(json.dumps(facts, indent=2))
        return
    counts, macs = facts["parameters"], facts["macs_per_frame"]
    frames_per_second = facts["audio"]["sample_rate_hz"] / facts["audio"]["hop"]
    rows = [[part, f"{counts.get(part, 0):,}", f"{macs.get(part, 0):,}"] for part in dict.fromkeys([*macs, *counts])]
    rows.append(["total", f"{sum(counts.values()):,}", f"{sum(macs.values()):,}"])
    print_table(facts["name"], ["part", "parameters", "MACs a frame"], rows)
    giga = sum(macs.values()) * frames_per_second / 1e9
    say(f"{giga:.2f} GMAC a second of sound; {_latency_words(facts)}")
    if not facts.get("trained", True):
        say("UNTRAINED: random weights, to measure speed with")
    if "graphs" in facts:
        blocks: dict[str, list[str]] = {}
        for graph in facts["graphs"]:
            kind = " with ".join(filter(None, (graph["precision"], graph.get("variant", "").upper())))
            blocks.setdefault(kind, []).append(str(graph["block"]))
        for kind, sizes in blocks.items():
            say(f"{kind}: {'graphs' if facts.get('causal', True) else 'a segment'} of {', '.join(sizes)} hops a call")
        say("verified against PyTorch" if facts["verification"]["passed"] else "NOT verified")


def _latency_words(facts: dict[str, Any]) -> str:
    """Causality and latency in words: `causal, latency 32 ms (512 samples)`."""
    latency = facts["latency"]
    late = f"{latency['ms']:.0f} ms ({latency['samples']} samples)"
    if facts.get("causal", True):
        return f"causal, latency {late}"
    overlap_s = facts["segments"]["overlap_samples"] / facts["audio"]["sample_rate_hz"]
    return f"not causal: hears a whole segment at a time, {late}, that shares {overlap_s:.2g} s with the next"


def _bundle_facts(path: Path | None) -> dict[str, Any] | None:
    from edgese.graphs import HUB
    from edgese.graphs.audio_facts import open_bundle
    from edgese.graphs.bundles import bundle_path

    if path is not None and not (path.is_dir() or str(path).startswith(HUB)):
        return None
    return dict(open_bundle(bundle_path(path)).manifest)


def _network_facts(what: str) -> dict[str, Any]:
    require("torch", extra="export")
    from edgese.config import AudioConfig
    from edgese.errors import ConfigError
    from edgese.graphs.facts import network_facts
    from edgese.model.checkpoint import load_enhancer
    from edgese.model.registry import build
    from edgese.networks import MODELS, find_model

    if what in MODELS or not Path(what).exists():
        try:
            return {"name": what, **network_facts(build(find_model(what, "as a model"), AudioConfig()))}
        except ConfigError as error:
            raise typer.BadParameter(f"{what}: found no such bundle or file, wanted one; {error}") from error
    return {"name": what, **network_facts(load_enhancer(Path(what)))}
