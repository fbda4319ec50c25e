"""The batched float32 solver against the plain float64 one: the same objective, no step raises it, losses as low."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.numerics.hessian import damped, inverse_factor, layer_loss
from toolchain.quantize.solvers import scalar as solver
from toolchain.quantize.solvers import scalar_batched as batched


def problem(rows, columns, seed):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) / columns**0.5
    x = rng.standard_normal((4 * columns, columns)) @ (mix + np.eye(columns)) * np.exp(rng.standard_normal(columns))
    hessian, _ = damped(2 / len(x) * x.T @ x, 0.01)
    return rng.standard_normal((rows, columns)) * np.exp(0.5 * rng.standard_normal((rows, 1))), hessian


def solve(module, w, h, shared, bits, passes, half=False):
    rows, columns = w.shape
    curvature = np.diag(h).copy()
    order = np.argsort(-curvature, kind="stable")
    factor, own = inverse_factor(h[np.ix_(order, order)]), shared > 1
    chunks = -(-rows // shared)
    codes, book = np.zeros(w.shape, np.uint8), np.zeros((chunks, 1, 1 << bits))
    scale, started, refined = np.zeros((rows, 1)), np.zeros((chunks, 2)), np.zeros(chunks)
    group = () if module is batched else (np.zeros(columns, np.int64),)
    module.start(w, h, factor, order, curvature, *group, shared, own, half, codes, book, scale, started)
    module.refine(w, h, *group, shared, False, own, half, passes, codes, book, scale, refined)
    levels = book[np.arange(rows) // shared, 0][np.arange(rows)[:, None], codes]
    return started, refined, w - scale * levels, book


@pytest.mark.parametrize("shared, bits", [(1, 2), (1, 4), (5, 3)])
def test_losses_as_low_as_the_plain_solvers(shared, bits):
    w, h = problem(37, 300, bits)
    slow_start, slow, _, _ = solve(solver, w, h, shared, bits, 3)
    fast_start, fast, error, book = solve(batched, w, h, shared, bits, 3)
    # clustering is the same computation; the sweep differs by float32 ties only
    np.testing.assert_allclose(fast_start[:, 0], slow_start[:, 0], rtol=1e-4)
    assert fast_start[:, 1].sum() == pytest.approx(slow_start[:, 1].sum(), rel=0.01)
    assert fast.sum() <= 1.01 * slow.sum()
    assert np.all(fast <= fast_start[:, 1] * (1 + 1e-4)) and np.all(fast_start[:, 1] <= fast_start[:, 0])
    assert fast.sum() == pytest.approx(layer_loss(error, h), rel=1e-3)  # the reported loss is that of what is stored
    assert np.array_equal(book, np.round(book)) and np.abs(book).max() <= 127


def test_least_squares_reaches_the_exact_solution():
    """With all columns' codes fixed the conjugate gradients end where the normal equations do."""
    import torch

    w, h = problem(6, 200, 0)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 8, w.shape).astype(np.uint8)
    book, scale = np.sort(rng.standard_normal((6, 1, 8)), axis=2) * 40, np.full((6, 1), 0.02)
    slab = batched._Slab(w, torch.from_numpy(h.astype(np.float32)), 1)
    losses = np.empty(6)
    slab.evaluate(codes, book, scale, losses)
    found = slab.least_squares(codes, book, scale)
    for r in range(6):
        onehot = np.eye(8)[codes[r]]  # [K, 8]
        exact = np.linalg.solve(onehot.T @ h @ onehot, onehot.T @ h @ w[r]) / scale[r]
        error = w[r] - scale[r] * onehot @ found[r]
        best = w[r] - scale[r] * onehot @ exact
        assert error @ h @ error <= best @ h @ best * 1.01 < losses[r]


def test_zero_rows_and_dead_columns():
    w, h = problem(4, 130, 1)
    w[1] = 0.0
    w[2] = 0.5
    h[7, :] = h[:, 7] = 0.0
    h, _ = damped(h, 0.01)
    _, refined, error, _ = solve(batched, w, h, 1, 3, 2, half=True)
    assert np.all(np.isfinite(error)) and refined[1] == 0.0 and np.abs(error[2]).max() < 1e-2
