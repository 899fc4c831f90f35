"""Training of networks: `edgese train`."""
