"""Group-scaled codes in float32: products and rows, decoded a tile at a time. Compiled in compiled.py."""

from __future__ import annotations

import numpy as np

from export.contract.formats.groups import MINIMA, ONE_ZERO, GroupsLayout
from runtime_py.reference.kernels import TILE_ROWS


def group_rows(
    rows: np.ndarray, layout: GroupsLayout, codes: np.ndarray, scale: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Rows `rows` int64 [R] of the matrix -> float32 [R, K].

    Raises IndexError on a row outside 0..N-1, ValueError on parts of another shape.
    """
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= layout.N):
        raise IndexError(f"row outside 0..{layout.N - 1}")
    if (codes.shape, scale.shape, offset.shape) != (layout.codes_shape, layout.scale_shape, layout.offset_shape):
        raise ValueError("the weights do not have the declared layout")
    from runtime_py.reference.compiled import decode_groups

    out = np.empty((rows.size, layout.K), np.float32)
    kinds = layout.bits, layout.group_size, layout.offsets == ONE_ZERO, layout.offsets == MINIMA
    decode_groups(rows, codes, scale.astype(np.float32), offset.astype(np.float32), *kinds, out)
    return out


def group_matmul(
    x: np.ndarray, layout: GroupsLayout, codes: np.ndarray, scale: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """x float32 [T, K] times the transposed matrix -> float32 [T, N]. Raises ValueError as group_rows."""
    if x.ndim != 2 or x.shape[1] != layout.K:
        raise ValueError("the input does not have K columns")
    out = np.empty((len(x), layout.N), np.float32)
    for first in range(0, layout.N, TILE_ROWS):
        rows = np.arange(first, min(first + TILE_ROWS, layout.N))
        out[:, first : first + rows.size] = x @ group_rows(rows, layout, codes, scale, offset).T
    return out
