"""Athena: inverse-Hessian guided codebook quantization (arXiv 2405.17470), in the form of the op contract.

Per matrix: curvature-weighted k-means gives each codebook, its entries are rounded to int8 at once, columns are then
rounded in order of curvature while all later columns absorb the error through the inverse Hessian, and rounds of
least-squares codebooks and coordinate descent on the codes lower the same objective ||(W - W') X||^2 further
(LNQ, arXiv 2505.07004). What is left can be stored as a low-rank term in the Hessian's metric.
"""

from __future__ import annotations

import math

import numpy as np

from export.contract import CodebookLayout
from toolchain.quantize.hessian import damped, inverse_factor, layer_loss
from toolchain.quantize.lowrank import low_rank
from toolchain.quantize.result import QuantizedMatrix, assemble, scale_dtype
from toolchain.quantize.settings import OVERHEAD_TARGET, QuantizeSettings
from toolchain.quantize.solver import LEVEL_LIMIT, solve

_SCALE_BITS = 16


def choose_layout(rows: int, columns: int, settings: QuantizeSettings) -> CodebookLayout:
    """Codebook sharing for a matrix [rows, columns]: as asked, or the fewest rows per codebook within the overhead.

    The automatic choice takes the smallest power of two of rows for which codebook and scale cost at most
    OVERHEAD_TARGET bits per weight.
    """
    width = min(settings.group_size, columns) or columns
    groups = math.ceil(columns / width)
    shared = settings.rows_per_codebook
    if shared == 0:
        per_codebook = 8 * 2**settings.bits + (0 if settings.scale_per_row else _SCALE_BITS)
        shared = 1
        while shared < rows and per_codebook * groups / (shared * columns) > OVERHEAD_TARGET:
            shared *= 2
    shared = min(shared, rows)
    return CodebookLayout(
        bits=settings.bits,
        K=columns,
        N=rows,
        group_size=0 if width >= columns else width,
        rows_per_codebook=shared,
        rows_per_scale=1 if settings.scale_per_row else shared,
    )


def quantize(weights: np.ndarray, hessian: np.ndarray, settings: QuantizeSettings) -> QuantizedMatrix:
    """Quantize weights [N, K] (finite) under the layer Hessian [K, K] (symmetric, positive semi-definite)."""
    w = np.ascontiguousarray(weights, dtype=np.float64)
    layout = choose_layout(*w.shape, settings)
    h, used_damping = damped(hessian, settings.damping)
    curvature = np.diag(h).copy()
    group_of = np.arange(layout.K) // layout.columns_per_group
    # With one codebook a row the sweep may take any order; groups are fitted when reached, so they keep theirs.
    order = np.argsort(-curvature, kind="stable") if layout.groups == 1 else np.arange(layout.K)
    factor = inverse_factor(h[np.ix_(order, order)])

    chunks, groups, levels = layout.codebook_shape
    codes = np.zeros(w.shape, np.uint8)
    book = np.zeros((chunks, groups, levels))
    scale = np.zeros((layout.N, groups))
    losses = np.zeros((chunks, 3))
    dtype = scale_dtype(*_scale_range(w))
    own_scales = layout.rows_per_scale == 1 and layout.rows_per_codebook > 1
    shared, half = layout.rows_per_codebook, dtype is np.float16
    solve(
        w, h, factor, order, curvature, group_of, shared, own_scales, half, settings.passes, codes, book, scale, losses
    )
    total = max(layer_loss(w, h), 1e-300)
    names = ("clustering", "sweep", "refinement")
    record = {name: float(losses[:, i].sum() / total) for i, name in enumerate(names)}
    if used_damping != settings.damping:
        record["damping"] = used_damping
    result = assemble(layout, codes, book, scale[:: layout.rows_per_scale].astype(dtype), record)
    if settings.rank > 0:
        result = low_rank(result, w, h, settings.rank, total)
    return result


def _scale_range(w: np.ndarray) -> tuple[float, float]:
    """Bounds on the scales that the rows can need, from each row's largest weight; rows of zeros do not count.

    Least squares may shrink a codebook below the largest weight, hence the factor of four.
    """
    largest = np.abs(w).max(axis=1)
    return float(largest[largest > 0].min(initial=1.0)) / (4 * LEVEL_LIMIT), float(largest.max()) / LEVEL_LIMIT
