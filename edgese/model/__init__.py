"""Networks of the family, and the modules that they are made of."""
