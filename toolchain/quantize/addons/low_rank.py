"""Residual low-rank term: the leftover error D = W - W' stored as b @ a, optimal in the Hessian's metric.

Minimises tr((D - b a) H (D - b a)^T): with H = L L^T, the best rank-r approximation of D L is its truncated SVD, and
a = V L^-1 (seed_systems.md 1.5). Factors are stored in float16.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from toolchain.numerics.hessian import layer_loss
from toolchain.quantize.stored.codebook import QuantizedMatrix


def factors(error: np.ndarray, hessian: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """a [r, K] and b [N, r], float64, with singular values split evenly; r is at most min(N, K)."""
    root = np.linalg.cholesky(hessian)
    u, s, vt = np.linalg.svd(error @ root, full_matrices=False)
    r = min(rank, s.size)
    half = np.sqrt(s[:r])
    a = np.linalg.solve(root.T, (half[:, None] * vt[:r]).T).T
    return a, u[:, :r] * half


def low_rank(
    quantized: QuantizedMatrix, weights: np.ndarray, hessian: np.ndarray, rank: int, total: float
) -> QuantizedMatrix:
    """`quantized` with a residual term added; `total` normalises the recorded loss.

    The term is left out when float16 cannot hold it or when it does not lower the loss.
    """
    error = weights - quantized.dequantized()
    a, b = (part.astype(np.float16) for part in factors(error, hessian, rank))
    after = layer_loss(error - b.astype(np.float64) @ a.astype(np.float64), hessian)
    if not np.isfinite(after) or after >= layer_loss(error, hessian):
        return quantized
    losses = {**quantized.losses, "low_rank": after / total}
    return replace(quantized, lowrank_a=a, lowrank_b=b, losses=losses)
