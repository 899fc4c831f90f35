"""`edgese enhance`: noisy recordings made clean."""
