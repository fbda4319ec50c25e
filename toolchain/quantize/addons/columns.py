"""Columns apart: the few inputs that dominate a layer keep their weights in float16, beside the codes.

A few tokens of some models have activations a thousand times as large as all others (massive activations, arXiv
2402.17762), in one or two inputs of a layer. These own its Hessian: scales of rows and errors of all other columns
serve them, and damping, which is relative to the mean, drowns what ordinary tokens say. OWQ (arXiv 2306.02272) keeps
such columns, its weak ones, whole. Here they are chosen by what they would cost. A sweep's loss is a sum over columns:
an error's variance times the curvature that later columns leave, 1 / U_jj^2 (hessian.inverse_factor). So a column's
share of that sum is its share of the loss. Weights apart are fitted last, as the least-squares correction of what the
codes leave; so the codes are found under the Hessian without them, its Schur complement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from export.artefacts.stored_matrix import Outliers, StoredMatrix
from export.contract.sparse import sparse_parts
from toolchain.numerics.factors import ready_hessian
from toolchain.numerics.hessian import damped, layer_loss
from toolchain.quantize.packed import weight_dtype
from toolchain.settings.quantize import QuantizeSettings
from toolchain.system.threads import pieces

STORED_BITS = 32  # of a weight apart: its value and its place (export/contract/sparse.py)
# A column apart costs 32 / K bits a weight; without a share p of its loss, a matrix does with p / (2 ln 2) bits fewer:
# that pays from p = 44 / K on.
_SHARE = 44.0
_ROWS = 256  # of a Hessian that are treated at a time
_ROUNDS = 8  # columns that were hidden behind others
_RIDGE = 1e-8  # of the mean diagonal of the columns apart
_ROUNDING = 1e-9  # of the mean diagonal: what is left of few tokens is singular, and was rounded before


def dominant_columns(hessian: np.ndarray, damping: float, most: int | None = None) -> np.ndarray:
    """The columns of a Hessian [K, K] that are better stored apart, int64, ascending; most layers have none.

    most: how many it may be, a sixteenth of all unless given.
    """
    columns = len(hessian)
    most = columns // 16 if most is None else most
    apart, rest, h = np.zeros(0, np.int64), np.arange(columns), np.asarray(hessian, np.float64)
    for _ in range(_ROUNDS):
        diagonal = np.diag(h)
        if diagonal.max(initial=0.0) * 4 < _SHARE * diagonal.mean():  # no share can be as large
            break
        _, _, order, factor = ready_hessian(h, damping)
        left = np.diag(factor) ** -2.0
        worst = np.argsort(-left, kind="stable")[: max(most - apart.size, 0)]
        found = order[worst[left[worst] > _SHARE / columns * left.sum()]]
        if not found.size:
            break
        apart = np.sort(np.concatenate([apart, rest[found]]))
        rest = np.setdiff1d(rest, apart)
        h = _without(hessian, apart)[np.ix_(rest, rest)]
    return apart


def _without(hessian: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """What errors of the other columns cost [K, K] once those apart absorb what they can; next to nothing for those."""
    h = np.array(hessian, np.float64)
    own, floor = h[np.ix_(apart, apart)], _ROUNDING * np.diag(h).mean()
    own.flat[:: len(apart) + 1] += _RIDGE * np.diag(own).mean()
    cross = h[apart]
    solved = np.linalg.solve(own, cross)
    for rows in pieces(len(h), _ROWS):  # no second matrix beside this one; the same above and below the diagonal
        h[rows] -= (cross[:, rows].T @ solved + solved[:, rows].T @ cross) / 2
    h.flat[:: len(h) + 1] = np.maximum(np.diag(h), 0.0) + floor
    rest = np.setdiff1d(np.arange(len(h)), apart)
    h[apart, :] = h[:, apart] = 0.0
    h[apart, apart] = max(float(np.diag(h)[rest].mean()), 0.0) * _RIDGE if rest.size else 0.0
    return h


def remaining(hessian: np.ndarray, damping: float) -> tuple[np.ndarray, int]:
    """The Hessian [K, K] that codes are found under, and how many columns are apart."""
    apart = dominant_columns(hessian, damping)
    return (_without(hessian, apart) if apart.size else hessian), apart.size


def with_columns(
    quantizer: Callable[..., StoredMatrix], most: int | None, weights: np.ndarray, hessian: np.ndarray,
    settings: QuantizeSettings, *own: Any,
) -> StoredMatrix:  # fmt: skip
    """The method's result for weights [N, K], dominant columns apart, at most so many. own: what it takes besides."""
    apart = dominant_columns(hessian, settings.damping, most)
    if not apart.size:
        return quantizer(weights, hessian, settings, *own)
    reduced = _without(hessian, apart)
    result = quantizer(weights, reduced, settings, *own)
    error = weights.astype(np.float64) - result.dequantized()
    values = error[:, apart] + _absorbed(error, hessian, apart)
    places = (np.arange(len(weights))[:, None] * weights.shape[1] + apart).ravel()
    outliers = Outliers(*sparse_parts(places, values.ravel(), weight_dtype(values)))

    h, w = damped(hessian, settings.damping)[0], weights.astype(np.float64)
    total = max(layer_loss(w, h), 1e-300)
    share = layer_loss(w, damped(reduced, settings.damping)[0]) / total
    losses = {k: v if k == "damping" else v * share for k, v in result.losses.items()}
    losses["columns_apart"] = layer_loss(error - outliers.dense(*weights.shape), h) / total
    return replace(result, outliers=outliers, losses=losses)


def _absorbed(error: np.ndarray, hessian: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """What the columns apart [N, C] take over of the other columns' errors [N, K]."""
    own = np.array(hessian[np.ix_(apart, apart)], np.float64)
    own.flat[:: len(apart) + 1] += _RIDGE * np.diag(own).mean()
    others = error.copy()
    others[:, apart] = 0.0
    found: np.ndarray = np.linalg.solve(own, hessian[apart] @ others.T).T
    return found
