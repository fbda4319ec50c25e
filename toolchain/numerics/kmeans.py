"""Exact weighted one-dimensional k-means, by dynamic programming with divide and conquer, in Numba.

Minimises sum_i weight_i (value_i - centroid(i))^2 over all centroids and assignments. In one dimension optimal
clusters are intervals of the sorted values and the best split points are monotone, so each of the k layers of the
dynamic programme costs O(n log n) (the divide-and-conquer form used by Ckmeans.1d.dp, R Journal 3/2, 2011).
"""

from __future__ import annotations

import numba as nb
import numpy as np

MAX_EXACT = 1 << 14  # above this many values they are first merged into this many equal-count bins


@nb.njit(cache=True)
def _cost(sums: np.ndarray, i: int, j: int) -> float:
    """Weighted squared deviation of sorted values i..j (inclusive) from their mean; sums are prefix sums [3, n + 1]."""
    weight = sums[0, j + 1] - sums[0, i]
    if weight <= 0.0:
        return 0.0
    first = sums[1, j + 1] - sums[1, i]
    return max(0.0, sums[2, j + 1] - sums[2, i] - first * first / weight)


@nb.njit(cache=True)
def _layer(previous: np.ndarray, current: np.ndarray, split: np.ndarray, sums: np.ndarray, first: int) -> None:
    """current[j] = min over i in first..j of previous[i - 1] + cost(i, j), by an explicit divide-and-conquer stack."""
    n = current.size
    stack = np.empty((128, 4), np.int64)
    stack[0] = (first, n - 1, first, n - 1)
    depth = 1
    while depth > 0:
        depth -= 1
        low, high, best_low, best_high = stack[depth]
        if low > high:
            continue
        middle = (low + high) // 2
        best, best_at = np.inf, best_low
        for i in range(max(best_low, first), min(middle, best_high) + 1):
            value = previous[i - 1] + _cost(sums, i, middle)
            if value < best:
                best, best_at = value, i
        current[middle] = best
        split[middle] = best_at
        stack[depth] = (low, middle - 1, best_low, best_at)
        stack[depth + 1] = (middle + 1, high, best_at, best_high)
        depth += 2


@nb.njit(cache=True)
def kmeans_1d(values: np.ndarray, weights: np.ndarray, k: int) -> np.ndarray:
    """Optimal centroids, ascending.

    values, weights: float64 [n], n >= 1, weights >= 0 (all zero counts as all one). Returns float64 [k]; with fewer
    than k distinct values the last centroid is repeated.
    """
    order = np.argsort(values, kind="mergesort")
    x, w = values[order], weights[order]
    if w.sum() <= 0.0:
        w = np.ones_like(w)
    if x.size > MAX_EXACT:
        x, w = _merge(x, w, MAX_EXACT)
    n = x.size
    centre = (w * x).sum() / w.sum()
    sums = np.zeros((3, n + 1))
    for i in range(n):
        d = x[i] - centre
        sums[0, i + 1] = sums[0, i] + w[i]
        sums[1, i + 1] = sums[1, i] + w[i] * d
        sums[2, i + 1] = sums[2, i] + w[i] * d * d
    layers = min(k, n)
    splits = np.zeros((layers, n), np.int32)
    previous = np.empty(n)
    current = np.empty(n)
    for j in range(n):
        previous[j] = _cost(sums, 0, j)
    for layer in range(1, layers):
        for j in range(layer):
            current[j] = 0.0
            splits[layer, j] = j
        _layer(previous, current, splits[layer], sums, layer)
        previous, current = current, previous
    centroids = np.empty(k)
    end = n - 1
    for layer in range(layers - 1, -1, -1):
        start = splits[layer, end] if layer > 0 else 0
        weight = sums[0, end + 1] - sums[0, start]
        mean = centre + (sums[1, end + 1] - sums[1, start]) / weight if weight > 0.0 else x[start]
        # A mean lies inside its interval; rounding in the prefix sums must not carry it out and break the order.
        centroids[layer] = min(max(mean, x[start]), x[end])
        end = start - 1
    for layer in range(layers, k):
        centroids[layer] = centroids[layers - 1]
    return centroids


@nb.njit(cache=True)
def _merge(x: np.ndarray, w: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge sorted values into `bins` neighbours of equal count, keeping weighted means and total weights."""
    merged_x, merged_w = np.empty(bins), np.empty(bins)
    n = x.size
    for b in range(bins):
        start, stop = b * n // bins, (b + 1) * n // bins
        weight, total, plain = 0.0, 0.0, 0.0
        for i in range(start, stop):
            weight += w[i]
            total += w[i] * x[i]
            plain += x[i]
        merged_w[b] = weight
        merged_x[b] = total / weight if weight > 0.0 else plain / (stop - start)
    return merged_x, merged_w
