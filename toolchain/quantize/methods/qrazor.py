"""QRazor weights (arXiv 2501.13331): 8-bit integers per row by the largest magnitude, then razored to 4 bits.

With `compensate`, columns are razored in order of curvature and the error of each is spread over those that follow, as
in GPTQ (arXiv 2210.17323); the flags stay those of the unchanged weights. With `refit`, the scale of each row is fitted
again by least squares under the Hessian, which never increases the layer loss.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from export.artefacts.stored_matrix import StoredMatrix
from export.contract.formats.razored import RazoredLayout
from export.contract.rotation import rotate_columns, rotation_size
from export.contract.sdr import SdrFormat, code_table, pack_codes, pack_flags, razor, restore, to_integers
from toolchain.numerics.hessian import damped, inverse_factor, layer_loss
from toolchain.quantize.packed import scale_dtype
from toolchain.settings.preparation import ACTIVATIONS
from toolchain.settings.quantize import QuantizeSettings


@nb.njit(cache=True, parallel=True)
def _sweep(w, factor, order, step, highest, lowest, codes):  # type: ignore[no-untyped-def]
    """w float64 [N, K], step float64 [N, K] (scale << flag of each element); codes int16 [N, K] is filled."""
    for r in nb.prange(w.shape[0]):
        work = w[r][order].copy()
        for p in range(order.size):
            s = step[r, order[p]]
            code = min(max(np.round(work[p] / s), lowest), highest)
            codes[r, order[p]] = np.int16(code)
            spread = (work[p] - s * code) / factor[p, p]
            for j in range(p, order.size):
                work[j] -= spread * factor[p, j]


def quantize(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> StoredMatrix:
    """Razor weights [N, K] under the layer Hessian [K, K]."""
    razor_settings = settings.razor
    form = razor_settings.format(8, settings.width)
    w, h = np.asarray(weights, np.float64), np.asarray(hessian, np.float64)
    rotation = rotation_size(w.shape[1]) if settings.rotates(ACTIVATIONS) else 1
    w = rotate_columns(w, rotation)
    h = rotate_columns(rotate_columns(h, rotation).T, rotation)
    h, _ = damped(h, settings.damping)
    whole = max(layer_loss(w, h), 1e-300)
    scale = _stored_scale(np.abs(w).max(axis=1, keepdims=True) / form.limit)
    unit = np.where(scale > 0, scale, 1).astype(np.float64)
    codes, flags = razor(to_integers(w, unit, form), form)
    losses = {"razored": _loss(w, codes, flags, unit, form, h) / whole}
    if razor_settings.compensate:
        codes = _compensated(w, h, unit, flags, form)
        losses["compensated"] = _loss(w, codes, flags, unit, form, h) / whole
    if razor_settings.refit:
        levels = restore(codes, flags, form.group_size).astype(np.float64)
        bent = levels @ h
        fitted = (bent * w).sum(axis=1, keepdims=True) / np.maximum((bent * levels).sum(axis=1, keepdims=True), 1e-300)
        scale = _stored_scale(np.where(fitted > 0, fitted, unit * (scale > 0)))
        losses["refitted"] = _loss(w, codes, flags, scale.astype(np.float64), form, h) / whole
    rows, columns = w.shape
    layout = RazoredLayout(form.width, columns, rows, form.group_size, rotation)
    packed = pack_flags(flags if form.flag_limit else flags[:1])
    parts = {
        "codes": pack_codes(codes, form),
        "codebook": code_table(form)[None, None],
        "flags": packed,
        "scale": scale,
    }
    return StoredMatrix(layout, parts, losses=losses)


def _stored_scale(exact: np.ndarray) -> np.ndarray:
    """Scales [N, 1] in the narrowest type that holds them."""
    return exact.astype(scale_dtype(float(exact[exact > 0].min(initial=1.0)), float(exact.max(initial=0.0))))


def _compensated(w: np.ndarray, h: np.ndarray, unit: np.ndarray, flags: np.ndarray, form: SdrFormat) -> np.ndarray:
    """Codes int16 [N, K] on the steps that scales and flags give."""
    order = np.argsort(-np.diag(h), kind="stable")
    factor = inverse_factor(h[np.ix_(order, order)])
    steps = np.repeat(1 << flags.astype(np.int64), form.group_size, axis=1)[:, : w.shape[1]]
    codes = np.zeros(w.shape, np.int16)
    _sweep(np.ascontiguousarray(w), factor, order, steps * unit, form.code_limit, form.lowest_code, codes)
    return codes


def _loss(
    w: np.ndarray, codes: np.ndarray, flags: np.ndarray, unit: np.ndarray, form: SdrFormat, h: np.ndarray
) -> float:
    return layer_loss(w - restore(codes, flags, form.group_size) * unit, h)
