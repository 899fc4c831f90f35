"""`edgese verify`: every graph of a bundle held against PyTorch."""
