"""The inner loops of Athena in Numba: one chunk of rows that share codebooks, solved alone, chunks in parallel.

A chunk holds R rows w [R, K]. Its dequantized weights are q[r, k] = scale[r] * codebook[g, code[r, k]] with an int8
codebook per column group g. The loss of a row is e^T H e, e = w - q; `gradient` holds H e and is kept up to date.
All arithmetic is float64; every chunk is independent, so results do not depend on the number of threads.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from toolchain.numerics.kmeans import kmeans_1d

LEVEL_LIMIT = 127  # codebook entries are rounded to -127..127


def scale_range(w: np.ndarray) -> tuple[float, float]:
    """Bounds on the scales that the rows can need, from each row's largest weight; rows of zeros do not count.

    Least squares may shrink a codebook below the largest weight, hence the factor of four.
    """
    largest = np.abs(w).max(axis=1)
    return float(largest[largest > 0].min(initial=1.0)) / (4 * LEVEL_LIMIT), float(largest.max()) / LEVEL_LIMIT


@nb.njit(cache=True, inline="always")
def _nearest(levels: np.ndarray, target: float) -> int:
    best, best_distance = 0, np.inf
    for k in range(levels.size):
        distance = abs(levels[k] - target)
        if distance < best_distance:
            best, best_distance = k, distance
    return best


@nb.njit(cache=True)
def _axpy(out: np.ndarray, row: np.ndarray, factor: float, start: int) -> None:
    for j in range(start, out.size):
        out[j] -= factor * row[j]


@nb.njit(cache=True)
def _half(value: float) -> float:
    """Round to float16 precision (11 bits), clamped to its normal range."""
    if value <= 0.0:
        return 0.0
    exponent = np.floor(np.log2(value))
    step = 2.0 ** (max(exponent, -14.0) - 10.0)
    return max(np.round(value / step) * step, 2.0**-24)


@nb.njit(cache=True)
def _round_codebook(real: np.ndarray, base: np.ndarray, half_scale: bool, book: np.ndarray, scale: np.ndarray) -> None:
    """Quantize a real codebook [K] to int8 levels and set the rows' scales; base holds the rows' relative scales."""
    largest = np.abs(real).max()
    if largest <= 0.0:
        largest = 1.0
    for k in range(real.size):
        book[k] = np.round(real[k] / largest * LEVEL_LIMIT)
    for r in range(scale.size):
        exact = base[r] * largest / LEVEL_LIMIT
        scale[r] = _half(exact) if half_scale else exact


@nb.njit(cache=True)
def _gradient(error: np.ndarray, hessian: np.ndarray, out: np.ndarray) -> float:
    """out = H e; returns e^T H e."""
    out[:] = 0.0
    for j in range(error.size):
        if error[j] != 0.0:
            _axpy(out, hessian[j], -error[j], 0)
    total = 0.0
    for j in range(error.size):
        total += error[j] * out[j]
    return total


@nb.njit(cache=True)
def _fit_group(
    work: np.ndarray, curvature: np.ndarray, columns: np.ndarray, levels: int, base: np.ndarray
) -> np.ndarray:
    """Curvature-weighted k-means over the chunk's weights in `columns`, each row divided by its relative scale."""
    rows, width = work.shape[0], columns.size
    values, weights = np.empty(rows * width), np.empty(rows * width)
    at = 0
    for r in range(rows):
        for c in range(width):
            values[at] = work[r, columns[c]] / base[r]
            weights[at] = curvature[columns[c]] * base[r] * base[r]
            at += 1
    return kmeans_1d(values, weights, levels)


@nb.njit(cache=True)
def _sweep(w, factor, order, curvature, group_of, groups, levels, base, half_scale, codes, book, scale):  # type: ignore[no-untyped-def]
    """Columns in `order`: round to the codebook, let all later columns of the row absorb the error.

    A group's codebook is fitted on the compensated weights when its first column comes up (steps 5 to 12 of the
    algorithm in seed_systems.md 1.3; a block of columns moved together or one by one ends in the same place).
    Without compensation (factor is the identity) this is plain clustering.
    """
    rows, width = w.shape
    work = w[:, order].copy()
    position = np.arange(width)
    fitted = np.zeros(groups, np.bool_)
    for p in range(width):
        column = order[p]
        g = group_of[column]
        if not fitted[g]:
            members = position[group_of[order] == g]
            centroids = _fit_group(work, curvature[order], members, levels, base)
            _round_codebook(centroids, base, half_scale, book[g], scale[:, g])
            fitted[g] = True
        diagonal = factor[p, p]
        for r in range(rows):
            s = scale[r, g]
            target = work[r, p] / s if s > 0.0 else 0.0
            k = _nearest(book[g], target)
            codes[r, column] = k
            spread = (work[r, p] - s * book[g, k]) / diagonal
            _axpy(work[r], factor[p], spread, p)


@nb.njit(cache=True)
def _errors(w, codes, book, scale, group_of, hessian, error, gradient):  # type: ignore[no-untyped-def]
    """error = w - q and gradient = H error for all rows of the chunk; returns the chunk's loss."""
    total = 0.0
    for r in range(w.shape[0]):
        for j in range(w.shape[1]):
            g = group_of[j]
            error[r, j] = w[r, j] - scale[r, g] * book[g, codes[r, j]]
        total += _gradient(error[r], hessian, gradient[r])
    return total


@nb.njit(cache=True)
def _descend(codes, book, scale, group_of, hessian, error, gradient):  # type: ignore[no-untyped-def]
    """One cycle of coordinate descent over the codes of every row; never increases the loss. Returns the changes."""
    changes = 0
    for r in range(codes.shape[0]):
        for j in range(codes.shape[1]):
            g, s = group_of[j], scale[r, group_of[j]]
            if s <= 0.0:
                continue
            old = book[g, codes[r, j]]
            k = _nearest(book[g], old + gradient[r, j] / hessian[j, j] / s)
            step = s * (book[g, k] - old)
            # strictly better only: the new squared distance to the coordinate's optimum must be smaller
            if step * (step - 2.0 * gradient[r, j] / hessian[j, j]) < 0.0:
                codes[r, j] = k
                error[r, j] -= step
                _axpy(gradient[r], hessian[j], step, 0)
                changes += 1
    return changes


@nb.njit(cache=True)
def _solve_positive(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve a small symmetric positive definite system in place by Cholesky (Numba's own solver would need SciPy)."""
    n = right.size
    for i in range(n):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            if i == j:
                matrix[i, i] = np.sqrt(max(total, 1e-300))
            else:
                matrix[i, j] = total / matrix[j, j]
    x = right.copy()
    for i in range(n):
        for k in range(i):
            x[i] -= matrix[i, k] * x[k]
        x[i] /= matrix[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            x[i] -= matrix[k, i] * x[k]
        x[i] /= matrix[i, i]
    return x


@nb.njit(cache=True)
def _refit(codes, book, scale, group_of, g, hessian, gradient):  # type: ignore[no-untyped-def]
    """Least-squares codebook of group g for fixed codes and scales: real levels [K] (LNQ, arXiv 2505.07004).

    Solves (sum_r s^2 P^T H P) delta = sum_r s P^T H e and returns codebook + delta. Empty levels stay where they are.
    """
    levels = book.shape[1]
    normal, right = np.zeros((levels, levels)), np.zeros(levels)
    rows, width = codes.shape
    spread = np.empty((levels, width))
    for r in range(rows):
        s = scale[r, g]
        spread[:] = 0.0
        for j in range(width):
            if group_of[j] == g:
                _axpy(spread[codes[r, j]], hessian[j], -1.0, 0)
                right[codes[r, j]] += s * gradient[r, j]
        for j in range(width):
            if group_of[j] == g:
                for k in range(levels):
                    normal[k, codes[r, j]] += s * s * spread[k, j]
    ridge = 1e-9 * np.trace(normal) / levels + 1e-300
    for k in range(levels):
        normal[k, k] += ridge
    return book[g] + _solve_positive(normal, right)


@nb.njit(cache=True)
def _rescale(w, codes, book, group_of, g, hessian, gradient, scale, half_scale):  # type: ignore[no-untyped-def]
    """Least-squares scale of every row in group g for fixed codes and codebook: s += u^T H e / u^T H u."""
    width = w.shape[1]
    unit, turned = np.empty(width), np.empty(width)
    for r in range(w.shape[0]):
        slope = 0.0
        for j in range(width):
            unit[j] = book[g, codes[r, j]] if group_of[j] == g else 0.0
            slope += unit[j] * gradient[r, j]
        size = _gradient(unit, hessian, turned)
        if size > 0.0:
            exact = scale[r, g] + slope / size
            if exact > 0.0:
                scale[r, g] = _half(exact) if half_scale else exact


@nb.njit(cache=True)
def _sort_codebooks(codes, book, group_of):  # type: ignore[no-untyped-def]
    """Order each codebook ascending, so that the leading bits of a code are a coarser code."""
    for g in range(book.shape[0]):
        order = np.argsort(book[g], kind="mergesort")
        rank = np.empty(order.size, np.uint8)
        for k in range(order.size):
            rank[order[k]] = k
        book[g] = book[g][order]
        for r in range(codes.shape[0]):
            for j in range(codes.shape[1]):
                if group_of[j] == g:
                    codes[r, j] = rank[codes[r, j]]


@nb.njit(cache=True)
def _cluster_only(w, order, curvature, group_of, groups, levels, base, half_scale, codes, book, scale):  # type: ignore[no-untyped-def]
    """Curvature-weighted clustering without compensation: the starting point and the baseline of the loss record."""
    position = np.arange(w.shape[1])
    for g in range(groups):
        centroids = _fit_group(w, curvature, position[group_of == g], levels, base)
        _round_codebook(centroids, base, half_scale, book[g], scale[:, g])
    for r in range(w.shape[0]):
        for j in range(w.shape[1]):
            g = group_of[j]
            s = scale[r, g]
            codes[r, j] = _nearest(book[g], w[r, j] / s if s > 0.0 else 0.0)


@nb.njit(cache=True)
def _start_chunk(w, hessian, factor, order, curvature, group_of, scale_per_row, half_scale, codes, book, scale, losses):  # type: ignore[no-untyped-def]
    """Clustering, then the sweep; keeps the better of the two. losses [2]: after each."""
    rows, width = w.shape
    groups, levels = book.shape
    base = np.ones(rows)
    if scale_per_row:
        for r in range(rows):
            base[r] = max(np.sqrt((w[r] * w[r] * curvature).sum() / curvature.sum()), 1e-30)
    error, gradient = np.empty((rows, width)), np.empty((rows, width))
    _cluster_only(w, order, curvature, group_of, groups, levels, base, half_scale, codes, book, scale)
    losses[0] = _errors(w, codes, book, scale, group_of, hessian, error, gradient)
    first = (codes.copy(), book.copy(), scale.copy())
    _sweep(w, factor, order, curvature, group_of, groups, levels, base, half_scale, codes, book, scale)
    losses[1] = _errors(w, codes, book, scale, group_of, hessian, error, gradient)
    if losses[1] > losses[0]:
        codes[:], book[:], scale[:] = first
        losses[1] = losses[0]


@nb.njit(cache=True)
def _refine_chunk(w, hessian, group_of, fixed_scale, scale_per_row, half_scale, passes, codes, book, scale):  # type: ignore[no-untyped-def]
    """Rounds of coordinate descent and least-squares codebooks from the given state; returns the final loss.

    Rounding a codebook to int8 may cost more than the least squares gained, so the best state seen is what remains:
    the loss never ends above where it began. With `fixed_scale` the scales stay and codebooks are rounded within them.
    """
    rows, width = w.shape
    groups = book.shape[0]
    error, gradient = np.empty((rows, width)), np.empty((rows, width))
    best_loss = _errors(w, codes, book, scale, group_of, hessian, error, gradient)
    best = (codes.copy(), book.copy(), scale.copy())
    for _ in range(passes):
        for g in range(groups):
            real = _refit(codes, book, scale, group_of, g, hessian, gradient)
            if fixed_scale:
                book[g] = np.clip(np.round(real), -LEVEL_LIMIT, LEVEL_LIMIT)
            else:
                _round_codebook(real, scale[:, g].copy(), half_scale, book[g], scale[:, g])
            if groups > 1:
                _errors(w, codes, book, scale, group_of, hessian, error, gradient)
        if scale_per_row and not fixed_scale:
            for g in range(groups):
                _errors(w, codes, book, scale, group_of, hessian, error, gradient)
                _rescale(w, codes, book, group_of, g, hessian, gradient, scale, half_scale)
        _errors(w, codes, book, scale, group_of, hessian, error, gradient)
        for _cycle in range(3):
            if _descend(codes, book, scale, group_of, hessian, error, gradient) * 1000 < codes.size:
                break
        loss = _errors(w, codes, book, scale, group_of, hessian, error, gradient)
        if loss < best_loss:
            best, best_loss = (codes.copy(), book.copy(), scale.copy()), loss
    codes[:], book[:], scale[:] = best
    return best_loss


@nb.njit(cache=True, parallel=True)
def start(  # type: ignore[no-untyped-def]
    w, hessian, factor, order, curvature, group_of, shared, scale_per_row, half_scale, codes, book, scale, losses
):
    """Cluster and sweep all rows of w [N, K], `shared` rows to a codebook.

    hessian [K, K] damped; factor [K, K] = inverse_factor of the Hessian permuted by `order`; order [K] the sweep's
    column order; curvature [K] clustering weights; group_of [K] each column's group. Filled in place: codes uint8
    [N, K], book float64 [chunks, G, levels] holding int8 values, scale float64 [N, G], losses float64 [chunks, 2].
    """
    for chunk in nb.prange(book.shape[0]):
        a, b = chunk * shared, min((chunk + 1) * shared, w.shape[0])
        _start_chunk(
            w[a:b],
            hessian,
            factor,
            order,
            curvature,
            group_of,
            scale_per_row,
            half_scale,
            codes[a:b],
            book[chunk],
            scale[a:b],
            losses[chunk],
        )


@nb.njit(cache=True, parallel=True)
def refine(  # type: ignore[no-untyped-def]
    w, hessian, group_of, shared, fixed_scale, scale_per_row, half_scale, passes, codes, book, scale, losses
):
    """Refine what `start` left in codes, book and scale; losses float64 [chunks] receives the final losses."""
    for chunk in nb.prange(book.shape[0]):
        a, b = chunk * shared, min((chunk + 1) * shared, w.shape[0])
        losses[chunk] = _refine_chunk(
            w[a:b],
            hessian,
            group_of,
            fixed_scale,
            scale_per_row,
            half_scale,
            passes,
            codes[a:b],
            book[chunk],
            scale[a:b],
        )


@nb.njit(cache=True)
def sort_codebooks(group_of, shared, codes, book):  # type: ignore[no-untyped-def]
    """Order every codebook ascending, so that the leading bits of a code are a coarser code."""
    for chunk in range(book.shape[0]):
        _sort_codebooks(codes[chunk * shared : (chunk + 1) * shared], book[chunk], group_of)
