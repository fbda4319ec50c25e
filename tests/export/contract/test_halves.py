"""Levels that are sums of two tables are told from those that are not, and taken apart exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.contract.formats.halves import FOLD, HALF, gathered, joined, split


@pytest.mark.parametrize("bits", FOLD)
@given(seed=st.integers(0, 2**31))
def test_sums_are_found_again(bits, seed):
    halves = np.random.default_rng(seed).integers(-128, 128, (3, 2 * HALF)).astype(np.int8)
    levels = joined(halves, bits)
    found = split(levels, bits)
    assert found is not None and found.dtype == np.int8
    np.testing.assert_array_equal(joined(found, bits), levels)
    for s in (0, 1, 100, 255):  # slow, obvious
        high = (((s ^ (s << FOLD[bits])) if FOLD[bits] else s) >> 4) % 16
        assert levels[1, s] == np.int8((int(halves[1, high]) + int(halves[1, HALF + s % 16]) + 128) % 256 - 128)


@pytest.mark.parametrize("bits", FOLD)
@given(seed=st.integers(0, 2**31), place=st.integers(0, 255))
def test_one_other_level_is_no_sum(bits, seed, place):
    levels = joined(np.random.default_rng(seed).integers(-60, 60, (2, 2 * HALF)).astype(np.int8), bits)
    levels[1, place] += 1
    assert split(levels, bits) is None


@pytest.mark.parametrize("bits", FOLD)
def test_gathered_is_the_transpose(bits):
    rng = np.random.default_rng(bits)
    halves, values = rng.standard_normal((2, 2 * HALF)), rng.standard_normal((2, 256))
    np.testing.assert_allclose((joined(halves, bits) * values).sum(1), (halves * gathered(values, bits)).sum(1))
