"""Memory of a training step against the batch: the network that MBS-Net came from, and `base`, which replaced it.

    python -m benchmarks.step_memory [--device cuda] [--json FILE]
    python -m benchmarks.step_memory --plot docs/step_memory.png FILE...

The claim that the project began with: the original runs out of memory at a batch of 2, and the optimised network runs
a batch of 6 to 8 in less than 6 GB. A step is forward, objective, backward and AdamW in float32, on examples of
`--seconds`. `mbs-net-original` scans whole sequences, as it did; with `, chunked` only its scan differs (32 frames).

    peak_gb  1e9 bytes that the step needs over the bare process: weights, gradients and optimizer among them. On a
             CPU the high-water mark of resident memory (VmHWM), in a process that gives freed tensors back at once;
             on a GPU torch.cuda.max_memory_allocated
    held_gb  what PyTorch took from the GPU for that (max_memory_reserved): what others see as used

Each step has a process of its own, which is refused more than `--limit-gb`: then the row says so, and larger batches
are not run. Nothing is extrapolated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Row, memory_mb, peak_growth_mb, report, verdict
from edgese.config import AudioConfig, LossConfig
from edgese.machine.host import MB, describe
from edgese.model.registry import build
from edgese.networks import MODELS, ModelConfig, OriginalConfig
from edgese.train.losses import Objective

ORIGINAL, OPTIMISED = "mbs-net-original", "base"
NETWORKS: dict[str, ModelConfig] = {
    ORIGINAL: MODELS[ORIGINAL],
    f"{ORIGINAL}, chunked": OriginalConfig(chunk=32),
    OPTIMISED: MODELS[OPTIMISED],
}
BATCHES = (1, 2, 3, 4, 6, 8)
CLAIM_GB = 6.0
CPU_LIMIT_GB = 8.0
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # glibc: blocks from 1 MB on never stay in the process once freed
GB = 1e9
OVER, LEFT_OUT = "over the limit", "not run"


def main() -> None:
    options = arguments().parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.batch[0], options.seconds, options.device, options.limit_gb)))
        return
    if options.plot:
        png, *files = options.plot
        draw([json.loads(Path(file).read_text()) for file in files], Path(png))
        return
    machine, (device, most_gb) = describe(), device_and_memory(options.device)
    limit_gb = options.limit_gb or most_gb
    rows = [
        row
        for network in options.network
        for row in measured_apart(network, sorted(options.batch), options.seconds, options.device, limit_gb)
    ]
    notes = [f"device: {device}; examples of {options.seconds:g} s; limit {limit_gb:.3g} GB"]
    notes += claims(rows, limit_gb)
    if options.json:
        found = {"benchmark": "step_memory", "machine": machine.entry(), "device": device, "rows": rows, "notes": notes}
        options.json.write_text(json.dumps(found | {"limit_gb": limit_gb}, indent=2))
    report("step_memory", machine, rows, notes, as_json=False)


def arguments() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    made.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    made.add_argument("--seconds", type=float, default=2.0, help="of sound in an example")
    made.add_argument("--limit-gb", type=float, default=0.0, help="of one step; default: 8 on a CPU, all of a GPU")
    made.add_argument("--json", type=Path, help="where to write what was measured")
    made.add_argument("--plot", nargs="+", metavar=("PNG", "JSON"), help="draw what earlier calls have measured")
    made.add_argument("--child", choices=NETWORKS, help=argparse.SUPPRESS)
    return made


def device_and_memory(device: str) -> tuple[str, float]:
    """Name of the device, and the GB of it that a step may take by default."""
    if device == "cpu":
        return "CPU", CPU_LIMIT_GB
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch finds no GPU here; try cpu")
    return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GB


def measured_apart(network: str, batches: Sequence[int], seconds: float, device: str, limit_gb: float) -> list[Row]:
    """Table rows of the batches, each from a process of its own, up to the first that is refused memory."""
    rows: list[Row] = []
    for batch in batches:
        numbers: dict[str, Any] = {"peak_gb": None, "held_gb": None, "note": LEFT_OUT}
        if not any(row["note"] for row in rows):
            command = (sys.executable, "-m", "benchmarks.step_memory", "--child", network, "--batch", str(batch))
            where = ("--seconds", str(seconds), "--device", device, "--limit-gb", str(limit_gb))
            answer = subprocess.run(
                (*command, *where), env=os.environ | GIVE_BACK, stdout=subprocess.PIPE, text=True, check=True
            )
            numbers = json.loads(answer.stdout)
        rows.append({"network": network, "device": device, "seconds": seconds, "batch": batch} | numbers)
        print(f"{network}, batch {batch}: {numbers}", file=sys.stderr)
    return rows


def measure(network: str, batch: int, seconds: float, device: str, limit_gb: float) -> dict[str, Any]:
    """Memory of one step, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    training_step(dataclasses.replace(MODELS["small"], channels=8), 1, 0.5, device)()  # what is loaded only once
    try:
        if device == "cpu":
            limit_address_space(limit_gb)

            def work() -> None:
                training_step(NETWORKS[network], batch, seconds, device)()

            return {"peak_gb": peak_growth_mb(work) * MB / GB, "held_gb": None, "note": ""}
        there_is = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gb * GB / there_is))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step = training_step(NETWORKS[network], batch, seconds, device)
        step()
        torch.cuda.synchronize()
        peak, held = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
        return {"peak_gb": peak / GB, "held_gb": held / GB, "note": ""}
    except (RuntimeError, MemoryError) as error:
        refused = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not refused:
            raise
        return {"peak_gb": None, "held_gb": None, "note": OVER}


def limit_address_space(limit_gb: float) -> None:
    """Refuse this process more memory than it has mapped now and `limit_gb` on top."""
    mapped_mb = memory_mb("VmSize")
    if mapped_mb is None:
        raise SystemExit("/proc/self/status: has no VmSize; on a CPU this benchmark needs Linux")
    most = int(mapped_mb * MB + limit_gb * GB)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def training_step(config: ModelConfig, batch: int, seconds: float, device: str) -> Callable[[], None]:
    """Function that does one training step; its network and the optimizer's state are made beforehand."""
    audio = AudioConfig()
    enhancer = build(config, audio).to(device)
    objective = Objective(LossConfig(), audio, config.compression).to(device)
    optimizer = torch.optim.AdamW(enhancer.parameters())
    for parameter in enhancer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    length = int(seconds * audio.sample_rate_hz) // audio.hop * audio.hop
    noisy, clean = (0.1 * torch.randn(batch, length, device=device) for _ in range(2))

    def step() -> None:
        output, _ = enhancer(noisy, enhancer.initial_state(batch))
        kept = length - audio.overlap  # the output runs behind the input
        objective(output[:, audio.overlap :], clean[:, :kept], noisy[:, :kept])["loss"].backward()
        optimizer.step()

    return step


def claims(rows: Sequence[Row], limit_gb: float) -> list[str]:
    """Verdicts of the rows on the two claims; none on a claim that they do not settle."""

    def judged(network: str, batch: int) -> tuple[str, bool] | None:
        """Peak that was found, in words, and whether it is within the claim's memory; None if it is not known."""
        for row in rows:
            if (row["network"], row["batch"]) == (network, batch):
                if row["peak_gb"] is not None:
                    return f"{row['peak_gb']:.2f} GB", float(row["peak_gb"]) < CLAIM_GB
                if row["note"] == OVER and limit_gb >= CLAIM_GB:
                    return f"more than {limit_gb:.3g} GB", False
        return None

    notes = []
    for network, batch, wanted in (
        (ORIGINAL, 1, True),
        (ORIGINAL, 2, False),
        (OPTIMISED, 6, True),
        (OPTIMISED, 8, True),
    ):
        found = judged(network, batch)
        if found:
            claim = f"claim: {network}, batch {batch}, {'fits' if wanted else 'does not fit'} {CLAIM_GB:g} GB"
            notes.append(verdict(claim, found[0], found[1] == wanted))
    return notes


def draw(runs: Sequence[dict[str, Any]], png: Path) -> None:
    """Draw GB over batch, a line for each network and device; a triangle where a step was refused."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = dict(zip(NETWORKS, ("#B2182B", "#C98500", "#0072B2"), strict=True))  # after Okabe & Ito 2008
    figure = Figure(figsize=(9, 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    batches: set[int] = set()
    for run in runs:
        for network, colour in colours.items():
            rows = [row for row in run["rows"] if row["network"] == network]
            batches |= {row["batch"] for row in rows}
            solid = "-" if run["device"] == "CPU" else "--"
            label = f"{network} ({run['device'].removeprefix('NVIDIA ')})"
            measured = [row for row in rows if row["peak_gb"] is not None]
            if measured:
                places = [[row[key] for row in measured] for key in ("batch", "peak_gb")]
                axes.plot(*places, solid, color=colour, marker="o", markersize=5, label=label)
            refused = [row["batch"] for row in rows if row["note"] == OVER]
            if refused:
                label = f"{label}: refused at {run['limit_gb']:.3g} GB"
                heights = [run["limit_gb"]] * len(refused)
                axes.plot(refused, heights, "^", color=colour, markersize=10, fillstyle="none", label=label)
    axes.axhline(CLAIM_GB, color="black", linewidth=1, linestyle=":")
    axes.annotate(f"{CLAIM_GB:g} GB", (max(batches), CLAIM_GB), (0, 4), textcoords="offset points", ha="right")
    axes.set_yscale("log")
    axes.set_xticks(sorted(batches))
    ticks = [
        tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if axes.get_ylim()[0] < tick < axes.get_ylim()[1]
    ]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel("batch")
    axes.set_ylabel("peak memory of a training step (GB)")
    lengths = sorted({row["seconds"] for run in runs for row in run["rows"]})
    axes.set_title(f"Memory of a training step, examples of {', '.join(f'{s:g}' for s in lengths)} s", loc="left")
    figure.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    figure.savefig(png, dpi=150)


if __name__ == "__main__":
    main()
