"""Machine that code runs on: its processor, clocks, power and processes."""
