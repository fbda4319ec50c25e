"""Activations as int8 with one scale per token and block of 256 columns, in the two layouts the products read.

One token: bytes in column order; sums int32 [blocks, 16] with lane l holding columns 4l..4l+3 (mod 64) of the block;
scales float32 [blocks]. Several tokens: bytes [groups of 16 tokens, columns / 4, 16, 4]; sums int32 and scales float32
[groups, blocks, 16 tokens]. Columns are padded with zeros to a multiple of 64. `sums` are minus the instruction set's
weight offset times the activations: the start value that makes every integer sum exact (isa.py).

Products with group-scaled codes read sums of shorter runs of columns, too. One token: `starts` int32 [columns / 64,
16], as sums, of every 64 columns; `shares` float32 [groups rounded up to 16], sums of a group's activations. Several
tokens: `starts` int32 [groups of 16 tokens, groups, 16], plain sums of a group's integers.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.simd.integers import below
from runtime_py.simd.lowering import dot
from runtime_py.simd.tile import transpose16
from runtime_py.simd.vectors import (
    absolute,
    add,
    get_f32,
    load_bytes,
    load_floats,
    load_some,
    max_floats,
    maximum,
    multiply,
    negated_times,
    one_bytes,
    put_f32,
    put_i32,
    rounded,
    splat_float,
    store_int8s,
    store_ints,
    subtract,
    sum_floats,
    sum_ints,
    zero_floats,
    zero_ints,
)


@nb.njit(cache=True, inline="always")
def _part(source, columns, k):
    """16 floats from column k on, zeros behind the last column."""
    if k + 16 <= columns:
        return load_floats(source + 4 * k)
    return load_some(source + 4 * k, max(columns - k, 0))


@nb.njit(cache=True)
def _quantize_block(isa, source, columns, wide, target):
    """int8 of `columns` floats, padded to `wide`, at target; (scale, lane sums of the int8 values)."""
    top, none = zero_floats(), zero_floats()
    for k in range(0, wide, 16):
        x = _part(source, columns, k)
        top, none = maximum(top, absolute(x)), add(none, subtract(x, x))
    # NaN and infinity make a scale of NaN, so that they reach the logits instead of vanishing in a conversion.
    largest = max_floats(top) + sum_floats(none)
    inverse = np.float32(127.0) / largest if 0.0 < largest < np.float32(np.inf) else np.float32(0.0)
    factor = splat_float(inverse)
    lanes = zero_ints()
    for k in range(0, wide, 16):
        store_int8s(target + k, rounded(multiply(_part(source, columns, k), factor)))
    for k in range(0, wide, 64):
        lanes = dot(isa, lanes, one_bytes(), load_bytes(target + k))
    return largest * np.float32(1.0 / 127.0), lanes


@nb.njit(cache=True)
def quantize_token(isa, offset, source, columns, blocks_first, blocks_last, quantized, sums, scales):
    """Blocks blocks_first..blocks_last - 1 of one token, in the layout for one token. source: float32 [columns]."""
    for b in range(blocks_first, blocks_last):
        left = min(columns - 256 * b, 256)
        scale, lanes = _quantize_block(isa, source + 1024 * b, left, (left + 63) // 64 * 64, quantized + 256 * b)
        put_f32(scales + 4 * b, scale)
        store_ints(sums + 64 * b, negated_times(lanes, offset))


@nb.njit(cache=True)
def quantize_group(isa, offset, source, stride, columns, group, tokens, first, last, quantized, sums, scales, scratch):
    """Blocks first..last - 1 of the (up to 16) tokens of a group, in the layout for several tokens.

    source: float32 rows of the whole batch, `stride` floats apart. scratch: 4096 bytes. A whole group at a time, so
    that no two threads write to one cache line.
    """
    blocks, wide = (columns + 255) // 256, (columns + 63) // 64 * 64
    count = min(tokens - 16 * group, 16)
    for b in range(first, last):
        left = min(columns - 256 * b, 256)
        left_wide = (left + 63) // 64 * 64
        place = (group * blocks + b) * 64
        for t in range(count):
            x = source + 4 * ((16 * group + t) * stride + 256 * b)
            scale, lanes = _quantize_block(isa, x, left, left_wide, scratch + 256 * t)
            put_f32(scales + place + 4 * t, scale)
            put_i32(sums + place + 4 * t, nb.int32(-offset * sum_ints(lanes)))
        target = quantized + group * wide * 16 + b * 4096
        for k in range(0, left_wide, 64):
            transpose16(scratch + k, 256, target + 16 * k, 64)


@nb.njit(cache=True)
def token_shares(isa, offset, columns, first, last, size, quantized, scales, starts, shares):
    """Starts and shares of blocks first..last - 1 of one token that is quantized, for groups of `size` columns."""
    groups = (columns + size - 1) // size
    for b in range(first, last):
        scale, done = get_f32(scales + 4 * b), np.int32(0)
        for k in range(256 * b, min(256 * b + 256, (columns + 63) // 64 * 64), 64):
            lanes = dot(isa, zero_ints(), one_bytes(), load_bytes(quantized + k))
            store_ints(starts + k, negated_times(lanes, offset))
            if size >= 64:
                done += sum_ints(lanes)
                put_f32(shares + 4 * (k // size), np.float32(done) * scale)
                done = done if (k + 64) % size != 0 else np.int32(0)
            else:
                before = np.int32(0)
                for g in range(k // size, min((k + 64) // size, groups)):
                    until = sum_ints(below(lanes, ((g + 1) * size - k) // 4, zero_ints()))
                    put_f32(shares + 4 * g, np.float32(until - before) * scale)
                    before = until
        if 256 * b + 256 >= columns:
            for g in range(groups, (groups + 15) // 16 * 16):
                put_f32(shares + 4 * g, np.float32(0.0))


@nb.njit(cache=True)
def group_sums(isa, columns, group, first, last, size, quantized, starts):
    """Starts of blocks first..last - 1 of the tokens of a group that is quantized, for groups of `size` columns."""
    groups, wide = (columns + size - 1) // size, (columns + 63) // 64 * 64
    for g in range(256 * first // size, min(256 * last // size, groups)):
        total = zero_ints()
        for k in range(g * size, min((g + 1) * size, wide), 4):
            total = dot(isa, total, one_bytes(), load_bytes(quantized + group * wide * 16 + 16 * k))
        store_ints(starts + 64 * (group * groups + g), total)
