"""Runs a model folder with Numba kernels. Needs numpy, numba, onnx (to read the file) and tokenizers; never torch."""
