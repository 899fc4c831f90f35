"""A board at the other end of ssh: a bundle is copied there, tested, measured, and used to enhance recordings."""
