"""Comparison of the networks of the family: size, operations, scores on clean/noisy pairs, speed on one core, latency.

    python -m benchmarks.family --runs RUNS --data EVAL [--system FOLDER ...] [--bundles DIR] [--json]

`RUNS/NAME/weights.safetensors` is what `edgese train --model NAME --out RUNS/NAME` left. Each is exported (a bundle
that is there already is taken), verified by that, scored through its ONNX graphs as `edgese evaluate` does, and timed
by `edgese bench`'s own processes: calls back to back on one core, of 8 hops, or of a segment where a network looks
ahead. Folders of files that other systems enhanced stand in the same table, on the files that they have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machine import Row, parser, report
from edgese.bench.measure import Settings, choose, sound_file
from edgese.bench.probe import Probe
from edgese.evaluate import Evaluation, evaluate_all
from edgese.export_bundle import export_bundle, require_passed
from edgese.machine.host import allowed_cores, describe
from export.bundle import Bundle
from export.manifest import MANIFEST

WEIGHTS = "weights.safetensors"
BLOCK = 8
SCORES = ("pesq_wb", "stoi", "si_sdr_db")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=Path, required=True)
    arguments.add_argument("--data", type=Path, required=True, help="folder with clean/ and noisy/")
    arguments.add_argument("--system", type=Path, nargs="+", default=[], help="folders of enhanced files")
    arguments.add_argument("--bundles", type=Path, default=Path("out/family"), help="where bundles are kept")
    arguments.add_argument("--calls", type=int, default=200)
    arguments.add_argument("--runtime", default="onnxruntime")
    options = arguments.parse_args()
    machine = describe(allowed_cores()[-1])
    weights = sorted(options.runs.glob(f"*/{WEIGHTS}"))
    if not weights:
        raise SystemExit(f"error: {options.runs}: found no NAME/{WEIGHTS}, wanted some of `edgese train`")
    bundles = [exported(path, options.bundles / path.parent.name) for path in weights]
    results = evaluate_all(options.data, [*(bundle.path for bundle in bundles), *options.system])
    noisy = max(results, key=lambda result: len(result.pairs))
    rows: list[Row] = [{**dict.fromkeys(("system", *FACTS)), "system": "noisy", **scores(noisy, "noisy")}]
    for bundle, result in zip(bundles, results, strict=False):
        rows.append(facts(bundle, options.calls, options.runtime) | scores(result))
    for folder, result in zip(options.system, results[len(bundles) :], strict=True):
        rows.append({**dict.fromkeys(("system", *FACTS)), "system": folder.name, **scores(result)})
    notes = [f"{options.runtime} on core {allowed_cores()[-1]}; {noisy.n_files} pairs of {options.data.name}"]
    report("family", machine, rows, notes, as_json=options.json)


FACTS = ("causal", "params_m", "gmac_s", "latency_ms", "call_ms", "rtf")


def exported(weights: Path, folder: Path) -> Bundle:
    """Verified bundle of a run's weights; taken as it is where it exists."""
    if not (folder / MANIFEST).is_file():
        require_passed(export_bundle(weights, folder, name=folder.name))
    return Bundle.open(folder)


def facts(bundle: Bundle, n_calls: int, runtime: str) -> dict[str, Any]:
    """Size, operations, latency and speed of a network here, by the columns of the table."""
    manifest = bundle.manifest
    blocks = {graph.block for graph in bundle.graphs}
    block = BLOCK if BLOCK in blocks else max(blocks)
    (case,) = choose(bundle, Settings((runtime,), ("fp32",), (block,)))
    with sound_file(manifest["audio"]["sample_rate_hz"]) as sound, Probe(case, allowed_cores()[-1], sound) as probe:
        timing = probe.back(n_calls if case.period_s < 1 else max(10, n_calls // 20))
    frames_per_s = manifest["audio"]["sample_rate_hz"] / manifest["audio"]["hop"]
    return {
        "system": manifest["name"],
        "causal": "yes" if manifest["causal"] else "no",
        "params_m": sum(manifest["parameters"].values()) / 1e6,
        "gmac_s": sum(manifest["macs_per_frame"].values()) * frames_per_s / 1e9,
        "latency_ms": manifest["latency"]["ms"],
        "call_ms": timing.median_s * 1e3,
        "rtf": timing.median_s / timing.period_s,
    }


def scores(result: Evaluation, which: Any = "enhanced") -> dict[str, Any]:
    """Mean scores over the files that were scored, and their number."""
    mean = result.mean(which)
    return {"files": len(result.pairs)} | {name: mean.get(name) for name in SCORES}


if __name__ == "__main__":
    main()
