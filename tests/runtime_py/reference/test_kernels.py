"""Portable kernels against the numpy references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.formats import codebook as contract
from export.contract.formats.codebook import CodebookLayout
from export.contract.packing import pack
from runtime_py.reference.kernels import codebook_gather, codebook_matmul, masked_softmax, rotate


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        CodebookLayout,
        bits=st.integers(1, 8),
        K=st.integers(1, 600),
        N=st.integers(1, 600),
        group_size=st.sampled_from([0, 1, 16, 64, 300]),
        rows_per_codebook=st.integers(1, 13),
        rows_per_scale=st.integers(1, 13),
    ),
    st.integers(1, 7),
    st.integers(0, 2**31),
)
def test_codebook_product_and_gather(layout, tokens, seed):
    rng = np.random.default_rng(seed)
    codes = pack(rng.integers(0, 1 << layout.bits, (layout.N, layout.K), dtype=np.uint8), layout.bits)
    codebook = rng.integers(-128, 128, layout.codebook_shape).astype(np.int8)
    scale = rng.random(layout.scale_shape).astype(np.float32)
    x = rng.standard_normal((tokens, layout.K)).astype(np.float32)
    expected = contract.codebook_matmul(x.astype(np.float64), layout, codes, codebook, scale)
    # float32 accumulation in any order: at most K roundings of partial sums bounded by the sum of magnitudes
    magnitude = np.abs(x) @ np.abs(layout.dequantized(codes, codebook, scale)).T
    error = np.abs(codebook_matmul(x, layout, codes, codebook, scale) - expected)
    assert np.all(error <= 2e-6 * magnitude + 1e-6)
    ids = rng.integers(0, layout.N, tokens)
    np.testing.assert_array_equal(
        codebook_gather(ids, layout, codes, codebook, scale),
        contract.codebook_gather(ids, layout, codes, codebook, scale),
    )


def test_gather_refuses_ids_outside_the_table():
    layout = CodebookLayout(4, 8, 3)
    arrays = (np.zeros((3, 4), np.uint8), np.zeros((3, 1, 16), np.int8), np.ones((3, 1), np.float32))
    for bad in (-1, 3):
        with pytest.raises(IndexError):
            codebook_gather(np.array([bad]), layout, *arrays)


@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_masked_softmax(tokens, past, repeat, per_query, seed):
    rng = np.random.default_rng(seed)
    total = past + tokens
    scores = rng.standard_normal((2, repeat * tokens, total)).astype(np.float32) * 5
    mask = rng.random((tokens if per_query else 1, total)) < 0.7
    expected = np.zeros_like(scores, dtype=np.float64)
    for h in range(2):
        for r in range(repeat * tokens):
            t = r % tokens
            seen = mask[t if per_query else 0] & (np.arange(total) <= past + t)
            if seen.any():
                e = np.exp(0.3 * (scores[h, r].astype(np.float64) - scores[h, r][seen].max())) * seen
                expected[h, r] = e / e.sum()
    masked_softmax(scores, mask, past, repeat, np.float32(0.3))
    np.testing.assert_allclose(scores, expected, atol=2e-6)


def test_rotate_is_a_rotation_of_the_first_pairs_only():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 8)).astype(np.float32)
    angle = rng.standard_normal((3, 4)).astype(np.float32)
    out = rotate(x, np.cos(angle), np.sin(angle))
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)[:, None]
    np.testing.assert_allclose(out, np.concatenate([pairs.real, pairs.imag], -1), atol=1e-6)
    partial = rotate(x, np.cos(angle[:, :2]), np.sin(angle[:, :2]))
    np.testing.assert_array_equal(partial[..., 4:], x[..., 4:])


@pytest.mark.parametrize("half", [1, 3, 4])
def test_rotate_interleaved_turns_neighbours(half):
    rng = np.random.default_rng(half)
    x = rng.standard_normal((3, 2, 8)).astype(np.float32)
    angle = rng.standard_normal((3, half)).astype(np.float32)
    out = rotate(x, np.cos(angle), np.sin(angle), interleaved=True)
    pairs = (x[..., 0 : 2 * half : 2] + 1j * x[..., 1 : 2 * half : 2]) * np.exp(1j * angle)[:, None]
    np.testing.assert_allclose(out[..., 0 : 2 * half : 2], pairs.real, atol=1e-6)
    np.testing.assert_allclose(out[..., 1 : 2 * half : 2], pairs.imag, atol=1e-6)
    np.testing.assert_array_equal(out[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("wrong", ["codes", "codebook", "scale"])
def test_weights_of_another_layout_never_reach_a_kernel(wrong):
    layout = CodebookLayout(3, 64, 9, 0, 9, 1)
    stored = {
        "codes": np.zeros(layout.codes_shape, np.uint8),
        "codebook": np.zeros(layout.codebook_shape, np.int8),
        "scale": np.ones(layout.scale_shape, np.float32),
    }
    for array in (stored[wrong][:0], stored[wrong][..., :-1], stored[wrong].astype(np.int64)):
        with pytest.raises(ValueError, match="layout"):
            codebook_matmul(np.ones((2, 64), np.float32), layout, **{**stored, wrong: array})
        with pytest.raises(ValueError, match="layout"):
            codebook_gather(np.zeros(1, np.int64), layout, **{**stored, wrong: array})
