"""Single tokens of several texts times group-scaled codes: each row is read and unpacked once for all of them.

Every token's integers and floats are those of group_rows (kernels/groups.py) in the same order.
"""

from __future__ import annotations

import numba as nb

from runtime_py.engine.kernels.apart.places import place
from runtime_py.engine.kernels.groups import add_segment, numbers_of_row, row_offsets
from runtime_py.engine.kernels.matrix import tail_codes, unpack_block
from runtime_py.engine.kernels.reading import read_groups
from runtime_py.engine.layout.products import HIGH_TOKEN, MOST_TOKENS
from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.codes import lookup, segment, table
from runtime_py.simd.groups import block_scales, group_columns, group_start, scale_bytes, segment_scales
from runtime_py.simd.vectors import (
    broadcast_float,
    fused,
    get_f32,
    get_i64,
    load_floats,
    multiply,
    prefetch,
    put_f32,
    store_floats,
    sum_floats,
    to_floats,
    zero_floats,
)

_AHEAD = 4096  # as in matvec.py
_SUMS = 64 * MOST_TOKENS  # bytes: 16 lanes of every token
SCRATCH_BYTES = 256 + 2 * _SUMS + 128  # and one for each column, rounded up to 64


@nb.njit(cache=True, inline="always")
def _ahead(at, bits):
    prefetch(at + _AHEAD)
    if bits > 2:
        prefetch(at + _AHEAD + 64)


@nb.njit(cache=True)
def _add_tail(isa, width, m, scale, at, tokens, quantized, scales, high, starts, totals, inner, scratch):
    """totals += the last, shorter block of a row. inner: scratch as large as totals."""
    size, item, entries = group_columns(width), scale_bytes(width), table(isa, width, 0)
    prefetch(at + _AHEAD)
    if m.tail % 64 != 0:
        unpack_block(at, m.bits, m.tail, scratch)
    for t in range(tokens):
        store_floats(inner + 64 * t, zero_floats())
    first = place(0, m.blocks, tokens)
    for s in range((m.tail + 63) // 64):
        codes = lookup(isa, width, entries, tail_codes(width, m.tail, at, scratch, s))
        factor = segment_scales(width, scale + 64 * s // size * item)
        for t in range(tokens):
            i = first + t
            own, at_segment = high + HIGH_TOKEN * i, 256 * i + 64 * s
            acc = group_start(isa, width, starts + at_segment)
            digits = own + HIGH_BYTES + 64 * s
            acc = add_segment(isa, acc, codes, quantized + at_segment, get_i64(own), digits, s)
            store_floats(inner + 64 * t, fused(to_floats(acc), factor, load_floats(inner + 64 * t)))
    for t in range(tokens):
        sums, total = load_floats(inner + 64 * t), load_floats(totals + 64 * t)
        store_floats(totals + 64 * t, fused(sums, broadcast_float(scales + 4 * (first + t)), total))


@nb.njit(cache=True)
def group_rows_apart(
    isa, width, matrix, quantized, scales, high, starts, shares, tokens, first, last, out, bias, accumulate, scratch
):
    """out[:, first:last] (= or +=) rows of the matrix times each of up to MOST_TOKENS tokens, plus bias.

    matrix: address of a GroupMatrix; quantized, scales, high, starts: as places.py says, starts 256 bytes to a part;
    shares: of each token, rounded up to 16 groups; out: float32 [tokens, rows]; scratch: SCRATCH_BYTES and more.
    """
    m = read_groups(matrix)
    size, item, block_bytes = group_columns(width), scale_bytes(width), 32 * m.bits
    groups, entries = (m.columns + size - 1) // size, table(isa, width, 0)
    totals, inner = scratch + 256, scratch + 256 + _SUMS
    copies, share = inner + _SUMS, 64 * ((groups + 15) // 16)
    for n in range(first, last):
        scale = numbers_of_row(m.scale, item, n, groups, m.rows, copies)
        for t in range(tokens):
            offsets = row_offsets(width, m, n, groups, scale, shares + share * t, copies + 4 * (groups + 16))
            store_floats(totals + 64 * t, offsets)
        at = m.codes + n * m.row_bytes
        for b in range(m.blocks):
            _ahead(at, m.bits)
            c0, c1, c2, c3 = (
                lookup(isa, width, entries, segment(width, at, 0)), lookup(isa, width, entries, segment(width, at, 1)),
                lookup(isa, width, entries, segment(width, at, 2)), lookup(isa, width, entries, segment(width, at, 3)),
            )  # fmt: skip
            s0, s1 = block_scales(width, scale, 0), block_scales(width, scale, 1)
            s2, s3 = block_scales(width, scale, 2), block_scales(width, scale, 3)
            i = place(0, b, tokens)
            for t in range(tokens):
                q, start, own = quantized + 256 * (i + t), starts + 256 * (i + t), high + HIGH_TOKEN * (i + t)
                places, h = get_i64(own), own + HIGH_BYTES
                acc = add_segment(isa, group_start(isa, width, start), c0, q, places, h, 0)
                sums = multiply(to_floats(acc), s0)
                acc = add_segment(isa, group_start(isa, width, start + 64), c1, q + 64, places, h + 64, 1)
                sums = fused(to_floats(acc), s1, sums)
                acc = add_segment(isa, group_start(isa, width, start + 128), c2, q + 128, places, h + 128, 2)
                sums = fused(to_floats(acc), s2, sums)
                acc = add_segment(isa, group_start(isa, width, start + 192), c3, q + 192, places, h + 192, 3)
                sums = fused(to_floats(acc), s3, sums)
                total = load_floats(totals + 64 * t)
                store_floats(totals + 64 * t, fused(sums, broadcast_float(scales + 4 * (i + t)), total))
            at += block_bytes
            scale += 256 // size * item
        if m.tail > 0:
            _add_tail(isa, width, m, scale, at, tokens, quantized, scales, high, starts, totals, inner, scratch)
        for t in range(tokens):
            value, where = sum_floats(load_floats(totals + 64 * t)), out + 4 * (t * m.rows + n)
            if bias != 0:
                value += get_f32(bias + 4 * n)
            if accumulate:
                value += get_f32(where)
            put_f32(where, value)
