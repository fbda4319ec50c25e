"""Codes times codes: products summed inside a group, one shift a group, one scale.

Nothing is expanded: weights are looked up as codes (or int8 codebook entries), multiplied by activation codes, and the
sum of each group is shifted by the flags of both sides. Sums are exact: 32 bits hold a bounded number of columns, then
they move into wider places. layouts of activations: razor.py.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.kernels.matmul import decode_rows
from runtime_py.engine.kernels.matrix import tail_codes, unpack_block
from runtime_py.engine.kernels.reading import read_matrix
from runtime_py.engine.layout.products import BIASES, MAX_ROWS, SCALES, SCRATCH_BYTES, TOTALS, TURNED
from runtime_py.simd.codes import lookup, segment, table
from runtime_py.simd.integers import and_ints, flag_lanes, join16, shift_left, shift_right, splat_int, sum_wide
from runtime_py.simd.lowering import dot
from runtime_py.simd.tile import transpose16
from runtime_py.simd.vectors import (
    add,
    add_ints,
    broadcast_dword,
    get_f32,
    get_u8,
    load_bytes,
    load_floats,
    load_ints,
    load_some,
    multiply,
    prefetch,
    put_f32,
    splat_float,
    store_floats,
    store_some,
    zero_ints,
)

TILE_ROWS = 16  # of one work item with several tokens
_AHEAD = 4096  # as in matvec.py
# A product of two codes with both shifts is at most 128 * 2**15. A lane of one token adds 4 columns in 64, one of
# several tokens every column: so many may come together before 32 bits are full.
_LANE_BLOCKS = 8  # blocks of 256 columns
_TOKEN_COLUMNS = 256


@nb.njit(cache=True, inline="always")
def _flags(flags, places, log_group, number):
    """The flags of the 16 lanes of segment `number` (64 columns)."""
    first = (number << 6) >> log_group
    return flag_lanes(flags + (first >> 1), load_ints(places + ((first & 1) << 6)))


@nb.njit(cache=True)
def razor_rows(
    isa, width, matrix, first, last, codes, sums, shifts, units, flags, flag_stride, log_group, places, out, bias,
    accumulate, scratch,
):  # fmt: skip
    """out[first:last] (= or +=) rows of the matrix times one token, plus bias (an address, or 0)."""
    m = read_matrix(matrix)
    block_bytes = 32 * m.bits
    unit = get_f32(units)
    for n in range(first, last):
        entries = table(isa, width, m.book + n // m.book_rows * m.book_bytes)
        at, own = m.codes + n * m.row_bytes, flags + n * flag_stride
        total, whole = zero_ints(), np.int64(0)
        for b in range(m.blocks):
            prefetch(at + _AHEAD)
            prefetch(at + _AHEAD + 64)
            q, place = codes + 256 * b, 256 * b
            acc = dot(isa, load_ints(sums + place), lookup(isa, width, entries, segment(width, at, 0)), load_bytes(q))
            by = add_ints(_flags(own, places, log_group, 4 * b), load_ints(shifts + place))
            total = add_ints(total, shift_left(acc, by))
            weights = lookup(isa, width, entries, segment(width, at, 1))
            acc = dot(isa, load_ints(sums + place + 64), weights, load_bytes(q + 64))
            by = add_ints(_flags(own, places, log_group, 4 * b + 1), load_ints(shifts + place + 64))
            total = add_ints(total, shift_left(acc, by))
            weights = lookup(isa, width, entries, segment(width, at, 2))
            acc = dot(isa, load_ints(sums + place + 128), weights, load_bytes(q + 128))
            by = add_ints(_flags(own, places, log_group, 4 * b + 2), load_ints(shifts + place + 128))
            total = add_ints(total, shift_left(acc, by))
            weights = lookup(isa, width, entries, segment(width, at, 3))
            acc = dot(isa, load_ints(sums + place + 192), weights, load_bytes(q + 192))
            by = add_ints(_flags(own, places, log_group, 4 * b + 3), load_ints(shifts + place + 192))
            total = add_ints(total, shift_left(acc, by))
            at += block_bytes
            if b % _LANE_BLOCKS == _LANE_BLOCKS - 1:
                whole += sum_wide(total)
                total = zero_ints()
        if m.tail > 0:
            if m.tail % 64 != 0:
                unpack_block(at, m.bits, m.tail, scratch)
            for s in range((m.tail + 63) // 64):
                place = 256 * m.blocks + 64 * s
                weights = lookup(isa, width, entries, tail_codes(width, m.tail, at, scratch, s))
                acc = dot(isa, load_ints(sums + place), weights, load_bytes(codes + place))
                by = add_ints(_flags(own, places, log_group, 4 * m.blocks + s), load_ints(shifts + place))
                total = add_ints(total, shift_left(acc, by))
        whole += sum_wide(total)
        value = np.float32(whole) * unit * get_f32(m.scale + n // m.scale_rows * 4)
        if bias != 0:
            value += get_f32(bias + 4 * n)
        if accumulate:
            value += get_f32(out + 4 * n)
        put_f32(out + 4 * n, value)


@nb.njit(cache=True, inline="always")
def _flag(flags, g):
    """Flag number g of a row."""
    return (get_u8(flags + g // 2) >> (4 * (g % 2))) & 15


@nb.njit(cache=True)
def _four_rows(isa, weights, wide, columns, group, codes, sums, shifts, flags, flag_stride, totals):
    """Sums of four rows for 16 tokens as floats [4, 16] at totals; weights: decoded rows `wide` bytes apart."""
    low, high = splat_int(nb.int32(0xFFFF)), splat_int(nb.int32(16))
    t0, t1, t2, t3 = zero_ints(), zero_ints(), zero_ints(), zero_ints()
    h0, h1, h2, h3 = zero_ints(), zero_ints(), zero_ints(), zero_ints()
    l0, l1, l2, l3 = zero_ints(), zero_ints(), zero_ints(), zero_ints()
    since = 0
    for g in range((columns + group - 1) // group):
        start = load_ints(sums + 64 * g)
        a0, a1, a2, a3 = start, start, start, start
        for k in range(g * group, min((g + 1) * group, wide), 4):
            x, w = load_bytes(codes + 16 * k), weights + k
            a0 = dot(isa, a0, broadcast_dword(w), x)
            a1 = dot(isa, a1, broadcast_dword(w + wide), x)
            a2 = dot(isa, a2, broadcast_dword(w + 2 * wide), x)
            a3 = dot(isa, a3, broadcast_dword(w + 3 * wide), x)
        by = load_ints(shifts + 64 * g)
        t0 = add_ints(t0, shift_left(a0, add_ints(by, splat_int(_flag(flags, g)))))
        t1 = add_ints(t1, shift_left(a1, add_ints(by, splat_int(_flag(flags + flag_stride, g)))))
        t2 = add_ints(t2, shift_left(a2, add_ints(by, splat_int(_flag(flags + 2 * flag_stride, g)))))
        t3 = add_ints(t3, shift_left(a3, add_ints(by, splat_int(_flag(flags + 3 * flag_stride, g)))))
        since += group
        if since >= _TOKEN_COLUMNS:
            h0, l0 = add_ints(h0, shift_right(t0, high)), add_ints(l0, and_ints(t0, low))
            h1, l1 = add_ints(h1, shift_right(t1, high)), add_ints(l1, and_ints(t1, low))
            h2, l2 = add_ints(h2, shift_right(t2, high)), add_ints(l2, and_ints(t2, low))
            h3, l3 = add_ints(h3, shift_right(t3, high)), add_ints(l3, and_ints(t3, low))
            t0, t1, t2, t3 = zero_ints(), zero_ints(), zero_ints(), zero_ints()
            since = 0
    store_floats(totals, join16(add_ints(h0, shift_right(t0, high)), add_ints(l0, and_ints(t0, low))))
    store_floats(totals + 64, join16(add_ints(h1, shift_right(t1, high)), add_ints(l1, and_ints(t1, low))))
    store_floats(totals + 128, join16(add_ints(h2, shift_right(t2, high)), add_ints(l2, and_ints(t2, low))))
    store_floats(totals + 192, join16(add_ints(h3, shift_right(t3, high)), add_ints(l3, and_ints(t3, low))))


@nb.njit(cache=True)
def razor_item(
    isa, width, matrix, item, codes, sums, shifts, units, flags, flag_stride, group, tokens, out, bias, accumulate,
    scratch,
):  # fmt: skip
    """Row tile number `item` (TILE_ROWS rows) for all tokens; out float32 [tokens, rows]."""
    m = read_matrix(matrix)
    rows, columns = m.rows, m.columns
    wide, groups = (columns + 63) // 64 * 64, (columns + group - 1) // group
    first = item * TILE_ROWS
    count = min(TILE_ROWS, rows - first)
    weights = scratch + SCRATCH_BYTES
    decode_rows(isa, width, matrix, first, first + count, weights, wide, weights + MAX_ROWS * wide)
    for r in range(count):
        put_f32(scratch + SCALES + 4 * r, get_f32(m.scale + (first + r) // m.scale_rows * 4))
        put_f32(scratch + BIASES + 4 * r, get_f32(bias + 4 * (first + r)) if bias != 0 else nb.float32(0.0))
    for which in range((tokens + 15) // 16):
        x, place = codes + which * wide * 16, which * groups * 64
        for r in range(0, count, 4):
            step = flag_stride if r + 4 <= count else 0  # rows behind the last one: their sums are not used
            own = flags + (first + r) * flag_stride
            if step == 0 and flag_stride != 0:
                for one in range(r, count):
                    row = flags + (first + one) * flag_stride
                    at = scratch + TURNED
                    _four_rows(
                        isa, weights + one * wide, wide, columns, group, x, sums + place, shifts + place, row, 0, at
                    )
                    store_floats(scratch + TOTALS + 64 * one, load_floats(at))
            else:
                at = scratch + TOTALS + 64 * r
                _four_rows(
                    isa, weights + r * wide, wide, columns, group, x, sums + place, shifts + place, own, step, at
                )
        transpose16(scratch + TOTALS, 64, scratch + TURNED, 64)
        factor, shift = load_floats(scratch + SCALES), load_floats(scratch + BIASES)
        for t in range(min(tokens - 16 * which, 16)):
            token = 16 * which + t
            where = out + 4 * (token * rows + first)
            value = multiply(load_floats(scratch + TURNED + 64 * t), splat_float(get_f32(units + 4 * token)))
            value = add(multiply(value, factor), shift)
            if accumulate:
                value = add(value, load_some(where, count))
            store_some(where, value, count)
