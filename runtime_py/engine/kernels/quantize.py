"""Activations as integers with one scale per token and block of 256 columns, in the two layouts the products read.

An integer is 255 * high + low, both digits within -127..127. The scale is that of int8 for what a block mostly holds:
only columns beyond _LIMIT times the root mean square have a high digit. So an outlier does not take the precision of
the 255 columns beside it, and products read the high digits of few columns. A block without outliers is plain int8, its
largest magnitude 127. Sums of products over a block stay below 256 * 256 * 32512 < 2**31: 32 bits hold them exactly.

One token: bytes of low digits in column order; sums int32 [blocks, 16] with lane l holding columns 4l..4l+3 (mod 64) of
the block; scales float32 [blocks]. Several tokens: bytes [groups of 16 tokens, columns / 4, 16, 4]; sums int32 and
scales float32 [groups, blocks, 16 tokens]. Columns are padded with zeros to a multiple of 64. `sums` are minus the
instruction set's weight offset times the integers: the start value that makes every integer sum exact (isa.py).

`high`, for one token: HIGH_TOKEN bytes a block, an int64 with the places of its high digits (simd/digits.py) and from
byte HIGH_BYTES on one for each column. For several: HIGH_GROUP bytes for each group and block, the places where any of
the 16 tokens has one, and digits as [columns / 4, 16, 4]. Digits are written where their 64 columns have any. A group
that completes a pair (products load two) has no places.

Products with group-scaled codes read sums of shorter runs of columns, too. One token: `starts` int32 [columns / 64,
16], as sums, of every 64 columns; `shares` float32 [groups rounded up to 16], sums of a group's activations. Several
tokens: `starts` int32 [groups of 16 tokens, groups, 16], plain sums of a group's integers.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from runtime_py.engine.layout.products import HIGH_GROUP, HIGH_TOKEN
from runtime_py.machine.widths import HIGH_BYTES
from runtime_py.simd.digits import filled, times_255
from runtime_py.simd.integers import below, subtract_ints
from runtime_py.simd.lowering import dot
from runtime_py.simd.tile import transpose16
from runtime_py.simd.vectors import (
    absolute,
    add,
    add_ints,
    get_f32,
    get_i64,
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
    put_i64,
    rounded,
    splat_float,
    squared_at_most,
    store_bytes,
    store_int8s,
    store_ints,
    subtract,
    sum_floats,
    sum_ints,
    to_floats,
    zero_bytes,
    zero_floats,
    zero_ints,
)

_LIMIT = np.float32(5.0)  # times the root mean square of a block: at most 10 of 256 columns are beyond
_SMALL = np.float32(2.0**-50)  # a largest magnitude below which nothing is told apart


@nb.njit(cache=True, inline="always")
def _part(source, columns, k):
    """16 floats from column k on, zeros behind the last column."""
    if k + 16 <= columns:
        return load_floats(source + 4 * k)
    return load_some(source + 4 * k, max(columns - k, 0))


@nb.njit(cache=True, inline="always")
def _unit(source, columns, wide):
    """The magnitude that stands for 127, and whether any is larger, which have high digits then."""
    top, none, total = zero_floats(), zero_floats(), zero_floats()
    for k in range(0, wide, 16):
        x = _part(source, columns, k)
        size = absolute(x)
        top, none, total = maximum(top, size), add(none, subtract(x, x)), add(total, multiply(x, x))
    # NaN and infinity make a scale of NaN, so that they reach the logits instead of vanishing in a conversion.
    largest = max_floats(top) + sum_floats(none)
    limit = sum_floats(total) * (_LIMIT * _LIMIT / np.float32(columns))  # of squares
    if not (limit < largest * largest) or largest < _SMALL:
        return largest, False
    rest = zero_floats()
    for k in range(0, wide, 16):
        rest = maximum(rest, squared_at_most(absolute(_part(source, columns, k)), splat_float(limit)))
    return max(max_floats(rest), largest * np.float32(1.0 / 256.0)), True


@nb.njit(cache=True)
def _quantize_block(isa, source, columns, wide, target, high):
    """Low digits of `columns` floats, padded to `wide`, at target, high ones at high, where there are any.

    (scale, lane sums of the integers, places of high digits.)
    """
    unit, outliers = _unit(source, columns, wide)
    inverse = np.float32(127.0) / unit if np.float32(0.0) < unit < np.float32(np.inf) else np.float32(0.0)
    factor = splat_float(inverse)
    lanes, places = zero_ints(), np.int64(0)
    if outliers:
        for k in range(0, wide, 16):
            whole = rounded(multiply(_part(source, columns, k), factor))
            digit = rounded(multiply(to_floats(whole), splat_float(np.float32(1.0 / 255.0))))
            store_int8s(high + k, digit)
            store_int8s(target + k, subtract_ints(whole, times_255(digit)))
        for k in range(0, wide, 64):
            lanes = dot(isa, lanes, one_bytes(), load_bytes(high + k))
            places |= filled(high + k) << (k // 4)
        lanes = times_255(lanes)
    else:
        for k in range(0, wide, 16):
            store_int8s(target + k, rounded(multiply(_part(source, columns, k), factor)))
    for k in range(0, wide, 64):
        lanes = dot(isa, lanes, one_bytes(), load_bytes(target + k))
    return unit * np.float32(1.0 / 127.0), lanes, places


@nb.njit(cache=True)
def quantize_token(isa, offset, source, columns, blocks_first, blocks_last, quantized, sums, scales, high):
    """Blocks blocks_first..blocks_last - 1 of one token, in the layout for one token. source: float32 [columns]."""
    for b in range(blocks_first, blocks_last):
        left = min(columns - 256 * b, 256)
        wide, own = (left + 63) // 64 * 64, high + HIGH_TOKEN * b
        x = source + 1024 * b
        scale, lanes, places = _quantize_block(isa, x, left, wide, quantized + 256 * b, own + HIGH_BYTES)
        put_f32(scales + 4 * b, scale)
        put_i64(own, places)
        store_ints(sums + 64 * b, negated_times(lanes, offset))


@nb.njit(cache=True)
def quantize_group(
    isa, offset, source, stride, columns, group, tokens, first, last, quantized, sums, scales, high, scratch
):
    """Blocks first..last - 1 of the (up to 16) tokens of a group, in the layout for several tokens.

    source: float32 rows of the whole batch, `stride` floats apart. scratch: 8192 bytes. A whole group at a time, so
    that no two threads write to one cache line.
    """
    blocks, wide = (columns + 255) // 256, (columns + 63) // 64 * 64
    count = min(tokens - 16 * group, 16)
    digits = scratch + 4096
    for b in range(first, last):
        left = min(columns - 256 * b, 256)
        left_wide = (left + 63) // 64 * 64
        place, own = (group * blocks + b) * 64, high + (group * blocks + b) * HIGH_GROUP
        places, with_digits = np.int64(0), np.int64(0)
        for t in range(count):
            x = source + 4 * ((16 * group + t) * stride + 256 * b)
            scale, lanes, some = _quantize_block(isa, x, left, left_wide, scratch + 256 * t, digits + 256 * t)
            put_f32(scales + place + 4 * t, scale)
            put_i32(sums + place + 4 * t, nb.int32(-offset * sum_ints(lanes)))
            places |= some
            with_digits |= np.int64(some != 0) << t
        target = quantized + group * wide * 16 + b * 4096
        put_i64(own, places)
        for k in range(0, left_wide, 64):
            transpose16(scratch + k, 256, target + 16 * k, 64)
            if (places >> (k // 4)) & 0xFFFF != 0:
                for t in range(count):
                    if (with_digits >> t) & 1 == 0:
                        store_bytes(digits + 256 * t + k, zero_bytes())
                transpose16(digits + k, 256, own + HIGH_BYTES + 16 * k, 64)
        if group % 2 == 0 and 16 * group + 16 >= tokens:
            put_i64(own + blocks * HIGH_GROUP, np.int64(0))


@nb.njit(cache=True)
def token_shares(isa, offset, columns, first, last, size, quantized, scales, high, starts, shares):
    """Starts and shares of blocks first..last - 1 of one token that is quantized, for groups of `size` columns."""
    groups = (columns + size - 1) // size
    for b in range(first, last):
        scale, done, own = get_f32(scales + 4 * b), np.int32(0), high + HIGH_TOKEN * b
        places = get_i64(own)
        for k in range(256 * b, min(256 * b + 256, (columns + 63) // 64 * 64), 64):
            lanes, inside = zero_ints(), k - 256 * b
            if (places >> (inside // 4)) & 0xFFFF != 0:
                lanes = times_255(dot(isa, lanes, one_bytes(), load_bytes(own + HIGH_BYTES + inside)))
            lanes = dot(isa, lanes, one_bytes(), load_bytes(quantized + k))
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
def group_sums(isa, columns, group, first, last, size, quantized, high, starts):
    """Starts of blocks first..last - 1 of the tokens of a group that is quantized, for groups of `size` columns."""
    groups, wide, blocks = (columns + size - 1) // size, (columns + 63) // 64 * 64, (columns + 255) // 256
    for g in range(256 * first // size, min(256 * last // size, groups)):
        total, upper = zero_ints(), zero_ints()
        own = high + (group * blocks + g * size // 256) * HIGH_GROUP
        places = get_i64(own)
        for k in range(g * size, min((g + 1) * size, wide), 4):
            total = dot(isa, total, one_bytes(), load_bytes(quantized + group * wide * 16 + 16 * k))
            if (places >> (k % 256 // 4)) & 1 != 0:
                upper = dot(isa, upper, one_bytes(), load_bytes(own + HIGH_BYTES + 16 * (k % 256)))
        store_ints(starts + 64 * (group * groups + g), add_ints(total, times_255(upper)))
