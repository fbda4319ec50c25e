"""Tender's weights (arXiv 2406.12930): symmetric integers, one scale per output channel from its largest magnitude.

The levels are -(2^(b-1) - 1) .. 2^(b-1) - 1 in one linear codebook. What is new in Tender are the activations
(export/contract/operators/tender.py); other methods' weights can be multiplied with those as well.
"""

from __future__ import annotations

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.codebook import CodebookLayout
from toolchain.numerics.hessian import layer_loss
from toolchain.quantize.packed import assemble, scale_dtype
from toolchain.settings.quantize import QuantizeSettings


def quantize(weights: np.ndarray, hessian: np.ndarray | None, settings: QuantizeSettings) -> StoredMatrix:
    """Quantize weights [N, K]; the Hessian only serves the recorded loss and may be None."""
    w = np.asarray(weights, dtype=np.float64)
    rows, columns = w.shape
    layout = CodebookLayout(settings.width, columns, rows, 0, rows_per_codebook=rows, rows_per_scale=1)
    limit = (1 << (settings.width - 1)) - 1
    exact = np.abs(w).max(axis=1, keepdims=True) / limit
    scale = exact.astype(scale_dtype(float(exact[exact > 0].min(initial=1.0)), float(exact.max())))
    divisor = np.where(scale > 0, scale, 1).astype(np.float64)
    codes = (np.clip(np.rint(w / divisor), -limit, limit) + limit).astype(np.uint8)
    levels = np.minimum(np.arange(1 << settings.width) - limit, limit)  # the last pattern is not used
    result = assemble(layout, codes, levels.reshape(1, 1, -1), scale, {})
    if hessian is not None:
        loss = layer_loss(w - result.dequantized(), hessian) / max(layer_loss(w, hessian), 1e-300)
        result.losses["rounding"] = float(loss)
    return result
