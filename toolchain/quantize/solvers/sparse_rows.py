"""The inner loops of sparse_codes.py in Numba: those of scalar.py for rows of which only some weights have codes.

A chunk holds R rows w [R, K] that share a codebook [levels]; q[r, k] = scale[r] * codebook[code[r, k]] where
mask[r, k] is 1, else 0. The loss of a row is e^T H e, e = w - q; `gradient` holds H e and is kept up to date.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from toolchain.numerics.kmeans import kmeans_1d
from toolchain.quantize.solvers.scalar import (
    LEVEL_LIMIT,
    _axpy,
    _gradient,
    _half,
    _nearest,
    _round_codebook,
    _solve_positive,
)

_CYCLES = 3  # of coordinate descent a pass


@nb.njit(cache=True)
def _errors(w, mask, codes, book, scale, hessian, error, gradient):  # type: ignore[no-untyped-def]
    """error = w - q and gradient = H error for all rows of the chunk; returns the chunk's loss."""
    total = 0.0
    for r in range(w.shape[0]):
        for j in range(w.shape[1]):
            error[r, j] = w[r, j] - (scale[r] * book[codes[r, j]] if mask[r, j] else 0.0)
        total += _gradient(error[r], hessian, gradient[r])
    return total


@nb.njit(cache=True)
def _cluster(w, mask, curvature, half_scale, book, scale):  # type: ignore[no-untyped-def]
    """Curvature-weighted k-means of the kept weights, each row divided by its own size."""
    rows, width = w.shape
    base = np.empty(rows)
    values, weights = np.empty(rows * width), np.empty(rows * width)
    at = 0
    for r in range(rows):
        total, shares = 0.0, 0.0
        for j in range(width):
            if mask[r, j]:
                total += w[r, j] * w[r, j] * curvature[j]
                shares += curvature[j]
        base[r] = max(np.sqrt(total / shares), 1e-30)
        for j in range(width):
            if mask[r, j]:
                values[at] = w[r, j] / base[r]
                weights[at] = curvature[j] * base[r] * base[r]
                at += 1
    _round_codebook(kmeans_1d(values[:at], weights[:at], book.size), base, half_scale, book, scale)


@nb.njit(cache=True)
def _sweep(w, mask, factor, order, book, scale, codes):  # type: ignore[no-untyped-def]
    """Columns in `order`: round what is kept, drop what is not, and let all later columns absorb the error."""
    for r in range(w.shape[0]):
        work, s = w[r][order].copy(), scale[r]
        for p in range(order.size):
            value = 0.0
            if mask[r, order[p]]:
                k = _nearest(book, work[p] / s if s > 0.0 else 0.0)
                codes[r, order[p]] = k
                value = s * book[k]
            _axpy(work, factor[p], (work[p] - value) / factor[p, p], p)


@nb.njit(cache=True)
def _descend(mask, codes, book, scale, hessian, error, gradient):  # type: ignore[no-untyped-def]
    """One cycle of coordinate descent over the codes of every row; never increases the loss. Returns the changes."""
    changes = 0
    for r in range(codes.shape[0]):
        s = scale[r]
        if s <= 0.0:
            continue
        for j in range(codes.shape[1]):
            if not mask[r, j]:
                continue
            old, wish = book[codes[r, j]], gradient[r, j] / hessian[j, j]
            k = _nearest(book, old + wish / s)
            step = s * (book[k] - old)
            if step * (step - 2.0 * wish) < 0.0:
                codes[r, j] = k
                error[r, j] -= step
                _axpy(gradient[r], hessian[j], step, 0)
                changes += 1
    return changes


@nb.njit(cache=True)
def _refit(mask, codes, book, scale, hessian, gradient):  # type: ignore[no-untyped-def]
    """Least-squares codebook for fixed codes and scales: real levels (LNQ, arXiv 2505.07004), as scalar._refit."""
    levels, width = book.size, codes.shape[1]
    normal, right, spread = np.zeros((levels, levels)), np.zeros(levels), np.empty((levels, width))
    for r in range(codes.shape[0]):
        s = scale[r]
        spread[:] = 0.0
        for j in range(width):
            if mask[r, j]:
                _axpy(spread[codes[r, j]], hessian[j], -1.0, 0)
                right[codes[r, j]] += s * gradient[r, j]
        for j in range(width):
            if mask[r, j]:
                for k in range(levels):
                    normal[k, codes[r, j]] += s * s * spread[k, j]
    ridge = 1e-9 * np.trace(normal) / levels + 1e-300
    for k in range(levels):
        normal[k, k] += ridge
    return book + _solve_positive(normal, right)


@nb.njit(cache=True)
def _rescale(mask, codes, book, hessian, gradient, scale, half_scale):  # type: ignore[no-untyped-def]
    """Least-squares scale of every row for fixed codes and codebook: s += u^T H e / u^T H u."""
    width = codes.shape[1]
    unit, turned = np.empty(width), np.empty(width)
    for r in range(codes.shape[0]):
        slope = 0.0
        for j in range(width):
            unit[j] = book[codes[r, j]] if mask[r, j] else 0.0
            slope += unit[j] * gradient[r, j]
        size = _gradient(unit, hessian, turned)
        if size > 0.0 and scale[r] + slope / size > 0.0:
            exact = scale[r] + slope / size
            scale[r] = _half(exact) if half_scale else exact


@nb.njit(cache=True)
def _refine_chunk(w, mask, hessian, fixed_scale, half_scale, passes, codes, book, scale):  # type: ignore[no-untyped-def]
    """Rounds of least squares and coordinate descent from the given state, which remains where they gain nothing."""
    error, gradient = np.empty(w.shape), np.empty(w.shape)
    best_loss = _errors(w, mask, codes, book, scale, hessian, error, gradient)
    best = (codes.copy(), book.copy(), scale.copy())
    for _ in range(passes):
        real = _refit(mask, codes, book, scale, hessian, gradient)
        if fixed_scale:
            book[:] = np.clip(np.round(real), -LEVEL_LIMIT, LEVEL_LIMIT)
        else:
            _round_codebook(real, scale.copy(), half_scale, book, scale)
            _errors(w, mask, codes, book, scale, hessian, error, gradient)
            _rescale(mask, codes, book, hessian, gradient, scale, half_scale)
        _errors(w, mask, codes, book, scale, hessian, error, gradient)
        for _cycle in range(_CYCLES):
            if _descend(mask, codes, book, scale, hessian, error, gradient) * 1000 < codes.size:
                break
        loss = _errors(w, mask, codes, book, scale, hessian, error, gradient)
        if loss < best_loss:
            best, best_loss = (codes.copy(), book.copy(), scale.copy()), loss
    codes[:], book[:], scale[:] = best
    return best_loss


@nb.njit(cache=True, parallel=True)
def start(w, mask, hessian, factor, order, shared, half_scale, codes, book, scale, losses):  # type: ignore[no-untyped-def]
    """Cluster and sweep all rows of w [N, K], `shared` rows to a codebook.

    mask uint8 [N, K], at least one kept in each row; hessian [K, K] damped; factor [K, K] its inverse_factor permuted
    by `order` [K]. Filled in place: codes uint8 [N, K], book float64 [chunks, levels] of int8 values, scale float64
    [N], losses float64 [chunks].
    """
    curvature = np.diag(hessian).copy()
    for chunk in nb.prange(book.shape[0]):
        a, b = chunk * shared, min((chunk + 1) * shared, w.shape[0])
        _cluster(w[a:b], mask[a:b], curvature, half_scale, book[chunk], scale[a:b])
        for r in range(a, b):
            for j in range(w.shape[1]):
                codes[r, j] = _nearest(book[chunk], w[r, j] / scale[r] if scale[r] > 0.0 else 0.0)
        error, gradient, first = np.empty((b - a, w.shape[1])), np.empty((b - a, w.shape[1])), codes[a:b].copy()
        losses[chunk] = _errors(w[a:b], mask[a:b], codes[a:b], book[chunk], scale[a:b], hessian, error, gradient)
        _sweep(w[a:b], mask[a:b], factor, order, book[chunk], scale[a:b], codes[a:b])
        loss = _errors(w[a:b], mask[a:b], codes[a:b], book[chunk], scale[a:b], hessian, error, gradient)
        if loss > losses[chunk]:
            codes[a:b] = first
        else:
            losses[chunk] = loss


@nb.njit(cache=True, parallel=True)
def refine(w, mask, hessian, shared, fixed_scale, half_scale, passes, codes, book, scale, losses):  # type: ignore[no-untyped-def]
    """Refine what `start` left in codes, book and scale; losses float64 [chunks] receives the final losses."""
    for chunk in nb.prange(book.shape[0]):
        a, b = chunk * shared, min((chunk + 1) * shared, w.shape[0])
        losses[chunk] = _refine_chunk(
            w[a:b], mask[a:b], hessian, fixed_scale, half_scale, passes, codes[a:b], book[chunk], scale[a:b]
        )
