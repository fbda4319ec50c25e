"""Converters conversion by conversion: the packed kernels against loops over single bits; Tender's groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw_model.functional import arrays, rap, tender


def drawn(seed, tokens, outputs, columns):
    rng = np.random.default_rng(seed)
    return (rng.integers(-128, 128, (count, columns)).astype(np.int8) for count in (tokens, outputs))


def slow_analog(x, weights, rows, slice_bits, top):
    """One conversion after another."""
    step = max(rows * (2**slice_bits - 1) / top, 1.0)
    out = np.zeros((len(x), len(weights)))
    sent = x.view(np.uint8).astype(int) if slice_bits == 1 else x.astype(int) + 128
    for t in range(len(x)):
        for n in range(len(weights)):
            for start in range(0, x.shape[1], rows):
                part = slice(start, start + rows)
                for first in range(0, 8, slice_bits):
                    inputs = (sent[t, part] >> first) & (2**slice_bits - 1)
                    for j in range(8):
                        bits = (weights[n, part].view(np.uint8) >> j) & 1
                        code = min(np.rint((inputs * bits).sum() / step), top)
                        sign = (-1 if j == 7 else 1) * (-1 if slice_bits == 1 and first == 7 else 1)
                        out[t, n] += sign * 2.0 ** (first + j) * code * step
            if slice_bits > 1:
                out[t, n] -= 128 * weights[n].astype(int).sum()
    return out


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.sampled_from([4, 16, 64, 100]), st.sampled_from([1, 2, 4, 8]), st.integers(1, 9),
       st.integers(0, 999))  # fmt: skip
def test_analog_is_the_loop_over_conversions(columns, rows, slice_bits, bits, seed):
    x, w = drawn(seed, 2, 3, columns)
    found = arrays.analog(x, w, rows, slice_bits, 2**bits - 1)
    np.testing.assert_allclose(found, slow_analog(x, w, rows, slice_bits, 2**bits - 1), atol=1e-6, rtol=1e-12)
    if 2**bits - 1 >= rows * (2**slice_bits - 1):
        np.testing.assert_array_equal(found, x.astype(int) @ w.T.astype(int))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 150), st.sampled_from([8, 64, 128]), st.integers(1, 20), st.integers(1, 20), st.integers(0, 999))
def test_ones_splitting_is_rap_s_product_array_by_array(columns, rows, active, top, seed):
    x, w = drawn(seed, 2, 3, columns)
    parts = [[np.ascontiguousarray(a[:, i : i + rows]) for a in (x, w)] for i in range(0, columns, rows)]
    expected = sum(rap._product(*part, active, top, 0.0, 0) for part in parts)
    np.testing.assert_array_equal(arrays.ones_splitting(x, w, rows, active, top), expected)
    if top >= active:
        np.testing.assert_array_equal(expected, x.astype(int) @ w.T.astype(int))


def test_more_converter_bits_lose_less():
    x, w = drawn(0, 20, 30, 256)
    exact = x.astype(int) @ w.T.astype(int)
    errors = [np.abs(arrays.analog(x, w, 128, 1, 2**bits - 1) - exact).mean() for bits in range(2, 8)]
    assert errors[2:] == sorted(errors[2:], reverse=True) and errors[-1] < min(errors[:3]) / 8
    clipped = [np.abs(arrays.ones_splitting(x, w, 128, 15, 2**bits - 1) - exact).mean() for bits in (1, 2, 3, 4)]
    assert clipped == sorted(clipped, reverse=True) and clipped[-1] == 0


def test_noise_has_the_variance_of_the_model():
    """Of ones-splitting against rap.noise_variance; analog noise repeats by its seed."""
    x, w = drawn(1, 1, 40, 128)
    exact = x.astype(int) @ w.T.astype(int)
    found = [arrays.ones_splitting(x, w, 128, 15, 255, 0.12, seed) for seed in range(30)]
    errors = np.concatenate([(one - exact)[0] for one in found])
    assert errors.var() == pytest.approx(float(rap.noise_variance(x, 15, 0.12)[0, 0]), rel=0.25)
    first, again, other = (arrays.analog(x, w, 128, 1, 255, 0.05, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_tender_groups_vector():
    """seed_systems.md section 11: T = 8, three groups, channel maxima 8, 3, 1.5, 4."""
    np.testing.assert_array_equal(tender.group_of(np.array([8, 3, 1.5, 4.0]), 3), [2, 1, 0, 1])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 20), st.integers(1, 20), st.integers(2, 8), st.integers(0, 999))
def test_tender_is_right_within_half_a_unit_of_each_channel(tokens, columns, groups, bits, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, columns)) * 10.0 ** rng.integers(-3, 3, columns) + rng.standard_normal(columns)
    found = tender.grouped(x, groups, bits)
    error = np.abs(found.integers * found.unit + found.middle - x)
    assert (error <= found.unit * 2.0**found.group / 2 * (1 + 1e-9)).all()
    shifted = np.zeros((tokens, 1))
    for group in range(groups - 1, -1, -1):  # the accumulator: a shift from one group to the next
        shifted = shifted * 2 + found.codes[:, found.group == group].sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(shifted[:, 0], found.integers.sum(axis=1))
    np.testing.assert_allclose(
        tender.product(x, np.eye(columns), groups, bits), found.integers * found.unit + found.middle, atol=1e-12
    )
