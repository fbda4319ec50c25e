"""Kernels of adapters' terms: low-rank ones and bottlenecks."""
