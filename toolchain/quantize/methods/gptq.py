"""GPTQ (arXiv 2210.17323): uniform levels, columns rounded in order of curvature, the error spread to later columns.

Symmetric, as in GPTQModel's default: one signed scale per row and column group, taken from the unquantized weights
(static groups), so that the order of the columns is free (act-order). Stored with one linear codebook for the matrix.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from toolchain.numerics.hessian import damped, inverse_factor, layer_loss
from toolchain.quantize.methods import rtn
from toolchain.quantize.stored.codebook import QuantizedMatrix, assemble
from toolchain.settings.quantize import QuantizeSettings


@nb.njit(cache=True, parallel=True)
def _sweep(w, factor, order, scale, width, lowest, highest, codes):  # type: ignore[no-untyped-def]
    """w float64 [N, K] is overwritten with the compensated weights, codes uint8 [N, K] filled."""
    for r in nb.prange(w.shape[0]):
        work = w[r][order].copy()
        for p in range(order.size):
            s = scale[r, order[p] // width]
            level = 0.0
            if s != 0.0:
                level = min(max(np.round(work[p] / s), lowest), highest)
            codes[r, order[p]] = np.uint8(level - lowest)
            spread = (work[p] - s * level) / factor[p, p]
            for j in range(p, order.size):
                work[j] -= spread * factor[p, j]


def quantize(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> QuantizedMatrix:
    """Quantize weights [N, K] under the layer Hessian [K, K]."""
    start = rtn.quantize(weights, hessian, settings)
    h, _ = damped(hessian, settings.damping)
    order = np.argsort(-np.diag(h), kind="stable")
    lowest = -(1 << (settings.width - 1))
    w = np.ascontiguousarray(weights, dtype=np.float64)
    codes = np.zeros(w.shape, np.uint8)
    factor = inverse_factor(h[np.ix_(order, order)])
    scale = start.scale.astype(np.float64)
    _sweep(w.copy(), factor, order, scale, start.layout.columns_per_group, lowest, -lowest - 1, codes)
    result = assemble(start.layout, codes, start.codebook, start.scale, dict(start.losses))
    result.losses["sweep"] = layer_loss(w - result.dequantized(), h) / max(layer_loss(w, h), 1e-300)
    return result
