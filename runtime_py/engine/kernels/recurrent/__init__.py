"""Kernels of what keeps a state of one size: convolutions, the delta rule, state spaces."""
