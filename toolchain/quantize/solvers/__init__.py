"""Numerical solvers behind the quantization methods."""
