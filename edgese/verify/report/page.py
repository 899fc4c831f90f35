"""Report of `edgese verify --report DIR`: one HTML file that needs nothing else, and the same facts as JSON.

    write_report(verification, folder)      # folder/report.html and folder/report.json

The page holds the verdict, the limits and how near they are, the first recording to see and to hear, the error over
time, how long calls took, every check, tensor and listener of each graph, and the provenance.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from edgese.atomic_file import PartialFile
from edgese.errors import EdgeseError, OutputError, install_command
from edgese.verify.limits import LIMITS, VERIFICATION_HOPS
from edgese.verify.report.drawing import COLOURS, N_SERIES
from edgese.verify.report.plots import excerpts, latencies, timelines
from edgese.verify.report.tables import Row, failures, fixed, from_one, margins, scientific, scope, signed

try:
    import jinja2
except ImportError as error:
    raise EdgeseError(f"jinja2 is missing ({error}): {install_command('report')}") from error

if TYPE_CHECKING:
    from edgese.verify.findings import Verification

TEMPLATE = "page.html.j2"
SCRIPT = "script.js.j2"

PROVENANCE = {
    "bundle": "Bundle",
    "manifest_sha256": "manifest.json",
    "files": "Files of the bundle",
    "exported_with": "Exported with",
    "verified_with": "Verified with",
    "recordings": "Recordings (noisy)",
    "machine": "Machine",
    "made": "Made",
}


def write_report(verification: Verification, folder: Path) -> Path:
    """Write `report.json` and `report.html`, each whole or not at all, over older ones; returns the page's path.

    Raises:
        EdgeseError: the folder cannot be written to.
    """
    html = folder / "report.html"
    texts = {
        folder / "report.json": json.dumps(verification.entry(), indent=2, allow_nan=False) + "\n",
        html: render(verification),
    }
    try:
        with ExitStack() as stack:
            partials = [stack.enter_context(PartialFile(path)) for path in texts]
            for partial, text in zip(partials, texts.values(), strict=True):
                partial.path.write_text(text, encoding="utf-8")
            for partial in partials:
                partial.publish(replace=True)
    except (OutputError, OSError) as error:
        reason = error.__cause__ or error
        why = getattr(reason, "strerror", None) or reason
        raise EdgeseError(
            f"{folder}: the report cannot be written ({why}); free space or choose another folder"
        ) from error
    return html


def render(verification: Verification) -> str:
    """HTML of the report's page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(fixed=fixed, signed=signed, scientific=scientific, from_one=from_one)
    proofs = verification.proofs
    checks = [*verification.checks, *(check for proof in proofs for check in proof.checks)]
    script = environment.get_template(SCRIPT).render()
    return environment.get_template(TEMPLATE).render(
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),  # no other script runs
        name=str(verification.bundle.manifest["name"]),
        verification=verification,
        scope=scope(verification),
        n_checks=len(checks),
        failures=list(failures(verification)),
        rows=[Row(f"graph-{at}", proof) for at, proof in enumerate(proofs, 1)],
        margins={name: margins(name, proofs) for name in LIMITS if any(p.graph.precision == name for p in proofs)},
        limits=LIMITS,
        excerpts=excerpts(verification),
        timelines=timelines(proofs),
        latencies=latencies(proofs, verification.bundle.manifest["audio"]),
        colours=COLOURS,
        n_series=N_SERIES,
        zip=zip,
        provenance_names=PROVENANCE,
        float64_hops=VERIFICATION_HOPS,
    )
