"""NVIDIA Triton: a bundle laid out as its model repository, and streams of sound on such a server."""
