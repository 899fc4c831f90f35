"""Enhancement of noisy recordings: `edgese enhance`."""
