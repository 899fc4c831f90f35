"""Cost of building an engine of each graph of a bundle: seconds, bytes and layers, as a Markdown table.

    python -m benchmarks.engine_build [--model BUNDLE] [--library tensorrt] [--streams 1 1 4] [--capability SM86]

`build s` is the least of --turns builds, reading the graph included; `layers` are those of the network as parsed, which
the builder fuses. TensorRT for RTX builds without a GPU, and for another GPU than the one here.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.machine import Row, parser
from edgese.graphs.bundles import shipped_bundle
from edgese.machine.host import describe
from export.bundle import Bundle
from export.engine import BuildOptions, build_engine
from runtimes.gpu import read_device
from runtimes.tensorrt_package import library_name, tensorrt_library


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", type=Path, default=shipped_bundle())
    arguments.add_argument("--library", help="tensorrt or tensorrt_rtx; default: the first that is installed")
    arguments.add_argument("--streams", type=int, nargs=3, default=[1, 1, 4], help="least, best and most")
    arguments.add_argument("--capability", help="compute capability to build for, of TensorRT for RTX only")
    arguments.add_argument("--turns", type=int, default=3)
    options = arguments.parse_args()
    library, machine = tensorrt_library(options.library), describe()
    least, best, most = options.streams
    build_options = BuildOptions({"streams": (least, best, most)}, compute_capability=options.capability)
    rows: list[Row] = []
    for graph in Bundle.open(options.model).graphs:
        path = options.model / graph.file
        built = [build_engine(path, build_options, library=library) for _ in range(options.turns)]
        rows.append(
            {
                "graph": graph.file,
                "precision": graph.precision,
                "block": graph.block,
                "build s": round(min(each.seconds for each in built), 2),
                "MB": round(len(built[0].serialized) / 1e6, 2),
                "layers": built[0].n_layers,
                "warnings": len(built[0].log),
            }
        )
    target = options.capability or str(read_device() or "no GPU in particular")
    notes = [f"{library_name(library)} for {target}; streams {least} to {most}, best at {best}"]
    if options.json:
        print(
            json.dumps(
                {"benchmark": "engine_build", "machine": machine.entry(), "rows": rows, "notes": notes}, indent=2
            )
        )
        return
    print(machine, *notes, sep="\n", end="\n\n")
    table = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    for cells in table:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
