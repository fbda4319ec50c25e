"""Makes a matrix of 4-bit floats with a shared power of two (export/contract/formats/mxfp4.py).

Each run of 32 columns takes the exponent, of the two that its largest weight admits, whose rounding errors weighted by
the columns' curvature are the smaller. Codes are then rounded column by column in order of curvature, the error of each
spread over those that follow (GPTQ, arXiv 2210.17323); `--method rtn` leaves it at the nearest code.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.mxfp4 import BIAS, GROUP, HALVES, LARGEST_SCALE, Mxfp4Layout
from export.contract.packing import pack
from toolchain.numerics.hessian import damped, inverse_factor, layer_loss
from toolchain.settings.quantize import QuantizeSettings

_LEVELS = HALVES[:8].astype(np.float64)  # magnitudes, in halves
_LARGEST_EXPONENT = 2  # of a code: 6 = 1.5 * 2**2


@nb.njit(cache=True)
def _nearest(value, levels):  # type: ignore[no-untyped-def]
    """The code of a number in halves: nearest magnitude, the even code at ties (round half to even of the mantissa)."""
    magnitude, best = abs(value), 0
    for code in range(1, levels.size):
        distance, least = abs(levels[code] - magnitude), abs(levels[best] - magnitude)
        if distance < least or (distance == least and code % 2 == 0):
            best = code
    return best + 8 if value < 0 else best


@nb.njit(cache=True)
def _round_all(w, half, group, levels, codes):  # type: ignore[no-untyped-def]
    """Nearest codes of w [N, K]; half [N, G]: what one half is worth."""
    for r in range(w.shape[0]):
        for k in range(w.shape[1]):
            codes[r, k] = _nearest(w[r, k] / half[r, k // group], levels)


@nb.njit(cache=True, parallel=True)
def _sweep(w, factor, order, half, group, levels, codes):  # type: ignore[no-untyped-def]
    for r in nb.prange(w.shape[0]):
        work = w[r][order].copy()
        for p in range(order.size):
            step = half[r, order[p] // group]
            code = _nearest(work[p] / step, levels)
            codes[r, order[p]] = code
            value = -levels[code - 8] if code > 7 else levels[code]
            spread = (work[p] - step * value) / factor[p, p]
            for j in range(p, order.size):
                work[j] -= spread * factor[p, j]


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> tuple[Mxfp4Layout, int]:
    """Layout for a matrix [rows, columns], which settings do not change; no scale is coded further."""
    return Mxfp4Layout(4, columns, rows), 16


def quantize(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> StoredMatrix:
    """Quantize weights [N, K] under the layer Hessian [K, K]; settings.method "rtn" only rounds."""
    w = np.ascontiguousarray(weights, np.float64)
    layout, _ = choose_layout(w.shape[0], w.shape[1], settings)
    h, used = damped(hessian if hessian.ndim == 2 else hessian.mean(axis=0), settings.damping)
    total = max(layer_loss(w, h), 1e-300)
    scale = _scales(w, np.diag(h), layout)
    half = 2.0 ** (scale.astype(np.float64) - BIAS - 1)
    codes = np.empty(w.shape, np.uint8)
    _round_all(w, half, GROUP, _LEVELS, codes)
    losses = {"rounding": _loss(w, layout, codes, scale, h) / total}
    if settings.method != "rtn":
        order = np.argsort(-np.diag(h), kind="stable")
        swept = np.empty_like(codes)
        _sweep(w, inverse_factor(h[np.ix_(order, order)]), order, half, GROUP, _LEVELS, swept)
        loss = _loss(w, layout, swept, scale, h) / total
        if loss < losses["rounding"]:  # else rounding alone is better: nothing follows to take up the last errors
            codes, losses["sweep"] = swept, loss
    if used != settings.damping:
        losses["damping"] = used
    return StoredMatrix(layout, {"codes": pack(codes, layout.bits), "scale": scale}, losses=losses)


def _scales(w: np.ndarray, curvature: np.ndarray, layout: Mxfp4Layout) -> np.ndarray:
    """Exponents uint8 [N, G]: the smallest that holds the largest weight, or one less, which cuts it off."""
    padded = np.zeros((layout.N, layout.groups * GROUP))
    padded[:, : layout.K] = w
    grouped = padded.reshape(layout.N, layout.groups, GROUP)
    importance = np.zeros(layout.groups * GROUP)
    importance[: layout.K] = curvature
    largest = np.abs(grouped).max(axis=2)
    top = np.frexp(np.where(largest > 0, largest, 1.0))[1] - 1 - _LARGEST_EXPONENT + 1
    best, least = np.zeros(largest.shape, np.int64), np.full(largest.shape, np.inf)
    for exponent in (top, top - 1):
        step = np.ldexp(1.0, exponent - 1)[:, :, None]  # of one half
        nearest = np.empty((layout.N, layout.groups * GROUP), np.uint8)
        _round_all(padded, step[:, :, 0], GROUP, _LEVELS, nearest)
        error = grouped - HALVES[nearest].reshape(grouped.shape) * step
        loss = (error**2 * importance.reshape(1, layout.groups, GROUP)).sum(axis=2)
        best, least = np.where(loss < least, exponent, best), np.minimum(loss, least)
    return np.clip(best + BIAS, 0, LARGEST_SCALE).astype(np.uint8)


def _loss(w: np.ndarray, layout: Mxfp4Layout, codes: np.ndarray, scale: np.ndarray, h: np.ndarray) -> float:
    return float(layer_loss(w - layout.dequantized(pack(codes, layout.bits), scale), h))
