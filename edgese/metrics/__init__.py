"""Scores of enhanced speech against clean speech, and differences between arrays."""
