"""Hadamard matrices over blocks of columns: what rotated weights and activations are multiplied with. Numpy only."""

from __future__ import annotations

import numpy as np

_LARGEST_ROTATION = 256


def rotation_size(columns: int) -> int:
    """Columns that one Hadamard matrix mixes: the largest power of two that divides them, at most 256."""
    return min(columns & -columns, _LARGEST_ROTATION)


def hadamard(size: int) -> np.ndarray:
    """The orthogonal, symmetric Hadamard matrix float32 [size, size]; size is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / np.sqrt(size)).astype(np.float32)


def rotate_columns(matrix: np.ndarray, size: int) -> np.ndarray:
    """matrix [n, K] times the block-diagonal Hadamard matrix of this block size; its own inverse."""
    if size == 1:
        return matrix
    blocks = matrix.reshape(*matrix.shape[:-1], -1, size)
    return (blocks @ hadamard(size).astype(matrix.dtype)).reshape(matrix.shape)
