"""Compiled kernels as object files: where they are kept, how they are checked, and how they get into memory."""
