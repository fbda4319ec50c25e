"""Round to nearest: uniform levels, one scale per row and column group, no calibration. The baseline of every table.

The levels are -2^(b-1) .. 2^(b-1) - 1 and the scale is signed so that the entry of largest magnitude becomes the lowest
level, which uses all of them (the rule of llama.cpp's Q4_0). Stored with one linear codebook for the whole matrix.
"""

from __future__ import annotations

import numpy as np

from export.contract.formats.codebook import CodebookLayout
from toolchain.numerics.hessian import layer_loss
from toolchain.quantize.stored.codebook import QuantizedMatrix, assemble, scale_dtype
from toolchain.settings.quantize import QuantizeSettings


def quantize(weights: np.ndarray, hessian: np.ndarray | None, settings: QuantizeSettings) -> QuantizedMatrix:
    """Quantize weights [N, K]; the Hessian only serves the recorded loss and may be None."""
    w = np.asarray(weights, dtype=np.float64)
    rows, columns = w.shape
    width = min(settings.group_size, columns) or columns
    group_size = 0 if width >= columns else width
    layout = CodebookLayout(settings.width, columns, rows, group_size, rows_per_codebook=rows, rows_per_scale=1)
    lowest = -(1 << (settings.width - 1))
    levels = np.arange(lowest, lowest + (1 << settings.width))
    codes = np.empty(w.shape, np.uint8)
    exact = np.zeros((rows, layout.groups))
    spans = [slice(g * width, min((g + 1) * width, columns)) for g in range(layout.groups)]
    for g, span in enumerate(spans):
        part = w[:, span]
        extreme = part[np.arange(rows), np.abs(part).argmax(axis=1)]
        exact[:, g] = extreme / lowest
    size = np.abs(exact)
    dtype = scale_dtype(float(size[size > 0].min(initial=1.0)), float(size.max()))
    scale = exact.astype(dtype)
    for g, span in enumerate(spans):
        divisor = scale[:, g].astype(np.float64)
        divisor[divisor == 0.0] = 1.0
        grid = np.clip(np.rint(w[:, span] / divisor[:, None]), lowest, levels[-1])
        codes[:, span] = (grid - lowest).astype(np.uint8)
    result = assemble(layout, codes, np.broadcast_to(levels, (1, layout.groups, levels.size)), scale, {})
    if hessian is not None:
        loss = layer_loss(w - result.dequantized(), hessian) / max(layer_loss(w, hessian), 1e-300)
        result.losses["rounding"] = float(loss)
    return result
