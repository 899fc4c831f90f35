"""Facts of the audio that a bundle's graphs take and give, read from its manifest."""

from __future__ import annotations

import dataclasses

from edgese.networks import require_audio
from export import ExportError
from export.bundle import Bundle


@dataclasses.dataclass(frozen=True)
class AudioFacts:
    """Sample rate and hop of a bundle's graphs, and the samples by which their output runs behind their input."""

    sample_rate_hz: int
    hop: int
    overlap_samples: int  # 0 for a network that looks ahead


def audio_facts(bundle: Bundle) -> AudioFacts:
    """The facts of a bundle's audio that its users need to stream it, from its manifest.

    Raises:
        ExportError: the manifest lacks one, or they contradict each other.
        ConfigError: one is out of range.
    """
    manifest = bundle.manifest
    try:
        audio = {key: manifest["audio"][key] for key in ("sample_rate_hz", "n_fft", "hop")}
        overlap = manifest["latency"]["overlap_samples"]
    except KeyError as error:
        raise ExportError(
            f"{bundle.path}: the manifest's audio or latency lacks {error}; export the bundle again"
        ) from error
    require_audio(**audio)
    usual = audio["n_fft"] - audio["hop"]
    if overlap not in (0, usual):
        raise ExportError(
            f"{bundle.path}: found latency.overlap_samples {overlap}, wanted {usual}, or 0 for a network that "
            "looks ahead; export the bundle again"
        )
    return AudioFacts(audio["sample_rate_hz"], audio["hop"], overlap)
