"""Graphs of a network: their precision and form, their ONNX files, opening and streaming them."""
