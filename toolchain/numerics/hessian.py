"""The layer Hessian H = 2 X X^T: damping, its inverse factor, the layer loss, and Athena's block update (1.2).

Conventions: W is [N, K] (out, in), H is [K, K] float64 and shared by all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def is_positive_definite(matrix: np.ndarray) -> bool:
    """Whether a symmetric matrix has a Cholesky factor."""
    try:
        into_inverse_factor(np.array(matrix, np.float64), inverse=False)
    except np.linalg.LinAlgError:
        return False
    return True


def damped(
    hessian: np.ndarray, damping: float, is_positive: Callable[[np.ndarray], bool] = is_positive_definite
) -> tuple[np.ndarray, float]:
    """H + d mean(diag H) I with the smallest d >= damping (raised tenfold at a time) that makes it positive definite.

    Inputs that were never active (a zero diagonal) get the mean of the diagonal, so their weights are simply rounded.
    Returns the matrix and the damping used. is_positive: whether a matrix is positive definite.
    """
    diagonal = np.diag(hessian).astype(np.float64)
    mean = float(np.mean(diagonal))
    if mean <= 0.0:
        return np.eye(len(hessian)), damping
    h = np.array(hessian, dtype=np.float64)  # the only copy: one has 0.5 GB at 8,192 columns
    dead = diagonal <= 0.0
    h[dead, :] = 0.0
    h[:, dead] = 0.0
    diagonal[dead] = mean
    used = damping
    while True:
        h.flat[:: len(h) + 1] = diagonal + used * mean
        if is_positive(h):
            return h, used
        used = max(10 * used, 1e-8)


def inverse_factor(hessian: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Upper-triangular U with H^-1 = U^T U. Row j of U over U[j, j] is how column j's error spreads to later columns.

    Row j of U is row 0 of the same factor of H restricted to columns j.., so this one factor holds every
    inverse Hessian that the block update would produce (GPTQ, arXiv 2210.17323, section 3). order: int [K], of the
    rows and columns of H before that. Takes room for one matrix. Raises LinAlgError for what is not positive definite.
    """
    if order is None:
        order = np.arange(len(hessian))
    flipped = hessian[np.ix_(order[::-1], order[::-1])].astype(np.float64, copy=False)
    into_inverse_factor(flipped)
    return flipped


_PANEL = 128  # columns that are factorized at a time: what is computed beside the matrix is as wide


def into_inverse_factor(flipped: np.ndarray, inverse: bool = True) -> None:
    """H, its rows and columns in reverse, into inverse_factor(H), where it lies: float64 [K, K], contiguous.

    Of the reversed matrix: the inverse of its Cholesky factor, reversed, is upper. Without `inverse` what is left there
    is that factor in the lower half; raises LinAlgError where there is none. Panels of columns, so that
    almost all of it is matrix products.
    """
    n = len(flipped)
    panels = [slice(first, min(first + _PANEL, n)) for first in range(0, n, _PANEL)]
    for own in panels:
        below = flipped[own.start :, own]
        below -= flipped[own.start :, : own.start] @ flipped[own, : own.start].T
        width = own.stop - own.start
        root = np.linalg.cholesky(below[:width])
        flipped[own, own.stop :] = 0.0
        below[:width] = root
        below[width:] = below[width:] @ np.tril(np.linalg.inv(root)).T
    if not inverse:
        return
    for own in panels:  # rows of the inverse: those above are there
        root = np.tril(np.linalg.inv(flipped[own, own]))
        row = flipped[own, : own.start].copy()
        for done in panels[: own.start // _PANEL]:
            flipped[own, done] = -root @ (row[:, done.start :] @ flipped[done.start : own.start, done])
        flipped[own, own] = root
    values = flipped.reshape(-1)  # both in reverse: all numbers in reverse
    half = len(values) // 2
    for first in range(0, half, _PANEL * n):
        front = slice(first, min(first + _PANEL * n, half))
        back = slice(len(values) - front.stop, len(values) - front.start)
        moved = values[front][::-1].copy()
        values[front] = values[back][::-1]
        values[back] = moved


def row_regions(hessian: np.ndarray, rows: int, shared: int) -> list[tuple[slice, np.ndarray]]:
    """Runs of rows and the Hessian of each: one for [K, K], as many as there are groups for [groups, K, K].

    Regions end where codebooks do (every `shared` rows); one that covers several groups of rows gets their mean.
    """
    if hessian.ndim == 2:
        return [(slice(0, rows), hessian)]
    groups, chunks = len(hessian), -(-rows // shared)
    group_of = np.repeat(np.arange(groups), [len(part) for part in np.array_split(np.arange(rows), groups)])
    regions = []
    for part in np.array_split(np.arange(chunks), min(groups, chunks)):
        own = slice(int(part[0]) * shared, min((int(part[-1]) + 1) * shared, rows))
        shares = np.bincount(group_of[own], minlength=groups) / (own.stop - own.start)
        regions.append((own, np.tensordot(shares, hessian, 1)))
    return regions


def layer_loss(error: np.ndarray, hessian: np.ndarray) -> float:
    """tr(E H E^T) for E = W - W' [N, K]: twice the summed second-order loss of all rows."""
    return float(np.einsum("nk,nk->", error @ hessian, error))


def absorb_block(
    weights: np.ndarray, inverse: np.ndarray, block: slice, quantized: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Athena's block update, literally: move columns `block` to `quantized`, let all others compensate.

    weights float64 [N, K], inverse = H^-1 [K, K], quantized [N, B]. Returns the new weights [N, K], the inverse of H
    restricted to the remaining columns [K - B, K - B], and each row's loss increase
    1/2 (w_Q - q)^T (H^-1[Q, Q])^-1 (w_Q - q) [N]. Source: arXiv 2405.17470 (equations as in the Moonlight review).
    The solver in sweep.py does the same through inverse_factor; this form is its reference in the tests.
    """
    metric = np.linalg.inv(inverse[block, block])
    error = weights[:, block] - quantized
    updated = weights - error @ metric @ inverse[block, :]
    updated[:, block] = quantized
    reduced = inverse - inverse[:, block] @ metric @ inverse[block, :]
    keep = np.ones(inverse.shape[0], dtype=bool)
    keep[block] = False
    loss = 0.5 * np.einsum("nb,bc,nc->n", error, metric, error)
    return updated, reduced[np.ix_(keep, keep)], loss
