"""Compiled kernels, and how stored matrices lie before them."""
