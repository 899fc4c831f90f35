"""Shared parts of all pictures: matplotlib, loaded once, and colours."""
