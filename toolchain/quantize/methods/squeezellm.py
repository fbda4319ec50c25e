"""SqueezeLLM, dense part (arXiv 2306.07629): one codebook per row by k-means weighted with squared gradients.

The sensitivity of a weight is its squared gradient of the language-model loss (diagonal Fisher information), summed
over the calibration sequences; a row whose gradients are all zero is clustered unweighted. The centroids are stored as
the op contract stores every codebook: int8 levels and a float16 scale per row. The published method keeps float16
centroids, which costs more bits and changes little; outliers are not split off here.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.codebook import CodebookLayout
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.numerics.kmeans import kmeans_1d
from toolchain.quantize.packed import assemble, scale_dtype
from toolchain.quantize.solvers.scalar import LEVEL_LIMIT
from toolchain.settings.quantize import QuantizeSettings


@nb.njit(cache=True, parallel=True)
def _cluster(w, weights, levels):  # type: ignore[no-untyped-def]
    """Centroids float64 [N, levels] of every row of w [N, K], ascending."""
    centroids = np.empty((w.shape[0], levels))
    for r in nb.prange(w.shape[0]):
        centroids[r] = kmeans_1d(w[r], weights[r], levels)
    return centroids


def quantize(
    weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings, fisher: np.ndarray | None = None
) -> StoredMatrix:
    """Quantize weights [N, K] with squared gradients `fisher` [N, K] (None: unweighted).

    The Hessian serves the recorded loss only.
    """
    w = np.ascontiguousarray(weights, dtype=np.float64)
    sensitivity = np.ones_like(w) if fisher is None else np.ascontiguousarray(fisher, dtype=np.float64)
    centroids = _cluster(w, sensitivity, 1 << settings.width)
    exact = np.abs(centroids).max(axis=1, keepdims=True) / LEVEL_LIMIT
    used = exact[exact > 0]
    scale = exact.astype(scale_dtype(float(used.min(initial=1.0)), float(exact.max())))
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    levels = np.rint(centroids / divisor).clip(-LEVEL_LIMIT, LEVEL_LIMIT)
    codes = np.empty(w.shape, np.uint8)
    for r in range(w.shape[0]):
        codes[r] = np.abs(w[r][:, None] - levels[r] * float(scale[r, 0])).argmin(axis=1)
    layout = CodebookLayout(settings.width, w.shape[1], w.shape[0])
    result = assemble(layout, codes, levels[:, None, :], scale, {})
    h, _ = damped(hessian, settings.damping)
    result.losses["clustering"] = layer_loss(w - result.dequantized(), h) / max(layer_loss(w, h), 1e-300)
    return result
