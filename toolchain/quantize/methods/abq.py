"""ABQ-LLM's weights (arXiv 2408.08554): uniform levels, one clipped scale for each row.

The levels are -2^(b-1) .. 2^(b-1) - 1, or with bit balance, at 2 bits, the five -2 .. 2 ("W2*"), in one linear
codebook, so that a product is one of bit planes (export/contract/operators/bit_planes.py). A row's scale is a share of
its largest magnitude, its clipping. Clipping, and the smoothing of columns, are trained block by block on the block's
own output: toolchain/tune/calibration.py.

The paper has a zero point for each row as well; here levels lie around zero, and a row whose clipping is negative has
them the other way round, with the level that has no partner on the side that needs it.
"""

from __future__ import annotations

import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.codebook import CodebookLayout
from toolchain.numerics.hessian import layer_loss
from toolchain.quantize.packed import assemble, scale_dtype
from toolchain.settings.quantize import QuantizeSettings

BALANCED_BITS = 3  # what five levels are stored in


def levels_of(bits: int, balanced: bool) -> tuple[int, int]:
    """The lowest and the highest level."""
    lowest = -(1 << (bits - 1))
    return lowest, -lowest if balanced else -lowest - 1


def quantize(
    weights: np.ndarray, hessian: np.ndarray | None, settings: QuantizeSettings, clipping: np.ndarray | None = None
) -> StoredMatrix:
    """Quantize weights [N, K]; the Hessian only serves the recorded loss and may be None.

    clipping [N, 1]: signed shares of each row's largest magnitude that the lowest level stands for. None: all of it,
    on the side where it is, which is round to nearest (without bit balance, the method rtn).
    """
    w = np.asarray(weights, dtype=np.float64)
    rows, columns = w.shape
    lowest, highest = levels_of(settings.width, settings.bit_balance)
    if clipping is None:
        extreme = w[np.arange(rows), np.abs(w).argmax(axis=1)]
        clipping = np.where(extreme > 0, -1.0, 1.0)[:, None]
    exact = clipping * (np.abs(w).max(axis=1, keepdims=True) / -lowest)
    size = np.abs(exact)
    scale = exact.astype(scale_dtype(float(size[size > 0].min(initial=1.0)), float(size.max())))
    divisor = np.where(scale == 0.0, 1.0, scale).astype(np.float64)
    codes = (np.clip(np.rint(w / divisor), lowest, highest) - lowest).astype(np.uint8)
    bits = BALANCED_BITS if settings.bit_balance else settings.width
    layout = CodebookLayout(bits, columns, rows, 0, rows_per_codebook=rows, rows_per_scale=1)
    levels = np.minimum(np.arange(1 << bits) + lowest, highest)  # patterns behind the highest level are not used
    result = assemble(layout, codes, levels.reshape(1, 1, -1), scale, {})
    if hessian is not None:
        loss = layer_loss(w - result.dequantized(), hessian) / max(layer_loss(w, hessian), 1e-300)
        result.losses["rounding"] = float(loss)
    return result
