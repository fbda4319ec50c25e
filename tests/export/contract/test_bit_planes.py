"""Products by bit planes: the dossier's worked vectors, every width against the integer product, wrong arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.operators.bit_planes import (
    BitPlaneLayout,
    bit_plane_matmul,
    codes_of,
    odd_numbers,
    plane_counts,
    plane_sums,
    planes_of,
    quantized,
    signed_sums,
    without_zero_points,
)

WIDTHS = st.integers(1, 8)


def test_planes_of_abq():
    """x = 3 1 2 0, w = 1 0 3 2: common ones for (bit of x, bit of w) (0,0) 1, (0,1) 0, (1,0) 2, (1,1) 1; 9 in all."""
    x, w = np.array([[3, 1, 2, 0]]), np.array([[1, 0, 3, 2]])
    counts = plane_counts(planes_of(w, 2), planes_of(x, 2), 4, bipolar=False)[:, :, 0, 0]
    assert counts.T.tolist() == [[1, 0], [2, 1]]
    assert plane_sums(planes_of(w, 2), planes_of(x, 2), 4).tolist() == [[9]]


def test_bipolar_integers():
    """x = -2 1 0 -1 and w = 1 -2 -1 0 become 2x + 1 and 2w + 1; planes give -4, 0, 0, -4, in all -20; x . w is -4."""
    assert odd_numbers(np.array([0b101]), 3).tolist() == [3]
    assert odd_numbers(np.arange(8), 3).tolist() == [-7, -5, -3, -1, 1, 3, 5, 7]
    x, w = np.array([[-2, 1, 0, -1]]), np.array([[1, -2, -1, 0]])
    assert (x + 2).tolist() == [[0, 3, 2, 1]] and (w + 2).tolist() == [[3, 0, 1, 2]]
    assert odd_numbers(x + 2, 2).tolist() == [[-3, 3, 1, -1]] and odd_numbers(w + 2, 2).tolist() == [[3, -3, -1, 1]]
    planes = planes_of(w + 2, 2), planes_of(x + 2, 2)
    assert plane_counts(*planes, 4, bipolar=True)[:, :, 0, 0].tolist() == [[-4, 0], [0, -4]]
    sums = plane_sums(*planes, 4, bipolar=True)
    assert sums.tolist() == [[-20]] and signed_sums(sums, w, x).tolist() == [[-4]]


@settings(max_examples=80, deadline=None)
@given(WIDTHS, WIDTHS, st.integers(1, 100), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**31))
def test_every_width_is_the_integer_product(p, q, columns, tokens, rows, seed):
    rng = np.random.default_rng(seed)
    w, a = rng.integers(0, 1 << p, (rows, columns)), rng.integers(0, 1 << q, (tokens, columns))
    planes = planes_of(w, p), planes_of(a, q)
    np.testing.assert_array_equal(codes_of(planes[0], columns), w)
    sums = plane_sums(*planes, columns)
    np.testing.assert_array_equal(sums, a @ w.T)
    w_zero, a_zero = rng.integers(0, 1 << p, rows), rng.integers(0, 1 << q, tokens)
    corrected = without_zero_points(sums, w, w_zero, a, a_zero)
    np.testing.assert_array_equal(corrected, (a - a_zero[:, None]) @ (w - w_zero[:, None]).T)
    odd = plane_sums(*planes, columns, bipolar=True)
    np.testing.assert_array_equal(odd, odd_numbers(a, q) @ odd_numbers(w, p).T)
    signed = w - (1 << p >> 1), a - (1 << q >> 1)  # lossless: 2x + 1 is the odd number of the same code
    np.testing.assert_array_equal(signed_sums(odd, *signed), signed[1] @ signed[0].T)


def test_bit_balance_needs_a_third_plane_that_is_nearly_empty():
    """W2*: five levels -2 .. 2 are codes 0 to 4 with zero point 2; the third plane has ones for 2 alone."""
    w = np.array([[-2, -1, 0, 1, 2, 2, 0, -2]])
    planes = planes_of(w + 2, 3)
    assert int(np.unpackbits(planes[2]).sum()) == 2
    a = np.array([[3, 0, 1, 2, 2, 1, 3, 0]])
    sums = plane_sums(planes, planes_of(a, 2), 8)
    assert without_zero_points(sums, w + 2, np.array([2]), a, np.array([0])).tolist() == (a @ w.T).tolist()


@settings(max_examples=30, deadline=None)
@given(WIDTHS, WIDTHS, st.integers(1, 60), st.booleans(), st.integers(0, 2**31))
def test_the_operator_stands_for_rounded_numbers(p, q, columns, bipolar, seed):
    rng = np.random.default_rng(seed)
    layout = BitPlaneLayout(columns, 3, p, q, int(bipolar))
    x = rng.standard_normal((2, columns)).astype(np.float32)
    w = rng.integers(0, 1 << p, (3, columns))
    zero, scale = rng.integers(0, 1 << p, 3).astype(np.float32), rng.uniform(0.5, 1, 3).astype(np.float32)
    found = bit_plane_matmul(x, layout, planes_of(w, p), zero, scale)
    codes, token_zero, unit = quantized(x, layout)
    near = odd_numbers(codes, q) * unit[:, None] if bipolar else (codes - token_zero[:, None]) * unit[:, None]
    assert (np.abs(near - x) <= 1.001 * unit[:, None]).all()  # a step of odd numbers is two units; of others, one half
    values = (odd_numbers(w, p) if bipolar else w - zero[:, None]) * scale[:, None].astype(np.float64)
    np.testing.assert_allclose(found, near.astype(np.float64) @ values.T, rtol=1e-5, atol=1e-4)


def test_wrong_arrays_are_refused():
    layout = BitPlaneLayout(10, 2, 2, 4, 0)
    planes, zero, scale = planes_of(np.zeros((2, 10), int), 2), np.zeros(2, np.float32), np.ones(2, np.float32)
    layout.check(planes, zero, scale)
    wrong = {
        "planes are": (planes[:1], zero, scale),
        "bits behind": (np.full_like(planes, 255), zero, scale),
        "zero must be 2": (planes, zero[:1], scale),
        "whole numbers": (planes, zero + np.float32(0.5), scale),
        "scale must be": (planes, zero, scale * np.float32(np.nan)),
    }
    for message, arrays in wrong.items():
        with pytest.raises(ValueError, match=message):
            layout.check(*arrays)
    with pytest.raises(ValueError, match="codes must be"):
        planes_of(np.array([4]), 2)
    for change in ({"p": 9}, {"q": 0}, {"K": 0}, {"bipolar": 2}):
        with pytest.raises(ValueError, match="must be"):
            BitPlaneLayout.of({**layout.attributes(), **change})
    with pytest.raises(TypeError):
        BitPlaneLayout.of({**layout.attributes(), "p": 2.0})
