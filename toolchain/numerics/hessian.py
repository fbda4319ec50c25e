"""The layer Hessian H = 2 X X^T: damping, its inverse factor, the layer loss, and Athena's block update (1.2).

Conventions: W is [N, K] (out, in), H is [K, K] float64 and shared by all rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def is_positive_definite(matrix: np.ndarray) -> bool:
    """Whether a symmetric matrix has a Cholesky factor."""
    try:
        np.linalg.cholesky(matrix)
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
    h = np.array(hessian, dtype=np.float64)
    mean = float(np.mean(np.diag(h)))
    if mean <= 0.0:
        return np.eye(h.shape[0]), damping
    dead = np.diag(h) <= 0.0
    h[dead, :] = 0.0
    h[:, dead] = 0.0
    h[dead, dead] = mean
    used = damping
    while True:
        candidate = h.copy()  # an identity matrix would be two more of 0.5 GB at 8,192 columns
        candidate.flat[:: len(h) + 1] += used * mean
        if is_positive(candidate):
            return candidate, used
        used = max(10 * used, 1e-8)


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """Upper-triangular U with H^-1 = U^T U. Row j of U over U[j, j] is how column j's error spreads to later columns.

    Row j of U is row 0 of the same factor of H restricted to columns j.., so this one factor holds every
    inverse Hessian that the block update would produce (GPTQ, arXiv 2210.17323, section 3).
    """
    flipped = np.linalg.cholesky(hessian[::-1, ::-1])  # of the reversed matrix: its inverse, reversed, is upper
    return np.ascontiguousarray(_inverse_triangle(flipped)[::-1, ::-1])


def _inverse_triangle(lower: np.ndarray) -> np.ndarray:
    """Inverse of a lower-triangular matrix [n, n], by halves: almost all of it is matrix products."""
    n = len(lower)
    if n <= 64:
        return np.tril(np.linalg.inv(lower))
    half = n // 2
    out = np.zeros_like(lower)
    out[:half, :half] = _inverse_triangle(lower[:half, :half])
    out[half:, half:] = _inverse_triangle(lower[half:, half:])
    out[half:, :half] = -out[half:, half:] @ (lower[half:, :half] @ out[:half, :half])
    return out


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
