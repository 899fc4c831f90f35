"""Verification of every graph of a bundle against PyTorch: `edgese verify`."""
