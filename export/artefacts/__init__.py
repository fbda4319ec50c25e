"""Quantized checkpoints, manifests, chat templates, and model.onnx read as plain data."""
