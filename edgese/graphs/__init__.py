"""Graphs of a network: their precision and form, their ONNX files, opening and streaming them."""

HUB = "hf:"  # how the name of a bundle on the Hugging Face Hub begins (hub.py)
