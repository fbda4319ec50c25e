"""The least squares of kept columns, against ADMM with a fixed mask and against what the definition asks for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.toolchain.shrink.test_cut import CUT
from toolchain.numerics.hessian import layer_loss
from toolchain.shrink.reconstruct import fitted_columns, reconstruct
from toolchain.source.heads import open_model


def admm(weights: np.ndarray, hessian: np.ndarray, kept: np.ndarray, rounds: int, rho: float) -> np.ndarray:
    """arXiv 2409.17372's repair, literally: Z = mask (W + U), U += W - Z, W = (H + rho I)^-1 (H W0 + rho (Z - U))."""
    norm = np.sqrt(np.diag(hessian))
    h = hessian / np.outer(norm, norm)  # columns normalised
    first = (weights * norm).T
    mask = np.zeros((len(h), 1))
    mask[kept] = 1
    w, u = first.copy(), np.zeros_like(first)
    inverse = np.linalg.inv(h + rho * np.eye(len(h)))
    z = mask * w
    for _ in range(rounds):
        z = mask * (w + u)
        u += w - z
        w = inverse @ (h @ first + rho * (z - u))
    return (z.T / norm)[:, kept]


@given(st.integers(0, 50))
def test_admm_converges_to_the_fit(seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((60, 8)) @ rng.standard_normal((8, 8))
    hessian, weights = 2 * x.T @ x / 60, rng.standard_normal((3, 8)).astype(np.float32)
    hessian += 0.05 * np.mean(np.diag(hessian)) * np.eye(8)
    kept = np.sort(rng.permutation(8)[:5])
    found = fitted_columns(weights, hessian, kept, 1e-12)
    slow = admm(weights.astype(np.float64), hessian, kept, 4000, 0.5)
    assert np.allclose(found, slow, atol=2e-3 * np.abs(weights).max() + 1e-4)


@given(st.integers(0, 50), st.sampled_from([1e-6, 0.01, 0.3]))
def test_the_fit_loses_no_more_than_the_cut_and_no_step_from_it_gains(seed, damping):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 6)) @ rng.standard_normal((6, 6))
    hessian, weights = x.T @ x, rng.standard_normal((2, 6)).astype(np.float32)
    kept = np.sort(rng.permutation(6)[:4])

    def loss(columns):
        off = weights.astype(np.float64)
        off[:, kept] -= columns
        return layer_loss(off, hessian)

    best = fitted_columns(weights, hessian, kept, damping).astype(np.float64)
    assert loss(best) <= loss(weights[:, kept]) * (1 + 1e-6)
    ridge = damping * np.trace(hessian[np.ix_(kept, kept)]) / len(kept)
    held = loss(best) + ridge * ((best - weights[:, kept]) ** 2).sum()
    for _ in range(5):
        other = best + 1e-2 * rng.standard_normal(best.shape)
        assert loss(other) + ridge * ((other - weights[:, kept]) ** 2).sum() >= held * (1 - 1e-5)


def test_every_fitted_layer_of_a_model_loses_less(tiny):
    source, spec = open_model(tiny)
    tokens = np.random.default_rng(0).integers(3, 1500, (6, 48))
    found = reconstruct(source, spec, CUT, tokens, 0.01, quiet=True)
    assert len(found.losses) == 4 and all(after < before for before, after in found.losses)
    assert found.fitted["model.layers.2.mlp.down_proj"].shape == (64, 32)
    assert found.fitted["model.layers.0.self_attn.o_proj"].shape == (64, 32)
