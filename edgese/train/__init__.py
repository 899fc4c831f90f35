"""`edgese train`: data made into weights."""
