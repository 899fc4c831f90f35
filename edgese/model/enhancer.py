"""Enhancer of waveforms: analysis, network and synthesis as one module with explicit states.

The same module is trained on, run over whole files, streamed hop by hop, and exported; it gives the same samples in
all four. The transform has two forms that a test holds together: `torch.fft` where PyTorch runs it, and products with
folded DFT matrices (dft.py) in exported graphs (TensorRT has no FFT).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from edgese.config import AudioConfig
from edgese.model import stft as features
from edgese.model.dft import FoldedDft
from edgese.model.network import Network
from edgese.model.pcs import ContrastStretching

TransformForm = Literal["fft", "matmul"]


class Transform(nn.Module):
    """STFT and inverse with the framing of `edgese.model.stft`, its memory an argument and a result.

    Letters: B streams, T frames, F bins.
    """

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.form: TransformForm = "fft"
        window = features.window(config)
        self.dft = FoldedDft(window, window * features.synthesis_scale(config))

    def forward(self, wave: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra of T new hops.

        Args:
            wave: (B, T * hop) in [-1, 1].
            before: (B, n_fft - hop), the samples before them.

        Returns:
            (B, T, F, 2), and the samples before the next hop.
        """
        hop, steps = self.config.hop, self.config.n_fft // self.config.hop
        samples = torch.cat([before, wave], dim=1)
        hops = samples.unflatten(1, (-1, hop))  # (B, T + steps - 1, hop)
        n_frames = hops.shape[1] - steps + 1
        frames = torch.cat([hops[:, step : step + n_frames] for step in range(steps)], dim=2)  # (B, T, n_fft)
        if self.form == "fft":
            spectrum = torch.view_as_real(torch.fft.rfft(frames * self.dft.window))
        else:
            spectrum = self.dft(frames)
        return spectrum, samples[:, -self.config.overlap :]

    def inverse(self, spectrum: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform of T frames, n_fft - hop samples behind their ends.

        Args:
            spectrum: (B, T, F, 2).
            before: (B, n_fft - hop), what earlier frames add to the next samples.

        Returns:
            (B, T * hop), and what these frames add to the samples after them.
        """
        hop, steps = self.config.hop, self.config.n_fft // self.config.hop
        if self.form == "fft":
            frames = torch.fft.irfft(torch.view_as_complex(spectrum.contiguous()), self.config.n_fft)
            frames = frames * self.dft.synthesis_window
        else:
            frames = self.dft.inverse(spectrum)  # (B, T, n_fft)
        shares = frames.split(hop, dim=2)  # steps x (B, T, hop)
        total = nn.functional.pad(before.unflatten(1, (-1, hop)), (0, 0, 0, frames.shape[1]))
        for step, share in enumerate(shares):
            total = total + nn.functional.pad(share, (0, 0, step, steps - 1 - step))  # (B, T + steps - 1, hop)
        wave = total.flatten(1)
        return wave[:, : -self.config.overlap], wave[:, -self.config.overlap :]


class WaveformEnhancer(nn.Module):
    """Network between analysis and synthesis; with `pcs`, perceptual contrast stretching comes after it."""

    def __init__(self, network: Network, audio: AudioConfig, *, pcs: bool = False) -> None:
        super().__init__()
        self.network = network
        self.transform = Transform(audio)
        self.contrast = ContrastStretching(audio) if pcs else None
        self.audio = audio

    def initial_state(self, streams: int = 1) -> dict[str, Tensor]:
        """Zero states of transform and network, in the order in which exported graphs list them."""
        network = self.network.initial_state(streams)
        device = self.transform.dft.window.device
        overlap = {name: torch.zeros(streams, self.audio.overlap, device=device) for name in ("analysis", "synthesis")}
        return overlap | network

    def forward(self, wave: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Enhanced samples, as many as there are new ones and n_fft - hop behind them.

        Args:
            wave: (B, T * hop) float32 in [-1, 1].
            state: tensors as in `initial_state`; not changed.

        Returns:
            (B, T * hop), and the state for the next call.
        """
        spectrum, analysis = self.transform(wave, state["analysis"])
        enhanced, network = self.network(spectrum, state)
        if self.contrast is not None:
            enhanced = self.contrast(enhanced)
        output, synthesis = self.transform.inverse(enhanced, state["synthesis"])
        return output, {"analysis": analysis, "synthesis": synthesis} | network

    @torch.no_grad()
    def enhance(self, wave: Tensor, block: int = 64) -> Tensor:
        """Enhanced whole waveforms, (B, n_samples), aligned with the input and equally long.

        `block` hops at a time; a network that is not causal takes all at once.
        """
        n_samples = wave.shape[1]
        whole = -(-(n_samples + self.audio.overlap) // self.audio.hop)
        size = (block if self.network.causal else whole) * self.audio.hop
        padded = nn.functional.pad(wave, (0, -(n_samples + self.audio.overlap) % size + self.audio.overlap))
        state, pieces = self.initial_state(len(wave)), []
        for piece in padded.split(size, dim=1):
            output, state = self(piece, state)
            pieces.append(output)
        return torch.cat(pieces, dim=1)[:, self.audio.overlap :][:, :n_samples]


class StreamStep(nn.Module):
    """Streaming step of an enhancer for export: wave and states as positional tensors, in the order of the states."""

    def __init__(self, enhancer: WaveformEnhancer) -> None:
        super().__init__()
        self.enhancer = enhancer
        self.names = tuple(enhancer.initial_state())

    def forward(self, wave: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        enhanced, after = self.enhancer(wave, dict(zip(self.names, states, strict=True)))
        return enhanced, *(after[name] for name in self.names)


class SegmentStep(nn.Module):
    """Exported form of a network that is not causal: a segment in, the same segment enhanced, aligned with it."""

    def __init__(self, enhancer: WaveformEnhancer) -> None:
        super().__init__()
        self.enhancer = enhancer

    def forward(self, wave: Tensor) -> Tensor:
        """Enhanced segment: (B, T * hop) -> the same shape."""
        overlap = self.enhancer.audio.overlap
        nothing = wave[:, :overlap] * 0  # not zeros_like: a graph would have to compute its shape in every call
        states = {"analysis": nothing, "synthesis": nothing}
        enhanced: Tensor = self.enhancer(torch.cat([wave, nothing], dim=1), states)[0]  # the last samples come late
        return enhanced[:, overlap:]
