"""Rows that have a codebook or a scale in common."""

from __future__ import annotations

import numba as nb


@nb.njit(cache=True, inline="always")
def shared(n, rows):
    """n // rows: whose codebook or scale a row has. Mostly it has its own, and a division takes long."""
    return n if rows == 1 else n // rows
