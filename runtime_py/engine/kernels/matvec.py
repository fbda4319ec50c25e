"""One token times a codebook matrix: bound by reading the codes, so each byte is read once and used from registers.

The activations are integers with one scale per block of 256 columns, most of them a byte (quantize.py). Inside a block
everything is exact; blocks are added as float32 in 16 fixed lanes.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.matrix import tail_codes, unpack_block
from runtime_py.engine.kernels.paths import begin, enter_row, follow
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.engine.kernels.shared import shared
from runtime_py.engine.layout.products import HIGH_TOKEN
from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.codes import bits_of, lookup, segment, table
from runtime_py.simd.digits import apart, times_255
from runtime_py.simd.lowering import dot
from runtime_py.simd.vectors import (
    add_ints,
    broadcast_float,
    fused,
    get_f32,
    get_i64,
    load_bytes,
    load_ints,
    prefetch,
    put_f32,
    sum_floats,
    to_floats,
    zero_floats,
    zero_ints,
)

_AHEAD = 4096  # bytes that the software asks for ahead of its reads: hardware stops at page ends (measured: +50 %)


@nb.njit(cache=True, inline="always")
def high_products(isa, w0, w1, w2, w3, places, digits):
    """The products with a block's high digits."""
    upper = zero_ints()
    if places & 0xFFFF != 0:
        upper = dot(isa, upper, w0, load_bytes(digits))
    if (places >> 16) & 0xFFFF != 0:
        upper = dot(isa, upper, w1, load_bytes(digits + 64))
    if (places >> 32) & 0xFFFF != 0:
        upper = dot(isa, upper, w2, load_bytes(digits + 128))
    if (places >> 48) & 0xFFFF != 0:
        upper = dot(isa, upper, w3, load_bytes(digits + 192))
    return times_255(upper)


@nb.njit(cache=True, inline="always")
def _block(isa, width, entries, at, states, low, places, high, acc, outliers):
    """acc plus the products of a full block. outliers: whether it has high digits, at the places given.

    Weights are used as soon as they are there: there are not registers enough everywhere for those of a whole block.
    All codes are unpacked before a state is written, as in weights().
    """
    if outliers:
        apart()
    c0, c1 = segment(width, at, 0), segment(width, at, 1)
    c2, c3 = segment(width, at, 2), segment(width, at, 3)
    upper = zero_ints()
    w = lookup(isa, width, entries, follow(width, c0, states))
    acc = dot(isa, acc, w, load_bytes(low))
    if outliers and places & 0xFFFF != 0:
        upper = dot(isa, upper, w, load_bytes(high))
    w = lookup(isa, width, entries, follow(width, c1, states + 64))
    acc = dot(isa, acc, w, load_bytes(low + 64))
    if outliers and (places >> 16) & 0xFFFF != 0:
        upper = dot(isa, upper, w, load_bytes(high + 64))
    w = lookup(isa, width, entries, follow(width, c2, states + 128))
    acc = dot(isa, acc, w, load_bytes(low + 128))
    if outliers and (places >> 32) & 0xFFFF != 0:
        upper = dot(isa, upper, w, load_bytes(high + 128))
    w = lookup(isa, width, entries, follow(width, c3, states + 192))
    acc = dot(isa, acc, w, load_bytes(low + 192))
    if outliers and (places >> 48) & 0xFFFF != 0:
        upper = dot(isa, upper, w, load_bytes(high + 192))
    return add_ints(acc, times_255(upper)) if outliers else acc


@nb.njit(cache=True, inline="always")
def _tail(isa, width, m, entries, at, scratch, states, low, high, acc, outliers):
    """acc plus the products of the last, shorter block, whose codes are at `at` or unpacked in scratch."""
    upper = zero_ints()
    for s in range((m.tail + 63) // 64):
        code = follow(width, tail_codes(width, m.tail, at, scratch, s), states + 64 * s)
        w = lookup(isa, width, entries, code)
        acc = dot(isa, acc, w, load_bytes(low + 64 * s))
        if outliers:
            upper = dot(isa, upper, w, load_bytes(high + 64 * s))
    return add_ints(acc, times_255(upper)) if outliers else acc


@nb.njit(cache=True)
def matvec_rows(isa, width, matrix, quantized, sums, scales, high, first, last, out, bias, accumulate, scratch):
    """out[first:last] (= or +=) rows of the matrix times the token, plus bias (an address, or 0).

    matrix: address of a record of the given width; quantized, sums, scales, high: see quantize.py; scratch: 256 bytes,
    and one for each column rounded up to 64.
    """
    m = read_matrix(matrix)
    block_bytes = 32 * bits_of(width)
    states = scratch + 256
    begin(width, matrix, first, states, scratch)
    for n in range(first, last):
        enter_row(width, matrix, n, states)
        entries = table(isa, width, m.book + shared(n, m.book_rows) * m.book_bytes)
        at = m.codes + n * m.row_bytes
        total = zero_floats()
        for b in range(m.blocks):
            q, state = quantized + 256 * b, states + 256 * b
            prefetch(at + _AHEAD)
            if block_bytes > 64:
                prefetch(at + _AHEAD + 64)
            acc = load_ints(sums + 64 * b)
            places, digits = get_i64(high + HIGH_TOKEN * b), high + HIGH_TOKEN * b + HIGH_BYTES
            if places != 0:
                acc = _block(isa, width, entries, at, state, q, places, digits, acc, True)
            else:
                acc = _block(isa, width, entries, at, state, q, places, digits, acc, False)
            total = fused(to_floats(acc), broadcast_float(scales + 4 * b), total)
            at += block_bytes
        if m.tail > 0:
            prefetch(at + _AHEAD)
            if m.tail % 64 != 0:
                unpack_block(at, m.bits, m.tail, scratch)
            place, own = 256 * m.blocks, high + HIGH_TOKEN * m.blocks
            start, low, here = load_ints(sums + 64 * m.blocks), quantized + place, states + place
            # Written twice, so that a tail without outliers asks for them once.
            if get_i64(own) != 0:
                acc = _tail(isa, width, m, entries, at, scratch, here, low, own + HIGH_BYTES, start, True)
            else:
                acc = _tail(isa, width, m, entries, at, scratch, here, low, own + HIGH_BYTES, start, False)
            total = fused(to_floats(acc), broadcast_float(scales + 4 * m.blocks), total)
        value = sum_floats(total) * get_f32(m.scale + shared(n, m.scale_rows) * 4)
        if bias != 0:
            value += get_f32(bias + 4 * n)
        if accumulate:
            value += get_f32(out + 4 * n)
        put_f32(out + 4 * n, value)
