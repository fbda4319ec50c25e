"""Attention over a cache of 4-bit razored keys and values: SdrAttention, bit for bit.

Keys of one head lie in blocks of 16 positions: codes [ceil(D / 8)][64 bytes], byte 4p + i holding dimension 8j + i of
position p in its low half and dimension 8j + 4 + i in its high half, then the flags [groups][8 bytes], two positions a
byte. Values of one head lie in blocks of 16 positions, too: codes [ceil(D / 16)][2][64 bytes], byte 4d + i of half h
holding dimension d of position 8h + i low and of position 8h + 4 + i high; then the flags like those of the keys. Codes
are stored plus 8. So one integer dot product takes 16 positions (or 16 dimensions) with four dimensions (positions), no
sum crosses lanes, and a cached number takes 4.25 bits in groups of 16.

Razor groups are multiples of 16 dimensions, or the whole head.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from export.contract.operators.attention import EXPONENT_BITS, EXPONENT_LIMIT, LOG2E_STEPS, POWER, QUERY_LIMIT
from runtime_py.engine.kernels.elementwise import hyperbolic_tangent
from runtime_py.engine.kernels.razor import integers, sixteen
from runtime_py.engine.layout.razor import ROWS
from runtime_py.simd.integers import (
    and_ints,
    below,
    join7,
    multiply_ints,
    nibbles,
    shift_left,
    shift_right,
    splat_int,
    store_low_bytes,
    subtract_ints,
    sum_wide,
)
from runtime_py.simd.razor import razor_mix, razor_scores
from runtime_py.simd.vectors import (
    absolute,
    add_ints,
    divide,
    first_lanes,
    get_f32,
    load_floats,
    load_ints,
    max_floats,
    maximum,
    minimum,
    multiply,
    prefetch,
    put_f32,
    put_i32,
    rounded,
    splat_float,
    store_floats,
    store_ints,
    store_some,
    subtract,
    sum_ints,
    to_floats,
    zero_floats,
    zero_ints,
)

_HIDDEN = np.float32(-3.0e38)
_F = np.float32
_I = nb.int32
_A0, _A1, _A2, _A3 = POWER


@nb.njit(cache=True)
def _query_digits(source, head_dim, wide, group, target, corrections):
    """A query as two signed bytes a number at target [2][wide]; -8 times each group's sum at corrections; its unit."""
    top = zero_floats()
    for k in range(0, head_dim, 16):
        top = maximum(top, absolute(sixteen(source, head_dim, k)))
    largest = max_floats(top)
    unit = largest / _F(QUERY_LIMIT) if largest > _F(0.0) else _F(1.0)
    for g in range((head_dim + group - 1) // group):
        total = zero_ints()
        for k in range(g * group, min((g + 1) * group, head_dim), 16):
            q = integers(sixteen(source, head_dim, k), unit, _F(QUERY_LIMIT))
            high = shift_right(add_ints(q, splat_int(_I(128))), splat_int(_I(8)))
            store_low_bytes(target + k, high)
            store_low_bytes(target + wide + k, subtract_ints(q, shift_left(high, splat_int(_I(8)))))
            total = add_ints(total, q)
        put_i32(corrections + 4 * g, _I(-8 * sum_ints(total)))
    return unit


@nb.njit(cache=True)
def _scores(isa, rows, block, eights, per_group, groups, queries, wide, corrections, apart, out, out_stride):
    """int32 scores [rows, 16] of a block of keys; rows beyond the last one are computed, too, and not used."""
    if rows == 1:
        razor_scores(
            isa, 1, block, eights, per_group, groups, queries, 2 * wide, wide, corrections, apart, out, out_stride
        )  # fmt: skip
    elif rows <= 4:
        razor_scores(
            isa, 4, block, eights, per_group, groups, queries, 2 * wide, wide, corrections, apart, out, out_stride
        )  # fmt: skip
    else:
        razor_scores(
            isa, 8, block, eights, per_group, groups, queries, 2 * wide, wide, corrections, apart, out, out_stride
        )  # fmt: skip


@nb.njit(cache=True)
def _probabilities(scores, begin, stop, low, high, top):
    """Scores of keys begin..stop - 1 become integers (see probabilities() of the operator); their sum.

    Keys outside low..high - 1 get zero. begin is a multiple of 16.
    """
    total, best = np.int64(0), splat_float(top)
    mask, bits = splat_int(_I((1 << EXPONENT_BITS) - 1)), splat_int(_I(EXPONENT_BITS))
    lanes = zero_ints()
    for k in range(begin, stop, 16):
        steps = multiply(subtract(best, load_floats(scores + 4 * k)), splat_float(_F(LOG2E_STEPS)))
        z = rounded(maximum(minimum(steps, splat_float(_F(EXPONENT_LIMIT))), zero_floats()))
        whole, part = shift_right(z, bits), and_ints(z, mask)
        inner = subtract_ints(splat_int(_I(_A2)), shift_right(multiply_ints(part, splat_int(_I(_A3))), bits))
        inner = subtract_ints(splat_int(_I(_A1)), shift_right(multiply_ints(part, inner), bits))
        power = subtract_ints(splat_int(_I(_A0)), shift_right(multiply_ints(part, inner), bits))
        half = shift_right(shift_left(splat_int(_I(1)), whole), splat_int(_I(1)))
        p = below(shift_right(add_ints(power, half), whole), high - k, zero_ints())
        if k < low:
            p = below(zero_ints(), low - k, p)
        store_ints(scores + 4 * k, p)
        lanes = add_ints(lanes, p)
        if k % 65536 == 65520:  # before 32 bits are full
            total += sum_wide(lanes)
            lanes = zero_ints()
    return total + sum_wide(lanes)


@nb.njit(cache=True)
def _mix(isa, rows, values, value_bytes, begin, stop, scores, stride, head_dim, group, sums, digits):
    """sums int32 [rows, chunks, 3, 16] = digits of shifted probabilities times cached values; digits: [rows, 3, 16]."""
    chunks, groups = (head_dim + 15) // 16, (head_dim + group - 1) // group
    per_group = chunks if groups == 1 else group // 16
    seven = splat_int(_I(127))
    height = 1 if rows == 1 else 4 if rows <= 4 else 8
    for i in range(3 * chunks * height):
        store_ints(sums + 64 * i, zero_ints())
    for k in range(begin, stop, 16):
        block = values + k // 16 * value_bytes
        for g in range(groups):
            shifts = nibbles(block + 128 * chunks + 8 * g)
            for r in range(rows):
                moved, at = shift_left(load_ints(scores + r * stride + 4 * k), shifts), digits + 48 * r
                store_low_bytes(at, and_ints(moved, seven))
                store_low_bytes(at + 16, and_ints(shift_right(moved, splat_int(_I(7))), seven))
                store_low_bytes(at + 32, shift_right(moved, splat_int(_I(14))))
            for c in range(g * per_group, min((g + 1) * per_group, chunks)):
                codes, place = block + 128 * c, sums + 192 * c
                if rows == 1:
                    razor_mix(isa, 1, codes, digits, 48, place, 192 * chunks)
                elif rows <= 4:
                    razor_mix(isa, 4, codes, digits, 48, place, 192 * chunks)
                else:
                    razor_mix(isa, 8, codes, digits, 48, place, 192 * chunks)


@nb.njit(cache=True)
def razor_attend_item(
    isa, item, query, query_stride, keys, values, capacity, heads, kv_heads, head_dim, past, tokens, window, scale, cap,
    key_units, value_units, group, out, out_stride, scores, scratch,
):  # fmt: skip
    """Rows of work item `item`: tokens x heads of one key-value head, 8 at a time.

    scores: 4 * ROWS * capacity bytes; the other arguments as those of attend_item (attend.py).
    """
    repeat, wide = heads // kv_heads, (head_dim + 15) // 16 * 16
    groups, eights, chunks = (head_dim + group - 1) // group, (head_dim + 7) // 8, (head_dim + 15) // 16
    key_bytes, value_bytes = 64 * eights + 8 * groups, 128 * chunks + 8 * groups
    tiles = (repeat * tokens + ROWS - 1) // ROWS
    which, first = item // tiles, item % tiles * ROWS
    rows = min(ROWS, repeat * tokens - first)
    apart, stride = wide // 4 + 8, 4 * capacity
    corrections = scratch + ROWS * 2 * wide
    factors = corrections + ROWS * apart
    digits = factors + 4 * ROWS
    sums = digits + 48 * ROWS
    key_unit, value_unit = get_f32(key_units + 4 * which), get_f32(value_units + 4 * which)
    key_head, value_head = keys + which * (capacity // 16) * key_bytes, values + which * (capacity // 16) * value_bytes
    per_group = eights if groups == 1 else group // 8
    for r in range(rows):
        token, head = (first + r) // repeat, which * repeat + (first + r) % repeat
        source = query + 4 * (token * query_stride + head * head_dim)
        unit = _query_digits(source, head_dim, wide, group, scratch + 2 * wide * r, corrections + apart * r)
        put_f32(factors + 4 * r, unit * (key_unit * scale))
    stop = past + (first + rows - 1) // repeat + 1
    begin = max(past + first // repeat + 1 - window, 0) // 16 * 16 if window > 0 else 0
    for k in range(begin, stop, 16):
        block = key_head + k // 16 * key_bytes
        for line in range(0, key_bytes, 64):
            prefetch(block + 4 * key_bytes + line)
        _scores(
            isa, rows, block, eights, per_group, groups, scratch, wide, corrections, apart, scores + 4 * k, stride
        )  # fmt: skip
    for r in range(rows):
        high = past + (first + r) // repeat + 1
        low = max(high - window, 0) if window > 0 else 0
        line, best, factor = scores + stride * r, splat_float(_HIDDEN), splat_float(get_f32(factors + 4 * r))
        for k in range(begin, stop, 16):
            real = multiply(to_floats(load_ints(line + 4 * k)), factor)
            if cap > 0:
                real = multiply(hyperbolic_tangent(divide(real, splat_float(cap))), splat_float(cap))
            store_floats(line + 4 * k, real)
            seen = first_lanes(real, high - k, splat_float(_HIDDEN))
            if k < low:
                seen = first_lanes(splat_float(_HIDDEN), low - k, seen)
            best = maximum(best, seen)
        total = _probabilities(line, begin, stop, low, high, max_floats(best))
        put_f32(factors + 4 * r, max(_F(total), _F(1.0)))
    _mix(isa, rows, value_head, value_bytes, begin, stop, scores, stride, head_dim, group, sums, digits)
    for r in range(rows):
        token, head = (first + r) // repeat, which * repeat + (first + r) % repeat
        target = out + 4 * (token * out_stride + head * head_dim)
        share = splat_float(get_f32(factors + 4 * r))
        for c in range(chunks):
            at = sums + 192 * (chunks * r + c)
            mixed = divide(join7(load_ints(at), load_ints(at + 64), load_ints(at + 128)), share)
            store_some(target + 64 * c, multiply(mixed, splat_float(value_unit)), head_dim - 16 * c)
