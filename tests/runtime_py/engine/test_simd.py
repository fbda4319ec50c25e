"""Every lowering of the SIMD vocabulary against plain numpy, on random and adversarial bytes, compared exactly."""

from __future__ import annotations

import numba as nb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.contract.packing import pack
from runtime_py.machine.isa import ISAS, WEIGHT_OFFSET, available
from runtime_py.machine.widths import RAW, WIDTHS
from runtime_py.simd.codes import lookup, segment, table
from runtime_py.simd.lowering import dot, lookup16, lookup64
from runtime_py.simd.tile import transpose16
from runtime_py.simd.vectors import load_bytes, load_ints, store_bytes, store_ints
from runtime_py.system.guard_pages import aligned_bytes
from tests.runtime_py.engine.instruction_sets import with_widths

HERE = available()


@nb.njit
def run_dot(isa, acc, weights, activations, out):
    store_ints(out, dot(isa, load_ints(acc), load_bytes(weights), load_bytes(activations)))


@nb.njit
def run_lookups(isa, entries, index, out):
    store_bytes(out, lookup16(isa, load_bytes(entries), load_bytes(index)))
    store_bytes(out + 64, lookup64(isa, load_bytes(entries + 64), load_bytes(index)))


@nb.njit
def run_decode(isa, width, book, codes, out):
    entries = table(isa, width, book)
    store_bytes(out, lookup(isa, width, entries, segment(width, codes, 0)))
    store_bytes(out + 64, lookup(isa, width, entries, segment(width, codes, 1)))
    store_bytes(out + 128, lookup(isa, width, entries, segment(width, codes, 2)))
    store_bytes(out + 192, lookup(isa, width, entries, segment(width, codes, 3)))


@nb.njit
def run_transpose(source, target):
    transpose16(source, 64, target, 64)


EXTREMES = st.sampled_from([-128, -127, -1, 0, 1, 127])
ACTIVATIONS = st.integers(-127, 127)  # quantize.py makes no -128


@pytest.mark.parametrize("isa", HERE)
@settings(max_examples=40)
@given(
    st.lists(st.one_of(EXTREMES, st.integers(-128, 127)), min_size=64, max_size=64),
    st.lists(st.one_of(EXTREMES.filter(lambda v: v > -128), ACTIVATIONS), min_size=64, max_size=64),
)
def test_dot_is_exact_even_at_the_limits(isa, weights, activations):
    w, a = np.array(weights, np.int64), np.array(activations, np.int64)
    offset = WEIGHT_OFFSET[isa]
    acc, out = np.arange(16, dtype=np.int32) - 8, np.zeros(16, np.int32)
    stored, given_a = (w + offset).astype(np.uint8), a.astype(np.int8)
    run_dot(ISAS[isa], acc.ctypes.data, stored.ctypes.data, given_a.ctypes.data, out.ctypes.data)
    np.testing.assert_array_equal(out, acc + ((w + offset) * a).reshape(16, 4).sum(1))


@pytest.mark.parametrize("isa", HERE)
def test_all_saturating_products(isa):
    """128 and -128 times 127 in every place: what a saturating instruction would get wrong."""
    for weight in (-128, 127):
        for activation in (-127, 127):
            stored = np.full(64, weight + WEIGHT_OFFSET[isa]).astype(np.uint8)
            a, acc, out = np.full(64, activation, np.int8), np.zeros(16, np.int32), np.zeros(16, np.int32)
            run_dot(ISAS[isa], acc.ctypes.data, stored.ctypes.data, a.ctypes.data, out.ctypes.data)
            assert set(out.tolist()) == {4 * (weight + WEIGHT_OFFSET[isa]) * activation}


@pytest.mark.parametrize("isa", HERE)
def test_lookups_use_only_the_low_bits(isa):
    rng = np.random.default_rng(0)
    for _ in range(50):
        entries = rng.integers(0, 256, 128, dtype=np.uint8)
        entries[:64] = np.tile(entries[:16], 4)
        index, out = rng.integers(0, 256, 64, dtype=np.uint8), np.zeros(128, np.uint8)
        run_lookups(ISAS[isa], entries.ctypes.data, index.ctypes.data, out.ctypes.data)
        np.testing.assert_array_equal(out[:64], entries[index % 16])
        np.testing.assert_array_equal(out[64:], entries[64 + index % 64])


@pytest.mark.parametrize("isa, bits", with_widths(HERE, [*range(1, 9), "raw"]))
def test_a_full_block_of_every_width(isa, bits):
    width, size = (RAW, 8) if bits == "raw" else (WIDTHS[bits], bits)
    rng = np.random.default_rng(size)
    book = np.arange(-128, 128).astype(np.int8) if bits == "raw" else rng.integers(-128, 128, 1 << size).astype(np.int8)
    for codes in (rng.integers(0, 1 << size, 256), np.arange(256) % (1 << size), np.full(256, (1 << size) - 1)):
        packed = aligned_bytes(512)
        row = pack(codes[None].astype(np.uint8), size)[0]
        packed[: row.size] = row
        out = np.zeros(256, np.uint8)
        run_decode(ISAS[isa], width, book.ctypes.data, packed.ctypes.data, out.ctypes.data)
        np.testing.assert_array_equal(out, (book[codes].astype(np.int64) + WEIGHT_OFFSET[isa]).astype(np.uint8))


def test_transpose_moves_bits_untouched():
    source = np.random.default_rng(0).integers(0, 2**32, (16, 16), dtype=np.uint64).astype(np.uint32)
    target = np.zeros_like(source)
    run_transpose(source.ctypes.data, target.ctypes.data)
    np.testing.assert_array_equal(target, source.T)
