"""Kernels of adapters' low-rank terms."""
