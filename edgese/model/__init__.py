"""The networks of the family by name."""
