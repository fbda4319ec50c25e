"""Products with group-scaled codes (export/contract/formats/groups.py), and single rows of them.

A weight is factor * code + offset, the offset a minimum or minus factor * zero point, so a product is

    sum over groups of factor * (sum of code * activation) + offset * (sum of activations)

The integer sums are exact; those of the activations are made once for all matrices (quantize.py). Floats are added in
an order that is the same on every machine (tests/runtime_py/engine/group_reference.py says it in plain numpy):

one token     16 lanes, lane l of columns 4l..4l + 3 of every 64. First the offsets times `shares` (scaled sums of the
              activations), 16 groups at a time; then for each block of 256 columns the sum over its four segments of
              integer * factor, times the activations' scale. At last the lanes in the tree of vectors.py.
more tokens   for each block the sum over its groups of integer * factor, then offset * sum, times the scale. One zero
              point for all is taken from the integers.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from export.contract.formats.groups import MINIMA, ONE_ZERO, ZEROS
from runtime_py.engine.kernels.matmul import decode_rows, finish_tile
from runtime_py.engine.kernels.matrix import tail_codes, unpack_block
from runtime_py.engine.kernels.reading import read_groups
from runtime_py.engine.layout.products import BIASES, HIGH_GROUP, HIGH_TOKEN, MAX_ROWS, SCALES, SCRATCH_BYTES, TOTALS
from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.codes import lookup, segment, table
from runtime_py.simd.digits import times_255
from runtime_py.simd.groups import (
    block_scales,
    group_columns,
    group_start,
    group_tile,
    negated_zeros,
    scale_bytes,
    segment_scales,
    sixteen_scales,
    tile_height,
    tile_vectors,
    weight_offset,
    zero_base,
)
from runtime_py.simd.lowering import dot
from runtime_py.simd.vectors import (
    add_ints,
    broadcast_float,
    fused,
    get_f16,
    get_f32,
    get_i64,
    get_u8,
    load_bytes,
    load_floats,
    multiply,
    prefetch,
    put_f32,
    put_i8,
    splat_float,
    store_floats,
    sum_floats,
    to_floats,
    zero_floats,
    zero_ints,
)

GROUP_ROWS = 12  # of a work item with several tokens; every GROUP_TILE's height divides it
_AHEAD = 4096  # as in matvec.py
_F = np.float32


@nb.njit(cache=True, inline="always")
def numbers_of_row(address, item, n, groups, rows, copy):
    """Address of row n's `groups` numbers, of which 16 at a time may be read: a copy where that left the array."""
    at, wide = address + item * n * groups, (groups + 15) // 16 * 16
    if n * groups + wide <= rows * groups:
        return at
    for i in range(item * wide):
        put_i8(copy + i, get_u8(at + i) if i < item * groups else nb.int32(0))
    return copy


@nb.njit(cache=True, inline="always")
def row_offsets(width, m, n, groups, scale, shares, copy):
    """The 16 lanes of a row's offsets times the token's shares."""
    item, total = scale_bytes(width), zero_floats()
    if m.offset_kind == MINIMA:
        at = numbers_of_row(m.offset, item, n, groups, m.rows, copy)
        for g in range(0, groups, 16):
            total = fused(sixteen_scales(width, at + item * g), load_floats(shares + 4 * g), total)
    elif m.offset_kind == ZEROS:
        at = numbers_of_row(m.offset, 1, n, groups, m.rows, copy)
        for g in range(0, groups, 16):
            offset = multiply(sixteen_scales(width, scale + item * g), negated_zeros(width, at + g))
            total = fused(offset, load_floats(shares + 4 * g), total)
    elif m.zero != zero_base(width):
        negated = splat_float(_F(zero_base(width) - m.zero))
        for g in range(0, groups, 16):
            offset = multiply(sixteen_scales(width, scale + item * g), negated)
            total = fused(offset, load_floats(shares + 4 * g), total)
    return total


@nb.njit(cache=True, inline="always")
def add_segment(isa, acc, codes, low, places, high, number):
    """acc plus the products of 64 columns, segment `number` of a block; low, high: addresses of their digits."""
    if (places >> (16 * number)) & 0xFFFF != 0:
        acc = add_ints(acc, times_255(dot(isa, zero_ints(), codes, load_bytes(high))))
    return dot(isa, acc, codes, load_bytes(low))


@nb.njit(cache=True)
def group_rows(
    isa, width, matrix, quantized, scales, high, starts, shares, first, last, out, bias, accumulate, scratch
):
    """out[first:last] (= or +=) rows of the matrix times one token, plus bias (an address, or 0).

    matrix: address of a GroupMatrix; quantized, scales, high, starts, shares: see quantize.py; scratch: 256 bytes, and
    one for each column rounded up to 64, and 128.
    """
    m = read_groups(matrix)
    size, item, block_bytes = group_columns(width), scale_bytes(width), 32 * m.bits
    groups, entries = (m.columns + size - 1) // size, table(isa, width, 0)
    copies = scratch + 256
    for n in range(first, last):
        scale = numbers_of_row(m.scale, item, n, groups, m.rows, copies)
        total = row_offsets(width, m, n, groups, scale, shares, copies + 4 * (groups + 16))
        at = m.codes + n * m.row_bytes
        for b in range(m.blocks):
            q, start, own = quantized + 256 * b, starts + 256 * b, high + HIGH_TOKEN * b
            places, h = get_i64(own), own + HIGH_BYTES
            prefetch(at + _AHEAD)
            if block_bytes > 64:
                prefetch(at + _AHEAD + 64)
            codes = lookup(isa, width, entries, segment(width, at, 0))
            acc = add_segment(isa, group_start(isa, width, start), codes, q, places, h, 0)
            inner = multiply(to_floats(acc), block_scales(width, scale, 0))
            codes = lookup(isa, width, entries, segment(width, at, 1))
            acc = add_segment(isa, group_start(isa, width, start + 64), codes, q + 64, places, h + 64, 1)
            inner = fused(to_floats(acc), block_scales(width, scale, 1), inner)
            codes = lookup(isa, width, entries, segment(width, at, 2))
            acc = add_segment(isa, group_start(isa, width, start + 128), codes, q + 128, places, h + 128, 2)
            inner = fused(to_floats(acc), block_scales(width, scale, 2), inner)
            codes = lookup(isa, width, entries, segment(width, at, 3))
            acc = add_segment(isa, group_start(isa, width, start + 192), codes, q + 192, places, h + 192, 3)
            inner = fused(to_floats(acc), block_scales(width, scale, 3), inner)
            total = fused(inner, broadcast_float(scales + 4 * b), total)
            at += block_bytes
            scale += 256 // size * item
        if m.tail > 0:
            prefetch(at + _AHEAD)
            if m.tail % 64 != 0:
                unpack_block(at, m.bits, m.tail, scratch)
            inner, own = zero_floats(), high + HIGH_TOKEN * m.blocks
            places = get_i64(own)
            for s in range((m.tail + 63) // 64):
                place = 256 * m.blocks + 64 * s
                codes = lookup(isa, width, entries, tail_codes(width, m.tail, at, scratch, s))
                acc = group_start(isa, width, starts + place)
                acc = add_segment(isa, acc, codes, quantized + place, places, own + HIGH_BYTES + 64 * s, s)
                inner = fused(to_floats(acc), segment_scales(width, scale + 64 * s // size * item), inner)
            total = fused(inner, broadcast_float(scales + 4 * m.blocks), total)
        value = sum_floats(total)
        if bias != 0:
            value += get_f32(bias + 4 * n)
        if accumulate:
            value += get_f32(out + 4 * n)
        put_f32(out + 4 * n, value)


@nb.njit(cache=True, inline="always")
def _number(address, item, i):
    return get_f32(address + 4 * i) if item == 4 else get_f16(address + 2 * i)


@nb.njit(cache=True)
def _factors(width, m, first, count, groups, factors, offsets):
    """Factors and, where groups have their own, offsets of some rows as float32 [count, groups]."""
    item, base = scale_bytes(width), zero_base(width)
    for i in range(count * groups):
        g = first * groups + i
        factor = _number(m.scale, item, g)
        put_f32(factors + 4 * i, factor)
        if m.offset_kind == MINIMA:
            put_f32(offsets + 4 * i, _number(m.offset, item, g))
        elif m.offset_kind == ZEROS:
            put_f32(offsets + 4 * i, factor * _F(base - get_u8(m.offset + g)))


@nb.njit(cache=True)
def group_item(
    isa, width, matrix, item, quantized, scales, high, sums, tokens, out, bias, accumulate, threads, scratch
):
    """Row tile number `item` (GROUP_ROWS rows) for all tokens; sums: `starts` of quantize.py."""
    m = read_groups(matrix)
    size, height, vectors = group_columns(width), tile_height(isa), tile_vectors(isa)
    columns, wide, groups = m.columns, (m.columns + 63) // 64 * 64, (m.columns + size - 1) // size
    first = item * GROUP_ROWS
    count = min(GROUP_ROWS, m.rows - first)
    weights = scratch + SCRATCH_BYTES
    decode_rows(isa, width, matrix, first, first + count, weights, wide, weights + MAX_ROWS * wide)
    factors = weights + GROUP_ROWS * wide
    offsets = factors + 4 * GROUP_ROWS * groups
    _factors(width, m, first, count, groups, factors, offsets)
    zero = weight_offset(isa) if m.bits == 8 else 0
    if m.offset_kind == ONE_ZERO:
        zero += m.zero - zero_base(width)
        offsets = 0
    for r in range(GROUP_ROWS):
        put_f32(scratch + SCALES + 4 * r, _F(1.0))
        put_f32(scratch + BIASES + 4 * r, get_f32(bias + 4 * (first + r)) if bias != 0 and r < count else _F(0.0))
    token_groups, blocks = (tokens + 15) // 16, (columns + 255) // 256
    # The codes of the tile that this thread will probably take next come closer while this one is computed.
    ahead = m.codes + (first + GROUP_ROWS * threads) * m.row_bytes
    share = (GROUP_ROWS * m.row_bytes * vectors + token_groups - 1) // token_groups
    for group in range(0, token_groups, vectors):
        for k in range(0, share, 64):
            prefetch(ahead + k)
        ahead += share
        for i in range(GROUP_ROWS * vectors):
            store_floats(scratch + TOTALS + 64 * i, zero_floats())
        for b in range(blocks):
            place = 256 * b // size
            for r in range(0, count, height):
                own = 4 * (r * groups + place)
                group_tile(
                    isa, width, weights + r * wide + 256 * b, wide, quantized + group * wide * 16 + 4096 * b, wide * 16,
                    min((columns + 3) // 4 * 4 - 256 * b, 256), zero, sums + 64 * (group * groups + place), 64 * groups,
                    scales + 64 * (group * blocks + b), 64 * blocks, high + HIGH_GROUP * (group * blocks + b),
                    HIGH_GROUP * blocks, factors + own,
                    offsets + own if offsets != 0 else 0, 4 * groups, scratch + TOTALS + 64 * r * vectors,
                )  # fmt: skip
        finish_tile(out, tokens, group, token_groups, vectors, count, first, m.rows, accumulate, scratch)


@nb.njit(cache=True)
def group_row(matrix, size, item, row, target, scratch):
    """Dequantize one row to float32 [columns] at target. size: columns of a group; scratch: 256 bytes."""
    m = read_groups(matrix)
    groups, at = (m.columns + size - 1) // size, m.codes + row * m.row_bytes
    for start in range(0, m.columns, 256):
        some = min(m.columns - start, 256)
        unpack_block(at, m.bits, some, scratch)
        for k in range(some):
            g = row * groups + (start + k) // size
            code, factor = nb.int32(get_u8(scratch + k)), _number(m.scale, item, g)
            if m.offset_kind == MINIMA:
                value = factor * _F(code) + _number(m.offset, item, g)
            elif m.offset_kind == ZEROS:
                value = factor * _F(code - get_u8(m.offset + g))
            else:
                value = factor * _F(code - m.zero)
            put_f32(target + 4 * (start + k), value)
        at += 32 * m.bits
