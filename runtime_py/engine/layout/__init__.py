"""Sizes and numbers that the planner and the kernels have in common. Without Numba."""
