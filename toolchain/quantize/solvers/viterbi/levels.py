"""What a codebook of trellis codes may be: any levels, or sums of two tables (halves.py; `--levels`).

Levels [S] are a linear map of entries [E]: themselves, or 32 halves. What is fitted are the entries.
"""

from __future__ import annotations

import numpy as np

from export.contract.formats.halves import HALF, gathered, indices, joined
from export.contract.formats.trellis import LEVEL_LIMIT

_RIDGE = 1e-6  # of the mean mass: entries that little depends on, and the number that either half may give the other


def by_entry(values: np.ndarray, bits: int, sums: bool) -> np.ndarray:
    """Sums [..., E] over the levels that an entry is part of; values [..., S]."""
    return gathered(values, bits) if sums else values


def levels_of(entries: np.ndarray, bits: int, sums: bool) -> np.ndarray:
    """Levels [..., S] of entries [..., E]."""
    return joined(entries, bits) if sums else entries


def means(mass: np.ndarray, total: np.ndarray, before: np.ndarray, bits: int, sums: bool) -> np.ndarray:
    """The levels [S] nearest to numbers of which those of each state weigh `mass` and sum up, weighted, to `total`.

    before: the levels until now, which stay where nothing weighs.
    """
    if not sums:
        found: np.ndarray = np.where(mass > 0, total / np.maximum(mass, 1e-300), before)
        return found
    first, second = indices(bits)
    design = np.zeros((len(mass), 2 * HALF))
    design[np.arange(len(mass)), first] = design[np.arange(len(mass)), HALF + second] = 1.0
    square = design.T @ (mass[:, None] * design) + _RIDGE * mass.mean() * np.eye(2 * HALF)
    step = np.linalg.solve(square, design.T @ (total - mass * before)) if mass.any() else np.zeros(2 * HALF)
    return before + design @ step


def rounded(levels: np.ndarray, bits: int, sums: bool, free: bool) -> tuple[np.ndarray, float]:
    """Whole levels [S] of this form within LEVEL_LIMIT, and the factor by which they were stretched before.

    free: whether any factor will do; else it is 1, or less where the levels would not fit.
    """
    reach, most = float(np.abs(levels).max()), LEVEL_LIMIT - 1 if sums else LEVEL_LIMIT  # two roundings add up to one
    factor = most / reach if reach > 0 and (free or (sums and reach > most)) else 1.0
    stretched = levels.astype(np.float64) * factor
    if not sums:
        return np.clip(np.rint(stretched), -LEVEL_LIMIT, LEVEL_LIMIT).astype(np.float32), factor
    return joined(np.rint(entries_of(stretched, bits)), bits).astype(np.float32), factor


def entries_of(levels: np.ndarray, bits: int) -> np.ndarray:
    """Halves [..., 32] of levels [..., 256] that are sums, but for rounding: whole numbers where those are."""
    first, second = indices(bits)
    grid = levels[..., np.argsort(first * HALF + second)].reshape(*levels.shape[:-1], HALF, HALF)
    mean = grid.mean(axis=(-1, -2))[..., None]
    first, second = grid.mean(axis=-1) - mean, grid.mean(axis=-2)
    moved = first[..., :1] - np.rint(first[..., :1] + mean / 2)  # both get half of the mean
    return np.concatenate([first - moved, second + moved], axis=-1)
