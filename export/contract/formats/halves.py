"""Trellis levels that are sums: 256 levels from two tables of 16, which every processor looks up in registers.

    levels[s] = first[f >> 4 & 15] + second[s & 15]
    for the states s of 8 bits; f = s ^ s << FOLD[bits], or s where that is 0. Numpy only.

As QTIP's computed codes (arXiv 2406.11235, section 3.1) they need no large table; unlike those they are fitted, as a
codebook is. They are stored as 256 entries like any others: who can use the halves finds them with split().
"""

from __future__ import annotations

import numpy as np

STATE_BITS = 8
HALF = 16  # entries of a half
# By bits: with it neighbouring states differ in both halves, which serves fewer bits; at 4 they do without.
FOLD = {1: 3, 2: 3, 3: 3, 4: 0}


def indices(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [256] each: which entry of either half the states take."""
    states = np.arange(1 << STATE_BITS)
    folded = states ^ states << FOLD[bits] if FOLD[bits] else states
    return folded >> 4 & 15, states & 15


def joined(halves: np.ndarray, bits: int) -> np.ndarray:
    """The levels [..., 256] of halves [..., 32]: first, then second."""
    first, second = indices(bits)
    return np.ascontiguousarray(halves[..., first] + halves[..., HALF + second])


def gathered(values: np.ndarray, bits: int) -> np.ndarray:
    """The transpose of joined(): sums [..., 32] of values [..., 256] by the entries that they come from."""
    found = np.zeros((*values.shape[:-1], 2 * HALF), values.dtype)
    for start, index in zip((0, HALF), indices(bits)):
        for entry in range(HALF):
            found[..., start + entry] = values[..., index == entry].sum(axis=-1)
    return found


def split(levels: np.ndarray, bits: int) -> np.ndarray | None:
    """The halves int8 [..., 32] whose sums, mod 256, levels int8 [..., 256] are; None where they are no such sums."""
    first, second = indices(bits)
    place = np.argsort(first * HALF + second)  # of the state with entries i and j: place[16 * i + j]
    grid = levels.view(np.uint8)[..., place].reshape(*levels.shape[:-1], HALF, HALF)
    halves = np.concatenate([grid[..., :, 0] - grid[..., :1, 0], grid[..., 0, :]], axis=-1).view(np.int8)
    return halves if np.array_equal(joined(halves, bits), levels) else None
