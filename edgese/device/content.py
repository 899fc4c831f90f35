"""Content of an unpacked device bundle: files checked, graphs to choose from, golden vectors and limits.

SHA256SUMS   of every other file; `sha256sum -c SHA256SUMS` checks the same as `Content.open`
bundle/      graphs, weights, manifest.json, reference.npz, MODEL_CARD.md
engines/     made on the board
c/           the C project, of MBS-Net
run, README.txt, edgese_device/, export/, calib/, runtimes/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from calib.batches import read_batches
from edgese.audio import Wave
from edgese.errors import VerificationError
from edgese.graphs.audio_facts import AudioFacts, audio_facts, open_bundle
from edgese.graphs.segments import Segments, require_streaming_form
from export import ExportError
from export.bundle import Bundle, Graph
from export.files import inner_file, read_bytes, sha256_of

SUMS = "SHA256SUMS"
BUNDLE = "bundle"
ENGINES = "engines"

_MOST_SUMS = 4_000_000  # bytes of SHA256SUMS
_MEND = "unpack the archive again, or make it anew (edgese bundle)"


@dataclasses.dataclass(frozen=True)
class Content:
    """Unpacked device bundle whose files are all present and unchanged. Use `Content.open`."""

    root: Path
    bundle: Bundle
    n_files: int

    @classmethod
    def open(cls, root: Path) -> Content:
        """Content of the device bundle at `root`, every file compared with its digest.

        Raises:
            ExportError: no device bundle there; a file is missing, changed or not listed.
            VerificationError: the graphs did not pass their verification when they were exported.
        """
        sums = _read_sums(root)
        for name, wanted in sums.items():
            _check_file(inner_file(root, name, _MEND), wanted)
        unlisted = [path.name for path in (root / BUNDLE).glob("*") if f"{BUNDLE}/{path.name}" not in sums]
        if unlisted:
            raise ExportError(f"{root / BUNDLE}: {', '.join(sorted(unlisted))}: not in {SUMS}; {_MEND}")
        bundle = open_bundle(root / BUNDLE)
        if not bundle.verified:
            raise VerificationError(f"{bundle.path}: these graphs did not pass their verification: export them again")
        return cls(root, bundle, len(sums))

    @property
    def engines(self) -> Path:
        """Folder that keeps engines unless another one is named."""
        return self.root / ENGINES

    @property
    def audio(self) -> AudioFacts:
        """Sample rate, hop and overlap of the graphs.

        Raises:
            ExportError: the manifest does not say.
        """
        return audio_facts(self.bundle)

    @property
    def segments(self) -> Segments | None:
        """Segments of a network that looks ahead; None for a causal one.

        Raises:
            ExportError: the manifest does not state them.
        """
        return Segments.of(self.bundle.manifest)

    def choose(self, precisions: Collection[str] = (), blocks: Collection[int] = ()) -> tuple[Graph, ...]:
        """Graphs of these precisions and block sizes, variants included; nothing named: all.

        Raises:
            ExportError: there is none of a precision or block that is named.
        """
        return choose(self.bundle, precisions, blocks)

    def metadata(self, graph: Graph) -> Mapping[str, str]:
        """Metadata that the graph's file must carry, as noted when it was packed."""
        try:
            return {
                str(key): str(value) for key, value in self.bundle.manifest["device"]["metadata"][graph.file].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{self.bundle.path}: the manifest lacks {graph.file}'s metadata; {_MEND}") from error

    def limits(self, precision: str) -> Mapping[str, Any]:
        """Limits `snr_db` and `max_abs` (None: any) against PyTorch's output, with which the graphs were verified.

        Raises:
            VerificationError: none are set.
        """
        limits = self.bundle.manifest["verification"].get("limits", {}).get(precision, {})
        ratio_db, max_abs = limits.get("snr_db"), limits.get("max_abs")
        if not isinstance(ratio_db, int | float) or not isinstance(max_abs, int | float | None):
            raise VerificationError(f"{self.bundle.path}: the manifest sets no limits for {precision}; {_MEND}")
        return {"snr_db": float(ratio_db), "max_abs": max_abs}

    def golden_vectors(self, variant: str = "") -> tuple[Wave, Wave]:
        """Input and PyTorch's output for it, (n_samples,) each, as streamed: the output runs behind.

        Of a network that looks ahead: one segment, in time with its output.

        Raises:
            ExportError: there are none.
            CalibrationError: they are damaged.
            VerificationError: they are silent, or differ in length.
        """
        reference = self.bundle.manifest["reference"]
        try:
            path, digest = self.bundle.file(reference["file"]), str(reference["digest"])
        except (KeyError, TypeError) as error:
            raise ExportError(f"{self.bundle.path}: the manifest names no golden vectors; {_MEND}") from error
        (batch,) = read_batches(path, digest).batches
        try:
            wave, enhanced = batch["wave"][0], batch[f"enhanced_{variant}" if variant else "enhanced"][0]
        except KeyError as error:
            raise ExportError(f"{path}: lacks {error}; {_MEND}") from error
        if wave.shape != enhanced.shape or not enhanced.any():
            raise VerificationError(f"{path}: its output is silent or not as long as its input; {_MEND}")
        return wave, enhanced


def choose(bundle: Bundle, precisions: Collection[str] = (), blocks: Collection[int] = ()) -> tuple[Graph, ...]:
    """Graphs of a bundle in these precisions and block sizes, variants included; nothing named: all.

    Raises:
        ExportError: there is none of a precision or block that is named.
    """
    require_streaming_form(bundle, blocks)
    chosen = tuple(
        graph
        for graph in bundle.graphs
        if graph.precision in (precisions or (graph.precision,)) and graph.block in (blocks or (graph.block,))
    )
    missing = [name for name in precisions if name not in {graph.precision for graph in chosen}]
    missing += [f"block {block}" for block in blocks if block not in {graph.block for graph in chosen}]
    if missing:
        offered = ", ".join(dict.fromkeys(f"block {graph.block} ({graph.precision})" for graph in bundle.graphs))
        raise ExportError(f"{bundle.path}: no graph of {', '.join(missing)}; here are {offered}")
    return chosen


def _read_sums(root: Path) -> dict[str, str]:
    path = root / SUMS
    content = read_bytes(path, _MOST_SUMS, f"is {root} an unpacked device bundle?")
    try:
        lines = content.decode().splitlines()
    except ValueError as error:
        raise ExportError(f"{path}: damaged ({error}); {_MEND}") from error
    sums: dict[str, str] = {}
    for line in lines:
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name:
            raise ExportError(f"{path}: damaged: found the line {line!r}, wanted a SHA-256 and a file; {_MEND}")
        sums[name] = digest
    return sums


def _check_file(path: Path, wanted: str) -> None:
    found = sha256_of(path, _MEND)
    if found != wanted:
        raise ExportError(f"{path}: changed: found SHA-256 {found}, {SUMS} wants {wanted}; {_MEND}")
