"""Scripts that measure speed, latency, memory. They are run by hand, from the root: `python -m benchmarks.startup`."""
