"""Causal attention over a cache of integer codes: grouped queries, sliding window, online softmax, exact products.

A query is rotated as the keys were and becomes integers of 16 bits, so its own rounding does not count beside that of
the keys. Of every round of KEYS keys, the softmax's weights times the values' scales become integers of 14 bits. So all
products of codes are exact sums of integers, and floats are added in one order, whatever the instruction set.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import intrinsic

from runtime_py.engine.kernels.attention.attend import HIDDEN, limit_scores, soften
from runtime_py.engine.kernels.attention.integer_cache import CENTERED, key_center, rotate_codes
from runtime_py.engine.kernels.elementwise import exponential
from runtime_py.engine.kernels.quantize import times_255
from runtime_py.engine.layout.attention import KEYS, ROWS
from runtime_py.machine.isa import WEIGHT_OFFSET
from runtime_py.simd.cached import cached_mix, cached_scores
from runtime_py.simd.integers import and_ints, shift_right, splat_int, store_low_bytes, subtract_ints
from runtime_py.simd.vectors import (
    absolute,
    add,
    add_ints,
    divide,
    first_lanes,
    get_f32,
    load_floats,
    load_some,
    max_floats,
    maximum,
    multiply,
    prefetch,
    put_f32,
    put_i32,
    rounded,
    splat_float,
    store_floats,
    store_some,
    subtract,
    sum_floats,
    sum_ints,
    to_floats,
    zero_floats,
    zero_ints,
)

_QUERY, _WEIGHT = np.float32(32512.0), np.float32(16383.0)  # the largest integers: 255 * 127 + 127, 128 * 127 + 127
_SMALLEST = np.float32(1e-30)
_F, _I = np.float32, nb.int32


@intrinsic
def _code_offset(typingctx, isa, bits):
    """What stored keys are plus as products take them, int64."""

    def codegen(context, builder, signature, args):
        plain = args[1].type(WEIGHT_OFFSET[signature.args[0].value])
        eight = builder.icmp_signed("==", args[1], args[1].type(8))
        return builder.select(eight, plain, args[1].type(8))

    return types.int64(isa, types.int64), codegen


@nb.njit(cache=True)
def _query(isa, bits, source, head_dim, row, digits, correction, center):
    """Digits of a query (high int8 [wide], then low), the start of its sums at `correction`; row: scratch.

    Its unit, and its product with the center of the keys (address or 0).
    """
    wide = (head_dim + 15) // 16 * 16
    for d in range(0, wide, 16):
        store_floats(row + 4 * d, load_some(source + 4 * d, min(head_dim - d, 16)))
    rotate_codes(row, head_dim)
    top, none, product = zero_floats(), zero_floats(), zero_floats()
    for d in range(0, wide, 16):
        x = load_floats(row + 4 * d)
        top, none = maximum(top, absolute(x)), add(none, subtract(x, x))
        if center != 0:
            product = add(product, multiply(x, load_floats(center + 4 * d)))
    largest = max_floats(top)
    fits = _SMALLEST < largest < _F(np.inf)
    inverse, total = splat_float(_QUERY / largest if fits else _F(0.0)), zero_ints()
    for d in range(0, wide, 16):
        whole = rounded(multiply(load_floats(row + 4 * d), inverse))
        high = rounded(multiply(to_floats(whole), splat_float(_F(1.0 / 255.0))))
        store_low_bytes(digits + d, high)
        store_low_bytes(digits + wide + d, subtract_ints(whole, times_255(high)))
        total = add_ints(total, whole)
    put_i32(correction, _I(-_code_offset(isa, bits) * sum_ints(total)))
    return (largest / _QUERY if fits else _F(0.0)) + sum_floats(none), sum_floats(product)


@nb.njit(cache=True)
def _scores(isa, bits, rows, block, wide, queries, corrections, factors, out):
    """16 scores of each row; rows behind the last one are computed, too, and not used."""
    stride, apart = 2 * wide, 4 * KEYS
    if bits == 8:
        if rows == 1:
            cached_scores(isa, 8, 1, block, wide, queries, stride, corrections, factors, out, apart)
        elif rows <= 4:
            cached_scores(isa, 8, 4, block, wide, queries, stride, corrections, factors, out, apart)
        else:
            cached_scores(isa, 8, 8, block, wide, queries, stride, corrections, factors, out, apart)
    elif rows == 1:
        cached_scores(isa, 4, 1, block, wide, queries, stride, corrections, factors, out, apart)
    elif rows <= 4:
        cached_scores(isa, 4, 4, block, wide, queries, stride, corrections, factors, out, apart)
    else:
        cached_scores(isa, 4, 8, block, wide, queries, stride, corrections, factors, out, apart)


@nb.njit(cache=True)
def _weights(scores, begin, count, low, high, values, size, digits):
    """Weights of one row times the values' scales as digits (int8 [16 positions' first, second] a block); their unit.

    values: the round's first block, `size` bytes with its scales at their end.
    """
    top, total = zero_floats(), zero_floats()
    for k in range(begin, count, 16):
        scales = load_floats(values + (k // 16 + 1) * size - 64)
        x = first_lanes(multiply(load_floats(scores + 4 * k), scales), high - k, zero_floats())
        if k < low:
            x = first_lanes(zero_floats(), low - k, x)
        store_floats(scores + 4 * k, x)
        top, total = maximum(top, x), add(total, subtract(x, x))
    largest = max_floats(top)
    fits = _SMALLEST < largest < _F(np.inf)
    inverse = splat_float(_WEIGHT / largest if fits else _F(0.0))
    for k in range(begin, count, 16):
        whole = rounded(multiply(load_floats(scores + 4 * k), inverse))
        store_low_bytes(digits + 2 * k, shift_right(whole, splat_int(_I(7))))
        store_low_bytes(digits + 2 * k + 16, and_ints(whole, splat_int(_I(127))))
    return (largest / _WEIGHT if fits else _F(0.0)) + sum_floats(total)


@nb.njit(cache=True)
def _mix(isa, bits, rows, values, size, blocks, wide, digits, units, totals):
    """totals [ROWS, wide] += weights times the values of some blocks."""
    for d in range(0, wide, 16):
        at, out = values + 2 * bits * d, totals + 4 * d
        if bits == 8:
            if rows == 1:
                cached_mix(isa, 8, 1, at, size, blocks, digits, 2 * KEYS, units, out, 4 * wide)
            elif rows <= 4:
                cached_mix(isa, 8, 4, at, size, blocks, digits, 2 * KEYS, units, out, 4 * wide)
            else:
                cached_mix(isa, 8, 8, at, size, blocks, digits, 2 * KEYS, units, out, 4 * wide)
        elif rows == 1:
            cached_mix(isa, 4, 1, at, size, blocks, digits, 2 * KEYS, units, out, 4 * wide)
        elif rows <= 4:
            cached_mix(isa, 4, 4, at, size, blocks, digits, 2 * KEYS, units, out, 4 * wide)
        else:
            cached_mix(isa, 4, 8, at, size, blocks, digits, 2 * KEYS, units, out, 4 * wide)


@nb.njit(cache=True)
def integer_attend_item(
    isa, bits, item, query, query_stride, keys, values, capacity, heads, kv_heads, head_dim, past, tokens, window,
    scale, cap, sinks, out, out_stride, scratch,
):  # fmt: skip
    """Rows of work item `item`: as attend_item of attend.py, over codes of `bits` bits."""
    repeat, wide = heads // kv_heads, (head_dim + 15) // 16 * 16
    size = 2 * bits * wide + 64
    tiles = (repeat * tokens + ROWS - 1) // ROWS
    group, first = item // tiles, item % tiles * ROWS
    rows = min(ROWS, repeat * tokens - first)
    digits, scores = scratch, scratch + ROWS * 2 * wide
    weights = scores + ROWS * 4 * KEYS
    totals = weights + ROWS * 2 * KEYS
    row = totals + ROWS * 4 * wide
    corrections = row + 4 * wide
    factors, tops, sums, units = corrections + 64, corrections + 128, corrections + 192, corrections + 256
    shifts, center = corrections + 320, 0
    stop = past + (first + rows - 1) // repeat + 1
    key_head, value_head = keys + group * (capacity // 16) * size, values + group * (capacity // 16) * size
    if bits == 4 and stop > CENTERED:
        center = corrections + 384
        key_center(key_head, wide, center)
    for r in range(ROWS):
        token, head = (first + min(r, rows - 1)) // repeat, group * repeat + (first + min(r, rows - 1)) % repeat
        source = query + 4 * (token * query_stride + head * head_dim)
        unit, shift = _query(
            isa, bits, source, head_dim, row, digits + 2 * wide * r, corrections + 4 * r, center
        )  # fmt: skip
        put_f32(factors + 4 * r, unit * scale)
        put_f32(shifts + 4 * r, shift * scale)
        for d in range(0, wide, 16):
            store_floats(totals + 4 * (r * wide + d), zero_floats())
        put_f32(tops + 4 * r, HIDDEN)
        put_f32(sums + 4 * r, _F(0.0))
        put_f32(units + 4 * r, _F(0.0))
    seen = max(past + first // repeat + 1 - window, 0) if window > 0 else 0  # the first key that any row sees
    for block in range(seen // KEYS * KEYS, stop, KEYS):
        count = min(KEYS, stop - block)
        begin = max(seen - block, 0) // 16 * 16
        ahead = stop - block > KEYS
        some_keys, some_values = key_head + block // 16 * size, value_head + block // 16 * size
        for k in range(begin, count, 16):
            if ahead:  # the next round's keys and values come closer meanwhile
                for line in range(0, size, 64):
                    prefetch(some_keys + (KEYS + k) // 16 * size + line)
                    prefetch(some_values + (KEYS + k) // 16 * size + line)
            _scores(
                isa, bits, rows, some_keys + k // 16 * size, wide, digits, corrections, factors, scores + 4 * k
            )  # fmt: skip
        for r in range(rows):
            position, line = past + (first + r) // repeat, scores + 4 * r * KEYS
            low = max(position + 1 - window - block, 0) if window > 0 else 0
            high = min(position + 1 - block, count)
            if center != 0:
                shift = splat_float(get_f32(shifts + 4 * r))
                for k in range(max(begin, CENTERED - block), count, 16):
                    store_floats(line + 4 * k, add(load_floats(line + 4 * k), shift))
            if cap > 0:
                limit_scores(line, begin, count, cap)
            top, factor, total = soften(
                line, begin, count, low, high, get_f32(tops + 4 * r), wide, totals + 4 * r * wide
            )  # fmt: skip
            put_f32(tops + 4 * r, top)
            put_f32(sums + 4 * r, get_f32(sums + 4 * r) * factor + total)
            unit = _weights(line, begin, count, low, high, some_values, size, weights + 2 * KEYS * r)
            put_f32(units + 4 * r, unit)
        _mix(
            isa, bits, rows, some_values + begin // 16 * size, size, (count - begin + 15) // 16, wide,
            weights + 2 * begin, units, totals,
        )  # fmt: skip
    for r in range(rows):
        token, head = (first + r) // repeat, group * repeat + (first + r) % repeat
        target, own = out + 4 * (token * out_stride + head * head_dim), totals + 4 * r * wide
        total = splat_float(get_f32(sums + 4 * r))
        if sinks != 0:
            beyond = get_f32(sinks + 4 * head) - get_f32(tops + 4 * r)
            total = add(total, exponential(splat_float(beyond)))
        for d in range(0, wide, 16):
            store_floats(own + 4 * d, divide(load_floats(own + 4 * d), total))
        rotate_codes(own, head_dim)
        for d in range(0, head_dim, 16):
            store_some(target + 4 * d, load_floats(own + 4 * d), head_dim - d)
