"""`edgese export`: a verified bundle from weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgese.cli.terminal import Json, Quiet, Weights, print_table, progress_bar, require, say
from edgese.graphs.precision import Precision

if TYPE_CHECKING:
    from edgese.graphs.plan import Plan
    from export.bundle import Bundle


def export_command(
    weights: Weights = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="In place of weights: this network untrained, to measure its speed before training."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="The bundle's folder. Default: NAME.bundle.")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The bundle's name. Default: the folder's.")] = None,
    blocks: Annotated[
        list[int] | None,
        typer.Option(
            "--block",
            help="Causal networks: hops in a call, a graph for each. May be repeated. Default: 1, 4, 8, 16.",
        ),
    ] = None,
    listed_blocks: Annotated[str | None, typer.Option("--blocks", hidden=True)] = None,
    segment_hops: Annotated[
        int | None,
        typer.Option(help="Networks that look ahead: hops in the segment that a call takes. Default: 512."),
    ] = None,
    precisions: Annotated[
        list[Precision] | None,
        typer.Option("--precision", help="Add graphs in this precision to those in fp32. May be repeated."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="INT8: the file of `edgese calibrate` for these weights."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="INT8: folder with clean/ and noisy/ pairs to score PESQ on.")
    ] = None,
    files: Annotated[int, typer.Option(min=1, help="INT8: the most pairs to use, evenly spread.")] = 40,
    budget: Annotated[
        float, typer.Option("--pesq-budget", help="INT8: the most PESQ-WB to lose, mean over the pairs.")
    ] = 0.02,
    calibrator: Annotated[
        str,
        typer.Option(help="INT8: ranges by minmax, entropy, percentile, or the best of them for each tensor."),
    ] = "best",
    plot: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="INT8: write a picture of the cost of each product."),
    ] = None,
    pcs: Annotated[
        bool, typer.Option("--pcs", help="Add graphs with perceptual contrast stretching, for `enhance --pcs`.")
    ] = False,
    native: Annotated[
        bool, typer.Option("--native", help="Add the weights file of the C library; needs a C compiler.")
    ] = False,
    trt: Annotated[
        bool,
        typer.Option(
            "--trt", help="Also build TensorRT engines; without a GPU, the kit that builds them on the device."
        ),
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also lay it out as a model repository, as `edgese triton` does from a bundle."
        ),
    ] = None,
    c_project: Annotated[
        Path | None,
        typer.Option(
            "--c",
            metavar="DIR",
            help="In place of a bundle: a C project with sources, weights, WAV example and self-test. "
            "--precision chooses how its weights are held. Needs a C compiler.",
        ),
    ] = None,
    sound: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Noisy speech to verify with. Default: the shipped sample.")
    ] = None,
    model_card: Annotated[Path | None, typer.Option(metavar="FILE", help="A model card for the bundle.")] = None,
    attribution: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Whose recordings the weights were trained on, for the bundle."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing bundle.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a bundle: ONNX graphs from waveform to waveform, verified against PyTorch. Needs the extra export."""
    require("torch", "onnx", "onnxscript", extra="export")
    from edgese.board.kit import Kit, for_tensorrt
    from edgese.export_bundle import export_bundle, require_passed, untrained
    from edgese.graphs.bundles import shipped_bundle
    from edgese.metrics.pairs import read_recordings
    from edgese.model.checkpoint import load_enhancer
    from edgese.quantize.calibration import read_calibration
    from edgese.quantize.search import make_plans
    from edgese.samples import NOISY

    if model is not None and weights is not None:
        raise typer.BadParameter(f"--model {model}: found weights beside it, wanted one of both: it is for having none")
    if model is not None and model_card is not None:
        raise typer.BadParameter(f"--model {model}: found --model-card beside it; an untrained network gets its own")
    if c_project is not None:
        given = {
            "--output": output,
            "--block": blocks,
            "--native": native,
            "--trt": trt,
            "--pcs": pcs,
            "--triton": triton,
        }
        beside = [option for option, value in given.items() if value]
        if beside or len(precisions or []) > 1:
            raise typer.BadParameter(
                f"--c {c_project}: found {', '.join(beside) or 'several precisions'} beside it; it writes no bundle"
            )
        _write_c_project(c_project, weights, model, precisions, name, sound, force, as_json)
        return
    int8 = [precision for precision in precisions or [] if precision.quantized]
    needless = [name for name, given in {"--calibration": calibration, "--data": data, "--plot": plot}.items() if given]
    if needless and not int8:
        raise typer.BadParameter(f"{', '.join(needless)}: found no precision in INT8 to use it; add --precision int8")
    if plot is not None:
        require("matplotlib", extra="plot")
    if int8:
        require("pesq", extra="metrics")
    source = weights or shipped_bundle() / "model.safetensors"
    stem = f"{model}-untrained" if model else source.parent.name if weights is None else source.stem
    folder = output or Path(f"{stem}.bundle")
    called = name or folder.name
    if model is not None and "untrained" not in called:
        called = f"{called}-untrained"
    sizes = [*(blocks or []), *_numbers(listed_blocks)] or None
    with progress_bar(quiet or as_json) as bar:
        task = bar.add_task("export", total=None)

        def tell(step: str) -> None:
            bar.update(task, description=step)

        enhancer = untrained(model) if model else load_enhancer(source)
        batches = read_calibration(calibration, enhancer) if int8 and calibration else None
        plans = make_plans(
            enhancer,
            precisions or [],
            calibration=batches,
            recordings=read_recordings(data, files, enhancer.audio.sample_rate_hz) if int8 and data else (),
            budget=budget,
            method=calibrator,
            on_progress=tell,
        )
        exported = export_bundle(
            enhancer,
            folder,
            name=called,
            trained=model is None,
            blocks=sizes,
            segment_hops=segment_hops,
            sound=sound or NOISY,
            model_card=model_card,
            attribution=attribution,
            pcs=pcs,
            native=native,
            plans=plans,
            calibration=batches,
            replace=force,
            on_progress=tell,
        )
    made = for_tensorrt(exported.bundle, replace=force, on_message=_tell) if trt and exported.bundle else None
    if as_json:
        results = [result.entry() for result in exported.results]
        say(json.dumps({"path": str(exported.path), "results": results} | (made.entry() if made else {}), indent=2))
    else:
        print_table(
            f"against PyTorch, {exported.results[0].n_hops} hops streamed",
            ["graph", "largest difference", "SNR dB", "states (relative)", ""],
            [
                [
                    result.graph if result.runtime == "onnxruntime" else f"{result.graph} in {result.runtime}",
                    f"{result.max_abs:.1e}",
                    f"{result.snr_db:.1f}",
                    f"{max(result.state_relative.values()):.1e}" if result.state_relative else "none",
                    "passed" if result.passed else "FAILED",
                ]
                for result in exported.results
            ],
        )
    bundle = require_passed(exported)
    for precision, plan in plans.items():
        _tell_of(bundle, precision, plan, to_stderr=as_json)
    if plot is not None:
        _write_plot(plans, bundle, plot, to_stderr=as_json)
    say(f"bundle: {bundle.path} ({_megabytes(bundle)})", err=as_json)
    if triton is not None:
        from edgese.triton.repository import choose_graphs, write_repository
        from edgese.triton.serving import Serving

        for path in write_repository(
            bundle, triton, choose_graphs(bundle, [], [], pcs=pcs), Serving(), replace=force, on_message=_tell
        ):
            say(f"model: {path}", err=as_json)
    if isinstance(made, Kit):
        kit = f"kit: {made.packed.path} ({made.packed.n_bytes / 1e6:.1f} MB)"
        say(f"{kit}: engines are built on the device, not here ({made.reason}): {made.next_step}", err=as_json)
    elif made is not None:
        for graph, path in made.paths.items():
            say(f"engine: {graph}: {path} ({path.stat().st_size / 1e6:.1f} MB)", err=as_json)
    if model is not None:
        say(
            f"warning: {bundle.path}: UNTRAINED, {model} with random weights of seed 0: fit to measure its speed, "
            "its sound means nothing",
            err=True,
        )


def _write_c_project(
    folder: Path,
    weights: Path | None,
    model: str | None,
    precisions: list[Precision] | None,
    name: str | None,
    sound: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    from edgese.export_bundle import export_c, untrained
    from edgese.graphs.bundles import shipped_bundle
    from edgese.model.checkpoint import load_enhancer
    from edgese.samples import NOISY

    source = weights or shipped_bundle() / "model.safetensors"
    result = export_c(
        untrained(model) if model else load_enhancer(source),
        folder,
        name=name or model or (source.parent.name if weights is None else source.stem),
        precision=(precisions or [Precision.FP32])[0],
        sound=sound or NOISY,
        replace=force,
    )
    if as_json:
        say(json.dumps({"path": str(folder), "results": [result.entry()]}, indent=2))
    else:
        say(f"against PyTorch, {result.n_hops} hops: {result.snr_db:.1f} dB, largest {result.max_abs:.1e}")
        say(f"C project: {folder}: make -C {folder}, then ./selftest and ./enhance IN.wav OUT.wav there")


def _numbers(listed: str | None) -> list[int]:
    """The sizes in `--blocks 1,4,8`, the former way to give `--block`."""
    try:
        return [int(size) for size in listed.split(",")] if listed is not None else []
    except ValueError:
        raise typer.BadParameter(f"--blocks: found {listed!r}, wanted numbers such as 1,4,16") from None


def _tell(line: str) -> None:
    say(line, err=True)


def _tell_of(bundle: Bundle, precision: Precision, plan: Plan, *, to_stderr: bool) -> None:
    """Print the result of the search for INT8, and whether the precision is faster on this machine."""
    from edgese.bench.speedup import GAIN, measure_speedup
    from edgese.quantize.search import Quantization

    search = Quantization.of(plan)
    if search is not None:
        say(f"{precision.value}: {search}", err=to_stderr)
    measured = measure_speedup(bundle, precision.value)
    best = min(measured, key=lambda one: one.ratio)
    verdict = f"{precision.value} is not worth it here" if best.ratio > GAIN else f"{precision.value} is faster here"
    calls = "; ".join(map(str, measured))
    say(f"{verdict}, in {best.runtime} on this CPU: {calls}", err=to_stderr)


def _write_plot(plans: Mapping[Precision, Plan], bundle: Bundle, plot: Path, *, to_stderr: bool) -> None:
    from edgese.quantize.plots import write_sensitivity_plot
    from edgese.quantize.search import Quantization

    for precision, plan in plans.items():
        search = Quantization.of(plan)
        if search is not None:
            several = sum(precision.quantized for precision in plans) > 1
            png = plot.with_stem(f"{plot.stem}.{precision.value}") if several else plot
            heard = f"{precision.value}, {len(plan.facts['recordings'])} recordings"
            title = f"What INT8 costs in each product of {bundle.manifest['name']} ({heard})"
            write_sensitivity_plot(search, title, png)
            say(f"picture: {png}", err=to_stderr)


def _megabytes(bundle: Bundle) -> str:
    return f"{sum(file.stat().st_size for file in bundle.path.iterdir()) / 1e6:.1f} MB"
