"""Factors of adapters as they lie for the kernels (kernels/adapters/low_rank.py)."""

from __future__ import annotations

import numpy as np

ROWS = 4  # rows of a that are multiplied together
COLUMNS = 64  # numbers of y that are added to together


def laid_down(a: np.ndarray) -> np.ndarray:
    """a [rank, columns] as down() reads it, [groups, vectors, ROWS, 16]."""
    rank, columns = a.shape
    made = np.zeros((-(-rank // ROWS) * ROWS, -(-columns // 16) * 16), a.dtype)
    made[:rank, :columns] = a
    return np.ascontiguousarray(made.reshape(-1, ROWS, made.shape[1] // 16, 16).transpose(0, 2, 1, 3))


def laid_up(b: np.ndarray) -> np.ndarray:
    """b [rank, rows] as up() reads it, [blocks, rank, COLUMNS]."""
    rank, rows = b.shape
    made = np.zeros((rank, -(-rows // COLUMNS) * COLUMNS), b.dtype)
    made[:, :rows] = b
    return np.ascontiguousarray(made.reshape(rank, -1, COLUMNS).transpose(1, 0, 2))
