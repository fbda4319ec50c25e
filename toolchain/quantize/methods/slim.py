"""SLiM (arXiv 2410.09615): kept weights with one scale and even levels, and what is left as a low-rank term.

The mask is Wanda's (arXiv 2306.11695). With `--rank` the term is the best one when columns weigh as their inputs do,
and what it leaves is quantized once more under the mask. Stored as sparse codes, whose format is
export/contract/formats/sparse_codes.py; Athena's codes for the same form are solvers/sparse_codes.py.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.sparse_codes import SparseCodesLayout
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.quantize.packed import scale_dtype
from toolchain.quantize.solvers.sparse_codes import assembled, choose_layout, kept_weights
from toolchain.settings.quantize import QuantizeSettings

_BINS = 2048  # of the histogram of magnitudes that a clipping point is chosen by
_COARSE, _FINE = 11, 21  # clipping points that are tried, and between the neighbours of the best


def quantize(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> StoredMatrix:
    """Quantize weights [N, K] (finite) under the layer Hessian [K, K] (symmetric, positive semi-definite)."""
    w = np.ascontiguousarray(weights, np.float64)
    layout, _ = choose_layout(w.shape[0], w.shape[1], settings)
    mask = kept_weights(w, hessian, layout)
    h, _ = damped(hessian, settings.damping)
    total = max(layer_loss(w, h), 1e-300)
    result = _one_scale(w, mask, layout)
    result.losses["rounding"] = layer_loss(w - result.dequantized(), h) / total
    if not settings.rank:
        return result
    inputs = np.sqrt(np.diag(h))  # what SLiM scales columns by: the root mean square of the input
    u, s, vt = np.linalg.svd((w - result.dequantized()) * inputs, full_matrices=False)
    rank = min(settings.rank, s.size)
    root = np.sqrt(s[:rank])
    a, b = (root[:, None] * vt[:rank] / inputs).astype(np.float16), (u[:, :rank] * root).astype(np.float16)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return result
    again = _one_scale(w - b.astype(np.float64) @ a.astype(np.float64), mask, layout)
    after = layer_loss(w - again.dequantized() - b.astype(np.float64) @ a.astype(np.float64), h) / total
    return replace(again, low_rank=(a, b), losses={**result.losses, "low_rank": after})


def _one_scale(w: np.ndarray, mask: np.ndarray, layout: SparseCodesLayout) -> StoredMatrix:
    """Even symmetric levels up to the clipping point that loses least (SLiM-Quant, section 3.1)."""
    kept, limit = w[mask == 1], max((1 << (layout.bits - 1)) - 1, 1)
    count, edges = np.histogram(np.abs(kept), _BINS)
    middle = (edges[1:] + edges[:-1]) / 2

    def loss(clip: float) -> float:
        step = clip / limit
        return float((count * (middle - np.minimum(np.rint(middle / step), limit) * step) ** 2).sum())

    top = max(float(edges[-1]), 1e-30)
    tried = np.linspace(top / _COARSE, top, _COARSE)
    best = tried[np.argmin([loss(clip) for clip in tried])]
    tried = np.linspace(max(best - top / _COARSE, top / (10 * _COARSE)), min(best + top / _COARSE, top), _FINE)
    step = tried[np.argmin([loss(clip) for clip in tried])] / limit
    scale = np.array([[step]]).astype(scale_dtype(step, step))
    levels = np.minimum(np.arange(1 << layout.bits) - limit, limit)  # the last pattern is not used
    codes = (np.clip(np.rint(w / float(scale[0, 0])), -limit, limit) + limit).astype(np.uint8)
    return assembled(layout, mask, codes, levels[None], scale, {})
