"""Athena's block update: the worked vectors of seed_systems.md 1.7 and its three properties."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.numerics.hessian import absorb_block, damped, inverse_factor, layer_loss, row_regions
from toolchain.quantize import method
from toolchain.quantize.solvers import scalar as solver
from toolchain.settings.quantize import QuantizeSettings

H = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
W = np.array([[0.9, -0.4, 0.3]])


def test_single_column_vector():
    updated, inverse, loss = absorb_block(W, np.linalg.inv(H), slice(0, 1), np.array([[1.0]]))
    np.testing.assert_allclose(updated, [[1.0, -0.4666667, 0.3333333]], atol=1e-7)
    np.testing.assert_allclose(inverse, [[2 / 3, -1 / 3], [-1 / 3, 2 / 3]], atol=1e-12)
    np.testing.assert_allclose(loss, [0.00666667], atol=1e-8)


def test_two_column_vector():
    updated, inverse, loss = absorb_block(W, np.linalg.inv(H), slice(0, 2), np.array([[1.0, -0.5]]))
    np.testing.assert_allclose(updated, [[1.0, -0.5, 0.35]], atol=1e-12)
    np.testing.assert_allclose(inverse, [[0.5]], atol=1e-12)
    np.testing.assert_allclose(loss, [0.0075], atol=1e-12)
    uncompensated = np.array([[0.1, -0.1, 0.0]])
    np.testing.assert_allclose(0.5 * layer_loss(uncompensated, H), 0.0100, atol=1e-12)


def random_problem(seed, rows=6, columns=40):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, columns)) @ rng.standard_normal((columns, columns)) * 0.3
    return rng.standard_normal((rows, columns)), damped(2 * x.T @ x / 200, 0.01)[0]


def uniform(column):
    return np.clip(np.round(column / 0.3), -4, 3) * 0.3


def gptq(w, h):
    """GPTQ column by column, written independently of the solver (arXiv 2210.17323)."""
    w = w.copy()
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    q = np.zeros_like(w)
    for j in range(w.shape[1]):
        q[:, j] = uniform(w[:, j])
        error = (w[:, j] - q[:, j]) / u[j, j]
        w[:, j:] -= np.outer(error, u[j, j:])
    return q


def test_blocks_of_one_column_on_a_uniform_grid_equal_gptq():
    w, h = random_problem(0)
    expected = gptq(w, h)
    work, inverse = w.copy(), np.linalg.inv(h)
    for j in range(w.shape[1]):
        remaining, inverse, _ = absorb_block(work[:, j:], inverse, slice(0, 1), uniform(work[:, j : j + 1]))
        work[:, j:] = remaining
    np.testing.assert_allclose(work, expected, atol=1e-9)


def test_identity_hessian_leaves_the_rest_alone():
    w, _ = random_problem(1)
    updated, _, _ = absorb_block(w, np.eye(w.shape[1]), slice(3, 9), uniform(w[:, 3:9]))
    np.testing.assert_array_equal(np.delete(updated, range(3, 9), axis=1), np.delete(w, range(3, 9), axis=1))


def test_total_loss_is_the_sum_of_group_losses():
    w, h = random_problem(2)
    work, inverse, total = w.copy(), np.linalg.inv(h), 0.0
    for start in range(0, 40, 8):
        rest, inverse, loss = absorb_block(work[:, start:], inverse, slice(0, 8), uniform(work[:, start : start + 8]))
        work[:, start:] = rest
        total += loss.sum()
    np.testing.assert_allclose(0.5 * layer_loss(w - work, h), total, rtol=1e-9)


def test_solver_sweep_equals_the_block_update_reference():
    """The sweep through one Cholesky factor and absorb_block with shrinking inverses give the same codes."""
    w, h = random_problem(3, rows=1)
    width = w.shape[1]
    codes, book, scale = np.zeros(w.shape, np.uint8), np.zeros((1, 1, 8)), np.zeros((1, 1))
    order, groups = np.arange(width), np.zeros(width, np.int64)
    curvature = np.diag(h).copy()
    solver._sweep(
        w, inverse_factor(h), order, curvature, groups, 1, 8, np.ones(1), False, codes, book[0], scale
    )  # fmt: skip
    levels = book[0, 0] * scale[0, 0]
    work, inverse = w.copy(), np.linalg.inv(h)
    for j in range(width):
        k = np.abs(levels - work[0, j]).argmin()
        assert codes[0, j] == k
        work[:, j:], inverse, _ = absorb_block(work[:, j:], inverse, slice(0, 1), levels[k : k + 1][None])


def test_singular_hessian_is_damped_until_it_is_positive_definite():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 10))
    h, used = damped(x.T @ x, 0.0)
    assert used > 0.0
    np.linalg.cholesky(h)
    dead = x.T @ x
    dead[4, :] = dead[:, 4] = 0.0
    h, _ = damped(dead, 0.01)
    assert h[4, 4] > 0.0 and not np.any(np.delete(h[4], 4))
    np.testing.assert_array_equal(damped(np.zeros((3, 3)), 0.01)[0], np.eye(3))


def test_every_run_of_rows_gets_the_hessian_of_its_group():
    rng = np.random.default_rng(0)
    hessians = rng.standard_normal((3, 4, 4))
    assert [(r.start, r.stop) for r, _ in row_regions(hessians, 9, 1)] == [(0, 3), (3, 6), (6, 9)]
    for (_, found), own in zip(row_regions(hessians, 9, 1), hessians):
        np.testing.assert_allclose(found, own)
    ((rows, found),) = row_regions(hessians, 9, 16)  # one codebook: the mean
    assert (rows.start, rows.stop) == (0, 9)
    np.testing.assert_allclose(found, hessians.mean(axis=0))
    rows, found = row_regions(hessians, 10, 4)[0]  # ten rows are groups of 4, 3, 3; codebooks end at 4, 8, 10
    assert (rows.start, rows.stop) == (0, 4)
    np.testing.assert_allclose(found, hessians[0])
    one = hessians[0]
    assert row_regions(one, 9, 2) == [(slice(0, 9), one)]


@pytest.mark.parametrize("options", [{}, {"format": "trellis", "state_bits": 5}])
def test_groups_of_rows_are_solved_under_their_own_hessians(options):
    """Two groups whose Hessians care about different columns; equal Hessians give what one gives."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 32))
    first, second = np.diag(np.r_[np.full(16, 100.0), np.ones(16)]), np.diag(np.r_[np.ones(16), np.full(16, 100.0)])
    settings = QuantizeSettings(bits=2, rows_per_codebook=32, damping=0.0, scale_bits=16, **options)
    both = method("athena")(w, np.stack([first, second]), settings).dequantized()
    mean = method("athena")(w, (first + second) / 2, settings).dequantized()

    def loss(q):
        return sum(layer_loss(w[rows] - q[rows], h) for rows, h in ((slice(0, 32), first), (slice(32, 64), second)))

    assert loss(both) < 0.9 * loss(mean)
    same = method("athena")(w, np.stack([first, first]), settings)
    np.testing.assert_array_equal(same.dequantized(), method("athena")(w, first, settings).dequantized())


@pytest.mark.parametrize("size", [1, 63, 65, 300])
def test_inverse_factor_is_the_cholesky_factor_of_the_inverse(size):
    rng = np.random.default_rng(size)
    x = rng.standard_normal((3 * size, size))
    h = x.T @ x
    factor = inverse_factor(h)
    assert np.all(np.tril(factor, -1) == 0)
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(h), atol=1e-9 * np.abs(np.linalg.inv(h)).max())
