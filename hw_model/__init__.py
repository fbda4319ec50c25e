"""Latency, energy and area of an exported model on the targets in `targets/`, read from its ONNX graph."""
