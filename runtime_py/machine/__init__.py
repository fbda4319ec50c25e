"""What kernels are compiled for: instruction sets and the processors that have them, widths of codes. Without Numba."""
