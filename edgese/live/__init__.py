"""Sound as it comes: streams of any rate and block, for programs, microphones and servers."""
