"""Packing of codes: exhaustive and random round trips, the documented byte layout, and refusal of wide codes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.contract.packing import pack, planes, row_bytes, unpack


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_at_every_place_survives(bits):
    for columns in (1, 7, 8, 9, 31, 64, 172, 255, 256, 257, 513):
        levels = np.arange(1 << bits, dtype=np.uint8)
        codes = np.stack([np.roll(np.resize(levels, columns), shift) for shift in range(len(levels))])
        packed = pack(codes, bits)
        assert packed.shape == (len(levels), row_bytes(columns, bits))
        np.testing.assert_array_equal(unpack(packed, bits, columns), codes)


@given(st.integers(1, 8), st.integers(1, 700), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_random_round_trip(bits, columns, rows, seed):
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns), dtype=np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes, bits), bits, columns), codes)


def test_layout_of_three_bits_is_two_bit_plane_then_one_bit_plane():
    codes = np.zeros((1, 256), np.uint8)
    codes[0, 0], codes[0, 64], codes[0, 33] = 0b110, 0b011, 0b001
    packed = pack(codes, 3)[0]
    assert packed.size == 96
    assert packed[0] == 0b0111  # plane of the high two bits, V = 64: columns 0 and 64 share byte 0
    assert packed[64 + 1] == 0b10  # plane of the low bit, V = 32: column 33 is bit 1 of byte 1
    assert packed[64 + 0] == 0b100  # column 64 is bit 2 of byte 0


def test_full_blocks_waste_nothing():
    for bits in range(1, 9):
        assert row_bytes(512, bits) * 8 == 512 * bits
        assert sum(planes(bits)) == bits


def test_prefix_of_planes_is_the_coarser_code():
    codes = np.random.default_rng(0).integers(0, 8, (3, 256), dtype=np.uint8)
    np.testing.assert_array_equal(unpack(pack(codes, 3)[:, :64], 2, 256), codes >> 1)


def test_code_too_wide_is_refused():
    with pytest.raises(ValueError, match="does not fit in 2 bits"):
        pack(np.array([[4]], np.uint8), 2)
    with pytest.raises(ValueError, match="bits must be 1 to 8"):
        row_bytes(8, 9)
