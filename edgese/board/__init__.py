"""A board at the other end of ssh: what is there, a bundle brought there, tested, measured and listened to."""
