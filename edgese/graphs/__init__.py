"""The graphs of a network: their precision and form, their ONNX files, how they are opened and streamed."""
