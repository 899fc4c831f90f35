"""Questions that commands ask of a bundle: the shipped one, verified or not, audio settings, graph for options."""

from __future__ import annotations

from pathlib import Path

from edgese.config import AudioConfig, from_dict
from edgese.errors import VerificationError
from edgese.graphs import HUB
from edgese.graphs.audio_facts import audio_facts, open_bundle
from edgese.graphs.precision import Precision
from edgese.graphs.segments import require_streaming_form
from export import ExportError
from export.bundle import Bundle, Graph

SHIPPED = ("base", "small")  # names of the bundles that come with this package; the first is the default


def shipped_bundle(name: str = SHIPPED[0]) -> Path:
    """Path of a bundle that comes with this package."""
    return Path(__file__).parents[1] / "weights" / f"mbs-net-{name}"


def bundle_path(named: Path | None) -> Path:
    """Path of the bundle that a user names: its folder, one of `SHIPPED`, or one of the Hub; None: the default.

    Raises:
        ExportError: there is none.
        EdgeseError: it cannot be fetched from the Hub (edgese/graphs/hub.py).
    """
    if named is None:
        return shipped_bundle()
    if named.exists():
        return named
    if str(named).startswith(HUB):
        from edgese.graphs.hub import fetch

        return fetch(str(named))
    if str(named) not in SHIPPED:
        shipped = " or ".join(SHIPPED)
        wanted = f"wanted one that holds manifest.json, the name {shipped} of what is shipped, or {HUB}owner/name"
        raise ExportError(f"{named}: not a bundle: found no such directory, {wanted}")
    return shipped_bundle(str(named))


def audio_config(bundle: Bundle) -> AudioConfig:
    """Audio settings of a bundle's network.

    Raises:
        ExportError: the manifest does not say, or the bundle contradicts itself.
    """
    audio_facts(bundle)
    try:
        audio = {key: bundle.manifest["audio"][key] for key in ("sample_rate_hz", "n_fft", "hop")}
    except (KeyError, TypeError) as error:
        raise ExportError(f"{bundle.path}: the manifest's audio lacks {error}; export the bundle again") from error
    return from_dict(AudioConfig, audio, "audio.")


def is_trained(bundle: Bundle) -> bool:
    """True if the bundle's network was trained: `edgese export --model` exports networks before training."""
    return bool(bundle.manifest.get("trained", True))


def choose_graph(
    bundle: Bundle, *, block: int | None = None, precision: Precision = Precision.FP32, pcs: bool = False
) -> Graph:
    """Graph of a bundle that enhances with these options; for the arguments, see `Denoiser`.

    Raises:
        ExportError: the bundle has no such graph, or no streaming form.
    """
    if block is not None:
        require_streaming_form(bundle, [block])
    variant = "pcs" if pcs else ""
    same = [graph for graph in bundle.graphs if (graph.precision, graph.variant) == (precision, variant)]
    if not same and (pcs or precision != Precision.FP32):
        wanted = f"{precision.value} with PCS" if pcs else precision.value
        options = "".join([f" --precision {precision.value}" * (precision != Precision.FP32), " --pcs" * pcs])
        raise ExportError(
            f"{bundle.path}: found no graphs in {wanted}, wanted some; make a bundle that has them "
            f"(edgese export{options}) and name it (--model)"
        )
    largest = max((graph.block for graph in same), default=0)
    return bundle.graph(block=largest if block is None else block, precision=precision.value, variant=variant)


def open_verified(bundle_path: Path) -> Bundle:
    """Open a bundle that passed its verification.

    Raises:
        ExportError: no bundle there, or a damaged one.
        VerificationError: the bundle was never shown to agree with PyTorch.
    """
    bundle = open_bundle(bundle_path)
    if not bundle.verified:
        raise VerificationError(
            f"{bundle_path}: this bundle did not pass its verification, its sound cannot be trusted: export it again"
        )
    return bundle
