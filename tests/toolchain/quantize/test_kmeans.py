"""Exact weighted k-means against brute force over all interval partitions."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from toolchain.numerics.kmeans import MAX_EXACT, kmeans_1d


def loss(values, weights, centroids):
    return float((weights * ((values[:, None] - centroids) ** 2).min(axis=1)).sum())


def best_by_enumeration(values, weights, k):
    order = np.argsort(values)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), min(k, len(values)) - 1):
        total = 0.0
        for part in np.split(order, cuts):
            w = weights[part]
            if w.sum() > 0:
                total += float((w * (values[part] - np.average(values[part], weights=w)) ** 2).sum())
        best = min(best, total)
    return best


@example(4, 4, 0, True)  # rounding once carried a centroid out of its cluster
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_optimal(n, k, seed, rounded):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n)
    values = values.round(1) if rounded else values  # ties
    weights = rng.random(n) + 1e-3
    centroids = kmeans_1d(values, weights, k)
    assert centroids.shape == (k,)
    assert np.all(np.diff(centroids) >= 0)
    assert abs(loss(values, weights, centroids) - best_by_enumeration(values, weights, k)) < 1e-9


def test_edge_cases():
    np.testing.assert_array_equal(kmeans_1d(np.full(5, 2.0), np.ones(5), 4), np.full(4, 2.0))
    np.testing.assert_allclose(kmeans_1d(np.array([1.0, 3.0]), np.zeros(2), 1), [2.0])
    np.testing.assert_allclose(kmeans_1d(np.array([5.0]), np.ones(1), 3), [5.0] * 3)


def test_large_input_is_merged_but_stays_close():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(4 * MAX_EXACT)
    weights = rng.random(values.size)
    merged = loss(values, weights, kmeans_1d(values, weights, 8))
    quantiles = np.quantile(values, (np.arange(8) + 0.5) / 8)
    for _ in range(100):  # Lloyd's algorithm to a local optimum
        nearest = np.abs(values[:, None] - quantiles).argmin(axis=1)
        quantiles = np.array([np.average(values[nearest == j], weights=weights[nearest == j]) for j in range(8)])
    assert merged <= 1.001 * loss(values, weights, quantiles)
